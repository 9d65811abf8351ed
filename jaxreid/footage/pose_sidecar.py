"""The sidecar of key points, or of 3-D joints, of a built data set, made from its frames.

What is found of a tracklet is kept at once, in a file of its own in `PREPARED/sidecars/KIND.partial-…`, so that a
run that was stopped goes on behind the last finished tracklet. Another backend has another such folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxreid.data.prepared import split_counts
from jaxreid.data.sidecars import SidecarWriter, free_place
from jaxreid.data.split import FrameReader, Split, open_split
from jaxreid.errors import UserError
from jaxreid.files import Held, held, written_aside
from jaxreid.footage.poses import JOINTS, PoseEstimator

KIND = "keypoints"


@dataclasses.dataclass(frozen=True)
class Made:
    """What a run made: tracklets, frames, and frames in which nobody was found; tracklets that were there before."""

    tracklets: int
    frames: int
    undetected: int
    taken_over: int


def make_poses(
    directory: Path,
    estimator: PoseEstimator,
    command: str,
    *,
    kind: str = KIND,
    overwrite: bool = False,
    batch: int = 16,
    show_progress: bool = True,
) -> Made:
    """Finds the points of every frame of every tracklet and writes them beside a prepared set.

    Args:
      directory: the prepared set.
      estimator: of `jaxreid.footage.poses`.
      command: that makes the sidecar anew; it is named to whoever misses an entry.
      kind: of sidecar.
      overwrite: replace a sidecar of this kind.
      batch: crops that the estimator gets at once.
      show_progress: a progress bar on stderr.

    Raises:
      UserError: there is a sidecar already and `overwrite` is false, a frame cannot be decoded, or another process is
        making the sidecar.
    """
    final = free_place(directory, kind, overwrite)
    key = hashlib.sha256(json.dumps(dict(estimator.meta), sort_keys=True).encode()).hexdigest()[:8]
    partial = final.with_name(f"{kind}.partial-{key}")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with held(final.with_name(f".{kind}.lock")):
            return _make(directory, estimator, command, kind, overwrite, batch, show_progress, partial)
    except Held as other:
        raise UserError(f"{other.holder} is making {final}") from None


def _make(
    directory: Path,
    estimator: PoseEstimator,
    command: str,
    kind: str,
    overwrite: bool,
    batch: int,
    show_progress: bool,
    partial: Path,
) -> Made:
    tracklets = tracklets_of(directory)
    frames = sum(len(split.frame_index(row)) for split, _, row in tracklets.values())
    files = {name: partial / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.npy" for name in tracklets}
    there = {name for name, file in files.items() if file.exists()}
    done = sum(len(split.frame_index(row)) for name, (split, _, row) in tracklets.items() if name in there)
    with tqdm(total=frames, initial=done, unit=" frames", disable=not show_progress) as bar:
        for name, (split, reader, row) in tracklets.items():
            if name in there:
                continue
            points = np.zeros((len(split.frame_index(row)), JOINTS, 3), np.float32)
            for start in range(0, len(points), batch):
                some = range(start, min(start + batch, len(points)))
                points[some.start : some.stop] = estimator(list(reader.decode_each(row, some)))
                bar.update(len(some))
            with written_aside(files[name], synced=True) as aside, aside.open("wb") as file:
                np.save(file, points)
    undetected = 0
    with SidecarWriter(directory, kind, {**estimator.meta, "command": command}, overwrite) as writer:
        for name, (split, _, row) in tracklets.items():
            points = np.load(files[name], allow_pickle=False)
            mask = points.any(axis=(1, 2))
            undetected += int((~mask).sum())
            writer.add(name, points, split.frame_index(row), mask)
        writer.note(undetected_frames=undetected)
    shutil.rmtree(partial)
    return Made(len(tracklets), frames, undetected, len(there))


def tracklets_of(directory: Path) -> dict[str, tuple[Split, FrameReader, int]]:
    """Where every tracklet is read, by name: some are in several splits."""
    found: dict[str, tuple[Split, FrameReader, int]] = {}
    for name, count in split_counts(directory).items():
        if count:
            split = open_split(directory, name)
            reader = split.reader(cache=False)
            for row, tracklet in enumerate(split.labels.names):
                found.setdefault(tracklet, (split, reader, row))
    return found
