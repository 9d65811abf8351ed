"""Which frames make a clip: the sampling rules of the field, and `ClipPlan`, the table a loader works through.

A plan is made on the host before anything is read: what an epoch shows is a pure function of the split's lengths
and a random generator, and the loader only decodes what stands in the table.
"""

from __future__ import annotations

import dataclasses

import numpy as np

RULES = ("chunk_first", "floor_first", "linspace", "dense", "packed", "windows")


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


def floor_first(count: np.ndarray, frames: int) -> np.ndarray:
    """The first frame of T blocks of ⌊n/T⌋ frames: the tail is never seen."""
    block = np.maximum(count // frames, 1)[:, None]
    return np.minimum(np.arange(frames) * block, count[:, None] - 1)


def linspace(count: np.ndarray, frames: int) -> np.ndarray:
    """⌊i·n/T⌋."""
    return np.arange(frames) * count[:, None] // frames


SINGLE_CLIP = {"chunk_first": chunk, "floor_first": floor_first, "linspace": linspace}


def plan_parts(
    length: np.ndarray,
    tracklet: np.ndarray,
    part: np.ndarray,
    *,
    parts: int,
    frames: int,
    rng: np.random.Generator | None = None,
) -> ClipPlan:
    """One clip of T frames from each given (tracklet, part); random within chunks where a generator is given."""
    start, count = part_bounds(length[tracklet], part, parts)
    index = start[:, None] + chunk(count, frames, rng)
    return ClipPlan(
        tracklet.astype(np.int32), part.astype(np.int32), index.astype(np.int32), np.ones(index.shape, bool)
    )


def plan_all_parts(length: np.ndarray, *, parts: int, frames: int) -> ClipPlan:
    """Every part of every tracklet, tracklet by tracklet: what an extraction pass reads."""
    tracklet = np.repeat(np.arange(len(length)), parts)
    part = np.tile(np.arange(parts), len(length))
    return plan_parts(length, tracklet, part, parts=parts, frames=frames)


def plan_tracklets(length: np.ndarray, *, rule: str, frames: int) -> ClipPlan:
    """Every tracklet's test clips under a rule.

    `chunk_first`, `floor_first` and `linspace` give one clip per tracklet. `dense` gives consecutive clips whose
    last one is filled by repeating its frames from the start; `packed` fills it with masked frames instead, so
    that every frame counts exactly once. `windows` gives clips that start every T / 2 frames as long as frames follow
    after them, at least one (TF-CLIP's iLIDS-VID).

    Raises:
      ValueError: an unknown rule.
    """
    rows = np.arange(len(length))
    if rule in SINGLE_CLIP:
        index = SINGLE_CLIP[rule](length, frames)
        tracklet, part, mask = rows, np.zeros_like(rows), np.ones(index.shape, bool)
    elif rule in ("dense", "packed"):
        clips = -(-length // frames)
        tracklet = np.repeat(rows, clips)
        part = np.arange(len(tracklet)) - np.repeat(np.cumsum(clips) - clips, clips)
        start = part * frames
        count = np.minimum(length[tracklet] - start, frames)[:, None]
        step = np.arange(frames)
        mask = (step < count) | (rule == "dense")
        index = start[:, None] + step % count
    elif rule == "windows":
        stride = max(frames // 2, 1)
        clips = np.maximum(-(-(length - frames) // stride), 1)
        tracklet = np.repeat(rows, clips)
        part = np.arange(len(tracklet)) - np.repeat(np.cumsum(clips) - clips, clips)
        index = np.minimum((part * stride)[:, None] + np.arange(frames), length[tracklet][:, None] - 1)
        mask = np.ones(index.shape, bool)
    else:
        raise ValueError(f"clip rule {rule!r} is not one of {', '.join(RULES)}")
    return ClipPlan(tracklet.astype(np.int32), part.astype(np.int32), index.astype(np.int32), mask)
