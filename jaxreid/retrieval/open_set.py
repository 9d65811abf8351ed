"""Rates of a search for people who may not be in the gallery, and of comparing two tracklets.

A seeded tenth of the query identities has its gallery rows taken out. What is then found is counted:

false positive identification rate (FPIR): of the queries without a match in the gallery, the share for which a gallery
row is nearer than the threshold; false negative identification rate (FNIR): of the queries with a match, the share none
of whose matches is nearer than the threshold. The threshold is the largest distance at which FPIR is not above the rate
that is asked for (Grother, Ngan and Hanaoka, NISTIR 8271, section 3.1, with every row as a candidate).

true accept rate (TAR) at a false accept rate (FAR): of the pairs of a query and a match, the share that is nearer than
the largest threshold at which not more than that share of the pairs with another person is (ISO/IEC 19795-1).

All are exact. The distance matrix exists one row block at a time: the distances of pairs with others are counted by
their upper 16 bits in one pass and, of the counts that a threshold falls into, by their lower 16 bits in a second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxreid.errors import UserError
from jaxreid.retrieval import distances as distances_lib
from jaxreid.retrieval import protocols
from jaxreid.retrieval.distances import Distance
from jaxreid.retrieval.protocols import UNKNOWN, Protocol, Rows
from jaxreid.shapes import Int

SHARE, SEED = 10, 0  # one in SHARE identities is taken out
FEWEST = 20  # queries without a match
FPIR, FAR = (0.01, 0.1), (0.0001, 0.001, 0.01)
HALF = 16  # bits
MASKED_BLOCK = 1 << 22  # pairs whose masks are made at a time


@dataclasses.dataclass(frozen=True)
class Rate:
    """What a threshold gives: `asked` and the rate that came of it, the other rate, and the threshold; all but the
    threshold are shares. What is nearer than the threshold is accepted."""

    asked: float
    false_positive: float
    found: float
    threshold: float


@dataclasses.dataclass(frozen=True)
class OpenSet:
    """Rates of one search.

    Attributes:
      identification: FPIR in `false_positive` and FNIR in `found`, for each rate that was asked for.
      verification: FAR in `false_positive` and TAR in `found`.
      matched, unmatched: queries with and without a match in the gallery; the latter of the people who were taken
        out, and those that the protocol has no match for anyway.
      identities: that were taken out; `removed` are their gallery rows.
      genuine, impostor: pairs of a query with a match, and with another person.
    """

    identification: tuple[Rate, ...]
    verification: tuple[Rate, ...]
    matched: int
    unmatched: int
    identities: int
    removed: int
    genuine: int
    impostor: int


def left_out(identity: Int[np.ndarray, " queries"], seed: int = SEED) -> np.ndarray:
    """A tenth of the identities, rounded up; the same for every run on a data set."""
    known = np.unique(identity[identity != UNKNOWN])
    return np.sort(np.random.default_rng(seed).choice(known, -(-len(known) // SHARE), replace=False))


def _sides(query: Rows, gallery: Rows, protocol: Protocol, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(query rows, gallery rows, gallery rows that were taken out) of those that the protocol looks at; the queries
    are those of known identity."""
    queries, rows = (np.arange(len(side))[protocol.kept(side)] for side in (query, gallery))
    taken = np.isin(gallery.identity[rows], left_out(query.identity, seed))
    return queries[query.identity[queries] != UNKNOWN], rows[~taken], rows[taken]


