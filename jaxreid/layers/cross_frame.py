"""What neighbouring frames say to each other's tokens: HAMoBE's temporal decoder over blocks of a frozen tower.

Lin et al. (2022), "Frozen CLIP models are efficient video learners" (EVL), arXiv 2208.03550, whose modules they are;
Su et al. (2025), HAMoBE, arXiv 2508.05038, which joins the blocks by a linear layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.backbones.torch_linear import torch_dense
from jaxreid.backbones.transformer import Tap
from jaxreid.shapes import Array, Float

Grid = tuple[int, int]


def mean_attention(
    queries: Float[Array, "*frames patches heads channels"], keys: Float[Array, "*frames patches heads channels"]
) -> Float[Array, "*frames patches patches"]:
    """The mean over heads of softmax(q·k/√d), in float32."""
    scale = queries.shape[-1] ** -0.5
    scores = jnp.einsum("...qhc,...khc->...hqk", queries, keys, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scale * scores, axis=-1).mean(axis=-3)


def offset_sum(
    attention: Float[Array, "rows patches patches"], table: Float[Array, "offsets dim"], grid: Grid
) -> Float[Array, "rows patches dim"]:
    """Σ_{p'} A[p, p'] w[p − p'] of the cells p, p' of a grid h × w, whose (2h − 1)·(2w − 1) offsets each have a row.

    The cells (i', j') that cell (i, j) looks at have the h × w rows of the table from (i, j) on, in reverse: a row of
    cells at a time takes its windows, so that no table [patches, patches, dim] is ever made.
    """
    (h, w), dim = grid, table.shape[-1]
    cells = table.reshape(2 * h - 1, 2 * w - 1, dim)
    by_row = attention.reshape(-1, h, w, h, w).swapaxes(0, 1)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # else the backward pass keeps all windows
    def of_row(i: Array, looks: Array) -> Array:
        rows = jax.lax.dynamic_slice_in_dim(cells, i, h)[::-1]
        windows = jnp.stack([rows[:, j : j + w][:, ::-1] for j in range(w)])
        return jnp.einsum("njab,jabc->njc", looks, windows)

    found = jax.lax.map(lambda row: of_row(*row), (jnp.arange(h), by_row))  # [h, rows, w, dim]
    return found.swapaxes(0, 1).reshape(-1, h * w, dim)


class TemporalLayer(nn.Module):
    """Of a block's tokens o: o + convolution over time + e_t + R, each of the three only if asked for.

    The convolution has a kernel of three frames for each channel, zero padding, and starts as PyTorch's; e and the two
    tables of R start at 0. R: what the block's own queries find among the keys of the frame before and of the one
    after; the class token has none.

    Attributes:
      grid: patches down and across.
      frames: T of every clip.
      conv, position, bias: what is added.
      dtype: of the products.
    """

    grid: Grid
    frames: int
    conv: bool = True
    position: bool = True
    bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tap: Tap) -> Array:
        """A `Tap` of arrays [N, T, L, …] → [N, T, L, D] in `dtype`. No gradient reaches what was tapped."""
        tokens, queries, keys = jax.lax.stop_gradient(tap)
        n, frames, length, dim = tokens.shape
        h = o = tokens.astype(self.dtype)
        if self.conv:

            def uniform(key: Array, shape: Any) -> Array:
                return jax.random.uniform(key, shape, minval=-(3**-0.5), maxval=3**-0.5)

            kernel = self.param("conv_kernel", uniform, (3, dim)).astype(self.dtype)
            padded = jnp.pad(o, ((0, 0), (1, 1), (0, 0), (0, 0)))
            h = h + sum(kernel[k] * padded[:, k : k + frames] for k in range(3))
            h = h + self.param("conv_bias", uniform, (dim,)).astype(self.dtype)
        if self.position:
            places = self.param("position", nn.initializers.zeros, (self.frames, dim))
            h = h + places[:, None].astype(self.dtype)
        if self.bias:
            offsets = (2 * self.grid[0] - 1) * (2 * self.grid[1] - 1)
            q, k = queries[:, :, 1:], keys[:, :, 1:]
            # Frames 1 … T − 1 look back, frames 0 … T − 2 ahead.
            for name, to, source, place in (
                ("previous", q[:, 1:], k[:, :-1], (1, 0)),
                ("next", q[:, :-1], k[:, 1:], (0, 1)),
            ):
                table = self.param(name, nn.initializers.zeros, (offsets, dim)).astype(self.dtype)
                looks = mean_attention(to, source).astype(self.dtype)
                found = offset_sum(looks.reshape(-1, *looks.shape[2:]), table, self.grid)
                found = found.reshape(n, frames - 1, length - 1, dim)
                h = h + jnp.pad(found, ((0, 0), place, (1, 0), (0, 0)))
        return h


class TemporalDecoder(nn.Module):
    """F: the layers of several blocks, shallow to deep, side by side through one linear layer back to the width of one.

    Attributes:
      layer: makes the `TemporalLayer` of a block, by its name.
      dtype: of the products.
    """

    layer: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps: Sequence[Tap]) -> Array:
        """Taps of arrays [N, T, L, …], the first token that of the class → [N, T, L, D]."""
        h = jnp.concatenate([self.layer(name=f"layer_{i}")(tap) for i, tap in enumerate(taps)], axis=-1)
        return torch_dense(h.shape[-1], h.shape[-1] // len(taps), "join", self.dtype)(h)
