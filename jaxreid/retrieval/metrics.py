"""mAP, mINP and rank-k under a protocol, and the nearest neighbours to look at.

A ranking is never sorted as a whole. A score depends only on the positions of the matches, and the position of a
match is one plus the number of kept gallery rows before it; those are counted against the few matches of each
query. What is counted is exact: positions are those of a stable sort, so rows at equal distance keep the order of
the gallery.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxreid.errors import UserError
from jaxreid.retrieval import distances as distances_lib
from jaxreid.retrieval import protocols
from jaxreid.retrieval.distances import Distance
from jaxreid.retrieval.neighbours import top_k
from jaxreid.retrieval.precision import Matches, average_precision, inverse_negative_penalty
from jaxreid.retrieval.protocols import Protocol, Rows
from jaxreid.shapes import AnyArray, Array, Bool, Float, Int, Real

RANKS = (1, 5, 10, 20)
LARGEST = float(np.finfo(np.float32).max)
CACHED = 1 << 20  # distances that are ranked at a time on a CPU
TOGETHER = 8  # matches that are counted for at a time


@dataclasses.dataclass(frozen=True)
class Scores:
    """How well a gallery was ranked for Q queries.

    Attributes:
      protocol: key of the protocol.
      mAP, mINP: percent, means over the queries that have a match.
      rank: k → rank-k (CMC at k) in percent.
      queries: number of queries that have a match.
      unmatched: number of queries without one; they are in no mean unless the protocol counts them as misses.
      gallery: number of gallery rows that can be ranked.
      average_precision, inverse_negative_penalty: f64[Q] in [0, 1], 0 where a query has no match.
      first_match: i32[Q], 1-based position of the first match, 0 where there is none.
      count_unmatched: whether the protocol counts queries without a match as misses in rank-k.
      matches: where each match stands, if it was asked for.
    """

    protocol: str
    mAP: float
    mINP: float
    rank: Mapping[int, float]
    queries: int
    unmatched: int
    gallery: int
    average_precision: np.ndarray
    inverse_negative_penalty: np.ndarray
    first_match: np.ndarray
    count_unmatched: bool = False
    matches: Matches | None = None

    @property
    def asked(self) -> int:
        """Number of queries that rank-k is a mean over."""
        return self.queries + (self.unmatched if self.count_unmatched else 0)

    @property
    def valid(self) -> np.ndarray:
        """bool[Q]: which queries have a match."""
        return self.first_match > 0

    def cmc(self, length: int) -> list[float]:
        """rank-1 … rank-`length` in percent."""
        first = self.first_match[self.valid]
        return [100.0 * int((first <= k).sum()) / self.asked for k in range(1, length + 1)]


def score(
    query_features: Any,
    gallery_features: Any,
    query_rows: Rows,
    gallery_rows: Rows,
    protocol: str | Protocol,
    distance: Distance = "cosine",
    ranks: tuple[int, ...] = RANKS,
    block: int | None = None,
    ties: str = "stable",
    mesh: Mesh | None = None,
    keep_matches: bool = False,
) -> Scores:
    """Ranks the gallery for every query and scores it; the distance matrix exists one row block at a time.

    Args:
      query_features, gallery_features: [Q, D] and [G, D] of any float type, or pytrees of arrays with Q and G rows
        where `distance` is a function that understands them.
      query_rows, gallery_rows: what is known about each feature.
      protocol: key of `PROTOCOLS` or a `Protocol`.
      distance: 'cosine', 'euclidean', 'parts' or 'parts_euclidean' (mean over body parts, [Q, P, D] or `Parts` with
        their visibility), an `OwnDistance`, or a function (query block, gallery) → f32[block, G].
      ranks: the k of rank-k.
      block: queries per block; None lets `distances.block_rows` choose.
      ties: 'stable' keeps the gallery's order among equal distances; 'pessimistic' puts matches last among them,
        which shows features that have collapsed.
      mesh: devices of this process that each rank a block of queries at a time, whatever the mesh's axes; the
        positions are those of one device.
      keep_matches: whether to keep where every match stands (`Scores.matches`).

    Raises:
      UserError: the protocol cannot be applied (`protocols.check`), features and rows differ in number, features
        are not finite, zero (cosine) or of different widths, a distance is NaN, or no query has a match.
    """
    protocol = protocols.resolve(protocol)
    protocols.check(query_rows, gallery_rows, protocol)
    for what, features, rows in (
        ("query", query_features, query_rows),
        ("gallery", gallery_features, gallery_rows),
    ):
        if distances_lib.num_rows(features, f"{what} features") != len(rows):
            raise UserError(f"{distances_lib.num_rows(features, what)} {what} features but {len(rows)} {what} rows")
    distances_lib.check_features(query_features, gallery_features, distance)
    kept, kept_gallery = protocol.kept(query_rows), protocol.kept(gallery_rows)
    query_features = jax.tree.map(lambda x: x[kept], query_features)
    block = distances_lib.block_rows(block, len(gallery_rows))
    gallery_features = jax.tree.map(lambda x: x[kept_gallery], gallery_features)
    blocks = distances_lib.distance_blocks(query_features, gallery_features, distance, block, mesh, pad=True)
    sides = query_rows[kept], gallery_rows[kept_gallery]
    scores = _score_blocks(blocks, *sides, protocol, ranks, ties, mesh, keep_matches)
    return _of_all_rows(scores, kept, len(query_rows), kept_gallery, len(gallery_rows))


def score_distances(
    distances: AnyArray,
    query_rows: Rows,
    gallery_rows: Rows,
    protocol: str | Protocol,
    ranks: tuple[int, ...] = RANKS,
    block: int | None = None,
    ties: str = "stable",
    keep_matches: bool = False,
) -> Scores:
    """Scores a distance matrix [Q, G] that is already there, for instance a re-ranked one; see `score`.

    Distances are compared as they are, in float64 as well.
    """
    protocol = protocols.resolve(protocol)
    protocols.check(query_rows, gallery_rows, protocol)
    if distances.shape != (len(query_rows), len(gallery_rows)):
        raise UserError(
            f"distances are {distances.shape}, but there are {len(query_rows)} query rows and "
            f"{len(gallery_rows)} gallery rows"
        )
    kept, kept_gallery = protocol.kept(query_rows), protocol.kept(gallery_rows)
    block = distances_lib.block_rows(block, len(gallery_rows))
    blocks = distances_lib.distance_blocks(distances[kept][:, kept_gallery], None, lambda rows, _: rows, block)
    sides = query_rows[kept], gallery_rows[kept_gallery]
    scores = _score_blocks(blocks, *sides, protocol, ranks, ties, keep_matches=keep_matches)
    return _of_all_rows(scores, kept, len(query_rows), kept_gallery, len(gallery_rows))


def pooled(parts: Sequence[Scores]) -> Scores:
    """The scores of several cases of one protocol as if their queries were one set: means weighted by queries.

    `gallery` is the sum of the cases' galleries.

    Raises:
      UserError: the cases were scored under different protocols.
    """
    rules = {(part.protocol, part.count_unmatched) for part in parts}
    if len(rules) != 1:
        raise UserError(f"scores of different protocols are not pooled: {', '.join(sorted(key for key, _ in rules))}")
    queries, asked = (np.array([getattr(part, name) for part in parts]) for name in ("queries", "asked"))

    def mean(values: Sequence[float], weights: np.ndarray) -> float:
        return float(np.average(values, weights=weights))

    return Scores(
        protocol=parts[0].protocol,
        mAP=mean([part.mAP for part in parts], queries),
        mINP=mean([part.mINP for part in parts], queries),
        rank={k: mean([part.rank[k] for part in parts], asked) for k in parts[0].rank},
        queries=int(queries.sum()),
        unmatched=sum(part.unmatched for part in parts),
        gallery=sum(part.gallery for part in parts),
        average_precision=np.concatenate([part.average_precision for part in parts]),
        inverse_negative_penalty=np.concatenate([part.inverse_negative_penalty for part in parts]),
        first_match=np.concatenate([part.first_match for part in parts]),
        count_unmatched=parts[0].count_unmatched,
    )


def _of_all_rows(
    scores: Scores, kept: np.ndarray | slice, queries: int, kept_gallery: np.ndarray | slice, gallery: int
) -> Scores:
    """Per-query arrays with a row for every query, empty for those that the protocol does not look at; matches by
    their rows in the whole gallery."""

    def spread(values: np.ndarray, fill: int = 0) -> np.ndarray:
        whole = np.full((queries, *values.shape[1:]), fill, values.dtype)
        whole[kept] = values
        return whole

    matches = scores.matches
    if matches is not None:
        row = np.where(matches.row < 0, -1, np.arange(gallery)[kept_gallery][matches.row])
        matches = Matches(
            spread(matches.position),
            spread(row, -1),
            spread(matches.distance),
            None if matches.tied_precision is None else spread(matches.tied_precision),
        )
    return dataclasses.replace(
        scores,
        average_precision=spread(scores.average_precision),
        inverse_negative_penalty=spread(scores.inverse_negative_penalty),
        first_match=spread(scores.first_match),
        matches=matches,
    )


def _score_blocks(
    blocks: Iterator[tuple[np.ndarray, AnyArray]],
    query: Rows,
    gallery: Rows,
    protocol: Protocol,
    ranks: tuple[int, ...],
    ties: str,
    mesh: Mesh | None = None,
    keep_matches: bool = False,
) -> Scores:
    if ties not in ("stable", "pessimistic"):
        raise UserError(f"unknown order of ties {ties!r}; known: stable, pessimistic")
    capacity = _match_capacity(query.identity, gallery.identity)
    gallery_columns: Any = None
    precisions, penalties, first, matches = [], [], [], []
    for rows, distances in blocks:
        distances = in_float32(distances)
        if gallery_columns is None:
            padded = gallery[np.minimum(np.arange(distances.shape[1]), len(gallery) - 1)]
            whole = None if mesh is None else NamedSharding(mesh, P())
            gallery_columns = jax.device_put(padded.columns(protocol.columns), whole)
        padded = query[np.minimum(np.arange(rows[0], rows[0] + len(distances)), len(query) - 1)]
        columns = padded.columns(protocol.columns)
        if mesh is not None:
            distances, columns = distances_lib.split_rows((distances, columns), mesh)
        positive, junk = _masks(protocol, columns, gallery_columns, np.int32(len(gallery)))
        found = _positions(mesh, capacity, ties, protocol.precision == "tied")(distances, positive, junk)
        found = {name: np.asarray(values)[: len(rows)] for name, values in found.items()}
        if found["undefined"].any():
            raise UserError(
                f"protocol {protocol.key!r}: query row {rows[found['undefined'].argmax()]} has NaN distances; "
                f"its features, or a gallery row's, are not finite"
            )
        position = found["position"]
        precisions.append(average_precision(position, protocol.precision, found.get("tied_precision")))
        penalties.append(inverse_negative_penalty(position))
        first.append(position[:, 0])
        if keep_matches:
            matches.append(Matches(position, found["row"], found["distance"], found.get("tied_precision")))

    first_match = np.concatenate(first)
    valid = first_match > 0
    queries = int(valid.sum())
    if not queries:
        reason = protocols.explain_no_match(query, gallery, protocol)
        raise UserError(f"protocol {protocol.key!r}: {reason}")
    asked = len(query) if protocol.count_unmatched else queries
    precision, penalty = np.concatenate(precisions), np.concatenate(penalties)
    return Scores(
        protocol=protocol.key,
        mAP=100.0 * float(precision.sum()) / queries,
        mINP=100.0 * float(penalty.sum()) / queries,
        rank={k: 100.0 * int((valid & (first_match <= k)).sum()) / asked for k in ranks},
        queries=queries,
        unmatched=len(query) - queries,
        gallery=protocol.gallery_size(gallery),
        average_precision=precision,
        inverse_negative_penalty=penalty,
        first_match=first_match,
        count_unmatched=protocol.count_unmatched,
        matches=jax.tree.map(lambda *parts: np.concatenate(parts), *matches) if matches else None,
    )


def _match_capacity(query_identity: np.ndarray, gallery_identity: np.ndarray) -> int:
    """A static bound on the matches of one query; a power of two, so that few shapes are ever compiled."""
    known = gallery_identity[np.isin(gallery_identity, query_identity[query_identity != protocols.UNKNOWN])]
    most = int(np.unique(known, return_counts=True)[1].max(initial=1))
    return min(1 << (most - 1).bit_length(), len(gallery_identity))


def _fits_float32(distances: AnyArray) -> bool:
    return np.can_cast(distances.dtype, np.float32)


def in_float32(distances: Real[AnyArray, "queries gallery"]) -> Real[AnyArray, "queries gallery"]:
    """Distances that order every row as they do: their ranks within the row where float32 would make equals of
    different ones (float64, whole numbers of 32 bits and more). NaN and infinity stay."""
    if _fits_float32(distances):
        return distances
    distances = np.asarray(distances)
    order = np.argsort(distances, axis=1)
    ordered = np.take_along_axis(distances, order, axis=1)
    rank = np.cumsum(ordered[:, 1:] != ordered[:, :-1], axis=1)
    ranks = np.zeros(distances.shape, np.float32)
    np.put_along_axis(ranks, order[:, 1:], rank.astype(np.float32), axis=1)
    return np.where(np.isnan(distances) | np.isposinf(distances), distances, ranks).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _masks(protocol: Protocol, query: Any, gallery: Any, count: Array) -> tuple[Array, Array]:
    """`Protocol.masks`, where gallery rows from `count` on are padding."""
    positive, junk = protocol.masks(query, gallery)
    padding = jnp.arange(positive.shape[1]) >= count
    return positive & ~padding, junk | padding


@functools.lru_cache(maxsize=64)
def _positions(mesh: Mesh | None, capacity: int, ties: str, tied: bool) -> Callable[..., dict[str, Array]]:
    """`match_positions` with its static arguments; over a mesh every device by itself, for its rows."""
    function = functools.partial(match_positions, capacity=capacity, ties=ties, tied=tied)
    if mesh is None:
        return function
    rows = P(mesh.axis_names)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False))


@functools.partial(jax.jit, static_argnames=("capacity", "ties", "tied"))
def match_positions(
    distances: Real[AnyArray, "queries gallery"],
    positive: Bool[AnyArray, "queries gallery"],
    junk: Bool[AnyArray, "queries gallery"],
    capacity: int,
    ties: str = "stable",
    tied: bool = True,
) -> dict[str, Array]:
    """Where each query's matches stand in its ranking without junk, nearest first.

    Args:
      distances: smaller is nearer; may be infinite. positive and junk: disjoint.
      capacity: static, at least the number of matches of any query, at most G.
      ties: static, 'stable' or 'pessimistic' (see `score`).
      tied: static, whether `tied_precision` is asked for.

    Returns:
      `position` i32[B, capacity], 1-based and ascending, 0 past the last match, with `row` i32[B, capacity], −1 past
      the last, and `distance`; `tied_precision` f32[B, capacity], precision when everything at the match's distance is
      retrieved with it, 0 past the last match; `undefined` bool[B], queries with NaN distances, whose other values
      mean nothing.
    """
    rows, gallery = distances.shape
    # As many rows at a time as a CPU's cache holds: everything below reads them many times.
    some = rows
    if jax.default_backend() == "cpu":
        some = next(n for n in range(min(max(CACHED // gallery, 1), rows), 0, -1) if rows % n == 0)

    def of_rows(part: tuple[Array, ...]) -> dict[str, Array]:
        distances, positive, junk = part
        # Infinity is kept free for what is not ranked or not a match.
        clipped = jnp.clip(distances.astype(jnp.float32), -LARGEST, LARGEST)
        negated, index = top_k(-jnp.where(positive, clipped, jnp.inf), capacity)  # the lower index first among equals
        exists, value = jnp.isfinite(negated), -negated
        ranked, column = jnp.where(junk, jnp.inf, clipped), jnp.arange(gallery)

        def ahead(value: Array, index: Array) -> Array:
            first = column < index
            return (ranked < value) | (ranked == value) & (first | ~positive if ties == "pessimistic" else first)

        most = exists.sum(axis=1).max()
        found = {"position": jnp.where(exists, 1 + _count(ahead, value, index, most), 0)}
        found |= {"row": jnp.where(exists, index, -1), "distance": value}
        if tied:
            hits = jnp.sum(value[:, None, :] <= value[:, :, None], axis=2, where=exists[:, None, :])
            retrieved = _count(lambda value, _: ranked <= value, value, index, most)
            found["tied_precision"] = jnp.where(exists, hits / jnp.maximum(retrieved, 1), 0.0)
        undefined = jnp.sum(jnp.where(jnp.isnan(distances), 1.0, 0.0), axis=1) > 0
        return found | {"undefined": undefined}

    parts = [jnp.asarray(x).reshape(-1, some, gallery) for x in (distances, positive, junk)]
    return jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), jax.lax.map(of_rows, tuple(parts)))


def _count(counted: Callable[[Array, Array], Array], value: Array, index: Array, most: Array) -> Array:
    """For how many gallery rows `counted` is true, for every match of some queries: i32[R, P].

    Args:
      counted: (distance f32[R, 1], column i32[R, 1]) of one match of each query → bool[R, G].
      value: f32[R, P] and index: i32[R, P], of all matches.
      most: i32[], the matches of a query that are looked at; the figures of others mean nothing.
    """
    fill = (0, 0), (0, -value.shape[1] % TOGETHER)
    value, index = jnp.pad(value, fill), jnp.pad(index, fill)

    def of_matches(number: Array, found: Array) -> Array:
        # Several sums in one pass: each addition waits for the one before it of its own sum only.
        places = [number * TOGETHER + place for place in range(TOGETHER)]
        true = tuple(counted(value[:, at, None], index[:, at, None]).astype(jnp.int32) for at in places)
        sums = jax.lax.reduce(true, (np.int32(0),) * TOGETHER, lambda a, b: tuple(map(jnp.add, a, b)), (1,))
        return jax.lax.dynamic_update_slice(found, jnp.stack(sums, axis=1), (0, number * TOGETHER))

    found = jax.lax.fori_loop(0, -(-most // TOGETHER), of_matches, jnp.zeros(value.shape, jnp.int32))
    return found[:, : value.shape[1] - fill[1][1]]


def nearest(
    query_features: Any,
    gallery_features: Any,
    k: int,
    exclude: Callable[[np.ndarray], np.ndarray] | None = None,
    distance: Distance = "cosine",
    block: int | None = None,
) -> tuple[Int[np.ndarray, "queries neighbours"], Float[np.ndarray, "queries neighbours"]]:
    """The k nearest gallery rows of each query, nearest first; the distance matrix exists one block at a time.

    Args:
      query_features, gallery_features, distance, block: as in `score`.
      k: neighbours per query; no more than the gallery has rows are returned.
      exclude: for query row numbers i64[n], which gallery rows to leave out, bool[n, G]; for instance
        `lambda rows: protocol.junk(query_rows[rows], gallery_rows)`.

    Returns:
      indices and distances; −1 and infinity where fewer than k rows are left.
    """
    num_gallery = distances_lib.num_rows(gallery_features, "gallery features")
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    distances_lib.check_features(query_features, gallery_features, distance)
    k, block = min(k, num_gallery), distances_lib.block_rows(block, num_gallery)
    indices, values = [], []
    for rows, distances in distances_lib.distance_blocks(query_features, gallery_features, distance, block):
        excluded = np.zeros((len(distances), num_gallery), bool)
        if exclude is not None:
            excluded[: len(rows)] = exclude(rows)
        found, index = jax.device_get(_nearest_block(in_float32(distances), excluded, k))
        if np.isnan(found[: len(rows)]).any():
            raise UserError(f"query rows {rows[0]} to {rows[-1]} have NaN distances: features are not finite")
        if not _fits_float32(distances):  # they were ranked by their ranks
            known = np.take_along_axis(np.asarray(distances), np.maximum(index, 0), axis=1)
            found = np.where(index < 0, np.inf, known).astype(np.float32)
        indices.append(index[: len(rows)])
        values.append(found[: len(rows)])
    return np.concatenate(indices), np.concatenate(values)


@functools.partial(jax.jit, static_argnames="k")
def _nearest_block(
    distances: Real[AnyArray, "queries gallery"], excluded: Bool[AnyArray, "queries gallery"], k: int
) -> tuple[Float[Array, "queries {k}"], Int[Array, "queries {k}"]]:
    negative, index = jax.lax.top_k(-jnp.where(excluded, jnp.inf, jnp.asarray(distances, jnp.float32)), k)
    return -negative, jnp.where(jnp.isposinf(-negative), -1, index)


def result_record(
    scores: Scores,
    protocol: str | Protocol,
    clip_sampling: str,
    seq_len: int,
    distance: str,
    checkpoint: str,
    reranking: bool = False,
    output: str = "feature",
    rescoring: str = "",
) -> dict[str, Any]:
    """One result with all that a reader needs to compare it.

    Args:
      scores: of one direction or case.
      protocol: the one that was scored, or its key; must be that of `scores`.
      clip_sampling, seq_len: how clips were drawn at test time, and frames per clip.
      distance: its name.
      checkpoint: which one was evaluated, such as 'epoch 120 (last)'.
      reranking: whether distances were re-ranked.
      output: name of the features.
      rescoring: which tracklets were re-scored pair by pair, such as '50 nearest, mix 0.5'; empty where none was.

    Returns:
      A JSON-ready dict; mAP, mINP and rank-k in percent; `rescoring` where there is any.
    """
    key = protocol if isinstance(protocol, str) else protocol.key
    if key != scores.protocol:
        raise UserError(f"scores are of protocol {scores.protocol!r}, the record says {key!r}")
    return {
        "mAP": scores.mAP,
        "mINP": scores.mINP,
        **{f"rank-{k}": value for k, value in scores.rank.items()},
        "protocol": key,
        "queries": scores.queries,
        "unmatched": scores.unmatched,
        "gallery": scores.gallery,
        "output": output,
        "seq_len": seq_len,
        "clip_sampling": clip_sampling,
        "distance": distance,
        "reranking": reranking,
        "checkpoint": checkpoint,
    } | ({"rescoring": rescoring} if rescoring else {})
