"""Center loss: features are drawn to a centre of their identity (Wen et al. 2016, "A Discriminative Feature Learning
Approach for Deep Face Recognition")."""

from __future__ import annotations

import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.shapes import Array, Bool, Float, Int


def center_loss(
    features: Float[Array, "clips dim"],
    centers: Float[Array, "classes dim"],
    label: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
) -> Float[Array, ""]:
    """Mean squared distance of the valid rows to the centres of their labels, each kept within 1e-12 … 1e12.

    Its gradient moves `centers` as well: `centers − lr · gradient` is their step.
    """
    away = features.astype(jnp.float32) - centers.at[label].get(mode="clip")
    return masked_mean(jnp.clip(jnp.sum(away**2, axis=-1), 1e-12, 1e12), valid)
