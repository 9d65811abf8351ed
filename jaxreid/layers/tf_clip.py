"""TF-CLIP's temporal module; its other one, Sequence-Specific Prompt, is a `prompt_decoder.PromptDecoder`.

Yu et al., "TF-CLIP: Learning Text-free CLIP for Video-based Person Re-Identification", AAAI 2024, in the form of its
released code.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.backbones.attention import attend
from jaxreid.backbones.transformer import Attention, Block, LayerNorm, TransformerConfig
from jaxreid.shapes import AnyArray, Array, Bool, Float


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