def count_queries(query: Rows, gallery: Rows, protocol: Protocol, seed: int = SEED) -> tuple[int, int]:
    """(queries with a match, queries without one) when a tenth of the identities is taken out."""
    queries, rows, _ = _sides(query, gallery, protocol, seed)
    some = max(MASKED_BLOCK // max(len(rows), 1), 1)
    columns = gallery[rows].columns(protocol.columns)
    matched = 0
    for start in range(0, len(queries), some):
        mine = query[queries[start : start + some]].columns(protocol.columns)
        matched += int(protocol.masks(mine, columns)[0].any(axis=1).sum())
    return matched, len(queries) - matched


def check(query: Rows, gallery: Rows, protocol: Protocol, seed: int = SEED) -> None:
    """Refuses a test set too small for these rates; raises UserError, which says how many queries there are."""
    protocols.check(query, gallery, protocol)
    matched, unmatched = count_queries(query, gallery, protocol, seed)
    if unmatched < FEWEST:
        raise UserError(
            f"open-set rates under protocol {protocol.key!r}: without the gallery tracklets of "
            f"{len(left_out(query.identity, seed))} identities, a tenth, {unmatched} queries have no match, and at "
            f"least {FEWEST} are needed"
        )
    if not matched:
        raise UserError(f"open-set rates under protocol {protocol.key!r}: no query has a match")


def open_set_rates(
    query_features: Any,
    gallery_features: Any,
    query_rows: Rows,
    gallery_rows: Rows,
    protocol: str | Protocol,
    distance: Distance = "cosine",
    block: int | None = None,
    mesh: Mesh | None = None,
    seed: int = SEED,
    fpir: Sequence[float] = FPIR,
    far: Sequence[float] = FAR,
) -> OpenSet:
    """Error rates where a tenth of the query identities is not in the gallery.

    Args:
      query_features … mesh: as in `metrics.score`. Distances are compared in float32.
      seed: of the identities that are taken out.
      fpir, far: rates that thresholds are chosen for.

    Raises:
      UserError: the protocol cannot be applied, fewer than `FEWEST` queries are without a match, or none has one, or a
        distance is NaN.
    """
    protocol = protocols.resolve(protocol)
    check(query_rows, gallery_rows, protocol, seed)
    queries, rows, taken = _sides(query_rows, gallery_rows, protocol, seed)
    distances_lib.check_features(query_features, gallery_features, distance)
    query_features = jax.tree.map(lambda x: x[queries], query_features)
    gallery_features = jax.tree.map(lambda x: x[rows], gallery_features)
    sides = query_features, gallery_features
    query, gallery = query_rows[queries], gallery_rows[rows]
    block = distances_lib.block_rows(block, len(gallery))
    columns = gallery.columns(protocol.columns)

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(distances f32[n, G], positive and negative bool[n, G]) of some queries."""
        for numbers, found in distances_lib.distance_blocks(*sides, distance, block, mesh, pad=True):
            near = np.asarray(found, np.float32)[: len(numbers), : len(gallery)]
            if np.isnan(near).any():
                raise UserError(f"protocol {protocol.key!r}: distances are NaN; features are not finite")
            positive, junk = protocol.masks(query[numbers].columns(protocol.columns), columns)
            yield near, positive, ~positive & ~junk

    nearest, match, genuine = [], [], []
    counts = np.zeros(1 << HALF, np.int64)
    for near, positive, negative in blocks():
        nearest.append(np.min(near, axis=1, where=positive | negative, initial=np.inf))
        match.append(np.where(positive.any(axis=1), np.min(near, axis=1, where=positive, initial=np.inf), np.nan))
        genuine.append(near[positive])
        counts += _count(_keys(near[negative]) >> HALF)
    first, own, pairs = (np.concatenate(parts) for parts in (nearest, match, genuine))
    impostor = int(counts.sum())
    wanted = [_allowed(rate, impostor) for rate in far]
    limits = _at_places(counts, wanted, (near[negative] for near, _, negative in blocks()))
    unmatched = np.isnan(own)
    return OpenSet(
        identification=tuple(_identification(rate, first[unmatched], own[~unmatched]) for rate in fpir),
        verification=tuple(
            Rate(rate, below / max(impostor, 1), float((pairs < limit).mean()), float(limit))
            for rate, (limit, below) in zip(far, limits, strict=True)
        ),
        matched=int((~unmatched).sum()),
        unmatched=int(unmatched.sum()),
        identities=len(left_out(query_rows.identity, seed)),
        removed=len(taken),
        genuine=len(pairs),
        impostor=impostor,
    )


def _allowed(rate: float, count: int) -> int:
    """How many of `count` may be accepted."""
    return int(np.floor(rate * count + 1e-9))


def _identification(rate: float, nearest: np.ndarray, match: np.ndarray) -> Rate:
    """FPIR and FNIR; `nearest` row of the queries without a match, nearest `match` of those with one."""
    limit = np.sort(nearest)[_allowed(rate, len(nearest))] if rate < 1 else np.inf
    return Rate(rate, float((nearest < limit).mean()), float((match >= limit).mean()), float(limit))


def _keys(distances: np.ndarray) -> np.ndarray:
    """u32 of the same order as the distances; zero and minus zero are equal."""
    bits = (distances + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _distance(key: int) -> np.float32:
    bits = key & ~(1 << 31) if key >> 31 else ~key & 0xFFFFFFFF
    return np.uint32(bits).view(np.float32)


def _count(values: np.ndarray) -> np.ndarray:
    return np.bincount(values, minlength=1 << HALF)


def _at_places(
    counts: Int[np.ndarray, " upper"], places: Sequence[int], distances: Iterator[np.ndarray]
) -> list[tuple[np.float32, int]]:
    """For each place (from 0) in the sorted distances: (the distance there, how many are smaller).

    Args:
      counts: of the distances by the upper half of their keys.
      distances: all of them, some at a time. A place past the last has infinity.
    """
    ends = np.cumsum(counts)
    upper = [int(np.searchsorted(ends, place, side="right")) for place in places]
    lower = {half: np.zeros(1 << HALF, np.int64) for half in upper if half < len(counts)}
    for some in distances if lower else ():
        keys = _keys(some)
        for half, found in lower.items():
            found += _count(keys[keys >> HALF == half] & ((1 << HALF) - 1))
    results = []
    for place, half in zip(places, upper, strict=True):
        if half not in lower:
            results.append((np.float32(np.inf), int(ends[-1])))
            continue
        before = int(ends[half] - counts[half])
        within = np.cumsum(lower[half])
        rest = int(np.searchsorted(within, place - before, side="right"))
        results.append((_distance((half << HALF) + rest), before + int(within[rest] - lower[half][rest])))
    return results
