"""Losses between modalities: with identities (hetero-centre triplet, soft margin), and without (a modality probe that
features must keep at chance, mean discrepancy)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.errors import UserError
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.triplet import pairwise_distance
from jaxreid.shapes import Array, Bool, Float, Int


def hetero_centre_triplet(
    features: Float[Array, "clips dim"],
    label: Int[Array, " clips"],
    modality: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
    margin: float = 0.3,
) -> Float[Array, ""]:
    """Hinge between centres, the means of an identity's rows in one modality: mean over centres of
    max(0, margin + d(other modality's centre of the identity) − min d(centre of another identity)); Euclidean.

    A centre without one of its identity in another modality, or without another identity, does not count.

    Args:
      features: normalized by the caller.

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


def modality_margin(
    features: Float[Array, "clips dim"],
    label: Int[Array, " clips"],
    modality: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
) -> Float[Array, ""]:
    """softplus(mean cosine distance of cross-modality pairs of one identity − that of two identities); the soft margin
    of M³-ReID.

    Returns:
      f32[], 0 where there are no pairs of either kind.
    """
    features = jnp.where(valid[:, None], features.astype(jnp.float32), 0.0)
    distance = pairwise_distance(features, "cosine")
    across = valid[:, None] & valid & (modality[:, None] != modality)
    matched, other = across & (label[:, None] == label), across & (label[:, None] != label)
    near, far = (masked_mean(distance, pairs, axis=None) for pairs in (matched, other))
    return jnp.where(matched.any() & other.any(), jax.nn.softplus(near - far), 0.0)


def modality_discrepancy(
    features: Float[Array, "clips dim"], modality: Int[Array, " clips"], valid: Bool[Array, " clips"]
) -> Float[Array, ""]:
    """Squared maximum mean discrepancy of the two modalities: mean k within one + within the other − twice across.

    k is the mean of five Gaussians exp(−d² / b), b the mean squared distance of all pairs, a constant, times ¼ … 4
    (Gretton et al. 2012, "A Kernel Two-Sample Test"; the family of kernels of Long et al. 2015).

    Args:
      modality: 0 or 1.

    Returns:
      f32[], not negative but for rounding; 0 where a modality has no row.
    """
    features = jnp.where(valid[:, None], features.astype(jnp.float32), 0.0)
    square = pairwise_distance(features) ** 2
    pair = valid[:, None] & valid
    others = pair & ~jnp.eye(len(valid), dtype=bool)
    bandwidth = masked_mean(square, others, axis=None)
    bandwidth = jax.lax.stop_gradient(jnp.maximum(bandwidth, 1e-12))
    kernel = jnp.mean(jnp.stack([jnp.exp(-square / (bandwidth * scale)) for scale in (0.25, 0.5, 1.0, 2.0, 4.0)]), 0)
    # The mean over a modality as a row of weights; the difference of two of them weighs all three means at once.
    one, other = (((modality == code) & valid).astype(jnp.float32) for code in (0, 1))
    weight = one / jnp.maximum(one.sum(), 1) - other / jnp.maximum(other.sum(), 1)
    found = jnp.einsum("i,ij,j->", weight, kernel, weight, precision=jax.lax.Precision.HIGHEST)
    return jnp.where((one.sum() > 0) & (other.sum() > 0), found, 0.0)


def modality_confusion(
    features: Float[Array, "clips dim"],
    kernel: Float[Array, "dim outputs"],
    bias: Float[Array, " outputs"],
    modality: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
    mode: str = "uniform",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(what the features minimise, what the probe minimises), f32[] each: neither has a gradient on the other's side,
    so one backward pass trains both against each other.

    "uniform": the probe names the modality, and features should keep it at chance: cross entropy to an even
    distribution, ln 2 at best. "third": features should look like a third class that the probe never trains (MITML).

    Args:
      kernel, bias: of 2 or 3 outputs; modality: 0 or 1.
    """
    stop = jax.lax.stop_gradient
    features = jnp.where(valid[:, None], features.astype(jnp.float32), 0.0)
    blind = features @ stop(kernel) + stop(bias)
    if mode == "uniform":
        confusion = cross_entropy(blind, modality, valid, smoothing=1.0)
    elif mode == "third":
        confusion = cross_entropy(blind, jnp.full_like(modality, 2), valid)
    else:
        raise UserError(f"mod_gen={mode!r} is neither 'uniform' nor 'third'")
    return confusion, cross_entropy(stop(features) @ kernel + bias, modality, valid)
