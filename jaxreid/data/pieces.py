"""What an epoch shows: the tracklets that a sampler draws become clips, long ones in pieces where that is asked for.

A piece is drawn as if it were a tracklet (LS-VID and MEVID train on pieces of 48 or 64 consecutive frames). It is no
more than a row of a table, so that nothing is built anew and no picture copied.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxreid.data.clips import ClipPlan, plan_parts
from jaxreid.data.samplers import Columns, Sampler
from jaxreid.data.split import UNKNOWN
from jaxreid.errors import UserError


class Pieces(NamedTuple):
    """M pieces of N tracklets, tracklet by tracklet; each i64[M]."""

    tracklet: np.ndarray  # row in the split
    number: np.ndarray  # place in the tracklet, from 0
    start: np.ndarray  # first frame
    length: np.ndarray


def cut(length: np.ndarray, frames: int) -> Pieces:
    """Pieces of `frames` consecutive frames, of which the last takes the remainder; 0 leaves all tracklets whole.

    ⌊n / frames⌋ of a tracklet of n frames, and shorter ones stay as they are.
    """
    count = np.maximum(length // frames, 1) if frames else np.ones_like(length)
    tracklet = np.repeat(np.arange(len(length)), count)
    number = np.arange(len(tracklet)) - np.repeat(np.cumsum(count) - count, count)
    start = number * frames
    is_last = number == count[tracklet] - 1
    return Pieces(tracklet, number, start, np.where(is_last, length[tracklet] - start, frames))


def plan_epoch(
    sampler: Sampler,
    labels: np.ndarray,
    columns: Columns,
    length: np.ndarray,
    rng: np.random.Generator,
    *,
    seq_len: int,
    piece_len: int = 0,
    clip_sampling: str = "chunk",
    stride: int = 1,
) -> ClipPlan:
    """The training clips of an epoch, batch by batch.

    Args:
      sampler: draws the tracklets, or their pieces.
      labels: i32[N], what they are drawn by.
      columns: what else the sampler may know of the N tracklets.
      length: i32[N], frames of each.
      rng: decides all that is random.
      seq_len, clip_sampling, stride: frames of a clip, and how they are chosen (`plan_parts`).
      piece_len: frames of the pieces that longer tracklets are cut into; 0 = they stay whole.

    Raises:
      UserError: the sampler cannot fill a batch, or is to divide pieces into parts once more.
    """
    if piece_len and sampler.parts > 1:
        raise UserError(
            f"tracklets are cut into pieces of {piece_len} frames, and the sampler would divide each into "
            f"{sampler.parts} parts, which extraction does not know: set one of the two to its default"
        )
    pieces = cut(length, piece_len)
    rows = pieces.tracklet
    columns = Columns(*(column[rows] for column in columns))
    # Pieces of a pair show the same moment only where they have the same place in their tracklets.
    pair = columns.pair * (pieces.number.max(initial=0) + 1) + pieces.number
    columns = columns._replace(pair=np.where(columns.pair >= 0, pair, UNKNOWN))
    drawn, part = (table.reshape(-1) for table in sampler.draw(labels[rows], columns, rng))
    plan = plan_parts(
        pieces.length,
        drawn,
        part,
        parts=sampler.parts,
        seq_len=seq_len,
        rng=rng,
        clip_sampling=clip_sampling,
        stride=stride,
    )
    return dataclasses.replace(
        plan,
        tracklet=np.where(drawn >= 0, rows[drawn], UNKNOWN).astype(np.int32),
        frames=(plan.frames + pieces.start[drawn][:, None]).astype(np.int32),
    )
