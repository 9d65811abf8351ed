"""Camera, platform and modality of a clip as a row of a learned table: what side information and prompts go by."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxreid.data.batch import Batch
from jaxreid.data.schema import MODALITIES, PLATFORMS
from jaxreid.errors import UserError


def condition_rows(columns: Sequence[str], cameras: int) -> int:
    """How many rows a table over these columns of a batch has; `cameras` of the training split.

    Raises:
      UserError: an unknown column.
    """
    rows = 1
    for column in columns:
        sizes = {"camera_index": cameras, "platform": len(PLATFORMS), "modality": len(MODALITIES)}
        if column not in sizes:
            raise UserError(f"column {column!r} is not one of {', '.join(sizes)}")
        rows *= sizes[column]
    return rows


def condition(batch: Batch, columns: Sequence[str], cameras: int) -> jax.Array:
    """The row of every clip, i32[B]: camera · views + view; −1 where any column is unknown."""
    row, known = jnp.zeros_like(batch.camera_index), batch.camera_index >= -1
    for column in columns:
        value = getattr(batch, column)
        row, known = row * condition_rows((column,), cameras) + value, known & (value >= 0)
    return jnp.where(known, row, -1)
