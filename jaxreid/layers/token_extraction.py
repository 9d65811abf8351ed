"""CG-CLIP's Token-based Feature Extraction: a few learned tokens look at all patches of a clip.

Hamano et al. (2026), arXiv 2604.07740, of which only the abstract could be read: learned tokens of a fixed number, and
cross-attention that gathers features over space and time, are the paper's; the layers are this library's.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.backbones.transformer import LayerNorm, fan_in
from jaxreid.errors import UserError
from jaxreid.layers.cross_attention import ContextBlock
from jaxreid.shapes import AnyArray, Array, Bool, Float


class TokenExtraction(nn.Module):
    """TFE: h = Q + Attention(Q → tokens of all frames), h += MLP(h), and the mean of h; its work grows with the frames,
    not with their square.

    Attributes:
      heads: of the attention.
      queries: learned tokens.
      layers: attention and MLP, so many times.
      frames: rows of the table that tells frames apart by their place in the clip, which starts at 0; 0 = no table, and
        the order of frames changes nothing.
      stop_grad: takes the tokens as constants: nothing that is learned here reaches the tower.
    """

    heads: int
    queries: int = 16
    layers: int = 1
    frames: int = 0
    stop_grad: bool = True

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "clips frames tokens dim"], frame_mask: Bool[AnyArray, "clips frames"]
    ) -> Float[Array, "clips dim"]:
        """Tokens → clip features; masked frames have no influence."""
        clips, frames, length, width = tokens.shape
        x = jax.lax.stop_gradient(tokens) if self.stop_grad else tokens
        if self.frames:
            if frames > self.frames:
                raise UserError(f"TokenExtraction: clips of {frames} frames, where {self.frames} have a place")
            x = x + self.param("places", nn.initializers.zeros, (self.frames, width))[:frames, None]
        x = LayerNorm(1e-5, name="norm_tokens")(x.reshape(clips, frames * length, width))
        seen = jnp.repeat(jnp.asarray(frame_mask), length, axis=1)[:, None, None]
        h = self.param("queries", nn.initializers.normal(0.02), (self.queries, width))
        h = jnp.broadcast_to(h, (clips, self.queries, width))
        for layer in range(self.layers):
            block = ContextBlock(self.heads, inner_init=fan_in, last_init=fan_in, name=f"layer_{layer}")
            h = block(h, LayerNorm(1e-5, name=f"norm_queries_{layer}")(h), x, seen)
        return LayerNorm(1e-5, name="norm_out")(h).mean(axis=1)
