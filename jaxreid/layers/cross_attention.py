"""Attention from features to a context, as a residual block."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxreid.backbones.attention import attend
from jaxreid.backbones.transformer import LayerNorm, fan_in, quick_gelu
from jaxreid.shapes import AnyArray, Array, Bool, Float


class ContextBlock(nn.Module):
    """x + Attention(queries → context), then x + MLP(LayerNorm(x)), both in float32.

    Attributes:
      heads: of the attention.
      channels: of every head; None = those of x, divided among the heads.
      mlp_ratio: channels inside of the MLP over those of x; after them quick-GELU.
      inner_init, last_init: initializers of the kernels within the two branches, and of those they end with; the
        defaults make a new block the identity.
      dropout: inside of the MLP, after quick-GELU.
    """

    heads: int
    channels: int | None = None
    mlp_ratio: float = 4.0
    inner_init: nn.initializers.Initializer = fan_in
    last_init: nn.initializers.Initializer = nn.initializers.zeros
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "rows queries dim"],
        queries: Float[Array, "rows queries dim"],
        context: Float[Array, "rows tokens dim"],
        mask: Bool[AnyArray, "#rows 1 #queries tokens"] | None = None,
        train: bool = False,
    ) -> Float[Array, "rows queries dim"]:
        """x after both branches; `train` needs the random key "dropout" where there is dropout."""
        width = x.shape[-1]
        inner = width if self.channels is None else self.heads * self.channels

        def heads(y: Float[Array, "rows length dim"], name: str) -> Float[Array, "rows length heads channels"]:
            y = nn.Dense(inner, kernel_init=self.inner_init, name=name)(y)
            return y.reshape(*y.shape[:2], self.heads, -1)

        def last(y: Float[Array, "rows queries inner"], name: str) -> Float[Array, "rows queries dim"]:
            return nn.Dense(width, kernel_init=self.last_init, name=name)(y)

        mask = None if mask is None else jnp.asarray(mask)
        seen = attend(heads(queries, "query"), heads(context, "key"), heads(context, "value"), mask)
        x = x + last(seen.reshape(*x.shape[:2], inner), "out")
        up = nn.Dense(int(self.mlp_ratio * width), kernel_init=self.inner_init, name="up")
        hidden = quick_gelu(up(LayerNorm(1e-5, name="norm")(x)))
        return x + last(nn.Dropout(self.dropout, deterministic=not train)(hidden), "down")
