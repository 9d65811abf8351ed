"""Who is who in test folders that hide it: the table `gt.csv` of VReID-XFD's three cases."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from jaxreid.data.building import listed
from jaxreid.data.names import known, nfc
from jaxreid.files import written_aside

ANSWERS = "gt.csv"
COLUMNS = ("case", "split", "tracklet", "pid", "session")
ROLES = ("query", "gallery")
UNKNOWN = -1

Answers = dict[tuple[str, str, str], tuple[int, int]]  # (case, role, tracklet) → (identity, session)


def read_answers(path: Path) -> tuple[Answers, list[str]]:
    """Identity and session of every tracklet of the table, −1 where they are not known, and what is wrong with it."""
    rows = list(csv.DictReader(listed.read_lines(path)))
    if not rows or any(column not in rows[0] for column in COLUMNS):
        return {}, [f"{path}: is not a table with the columns {', '.join(COLUMNS)}"]
    answers: Answers = {}
    errors = []
    for number, row in enumerate(rows, start=2):
        case, role, tracklet = (nfc((row[column] or "").strip()) for column in COLUMNS[:3])
        values = listed.integers(known(row[column]) or str(UNKNOWN) for column in COLUMNS[3:])
        if values is None or role not in ROLES:
            errors.append(f"{path}, row {number}: is not a case, query or gallery, a tracklet, and two numbers")
        else:
            answers[case, role, tracklet] = values[0], values[1]
    return answers, errors


def write_answers(path: Path, rows: Iterable[tuple[int, str, str, int, int]]) -> Path:
    """The table of rows (case, query or gallery, tracklet, identity, session); written aside and renamed."""
    with written_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    return path
