"""What HITSZ-VCM's lists say; no frame is looked at."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

from jaxreid.data.building import listed
from jaxreid.data.building.listed import Listing, Tracklet

from . import MIN_FRAMES
from .published import LISTED, PUBLISHED

EXPECTED = """expected:
  DIR/info/train_name.txt test_name.txt track_train_info.txt track_test_info.txt query_IDX.txt   (or in DIR itself)
  DIR/Train/0001/ir/D2/1.jpg …  DIR/Train/0001/rgb/D3/1.jpg …                                    (or DIR/0001/…)
  DIR/Test/0503/ir/D1/1.jpg …   DIR/Test/0503/rgb/D1/1.jpg …                                     (or DIR/0503/…)"""
LISTS = ("train_name.txt", "track_train_info.txt", "test_name.txt", "track_test_info.txt", "query_IDX.txt")
MODALITIES = {1: "ir", 2: "rgb"}
_NAME = re.compile(r"(\d+)M([12])D(\d+)T(\d+)F(\d+)\.jpg")


@dataclasses.dataclass(frozen=True)
class _Name:
    """A frame's name, taken apart; texts as printed."""

    text: str
    folder: str
    modality: int
    camera: str
    tracklet: str
    frame: str

    @property
    def recording(self) -> str:
        """What the annotators cut into tracklets: all that one camera saw of a person in one modality."""
        return f"{self.folder}/{MODALITIES[self.modality]}/D{self.camera}"


def list_dataset(source: Path, min_frames: int = MIN_FRAMES) -> Listing:
    """The tracklets of at least `min_frames` listed frames, in the order of `track_*_info.txt` and `query_IDX.txt`.

    Raises:
      DataSetError: a list is missing, a row or a name is not of the expected form, or they contradict each other; the
        message lists every place.
    """
    paths = listed.find_lists("hitsz_vcm", source, LISTS, ("info", "."), EXPECTED)
    errors: list[str] = []
    warnings: list[str] = []
    rows: dict[str, list[Tracklet | None]] = {}  # None is a row with an error
    for part, directory in (("train", "Train"), ("test", "Test")):
        names, table = paths[f"{part}_name.txt"], paths[f"track_{part}_info.txt"]
        rows[part] = _read_tracklets(source, directory, names, table, errors, warnings)
    queries = _read_queries(paths["query_IDX.txt"], rows["test"], errors)
    listed.refuse("hitsz_vcm", source, errors)
    complete = {part: [tracklet for tracklet in members if tracklet] for part, members in rows.items()}
    asked = set(queries)
    complete["query"] = [complete["test"][row] for row in queries]
    complete["gallery"] = [tracklet for row, tracklet in enumerate(complete["test"]) if row not in asked]
    infrared = [tracklet for tracklet in complete["gallery"] if tracklet.modality == "ir"]
    if infrared:
        warnings.append(
            f"{len(infrared)} infrared tracklets are not in query_IDX.txt and so in the gallery, "
            f"e.g. {infrared[0].tracklet_id}"
        )
    splits = {
        split: [tracklet for tracklet in complete[split] if len(tracklet.frames) >= min_frames]
        for split in ("train", "query", "gallery")
    }
    differences = listed.differences(LISTED, complete)
    if min_frames == MIN_FRAMES:
        # What is published of identities and cameras is of the lists: all tracklets of one may be short.
        figures = {split: {what: of[what] for what in ("tracklets", "frames")} for split, of in PUBLISHED.items()}
        differences += [f"{line} (of at least 12 frames)" for line in listed.differences(figures, splits)]
    return Listing(
        splits=splits,
        digest=listed.digest(paths.values()),
        differences=differences,
        warnings=warnings,
        facts={
            "min_frames": min_frames,
            "dropped_tracklets": {split: len(complete[split]) - len(members) for split, members in splits.items()},
        },
    )


