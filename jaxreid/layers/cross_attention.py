"""Attention from features to a context, as a residual block that starts as the identity."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxreid.backbones.attention import attend
from jaxreid.backbones.transformer import LayerNorm, fan_in, quick_gelu

Array = jax.Array


class ContextBlock(nn.Module):
    """x + Attention(queries → context), then x + MLP(LayerNorm(x)), both in float32 with last layers that start at 0.

    Attributes:
      heads: of the attention; the MLP is four times as wide as x, with quick-GELU.
    """

    heads: int

    @nn.compact
    def __call__(self, x: Array, queries: Array, context: Array, mask: Array | None = None) -> Array:
        """x and queries [N, Q, E], context [N, L, E], mask bool[N or 1, 1, Q or 1, L] → f32[N, Q, E]."""
        width, zero = x.shape[-1], nn.initializers.zeros

        def heads(y: Array, name: str) -> Array:
            return nn.Dense(width, kernel_init=fan_in, name=name)(y).reshape(*y.shape[:2], self.heads, -1)

        seen = attend(heads(queries, "query"), heads(context, "key"), heads(context, "value"), mask)
        x = x + nn.Dense(width, kernel_init=zero, name="out")(seen.reshape(x.shape))
        hidden = quick_gelu(nn.Dense(4 * width, kernel_init=fan_in, name="up")(LayerNorm(1e-5, name="norm")(x)))
        return x + nn.Dense(width, kernel_init=zero, name="down")(hidden)
