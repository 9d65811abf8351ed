"""Losses between image features and text features, or rows of a class bank."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxreid.losses.identity import cross_entropy
from jaxreid.shapes import Array, Bool, Float, Int

# Of the logarithm of the inverse temperature, as in CLIP.
FIRST_SCALE, LARGEST_SCALE = math.log(1 / 0.07), math.log(100.0)


def matching_loss(
    logits: Float[Array, "clips clips"], match: Bool[Array, "clips clips"], valid: Bool[Array, " clips"]
) -> Float[Array, ""]:
    """Cross entropy of every row's distribution over columns against an even one over its matches; f32[].

    Args:
      logits: f32[B, B]; match: bool[B, B], with the diagonal; valid: bool[B], rows and columns that count.
    """
    logits = jnp.where(valid[None, :], logits, -1e9)
    match = match & valid[None, :]
    found = jax.nn.log_softmax(logits, axis=-1)
    per_row = -jnp.sum(jnp.where(match, found, 0.0), axis=-1) / jnp.maximum(match.sum(-1), 1)
    return jnp.sum(jnp.where(valid, per_row, 0.0)) / jnp.maximum(valid.sum(), 1)


def supervised_contrastive(
    anchors: Float[Array, "clips dim"],
    others: Float[Array, "clips dim"],
    label: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
) -> Float[Array, ""]:
    """Mean over anchors of the mean over positives of −log softmax_j(a_i · b_j); f32[]. Temperature 1, no normalizing.

    Row i of both arrays has label i: positives are all rows of the anchor's label, its own among them, and equal rows
    stay in the denominator, so that the loss does not reach 0. CLIP-ReID, stage 1.
    """
    anchors, others = (jnp.where(valid[:, None], x.astype(jnp.float32), 0.0) for x in (anchors, others))
    logits = jnp.matmul(anchors, others.T, precision=jax.lax.Precision.HIGHEST)
    return matching_loss(logits, label[:, None] == label, valid)


def proxy_contrast(
    features: Float[Array, "clips dim"],
    proxies: Float[Array, "proxies dim"],
    label: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
    temperature: float,
) -> Float[Array, ""]:
    """Half the cross entropy over all mean proxies and half that over all hard ones, of inner products over the
    temperature; f32[]. CLIMB-ReID; the proxies are constants.

    Args:
      features: f32[B, E], unit rows; proxies: f32[2C, E], mean ones first; label: i32[B]; valid: bool[B].
    """
    proxies = jax.lax.stop_gradient(proxies)
    logits = jnp.matmul(features, proxies.T, precision=jax.lax.Precision.HIGHEST) / temperature
    of_mean, of_hard = jnp.split(logits, 2, axis=1)
    return 0.5 * (cross_entropy(of_mean, label, valid) + cross_entropy(of_hard, label, valid))
