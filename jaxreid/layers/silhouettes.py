"""From the mask branch's two shares to a silhouette, and the losses that shape it (DinoGRL, after BigGait).

Sizes were published for a grid of 64 rows: bands and kernels are the same share of any other, to the next cell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.shapes import AnyArray, Array, Bool, Float

ROWS = 64  # of the published grid
BAND, DILATE, ERODE = 5, 1, 2  # rows above and below that show the background; cells around a cell
SobelLayout = Literal["channels", "legacy"]


def scaled(cells: int, rows: int) -> int:
    """A length on the published grid on one of so many rows; halves are rounded up."""
    return (2 * cells * rows + ROWS) // (2 * ROWS)


def resized(
    maps: Float[AnyArray, "maps _ _ channels"], size: tuple[int, int]
) -> Float[Array, "maps rows columns channels"]:
    """Bilinear, from the centres of cells, as PyTorch's `interpolate(align_corners=False)`."""
    if maps.shape[1:3] == size:
        return jnp.asarray(maps)
    return jax.image.resize(maps, (maps.shape[0], *size, maps.shape[3]), "linear", antialias=False)


def person(shares: Float[Array, "frames rows columns 2"]) -> Float[Array, "frames rows columns"]:
    """The share of the person: that of channel 0, unless its cells fill more than half of the bands above and below."""
    first = shares[..., 0]
    background = _ends(jnp.round(first), 1).mean(axis=(1, 2)) > 0.5
    return jnp.where(background[:, None, None], shares[..., 1], first)


def _ends(x: jax.Array, axis: int) -> jax.Array:
    """The first and the last cells along an axis, as many as a band has."""
    count = x.shape[axis]
    band = max(scaled(BAND, count), 1)
    first, last = (jax.lax.slice_in_dim(x, *ends, axis=axis) for ends in ((0, band), (count - band, count)))
    return jnp.concatenate([first, last], axis=axis)


def cleaned(share: Float[Array, "frames rows columns"]) -> Float[Array, "frames rows columns"]:
    """g: 1 inside, the share itself along the edge, 0 outside; holes are closed and what is thin is an edge.

    With D the dilated hard mask and E the eroded D, g is 1 in E and the share where only one of them is.
    """
    rows = share.shape[1]
    dilated = _extreme(jnp.round(share), scaled(DILATE, rows), jax.lax.max, -jnp.inf)
    eroded = _extreme(dilated, scaled(ERODE, rows), jax.lax.min, jnp.inf)
    return jnp.where((dilated > 0.5) ^ (eroded > 0.5), share, 0.0) + (eroded > 0.5)


def _extreme(x: jax.Array, radius: int, of: Callable[..., jax.Array], outside: float) -> jax.Array:
    side = 2 * radius + 1
    return jax.lax.reduce_window(x, outside, of, (1, side, side), (1, 1, 1), "SAME")  # pyright: ignore


# --- Losses -----------------------------------------------------------------------------------------------------------


def sobel_loss(maps: Float[Array, "frames rows columns channels"], mask: Bool[Array, " frames"]) -> Float[Array, ""]:
    """(Σ|Gx| + Σ|Gy|) / cells and channels, over frames that count: of the *sum* of the channels, zeros around it."""
    across, down = _sobel(maps.astype(jnp.float32).sum(-1))
    edges = (jnp.abs(across) + jnp.abs(down)).mean(axis=(1, 2)) / maps.shape[-1]
    return masked_mean(edges, mask)


def mask_sobel_loss(
    shares: Float[Array, "frames rows columns 2"], mask: Bool[Array, " frames"], layout: SobelLayout
) -> Float[Array, ""]:
    """How rough the two shares are.

    "channels": the mean of what `sobel_loss` finds of either. Of both together it would find nothing: they add up to
    1. "legacy", as released: cells and channels of a frame are read as if the channels came first.
    """
    frames, rows, columns, channels = shares.shape
    if layout == "legacy":
        return sobel_loss(jnp.moveaxis(shares.reshape(frames, channels, rows, columns), 1, -1), mask)
    return (sobel_loss(shares[..., :1], mask) + sobel_loss(shares[..., 1:], mask)) / channels


def border_loss(shares: Float[Array, "frames rows columns 2"], mask: Bool[Array, " frames"]) -> Float[Array, ""]:
    """The mean of channel 0 along the four edges of a frame, over frames that count: a person stands in the middle.

    Ours. It says which of the two shares is the person, and that no half of a frame is one.
    """
    first = shares[..., 0].astype(jnp.float32)
    rows, columns = (_ends(first, axis).mean(axis=(1, 2)) for axis in (1, 2))
    return masked_mean((rows + columns) / 2, mask)


def _sobel(x: Float[Array, "frames rows columns"]) -> tuple[jax.Array, jax.Array]:
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
    smooth_down = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    smooth_across = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
    return smooth_down[:, :, :-2] - smooth_down[:, :, 2:], smooth_across[:, :-2] - smooth_across[:, 2:]


def diversity_loss(
    parts: Float[Array, "frames rows columns channels"], mask: Bool[Array, " frames"]
) -> Float[Array, ""]:
    """How far the parts are from being all used alike: log₂ channels − the entropy of their masses in bits, the mean
    over frames that count."""
    mass = parts.astype(jnp.float32).sum(axis=(1, 2))
    share = mass / (mass.sum(-1, keepdims=True) + 1e-6)
    entropy = -(share * jnp.log2(share + 1e-6)).sum(-1)
    return masked_mean(jnp.log2(float(parts.shape[-1])) - entropy, mask)


# --- Whole clips lose a map -------------------------------------------------------------------------------------------


def kept_maps(rng: Array, valid: Bool[AnyArray, " clips"], share: float) -> Bool[Array, "clips 2"]:
    """Which of their two maps clips keep: a share of them, drawn among those that count, loses one or the other."""
    clips = valid.shape[0]
    order_key, coin_key = jax.random.split(rng)
    draw = jnp.where(valid, jax.random.uniform(order_key, (clips,)), 2.0)
    chosen = jnp.argsort(jnp.argsort(draw)) < round(share * clips)
    coin = jax.random.bernoulli(coin_key, 0.5, (clips,))
    return ~(chosen[:, None] & jnp.stack([coin, ~coin], axis=-1))
