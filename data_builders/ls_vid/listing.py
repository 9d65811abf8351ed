"""What LS-VID's lists say, and which frames lie under their prefixes; no frame is looked at."""

from __future__ import annotations

import bisect
import functools
from pathlib import Path

import numpy as np

from jaxreid.data.building import listed
from jaxreid.data.building.listed import Listing, Tracklet
from jaxreid.data.building.matlab import read_matlab
from jaxreid.data.building.progress import progress
from jaxreid.data.building.tree import Tree
from jaxreid.errors import DataSetError

from . import MAX_FRAMES
from .published import COUNTS, FRAMES, RECALLED

EXPECTED = """expected:
  DIR/list_sequence/list_seq_train.txt list_seq_val.txt list_seq_test.txt   (or DIR/info/list_sequence/…)
  DIR/test/data/info_test.mat   (or DIR/info/data/…; or DIR/test/query.npy info_test.npy)
  DIR/tracklet_train/…  tracklet_val/…  tracklet_test/…                     (or one DIR/tracklet/…)"""
LIST_FOLDERS = ("list_sequence", "info/list_sequence")
CAMERAS = range(1, 16)


def list_dataset(source: Path, max_frames: int = MAX_FRAMES) -> Listing:
    """The tracklets of the lists, in their order and thinned to `max_frames` frames; rows of identity −1 are left out.

    Raises:
      DataSetError: a list is missing, a line is not of the expected form, lists contradict each other or the frames'
        names, or a tracklet has no frame; the message lists every place.
    """
    parts = [part for part in ("train", "val", "test") if part != "val" or _has_validation(source)]
    lists = [f"list_seq_{part}.txt" for part in parts]
    paths = listed.find_lists("ls_vid", source, lists, LIST_FOLDERS, EXPECTED)
    reader = _Reader(source, max_frames)
    query_path, cameras_path = _test_files(source)
    cameras = _read_cameras(cameras_path) if cameras_path else None
    rows = {
        part: reader.tracklets(paths[f"list_seq_{part}.txt"], cameras if part == "test" else None) for part in parts
    }
    queries = _read_queries(query_path, len(rows["test"]), reader.tree.errors)
    listed.refuse("ls_vid", source, [*reader.tree.errors, *reader.tree.missing])
    kept = {part: [tracklet for tracklet in members if tracklet] for part, members in rows.items()}
    asked = set(queries)
    query = [tracklet for row in queries if (tracklet := rows["test"][row])]
    gallery = [tracklet for row, tracklet in enumerate(rows["test"]) if tracklet and row not in asked]
    splits = {"train": kept["train"], "query": query, "gallery": gallery}
    if "val" in kept:
        splits["val"] = kept["val"]
    everything = [tracklet for members in kept.values() for tracklet in members]
    recalled = listed.differences(RECALLED, {**kept, "all splits": everything}) if "val" in kept else []
    frames = sum(tracklet.source_frames or len(tracklet.frames) for tracklet in everything)
    if "val" in kept and frames != FRAMES:
        recalled.append(f"all splits: expected {FRAMES} frames, found {frames}")
    return Listing(
        splits=splits,
        digest=f"{listed.digest([*paths.values(), query_path])}-{reader.tree.digest}",
        differences=listed.differences(COUNTS, {**kept, "query": query, "gallery": gallery}),
        warnings=[*reader.tree.warnings, *recalled],
        facts={
            "dropped_tracklets": {part: len(members) - len(kept[part]) for part, members in rows.items()},
        },
        faults=reader.tree.faults,
    )


def _has_validation(source: Path) -> bool:
    return any((source / folder / "list_seq_val.txt").is_file() for folder in LIST_FOLDERS)


def _test_files(source: Path) -> tuple[Path, Path | None]:
    """The list of the queries, and the cameras of the test rows where they are listed; newer copies come first."""
    arrays = source / "test" / "query.npy", source / "test" / "info_test.npy"
    if arrays[0].is_file():
        return arrays[0], arrays[1] if arrays[1].is_file() else None
    found = listed.find_lists("ls_vid", source, ["info_test.mat"], ("test/data", "info/data"), EXPECTED)
    return found["info_test.mat"], None


def _read_queries(path: Path, rows: int, errors: list[str]) -> list[int]:
    """Positions (from 0) of the query rows; the files count from 1."""
    table = _read_array(path) if path.suffix == ".npy" else read_matlab("ls_vid", path, "query")
    numbers = table.ravel().tolist()
    errors += [
        f"{path}: there is no row {number}; the test list has {rows} rows"
        for number in numbers
        if not 1 <= number <= rows
    ]
    if len(set(numbers)) < len(numbers):
        errors.append(f"{path}: names {len(numbers) - len(set(numbers))} rows more than once")
    return [number - 1 for number in numbers if 1 <= number <= rows]


