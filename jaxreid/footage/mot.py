"""Annotated videos in the MOT layout, as MOT17, SportsMOT, DanceTrack and others have it.

A sequence is `<sequence>/img1/000001.jpg` and so on, and `<sequence>/gt/gt.txt` with rows
`frame, id, x, y, w, h, considered, class, visibility`.
"""

from __future__ import annotations

import configparser
import dataclasses
from pathlib import Path

import numpy as np

from jaxreid.data.building.contents import list_frames, twins_error
from jaxreid.data.building.listed import natural_key, shorten
from jaxreid.errors import UserError
from jaxreid.footage.crops import Box

PEDESTRIAN = 1  # the class of people in all of these data sets


class MotError(UserError):
    """The tracklets cannot be made; the message says where and what to do."""


@dataclasses.dataclass(frozen=True)
class MotSequence:
    """One annotated video: images by frame number, and for each track its boxes (x, y, w, h) by frame number."""

    folder: Path
    images: dict[int, str]
    tracks: dict[int, dict[int, Box]]
    fps: float

    @property
    def annotations(self) -> Path:
        return self.folder / "gt" / "gt.txt"

    @property
    def first(self) -> int:
        """The frame that windows and strides are counted from: 1, or 0 where the images begin with it."""
        return min(1, *self.images)

    @property
    def length(self) -> int:
        return max(self.images) + 1 - self.first


def read_sequence(folder: Path, fps: float) -> MotSequence:
    """Reads the annotations of a sequence; no image is opened.

    Rows that are not to be considered, or not of people, are left out.

    Raises:
      MotError: rows are not of the expected form, a track is twice in a frame, frames are not counted as the images
        are, or two images have one number; the message lists the first of them.
    """
    images = _numbered_images(folder)
    tracks: dict[int, dict[int, Box]] = {}
    errors = []
    text = (folder / "gt" / "gt.txt").read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            cells = [float(cell) for cell in line.split(",")]
            (frame, track), (x, y, w, h) = map(int, cells[:2]), cells[2:6]
        except (ValueError, OverflowError):  # also of what is not finite
            errors.append(f"row {number} ({line}): is not frame, id, x, y, w, h, …, all of them numbers")
            continue
        considered, kind = [*cells[6:8], 1, PEDESTRIAN][:2]
        if not considered or kind not in (PEDESTRIAN, -1):  # −1 is unknown
            continue
        boxes = tracks.setdefault(track, {})
        if w <= 0 or h <= 0 or not np.isfinite(cells[2:6]).all():
            errors.append(f"row {number} ({line}): the box has no area")
        elif frame in boxes:
            errors.append(f"row {number} ({line}): track {track} is in frame {frame} already")
        else:
            boxes[frame] = (x, y, w, h)
    frames = {frame for boxes in tracks.values() for frame in boxes}
    first, last = min(images), max(images)
    if min(frames, default=first) < min(1, first) or (first == 0 and max(frames, default=last) == last + 1):
        errors.insert(0, f"frames {min(frames)} to {max(frames)} are not counted as the images are, {images[first]} to "
                         f"{images[last]}: correct the first column, or the images' names")  # fmt: skip
    if errors:
        raise MotError(f"{folder}/gt/gt.txt cannot be used:\n{shorten(errors)}")
    info = configparser.ConfigParser()
    info.read(folder / "seqinfo.ini")
    return MotSequence(folder, images, tracks, info.getfloat("Sequence", "frameRate", fallback=fps))


def _numbered_images(folder: Path) -> dict[int, str]:
    """The images of a sequence by frame number."""
    found = list_frames(folder / "img1")
    if found.twins:
        raise MotError(twins_error(folder / "img1", found.twins))
    images: dict[int, str] = {}
    for name in found.images:
        stem = Path(name).stem
        if stem.isascii() and stem.isdigit():
            other = images.setdefault(int(stem), f"img1/{name}")
            if other != f"img1/{name}":
                raise MotError(f"{folder}: {other} and img1/{name} have one number; take one of them away")
    if not images:
        raise MotError(f"{folder}/img1: holds no images called 000001.jpg or 000001.png")
    return images


def find_sequences(root: Path) -> list[Path]:
    """Folders with img1 and gt/gt.txt at or below a directory, in the order of their names.

    Raises:
      MotError: there is none.
    """
    found = sorted((path.parents[1] for path in root.rglob("gt/gt.txt")), key=lambda path: natural_key(str(path)))
    found = [folder for folder in found if (folder / "img1").is_dir()]
    if not found:
        raise MotError(f"{root}: holds no sequence, a folder with img1/000001.jpg … and gt/gt.txt")
    return found
