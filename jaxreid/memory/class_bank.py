"""Class banks: one row per training identity in the joint space, which image features are classified against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def group_mean(values: Array, group: Array, groups: int) -> tuple[Array, Array]:
    """(means f32[G, E], which groups have any row bool[G]) of rows [M, E] by group i32[M]; −1 counts nowhere."""
    group = jnp.where(group >= 0, group, groups)
    total = jax.ops.segment_sum(values.astype(jnp.float32), group, groups + 1)[:groups]
    count = jax.ops.segment_sum(jnp.ones_like(group), group, groups + 1)[:groups]
    return total / jnp.maximum(count, 1)[:, None], count > 0


def image_memory(features: Array, tracklet: Array, valid: Array, identity: Array, identities: int) -> Array:
    """TF-CLIP's memory: the mean of an identity's tracklets, each the mean of its clips. A mean of means, because a
    long tracklet counts no more than a short one; not normalised.

    Args:
      features: [M, E], one row per clip; tracklet: i32[M]; valid: bool[M].
      identity: i32[N], of every tracklet, −1 = none.

    Returns:
      f32[C, E], a zero row for an identity without tracklets.
    """
    means, seen = group_mean(features, jnp.where(valid, tracklet, -1), len(identity))
    return group_mean(means, jnp.where(seen, identity, -1), identities)[0]
