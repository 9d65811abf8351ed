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

from jaxreid.retrieval.neighbours import map_rows

Array = Any

ROWS = 256  # of a block, in every step here
CHUNK = 1 << 18  # pairs of entries that are added up at a time on a CPU; accelerators take 16 times as many


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


def weights(sets: SparseRows, features: Array, unit: Array | None = None) -> SparseRows:
    """V_i: softmax over R*(i) of −‖x_i − x_j‖² (equation 7), for features [N, D].

    `unit` f32[N]: what squared distances of each row are measured in; 1 where not given.
    """
    rows = features.shape[0]
    square = jnp.sum(features**2, axis=1)
    scale = jnp.ones(rows) if unit is None else unit

    def of_block(numbers: jax.Array) -> jax.Array:
        column = sets.column[numbers]
        safe = jnp.minimum(column, rows - 1)
        product = jnp.einsum("bd,bqd->bq", features[numbers], features[safe], precision=jax.lax.Precision.HIGHEST)
        distance = (square[numbers][:, None] + square[safe] - 2.0 * product) / scale[numbers][:, None]
        return jax.nn.softmax(jnp.where(column < rows, -distance, -jnp.inf), axis=-1)

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
    features: Array,
    index: Array,
    k: int,
    k_half: int,
    k2: int,
    width: int = 128,
    expanded_width: int = 384,
    unit: Array | None = None,
) -> SparseRows:
    """The k-reciprocal encoding V of features f32[N, D].

    Args:
      index: i32[N, ≥ k], the nearest of each row, itself among them, nearest first.
      k, k_half: sizes of the neighbourhoods R and R½, the row itself counted.
      k2: neighbours of the local query expansion; 1 for none.
      width, expanded_width: entries per row before and after the expansion; what does not fit is counted in `lost`.
      unit: see `weights`.
    """
    encoding = weights(expanded_sets(index, k, k_half, width), features, unit)
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


def shared_weight(encoding: SparseRows, lists: InvertedLists, numbers: Array, chunk: int | None = None) -> jax.Array:
    """Σ_g min(V_ig, V_jg) of the rows i = `numbers` i32[B] with all rows j: f32[B, N].

    The pairs of entries that meet in a column are counted off one after the other and taken `chunk` at a time, as
    many times as there are pairs: how many there are is data, not a shape.
    """
    rows, width = encoding.column.shape
    chunk = chunk or (CHUNK if jax.default_backend() == "cpu" else 16 * CHUNK)
    column, value = encoding.column[numbers].reshape(-1), encoding.value[numbers].reshape(-1)
    safe = jnp.minimum(column, rows - 1)
    length = jnp.where(column < rows, lists.length[safe], 0)
    end = jnp.cumsum(length)
    start, entries = end - length, jnp.arange(len(column), dtype=jnp.int32)
    to_place = lists.start[safe] - start  # from the number of a pair to its place in the lists

    def add(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        begin, total = state
        # Pair p belongs to the last entry that starts at or before it; the first one may have started earlier.
        inside = (start >= begin) & (start < begin + chunk)
        mark = jnp.zeros(chunk, jnp.int32).at[jnp.where(inside, start - begin, chunk)].max(entries, mode="drop")
        first = jnp.searchsorted(end, begin, side="right").astype(jnp.int32)
        entry = jax.lax.cummax(mark.at[0].max(first))
        pair = begin + jnp.arange(chunk, dtype=jnp.int32)
        place = jnp.minimum(to_place[entry] + pair, len(lists.row) - 1)
        shared = jnp.where(pair < end[-1], jnp.minimum(value[entry], lists.value[place]), 0.0)
        return begin + chunk, total.at[(entry // width) * rows + lists.row[place]].add(shared)

    total = jnp.zeros(len(numbers) * rows, jnp.float32)
    _, total = jax.lax.while_loop(lambda state: state[0] < end[-1], add, (jnp.int32(0), total))
    return total.reshape(len(numbers), rows)


def jaccard_distance(shared: Array) -> jax.Array:
    """1 − m/(2 − m) of shared weights m of rows that sum to 1 (equation 10), in [0, 1]."""
    return jnp.maximum(1.0 - shared / (2.0 - shared), 0.0)
