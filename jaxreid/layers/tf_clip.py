"""TF-CLIP's two modules: Sequence-Specific Prompt and Temporal Memory Diffusion.

Yu et al., "TF-CLIP: Learning Text-free CLIP for Video-based Person Re-Identification", AAAI 2024, in the form of its
released code; what the code and the paper's parameter counts disagree on is an attribute.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.backbones.attention import attend
from jaxreid.backbones.transformer import Attention, Block, LayerNorm, TransformerConfig, quick_gelu
from jaxreid.shapes import AnyArray, Array, Bool, Float

_init = nn.initializers.truncated_normal(0.02)


class PromptAttention(nn.Module):
    """Attention whose queries, keys and values have no bias."""

    heads: int

    @nn.compact
    def __call__(
        self, queries: Float[Array, "clips queries dim"], context: Float[Array, "clips tokens dim"]
    ) -> Float[Array, "clips queries dim"]:
        width = queries.shape[-1]
        q, k, v = (
            nn.Dense(width, use_bias=False, kernel_init=_init, name=name)(x).reshape(*x.shape[:2], self.heads, -1)
            for name, x in (("query", queries), ("key", context), ("value", context))
        )
        return nn.Dense(width, kernel_init=_init, name="out")(attend(q, k, v).reshape(queries.shape))


class SequenceSpecificPrompt(nn.Module):
    """SSP: what a clip's own tokens change in the rows of the bank, for this clip only.

    Attributes:
      depth: layers.
      heads: of every attention.
      self_attention: whether rows of the bank attend to each other, as in the released code (C² work per clip); it
        is not in the paper's parameter counts.
      dropout: of what attention and MLP add.
    """

    depth: int = 2
    heads: int = 8
    self_attention: bool = False
    dropout: float = 0.1

    @nn.compact
    def __call__(
        self, bank: Float[Array, "classes dim"], tokens: Float[Array, "clips tokens dim"], train: bool
    ) -> Float[Array, "clips classes dim"]:
        """Rows and a clip's projected tokens, averaged over its frames → Δ."""
        width = bank.shape[-1]

        def linear(x: Float[Array, "*rows dim"], name: str) -> Float[Array, "*rows dim"]:
            return nn.Dense(width, kernel_init=_init, name=name)(x)

        def norm(x: Float[Array, "*rows dim"], name: str) -> Float[Array, "*rows dim"]:
            return LayerNorm(1e-5, name=name)(x)

        def drop(x: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
            return nn.Dropout(self.dropout, deterministic=not train)(x)

        v = norm(linear(norm(tokens, "tokens_in"), "tokens"), "tokens_out")
        m = linear(norm(bank, "bank_in"), "bank")
        m = jnp.broadcast_to(m, (tokens.shape[0], *m.shape))
        for layer in range(self.depth):
            if self.self_attention:
                n = norm(m, f"norm_self_{layer}")
                m = m + drop(PromptAttention(self.heads, name=f"self_{layer}")(n, n))
            n = norm(m, f"norm_cross_{layer}")
            m = m + drop(PromptAttention(self.heads, name=f"cross_{layer}")(n, v))
            n = nn.Dense(4 * width, kernel_init=_init, name=f"up_{layer}")(norm(m, f"norm_mlp_{layer}"))
            m = m + drop(nn.Dense(width, kernel_init=_init, name=f"down_{layer}")(drop(quick_gelu(n))))
        return linear(norm(m, "change_in"), "change")


class TemporalMemoryDiffusion(nn.Module):
    """TMD: every frame's mean token attends to the other frames', then the frame's tokens attend to it.

    The tokens are taken as constants: nothing that is learned here reaches the tower.
    """

    heads: int

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "clips frames tokens dim"], frame_mask: Bool[AnyArray, "clips frames"]
    ) -> tuple[Float[Array, "clips dim"], Float[Array, "clips frames dim"]]:
        """Tokens → (clip features, frame features)."""
        clips, frames, length, width = tokens.shape
        config = TransformerConfig(width=width, depth=1, heads=self.heads)
        tokens = jax.lax.stop_gradient(tokens)
        mask = jnp.asarray(frame_mask)[:, None, None, :]
        s = nn.Dense(width, name="summarise")(tokens.mean(axis=2))
        n = LayerNorm(config.eps, name="norm_frames")(s)
        s = s + Attention(config, name="over_frames")(n, n, lambda q, k, v: attend(q, k, v, mask))[0]
        z = jnp.concatenate([tokens, s[:, :, None]], axis=2).reshape(clips * frames, length + 1, width)
        z = Block(config, name="diffuse")(z).tokens
        g = z.reshape(clips, frames, length + 1, width).mean(axis=2)
        return masked_mean(g, frame_mask), g
