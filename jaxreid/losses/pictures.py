"""Pictures held against the pictures that they should be: losses, and the usual figures."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import masked_mean
from jaxreid.shapes import Array, Bool, Float

WINDOW, SIGMA = 11, 1.5  # of structural similarity
K1, K2 = 0.01, 0.03


def absolute_difference(
    found: Float[Array, "clips frames *rest"],
    wanted: Float[Array, "clips frames *rest"],
    mask: Bool[Array, "clips frames"],
) -> Float[Array, ""]:
    """Mean |found − wanted| over the frames that count; f32[], 0 where none does."""
    each = jnp.abs(found.astype(jnp.float32) - wanted.astype(jnp.float32))
    return masked_mean(each.mean(axis=tuple(range(2, each.ndim))), mask, axis=None)


def step_difference(
    found: Float[Array, "clips frames *rest"],
    wanted: Float[Array, "clips frames *rest"],
    mask: Bool[Array, "clips frames"],
) -> Float[Array, ""]:
    """`absolute_difference` of what changes from a frame to the next; of pairs that both count."""
    if mask.shape[1] < 2:
        return jnp.float32(0)
    return absolute_difference(jnp.diff(found, axis=1), jnp.diff(wanted, axis=1), mask[:, 1:] & mask[:, :-1])


def psnr(found: Float[Array, "*rest high wide 3"], wanted: Float[Array, "*rest high wide 3"]) -> Float[Array, "*rest"]:
    """Peak signal-to-noise ratio in dB of pictures of values in 0…1."""
    return -10.0 * jnp.log10(jnp.maximum(jnp.mean((found - wanted) ** 2, axis=(-3, -2, -1)), 1e-10))


def ssim(found: Float[Array, "*rest high wide 3"], wanted: Float[Array, "*rest high wide 3"]) -> Float[Array, "*rest"]:
    """Structural similarity of pictures of values in 0…1 (Wang et al. 2004): Gaussian windows of 11 pixels that lie
    within the picture, the mean over them and over the colours."""
    rows, columns = (_windows(n) for n in found.shape[-3:-1])

    def local(x: Array) -> Array:
        return jnp.einsum("rh,...hwc,sw->...rsc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)

    one, other = local(found), local(wanted)
    first, second = local(found * found) - one * one, local(wanted * wanted) - other * other
    both = local(found * wanted) - one * other
    c1, c2 = K1**2, K2**2
    each = (2 * one * other + c1) * (2 * both + c2) / ((one**2 + other**2 + c1) * (first + second + c2))
    return each.mean(axis=(-3, -2, -1))


def _windows(size: int) -> np.ndarray:
    """f32[size − 10, size], the weights of each window."""
    weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    return np.stack([np.convolve(np.eye(size)[i + WINDOW // 2], weights, "same") for i in range(size - WINDOW + 1)])
