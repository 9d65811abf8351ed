"""Class banks: one row per training identity in the joint space, which image features are classified against; or two,
that follow the features (CLIMB-ReID)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxreid.arrays import unit_rows
from jaxreid.shapes import Array, Bool, Float, Int


def group_mean(
    values: Float[Array, "rows dim"], group: Int[Array, " rows"], groups: int
) -> tuple[Float[Array, "{groups} dim"], Bool[Array, " {groups}"]]:
    """(means, which groups have any row) of rows by group; −1 counts nowhere."""
    group = jnp.where(group >= 0, group, groups)
    total = jax.ops.segment_sum(values.astype(jnp.float32), group, groups + 1)[:groups]
    count = jax.ops.segment_sum(jnp.ones_like(group), group, groups + 1)[:groups]
    return total / jnp.maximum(count, 1)[:, None], count > 0


def image_memory(
    features: Float[Array, "clips dim"],
    tracklet: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
    identity: Int[Array, " tracklets"],
    num_classes: int,
) -> Float[Array, "{num_classes} dim"]:
    """TF-CLIP's memory: the mean of an identity's tracklets, each the mean of its clips. A mean of means, because a
    long tracklet counts no more than a short one; not normalized.

    Args:
      identity: of every tracklet, −1 = none.

    Returns:
      A zero row for an identity without tracklets.
    """
    means, seen = group_mean(features, jnp.where(valid, tracklet, -1), len(identity))
    return group_mean(means, jnp.where(seen, identity, -1), num_classes)[0]


def build_proxies(
    features: Float[Array, "clips dim"],
    tracklet: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
    identity: Int[Array, " tracklets"],
    num_classes: int,
) -> Float[Array, "{2*num_classes} dim"]:
    """CLIMB-ReID's memory at the start of an epoch: the mean of an identity's unit features, first as its mean proxy,
    then as its hard proxy.

    Args:
      as for `image_memory`.

    Returns:
      Unit rows, zero for an identity without tracklets: rows 0…C−1 are mean proxies, C…2C−1 hard ones.
    """
    mean = unit_rows(image_memory(unit_rows(features), tracklet, valid, identity, num_classes))
    return jnp.concatenate([mean, mean])


def move_proxies(
    proxies: Float[Array, "proxies dim"],
    features: Float[Array, "clips dim"],
    label: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
    momentum: float,
    per_sample: bool = False,
) -> Float[Array, "proxies dim"]:
    """The proxies after a batch: m ← norm(μ·m + (1 − μ)·mean of the identity's samples), h ← norm(μ·h + (1 − μ)·x),
    where x is the identity's sample with the smallest inner product with m as it was.

    Yu et al., "CLIMB-ReID: A Hybrid CLIP-Mamba Framework for Person Re-Identification", AAAI 2025.

    Args:
      proxies: f32[2C, E] of `build_proxies`; identities without a valid sample keep theirs.
      features: unit rows.
      momentum: μ, the weight of the old row.
      per_sample: as released: before all this, m also moves to every sample in turn.
    """
    mean, hard = jnp.split(proxies, 2)
    rows, num_classes = len(features), len(mean)
    x = jnp.where(valid[:, None], features.astype(jnp.float32), 0.0)
    y = jnp.where(valid, label, num_classes)  # beyond the last: counts nowhere

    def moved(old: Float[Array, "*rows dim"], new: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
        return unit_rows(momentum * old + (1.0 - momentum) * new)

    if per_sample:

        def step(mean: Array, sample: tuple[Array, Array]) -> tuple[Array, None]:
            x, y = sample
            return mean.at[y].set(moved(mean[y], x), mode="drop"), None

        mean, _ = jax.lax.scan(step, mean, (x, y))
    similarity = jnp.einsum("be,be->b", x, mean.at[y].get(mode="clip"), precision=jax.lax.Precision.HIGHEST)
    lowest = jax.ops.segment_min(similarity, y, num_classes + 1)
    hardest = jax.ops.segment_min(jnp.where(similarity == lowest[y], jnp.arange(rows), rows), y, num_classes + 1)
    average, seen = group_mean(x, jnp.where(valid, label, -1), num_classes)
    hard = jnp.where(seen[:, None], moved(hard, x[jnp.minimum(hardest[:num_classes], rows - 1)]), hard)
    mean = jnp.where(seen[:, None], moved(mean, average), mean)
    return jnp.concatenate([mean, hard])
