"""Rows of a bank that look at tokens: a decoder whose result is added to the rows, or takes their place.

    TF-CLIP's Sequence-Specific Prompt           the bank; a clip's tokens, averaged over its frames
      as the paper counts its parameters           PromptDecoder()
      as released                                  PromptDecoder(self_attention=True)
      as in the weights for LS-VID and iLIDS-VID   PromptDecoder(simple=True)
    CG-CLIP's Caption-guided Memory Refinement   each identity's row alone; the tokens of its captions
                                                   PromptDecoder(alpha=0.1)
    CSIP-ReID's prototype updater                the prototypes; tokens of a clip's images and of its skeletons
                                                   PromptDecoder(self_attention=True, unused=True)

Sources: Yu et al., "TF-CLIP: Learning Text-free CLIP for Video-based Person Re-Identification", AAAI 2024, and the
released codes of TF-CLIP and CSIP-ReID (order of operations).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxreid.backbones.attention import attend
from jaxreid.backbones.transformer import LayerNorm, quick_gelu
from jaxreid.shapes import AnyArray, Array, Bool, Float

_init = nn.initializers.truncated_normal(0.02)


class PromptAttention(nn.Module):
    """Attention whose queries, keys and values have no bias."""

    heads: int

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "rows queries dim"],
        tokens: Float[Array, "rows tokens dim"],
        mask: Bool[Array, "rows 1 1 tokens"] | None = None,
    ) -> Float[Array, "rows queries dim"]:
        width = queries.shape[-1]
        q, k, v = (
            nn.Dense(width, use_bias=False, kernel_init=_init, name=name)(x).reshape(*x.shape[:2], self.heads, -1)
            for name, x in (("query", queries), ("key", tokens), ("value", tokens))
        )
        return nn.Dense(width, kernel_init=_init, name="out")(attend(q, k, v, mask).reshape(queries.shape))


class PromptDecoder(nn.Module):
    """Pre-norm layers of attention between the queries, attention to tokens, and an MLP four times as wide.

    Attributes:
      depth: layers.
      heads: of every attention.
      self_attention: whether queries of one row attend to each other (Q² work per row).
      dropout: of what attention and MLP add, and inside of the MLP.
      simple: norms the tokens and leaves out all else around the layers: no linear layers before and after, no norm of
        the queries or of the result.
      alpha: initial value of a learned factor per channel on the result, None = no factor.
      unused: also declares the tensors that the released codes hold and never use, a factor and a norm. They change no
        result; with them sizes are those of the released files.
    """

    depth: int = 2
    heads: int = 8
    self_attention: bool = False
    dropout: float = 0.1
    simple: bool = False
    alpha: float | None = None
    unused: bool = False

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "queries dim"] | Float[Array, "rows queries dim"],
        tokens: Float[Array, "rows tokens dim"],
        train: bool,
        mask: Bool[AnyArray, "rows tokens"] | None = None,
    ) -> Float[Array, "rows queries dim"]:
        """What every row's tokens make of its queries.

        Args:
          queries: the same for all rows, or each row's own.
          train: needs the random key "dropout" where there is dropout.
          mask: tokens that are looked at, None = all. The result of a row without any is 0.
        """
        width = queries.shape[-1]
        seen = None if mask is None else jnp.asarray(mask)[:, None, None]

        def linear(x: Float[Array, "*rows dim"], name: str) -> Float[Array, "*rows dim"]:
            return nn.Dense(width, kernel_init=_init, name=name)(x)

        def norm(x: Float[Array, "*rows dim"], name: str) -> Float[Array, "*rows dim"]:
            return LayerNorm(1e-5, name=name)(x)

        def drop(x: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
            return nn.Dropout(self.dropout, deterministic=not train)(x)

        v, x = norm(tokens, "tokens_in"), queries
        if not self.simple:
            v = norm(linear(v, "tokens"), "tokens_out")
            x = linear(norm(x, "bank_in"), "bank")
        x = x if x.ndim == 3 else x[None]  # what all rows share is computed once
        for layer in range(self.depth):
            if self.self_attention:
                n = norm(x, f"norm_self_{layer}")
                change = PromptAttention(self.heads, name=f"self_{layer}")(n, n)
                x = x + drop(jnp.broadcast_to(change, (tokens.shape[0], *x.shape[1:])))
            x = jnp.broadcast_to(x, (tokens.shape[0], *x.shape[1:]))
            n = norm(x, f"norm_cross_{layer}")
            x = x + drop(PromptAttention(self.heads, name=f"cross_{layer}")(n, v, seen))
            n = nn.Dense(4 * width, kernel_init=_init, name=f"up_{layer}")(norm(x, f"norm_mlp_{layer}"))
            x = x + drop(nn.Dense(width, kernel_init=_init, name=f"down_{layer}")(drop(quick_gelu(n))))
        if not self.simple:
            x = linear(norm(x, "change_in"), "change")
        if self.alpha is not None:
            x = x * self.param("alpha", nn.initializers.constant(self.alpha), (width,))
        if self.unused:
            self.param("unused_alpha", nn.initializers.constant(0.1), (width,))
            norm(tokens, "unused_norm")
        return x if seen is None else jnp.where(seen.any(axis=-1), x, 0.0)
