"""Adapters: small trained modules inside the blocks of a frozen tower (`jaxreid.backbones.transformer.Adapters`).

Each maps tokens [B, T, L, D] and frame_mask bool[B, T] to [B, T, L, D], through `bottleneck` channels. With
`zero_init` the last layer starts at 0, so that the adapted tower starts as the tower itself; without, all layers
start as PyTorch's do. Source: VSLA-CLIP (its inter-frame and intra-frame adapters).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxreid.backbones.attention import attend
from jaxreid.backbones.torch_linear import TORCH_LINEAR
from jaxreid.backbones.transformer import quick_gelu
from jaxreid.shapes import AnyArray, Array, Bool, Float


def _linear(outputs: int, dtype: Any, name: str, zero: bool = False) -> nn.Dense:
    return nn.Dense(outputs, dtype=dtype, kernel_init=nn.initializers.zeros if zero else TORCH_LINEAR, name=name)


class TokenAdapter(nn.Module):
    """down, quick-GELU, up: every token by itself."""

    bottleneck: int
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "clips frames tokens dim"], frame_mask: Bool[AnyArray, "clips frames"]
    ) -> Float[Array, "clips frames tokens dim"]:
        x = quick_gelu(_linear(self.bottleneck, self.dtype, "down")(tokens))
        return _linear(tokens.shape[-1], self.dtype, "up", self.zero_init)(x)


class TemporalAdapter(nn.Module):
    """down, attention over the clip's frames at every token position, up; blind to the frames' order.

    Frames that do not count are not attended to.
    """

    bottleneck: int
    heads: int = 4
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "clips frames tokens dim"], frame_mask: Bool[AnyArray, "clips frames"]
    ) -> Float[Array, "clips frames tokens dim"]:
        batch, frames, length, width = tokens.shape
        x = _linear(self.bottleneck, self.dtype, "down")(tokens)
        x = x.swapaxes(1, 2).reshape(batch * length, frames, self.bottleneck)
        q, k, v = (
            _linear(self.bottleneck, self.dtype, name)(x).reshape(batch * length, frames, self.heads, -1)
            for name in ("query", "key", "value")
        )
        mask = jnp.repeat(frame_mask, length, axis=0)[:, None, None]
        x = _linear(self.bottleneck, self.dtype, "out")(attend(q, k, v, mask).reshape(x.shape))
        x = x.reshape(batch, length, frames, self.bottleneck).swapaxes(1, 2)
        return _linear(width, self.dtype, "up", self.zero_init)(x)
