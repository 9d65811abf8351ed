"""What DinoGRL's gait stream makes of DINOv2's tokens inside a silhouette: two maps, their stems, their fusion (after
BigGait)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.backbones.resnet import Convolution
from jaxreid.backbones.torch_linear import TORCH_LINEAR
from jaxreid.layers.silhouettes import resized

Array = jax.Array


class CellBranch(nn.Module):
    """Tokens on a coarse grid [N, a, b, D] → maps on a finer one f32[N, h, w, C], zero on cells that are not active.

    "parts": softmax(W₂ GELU(BN(W₁ BN(x)))), what a part of the body may be; "texture": sigmoid(BN(W BN(x))). The batch
    norms have no scale and no shift, and see active cells only. The first product is taken of the tokens and brought to
    the finer grid behind it, a quarter of the work; interpolation is linear and its weights add up to 1, so that the
    numbers are the same (`fast=False`: in the order as written).
    """

    kind: str
    channels: int
    dtype: Any = jnp.float32
    fast: bool = True

    @nn.compact
    def __call__(self, tokens: Array, active: Array, train: bool) -> Array:
        """Tokens [N, a, b, D], which cells are active bool[N, h, w]."""
        (rows, columns), inside = active.shape[1:], active.reshape(-1)
        size = rows, columns

        def norm(x: Array, name: str, **instead: Array) -> Array:
            made = MaskedBatchNorm(use_scale=False, use_bias=False, name=name)
            return made(x.reshape(-1, x.shape[-1]), inside, use_running_average=not train, **instead)

        def dense(x: Array, width: int, name: str) -> Array:
            return nn.Dense(width, dtype=self.dtype, kernel_init=TORCH_LINEAR, name=name)(x)

        width = tokens.shape[-1] // 2 if self.kind == "parts" else self.channels
        cells = resized(tokens, size)
        if self.fast:
            hidden = resized(dense(norm(cells, "norm_tokens", instead=tokens), width, "first"), size)
        else:
            hidden = dense(norm(cells, "norm_tokens").reshape(cells.shape), width, "first")
        hidden = norm(hidden, "norm_hidden")
        if self.kind == "parts":
            hidden = jax.nn.gelu(hidden, approximate=False)
            found = jax.nn.softmax(dense(hidden, self.channels, "second").astype(jnp.float32))
        else:
            found = jax.nn.sigmoid(hidden)
        return jnp.where(inside[:, None], found, 0.0).reshape(*active.shape, self.channels)


class _ConvNorm(nn.Module):
    """A convolution without bias, batch norm over the frames that count, and where asked for ReLU."""

    outputs: int
    size: int
    dtype: Any
    relu: bool = True

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        x = Convolution(self.outputs, self.size, 1, self.dtype, name="conv")(x)
        x = MaskedBatchNorm(name="norm")(x, mask, use_running_average=not train).astype(self.dtype)
        return nn.relu(x) if self.relu else x


class GaitStem(nn.Module):
    """A 3×3 convolution and a basic block of ResNet: maps [N, h, w, C] → [N, h, w, width]."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Array, mask: Array, train: bool) -> Array:
        x = _ConvNorm(self.width, 3, self.dtype, name="first")(maps, mask, train)
        y = _ConvNorm(self.width, 3, self.dtype, name="block_1")(x, mask, train)
        y = _ConvNorm(self.width, 3, self.dtype, relu=False, name="block_2")(y, mask, train)
        return nn.relu(x + y)


class AttentionFusion(nn.Module):
    """Two maps [N, h, w, D] as one: at every place and channel they share 1, by what convolutions make of both.

    Outputs 2c and 2c + 1 of the last convolution are the scores of channel c of the first and of the second map.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, first: Array, second: Array, mask: Array, train: bool) -> Array:
        width = first.shape[-1]
        squeezed = max(width // 16, 4)
        x = jnp.concatenate([first, second], axis=-1)
        x = _ConvNorm(squeezed, 1, self.dtype, name="squeeze")(x, mask, train)
        x = _ConvNorm(squeezed, 3, self.dtype, name="mix")(x, mask, train)
        score = Convolution(2 * width, 1, 1, self.dtype, name="score")(x).reshape(*first.shape, 2)
        share = jax.nn.softmax(score.astype(jnp.float32)).astype(self.dtype)
        return first * share[..., 0] + second * share[..., 1]
