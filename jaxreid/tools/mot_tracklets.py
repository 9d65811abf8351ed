"""Tracklets from a tracking data set: `jaxreid mot-tracklets --train DIR --test DIR --out DIR`.

Below each DIR lie sequences in the MOT layout, `<sequence>/img1/000001.jpg` and `<sequence>/gt/gt.txt` with rows
`frame, id, x, y, w, h, considered, class, visibility` (MOT17, SportsMOT, DanceTrack, …). What is made is what
`sports_vreid` and `dance_vreid` are built from:

    OUT/{train,query,gallery}/<pid>/<pid>_c<cam>_s<seq>_t<track>/<frame>.jpg
    OUT/tracklets.json     settings, sequences and counts

An identity is a track of one sequence; the same person in two sequences counts as two. Each sequence is cut into
windows of time that act as cameras, so that the usual removal of same-camera matches removes those of one window. A
track is cut at their borders and where it was not seen for long. Of every test identity that is seen in two windows
the first tracklet is a query; all others are gallery.

OUT is whole or absent.
"""

from __future__ import annotations

import argparse
import configparser
import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from jaxreid.data.building.captioned_folders import tracklet_name
from jaxreid.data.building.contents import list_frames, twins_error
from jaxreid.data.building.listed import DEFAULT_MAX_EXCLUDED, natural_key, shorten
from jaxreid.data.names import printable
from jaxreid.data.pictures import PictureError, load, to_rgb
from jaxreid.errors import UserError, command
from jaxreid.files import expand
from jaxreid.tools import tracklets
from jaxreid.tools.tracklets import JPEG_QUALITY

PEDESTRIAN = 1  # the class of people in all of these data sets


class MotError(UserError):
    """The tracklets cannot be made; the message says where and what to do."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How tracks are cut.

    Attributes:
      segments: windows of time per sequence, which act as cameras.
      max_gap: seconds that a track may be unseen within a tracklet.
      min_frames: shorter tracklets are left out.
      stride: keep every `stride`-th frame.
      fps: frames per second of sequences that have no seqinfo.ini.
    """

    segments: int = 2
    max_gap: float = 1.0
    min_frames: int = 8
    stride: int = 1
    fps: float = 25.0

    def __post_init__(self) -> None:
        if min(self.segments, self.min_frames, self.stride) < 1 or self.max_gap < 0 or self.fps <= 0:
            raise MotError(
                "--segments, --min_frames, --stride must be at least 1, --fps above 0, --max_gap not below 0"
            )


@dataclasses.dataclass(frozen=True)
class MotSequence:
    """One annotated video: images by frame number, and for each track its boxes (x, y, w, h) by frame number."""

    folder: Path
    images: dict[int, str]
    tracks: dict[int, dict[int, tuple[float, float, float, float]]]
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


@dataclasses.dataclass
class Cut:
    """A tracklet to be: which boxes of which sequence become its frames."""

    sequence: int
    pid: int
    camera: int
    track: int  # counts the tracklets of an identity
    annotated: int  # the track's number in the annotations
    boxes: dict[int, tuple[float, float, float, float]]
    split: str = "train"

    @property
    def folder(self) -> str:
        name = tracklet_name(self.pid, self.camera, self.sequence, self.track)
        return f"{self.split}/{self.pid:04d}/{name}"


# --- what the annotations say ----------------------------------------------------------------------------------------


def read_sequence(folder: Path, fps: float) -> MotSequence:
    """Reads the annotations of a sequence; no image is opened.

    Rows that are not to be considered, or not of people, are left out.

    Raises:
      MotError: rows are not of the expected form, a track is twice in a frame, frames are not counted as the images
        are, or two images have one number; the message lists the first of them.
    """
    images = _numbered_images(folder)
    tracks: dict[int, dict[int, tuple[float, float, float, float]]] = {}
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


