"""The prior of body shapes: people are near to the mean."""

from __future__ import annotations

import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.shapes import AnyArray, Array, Bool, Float


def shape_prior(
    shapes: Float[Array, "clips frames shapes"], mean: Float[AnyArray, " shapes"], seen: Bool[Array, "clips frames"]
) -> Float[Array, ""]:
    """Mean squared difference of the shapes of frames that count to the mean shape; 0 without one. SAS-VPReID, PRSD."""
    square = jnp.square(shapes.astype(jnp.float32) - mean).mean(axis=-1)
    return masked_mean(square, seen, axis=None)
