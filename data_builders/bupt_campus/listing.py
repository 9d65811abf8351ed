"""What BUPTCampus's lists say; no frame is looked at."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxreid.data.building import listed
from jaxreid.data.building.listed import Listing, Tracklet
from jaxreid.errors import DataSetError

from .published import PUBLISHED

EXPECTED = """expected:
  DIR/data_paths.json train.txt train_auxiliary.txt query.txt gallery.txt
  DIR/DATA/1/RGB/CQ1/1_RGB_CQ1_1_8535.jpg …  DIR/DATA/1/IR/CQ1/1_IR_CQ1_1_8535.jpg …
  DIR/DATA/1/FakeIR/CQ1/1_RGB_CQ1_1_8535.jpg …                                          (for fake_ir only)"""
LISTS = {"train": "train.txt", "train_aux": "train_auxiliary.txt", "query": "query.txt", "gallery": "gallery.txt"}
PATHS = "data_paths.json"
CAMERAS = {"LS3": 0, "G25": 1, "CQ1": 2, "W4": 3, "TSG1": 4, "TSG2": 5}
MODALITIES = {"RGB": "rgb", "IR": "ir", "FakeIR": "fake_ir"}
PAIR = "RGB/IR"  # in the training lists: a visible and an infrared tracklet, aligned pixel by pixel
_NAME = re.compile(r"(\d+)_(RGB|IR)_([A-Za-z0-9]+)_(\d+)_(\d+)\.jpg")


def list_dataset(source: Path, fake_ir: bool = False) -> Listing:
    """The tracklets of the lists, in their order; a pair is its visible tracklet, then its infrared one.

    With `fake_ir`, a third follows in `train`: infrared frames that the authors generated from the visible ones.

    Raises:
      DataSetError: a list is missing, a line or a frame's name is not of the expected form, or they contradict each
        other; the message lists every place.
    """
    files = listed.find_lists("bupt_campus", source, [PATHS, *LISTS.values()], (".",), EXPECTED)
    try:
        paths = json.loads(files[PATHS].read_bytes())
    except ValueError as error:
        raise DataSetError(f"bupt_campus: {files[PATHS]} is not JSON ({error})") from error
    lists = _Lists(source, paths)
    splits = {split: lists.read(split, files[file], fake_ir) for split, file in LISTS.items()}
    listed.refuse("bupt_campus", source, lists.errors)
    warnings = lists.warnings
    gallery = {tracklet.tracklet_id for tracklet in splits["gallery"]}
    again = [tracklet.tracklet_id for tracklet in splits["query"] if tracklet.tracklet_id in gallery]
    if again:
        warnings.append(f"{len(again)} query tracklets are also in the gallery, e.g. {again[0]}; a match may be itself")
    return Listing(
        splits=splits,
        digest=listed.digest(files.values()),
        differences=listed.differences(PUBLISHED, splits),
        warnings=warnings,
        facts={"fake_ir": fake_ir, "queries_in_gallery": len(again)},
    )


class _Lists:
    """Reads lists of tracklets whose frames `data_paths.json` names, and gathers what is wrong with them."""

    def __init__(self, source: Path, paths: Any) -> None:
        self.paths = paths
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.directory = _directory(source, paths)

    def read(self, split: str, path: Path, fake_ir: bool) -> list[Tracklet]:
        """The tracklets of one list, each line "identity modality camera tracklet"."""
        modalities = (PAIR,) if split.startswith("train") else ("RGB", "IR")
        tracklets: list[Tracklet] = []
        uneven = []
        for number, line in enumerate(listed.read_lines(path), start=1):
            where = f"{path}, row {number} ({line.strip()})"
            cells = line.split()
            if len(cells) != 4 or not cells[0].isdecimal() or cells[1] not in modalities:
                self.errors.append(
                    f"{where}: is not 'identity modality camera tracklet' with the modality {' or '.join(modalities)}"
                )
                continue
            pid, modality, camera, track = cells
            if camera not in CAMERAS:
                self.errors.append(f"{where}: unknown camera {camera!r}; there are {', '.join(CAMERAS)}")
                continue
            found = [self._tracklet(where, pid, one, camera, track, modality == PAIR) for one in modality.split("/")]
            if split == "train" and fake_ir:
                found.append(self._fake(found[0]))
            if len({len(tracklet.frames) for tracklet in found if tracklet}) > 1:
                uneven.append(where)
            tracklets += [tracklet for tracklet in found if tracklet]
        if uneven:
            self.warnings.append(f"{len(uneven)} pairs are of unequal length, e.g. {uneven[0]}")
        again = listed.repeated(tracklets)
        if again:
            self.errors.append(f"{path}: {len(again)} tracklets are in several rows, e.g. {again[0]}")
        return tracklets

    def _tracklet(self, where: str, pid: str, modality: str, camera: str, track: str, pair: bool) -> Tracklet | None:
        frames = self.paths
        for key in (pid, modality, camera, track):
            frames = frames.get(key) if isinstance(frames, dict) else None
        if not isinstance(frames, list) or not frames:
            self.errors.append(f"{where}: {PATHS} names no frames of {pid}/{modality}/{camera}/{track}")
            return None
        for frame in frames:
            name = _NAME.fullmatch(str(frame).rpartition("/")[2])
            if name is None:
                self.errors.append(f"{where}: {frame!r} ({PATHS}) is not named like 1_RGB_CQ1_1_8535.jpg")
                return None
            if name.group(1, 2, 3) != (pid, modality, camera):
                self.errors.append(
                    f"{where}: {frame!r} ({PATHS}) is of identity {name[1]}, modality {name[2]} and camera {name[3]}, "
                    f"the row of identity {pid}, modality {modality} and camera {camera}"
                )
                return None
        return Tracklet(
            tracklet_id=f"{pid}_{modality}_{camera}_{track}",
            pid=int(pid),
            camera=CAMERAS[camera],
            cam_name=camera,
            modality=MODALITIES[modality],
            frames=tuple(frames),
            directory=self.directory,
            pair_id=f"{pid}_{camera}_{track}" if pair else "",
        )

    def _fake(self, visible: Tracklet | None) -> Tracklet | None:
        """The generated infrared tracklet of a visible one: the same file names in another folder."""
        return visible and dataclasses.replace(
            visible,
            tracklet_id=visible.tracklet_id.replace("_RGB_", "_FakeIR_"),
            modality="fake_ir",
            frames=tuple(frame.replace("/RGB/", "/FakeIR/") for frame in visible.frames),
        )


def _directory(source: Path, paths: Any) -> str:
    """What `data_paths.json` counts from: the source, or the folder DATA in it."""
    for directory in ("", "DATA"):
        if any((source / directory / frame).parent.is_dir() for frame in _first_frames(paths)):
            return directory
    return ""


def _first_frames(paths: Any) -> Iterator[str]:
    """The first frame of every tracklet."""
    if isinstance(paths, dict):
        for below in paths.values():
            yield from _first_frames(below)
    elif isinstance(paths, list) and paths:
        yield str(paths[0])
