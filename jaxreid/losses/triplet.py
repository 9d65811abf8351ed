"""Triplet losses, driven by the label array, whatever the order of the rows: batch-hard and batch-all (Hermans et al.
2017), and weighted over all pairs (the regularized form of AGW, Ye et al. 2021)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.errors import UserError
from jaxreid.shapes import Array, Bool, Float, Int

Metric = Literal["euclidean", "cosine"]


def pairwise_distance(features: Float[Array, "clips dim"], metric: Metric = "euclidean") -> Float[Array, "clips clips"]:
    """Distances of all pairs of rows.

    "euclidean" is the root of the squared distance, which is kept at 1e-12 or more (so that its gradient is finite);
    "cosine" is 1 − cosine, with zero rows at distance 1 from everything.
    """
    features = features.astype(jnp.float32)
    square = jnp.sum(features * features, axis=1)
    if metric == "cosine":
        nonzero = square > 0
        scale = jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, square, 1.0)), 0.0)
        features = features * scale[:, None]
        return 1.0 - jnp.matmul(features, features.T, precision=jax.lax.Precision.HIGHEST)
    if metric == "euclidean":
        product = jnp.matmul(features, features.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.sqrt(jnp.maximum(square[:, None] + square - 2.0 * product, 1e-12))
    raise UserError(f"pairwise_distance: metric is {metric!r}, must be 'euclidean' or 'cosine'")


def batch_hard(
    distance: Float[Array, "clips clips"], label: Int[Array, " clips"], valid: Bool[Array, " clips"]
) -> tuple[Float[Array, " clips"], Float[Array, " clips"], Bool[Array, " clips"]]:
    """The farthest other row of each anchor's label and the nearest row of another label.

    Returns:
      hardest_positive, hardest_negative, counted: anchors that have both. The distances are 0
      where an anchor does not count.
    """
    pair = valid[:, None] & valid
    same_label = label[:, None] == label
    positive = pair & same_label & ~jnp.eye(label.shape[0], dtype=bool)
    negative = pair & ~same_label
    counted = positive.any(axis=1) & negative.any(axis=1)
    # Finite fill values, because an infinite one would put NaN into the gradient of anchors that do not count.
    farthest = jnp.max(jnp.where(positive, distance, -1e9), axis=1)
    nearest = jnp.min(jnp.where(negative, distance, 1e9), axis=1)
    return jnp.where(counted, farthest, 0.0), jnp.where(counted, nearest, 0.0), counted


def batch_hard_triplet(
    features: Float[Array, "clips dim"],
    label: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
    margin: float = 0.3,
    metric: Metric = "euclidean",
    soft_margin: bool = False,
) -> Float[Array, ""]:
    """Mean over anchors of max(0, margin + d⁺ − d⁻) or, with `soft_margin`, of softplus(d⁺ − d⁻).

    d⁺ and d⁻ are the distances to the hardest positive and negative of the batch. Anchors without another row of
    their label, or without a row of another label, do not count.

    Args:
      features: not normalized here.

    Returns:
      f32[], 0 when no anchor counts.
    """
    # Rows that only fill the batch may hold anything.
    features = jnp.where(valid[:, None], features, 0.0)
    positive, negative, counted = batch_hard(pairwise_distance(features, metric), label, valid)
    gap = positive - negative
    loss = jax.nn.softplus(gap) if soft_margin else jax.nn.relu(gap + margin)
    return masked_mean(loss, counted)


def weighted_triplet(
    features: Float[Array, "clips dim"], label: Int[Array, " clips"], valid: Bool[Array, " clips"], stable: bool = True
) -> Float[Array, ""]:
    """Mean over anchors of softplus(Σ w⁺d − Σ w⁻d): Euclidean distances weighted by a softmax of d over positives, the
    anchor among them, and of −d over negatives.

    With `stable=False` as released: sums of weights have 1e-6 added, and the exponents of negatives are not shifted by
    their own largest, so that beyond d ≈ 14 all weights vanish and the loss pulls negatives closer.

    Args:
      features: not normalized here.

    Returns:
      f32[], 0 when no row is valid.
    """
    distance = pairwise_distance(jnp.where(valid[:, None], features, 0.0))
    pair = valid[:, None] & valid
    same = label[:, None] == label

    def weighted(sign: float, mask: Bool[Array, "clips clips"]) -> Float[Array, " clips"]:
        exponent = sign * distance
        shift = jnp.where(mask, exponent, -1e9).max(1) if stable else jnp.where(mask, exponent, 0.0).max(1)
        raised = jnp.where(mask, jnp.exp(jnp.where(mask, exponent - shift[:, None], 0.0)), 0.0)
        total = raised.sum(1)
        total = jnp.where(total > 0, total, 1.0) if stable else total + 1e-6
        return (raised * distance).sum(1) / total

    loss = jax.nn.softplus(weighted(1.0, pair & same) - weighted(-1.0, pair & ~same))
    return masked_mean(loss, valid)


def batch_all_triplet(
    features: Float[Array, "clips parts dim"],
    label: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
    margin: float = 0.2,
) -> Float[Array, ""]:
    """Mean over parts of the mean of max(0, margin + d⁺ − d⁻) over all triplets that are above zero, 0 of a part where
    none is.

    As in OpenGait, the anchor itself counts among its positives. Distances are Euclidean; where one is 0 it has no
    gradient.

    Args:
      features: not normalized here.
    """
    features = jnp.where(valid[:, None, None], features.astype(jnp.float32), 0.0).swapaxes(0, 1)
    square = jnp.sum(features * features, axis=-1)
    product = jnp.matmul(features, features.swapaxes(1, 2), precision=jax.lax.Precision.HIGHEST)
    apart = square[:, :, None] + square[:, None] - 2.0 * product
    apart = jnp.where(jnp.eye(len(label), dtype=bool), 0.0, apart)  # which rounding need not say
    distance = jnp.where(apart > 0, jnp.sqrt(jnp.where(apart > 0, apart, 1.0)), 0.0)  # [P, B, B]
    pair = valid[:, None] & valid
    same = label[:, None] == label
    counted = (pair & same)[:, :, None] & (pair & ~same)[:, None]
    hinge = jax.nn.relu(margin + distance[:, :, :, None] - distance[:, :, None])
    hinge = jnp.where(counted, hinge, 0.0)  # [P, anchor, positive, negative]
    above = jnp.sum(hinge > 0, axis=(1, 2, 3))
    return jnp.mean(hinge.sum(axis=(1, 2, 3)) / jnp.maximum(above, 1))
