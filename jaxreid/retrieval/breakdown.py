"""Scores of groups of queries and of groups of matches, with intervals over the identities.

What a group scores follows from where the matches stand (`metrics.score` with `keep_matches`); nothing is ranked anew.
By query, a group holds the queries of one condition. By match, every query is scored for each group of its matches:
all negatives stay, matches of other groups are junk. Either way a group is a set of *entries*, each with a precision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxreid.retrieval.metrics import Scores
from jaxreid.retrieval.precision import average_precision
from jaxreid.retrieval.protocols import Protocol
from jaxreid.shapes import Float, Int

REPLICATES, SEED, LEVEL = 1000, 0, 0.95  # of the bootstrap
RANKS = (1, 5, 10)
TOGETHER = 1 << 22  # numbers that a chunk of replicates makes
DECIMALS = 12  # precisions that differ by rounding only are equal
VARIES = 1e-6  # sum of squares of ranks that are not all equal; beyond rounding


@dataclasses.dataclass(frozen=True)
class Entries:
    """What G groups are means over: N entries, each of one query.

    Attributes:
      query: i64[N], row of the query.
      group: i64[N], from 0.
      precision: f64[N] in [0, 1], of entries that have a match.
      first: i64[N], 1-based position of the first match; 0 where there is none.
      counted: bool[N], which entries rank-k is a mean over.
    """

    query: np.ndarray
    group: np.ndarray
    precision: np.ndarray
    first: np.ndarray
    counted: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """bool[N]: which entries have a match."""
        return self.first > 0


def query_entries(scores: Scores, group: Int[np.ndarray, " queries"]) -> Entries:
    """The queries of each group; −1 is in none."""
    query = np.flatnonzero(group >= 0)
    first = scores.first_match[query]
    counted = np.ones(len(query), bool) if scores.count_unmatched else first > 0
    return Entries(query, group[query], scores.average_precision[query], first, counted)


def match_entries(scores: Scores, protocol: Protocol, group: Int[np.ndarray, "queries matches"]) -> Entries:
    """Every query once for each group that holds one of its matches.

    Args:
      scores: with their matches.
      group: of every match, in the order of `scores.matches`; −1 is in none. What stands past the last is not read.
    """
    matches = scores.matches
    assert matches is not None, "scored without keep_matches"
    parts = []
    for number in np.unique(group[matches.exist & (group >= 0)]):
        left = matches.only(group == number)
        query = np.flatnonzero(left.position[:, 0])
        precision = average_precision(left.position, protocol.precision, left.tied_precision)[query]
        whole = np.full(len(query), number)
        parts.append(Entries(query, whole, precision, left.position[query, 0], np.ones(len(query), bool)))
    if not parts:
        nothing = np.zeros(0, np.int64)
        return Entries(nothing, nothing, np.zeros(0), nothing, np.zeros(0, bool))
    return Entries(*(np.concatenate([getattr(part, field) for part in parts]) for field in vars(parts[0])))


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Scores of G groups in percent, and what follows from them.

    Attributes:
      mAP: f64[G], NaN where no entry has a match; rank: k → f64[G].
      interval: f64[2, G], of mAP.
      queries, identities: i64[G], of entries that have a match.
      macro, overall: mean mAP of the groups, and mean over the queries that have an entry, of their whole ranking;
        each with its interval.
      rho: Spearman's correlation of an entry's precision with its value; with its interval; None without values.
      replicates: f64[B, G], mAP of the groups in every replicate.
    """

    mAP: np.ndarray
    rank: dict[int, np.ndarray]
    interval: np.ndarray
    queries: np.ndarray
    identities: np.ndarray
    macro: tuple[float, tuple[float, float]]
    overall: tuple[float, tuple[float, float]]
    rho: tuple[float, tuple[float, float]] | None
    replicates: np.ndarray

    def figure(self, function: Callable[[np.ndarray], np.ndarray]) -> tuple[float, tuple[float, float]]:
        """`function` of the groups' mAP f64[…, G] → f64[…], with its interval."""
        low, high = interval(function(self.replicates))
        return float(function(self.mAP)), (float(low), float(high))


