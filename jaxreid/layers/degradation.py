"""Pictures made small, and made worse than small, by products with matrices: shapes never depend on what was drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jaxreid.shapes import Array, Float
from jaxreid.values import check, flag, fraction, non_negative, number, series

BLUR_REACH = 3  # pixels to each side: a kernel of seven


def cubic(x: Array) -> Array:
    """Keys' kernel with a = −0.5, as PIL and `jax.image.resize` have it."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


def resizing(
    inputs: int, outputs: int, count_in: Array | int | None = None, count_out: Array | int | None = None
) -> Float[Array, "*rest outputs inputs"]:
    """Bicubic weights, antialiased where it shrinks: the first `count_in` of so many inputs → the first `count_out` of
    so many outputs, whose other rows are 0. The counts, [...], may be drawn."""
    given = jnp.asarray(inputs if count_in is None else count_in)
    made = jnp.asarray(outputs if count_out is None else count_out)
    scale = (given / made)[..., None, None]
    place = (jnp.arange(outputs)[:, None] + 0.5) * scale - 0.5
    weights = cubic((place - jnp.arange(inputs)) / jnp.maximum(scale, 1.0))
    weights = jnp.where(jnp.arange(inputs) < given[..., None, None], weights, 0.0)
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1.0, total)
    return jnp.where(jnp.arange(outputs)[:, None] < made[..., None, None], weights, 0.0)


def blurring(size: int, sigma: Float[Array, "*rest"]) -> Float[Array, "*rest size size"]:
    """A Gaussian of seven pixels, whose weights within the picture sum to 1."""
    apart = jnp.arange(size)[:, None] - jnp.arange(size)
    weights = jnp.exp(-(apart**2) / (2.0 * sigma[..., None, None] ** 2))
    weights = jnp.where(jnp.abs(apart) <= BLUR_REACH, weights, 0.0)
    return weights / weights.sum(-1, keepdims=True)


def resize(
    frames: Float[Array, "clips frames high wide channels"], rows: Array, columns: Array
) -> Float[Array, "clips frames rows columns channels"]:
    """Frames between a matrix of rows and one of columns, [h, H] and [w, W], or one for each clip."""
    rows, columns = (jnp.broadcast_to(x, (len(frames), *x.shape[-2:])) for x in (rows, columns))
    return jnp.einsum("brh,bthwc,bsw->btrsc", rows, frames, columns, precision=jax.lax.Precision.HIGHEST)


def cropped(
    rng: Array, frames: Sequence[Array], scales: Sequence[int], size: tuple[int, int], crop: tuple[int, int]
) -> tuple[Array, ...]:
    """A random part of `crop` pixels of each frame of `size`, and the same part of its larger forms."""
    clips, length = frames[0].shape[:2]
    room = jnp.array([n - part + 1 for n, part in zip(size, crop, strict=True)])
    start = jnp.floor(jax.random.uniform(rng, (clips, length, 2)) * room).astype(jnp.int32)

    def cut(x: Array, at: Array, scale: int) -> Array:
        wanted = *(scale * n for n in crop), x.shape[-1]
        return jax.lax.dynamic_slice(x, (at[0] * scale, at[1] * scale, 0), wanted)

    return tuple(jax.vmap(jax.vmap(partial(cut, scale=s)))(x, start) for x, s in zip(frames, scales, strict=True))


@dataclasses.dataclass(frozen=True)
class Degradation:
    """What is drawn for every clip between bounds: the blur's standard deviation in pixels of the large frame, the rows
    that are left of the small one as a share of its own, and the noise's standard deviation."""

    blur: tuple[float, float] = (0.2, 2.0)
    rows: tuple[float, float] = (0.1875, 1.0)
    noise: float = 0.02
    quantize: bool = True  # to 8 bits

    def __post_init__(self):
        for name in ("blur", "rows"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check(vars(self), VALUES, "degradation.")

    def __call__(
        self, rng: Array, frames: Float[Array, "clips frames high wide 3"], size: tuple[int, int]
    ) -> Float[Array, "clips frames rows columns 3"]:
        """Frames of values in 0…1 as a distant camera would have recorded them, in `size` rows and columns: blurred,
        made small, smaller and small again, with noise. The same for all frames of a clip, but for the noise."""
        clips, _, *large, _ = frames.shape
        draws = jax.random.uniform(rng, (3, clips))
        sigma = self.blur[0] + (self.blur[1] - self.blur[0]) * draws[0]
        least, most = (max(1, round(share * size[0])) for share in self.rows)
        left = least + jnp.floor(draws[1] * (most - least + 1)).astype(jnp.int32)
        kept = left, jnp.maximum(1, jnp.round(left * size[1] / size[0])).astype(jnp.int32)

        def along(axis: int) -> Array:
            n, count = size[axis], kept[axis]
            small = resizing(large[axis], n) @ blurring(large[axis], sigma)
            return resizing(n, n, count_in=count) @ (resizing(n, n, count_out=count) @ small)

        x = resize(frames, along(0), along(1))
        if self.noise:
            strength = self.noise * draws[2][:, None, None, None, None]
            x = x + strength * jax.random.normal(jax.random.fold_in(rng, 1), x.shape)
        x = jnp.clip(x, 0.0, 1.0)
        return jnp.round(255.0 * x) / 255.0 if self.quantize else x


VALUES = {
    "blur": series(number(0.01), length=2),
    "rows": series(fraction, length=2),
    "noise": non_negative,
    "quantize": flag,
}
