"""Tracklets from a tracking data set in the MOT layout (`jaxreid.footage.mot`).

What is made is what `sports_vreid` and `dance_vreid` are built from:

    OUT/{train,query,gallery}/<pid>/<pid>_c<cam>_s<seq>_t<track>/<frame>.jpg
    OUT/tracklets.json     settings, sequences and counts

An identity is a track of one sequence; the same person in two sequences counts as two. Each sequence is cut into
windows of time that act as cameras, so that the usual removal of same-camera matches removes those of one window. A
track is cut at their borders and where it was not seen for long. Of every test identity that is seen in two windows
the first tracklet is a query; all others are gallery.

OUT is whole or absent.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxreid.data.building.captioned_folders import tracklet_name
from jaxreid.data.building.listed import DEFAULT_MAX_EXCLUDED, shorten
from jaxreid.data.names import printable
from jaxreid.data.pictures import PictureError, load, to_rgb
from jaxreid.footage.cameras import RUN_RECORD
from jaxreid.footage.crops import Sighting, Tracklet, crop
from jaxreid.footage.mot import MotError, MotSequence, find_sequences, read_sequence

SPLITS = ("train", "query", "gallery")


@dataclasses.dataclass(frozen=True)
class MotSettings:
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


def make_mot_tracklets(
    train: Sequence[Path],
    test: Sequence[Path],
    out: Path,
    settings: MotSettings | None = None,
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
    settings = settings or MotSettings()
    if out.exists():
        raise MotError(f"{out} exists; remove it or choose another --out")
    partial = out.with_name(f"{out.name}.partial")
    plan = _plan(train, test, partial, settings)
    tracklets = [tracklet for _, cut in plan for tracklet in cut]
    by_split = {split: [t for t in tracklets if t.folder.is_relative_to(partial / split)] for split in SPLITS}
    if missing := [split for split, members in by_split.items() if not members]:
        raise MotError(
            f"no tracklet of at least {settings.min_frames} frames is left in {', '.join(missing)}; a query needs "
            "somebody who is seen in two of the windows of a test sequence (--segments, --min_frames)"
        )
    shutil.rmtree(partial, ignore_errors=True)
    images = sum(len({frame for tracklet in cut for frame in tracklet.sightings}) for _, cut in plan)
    faults: list[str] = []
    outside: list[str] = []
    with tqdm(total=images, unit=" frames", desc="cutting", mininterval=0.5, leave=False) as bar:
        for sequence, cut in plan:
            outside += _write(sequence, cut, faults, bar)
            if len(faults) > max_excluded * images:
                raise MotError(
                    f"{len(faults)} of {images} images cannot be used, more than {max_excluded:.1%} "
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
            for number, (sequence, _) in enumerate(plan, start=1)
        ],
        "counts": {
            split: _counts(members)
            for split, members in by_split.items()
            if any(tracklet.crops for tracklet in members)
        },
        "excluded_images": faults,
        "outside_boxes": outside,
    }
    if lost := set(SPLITS) - run["counts"].keys():
        raise MotError(f"no crop is left in {', '.join(sorted(lost))}:\n{shorten(faults + outside)}")
    (partial / RUN_RECORD).write_text(json.dumps(run, indent=1, ensure_ascii=False), encoding="utf-8")
    partial.rename(out)
    return run


def _plan(
    train: Sequence[Path], test: Sequence[Path], out: Path, settings: MotSettings
) -> list[tuple[MotSequence, list[Tracklet]]]:
    """Every sequence with its tracklets; identities count on from one sequence to the next."""
    plan: list[tuple[MotSequence, list[Tracklet]]] = []
    pid = 1
    for roots, is_test in ((train, False), (test, True)):
        for folder in (folder for root in roots for folder in find_sequences(root)):
            if any(folder.samefile(sequence.folder) for sequence, _ in plan):
                raise MotError(f"{folder}: is given more than once; a sequence is either of train or of test")
            sequence = read_sequence(folder, settings.fps)
            plan.append((sequence, cut_tracks(sequence, len(plan) + 1, pid, out, settings, is_test)))
            pid += len(sequence.tracks)
    return plan


def _counts(tracklets: Sequence[Tracklet]) -> dict[str, int]:
    """Of the tracklets that have crops."""
    written = [tracklet for tracklet in tracklets if tracklet.crops]
    return {
        "identities": len({tracklet.folder.parent for tracklet in written}),
        "tracklets": len(written),
        "frames": sum(tracklet.crops for tracklet in written),
    }


def cut_tracks(
    sequence: MotSequence, number: int, first_pid: int, out: Path, settings: MotSettings, is_test: bool
) -> list[Tracklet]:
    """The tracklets of a sequence below `out`, identity by identity in the order of the track numbers; see the module.

    Args:
      sequence, number: the sequence, and what counts it.
      first_pid: the identity of its first track.
      settings: how tracks are cut.
      is_test: whether the tracklets are query and gallery, or training.
    """
    found = []
    for pid, (track, boxes) in enumerate(sorted(sequence.tracks.items()), start=first_pid):
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
        crosses = len({camera for camera, _ in long}) > 1
        for count, (camera, frames) in enumerate(long, start=1):
            split = "train" if not is_test else "query" if count == 1 and crosses else "gallery"
            folder = out / split / f"{pid:04d}" / tracklet_name(pid, camera, number, count)
            found.append(Tracklet(str(camera), str(track), folder, {frame: Sighting(boxes[frame]) for frame in frames}))
    return found


def _write(sequence: MotSequence, tracklets: Sequence[Tracklet], faults: list[str], bar: tqdm) -> list[str]:
    """Writes the crops of a sequence; each image is decoded once.

    What is wrong with images goes to `faults`. Returns a line for every track with boxes that no pixel lies in.
    """
    wanted: dict[int, list[Tracklet]] = {}
    for tracklet in tracklets:
        for frame in tracklet.sightings:
            wanted.setdefault(frame, []).append(tracklet)
    outside: Counter[int] = Counter()
    for frame in sorted(wanted):
        bar.update()
        name = sequence.images.get(frame)
        path = sequence.folder / (name or f"img1/{frame:06d}.jpg")
        try:
            image = _read(path)
        except PictureError as error:
            faults.append(f"{printable(path)}: {error}")
            continue
        for tracklet in wanted[frame]:
            pixels = crop(image, tracklet.sightings[frame].box)
            if pixels is None:
                outside[int(tracklet.recording)] += 1
            else:
                tracklet.add_crop(frame, pixels)
                tracklet.write()
    annotations = printable(sequence.annotations)
    return [
        f"{annotations}: track {track}: {count} boxes lie outside of the picture"
        for track, count in sorted(outside.items())
    ]


def _read(path: Path) -> np.ndarray:
    """An image, u8[H, W, 3] in BGR order. Raises PictureError where it is missing, damaged or of 16 bits."""
    try:
        stored = load(path.read_bytes())
    except OSError as error:
        raise PictureError("is missing" if isinstance(error, FileNotFoundError) else error.strerror) from error
    if stored.dtype != np.uint8:
        raise PictureError("has 16 bits per value; convert the whole sequence to 8 bits, by one range of values")
    return np.ascontiguousarray(to_rgb(stored)[..., ::-1])