def _read_tracklets(
    source: Path, directory: str, names_path: Path, table: Path, errors: list[str], warnings: list[str]
) -> list[Tracklet | None]:
    """A tracklet per row of `table`."""
    names = [line.strip() for line in listed.read_lines(names_path)]

    @functools.cache
    def holder(folder: str) -> str:
        # Train and Test as unpacked; many users merge them.
        return directory if (source / directory / folder).is_dir() or not (source / folder).is_dir() else ""

    tracklets: list[Tracklet | None] = []
    for number, row in enumerate(listed.read_lines(table), start=1):
        frames, problems = _frames(row, names, names_path)
        errors += [f"{table}, row {number} ({row.strip()}): {problem}" for problem in problems]
        tracklets.append(None if problems else _tracklet(frames, holder(frames[0].folder)))
    read = [tracklet for tracklet in tracklets if tracklet]
    covered = sum(len(tracklet.frames) for tracklet in read)
    if covered != len(names) and len(read) == len(tracklets):
        warnings.append(f"{table} covers {covered} frames, {names_path} has {len(names)}")
    # A tracklet's number should name one row; if rows share it, their first frames tell them apart.
    shared = set(listed.repeated(read))
    tracklets = [
        dataclasses.replace(tracklet, tracklet_id=f"{tracklet.tracklet_id}F{Path(tracklet.frames[0]).stem}")
        if tracklet and tracklet.tracklet_id in shared
        else tracklet
        for tracklet in tracklets
    ]
    again = listed.repeated(tracklet for tracklet in tracklets if tracklet)
    if again:
        errors.append(f"{table}: {len(again)} tracklets are in several rows, e.g. {again[0]}")
    return tracklets


def _frames(row: str, names: list[str], names_path: Path) -> tuple[list[_Name], list[str]]:
    """The frames of a row "modality start end identity camera" (from 1, both ends included), and what is wrong."""
    cells = listed.integers(row.split())
    if cells is None or len(cells) != 5 or cells[0] not in MODALITIES:
        return [], ["is not 'modality start end identity camera', five whole numbers, modality 1 or 2"]
    modality, start, end, pid, camera = cells
    if not 1 <= start <= end <= len(names):
        return [], [f"frames {start} to {end} are not in {names_path}, which has {len(names)} names"]
    frames, problems = [], []
    for line in range(start, end + 1):
        name = _parse(names[line - 1])
        if name is None:
            problems.append(f"{names[line - 1]!r} ({names_path}, line {line}) is not a name like 0001M2D3T1F1.jpg")
        elif (name.modality, int(name.folder), int(name.camera)) != (modality, pid, camera):
            problems.append(
                f"{name.text} ({names_path}, line {line}) is of modality {name.modality}, identity {int(name.folder)} "
                f"and camera {int(name.camera)}, the row of modality {modality}, identity {pid} and camera {camera}"
            )
        else:
            frames.append(name)
    return frames, problems


def _tracklet(frames: list[_Name], directory: str) -> Tracklet:
    first = frames[0]
    return Tracklet(
        tracklet_id=first.text[: first.text.rindex("F")],
        pid=int(first.folder),
        camera=int(first.camera),
        cam_name=f"D{int(first.camera)}",
        modality=MODALITIES[first.modality],
        frames=tuple(f"{name.recording}/{name.frame}.jpg" for name in frames),
        directory=directory,
        recording=first.recording,
    )


def _parse(text: str) -> _Name | None:
    match = _NAME.fullmatch(text)
    return match and _Name(text, match[1], int(match[2]), match[3], match[4], match[5])


def _read_queries(path: Path, rows: list[Tracklet | None], errors: list[str]) -> list[int]:
    """Positions (from 0) of the query rows; the file counts from 1, on one line or on several."""
    numbers = listed.integers(" ".join(listed.read_lines(path)).replace(",", " ").split())
    if numbers is None:
        errors.append(f"{path}: holds something else than row numbers")
        return []
    queries = []
    for number in numbers:
        if not 1 <= number <= len(rows):
            errors.append(f"{path}: there is no row {number}; the test list has {len(rows)} rows")
            continue
        tracklet = rows[number - 1]
        if tracklet is not None and tracklet.modality != "ir":
            errors.append(f"{path}: row {number} ({tracklet.tracklet_id}) is visible; queries are infrared")
        queries.append(number - 1)
    if len(set(queries)) < len(queries):
        errors.append(f"{path}: names {len(queries) - len(set(queries))} rows more than once")
    return queries
