"""Numbers that tell one tree of arrays from another, wherever its arrays lie."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.devices import processes


def digests(tree: Any) -> dict[str, int]:
    """Path → a number that changes with any single bit of an array, and is the same on every mesh.

    Σ (2i + 1)·bits of element i, modulo 2³²: a bit adds or takes away an odd number times a power of two, never 0.
    Every process sums what it holds on the host, where nothing has to be compiled for the shapes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = np.array(processes.gather([_sum(jnp.asarray(leaf)) for _, leaf in leaves]), np.uint32)
    total = sums.sum(axis=0, dtype=np.uint32)
    return {jax.tree_util.keystr(path): int(value) for (path, _), value in zip(leaves, total, strict=True)}


def digest(tree: Any) -> str:
    """Sixteen hex digits for all that `digests` says of a tree."""
    return hashlib.sha256(json.dumps(digests(tree), sort_keys=True).encode()).hexdigest()[:16]


def _sum(x: jax.Array) -> int:
    """The sum for the parts of an array that are on this process, each of them once."""
    total = 0
    for shard in x.addressable_shards:
        if shard.replica_id:
            continue
        part = np.asarray(shard.data)
        bits = part.view(f"uint{8 * part.dtype.itemsize}")
        total += int(bits.sum(dtype=np.uint32))
        # i is the sum of every axis' coordinate times its stride, so sums over the other axes are enough.
        for axis, place in enumerate(shard.index):
            others = tuple(other for other in range(x.ndim) if other != axis)
            coordinate = np.arange(bits.shape[axis], dtype=np.uint32) + np.uint32(place.start or 0)
            along = bits.sum(axis=others, dtype=np.uint32)
            total += 2 * math.prod(x.shape[axis + 1 :]) * int(np.sum(coordinate * along, dtype=np.uint32))
    return total % 2**32
