"""HAMoBE's experts: low-level ones on single tokens, and on streams that they are blended to those of what a body, its
clothes and its gait look like.

Su et al. (2025), arXiv 2508.05038, as released.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.backbones.torch_linear import torch_dense
from jaxreid.backbones.transformer import LayerNorm
from jaxreid.layers.cross_attention import ContextBlock
from jaxreid.shapes import Array, Float


class LowExperts(nn.Module):
    """E_k(x) = W'_k relu(W_k x): token by token, K of them side by side."""

    count: int
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., C] → [..., K, d]"""
        k, d = self.count, self.width
        hidden = nn.relu(torch_dense(x.shape[-1], k * d, "first", self.dtype)(x)).reshape(*x.shape[:-1], k, d)

        def uniform(key: Array, shape: Any) -> Array:
            return jax.random.uniform(key, shape, minval=-(d**-0.5), maxval=d**-0.5)

        kernel, bias = self.param("kernel", uniform, (k, d, d)), self.param("bias", uniform, (k, d))
        kernel = kernel.astype(self.dtype)
        # One by one: on a CPU half as long as one product of all with transposed arrays.
        second = jnp.stack([hidden[..., i, :] @ kernel[i] for i in range(k)], axis=-2)
        return second + bias.astype(self.dtype)


def mixed(experts: Array, shares: Array) -> Array:
    """S_j = Σ_k g_kj E_k of [N, T, L, K, d] and shares [N, T, L, K, J] → [N, T, L, J, d]."""
    return jnp.einsum("...kd,...kj->...jd", experts, shares.astype(experts.dtype))


class TokenPool(nn.Module):
    """An MLP over the positions of tokens, [..., L, D] → float32 [..., D]: from L through `hidden` to one."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.swapaxes(-1, -2)
        x = nn.relu(torch_dense(x.shape[-1], self.hidden, "first", self.dtype)(x))
        return torch_dense(self.hidden, 1, "second", self.dtype)(x)[..., 0].astype(jnp.float32)


class TokenMlp(nn.Module):
    """Two layers with ReLU between, [..., D] → [..., D]."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        return torch_dense(width, width, "second", self.dtype)(
            nn.relu(torch_dense(width, width, "first", self.dtype)(x))
        )


class FrameExpert(nn.Module):
    """The canonical and the appearance expert: tokens of a frame → one feature of it."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stream: Float[Array, "clips frames tokens dim"]) -> Float[Array, "clips frames dim"]:
        return TokenPool(stream.shape[-1] // 4, self.dtype, name="pool")(TokenMlp(self.dtype, name="mlp")(stream))


class GaitExpert(nn.Module):
    """Tokens of all frames → a feature of the clip: a learned query, 0 at the start, attends to them once."""

    heads: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stream: Float[Array, "clips frames tokens dim"], train: bool) -> Float[Array, "clips dim"]:
        n, width = stream.shape[0], stream.shape[-1]
        tokens = TokenMlp(self.dtype, name="mlp")(stream).reshape(n, -1, width)
        query = self.param("query", nn.initializers.zeros, (width,))
        query = jnp.broadcast_to(query, (n, 1, width))
        xavier = nn.initializers.xavier_uniform()
        channels = 3 * width // 2 // self.heads
        block = ContextBlock(
            self.heads, channels, inner_init=xavier, last_init=xavier, dropout=self.dropout, name="decoder"
        )
        normed = (LayerNorm(1e-5, name=name)(x) for name, x in (("norm_query", query), ("norm_tokens", tokens)))
        return block(query, *normed, train=train)[:, 0]
