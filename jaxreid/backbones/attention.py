"""Attention, in the form that is the quickest on a device: the one function that all networks compute it with."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Attend = Callable[[Array, Array, Array], Array]


def attend(q: Array, k: Array, v: Array, mask: Array | None = None, *, causal: bool = False) -> Array:
    """softmax(q·k/√d)·v: q [N, Q, H, d], k and v [N, L, H, d] → [N, Q, H, d]; softmax in float32.

    `mask` bool, [N or 1, H or 1, Q or 1, L]: which keys a query sees; one that sees none gets the mean of all values.
    `causal`: query i sees no key after the i-th.
    """
    if mask is None and _has_cudnn_attention() and _fits_cudnn(q, k, causal):
        return _cudnn(q, k, v, causal)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="xla")


causal_attend = functools.partial(attend, causal=True)


def _has_cudnn_attention() -> bool:
    """Whether the device is an NVIDIA GPU from Ampere on."""
    major = str(getattr(jax.local_devices()[0], "compute_capability", "")).partition(".")[0]  # "9.0"; AMD: "gfx942"
    return major.isdecimal() and int(major) >= 8


def _fits_cudnn(q: Array, k: Array, causal: bool) -> bool:
    channels, whole = q.shape[-1], q.shape[1] == k.shape[1]
    types = jnp.bfloat16, jnp.float16
    return q.dtype in types and channels <= 128 and channels % 8 == 0 and (whole or not causal) and q.shape[1] > 1


def _cudnn(q: Array, k: Array, v: Array, causal: bool) -> Array:
    """cuDNN's kernel, which never writes the matrix of scores. Its gradient, as jax calls it, wants even lengths: odd
    ones (the 129 tokens of a CLIP) get a row that is not looked at."""
    attention = functools.partial(jax.nn.dot_product_attention, is_causal=causal, implementation="cudnn")
    if q.shape[1] % 2 == k.shape[1] % 2 == 0:
        return attention(q, k, v)
    queries, keys = (jnp.full(x.shape[0], x.shape[1], jnp.int32) for x in (q, k))
    padded = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    return attention(*padded, query_seq_lengths=queries, key_value_seq_lengths=keys)[:, : q.shape[1]]
