"""What MEVID's lists say; no frame is looked at."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxreid.data.building import listed
from jaxreid.data.building.listed import Listing, Tracklet
from jaxreid.data.building.outfits import number_outfits, outfit_differences
from jaxreid.data.pictures import image_size

from .published import COUNTS, GALLERY_CAMERAS, QUERY_CAMERAS

ANNOTATIONS = "mevid-v1-annotation-data"
EXPECTED = f"""expected:
  DIR/train_name.txt test_name.txt track_train_info.txt track_test_info.txt query_IDX.txt   (or in DIR/{ANNOTATIONS})
  DIR/bbox_train/0103/0103O020C424T000F00000.jpg …
  DIR/bbox_test/0201/0201O003C330T004F00192.jpg …"""
LISTS = ("train_name.txt", "track_train_info.txt", "test_name.txt", "track_test_info.txt", "query_IDX.txt")
INDOOR, OUTDOOR = 0, 1
LOCATIONS = {
    **dict.fromkeys((329, 330, 507, 508, 509), INDOOR),
    **dict.fromkeys((301, 336, 340, 436, 505, 639), OUTDOOR),
}
SCALE_BOUNDS = (48, 64, 96, 128, 192)  # pixels; the lowest class begins at 32, and what is smaller is put there, too
_NAME = re.compile(r"(\d{4})O(\d{3})C(\d{3})T\d{3}F\d{5}\.jpg")


def list_dataset(source: Path, max_frames: int = 0) -> Listing:
    """The tracklets of the lists, in the order of `track_*_info.txt` and `query_IDX.txt`, thinned at once.

    Rows and positions count from 0, the last frame of a row is part of it. Empty rows are left out and counted.

    Raises:
      DataSetError: a list is missing, a row or a name is not of the expected form, or they contradict each other; the
        message lists every place.
    """
    paths = listed.find_lists("mevid", source, LISTS, (".", ANNOTATIONS), EXPECTED)
    errors: list[str] = []
    warnings: list[str] = []
    rows = {
        part: _read_tracklets(
            f"bbox_{part}", paths[f"{part}_name.txt"], paths[f"track_{part}_info.txt"], max_frames, errors, warnings
        )
        for part in ("train", "test")
    }
    queries = _read_queries(paths["query_IDX.txt"], len(rows["test"]), errors)
    listed.refuse("mevid", source, errors)
    asked = set(queries)
    chosen = {
        "train": rows["train"],
        "query": [rows["test"][row] for row in queries],
        "gallery": [tracklet for row, tracklet in enumerate(rows["test"]) if row not in asked],
    }
    splits, outfits = number_outfits(
        {split: [tracklet for tracklet in members if tracklet] for split, members in chosen.items()}
    )
    return Listing(
        splits=splits,
        digest=listed.digest(paths.values()),
        differences=_differences(splits, len(rows["train"])),
        warnings=warnings,
        facts={
            "clothes": outfits,
            "empty_rows": {split: len(members) - len(splits[split]) for split, members in chosen.items()},
            "locations": {"indoor": INDOOR, "outdoor": OUTDOOR},
            "scale_bounds": SCALE_BOUNDS,
        },
    )


def scale_class(frames: Sequence[bytes]) -> Mapping[str, Any]:
    """`scale_class` of a tracklet from the mean of its crops' sizes, √(height · width) in pixels."""
    sizes = np.sqrt([np.prod(image_size(frame)) for frame in frames])
    return {"scale_class": int(np.searchsorted(SCALE_BOUNDS, sizes.mean(), side="right"))}


def _read_tracklets(
    directory: str, names_path: Path, table: Path, max_frames: int, errors: list[str], warnings: list[str]
) -> list[Tracklet | None]:
    """A tracklet per row of `table`; None is an empty row, or one with an error."""
    names = [line.strip() for line in listed.read_lines(names_path)]
    tracklets: list[Tracklet | None] = []
    covered, empty = 0, []
    for number, row in enumerate(listed.read_lines(table)):
        where = f"{table}, row {number} ({row.strip()})"
        cells = listed.integers(row.split())
        tracklet = None
        if cells is None or len(cells) != 5:
            errors.append(f"{where}: is not 'start end identity outfit camera', five whole numbers")
        elif cells[1] < cells[0]:
            empty.append(where)
        elif not 0 <= cells[0] <= cells[1] < len(names):
            errors.append(
                f"{where}: frames {cells[0]} to {cells[1]} are not in {names_path}, which has {len(names)} names"
            )
        else:
            row_names = names[cells[0] : cells[1] + 1]
            covered += len(row_names)
            problem = _problem(row_names, *cells[2:])
            if problem:
                errors.append(f"{where}: {problem}")
            else:
                tracklet = _tracklet(directory, row_names, *cells[2:])
                tracklet = tracklet.thinned(max_frames) if max_frames else tracklet
        tracklets.append(tracklet)
    if empty:
        warnings.append(f"{len(empty)} rows are empty and are left out, e.g. {empty[0]}")
    if covered != len(names):
        warnings.append(f"{table} covers {covered} frames, {names_path} has {len(names)}")
    return listed.told_apart(tracklets, table, errors)


def _problem(names: list[str], pid: int, outfit: int, camera: int) -> str | None:
    """The first contradiction between a row and its names."""
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            return f"{name!r} is not a name like 0103O020C424T000F00000.jpg"
        if tuple(map(int, match.groups())) != (pid, outfit, camera):
            return (
                f"{name} is of identity {int(match[1])}, outfit {int(match[2])} and camera {int(match[3])}, the row of "
                f"identity {pid}, outfit {outfit} and camera {camera}"
            )
    return None


def _tracklet(directory: str, names: list[str], pid: int, outfit: int, camera: int) -> Tracklet:
    first = names[0]
    return Tracklet(
        tracklet_id=first[: first.rindex("F")],
        pid=pid,
        camera=camera,
        cam_name=f"G{camera}",
        modality="rgb",
        frames=tuple(f"{directory}/{name[:4]}/{name}" for name in names),
        features={"outfit": f"O{outfit:03d}", "location": LOCATIONS.get(camera, -1)},
    )


def _read_queries(path: Path, rows: int, errors: list[str]) -> list[int]:
    """Positions (from 0) of the query rows."""
    queries = listed.integers(" ".join(listed.read_lines(path)).split())
    if queries is None:
        errors.append(f"{path}: holds something else than row numbers")
        return []
    outside = [row for row in queries if not 0 <= row < rows]
    if outside:
        errors.append(f"{path}: there is no row {outside[0]}; the test list has rows 0 to {rows - 1}")
    if len(set(queries)) < len(queries):
        errors.append(f"{path}: names {len(queries) - len(set(queries))} rows more than once")
    return [row for row in queries if 0 <= row < rows]


def _differences(splits: Mapping[str, Sequence[Tracklet]], train_rows: int) -> list[str]:
    figures = {split: dict(of) for split, of in COUNTS.items() if split != "test"}
    if train_rows == figures["train"]["tracklets"]:  # published before or after empty rows were left out
        figures["train"]["tracklets"] = len(splits["train"])
    lines = listed.differences(figures, splits) + outfit_differences(COUNTS, splits)
    for split, cameras in (("query", QUERY_CAMERAS), ("gallery", GALLERY_CAMERAS)):
        found = sorted({tracklet.camera for tracklet in splits[split]})
        if found != list(cameras):
            lines.append(f"{split}: expected cameras {_joined(cameras)}, found {_joined(found)}")
    return lines + listed.shared_identities(splits)


def _joined(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))
