"""Several forms of the same clips as one batch, and the rows of one form again."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxreid.data.batch import Batch


def in_views(batch: Batch, views: Sequence[jax.Array]) -> Batch:
    """A batch in which every clip stands once for each of several forms of its frames, one behind the other: where
    clips are spread over devices, none moves."""
    count = len(views)
    frames = jnp.stack(list(views), axis=1).reshape(-1, *batch.frames.shape[1:])
    rows = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), batch.replace(frames=batch.valid, extras={}))
    return rows.replace(frames=frames)


def of_view(x: jax.Array, number: int, count: int) -> jax.Array:
    """The rows of one view of a batch of `in_views`."""
    return x.reshape(-1, count, *x.shape[1:])[:, number]
