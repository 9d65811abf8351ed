"""Attention over the frames of a clip at every place of a map, to the nearest frames alone."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.shapes import AnyArray, Array, Bool, Float


class BandAttention(nn.Module):
    """out(attention(norm(x))) over frames at most `reach` apart, with a learned number for each distance and head.

    `out` starts at 0: a new module adds nothing.
    """

    heads: int = 4
    reach: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Float[Array, "clips frames rows columns dim"], frame_mask: Bool[AnyArray, "clips frames"]
    ) -> Float[Array, "clips frames rows columns dim"]:
        """What is to be added to the maps; frames that do not count are not looked at."""
        clips, length, *_, width = maps.shape
        apart = np.arange(length)[None] - np.arange(length)[:, None]  # of query and key
        near = np.abs(apart) <= self.reach
        table = self.param("distance_bias", nn.initializers.truncated_normal(0.02), (2 * self.reach + 1, self.heads))
        bias = table[np.clip(apart, -self.reach, self.reach) + self.reach].transpose(2, 0, 1).astype(self.dtype)

        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(maps)
        x = x.reshape(clips, length, -1, width).swapaxes(1, 2)  # [B, pixels, T, C]
        q, k, v = (
            nn.Dense(width, dtype=self.dtype, name=name)(x).reshape(*x.shape[:3], self.heads, -1)
            for name in ("query", "key", "value")
        )
        seen = jnp.asarray(near & frame_mask[:, None, :])

        def attend(q: Array, k: Array, v: Array, seen: Array) -> Array:
            return jax.nn.dot_product_attention(q, k, v, bias=bias[None], mask=seen[None, None], implementation="xla")

        x = jax.vmap(attend)(q, k, v, seen).reshape(x.shape)
        x = nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(x)
        return x.swapaxes(1, 2).reshape(maps.shape)
