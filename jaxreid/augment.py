"""Augmentation and normalization on the device: pure functions of a batch and a random key.

One draw per clip, unless `Augmentation.per_frame` says otherwise: crop, flip, erased box and colour change are the
same for all frames of a clip, and differ between two clips of one tracklet. Pixels are handled as floats in 0…1 until
`normalize`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxreid.data.batch import Batch
from jaxreid.data.schema import INFRARED
from jaxreid.values import check, flag, fraction, non_negative, number, some_of, whole

GREY = (0.2989, 0.5870, 0.1140)

# What can be drawn for every frame, and the draws that it takes.
PER_FRAME = {
    "crop": ("top", "left"),
    "flip": ("flip",),
    "channel": ("channel", "mix"),
    "erase": ("erase", "area", "aspect", "box_top", "box_left"),
}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Strengths; the defaults change nothing.

    crop: pixels of zero padding before a random crop of the original size. flip: probability. erase: probability
    of a box of aspect 0.3–3.3 that is set to the mean; its area is between 2 % of the frame and erase_area.
    channel_exchange: probability that a visible clip shows one of its colour channels in all three (ADCA, PGM).
    infrared_mix: whether infrared clips draw among copies of one channel, a grey mix and no change (the same
    ancestors).
    brightness, contrast: half widths of a uniform factor around 1 (0.2 = 0.8 to 1.2). gamma: half width of the
    logarithm of an exponent. negative: probability that light and dark change places, as fabrics do between visible
    and infrared light.
    per_frame: keys of PER_FRAME, what every frame of a clip draws for itself: ("erase",) in TF-CLIP, all of them in
    VLD, where only whether a clip's colours are exchanged is drawn per clip. Contrast is then that of single frames.
    """

    crop: int = 0
    flip: float = 0.0
    erase: float = 0.0
    erase_area: float = 0.4
    channel_exchange: float = 0.0
    infrared_mix: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    negative: float = 0.0
    per_frame: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "per_frame", tuple(self.per_frame))
        check(vars(self), VALUES, "augment.")


LEAST_AREA = 0.02  # of an erased box, share of the frame

VALUES = {
    "crop": whole(0),
    "erase_area": number(LEAST_AREA, 1),
    "infrared_mix": flag,
    "gamma": non_negative,
    "per_frame": some_of(PER_FRAME),
    **dict.fromkeys(("flip", "erase", "channel_exchange", "brightness", "contrast", "negative"), fraction),
}
UNCHANGED = Augmentation()


def to_unit(batch: Batch) -> Batch:
    """uint8 → float32 in 0…1."""
    return batch.replace(frames=batch.frames.astype(jnp.float32) / 255.0)


def normalize(batch: Batch, mean: tuple[float, ...], std: tuple[float, ...], dtype: jnp.dtype) -> Batch:
    """(frames − mean) / std per channel, in the compute dtype."""
    frames = (batch.frames - jnp.array(mean)) / jnp.array(std)
    return batch.replace(frames=frames.astype(dtype))


