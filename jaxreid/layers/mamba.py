"""Mamba on the tokens of clips: a selective scan over the sequence in three orders, and three granularities of time.

Yang et al., "SAS-VPReID", arXiv 2601.05535, module MGTM; the three scans are Vivim's ("v3"), a scan Mamba's (Gu, Dao,
"Mamba: Linear-Time Sequence Modeling with Selective State Spaces").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.backbones.torch_linear import TORCH_LINEAR
from jaxreid.backbones.transformer import LayerNorm, exact_gelu
from jaxreid.errors import UserError
from jaxreid.shapes import AnyArray, Array, Bool, Float, Shaped

ORDERS = 3  # forward, backward, regrouped
SEGMENTS = {"quarters": 4, "halves": 2, "whole": 1}  # of a clip, in the order of the fusion's weights
EPS = 1e-5
LEAST_STEP, LARGEST_STEP = 1e-3, 1e-1  # Δ at the start is drawn between these, evenly in its logarithm


def selective_scan(
    x: Float[Array, "rows length dim"],
    delta: Float[Array, "rows length dim"],
    a: Float[Array, "dim state"],
    b: Float[Array, "rows length state"],
    c: Float[Array, "rows length state"],
    skip: Float[Array, " dim"],
    chunk: int,
) -> Float[Array, "rows length dim"]:
    """h_t = exp(Δ_t A) ⊙ h_{t−1} + Δ_t x_t B_t from h = 0; y_t = C_t · h_t + D ⊙ x_t; float32.

    Inside of a chunk the states are found side by side (an associative scan of the pairs (exp(ΔA), ΔxB)); chunks follow
    each other, and the backward pass computes a chunk anew: what is kept is a state per chunk. The states of all tokens
    at once would be 342 MB for a clip of 16 × 163 tokens of 2048 channels. Where Δ is 0 the state stays as it is.

    Args:
      a: negative; skip: D.
      chunk: tokens of a chunk; 1 is the plain loop, which is the quickest on CPUs.
    """
    rows, length, dim = x.shape
    chunk = min(chunk, length)
    more = -length % chunk  # tokens with Δ = 0, which leave no trace
    a = a.T  # states lie in front of channels, of which there are many: vector units take channels

    def chunks(y: Array) -> Array:
        padded = jnp.pad(y.astype(jnp.float32), ((0, 0), (0, more), (0, 0)))
        return padded.reshape(rows, -1, chunk, y.shape[-1]).transpose(1, 2, 0, 3)

    def joined(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] * second[0], first[1] * second[0] + second[1]

    def terms(x: Array, delta: Array, b: Array) -> tuple[Array, Array]:
        return jnp.exp(delta[..., None, :] * a), (delta * x)[..., None, :] * b[..., None]

    # The form below gives the same for a chunk of one token, but takes several times as long on a CPU.
    def of_token(state: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        decay, write = terms(*(y[0] for y in inputs[:3]))
        state = decay * state + write
        return state, (state * inputs[3][0, ..., None]).sum(1)[None]

    def of_chunk(state: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        decay, written = jax.lax.associative_scan(joined, terms(*inputs[:3]))
        states = written + decay * state
        return states[-1], (states * inputs[3][..., None]).sum(2)

    start = jnp.zeros((rows, a.shape[0], dim), jnp.float32)
    # Inside of a loop nothing is shared by mistake.
    step = jax.checkpoint(of_token if chunk == 1 else of_chunk, prevent_cse=False)
    read = jax.lax.scan(step, start, tuple(map(chunks, (x, delta, b, c))))[1]
    read = read.reshape(length + more, rows, dim)[:length].swapaxes(0, 1)
    return read + skip * x.astype(jnp.float32)


def regroup(x: Shaped[Array, "rows length *rest"], pieces: int) -> Shaped[Array, "rows length *rest"]:
    """[N, L, …] of `pieces` equal stretches → what stands at the same place of each side by side: of frames, all first
    tokens, then all second ones."""
    return x.reshape(x.shape[0], pieces, -1, *x.shape[2:]).swapaxes(1, 2).reshape(x.shape)


def in_orders(x: Shaped[Array, "rows length *rest"], pieces: int) -> Shaped[Array, "3 rows length *rest"]:
    """[N, L, …] forward, backward and regrouped."""
    return jnp.stack([x, jnp.flip(x, 1), regroup(x, pieces)])


def in_place(y: Shaped[Array, "3 rows length *rest"], pieces: int) -> Shaped[Array, "3 rows length *rest"]:
    """What `in_orders` ordered, as it stood."""
    return jnp.stack([y[0], jnp.flip(y[1], 1), regroup(y[2], y.shape[2] // pieces)])


def _decays(rng: jax.Array, shape: tuple[int, ...]) -> Array:
    """log(−A), with −A = 1 … N in every channel."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1.0, shape[-1] + 1)), shape)