def cut_tracks(sequence: MotSequence, number: int, first_pid: int, settings: Settings) -> list[Cut]:
    """The tracklets of a sequence, identity by identity in the order of the track numbers; see the module."""
    cuts: list[Cut] = []
    for pid, (annotated, boxes) in enumerate(sorted(sequence.tracks.items()), start=first_pid):
        pieces: list[tuple[int, list[int]]] = []
        for frame in sorted(boxes):
            since = frame - sequence.first
            if since % settings.stride:
                continue
            camera = min(since * settings.segments // sequence.length, settings.segments - 1) + 1
            gap = pieces and frame - pieces[-1][1][-1] > max(settings.max_gap * sequence.fps, settings.stride)
            if not pieces or pieces[-1][0] != camera or gap:
                pieces.append((camera, []))
            pieces[-1][1].append(frame)
        long = [(camera, frames) for camera, frames in pieces if len(frames) >= settings.min_frames]
        cuts += [
            Cut(number, pid, camera, track, annotated, {frame: boxes[frame] for frame in frames})
            for track, (camera, frames) in enumerate(long, start=1)
        ]
    return cuts


def divide_test(cuts: Sequence[Cut]) -> None:
    """Makes test tracklets query or gallery: the first one of everybody who is seen in two windows is a query."""
    cameras: dict[int, set[int]] = {}
    for cut in cuts:
        cameras.setdefault(cut.pid, set()).add(cut.camera)
    for cut in cuts:
        cut.split = "query" if cut.track == 1 and len(cameras[cut.pid]) > 1 else "gallery"


# --- the run ---------------------------------------------------------------------------------------------------------


def make_tracklets(
    train: Sequence[Path],
    test: Sequence[Path],
    out: Path,
    settings: Settings | None = None,
    max_excluded: float = DEFAULT_MAX_EXCLUDED,
) -> dict[str, Any]:
    """Cuts the tracklets of sequences into `out` and returns what `tracklets.json` holds.

    Args:
      train, test: directories with the sequences of each half.
      out: folder to make; must not exist.
      settings: how tracks are cut.
      max_excluded: the largest share of images that may be unusable.

    Raises:
      MotError: `out` exists, annotations are not as expected, nobody of the test is seen in two windows, too many
        images are missing or damaged, or a split has no box inside of its pictures.
    """
    settings = settings or Settings()
    if out.exists():
        raise MotError(f"{out} exists; remove it or choose another --out")
    sequences, cuts = _plan(train, test, settings)
    missing = [split for split in ("train", "query", "gallery") if not any(cut.split == split for cut in cuts)]
    if missing:
        raise MotError(
            f"no tracklet of at least {settings.min_frames} frames is left in {', '.join(missing)}; a query needs "
            "somebody who is seen in two of the windows of a test sequence (--segments, --min_frames)"
        )
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    frames = {(cut.sequence, frame) for cut in cuts for frame in cut.boxes}
    faults: list[str] = []
    written: Counter[str] = Counter()
    outside: Counter[tuple[int, int]] = Counter()  # boxes by sequence and annotated track
    with tqdm(total=len(frames), unit=" frames", desc="cutting", mininterval=0.5, leave=False) as bar:
        for number, sequence in enumerate(sequences, start=1):
            mine = [cut for cut in cuts if cut.sequence == number]
            for folder, name, pixels in _crops(sequence, mine, faults, outside, bar):
                (partial / folder).mkdir(parents=True, exist_ok=True)
                _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
                (partial / folder / name).write_bytes(jpeg.tobytes())
                written[folder] += 1
            if len(faults) > max_excluded * len(frames):
                raise MotError(
                    f"{len(faults)} of {len(frames)} images cannot be used, more than {max_excluded:.1%} "
                    f"(--max_excluded):\n{shorten(faults)}"
                )
    run = {
        "settings": dataclasses.asdict(settings),
        "construction": "own construction from tracking annotations",
        "sequences": [
            {
                "number": number,
                "folder": printable(sequence.folder),
                "fps": sequence.fps,
                "tracks": len(sequence.tracks),
            }
            for number, sequence in enumerate(sequences, start=1)
        ],
        "counts": {
            split: {
                "identities": len({cut.pid for cut in members}),
                "tracklets": len(members),
                "frames": sum(written[cut.folder] for cut in members),
            }
            for split in ("train", "query", "gallery")
            if (members := [cut for cut in cuts if cut.split == split and written[cut.folder]])
        },
        "excluded_images": faults,
        "outside_boxes": [
            f"{printable(sequences[number - 1].annotations)}: track {track}: {count} boxes lie outside of the picture"
            for (number, track), count in sorted(outside.items())
        ],
    }
    if lost := {"train", "query", "gallery"} - run["counts"].keys():
        raise MotError(f"no crop is left in {', '.join(sorted(lost))}:\n{shorten(faults + run['outside_boxes'])}")
    (partial / "tracklets.json").write_text(json.dumps(run, indent=1, ensure_ascii=False), encoding="utf-8")
    partial.rename(out)
    return run


def _plan(train: Sequence[Path], test: Sequence[Path], settings: Settings) -> tuple[list[MotSequence], list[Cut]]:
    """The sequences, numbered from 1, and the tracklets of all; identities count on from one sequence to the next."""
    sequences: list[MotSequence] = []
    cuts: list[Cut] = []
    pid = 1
    for roots, is_test in ((train, False), (test, True)):
        for folder in (folder for root in roots for folder in find_sequences(root)):
            if any(folder.samefile(sequence.folder) for sequence in sequences):
                raise MotError(f"{folder}: is given more than once; a sequence is either of train or of test")
            sequences.append(read_sequence(folder, settings.fps))
            found = cut_tracks(sequences[-1], len(sequences), pid, settings)
            if is_test:
                divide_test(found)
            cuts += found
            pid += len(sequences[-1].tracks)
    return sequences, cuts


def _crops(
    sequence: MotSequence, cuts: Sequence[Cut], faults: list[str], outside: Counter[tuple[int, int]], bar: tqdm
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Folder, file name and BGR pixels of every box; each image is decoded once.

    What is wrong with images goes to `faults`, boxes that no pixel lies in are counted in `outside`.
    """
    wanted: dict[int, list[Cut]] = {}
    for cut in cuts:
        for frame in cut.boxes:
            wanted.setdefault(frame, []).append(cut)
    whole = tracklets.Settings()
    for frame in sorted(wanted):
        bar.update()
        name = sequence.images.get(frame)
        path = sequence.folder / (name or f"img1/{frame:06d}.jpg")
        try:
            image = _read(path)
        except PictureError as error:
            faults.append(f"{printable(path)}: {error}")
            continue
        for cut in wanted[frame]:
            pixels = tracklets.crop(image, np.asarray(cut.boxes[frame]), whole)
            if pixels is None:
                outside[cut.sequence, cut.annotated] += 1
            else:
                yield cut.folder, f"{frame:06d}.jpg", pixels


def _read(path: Path) -> np.ndarray:
    """An image, u8[H, W, 3] in BGR order. Raises PictureError where it is missing, damaged or of 16 bits."""
    try:
        stored = load(path.read_bytes())
    except OSError as error:
        raise PictureError("is missing" if isinstance(error, FileNotFoundError) else error.strerror) from error
    if stored.dtype != np.uint8:
        raise PictureError("has 16 bits per value; convert the whole sequence to 8 bits, by one range of values")
    return np.ascontiguousarray(to_rgb(stored)[..., ::-1])


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    parser = argparse.ArgumentParser(
        prog="jaxreid mot-tracklets",
        description="Cut tracklets from a tracking data set in the MOT layout, for sports_vreid and dance_vreid.",
    )
    default = Settings()
    add = parser.add_argument
    add("--train", nargs="+", type=expand, required=True, metavar="DIR", help="directories with training sequences")
    add("--test", nargs="+", type=expand, required=True, metavar="DIR", help="directories with test sequences")
    add("--out", type=expand, required=True, metavar="DIR", help="folder to make")
    add("--segments", type=int, default=default.segments, metavar="N",
        help="windows of time per sequence, which act as cameras (default %(default)s)")  # fmt: skip
    add("--max_gap", type=float, default=default.max_gap, metavar="S",
        help="cut a track that was not seen for longer, in seconds (default %(default)s)")  # fmt: skip
    add("--min_frames", type=int, default=default.min_frames, help="shortest tracklet (default %(default)s)")
    add("--stride", type=int, default=default.stride, help="keep every n-th frame (default %(default)s)")
    add("--fps", type=float, default=default.fps, help="of sequences without seqinfo.ini (default %(default)s)")
    add("--max_excluded", type=float, default=DEFAULT_MAX_EXCLUDED, metavar="SHARE",
        help="largest share of images that may be unusable (default %(default)s)")  # fmt: skip
    options = parser.parse_args(arguments)
    settings = Settings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)})
    run = make_tracklets(options.train, options.test, options.out, settings, options.max_excluded)
    if run["excluded_images"]:
        print(f"{len(run['excluded_images'])} images cannot be used:\n{shorten(run['excluded_images'])}")
    if run["outside_boxes"]:
        print(f"{len(run['outside_boxes'])} tracks leave the picture:\n{shorten(run['outside_boxes'])}")
    for split, counts in run["counts"].items():
        print(f"{split:>10}: " + ", ".join(f"{value} {what}" for what, value in counts.items()))
    print(options.out)
    return 0
