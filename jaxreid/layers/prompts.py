"""Prompts of the image tower: learned tokens that its first blocks attend to, one set per camera or platform."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class DeepPrompts(nn.Module):
    """A table [blocks, conditions, length, width], normal of deviation 0.02 cut at two of them.

    These are VSLA-CLIP's platform prompts, with the camera or platform as condition.
    """

    blocks: int
    conditions: int
    length: int
    width: int

    @nn.compact
    def __call__(self, condition: Array) -> Array:
        """Rows i32[N] → `Hooks.prompts` f32[blocks, N, length, width]; a negative row takes the mean of all."""
        shape = (self.blocks, self.conditions, self.length, self.width)
        table = self.param("table", nn.initializers.truncated_normal(0.02), shape)
        known = (condition >= 0)[None, :, None, None]
        return jnp.where(known, table[:, condition], table.mean(axis=1, keepdims=True))
