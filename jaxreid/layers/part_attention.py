"""KeyRe-ID's local branch: one wide block that looks at a clip's patches once for every part of the body.

Only the class token's row is read, and nothing in a part's rows but its weights differs from another's. So keys and
values need not be made for each part, nor for each row: queries come to the rows, and rows are summed before they
become values. `fast=False` is the plain form, part by part, which gives the same numbers (docs/keyre_id.md).
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.backbones.transformer import Block, LayerNorm, TransformerConfig
from jaxreid.shapes import Array, Float

Gate = Literal["pre_norm", "post_norm"]


class PartAttention(nn.Module):
    """Clip tokens and weights of their patches → a vector of every part.

    Part k: x = [token; m_k · rows] → block → norm → the token's row. With gate "pre_norm" the rows are weighted before
    the block, as published; its norm takes most of a weight away again, so that little but zero or not zero is left.
    With "post_norm" the normalized rows are.

    Attributes:
      config: of the block, as wide as the clip tokens.
      eps: of the last norm.
    """

    config: TransformerConfig
    gate: Gate = "pre_norm"
    fast: bool = True
    eps: float = 1e-5

    def setup(self):
        self.block = Block(self.config)
        self.norm = LayerNorm(self.eps)

    def __call__(
        self, tokens: Float[Array, "clips tokens wide"], weights: Float[Array, "clips parts patches"]
    ) -> Float[Array, "clips parts wide"]:
        """`tokens`: the class token first, then the patches that `weights` are of."""
        weights = jnp.pad(weights, ((0, 0), (0, 0), (1, 0)), constant_values=1.0)  # the class token as it is
        # Parameters are made by the block itself.
        rows = self._fast(tokens, weights) if self.fast and not self.is_initializing() else self._plain(tokens, weights)
        return self.norm(rows)

    def _plain(self, tokens: Array, weights: Array) -> Array:
        clips, parts, count = weights.shape
        scale = weights[..., None]
        each = jnp.broadcast_to(tokens[:, None], (clips, parts, count, tokens.shape[-1]))
        change = None
        if self.gate == "pre_norm":
            each = (each * scale).astype(tokens.dtype)
        else:
            flat = scale.reshape(clips * parts, count, 1)
            # The block also norms what its MLP gets, which is of the token alone.
            change = lambda normed: normed * flat  # noqa: E731
        flat_rows = each.reshape(clips * parts, count, -1)
        found = self.block(flat_rows, outputs=1, change_normed=change).tokens
        return found.reshape(clips, parts, -1)

    def _fast(self, tokens: Array, weights: Array) -> Array:
        c, attention = self.config, self.block.attention
        clips, parts, _ = weights.shape
        x = tokens.astype(jnp.float32)
        # The first norm of a row times its weight is g·u + shift: what depends on weights, on the row, on neither.
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.mean(centred**2, -1)[:, None]  # [B, 1, L]
        norm: Any = self.block.norm_1.variables["params"]
        u, shift = centred * norm["scale"], norm["bias"]
        if self.gate == "pre_norm":
            g = weights * jax.lax.rsqrt(weights**2 * variance + c.eps)
        else:
            g, u = weights, u * jax.lax.rsqrt(variance[:, 0, :, None] + c.eps) + shift
            shift = jnp.zeros_like(shift)
        normed = g[:, 0, :1] * u[:, 0] + shift  # of the class token, the same for all parts
        u = u.astype(c.dtype)

        def by_head(name: str) -> tuple[Array, Array]:
            weight: Any = getattr(attention, name).variables["params"]
            kernel, bias = weight["kernel"].astype(c.dtype), weight["bias"].astype(c.dtype)
            return kernel.reshape(c.width, c.heads, -1), bias.reshape(c.heads, -1)

        (keys, _), (values, value_bias) = by_head("key"), by_head("value")
        q = attention.query(normed).reshape(clips, c.heads, -1)
        # q · k_i = g_i (W_k q) · u_i, but for what is the same for every i and leaves the softmax as it is.
        q = jnp.einsum("bhd,whd->bhw", q, keys)
        score = jnp.einsum("bhw,biw->bhi", q, u, preferred_element_type=jnp.float32)
        score = score[:, :, None] * g[:, None] * (c.width // c.heads) ** -0.5
        share = jax.nn.softmax(score, axis=-1)  # f32[B, H, P, L]
        mixed = jnp.einsum("bhpi,biw->bhpw", (share * g[:, None]).astype(c.dtype), u) + shift.astype(c.dtype)
        value = jnp.einsum("bhpw,whd->bphd", mixed, values) + value_bias
        row = tokens[:, :1].astype(c.dtype) + attention.out(value.reshape(clips, parts, -1))
        return row + self.block.mlp(self.block.norm_2(row))
