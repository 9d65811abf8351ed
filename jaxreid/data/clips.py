"""Clip sampling: which frames of a tracklet make a clip; and `ClipPlan`, the table that a loader works through.

A plan is made on the host before anything is read: what an epoch shows is a pure function of the split's lengths
and a random generator, and the loader only decodes what stands in the table.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxreid.errors import UserError

RULES = ("chunk_first", "floor_first", "linspace", "dense", "packed", "recombine", "windows")


@dataclasses.dataclass(frozen=True)
class ClipPlan:
    """M clips of T frames each, in the order in which they are read."""

    tracklet: np.ndarray  # i32[M], row in the split; −1 on rows that only fill a batch
    part: np.ndarray  # i32[M]
    frames: np.ndarray  # i32[M, T], index into the record's frames
    mask: np.ndarray  # bool[M, T], false on frames that only fill the clip

    def __len__(self) -> int:
        return len(self.tracklet)

    def padded(self, multiple: int) -> ClipPlan:
        """The plan with rows added (tracklet −1, nothing valid) up to a multiple of `multiple`."""
        extra = -len(self) % multiple
        fill = ((0, extra),)
        return ClipPlan(
            np.pad(self.tracklet, fill, constant_values=-1),
            np.pad(self.part, fill),
            np.pad(self.frames, (*fill, (0, 0))),
            np.pad(self.mask, (*fill, (0, 0))),
        )

    def rows(self, which: Any) -> ClipPlan:
        """Some of the rows: a slice or numbers."""
        return ClipPlan(self.tracklet[which], self.part[which], self.frames[which], self.mask[which])

    def first(self, count: int) -> ClipPlan:
        """The first `count` rows."""
        return self.rows(slice(count))

    def followed_by(self, other: ClipPlan) -> ClipPlan:
        """The rows of both, one after the other."""
        both = zip(vars(self).values(), vars(other).values(), strict=True)
        return ClipPlan(*(np.concatenate(columns) for columns in both))

    def unread(self, start: int) -> ClipPlan:
        """The rows from `start` on with nothing to read, as those that fill a batch."""
        return ClipPlan(
            np.full_like(self.tracklet[start:], -1),
            self.part[start:],
            self.frames[start:],
            np.zeros_like(self.mask[start:]),
        )


def part_bounds(length: np.ndarray, part: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """First frame and frame count (at least one) of temporal part s of S: [⌊s·n/S⌋, ⌊(s+1)·n/S⌋)."""
    start = np.minimum(part * length // parts, length - 1)
    stop = (part + 1) * length // parts
    return start, np.maximum(stop - start, 1)


def chunk(count: np.ndarray, frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """One frame of each of T equal chunks, [M, T]; the index list is padded with its last frame.

    The first frame of each chunk (`chunk_first`), or a random one where a generator is given.
    """
    size = -(-count // max(frames, 1))[:, None]
    offset = 0 if rng is None else rng.integers(0, np.broadcast_to(size, (len(count), frames)))
    return np.minimum(np.arange(frames) * size + offset, count[:, None] - 1)


def floor_first(count: np.ndarray, frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """The first frame of each of T blocks of ⌊n/T⌋ frames, without the tail; or, where a generator is given, a random
    frame of each, and the last block takes the tail too."""
    size = np.maximum(count // frames, 1)[:, None]
    start = np.minimum(np.arange(frames) * size, count[:, None] - 1)
    if rng is None:
        return start
    stop = np.minimum(start + size, count[:, None])
    stop[:, -1] = count
    return rng.integers(start, stop)


def segments(count: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """A random frame of each of T segments [⌊i·n/T⌋, ⌊(i+1)·n/T⌋); sorted random frames where n < T."""
    bounds = np.arange(frames + 1) * count[:, None] // frames
    drawn = rng.integers(bounds[:, :-1], np.maximum(bounds[:, 1:], bounds[:, :-1] + 1))
    some = np.sort(rng.integers(0, np.broadcast_to(count[:, None], drawn.shape)), axis=1)
    return np.where(count[:, None] < frames, some, drawn)


def random_frames(count: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """T different random frames in their order; where n < T some of them more than once."""
    return np.stack([np.sort(rng.choice(n, frames, replace=n < frames)) for n in count.tolist()])


def strided(count: np.ndarray, frames: int, rng: np.random.Generator, stride: int = 1) -> np.ndarray:
    """T frames, every `stride`-th from a random start. In a short tracklet the stride shrinks until T frames fit; one
    of fewer than T frames is repeated from its start."""
    room = (count - 1) // max(frames - 1, 1)
    step = np.clip(room, 1, stride)
    start = rng.integers(0, np.maximum(count - (frames - 1) * step, 1))
    return (start[:, None] + np.arange(frames) * step[:, None]) % count[:, None]


def linspace(count: np.ndarray, frames: int) -> np.ndarray:
    """⌊i·n/T⌋."""
    return np.arange(frames) * count[:, None] // frames


SINGLE_CLIP = {"chunk_first": chunk, "floor_first": floor_first, "linspace": linspace}

# How training draws the frames of a clip. The first two are the random forms of `chunk_first` and `floor_first`.
TRAINING_CLIPS = {
    "chunk": chunk,
    "floor": floor_first,
    "segments": segments,
    "random": random_frames,
    "consecutive": strided,
    "strided": strided,
}


def plan_parts(
    length: np.ndarray,
    tracklet: np.ndarray,
    part: np.ndarray,
    *,
    parts: int,
    seq_len: int,
    rng: np.random.Generator | None = None,
    clip_sampling: str = "chunk",
    stride: int = 1,
) -> ClipPlan:
    """One clip of T frames from each given (tracklet, part): by `clip_sampling` (of `TRAINING_CLIPS`) where a generator
    is given, otherwise the first frame of each chunk. `stride` is that of `strided`.

    Raises:
      UserError: `clip_sampling` is none of them.
    """
    if clip_sampling not in TRAINING_CLIPS:
        raise UserError(f"clip_sampling={clip_sampling!r} is not one of {', '.join(TRAINING_CLIPS)}")
    start, count = part_bounds(length[tracklet], part, parts)
    if rng is None:
        index = chunk(count, seq_len)
    elif clip_sampling == "strided":
        index = strided(count, seq_len, rng, stride)
    else:
        index = TRAINING_CLIPS[clip_sampling](count, seq_len, rng)
    index = start[:, None] + index
    return ClipPlan(
        tracklet.astype(np.int32), part.astype(np.int32), index.astype(np.int32), np.ones(index.shape, bool)
    )


def plan_all_parts(length: np.ndarray, *, parts: int, seq_len: int) -> ClipPlan:
    """Every part of every tracklet, tracklet by tracklet: what an extraction pass reads."""
    tracklet = np.repeat(np.arange(len(length)), parts)
    part = np.tile(np.arange(parts), len(length))
    return plan_parts(length, tracklet, part, parts=parts, seq_len=seq_len)


def plan_tracklets(length: np.ndarray, clip_sampling: str, seq_len: int, *, stride: int = 1) -> ClipPlan:
    """Every tracklet's test clips.

    chunk_first, floor_first, linspace: one clip per tracklet.
    dense: ⌈n/T⌉ clips of consecutive frames; the last one is filled by repeating its own frames from the first on.
    packed: the same, the last one filled with masked frames, so that every frame counts exactly once.
    recombine: ⌈n/T⌉ clips, of which `stride` interleave over T·`stride` frames; the full ones that are left at the end
      interleave with a smaller stride, and the last one is filled as in dense.
    windows: clips that start every T / 2 frames as long as frames follow, at least one (TF-CLIP's iLIDS-VID).

    Raises:
      UserError: `clip_sampling` is none of them.
    """
    rows = np.arange(len(length))
    if clip_sampling in SINGLE_CLIP:
        index = SINGLE_CLIP[clip_sampling](length, seq_len)
        tracklet, part, mask = rows, np.zeros_like(rows), np.ones(index.shape, bool)
    elif clip_sampling in ("dense", "packed", "recombine"):
        clips = -(-length // seq_len)
        tracklet = np.repeat(rows, clips)
        part = np.arange(len(tracklet)) - np.repeat(np.cumsum(clips) - clips, clips)
        start = part * seq_len
        count = np.minimum(length[tracklet] - start, seq_len)[:, None]
        step = np.arange(seq_len)
        mask = (step < count) | (clip_sampling != "packed")
        apart = np.ones_like(part)
        if clip_sampling == "recombine":
            whole = length[tracklet] // seq_len
            block = part // stride * stride  # first clip of those that are interleaved with this one
            apart = np.where(part < whole, np.minimum(stride, whole - block), 1)
            start = np.where(part < whole, block * seq_len + part - block, start)
        index = start[:, None] + apart[:, None] * (step % count)
    elif clip_sampling == "windows":
        stride = max(seq_len // 2, 1)
        clips = np.maximum(-(-(length - seq_len) // stride), 1)
        tracklet = np.repeat(rows, clips)
        part = np.arange(len(tracklet)) - np.repeat(np.cumsum(clips) - clips, clips)
        index = np.minimum((part * stride)[:, None] + np.arange(seq_len), length[tracklet][:, None] - 1)
        mask = np.ones(index.shape, bool)
    else:
        raise UserError(f"clip_sampling={clip_sampling!r} is not one of {', '.join(RULES)}")
    return ClipPlan(tracklet.astype(np.int32), part.astype(np.int32), index.astype(np.int32), mask)
