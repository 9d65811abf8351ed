"""Files of VReID-XFD: the submission, a ranking of every query, and the table of who is who."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxreid.data.building.answers import ROLES, read_answers, write_answers
from jaxreid.data.names import nfc
from jaxreid.evaluation.xfd import CASES, Ranked, SubmissionError, Truth
from jaxreid.files import written_aside
from jaxreid.retrieval.protocols import UNKNOWN

COLUMNS = ("row_id", "case", "query_tracklet", "ranked_gallery_tracklets")
NUMBERS = {str(number): case for number, case in enumerate(CASES, 1)}
TRACKLET = re.compile(r"(?P<pid>\d+)\D.*")


def write(path: Path, ranked: Sequence[Ranked]) -> Path:
    """The submission, rows numbered from 1 in the order of cases and queries; written aside and renamed.

    Raises:
      SubmissionError: a name has a space in it, which stands between names.
    """
    for one in ranked:
        if spaced := [name for name in (*one.query, *one.gallery) if not name or re.search(r"\s", name)]:
            raise SubmissionError(f"tracklet {spaced[0]!r} of {one.case!r}: a submission has spaces between names")
    with written_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        rows = ((one, query, order) for one in ranked for query, order in zip(one.query, one.order, strict=True))
        for number, (one, query, order) in enumerate(rows, 1):
            writer.writerow((number, one.case, query, " ".join(one.gallery[row] for row in order)))
    return path


def read(path: Path) -> list[Ranked]:
    """The cases of a submission, checked.

    Raises:
      SubmissionError: another header, an unknown or missing case, rows out of order, a query twice, or a gallery that
        is not the same in every row of a case, each name once.
    """
    cases: dict[str, tuple[dict[str, None], dict[str, int], list[np.ndarray]]] = {}
    for where, case, query, names in _submitted(path):
        if case not in CASES or (cases and CASES.index(case) < CASES.index(next(reversed(cases)))):
            raise SubmissionError(f"{where}: case {case!r} is not one of {', '.join(CASES)}, in this order")
        queries, gallery, orders = cases.setdefault(case, ({}, {name: at for at, name in enumerate(names)}, []))
        order = np.array([gallery.get(name, UNKNOWN) for name in names], np.int64)
        if len(names) != len(gallery) or not np.array_equal(np.sort(order), np.arange(len(gallery))):
            raise SubmissionError(f"{where}: {query} does not rank each gallery tracklet of {case!r} once")
        if query in queries:
            raise SubmissionError(f"{where}: {query} stands in {case!r} twice")
        queries[query] = None
        orders.append(order)
    if missing := [case for case in CASES if case not in cases]:
        raise SubmissionError(f"{path}: holds no query of {' and '.join(map(repr, missing))}")
    return [Ranked(case, tuple(q), tuple(g), np.stack(orders)) for case, (q, g, orders) in cases.items()]


def _submitted(path: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """(which row, case, query, names of the gallery) of every row."""
    csv.field_size_limit(2**30)  # a row names the whole gallery
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if tuple(next(rows, ())) != COLUMNS:
            raise SubmissionError(f"{path}: the first line is not {','.join(COLUMNS)}")
        for number, row in enumerate(rows, 1):
            where = f"{path}: row {number}"
            if len(row) != len(COLUMNS) or row[0] != str(number):
                raise SubmissionError(f"{where} is not numbered so, or has not {len(COLUMNS)} fields")
            yield where, row[1], nfc(row[2]), nfc(row[3]).split()


def write_truth(path: Path, truth: Truth) -> Path:
    """Who is who, a row for every tracklet of a case and side."""
    return write_answers(
        path,
        (
            (CASES.index(case) + 1, role, name, pid, session)
            for (case, role), table in truth.items()
            for name, (pid, session) in table.items()
        ),
    )


def read_truth(path: Path) -> Truth:
    """Who is who, of a table as `jaxreid build detreidx` reads it: case 1 to 3, query or gallery, tracklet, identity,
    session.

    Raises:
      SubmissionError: it is no such table.
    """
    answers, errors = read_answers(path)
    errors += [f"{path}: case {case!r} is none of 1 to 3" for case, _, _ in answers if case not in NUMBERS][:1]
    if errors:
        raise SubmissionError(errors[0])
    found: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    for (case, role, name), facts in answers.items():
        found.setdefault((NUMBERS[case], role), {})[name] = facts
    return found


def truth_of_names(ranked: Sequence[Ranked]) -> Truth:
    """Identities as the challenge's script reads them from the names (`0024_5453`); sessions are not known.

    Raises:
      SubmissionError: a name does not begin with an identity.
    """
    found: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    for one in ranked:
        for role, names in zip(ROLES, (one.query, one.gallery), strict=True):
            found[one.case, role] = {name: (_pid(name), UNKNOWN) for name in names}
    return found


def _pid(name: str) -> int:
    match = TRACKLET.fullmatch(name)
    if not match:
        raise SubmissionError(f"tracklet {name!r} does not begin with an identity's number, as 0024_5453 does")
    return int(match["pid"])
