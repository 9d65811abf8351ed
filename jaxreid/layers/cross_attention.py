"""Attention from features to a context, as a residual block that starts as the identity."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxreid.backbones.attention import attend
from jaxreid.backbones.transformer import LayerNorm, fan_in, quick_gelu
from jaxreid.shapes import AnyArray, Array, Bool, Float


class ContextBlock(nn.Module):
    """x + Attention(queries → context), then x + MLP(LayerNorm(x)), both in float32 with last layers that start at 0.

    Attributes:
      heads: of the attention; the MLP is four times as wide as x, with quick-GELU.
    """

    heads: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "rows queries dim"],
        queries: Float[Array, "rows queries dim"],
        context: Float[Array, "rows tokens dim"],
        mask: Bool[AnyArray, "#rows 1 #queries tokens"] | None = None,
    ) -> Float[Array, "rows queries dim"]:
        width, zero = x.shape[-1], nn.initializers.zeros

        def heads(y: Float[Array, "rows length dim"], name: str) -> Float[Array, "rows length heads channels"]:
            return nn.Dense(width, kernel_init=fan_in, name=name)(y).reshape(*y.shape[:2], self.heads, -1)

        mask = None if mask is None else jnp.asarray(mask)
        seen = attend(heads(queries, "query"), heads(context, "key"), heads(context, "value"), mask)
        x = x + nn.Dense(width, kernel_init=zero, name="out")(seen.reshape(x.shape))
        hidden = quick_gelu(nn.Dense(4 * width, kernel_init=fan_in, name="up")(LayerNorm(1e-5, name="norm")(x)))
        return x + nn.Dense(width, kernel_init=zero, name="down")(hidden)
