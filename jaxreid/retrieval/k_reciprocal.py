"""k-reciprocal encoding (Zhong et al. 2017, "Re-ranking Person Re-identification with k-reciprocal Encoding"), sparse.

    neighbours ──▶ R(i), mutual ──▶ R*(i), expanded ──▶ V_i, weights on R*(i) ──▶ mean of V over k2 nearest ──▶ Jaccard

Every row of V has a few dozen entries, kept as (columns, values) of static width: memory is O(N·k), never N×N. Two
rows share weight only where their columns meet, which an inverted list of the columns finds.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.retrieval.neighbours import map_rows

Array = Any

ROWS = 256  # of a block, in every step here


class SparseRows(NamedTuple):
    """N rows with at most Q entries each: `column` i32[N, Q], ascending, N where there is none; `value` f32[N, Q].

    `lost` i32[N] counts entries beyond Q.
    """

    column: jax.Array
    value: jax.Array
    lost: jax.Array


def mutual(index: Array, k: int) -> jax.Array:
    """bool[N, k]: of the k nearest of each row, those that have the row among their own k nearest."""
    nearest = index[:, :k]

    def of_block(rows: jax.Array) -> jax.Array:
        theirs = nearest[nearest[rows]]  # [block, k, k]
        return jnp.any(theirs == rows[:, None, None], axis=-1)

    return map_rows(of_block, index.shape[0], min(ROWS, index.shape[0]))


def _compress(column: jax.Array, value: jax.Array, width: int, rows: int) -> SparseRows:
    """Entries [B, E] in any order → sorted by column, those of one column added up, the first `width` kept."""
    column, value = jax.lax.sort((column, value), dimension=1, num_keys=1)
    first = jnp.concatenate([jnp.ones_like(column[:, :1], bool), column[:, 1:] != column[:, :-1]], axis=1)
    place = jnp.cumsum(first, axis=1) - 1
    exists = column < rows
    target = jnp.where(exists, place, width)  # beyond the width: dropped

    def spread(column: jax.Array, value: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        columns = jnp.full(width, rows, jnp.int32).at[target].set(column, mode="drop")
        return columns, jnp.zeros(width, value.dtype).at[target].add(value, mode="drop")

    columns, values = jax.vmap(spread)(column, value, target)
    distinct = jnp.sum(first & exists, axis=1, dtype=jnp.int32)
    return SparseRows(columns, values, jnp.maximum(distinct - width, 0))


def expanded_sets(index: Array, k: int, k_half: int, width: int) -> SparseRows:
    """R*(i): the mutual neighbours R(i), and the smaller sets R½(c) of every c in R(i) that lie in R(i) by more than
    two thirds (equation 5 of the paper). Values are 1."""
    rows = index.shape[0]
    is_mutual, is_half = mutual(index, k), mutual(index, k_half)
    members = jnp.where(is_mutual, index[:, :k], rows)
    halves = jnp.where(is_half, index[:, :k_half], rows)

    def of_block(numbers: jax.Array) -> SparseRows:
        own = members[numbers]  # [B, k]
        candidate = halves[jnp.minimum(own, rows - 1)]  # [B, k, k_half]
        exists = (candidate < rows) & (own < rows)[..., None]
        inside = jnp.any(candidate[..., None] == own[:, None, None, :], axis=-1) & exists
        # 3·|R½(c) ∩ R(i)| > 2·|R½(c)| in whole numbers.
        accepted = 3 * inside.sum(-1) > 2 * exists.sum(-1)
        added = jnp.where(exists & accepted[..., None], candidate, rows).reshape(len(numbers), -1)
        column = jnp.concatenate([own, added], axis=1)
        found = _compress(column, jnp.ones(column.shape, jnp.float32), width, rows)
        return found._replace(value=jnp.where(found.column < rows, 1.0, 0.0))

    return map_rows(of_block, rows, min(ROWS, rows))


def weights(sets: SparseRows, features: Array) -> SparseRows:
    """V_i: softmax over R*(i) of −‖x_i − x_j‖² (equation 7), for unit features [N, D]."""
    rows = features.shape[0]

    def of_block(numbers: jax.Array) -> jax.Array:
        column = sets.column[numbers]
        theirs = features[jnp.minimum(column, rows - 1)]
        similarity = jnp.einsum("bd,bqd->bq", features[numbers], theirs, precision=jax.lax.Precision.HIGHEST)
        return jax.nn.softmax(jnp.where(column < rows, 2.0 * similarity - 2.0, -jnp.inf), axis=-1)

    return sets._replace(value=map_rows(of_block, rows, min(ROWS, rows)))


def query_expansion(encoding: SparseRows, index: Array, k2: int, width: int) -> SparseRows:
    """V_i ← mean of V over the k2 nearest of i, itself among them (section 3.4)."""
    rows = index.shape[0]

    def of_block(numbers: jax.Array) -> SparseRows:
        nearest = index[numbers, :k2]
        column = encoding.column[nearest].reshape(len(numbers), -1)
        value = encoding.value[nearest].reshape(len(numbers), -1) / k2
        found = _compress(column, value, width, rows)
        return found._replace(lost=found.lost + encoding.lost[nearest].sum(1))

    return map_rows(of_block, rows, min(ROWS, rows))


@functools.partial(jax.jit, static_argnames=("k", "k_half", "k2", "width", "expanded_width"))
def encode(
    features: Array, index: Array, k: int, k_half: int, k2: int, width: int = 128, expanded_width: int = 384
) -> SparseRows:
    """The k-reciprocal encoding V of unit features f32[N, D].

    Args:
      index: i32[N, ≥ k], the nearest of each row, itself among them, nearest first.
      k, k_half: sizes of the neighbourhoods R and R½, the row itself counted.
      k2: neighbours of the local query expansion; 1 for none.
      width, expanded_width: entries per row before and after the expansion; what does not fit is counted in `lost`.
    """
    encoding = weights(expanded_sets(index, k, k_half, width), features)
    return query_expansion(encoding, index, k2, expanded_width) if k2 > 1 else encoding


class InvertedLists(NamedTuple):
    """Entries of sparse rows in the order of their columns: `row` i32[E], `value` f32[E]; column g has those from
    `start[g]` on, `length[g]` of them."""

    row: jax.Array
    value: jax.Array
    start: jax.Array
    length: jax.Array


@jax.jit
def inverted_lists(encoding: SparseRows) -> InvertedLists:
    rows, width = encoding.column.shape
    row = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32)[:, None], (rows, width)).reshape(-1)
    column, row, value = jax.lax.sort((encoding.column.reshape(-1), row, encoding.value.reshape(-1)), num_keys=1)
    start = jnp.searchsorted(column, jnp.arange(rows + 1, dtype=jnp.int32)).astype(jnp.int32)
    return InvertedLists(row, value, start[:-1], start[1:] - start[:-1])


def meetings(encoding: SparseRows, lists: InvertedLists, block: int) -> int:
    """The most pairs of entries in one column that a block of rows has: the static size of `shared_weight`'s work,
    rounded up to a power of two."""
    rows = encoding.column.shape[0]
    length = np.append(np.asarray(lists.length), 0).astype(np.int64)
    per_row = length[np.asarray(encoding.column)].sum(1)
    blocks = np.pad(per_row, (0, -rows % block), mode="edge").reshape(-1, block).sum(1)
    return 1 << int(blocks.max() - 1).bit_length()


def shared_weight(encoding: SparseRows, lists: InvertedLists, numbers: Array, pairs: int) -> jax.Array:
    """Σ_g min(V_ig, V_jg) of the rows i = `numbers` i32[B] with all rows: f32[B, N]. `pairs`: see `meetings`."""
    rows = encoding.column.shape[0]
    column = encoding.column[numbers].reshape(-1)
    value = encoding.value[numbers].reshape(-1)
    safe = jnp.minimum(column, rows - 1)
    length = jnp.where(column < rows, lists.length[safe], 0)
    end = jnp.cumsum(length)
    # Pair p belongs to the first entry whose end lies behind p.
    entry = jnp.repeat(jnp.arange(len(column)), length, total_repeat_length=pairs)
    offset = jnp.arange(pairs) - (end - length)[entry]
    exists = jnp.arange(pairs) < end[-1]
    place = jnp.minimum(lists.start[safe[entry]] + offset, len(lists.row) - 1)
    shared = jnp.where(exists, jnp.minimum(value[entry], lists.value[place]), 0.0)
    target = (entry // encoding.column.shape[1]) * rows + lists.row[place]
    total = jnp.zeros(len(numbers) * rows, jnp.float32).at[target].add(shared)
    return total.reshape(len(numbers), rows)


def jaccard_distance(shared: Array) -> jax.Array:
    """1 − m/(2 − m) of shared weights m of rows that sum to 1 (equation 10), in [0, 1]."""
    return jnp.maximum(1.0 - shared / (2.0 - shared), 0.0)
