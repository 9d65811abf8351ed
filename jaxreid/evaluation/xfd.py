"""VReID-XFD: its three cases ranked, and scored from the rankings under every rule that is in use.

What a ranking scores is worked out from the order of the gallery alone, so that a run and the submission file that was
written of it have the same figures to the last digit (`jaxreid.evaluation.xfd_files`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxreid import retrieval
from jaxreid.data.builders import builder_module
from jaxreid.data.building.answers import ROLES
from jaxreid.errors import UserError
from jaxreid.evaluation.cases import Case, Side
from jaxreid.retrieval.distances import Distance
from jaxreid.retrieval.metrics import Scores
from jaxreid.retrieval.precision import average_precision
from jaxreid.retrieval.protocols import PROTOCOLS, UNKNOWN, Rows
from jaxreid.retrieval.rerank import KReciprocal
from jaxreid.shapes import Int

CASES = ("Case 1: Aerial to Ground", "Case 2: Ground to Aerial", "Case 3: Aerial to Aerial")
GROUND = {(CASES[0], "gallery"), (CASES[1], "query")}  # sides whose tracklets all have camera 0
# What is left out of a ranking: the query's own tracklet (the challenge's script), or all that its camera took of its
# person (the repository's test; a drone has a camera for each session). Matches are the person's other tracklets.
JUNK = {"tracklet": PROTOCOLS["xfd"], "camid": PROTOCOLS["xfd_train"]}
PRECISIONS = {"mAP_official": "trapezoid", "mAP": "standard"}  # the leaderboard's, and the usual one
RANKS = (1, 5, 10, 20)
OVERALL, MACRO = "overall", "macro"

Truth = Mapping[tuple[str, str], Mapping[str, tuple[int, int]]]  # (case, role) → tracklet → (identity, session)
Record = dict[str, Any]


class SubmissionError(UserError):
    """A ranking cannot be written, read or scored; the message says which row, and why."""


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A case ranked: names of its queries and of its gallery, and for every query the gallery's rows, best first."""

    case: str
    query: tuple[str, ...]
    gallery: tuple[str, ...]
    order: Int[np.ndarray, "queries gallery"]


# ----------------------------------------------------------------------------------------------------------------
# Ranking
# ----------------------------------------------------------------------------------------------------------------


def ordered(pairs: Sequence[Case]) -> list[Case]:
    """The three cases with both sides by identity and name, as a submission lists them: equal distances keep it.

    Raises:
      SubmissionError: the data set does not have three cases.
    """
    if len(pairs) != len(CASES):
        raise SubmissionError(f"the challenge has {len(CASES)} cases, the data set {len(pairs)}")
    return [dataclasses.replace(case, query=_by_name(case.query), gallery=_by_name(case.gallery)) for case in pairs]


def _by_name(side: Side) -> Side:
    labels = side.split.labels
    order = sorted(range(len(side.rows)), key=lambda at: (labels.pid[side.rows[at]], labels.names[side.rows[at]]))
    return dataclasses.replace(side, rows=side.rows[order], tracklet=side.tracklet[order])


def rank(
    pairs: Sequence[Case], features: Mapping[str, Any], distance: Distance, reranking: Mapping[str, Any] | None = None
) -> list[Ranked]:
    """Every query of the three cases with the whole gallery.

    Args:
      pairs: of `ordered`.
      features: split name → what the distance compares, one row per tracklet.
      distance: as in `retrieval.nearest`.
      reranking: arguments of `KReciprocal`, all queries of a case together; None = by the distance itself. Where they
        name no distance, of the same.
    """
    found = []
    for name, case in zip(CASES, pairs, strict=True):
        sides: list[Any] = [side.of(features) for side in (case.query, case.gallery)]
        using: Distance = distance
        if reranking is not None:
            using = KReciprocal(*sides, **{"distance": distance, **reranking})  # pyright: ignore[reportArgumentType]
            sides = [np.arange(len(side.rows)) for side in (case.query, case.gallery)]
        order, _ = retrieval.nearest(*sides, k=len(case.gallery.rows), distance=using)
        found.append(Ranked(name, _names(case.query), _names(case.gallery), order))
    return found


def _names(side: Side) -> tuple[str, ...]:
    return tuple(side.split.labels.names[row] for row in side.rows)


def truth_of(pairs: Sequence[Case]) -> dict[tuple[str, str], dict[str, tuple[int, int]]]:
    """What a data set knows of the tracklets of its three cases."""
    found = {}
    for name, case in zip(CASES, pairs, strict=True):
        for role, side in zip(ROLES, (case.query, case.gallery), strict=True):
            columns = side.split.labels.pid[side.rows], side.split.table.session[side.rows]
            facts = zip(*(column.tolist() for column in columns), strict=True)
            found[name, role] = dict(zip(_names(side), facts, strict=True))
    return found


