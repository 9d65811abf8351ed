"""Devices as one mesh: where arrays live, and how a method asks for a placement without knowing the devices."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxreid.data.batch import Batch
from jaxreid.errors import UserError

AXES = ("data", "fsdp")
SPLIT_ABOVE = 2**18  # elements; smaller arrays are cheaper to copy than to gather


@functools.cache
def register_batch() -> None:
    """Tells jax what a `Batch` is made of; before one is passed to a jitted function."""
    jax.tree_util.register_dataclass(Batch, [f.name for f in dataclasses.fields(Batch)], [])


def make_mesh(fsdp: int = 1, devices: int = 0) -> Mesh:
    """A (data, fsdp) mesh over `devices` devices (0 = all), as many of every process, process by process.

    Raises:
      UserError: there are fewer devices, processes have different numbers of them or would get different numbers, or
        the number is not a multiple of `fsdp`; the message names the sizes that fit.
    """
    register_batch()
    found = by_process(jax.devices(), jax.process_count(), devices)
    count = len(found)
    if fsdp < 1 or count % fsdp:
        fit = [size for size in range(1, count + 1) if count % size == 0]
        raise UserError(f"mesh.fsdp={fsdp} does not divide {count} devices; sizes that fit: {fit}")
    # Mesh() rather than make_mesh(): its axes are Auto, on which sharding constraints are hints that XLA completes.
    return Mesh(np.array(found).reshape(count // fsdp, fsdp), AXES)


def by_process(found: Sequence[Any], processes: int, count: int = 0) -> list[Any]:
    """`count` devices (0 = all), the first of each process in the order of their ids, those of process 0 first: a batch
    then lies in the order of its rows, and every process holds as many of them as it reads.

    Raises:
      UserError: as `make_mesh`.
    """
    if count > len(found):
        raise UserError(f"mesh.devices={count}, but there are {len(found)}")
    own: list[list[Any]] = [[] for _ in range(processes)]
    for device in sorted(found, key=lambda device: device.id):
        own[device.process_index].append(device)
    numbers = [len(devices) for devices in own]
    if len(set(numbers)) > 1:
        listing = ", ".join(f"process {index} has {number}" for index, number in enumerate(numbers))
        raise UserError(f"every process needs the same number of devices, but {listing}: let each see as many")
    if count % processes:
        raise UserError(f"mesh.devices={count} does not divide over {processes} processes: give a multiple of them")
    return [device for devices in own for device in devices[: count // processes or None]]


def local_mesh(mesh: Mesh) -> Mesh:
    """This process's devices of a mesh in a row, whatever rectangle they are a part of."""
    return Mesh(np.array(mesh.local_devices), ("rows",))


def rows(mesh: Mesh) -> NamedSharding:
    """The first axis split over every device."""
    return NamedSharding(mesh, P(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def constrain(x: Any, placement: str) -> Any:
    """Inside jit: asks that every array of `x` is split over rows ("rows") or whole everywhere ("replicated").

    Does nothing where no mesh is set, so that methods run unchanged outside of a training run.
    """
    if placement not in ("rows", "replicated"):
        raise UserError(f"placement {placement!r} is neither 'rows' nor 'replicated'")
    if jax.sharding.get_abstract_mesh().empty:
        return x
    spec = P(AXES) if placement == "rows" else P()
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, spec), x)


def constrain_columns(x: Any, table: Any) -> Any:
    """Inside jit: asks that x [..., K] is split over its columns as the state splits the rows of `table` [K, D].

    Products with a large table then stay where its rows are: what travels are sums, never the table. Does nothing where
    the table is whole everywhere, or no mesh is set.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or _split_axis(table.shape, mesh.shape["fsdp"]) != 0:
        return x
    return jax.lax.with_sharding_constraint(x, P(*[None] * (x.ndim - 1), "fsdp"))


def state_sharding(tree: Any, mesh: Mesh) -> Any:
    """Shardings for a state tree of arrays or shapes: large arrays split over `fsdp`, along their longest axis that
    divides; everything else on every device."""

    def sharding(leaf: Any) -> NamedSharding:
        axis = _split_axis(leaf.shape, mesh.shape["fsdp"])
        return NamedSharding(mesh, P() if axis is None else P(*[None] * axis, "fsdp"))

    return jax.tree.map(sharding, tree)


def _split_axis(shape: tuple[int, ...], size: int) -> int | None:
    if size == 1 or np.prod(shape) < SPLIT_ABOVE:
        return None
    axes = [axis for axis in range(len(shape)) if shape[axis] % size == 0]
    return max(axes, key=lambda axis: shape[axis], default=None)


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Shapes, types and placement of a tree of arrays or shapes, as compiling and restoring take them."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def to_global(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows of a batch → global arrays split over rows."""
    sharding = rows(mesh)
    if jax.process_count() == 1:  # all arrays in one call: one by one they take ten times as long
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def place(tree: Any, shardings: Any) -> Any:
    """Host or device arrays → global arrays with the given shardings (every process holds the same values)."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, shardings)


def to_host(tree: Any) -> Any:
    """Global arrays → NumPy on every process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def bytes_per_device(tree: Any) -> int:
    """Bytes that one device holds of a tree of placed arrays or shapes."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def placement(groups: Mapping[str, Any]) -> Iterator[str]:
    """A line for each group of placed arrays or shapes: bytes per device and over all, and how many are split."""
    for name, tree in groups.items():
        leaves = jax.tree.leaves(tree)
        if leaves:
            whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
            split = sum(not leaf.sharding.is_fully_replicated for leaf in leaves)
            yield (
                f"  {name:<10} {bytes_per_device(tree) / 2**20:9.2f} MiB per device of {whole / 2**20:9.2f}; "
                f"{len(leaves)} arrays, {split} of them split over fsdp"
            )


def flatten_paths(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """("encoder/block_00/…", leaf) of a nested dict."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield "/".join(str(getattr(key, "key", key)) for key in path), leaf
