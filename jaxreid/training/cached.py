"""Cached features: what a stage learns from in place of pixels, or beside them. Found once before the stage and kept
beside its frozen weights: not donated to its steps, not in its checkpoints, dropped when it ends."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.data.batch import Batch
from jaxreid.data.clips import ClipPlan, plan_all_parts
from jaxreid.errors import UserError
from jaxreid.methods.method import Cached, Features


class Cache(flax.struct.PyTreeNode):
    """Features of the training split; those of tracklet n stand from row start[n] on, part by part."""

    arrays: dict[str, jax.Array]  # name → [R, …]
    start: jax.Array  # i32[N]


def plan_of(cached: Cached, length: np.ndarray) -> ClipPlan:
    """The clips whose features are kept, tracklet by tracklet; of single frames, `part` is the frame's place."""
    if cached.parts:
        return plan_all_parts(length, parts=cached.parts, seq_len=cached.seq_len)
    start, rows = rows_of(cached, length)
    tracklet = np.repeat(np.arange(len(length)), length).astype(np.int32)
    place = (np.arange(rows) - start[tracklet]).astype(np.int32)
    return ClipPlan(tracklet, place, place[:, None], np.ones((rows, 1), bool))


def rows_of(cached: Cached, length: np.ndarray) -> tuple[np.ndarray, int]:
    """(the first row of every tracklet i32[N], rows in all)."""
    count = np.full_like(length, cached.parts) if cached.parts else length
    return (np.cumsum(count) - count).astype(np.int32), int(count.sum())


def fill(features: Features, start: np.ndarray, rows: int) -> Cache:
    """Features of an extraction pass in the order of their rows; padding goes nowhere."""
    begin = jnp.asarray(start)
    row = jnp.where(features.valid, begin[jnp.maximum(features.tracklet, 0)] + features.part, rows)

    def placed(x: jax.Array) -> jax.Array:
        return jnp.zeros((rows, *x.shape[1:]), x.dtype).at[row].set(x, mode="drop")

    return Cache(jax.tree.map(placed, features.arrays), begin)


def with_cached(cached: Cached | None, cache: Cache | None, batch: Batch) -> Batch:
    """A batch whose extras hold the cached features of its clips [B, …] or, of single frames, [B, T, …].

    Raises:
      UserError: features of frames, in a batch that does not say which frames it has.
    """
    if cached is None or cache is None:
        return batch
    row = cache.start[jnp.maximum(batch.tracklet, 0)]
    if cached.parts:
        row = row + batch.part
    elif "frame_place" in batch.extras:
        row = row[:, None] + batch.extras["frame_place"]
    else:
        raise UserError('features of single frames are cached: the method\'s extras("train") must name "frame_place"')
    found: Any = jax.tree.map(lambda x: x[row], cache.arrays)
    return batch.replace(extras=batch.extras | found)
