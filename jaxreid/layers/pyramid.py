"""Strips of a map as parts that stay apart: the horizontal pyramid, a matrix for every part, a neck and a cosine
classifier for every part (OpenGait's separate heads)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.arrays import unit_rows
from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.shapes import AnyArray, Array, Bool, Float

# As PyTorch draws a tensor of three axes [P, inputs, outputs]: it takes the last axis for the size of a kernel.
XAVIER = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=1, out_axis=0)


def largest(x: jax.Array, axis: int) -> jax.Array:
    """Maximum along an axis, whose slope belongs to the first of the largest values, as PyTorch's.

    That of `jnp.max` goes to all that are equal to the maximum, which a compiler that computes x once more for the
    backward pass may round otherwise: with some flags of XLA, half of the gradient below was lost.
    """
    place = jnp.argmax(jax.lax.stop_gradient(x), axis=axis, keepdims=True)
    return jnp.take_along_axis(x, place, axis=axis).squeeze(axis)


def pyramid_pool(
    maps: Float[Array, "clips rows columns channels"], bins: Sequence[int]
) -> Float[Array, "clips parts channels"]:
    """Mean + maximum of every strip, the whole map first where the bins begin with 1; every bin divides the rows."""
    maps = maps.astype(jnp.float32)
    clips, rows, columns, channels = maps.shape
    found = []
    for count in bins:
        strips = maps.reshape(clips, count, rows // count * columns, channels)
        found.append(strips.mean(2) + largest(strips, axis=2))
    return jnp.concatenate(found, axis=1)


class SeparateFC(nn.Module):
    """A matrix for every part: [B, P, C] → f32[B, P, D]."""

    outputs: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, parts: Float[Array, "clips parts _"]) -> Float[Array, "clips parts {self.outputs}"]:
        kernel = self.param("kernel", XAVIER, (*parts.shape[1:], self.outputs))
        return jnp.einsum(
            "bpc,pcd->bpd",
            parts.astype(self.dtype),
            kernel.astype(self.dtype),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )


class PartNecks(nn.Module):
    """Batch norm over all numbers of all parts, and the cosine of every part with its own vectors of the classes."""

    num_classes: int

    @nn.compact
    def __call__(
        self, parts: Float[Array, "clips parts dim"], valid: Bool[AnyArray, " clips"], train: bool
    ) -> Float[Array, "clips parts {self.num_classes}"]:
        flat = parts.reshape(len(parts), -1)
        normed = MaskedBatchNorm(name="norm")(flat, jnp.asarray(valid), use_running_average=not train)
        kernel = self.param("kernel", XAVIER, (*parts.shape[1:], self.num_classes))
        classes = jnp.swapaxes(unit_rows(jnp.swapaxes(kernel, 1, 2)), 1, 2)
        features = unit_rows(normed.reshape(parts.shape))
        return jnp.einsum("bpd,pdc->bpc", features, classes, precision=jax.lax.Precision.HIGHEST)
