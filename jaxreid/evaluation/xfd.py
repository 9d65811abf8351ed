"""The submission file of the VReID-XFD challenge: ranked, written, read and scored.

The score needs nothing but the file: identity and number of a tracklet stand in its name (`0024_5453`), as the
challenge's own script reads them. Where names are anonymised there is nothing to score by.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxreid import retrieval
from jaxreid.errors import UserError
from jaxreid.evaluation.cases import Case
from jaxreid.files import written_aside
from jaxreid.retrieval.distances import Distance
from jaxreid.retrieval.metrics import Scores
from jaxreid.retrieval.precision import average_precision, inverse_negative_penalty

CASES = ("Case 1: Aerial to Ground", "Case 2: Ground to Aerial", "Case 3: Aerial to Aerial")
COLUMNS = ("row_id", "case", "query_tracklet", "ranked_gallery_tracklets")
TRACKLET = re.compile(r"(?P<pid>\d+)\D.*")
RANKS = (1, 5, 10, 20)


class SubmissionError(UserError):
    """A submission cannot be written, read or scored; the message says which row, and why."""


@dataclasses.dataclass(frozen=True)
class Ranking:
    """A row of the file: the names of a query and of the whole gallery, best first."""

    case: str
    query: str
    gallery: tuple[str, ...]


def rankings(pairs: Sequence[Case], features: Mapping[str, Any], distance: Distance) -> Iterator[Ranking]:
    """Every query of the three cases, by identity and name; equal distances rank the gallery by identity and name.

    Args:
      pairs: the three cases in their order.
      features: split name → what the distance compares, one row per tracklet.
      distance: as in `retrieval.nearest`.
    """
    if len(pairs) != len(CASES):
        raise SubmissionError(f"the challenge has {len(CASES)} cases, the data set {len(pairs)}")
    for name, case in zip(CASES, pairs, strict=True):
        (queries, query_names), (gallery, gallery_names) = _ordered(case.query), _ordered(case.gallery)
        order, _ = retrieval.nearest(
            dataclasses.replace(case.query, rows=queries).of(features),
            dataclasses.replace(case.gallery, rows=gallery).of(features),
            k=len(gallery),
            distance=distance,
        )
        for query, ranked in zip(query_names, order, strict=True):
            yield Ranking(name, query, tuple(gallery_names[i] for i in ranked))


def _ordered(side: Any) -> tuple[np.ndarray, list[str]]:
    names = side.split.labels.names
    rows = np.array(sorted(side.rows.tolist(), key=lambda row: (side.split.labels.pid[row], names[row])))
    return rows, [names[row] for row in rows]


def write(path: Path, ranked: Iterator[Ranking]) -> Path:
    """Writes the file aside and renames it; returns its path."""
    with written_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number, row in enumerate(ranked, 1):
            writer.writerow((number, row.case, row.query, " ".join(row.gallery)))
    return path


def read(path: Path) -> list[Ranking]:
    """The rows of a file, checked.

    Raises:
      SubmissionError: another header, an unknown case, rows out of order, a query twice, or a gallery that is not
        the same in every row of a case, each name once.
    """
    csv.field_size_limit(2**30)  # a row names the whole gallery
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if tuple(next(rows, ())) != COLUMNS:
            raise SubmissionError(f"{path}: the first line is not {','.join(COLUMNS)}")
        found: list[Ranking] = []
        galleries: dict[str, frozenset[str]] = {}
        for number, row in enumerate(rows, 1):
            where = f"{path}: row {number}"
            if len(row) != len(COLUMNS) or row[0] != str(number):
                raise SubmissionError(f"{where} is not numbered so, or has not {len(COLUMNS)} fields")
            _, case, query, names = row
            if case not in CASES or (found and CASES.index(case) < CASES.index(found[-1].case)):
                raise SubmissionError(f"{where}: case {case!r} is not one of {', '.join(CASES)}, in this order")
            ranking = Ranking(case, query, tuple(names.split()))
            gallery = galleries.setdefault(case, frozenset(ranking.gallery))
            if len(ranking.gallery) != len(gallery) or gallery != set(ranking.gallery):
                raise SubmissionError(f"{where}: {query} does not rank each gallery tracklet of {case!r} once")
            found.append(ranking)
    queries = [(row.case, row.query) for row in found]
    if len(set(queries)) != len(queries):
        raise SubmissionError(f"{path}: a query of a case stands in it twice")
    return found


def score(rows: Sequence[Ranking]) -> dict[str, Scores]:
    """Scores of each case, and "overall", the mean over the queries of all cases.

    A match has the query's identity and is not the query's own tracklet, which is left out; average precision is
    that of the trapezoid. Queries without a match count nowhere.

    Raises:
      SubmissionError: a name does not begin with an identity, or no query of a case has a match.
    """
    found = {}
    for case in CASES:
        own = [row for row in rows if row.case == case]
        positions = [_positions(row) for row in own]
        if not any(map(len, positions)):
            raise SubmissionError(f"no query of {case!r} has a match: are the names of the tracklets anonymised?")
        table = np.zeros((len(own), max(map(len, positions))), int)
        for line, at in zip(table, positions, strict=True):
            line[: len(at)] = at
        valid, first = table[:, 0] > 0, table[:, 0]
        precision, penalty = average_precision(table, "trapezoid"), inverse_negative_penalty(table)
        found[case] = Scores(
            protocol="xfd",
            mAP=100 * float(precision[valid].mean()),
            mINP=100 * float(penalty[valid].mean()),
            rank={k: 100 * float((first[valid] <= k).mean()) for k in RANKS},
            queries=int(valid.sum()),
            unmatched=int((~valid).sum()),
            gallery=len(own[0].gallery),
            average_precision=precision,
            inverse_negative_penalty=penalty,
            first_match=first,
        )
    return found | {"overall": retrieval.pooled(list(found.values()))}


def _positions(row: Ranking) -> np.ndarray:
    """1-based places of the matches in the ranking without the query's own tracklet."""
    kept = [name for name in row.gallery if name != row.query]
    pid = _pid(row.query)
    return 1 + np.flatnonzero([_pid(name) == pid for name in kept])


def _pid(name: str) -> int:
    match = TRACKLET.fullmatch(name)
    if not match:
        raise SubmissionError(f"tracklet {name!r} does not begin with an identity's number, as 0024_5453 does")
    return int(match["pid"])
