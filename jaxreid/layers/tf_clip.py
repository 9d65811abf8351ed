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

Array = jax.Array

_init = nn.initializers.truncated_normal(0.02)


class PromptAttention(nn.Module):
    """Attention whose queries, keys and values have no bias, [B, Q, E] to [B, L, E]."""

    heads: int

    @nn.compact
    def __call__(self, queries: Array, context: Array) -> Array:
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
      self_attention: whether rows of the bank attend to each other, as in the released code (C² work per clip); the
        paper's parameter counts have it not.
      dropout: of what attention and MLP add.
    """

    depth: int = 2
    heads: int = 8
    self_attention: bool = False
    dropout: float = 0.1

    @nn.compact
    def __call__(self, bank: Array, tokens: Array, train: bool) -> Array:
        """Rows [C, E] and a clip's projected tokens, averaged over its frames [B, L, E] → Δ f32[B, C, E]."""
        width = bank.shape[-1]

        def linear(x: Array, name: str) -> Array:
            return nn.Dense(width, kernel_init=_init, name=name)(x)

        def norm(x: Array, name: str) -> Array:
            return LayerNorm(1e-5, name=name)(x)

        def drop(x: Array) -> Array:
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
    """TMD: every frame's mean token sees the other frames', then the frame's tokens see it.

    The tokens are taken as constants: nothing that is learned here reaches the tower.
    """

    heads: int

    @nn.compact
    def __call__(self, tokens: Array, frame_mask: Array) -> tuple[Array, Array]:
        """Tokens [B, T, L, D], frame_mask bool[B, T] → (clip features f32[B, D], frame features f32[B, T, D])."""
        clips, frames, length, width = tokens.shape
        config = TransformerConfig(width=width, depth=1, heads=self.heads)
        tokens = jax.lax.stop_gradient(tokens)
        mask = frame_mask[:, None, None, :]
        s = nn.Dense(width, name="summarise")(tokens.mean(axis=2))
        n = LayerNorm(config.eps, name="norm_frames")(s)
        s = s + Attention(config, name="over_frames")(n, n, lambda q, k, v: attend(q, k, v, mask))[0]
        z = jnp.concatenate([tokens, s[:, :, None]], axis=2).reshape(clips * frames, length + 1, width)
        z = Block(config, name="diffuse")(z).tokens
        g = z.reshape(clips, frames, length + 1, width).mean(axis=2)
        return masked_mean(g, frame_mask), g