def breakdown(
    entries: Entries,
    whole: Float[np.ndarray, " queries"],
    identity: Int[np.ndarray, " queries"],
    groups: int,
    value: Float[np.ndarray, " entries"] | None = None,
    replicates: int = REPLICATES,
    seed: int = SEED,
) -> Breakdown:
    """What the entries of each group score.

    The intervals are percentiles of a bootstrap over the identities of the queries: as many are drawn with replacement
    as there are, each with all of its entries (Efron and Tibshirani 1993, section 13.3). Queries of one person are not
    independent, so drawing them one by one would give intervals that are too narrow.

    Args:
      entries: of `groups` groups.
      whole: average precision of every query in the whole ranking, in [0, 1].
      identity: of every query.
      value: of every entry, what Spearman's ρ correlates precision with.
    """
    valid = entries.valid
    query, group, precision = entries.query[valid], entries.group[valid], entries.precision[valid]
    person, code = np.unique(identity[query], return_inverse=True)
    asked = np.unique(query)
    asked_code = np.searchsorted(person, identity[asked])

    def table(rows: np.ndarray, columns: np.ndarray, weights: Any = None, width: int = groups) -> np.ndarray:
        flat = np.bincount(rows * width + columns, weights, minlength=len(person) * width)
        return flat.reshape(len(person), width).astype(np.float64)

    total, count = table(code, group, precision), table(code, group)
    one = np.zeros(len(asked), np.int64)
    total_asked, count_asked = table(asked_code, one, whole[asked], 1), table(asked_code, one, width=1)
    values = None if value is None else value[valid]
    rounded = np.round(precision, DECIMALS)

    def of(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of replicates f64[B, I], how often each identity was drawn: mAP of groups, of queries, ρ."""
        means = _ratio(weight @ total, weight @ count)
        overall = _ratio(weight @ total_asked, weight @ count_asked)[:, 0]
        nothing = np.full(len(weight), np.nan)
        return means, overall, nothing if values is None else spearman(values, rounded, weight[:, code])

    means, overall, rho = (found[0] for found in of(np.ones((1, len(person)))))
    drawn = [of(weight) for weight in _draws(len(person), replicates, seed, max(len(person), len(query)))]
    again, overall_again, rho_again = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    of_group = [entries.first[entries.counted & (entries.group == number)] for number in range(groups)]
    rank = {k: np.array([100.0 * _share((first > 0) & (first <= k)) for first in of_group]) for k in RANKS}
    return Breakdown(
        mAP=100.0 * means,
        rank=rank,
        interval=100.0 * interval(again),
        queries=count.sum(axis=0).astype(np.int64),
        identities=(count > 0).sum(axis=0),
        macro=_with_interval(100.0 * _mean(means), 100.0 * _mean(again)),
        overall=_with_interval(100.0 * overall, 100.0 * overall_again),
        rho=None if value is None else _with_interval(rho, rho_again),
        replicates=100.0 * again,
    )


def _draws(count: int, replicates: int, seed: int, width: int) -> Iterator[np.ndarray]:
    """How often each of `count` identities is drawn, f64[some, count] at a time; none where there is but one."""
    rng = np.random.default_rng(seed)
    if count < 2:
        yield np.full((1, count), np.nan)
        return
    some = max(TOGETHER // width, 1)
    for start in range(0, replicates, some):
        size = min(some, replicates - start)
        yield rng.multinomial(count, np.full(count, 1.0 / count), size=size).astype(np.float64)


def interval(values: Float[np.ndarray, "replicates ..."], level: float = LEVEL) -> Float[np.ndarray, "2 ..."]:
    """The middle `level` of replicates; those that are NaN (nobody of a group was drawn) are left out."""
    unknown = np.isnan(values).all(axis=0)
    filled = np.where(unknown, 0.0, values)
    low, high = np.nanpercentile(filled, [50 * (1 - level), 50 * (1 + level)], axis=0)
    return np.where(unknown, np.nan, np.stack([low, high]))


def spearman(
    x: Float[np.ndarray, " entries"], y: Float[np.ndarray, " entries"], weight: Float[np.ndarray, "replicates entries"]
) -> Float[np.ndarray, " replicates"]:
    """Spearman's rank correlation where entry i stands `weight[b, i]` times; NaN where x or y does not vary.

    Equal values share the mean of their ranks.
    """
    total = weight.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (rank - (weight * rank).sum(1, keepdims=True) / total for rank in (_ranks(x, weight), _ranks(y, weight)))
        shared, own, other = ((weight * u * v).sum(axis=1) for u, v in ((a, b), (a, a), (b, b)))
        return np.where((own > VARIES) & (other > VARIES), shared / np.sqrt(own * other), np.nan)


def _ranks(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean rank of every entry up to a constant, f64[B, N]."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    mass = np.add.reduceat(weight[:, order], starts, axis=1)
    code = np.empty(len(values), np.int64)
    code[order] = np.searchsorted(starts, np.arange(len(values)), side="right") - 1
    return (np.cumsum(mass, axis=1) - mass / 2)[:, code]


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _share(true: np.ndarray) -> float:
    return float(true.mean()) if len(true) else float("nan")


def _mean(means: np.ndarray) -> np.ndarray:
    """Mean over the groups that have an entry."""
    known = ~np.isnan(means)
    return _ratio(np.where(known, means, 0.0).sum(axis=-1), known.sum(axis=-1))


def _with_interval(value: Any, replicates: np.ndarray) -> tuple[float, tuple[float, float]]:
    low, high = interval(replicates)
    return float(value), (float(low), float(high))