def _read_cameras(path: Path) -> list[int]:
    """The camera of every row of the test list."""
    table = _read_array(path)
    if table.ndim != 2 or table.shape[1] < 4:
        raise DataSetError(f"ls_vid: {path} has the shape {table.shape}; its fourth column should be cameras")
    return table[:, 3].tolist()


def _read_array(path: Path) -> np.ndarray:
    try:
        table = np.load(path)
    except (ValueError, OSError, EOFError) as error:
        raise DataSetError(f"ls_vid: {path} cannot be read as an array of numbers ({error})") from error
    if table.dtype.kind not in "iuf" or not np.array_equal(table, np.round(table)):
        raise DataSetError(f"ls_vid: {path} holds something else than whole numbers")
    return table.astype(np.int64)


class _Reader:
    """Finds the frames of tracklets that are listed by a prefix of their names."""

    def __init__(self, source: Path, max_frames: int) -> None:
        self.tree = Tree("ls_vid", source)
        self.max_frames = max_frames
        # Tracklets of one folder stand near each other in the lists.
        self._names = functools.lru_cache(maxsize=64)(self._list_folder)

    def tracklets(self, path: Path, cameras: list[int] | None) -> list[Tracklet | None]:
        """A tracklet per line "prefix identity" of a list; None for identity −1 and where something is wrong."""
        lines = listed.read_lines(path)
        if cameras is not None and len(cameras) != len(lines):
            self.tree.errors.append(f"{path}: has {len(lines)} rows, but the cameras of {len(cameras)} are listed")
            cameras = None
        prefixes = sorted(line.rpartition(" ")[0] for line in lines)
        found: list[Tracklet | None] = []
        for number, line in enumerate(progress(lines, f"listing {path.name}"), start=1):
            prefix, _, last = line.rpartition(" ")
            pid = listed.integers([last])
            where = f"{path}, row {number} ({line})"
            longer = bisect.bisect_left(prefixes, f"{prefix}_")
            if longer < len(prefixes) and prefixes[longer].startswith(f"{prefix}_"):
                self.tree.errors.append(f"{where}: its frames cannot be told from those of {prefixes[longer]}")
                found.append(None)
            elif not prefix or pid is None:
                self.tree.errors.append(f"{where}: is not 'prefix identity'")
                found.append(None)
            else:
                camera = cameras[number - 1] if cameras else None
                found.append(None if pid == [-1] else self._tracklet(where, prefix, pid[0], camera))
        again = listed.repeated(tracklet for tracklet in found if tracklet)
        if again:
            self.tree.errors.append(f"{path}: {len(again)} tracklets are in several rows, e.g. {again[0]}")
        return found

    def _tracklet(self, where: str, prefix: str, pid: int, camera: int | None) -> Tracklet | None:
        folder, _, stem = prefix.rpartition("/")
        directory = self._directory(folder)
        there = self._names(directory)
        begin, end = (bisect.bisect_left(there, f"{stem}{bound}") for bound in ("_", chr(ord("_") + 1)))
        names = sorted(there[begin:end], key=listed.natural_key)
        if not names:
            self.tree.errors.append(f"{where}: there is no frame {self.tree.source / directory / stem}_*.jpg")
            return None
        cameras = {_camera(name) for name in names}
        if camera is not None:
            cameras = {camera, *(cameras - {None})}  # such copies may name their frames in another way
        number = cameras.pop()
        if cameras or number is None or number not in CAMERAS:
            listed_as = "" if camera is None else f", and is listed for camera {camera}"
            self.tree.errors.append(
                f"{where}: {names[0]} … do not name one camera of 1 to {CAMERAS[-1]} in their third field{listed_as}"
            )
            return None
        tracklet = Tracklet(
            tracklet_id=stem,
            pid=pid,
            camera=number,
            cam_name=f"C{number}",
            modality="rgb",
            frames=tuple(f"{directory}/{name}" for name in names),
        )
        return tracklet.thinned(self.max_frames) if self.max_frames else tracklet

    def _directory(self, folder: str) -> str:
        """The folder that a list means: some copies have one `tracklet` in place of a folder per split."""
        first, _, rest = folder.partition("/")
        places = (folder, f"tracklet/{rest}".rstrip("/") if first.startswith("tracklet") else f"tracklet/{folder}")
        return next((place for place in places if (self.tree.source / place).is_dir()), folder)

    def _list_folder(self, directory: str) -> list[str]:
        return sorted(self.tree.frames(directory))


def _camera(name: str) -> int | None:
    """The third field of a frame's name."""
    fields = name.split("_")
    return int(fields[2]) if len(fields) > 3 and fields[2].isascii() and fields[2].isdigit() else None
