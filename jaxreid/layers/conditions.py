"""Camera, platform and modality of a clip as the row of a learned table, for side information and prompts."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxreid.data.batch import Batch
from jaxreid.data.schema import MODALITIES, PLATFORMS
from jaxreid.shapes import Array, Int

COLUMNS = {"camera_index": 0, "platform": len(PLATFORMS), "modality": len(MODALITIES)}  # values; 0 = as many as cameras


def condition_rows(columns: Sequence[str], cameras: int) -> int:
    """How many rows a table over these `COLUMNS` of a batch has; `cameras` of the training split."""
    rows = 1
    for column in columns:
        rows *= COLUMNS[column] or cameras
    return rows


def condition(batch: Batch, columns: Sequence[str], cameras: int) -> Int[Array, " clips"]:
    """The row of every clip, for each combination of values another; −1 where any column is unknown, or has no row."""
    row, known = jnp.zeros_like(batch.camera_index), batch.camera_index >= -1
    for column in columns:
        value, count = getattr(batch, column), condition_rows((column,), cameras)
        row, known = row * count + value, known & (value >= 0) & (value < count)
    return jnp.where(known, row, -1)
