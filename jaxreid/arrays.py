"""Functions of arrays that several rooms need."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxreid.shapes import AnyArray, Array, Bool, Float, Shaped


def unit_rows(x: Shaped[AnyArray, "*rest dim"]) -> Float[Array, "*rest dim"]:
    """Rows of unit length, f32[..., D]; a zero row stays zero and has zero gradient."""
    x = jnp.asarray(x, jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    # The square root has no derivative at zero, so zero rows must not reach it.
    nonzero = square > 0
    return jnp.where(nonzero, x * jax.lax.rsqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def row_cosines(one: Shaped[AnyArray, "*rest dim"], other: Shaped[AnyArray, "*rest dim"]) -> Float[Array, "*rest"]:
    """The cosine of every row with the other's at its place, f32[...]; 0 where either is zero."""
    return jnp.sum(unit_rows(one) * unit_rows(other), axis=-1)


def masked_mean(
    x: Shaped[AnyArray, "*rest"], mask: Bool[AnyArray, "*axes"], axis: int | None = -1
) -> Float[Array, "*fewer"]:
    """Mean of the entries that count, in fp32; 0 where none does.

    Args:
      x: [..., *rest], the entries.
      mask: bool[...], which of them count: x has the mask's axes first.
      axis: of the mask, over which the mean is taken; None = over all of them.
    """
    rest = (1,) * (x.ndim - mask.ndim)
    axes = tuple(range(mask.ndim)) if axis is None else (axis % mask.ndim,)
    total = jnp.where(mask.reshape(*mask.shape, *rest), x.astype(jnp.float32), 0.0).sum(axis=axes)
    count = jnp.maximum(mask.sum(axis=axes), 1)
    return total / count.reshape(*count.shape, *rest)
