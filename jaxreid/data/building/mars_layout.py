"""Data sets that are laid out as MARS: two lists of frames' names, and tables of the rows that make a tracklet."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

from jaxreid.data.building import listed
from jaxreid.data.building.listed import Tracklet
from jaxreid.data.building.matlab import read_matlab

EXPECTED = """expected:
  DIR/info/train_name.txt test_name.txt tracks_train_info.mat tracks_test_info.mat query_IDX.mat   (or in DIR itself)
  DIR/bbox_train/0001/0001C1T0001F001.jpg …
  DIR/bbox_test/0002/0002C1T0001F001.jpg …"""
LISTS = ("train_name.txt", "tracks_train_info.mat", "test_name.txt", "tracks_test_info.mat", "query_IDX.mat")
JUNK = "00-1"  # stands for identity −1 in names
_NAME = re.compile(rf"((\d{{4}}|{JUNK})C(\d)T\d+)F(\d+)\.jpg")


@dataclasses.dataclass(frozen=True)
class Rows:
    """What the tables say, in their order."""

    train: list[Tracklet]
    test: list[Tracklet]
    queries: list[int]  # positions in `test`
    digest: str
    differences: list[str]  # from what holds of the published sets

    @property
    def query(self) -> list[Tracklet]:
        return [self.test[row] for row in self.queries]

    @property
    def others(self) -> list[Tracklet]:
        """The test tracklets that are no queries."""
        asked = set(self.queries)
        return [tracklet for row, tracklet in enumerate(self.test) if row not in asked]


def list_rows(name: str, source: Path, expected: str) -> Rows:
    """Reads the tables and lists of the data set `name`.

    Raises:
      DataSetError: one is missing, a row or a name is not of the expected form, or they contradict each other; the
        message lists every place.
    """
    paths = listed.find_lists(name, source, LISTS, ("info", "."), expected)
    errors: list[str] = []
    differences: list[str] = []
    parts: dict[str, list[Tracklet | None]] = {}  # None is a row with an error
    for part in ("train", "test"):
        table, names_path = paths[f"tracks_{part}_info.mat"], paths[f"{part}_name.txt"]
        rows = read_matlab(name, table, f"track_{part}_info")
        parts[part] = _read_tracklets(part, rows, table, names_path, errors, differences)
    queries = _read_queries(paths["query_IDX.mat"], name, len(parts["test"]), errors)
    listed.refuse(name, source, errors)
    train, test = ([tracklet for tracklet in parts[part] if tracklet] for part in ("train", "test"))
    both = sorted({tracklet.pid for tracklet in train} & {tracklet.pid for tracklet in test})
    if both:
        differences.append(f"{len(both)} identities are in train and in test, e.g. {both[0]}")
    return Rows(train, test, queries, listed.digest(paths.values()), differences)


def _read_tracklets(
    part: str, rows: np.ndarray, table: Path, names_path: Path, errors: list[str], differences: list[str]
) -> list[Tracklet | None]:
    """A tracklet per row "start end identity camera"; start and end count from 1, both are included."""
    names = [line.strip() for line in listed.read_lines(names_path)]
    if rows.shape[1] != 4:
        errors.append(f"{table}: has {rows.shape[1]} columns, not 'start end identity camera'")
        return []
    tracklets = []
    for number, row in enumerate(rows.tolist(), start=1):
        found = _tracklet(part, row, names, names_path)
        if isinstance(found, str):
            errors.append(f"{table}, row {number} ({' '.join(map(str, row))}): {found}")
        tracklets.append(None if isinstance(found, str) else found)
    begin, end = rows[:, 0], rows[:, 1]
    gaps = np.flatnonzero(np.append(begin, len(names) + 1) != np.append(0, end) + 1)
    if len(gaps):
        differences.append(f"{table}: its rows do not tile {names_path}, first at row {gaps[0] + 1}")
    return listed.told_apart(tracklets, table, errors)


def _tracklet(part: str, row: list[int], names: list[str], names_path: Path) -> Tracklet | str:
    """The tracklet of a row, or what is wrong with it."""
    start, end, pid, camera = row
    if not 1 <= start <= end <= len(names):
        return f"frames {start} to {end} are not in {names_path}, which has {len(names)} names"
    frames = []
    tracklet_id = ""
    for line, text in enumerate(names[start - 1 : end], start=start):
        name = _NAME.fullmatch(text)
        if name is None:
            return f"{text!r} ({names_path}, line {line}) is not a name like 0001C1T0001F001.jpg"
        named = -1 if name[2] == JUNK else int(name[2])
        if (named, int(name[3])) != (pid, camera):
            return (
                f"{text} ({names_path}, line {line}) is of identity {named} and camera {name[3]}, "
                f"the row of identity {pid} and camera {camera}"
            )
        tracklet_id = tracklet_id or name[1]
        frames.append(f"{name[2]}/{text}")
    return Tracklet(
        tracklet_id=tracklet_id,
        pid=pid,
        camera=camera,
        cam_name=f"C{camera}",
        modality="rgb",
        frames=tuple(frames),
        directory=f"bbox_{part}",
    )


def _read_queries(path: Path, name: str, rows: int, errors: list[str]) -> list[int]:
    """Positions (from 0) of the query rows; the file counts from 1."""
    numbers = read_matlab(name, path, "query_IDX").ravel().tolist()
    errors += [
        f"{path}: there is no row {number}; the test table has {rows} rows"
        for number in numbers
        if not 1 <= number <= rows
    ]
    if len(set(numbers)) < len(numbers):
        errors.append(f"{path}: names {len(numbers) - len(set(numbers))} rows more than once")
    return [number - 1 for number in numbers]
