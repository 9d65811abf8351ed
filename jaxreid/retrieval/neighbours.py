"""Exact nearest neighbours in row blocks: the distance matrix never exists whole.

The k largest of a row are found in two steps: the k groups of columns with the largest maxima hold them all, so only
those groups are ranked. Rows at equal similarity keep the order of their columns, as in a stable sort.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxreid.errors import UserError
from jaxreid.shapes import AnyArray, Array, Float, Int, Real

UNIT = 1e-2  # what the length of a unit row may differ from 1 by, in bfloat16 as well

LARGEST_TILE = 1 << 22  # similarities that exist at a time on a CPU; accelerators take 16 times as many


class Neighbours(NamedTuple):
    """Nearest first, by cosine."""

    index: Int[Array, "queries neighbours"]
    similarity: Float[Array, "queries neighbours"]


def top_k(x: Real[Array, "*rows gallery"], k: int) -> tuple[Real[Array, "*rows {k}"], Int[Array, "*rows {k}"]]:
    """(values, columns) of the k largest entries of every row, largest first; k static, at most G."""
    columns = x.shape[-1]
    x = jnp.where(x == 0, jnp.zeros((), x.dtype), x)  # lax.top_k would tell -0 from 0
    group = 1 << max(int(np.log2(max(columns / k, 1.0)) / 2), 0)  # near √(G/k), where both steps cost the same
    count = -(-columns // group)
    if group == 1 or count <= k:
        values, column = jax.lax.top_k(x, k)
        return values, column
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    padding = [(0, 0)] * (x.ndim - 1) + [(0, count * group - columns)]
    grouped = jnp.pad(x, padding, constant_values=lowest).reshape(*x.shape[:-1], count, group)
    chosen = jnp.sort(jax.lax.top_k(grouped.max(-1), k)[1], axis=-1)  # in the order of their columns
    candidates = jnp.take_along_axis(grouped, chosen[..., None], axis=-2)
    values, place = jax.lax.top_k(candidates.reshape(*x.shape[:-1], k * group), k)
    column = jnp.take_along_axis(chosen, place // group, axis=-1) * group + place % group
    return values, column


def block_of(rows: int, columns: int) -> int:
    """Rows of a block whose matrix with so many columns fits the cache (or, on accelerators, a share of the memory)."""
    tile = LARGEST_TILE if jax.default_backend() == "cpu" else 16 * LARGEST_TILE
    return int(np.clip(tile // columns, 1, rows))


def map_rows(function: Any, rows: int, block: int) -> Any:
    """`function(row numbers i32[n])` over all rows, as one traced loop; leaves [n, …] become [rows, …].

    Blocks have one size, `block` rows or a little less; the last one repeats the last row where it is not full.
    """
    count = -(-rows // block)
    block = -(-rows // count)
    numbers = jnp.minimum(jnp.arange(count * block, dtype=jnp.int32), rows - 1).reshape(count, block)
    found = jax.lax.map(function, numbers)
    return jax.tree.map(lambda leaf: leaf.reshape(count * block, *leaf.shape[2:])[:rows], found)


def nearest_neighbours(
    query: Float[AnyArray, "queries dim"], gallery: Float[AnyArray, "gallery dim"], k: int, block: int | None = None
) -> Neighbours:
    """The k most similar gallery rows of every query by cosine.

    Args:
      query, gallery: unit rows.
      k: static, at most G.
      block: queries at a time; None chooses.

    Raises:
      UserError: rows that are no unit rows. Inside of jit nothing is checked, and inner products are compared.
    """
    for what, features in (("query", query), ("gallery", gallery)):
        if not isinstance(features, Tracer):
            length = np.linalg.norm(np.asarray(features, np.float32), axis=1)
            other = np.flatnonzero(~(np.abs(length - 1) <= UNIT))
            if len(other):
                raise UserError(
                    f"nearest_neighbours: {len(other)} of {len(length)} {what} rows are no unit rows, the first of "
                    f"them row {other[0]} of length {length[other[0]]:.4g}: give unit_rows({what})"
                )
    return _nearest_neighbours(query, gallery, k, block)


@functools.partial(jax.jit, static_argnames=("k", "block"))
def _nearest_neighbours(
    query: Float[Array, "queries dim"], gallery: Float[Array, "gallery dim"], k: int, block: int | None = None
) -> Neighbours:
    block = block or block_of(query.shape[0], gallery.shape[0])

    def of_block(rows: Array) -> Neighbours:
        similarity = jnp.matmul(query[rows], gallery.T, precision=jax.lax.Precision.HIGHEST)
        values, index = top_k(similarity, k)
        return Neighbours(index.astype(jnp.int32), values)

    return map_rows(of_block, query.shape[0], block)
