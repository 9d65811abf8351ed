"""Contrast of clips with a memory of clusters that change every epoch: soft or hard targets under masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.shapes import Array, Bool, Float, Int

MASKED = -1e9


def slot_contrast(
    logits: Float[Array, "clips slots"], target: Int[Array, " clips"], considered: Bool[Array, "clips slots"]
) -> Float[Array, ""]:
    """Mean of −log softmax at the target over the prototypes considered; 0 where no clip has a target.

    Dai et al. (2022), "Cluster Contrast for Unsupervised Person Re-Identification", equation 3.

    Args:
      logits: f32[B, K], similarities of clips to prototypes over the temperature.
      target: i32[B], −1 = the clip does not count.
      considered: bool[B, K]; the target is always considered.
    """
    slot, counted = jnp.maximum(target, 0), target >= 0
    considered = considered | (slot[:, None] == jnp.arange(logits.shape[1]))
    normalizer = jax.nn.logsumexp(jnp.where(considered, logits, MASKED), axis=1)
    return masked_mean(normalizer - jnp.take_along_axis(logits, slot[:, None], axis=1)[:, 0], counted)


def hard_negative_contrast(
    logits: Float[Array, "clips slots"],
    positive: Bool[Array, "clips slots"],
    negative: Bool[Array, "clips slots"],
    hardest: int,
) -> Float[Array, ""]:
    """Mean over clips of −(1/|P|)·Σ_{p∈P} log softmax_p over P and the `hardest` most similar negatives.

    Wang et al. (2021), "Camera-aware Proxies for Unsupervised Person Re-Identification", equation 8. A clip without
    positives does not count; 0 where none counts.

    Args:
      logits: f32[B, K]; positive, negative: bool[B, K], disjoint.
    """
    hard, _ = jax.lax.top_k(jnp.where(negative, logits, MASKED), min(hardest, logits.shape[1]))
    entries = jnp.concatenate([jnp.where(positive, logits, MASKED), hard], axis=1)
    normalizer = jax.nn.logsumexp(entries, axis=1)
    count = positive.sum(axis=1)
    mean = jnp.where(positive, logits, 0.0).sum(axis=1) / jnp.maximum(count, 1)
    return masked_mean(normalizer - mean, count > 0)