# ----------------------------------------------------------------------------------------------------------------
# Scores
# ----------------------------------------------------------------------------------------------------------------


def score(ranked: Sequence[Ranked], truth: Truth) -> list[Record]:
    """A record for each rule of junk and each case, then the overall score of that rule: "overall", the mean over the
    queries of all cases (the leaderboard's), and "macro", the mean of the cases.

    A record has `case`, `junk`, `mAP_official` (average precision of the trapezoid) and `mAP` (standard), `mINP` and
    rank-k in percent, `queries` that have a match, `unmatched` ones, which count nowhere, and `gallery`. Where the
    session of a drone's tracklet is not known, nothing is scored by "camid".

    Raises:
      SubmissionError: a tracklet is not in the truth, or no query of a case has a match, as where identities are
        hidden.
    """
    sides = [_rows(one, truth) for one in ranked]
    known = all((rows.camera != UNKNOWN).all() for pair in sides for rows in pair)
    records = []
    for junk in JUNK if known else (next(iter(JUNK)),):
        found = [_score(one, *pair, junk) for one, pair in zip(ranked, sides, strict=True)]
        records += _of_rule(junk, [one.case for one in ranked], found)
    return records


def _of_rule(junk: str, cases: Sequence[str], found: Sequence[Mapping[str, Scores]]) -> list[Record]:
    records = [_record(case, junk, scores) for case, scores in zip(cases, found, strict=True)]
    pooled = {name: retrieval.pooled([scores[name] for scores in found]) for name in PRECISIONS}
    overall = _record(OVERALL, junk, pooled)
    percent = [key for key, value in overall.items() if isinstance(value, float)]
    means = {key: float(np.mean([record[key] for record in records])) for key in percent}
    return [*records, overall, overall | {"case": MACRO} | means]


def _record(case: str, junk: str, scores: Mapping[str, Scores]) -> Record:
    one = scores["mAP"]
    return {
        "case": case,
        "junk": junk,
        **{name: each.mAP for name, each in scores.items()},
        "mINP": one.mINP,
        **{f"rank-{k}": value for k, value in one.rank.items()},
        "queries": one.queries,
        "unmatched": one.unmatched,
        "gallery": one.gallery,
    }


def _score(ranked: Ranked, query: Rows, gallery: Rows, junk: str) -> dict[str, Scores]:
    """Scores by each definition of average precision."""
    place = np.empty(ranked.order.shape, np.float32)  # exact: a gallery has fewer than 2²⁴ rows
    np.put_along_axis(place, ranked.order, np.arange(len(ranked.gallery), dtype=np.float32)[None], axis=1)
    try:
        found = retrieval.score_distances(place, query, gallery, JUNK[junk], RANKS, keep_matches=True)
    except UserError as error:
        raise SubmissionError(f"{ranked.case}: {error}; are the identities of the tracklets hidden?") from error
    assert found.matches is not None
    scores: dict[str, Scores] = {}
    for name, rule in PRECISIONS.items():
        precision = average_precision(found.matches.position, rule)
        mAP = 100.0 * float(precision.sum()) / found.queries
        scores[name] = dataclasses.replace(found, mAP=mAP, average_precision=precision, matches=None)
    return scores


def _rows(ranked: Ranked, truth: Truth) -> tuple[Rows, Rows]:
    """What decides over matches, of the queries and of the gallery."""
    number = {name: at for at, name in enumerate(dict.fromkeys((*ranked.gallery, *ranked.query)))}
    found = []
    for role, names in zip(ROLES, (ranked.query, ranked.gallery), strict=True):
        table = truth.get((ranked.case, role), {})
        if lacking := [name for name in names if name not in table]:
            raise SubmissionError(f"{ranked.case}, {role}: no identity is given for {lacking[0]} (of {len(lacking)})")
        identity, session = np.array([table[name] for name in names], np.int64).T
        found.append(
            Rows(
                identity=identity,
                camera=np.zeros(len(names), int) if (ranked.case, role) in GROUND else session,
                tracklet=np.array([number[name] for name in names]),
            )
        )
    return found[0], found[1]


def remarks(ranked: Sequence[Ranked]) -> list[str]:
    """Where the queries are not as many as the challenge's release seems to have, a hint and no more."""
    queries = builder_module("detreidx", "published").QUERIES
    expected = {case: queries[number] for number, case in enumerate(CASES, 1)}
    return [
        f"{one.case}: {len(one.query)} queries, {expected[one.case]} were expected"
        for one in ranked
        if len(one.query) != expected[one.case]
    ]
