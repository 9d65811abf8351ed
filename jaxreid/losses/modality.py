"""Losses between modalities: hetero-centre triplet, and a modality probe that features must leave in the dark."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.triplet import pairwise_distance

Array = jax.Array


def hetero_centre_triplet(features: Array, label: Array, modality: Array, valid: Array, margin: float = 0.3) -> Array:
    """Hinge between centres, the means of an identity's rows in one modality: mean over centres of
    max(0, margin + d(other modality's centre of the identity) − min d(centre of another identity)); Euclidean.

    A centre without one of its identity in another modality, or without another identity, does not count.

    Args:
      features: [B, D], normalised by the caller; label, modality: i32[B]; valid: bool[B].

    Returns:
      f32[], 0 when no centre counts.
    """
    features = jnp.where(valid[:, None], features.astype(jnp.float32), 0.0)
    pair = valid[:, None] & valid
    same_label, same_modality = label[:, None] == label, modality[:, None] == modality
    own = (pair & same_label & same_modality).astype(jnp.float32)
    rows = jnp.maximum(own.sum(1), 1.0)
    # The centre of every row; one of n rows occurs n times, each with weight 1/n.
    centre = jnp.matmul(own, features, precision=jax.lax.Precision.HIGHEST) / rows[:, None]
    distance = pairwise_distance(centre)
    positive, negative = pair & same_label & ~same_modality, pair & ~same_label
    counted = positive.any(1) & negative.any(1)
    near = jnp.min(jnp.where(negative, distance, 1e9), axis=1)
    far = jnp.max(jnp.where(positive, distance, -1e9), axis=1)
    hinge = jax.nn.relu(jnp.where(counted, far - near + margin, 0.0))
    weight = jnp.where(counted, 1.0 / rows, 0.0)
    return (weight * hinge).sum() / jnp.maximum(weight.sum(), 1e-6)


def modality_confusion(
    features: Array, kernel: Array, bias: Array, modality: Array, valid: Array, mode: str = "uniform"
) -> tuple[Array, Array]:
    """(what the features minimise, what the probe minimises), f32[] each: neither has a gradient on the other's side,
    so one backward pass trains both against each other.

    "uniform": the probe names the modality, and features should give it no hint: cross entropy to an even
    distribution, ln 2 at best. "third": features should look like a third class that the probe never trains (MITML).

    Args:
      features: [B, D]; kernel: [D, 2 or 3], bias: [2 or 3]; modality: i32[B], 0 or 1; valid: bool[B].
    """
    stop = jax.lax.stop_gradient
    features = jnp.where(valid[:, None], features.astype(jnp.float32), 0.0)
    blind = features @ stop(kernel) + stop(bias)
    if mode == "uniform":
        confusion = cross_entropy(blind, modality, valid, smoothing=1.0)
    elif mode == "third":
        confusion = cross_entropy(blind, jnp.full_like(modality, 2), valid)
    else:
        raise ValueError(f"mod_mode={mode!r} is neither 'uniform' nor 'third'")
    return confusion, cross_entropy(stop(features) @ kernel + bias, modality, valid)