def _step_bias(rng: jax.Array, shape: tuple[int, ...]) -> Array:
    """The inverse of softplus of the first Δ."""
    low, high = math.log(LEAST_STEP), math.log(LARGEST_STEP)
    first = jnp.exp(jax.random.uniform(rng, shape, minval=low, maxval=high))
    return first + jnp.log(-jnp.expm1(-first))


class Mamba(nn.Module):
    """Mamba's mixer over a sequence, with three scans in place of one: each has its own convolution, Δ, B, C, A and D;
    they share the way in, the gate and the way out, and count a third each.

    Parameters of the three lie on a first axis: forward, backward, regrouped.

    Attributes:
      state: N, of every channel; expand: channels over the width; kernel: tokens that the causal convolution sees.
      chunk: see `selective_scan`.
      dtype: of the matrix products on the way in and out; all else is float32.
    """

    state: int = 16
    expand: int = 2
    kernel: int = 4
    chunk: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "rows length dim"], mask: Bool[AnyArray, "rows length"], pieces: int
    ) -> Float[Array, "rows length dim"]:
        """Tokens, and which of them count → tokens; those that don't leave no trace in others.

        Args:
          pieces: equal stretches of the sequence, of which the third scan sees the same places one after another.
        """
        width = x.shape[-1]
        dim, rank = self.expand * width, -(-width // 16)
        x = jnp.where(mask[..., None], x, 0.0)  # without a bias on the way in, 0 stays 0
        dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype, kernel_init=TORCH_LINEAR)
        values, gate = jnp.split(dense(2 * dim, name="in")(x), 2, axis=-1)
        seen = in_orders(jnp.asarray(mask), pieces)

        of_order = functools.partial(nn.initializers.variance_scaling, 1 / 3, "fan_in", "uniform")
        over_tokens = of_order(in_axis=1, out_axis=(), batch_axis=(0, 2))
        conv = self.param("conv_kernel", over_tokens, (ORDERS, self.kernel, dim))
        conv_bias = self.param("conv_bias", nn.initializers.zeros, (ORDERS, dim))
        mixing = self.param("mixing", of_order(batch_axis=0), (ORDERS, dim, rank + 2 * self.state))
        step = self.param("step_kernel", of_order(batch_axis=0), (ORDERS, rank, dim))
        step_bias = self.param("step_bias", _step_bias, (ORDERS, dim))
        log_a = self.param("log_a", _decays, (ORDERS, dim, self.state))
        skip = self.param("skip", nn.initializers.ones, (ORDERS, dim))

        u = in_orders(values.astype(jnp.float32), pieces)
        length = u.shape[2]
        padded = jnp.pad(u, ((0, 0), (0, 0), (self.kernel - 1, 0), (0, 0)))
        u = sum(conv[:, k, None, None] * padded[:, :, k : k + length] for k in range(self.kernel))
        u = nn.silu(u + conv_bias[:, None, None])
        exactly = functools.partial(jnp.einsum, "prld,pde->prle", precision=jax.lax.Precision.HIGHEST)
        delta, b, c = jnp.split(exactly(u, mixing), (rank, rank + self.state), axis=-1)
        delta = nn.softplus(exactly(delta, step) + step_bias[:, None, None])
        delta = jnp.where(seen[..., None], delta, 0.0)
        scan = jax.vmap(functools.partial(selective_scan, chunk=self.chunk))
        y = in_place(scan(u, delta, -jnp.exp(log_a), b, c, skip), pieces).mean(0)
        y = y * nn.silu(gate.astype(jnp.float32))
        return dense(width, name="out")(y).astype(jnp.float32)


