"""k-reciprocal encoding (Zhong et al. 2017, "Re-ranking Person Re-identification with k-reciprocal Encoding"), sparse.

    neighbours ──▶ R(i), mutual ──▶ R*(i), expanded ──▶ V_i, weights on R*(i) ──▶ mean of V over k2 nearest ──▶ Jaccard

Every row of V has a few dozen entries, kept as (columns, values) of static width: memory is O(N·k), never N×N. Two
rows share weight only where their columns meet, which an inverted list of the columns finds.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.retrieval.neighbours import map_rows
from jaxreid.shapes import Array, Bool, Float, Int

CACHED = 1 << 19  # numbers that a block of rows works on, on a CPU; accelerators take 32 times as many
SEGMENT = 16  # entries of an inverted list that are taken together
CHUNK = 1 << 13  # segments that are added up at a time on a CPU; accelerators take 32 times as many


class SparseRows(NamedTuple):
    """Rows of so many entries at most: `column` ascending, N where there is none; `lost` counts entries beyond."""

    column: Int[Array, "rows entries"]
    value: Float[Array, "rows entries"]
    lost: Int[Array, " rows"]


def block_rows(rows: int, numbers: int) -> int:
    """How many of the rows to take at a time where each needs so many numbers of room."""
    return int(np.clip(_at_a_time(CACHED) // numbers, 1, rows))


def _at_a_time(count: int) -> int:
    return count if jax.default_backend() == "cpu" else 32 * count


def mutual(index: Int[Array, "rows neighbours"], k: int) -> Bool[Array, "rows {k}"]:
    """Of the k nearest of each row, those that have the row among their own k nearest."""
    nearest = index[:, :k]

    def of_block(rows: Array) -> Array:
        theirs = nearest[nearest[rows]]  # [block, k, k]
        return jnp.any(theirs == rows[:, None, None], axis=-1)

    return map_rows(of_block, index.shape[0], block_rows(index.shape[0], k * k))


def _order(
    column: Int[Array, "*some entries"], rows: int
) -> tuple[Int[Array, "*some entries"], Int[Array, "*some entries"]]:
    """Columns, 0 to `rows`, in ascending order and where each was: (sorted, place)."""
    entries = column.shape[-1]
    bits = (entries - 1).bit_length()
    place = jnp.broadcast_to(jnp.arange(entries, dtype=jnp.int32), column.shape)
    if (rows + 1) << bits > 1 << 32:
        column, place = jax.lax.sort((column, place), num_keys=1)
        return column, place
    # A key of both is sorted several times as fast on a CPU as a column that takes its place along.
    key = jax.lax.sort(column.astype(jnp.uint32) << bits | place.astype(jnp.uint32))
    return (key >> bits).astype(jnp.int32), (key & ((1 << bits) - 1)).astype(jnp.int32)


def _compress(
    column: Int[Array, "some entries"], value: Float[Array, "some entries"], width: int, rows: int
) -> SparseRows:
    """Entries in any order → sorted by column, those of one column added up, the first `width` kept."""
    column, place = _order(column, rows)
    value = jnp.take_along_axis(value, place, axis=1)
    first = jnp.concatenate([jnp.ones_like(column[:, :1], bool), column[:, 1:] != column[:, :-1]], axis=1)
    exists = column < rows
    target = jnp.where(exists, jnp.cumsum(first, axis=1) - 1, width)  # beyond the width: dropped

    def spread(column: Array, value: Array, target: Array) -> tuple[Array, Array]:
        columns = jnp.full(width, rows, jnp.int32).at[target].set(column, mode="drop")
        return columns, jnp.zeros(width, value.dtype).at[target].add(value, mode="drop")

    columns, values = jax.vmap(spread)(column, value, target)
    distinct = jnp.sum(first & exists, axis=1, dtype=jnp.int32)
    return SparseRows(columns, values, jnp.maximum(distinct - width, 0))


def expanded_sets(index: Int[Array, "rows neighbours"], k: int, k_half: int, width: int) -> SparseRows:
    """R*(i): the mutual neighbours R(i), and the smaller sets R½(c) of every c in R(i) that lie in R(i) by more than
    two thirds (equation 5 of the paper). Values are 1."""
    rows = index.shape[0]
    is_mutual, is_half = mutual(index, k), mutual(index, k_half)
    members = jnp.where(is_mutual, index[:, :k], rows)
    halves = jnp.where(is_half, index[:, :k_half], rows)

    def of_block(numbers: Array) -> SparseRows:
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

    return map_rows(of_block, rows, block_rows(rows, k * k_half))


def weights(
    sets: SparseRows, features: Float[Array, "rows dim"], unit: Float[Array, " rows"] | None = None
) -> SparseRows:
    """V_i: softmax over R*(i) of −‖x_i − x_j‖² (equation 7).

    `unit`: what squared distances of each row are measured in; 1 where not given.
    """
    rows = features.shape[0]
    square = jnp.sum(features**2, axis=1)
    scale = jnp.ones(rows) if unit is None else unit

    def of_block(numbers: Array) -> Array:
        column = sets.column[numbers]
        safe = jnp.minimum(column, rows - 1)
        product = jnp.einsum("bd,bqd->bq", features[numbers], features[safe], precision=jax.lax.Precision.HIGHEST)
        distance = (square[numbers][:, None] + square[safe] - 2.0 * product) / scale[numbers][:, None]
        return jax.nn.softmax(jnp.where(column < rows, -distance, -jnp.inf), axis=-1)

    return sets._replace(value=map_rows(of_block, rows, block_rows(rows, sets.column.shape[1] * features.shape[1])))


def query_expansion(encoding: SparseRows, index: Int[Array, "rows neighbours"], k2: int, width: int) -> SparseRows:
    """V_i ← mean of V over the k2 nearest of i, itself among them (Zhong et al., section 3.4)."""
    rows = index.shape[0]

    def of_block(numbers: Array) -> SparseRows:
        nearest = index[numbers, :k2]
        column = encoding.column[nearest].reshape(len(numbers), -1)
        value = encoding.value[nearest].reshape(len(numbers), -1) / k2
        found = _compress(column, value, width, rows)
        return found._replace(lost=found.lost + encoding.lost[nearest].sum(1))

    return map_rows(of_block, rows, block_rows(rows, k2 * encoding.column.shape[1]))


@functools.partial(jax.jit, static_argnames=("k", "k_half", "k2", "width", "expanded_width"))
def encode(
    features: Float[Array, "rows dim"],
    index: Int[Array, "rows neighbours"],
    k: int,
    k_half: int,
    k2: int,
    width: int = 128,
    expanded_width: int = 384,
    unit: Float[Array, " rows"] | None = None,
) -> SparseRows:
    """The k-reciprocal encoding V of features.

    Args:
      index: the k or more nearest of each row, itself among them, nearest first.
      k, k_half: sizes of the neighbourhoods R and R½, the row itself counted.
      k2: neighbours of the local query expansion; 1 for none.
      width, expanded_width: entries per row before and after the expansion; what does not fit is counted in `lost`.
      unit: see `weights`.
    """
    encoding = weights(expanded_sets(index, k, k_half, width), features, unit)
    return query_expansion(encoding, index, k2, expanded_width) if k2 > 1 else encoding


class InvertedLists(NamedTuple):
    """Entries of sparse rows by column, in segments of equal length: ascending rows, value 0 where a segment is not
    full, the last segment empty. Column g has `segments[g]` of them from `start[g]` on."""

    row: Int[Array, "segments {SEGMENT}"]
    value: Float[Array, "segments {SEGMENT}"]
    start: Int[Array, " rows"]
    segments: Int[Array, " rows"]


@jax.jit
def inverted_lists(encoding: SparseRows) -> InvertedLists:
    rows, width = encoding.column.shape
    length = jnp.zeros(rows + 1, jnp.int32).at[encoding.column].add(1)[:rows]
    segments = -(-length // SEGMENT)
    start = jnp.cumsum(segments) - segments
    room = (rows * width // SEGMENT + rows + 1) * SEGMENT  # every list may end with a segment that is not full
    block = block_rows(rows, 4 * width)

    def add_block(number: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        free, row, value = state  # free: the next place in each column's list, i32[N + 1]
        numbers = number * block + jnp.arange(block, dtype=jnp.int32)
        within = jnp.minimum(numbers, rows - 1)
        column = jnp.where((numbers < rows)[:, None], encoding.column[within], rows)
        column, place = _order(column.reshape(-1), rows)
        position = jnp.arange(block * width, dtype=jnp.int32)
        first = jnp.concatenate([jnp.ones(1, bool), column[1:] != column[:-1]])
        begin = jnp.zeros(rows + 1, jnp.int32).at[jnp.where(first, column, rows + 1)].set(position, mode="drop")
        target = jnp.where(column < rows, free[column] + position - begin[column], room)
        return (
            free.at[column].add(1),
            row.at[target].set(number * block + place // width, mode="drop"),
            value.at[target].set(encoding.value[within].reshape(-1)[place], mode="drop"),
        )

    empty = jnp.append(start, 0) * SEGMENT, jnp.zeros(room, jnp.int32), jnp.zeros(room, jnp.float32)
    _, row, value = jax.lax.fori_loop(0, -(-rows // block), add_block, empty)
    return InvertedLists(row.reshape(-1, SEGMENT), value.reshape(-1, SEGMENT), start, segments)


def shared_weight(
    encoding: SparseRows, lists: InvertedLists, numbers: Int[Array, " some"], chunk: int = 0
) -> Float[Array, "some rows"]:
    """Σ_g min(V_ig, V_jg) of the rows i = `numbers` with all rows j.

    The segments of the lists that meet an entry of the rows are counted off one after the other and taken `chunk` at
    a time, as many times as there are segments: how many there are is data, not a shape.
    """
    rows, width = encoding.column.shape
    chunk = chunk or _at_a_time(CHUNK)
    empty = len(lists.row) - 1

    def of_block(places: Array) -> Array:
        some = numbers[places]
        column, value = encoding.column[some].reshape(-1), encoding.value[some].reshape(-1)
        safe = jnp.minimum(column, rows - 1)
        segments = jnp.where(column < rows, lists.segments[safe], 0)
        end = jnp.cumsum(segments)
        start, entries = end - segments, jnp.arange(len(column), dtype=jnp.int32)
        to_segment = lists.start[safe] - start  # from a segment's number here to its place in the lists

        def add(state: tuple[Array, Array]) -> tuple[Array, Array]:
            begin, total = state
            # A segment belongs to the last entry that starts at or before it; the first one may have started earlier.
            inside = (start >= begin) & (start < begin + chunk)
            mark = jnp.zeros(chunk, jnp.int32).at[jnp.where(inside, start - begin, chunk)].max(entries, mode="drop")
            first = jnp.searchsorted(end, begin, side="right").astype(jnp.int32)
            entry = jax.lax.cummax(mark.at[0].max(first))
            number = begin + jnp.arange(chunk, dtype=jnp.int32)
            segment = jnp.where(number < end[-1], to_segment[entry] + number, empty)
            shared = jnp.minimum(value[entry][:, None], lists.value[segment])
            target = (entry // width * rows)[:, None] + lists.row[segment]
            return begin + chunk, total.at[target].add(shared, mode="promise_in_bounds")

        total = jnp.zeros(len(some) * rows, jnp.float32)
        _, total = jax.lax.while_loop(lambda state: state[0] < end[-1], add, (jnp.int32(0), total))
        return total.reshape(len(some), rows)

    return map_rows(of_block, len(numbers), block_rows(len(numbers), rows))


def jaccard_distance(shared: Float[Array, "*some"]) -> Float[Array, "*some"]:
    """1 − m/(2 − m) of shared weights m of rows that sum to 1 (equation 10), in [0, 1]."""
    return jnp.maximum(1.0 - shared / (2.0 - shared), 0.0)