@dataclasses.dataclass(frozen=True)
class Pixels:
    """How frames enter the network: channel mean and standard deviation (of values in 0…1) and the compute type."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: Any

    def __call__(self, batch: Batch, rng: jax.Array | None = None, options: Augmentation = UNCHANGED) -> Batch:
        """Bytes → what the network sees, with a key augmented."""
        batch = to_unit(batch)
        if rng is not None:
            batch = augment(batch, rng, options, self.mean)
        return normalize(batch, self.mean, self.std, self.dtype)


# What is drawn for every clip, as numbers in [0, 1). All of them in one call: random bits for each separately would be
# most of what this module takes to compile.
DRAWS = (
    *("top", "left", "flip"),
    *("exchange", "channel", "mix"),
    *("negative", "contrast", "brightness", "gamma"),
    *("erase", "area", "aspect", "box_top", "box_left"),
)
Draws = dict[str, jax.Array]  # name → f32[B]


def augment(batch: Batch, rng: jax.Array, options: Augmentation, mean: tuple[float, ...]) -> Batch:
    """Frames f32[B, T, H, W, 3] in 0…1 → the same shape, changed; `mean` fills erased boxes."""
    frames, modality = batch.frames, batch.modality
    draws = dict(zip(DRAWS, jax.random.uniform(rng, (len(DRAWS), frames.shape[0])), strict=True))
    if options.per_frame:  # every frame is a clip of its own, which shares some draws with its neighbours
        length = frames.shape[1]
        own = [name for what in options.per_frame for name in PER_FRAME[what]]
        of_frames = jax.random.uniform(jax.random.fold_in(rng, 1), (len(own), frames.shape[0] * length))
        draws = {name: jnp.repeat(draw, length) for name, draw in draws.items()}
        draws |= dict(zip(own, of_frames, strict=True))
        frames, modality = frames.reshape(-1, 1, *frames.shape[2:]), jnp.repeat(modality, length)
    if options.flip or options.crop:
        frames = _crop_and_flip(frames, draws, options)
    if options.channel_exchange or options.infrared_mix:
        frames = _exchange_channels(frames, modality, draws, options)
    if options.brightness or options.contrast or options.gamma or options.negative:
        frames = _relight(frames, draws, options)
    if options.erase:
        frames = _erase(frames, draws, options, mean)
    return batch.replace(frames=frames.reshape(batch.frames.shape))


def _integer(draw: jax.Array, count: int) -> jax.Array:
    """i32, one of 0 … count − 1."""
    return jnp.floor(draw * count).astype(jnp.int32)


def _crop_and_flip(frames: jax.Array, draws: Draws, options: Augmentation) -> jax.Array:
    _, _, height, width, _ = frames.shape
    pad = options.crop
    padded = jnp.pad(frames, ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)))
    top, left = (_integer(draws[name], 2 * pad + 1)[:, None] for name in ("top", "left"))
    flipped = draws["flip"] < options.flip

    # Indexing rows and columns does crop and flip in one gather, which also splits over devices by clip.
    row = top + jnp.arange(height)
    column = jnp.arange(width)
    column = left + jnp.where(flipped[:, None], column[::-1], column)
    return jax.vmap(lambda clip, r, c: clip[:, r][:, :, c])(padded, row, column)


def _exchange_channels(frames: jax.Array, modality: jax.Array, draws: Draws, options: Augmentation) -> jax.Array:
    channel = _per_frame(_integer(draws["channel"], 3))
    copied = jnp.broadcast_to(jnp.take_along_axis(frames, channel, axis=-1), frames.shape)
    changed = jnp.where(_per_frame(draws["exchange"] < options.channel_exchange), copied, frames)
    if options.infrared_mix:
        grey = jnp.broadcast_to(jnp.sum(frames * jnp.array(GREY), -1, keepdims=True), frames.shape)
        kind = _per_frame(_integer(draws["mix"], 8))  # 6 of 8 copy a channel, 1 grey, 1 unchanged
        infrared = jnp.where(kind < 6, copied, jnp.where(kind == 6, grey, frames))
    else:
        infrared = frames
    return jnp.where(_per_frame(modality == INFRARED), infrared, changed)


def _per_frame(values: jax.Array) -> jax.Array:
    """[B] → [B, 1, 1, 1, 1]"""
    return values[:, None, None, None, None]


def _relight(frames: jax.Array, draws: Draws, options: Augmentation) -> jax.Array:
    def around_zero(name: str) -> jax.Array:
        """Uniform within the option's half width."""
        return getattr(options, name) * (2 * _per_frame(draws[name]) - 1)

    frames = jnp.where(_per_frame(draws["negative"] < options.negative), 1.0 - frames, frames)
    mean = jnp.mean(frames, axis=(1, 2, 3, 4), keepdims=True)
    frames = (frames - mean) * (1 + around_zero("contrast")) + mean
    frames = jnp.clip(frames * (1 + around_zero("brightness")), 0.0, 1.0)
    # The power has no slope at zero, which nothing needs, but a NaN there would spread.
    return jnp.maximum(frames, 1e-4) ** jnp.exp(around_zero("gamma")) if options.gamma else frames


def _erase(frames: jax.Array, draws: Draws, options: Augmentation, mean: tuple[float, ...]) -> jax.Array:
    _, _, height, width, _ = frames.shape
    area = (LEAST_AREA + (options.erase_area - LEAST_AREA) * draws["area"]) * (height * width)
    aspect = jnp.exp(jnp.log(0.3) + (jnp.log(10 / 3) - jnp.log(0.3)) * draws["aspect"])
    box_height = jnp.minimum(jnp.sqrt(area * aspect), height)
    box_width = jnp.minimum(jnp.sqrt(area / aspect), width)
    top = draws["box_top"] * (height - box_height)
    left = draws["box_left"] * (width - box_width)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)

    def inside(start: jax.Array, length: jax.Array, position: jax.Array) -> jax.Array:
        start, length = start[:, None, None], length[:, None, None]
        return (position >= jnp.round(start)) & (position < jnp.round(start + length))

    box = inside(top, box_height, y) & inside(left, box_width, x)
    box &= (draws["erase"] < options.erase)[:, None, None]
    return jnp.where(box[:, None, :, :, None], jnp.array(mean), frames)