class MambaLayer(nn.Module):
    """x += Mamba(norm_1(x)); x += MLP(norm_2(x)); norm(x), on the frames of clips.

    Attributes:
      mlp_ratio: hidden width of the MLP over the width.
      chunk: tokens of a chunk of the scan, 0 = those of a frame.
      state, expand, kernel, dtype: of `Mamba`.
    """

    state: int = 16
    expand: int = 2
    kernel: int = 4
    mlp_ratio: int = 4
    chunk: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "clips frames tokens dim"],
        frame_mask: Bool[AnyArray, "clips frames"],
        pieces: int = 0,
    ) -> Float[Array, "clips frames tokens dim"]:
        """Tokens → tokens; `pieces` of the regrouped scan, 0 = as many as frames."""
        clips, frames, length, width = tokens.shape
        x = tokens.astype(jnp.float32).reshape(clips, frames * length, width)
        mask = jnp.repeat(jnp.asarray(frame_mask), length, axis=1)
        mixer = Mamba(self.state, self.expand, self.kernel, self.chunk or length, self.dtype, name="mamba")
        x = x + mixer(LayerNorm(EPS, name="norm_1")(x), mask, pieces or frames)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=TORCH_LINEAR)
        hidden = exact_gelu(dense(self.mlp_ratio * width, name="up")(LayerNorm(EPS, name="norm_2")(x)))
        x = x + dense(width, name="down")(hidden).astype(jnp.float32)
        return LayerNorm(EPS, name="norm")(x).reshape(tokens.shape)


class MultiGranularityMamba(nn.Module):
    """MGTM: a `MambaLayer` over all frames, one over each half of them and one over each quarter; the three features of
    a clip are mixed by learned weights, equal at first.

    The tokens are taken as constants: nothing that is learned here reaches the tower.

    Attributes:
      pieces: of the regrouped scan over the whole clip, half and a quarter as many in the others; 0 = as many as
        frames. (Released: the frames of training, also where tests have more.)
      layer: makes a `MambaLayer` by its name.
    """

    layer: Callable[..., nn.Module] = MambaLayer
    pieces: int = 0

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "clips frames tokens dim"], frame_mask: Bool[AnyArray, "clips frames"]
    ) -> tuple[Float[Array, "clips dim"], Float[Array, "clips frames dim"]]:
        """Tokens of clips, whose frames are a multiple of 4 → (clip features, frame features)."""
        clips, frames, length, width = tokens.shape
        if frames % max(SEGMENTS.values()):
            raise UserError(
                f"MultiGranularityMamba: clips of {frames} frames have no equal quarters: take a multiple of 4"
            )
        tokens, mask = jax.lax.stop_gradient(tokens), jnp.asarray(frame_mask)
        of_clips, of_frames = [], None
        for name, count in SEGMENTS.items():
            segments = tokens.reshape(clips * count, frames // count, length, width)
            found = self.layer(name=name)(segments, mask.reshape(clips * count, -1), self.pieces // count)
            found = found.mean(axis=2).reshape(clips, frames, width)
            if name == "whole":
                of_frames = found = LayerNorm(EPS, name="norm_frames")(found)
            of_clips.append(masked_mean(found, mask))
        weights = jax.nn.softmax(self.param("fusion", nn.initializers.zeros, (len(SEGMENTS),)))
        mixed = jnp.einsum("k,kbd->bd", weights, jnp.stack(of_clips), precision=jax.lax.Precision.HIGHEST)
        assert of_frames is not None
        return LayerNorm(EPS, name="norm_clip")(mixed), of_frames
