"""Augmentation and normalisation on the device: pure functions of a batch and a random key.

One draw per clip: crop, flip, erased box and colour change are the same for all frames of a clip, and differ
between two clips of one tracklet. Pixels are handled as floats in 0…1 until `normalise`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxreid.data.batch import Batch
from jaxreid.data.schema import INFRARED

GREY = (0.2989, 0.5870, 0.1140)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Strengths; the defaults change nothing.

    crop: pixels of zero padding before a random crop of the original size. flip: probability. erase: probability
    of a box of 2–40 % of the area and aspect 0.3–3.3 that is set to the mean. channel_exchange: probability that
    a visible clip shows one of its colour channels in all three (ADCA, PGM). infrared_mix: whether infrared clips
    draw among copies of one channel, a grey mix and no change (the same ancestors).
    brightness, contrast: half widths of a uniform factor around 1 (0.2 = 0.8 to 1.2). gamma: half width of the
    logarithm of an exponent. negative: probability that light and dark change places, as fabrics do between visible
    and infrared light.
    """

    crop: int = 0
    flip: float = 0.0
    erase: float = 0.0
    channel_exchange: float = 0.0
    infrared_mix: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    negative: float = 0.0


def to_unit(batch: Batch) -> Batch:
    """uint8 → float32 in 0…1."""
    return batch.replace(frames=batch.frames.astype(jnp.float32) / 255.0)


def normalise(batch: Batch, mean: tuple[float, ...], std: tuple[float, ...], dtype: jnp.dtype) -> Batch:
    """(frames − mean) / std per channel, in the compute dtype."""
    frames = (batch.frames - jnp.array(mean)) / jnp.array(std)
    return batch.replace(frames=frames.astype(dtype))


def augment(batch: Batch, rng: jax.Array, options: Augmentation, mean: tuple[float, ...]) -> Batch:
    """Frames f32[B, T, H, W, 3] in 0…1 → the same shape, changed; `mean` fills erased boxes."""
    crop_rng, flip_rng, erase_rng, colour_rng, light_rng = jax.random.split(rng, 5)
    frames = batch.frames
    if options.flip or options.crop:
        frames = _crop_and_flip(frames, crop_rng, flip_rng, options)
    if options.channel_exchange or options.infrared_mix:
        frames = _exchange_channels(frames, batch.modality, colour_rng, options)
    if options.brightness or options.contrast or options.gamma or options.negative:
        frames = _relight(frames, light_rng, options)
    if options.erase:
        frames = _erase(frames, erase_rng, options.erase, mean)
    return batch.replace(frames=frames)


def _crop_and_flip(frames: jax.Array, crop_rng: jax.Array, flip_rng: jax.Array, options: Augmentation) -> jax.Array:
    clips, _, height, width, _ = frames.shape
    pad = options.crop
    padded = jnp.pad(frames, ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)))
    offset = jax.random.randint(crop_rng, (clips, 2), 0, 2 * pad + 1)
    flipped = jax.random.bernoulli(flip_rng, options.flip, (clips,))

    # Indexing rows and columns does crop and flip in one gather, which also splits over devices by clip.
    row = offset[:, :1] + jnp.arange(height)
    column = jnp.arange(width)
    column = offset[:, 1:] + jnp.where(flipped[:, None], column[::-1], column)
    return jax.vmap(lambda clip, r, c: clip[:, r][:, :, c])(padded, row, column)


def _exchange_channels(frames: jax.Array, modality: jax.Array, rng: jax.Array, options: Augmentation) -> jax.Array:
    clips = frames.shape[0]
    kind_rng, channel_rng, mix_rng = jax.random.split(rng, 3)
    channel = jax.random.randint(channel_rng, (clips, 1, 1, 1, 1), 0, 3)
    copied = jnp.broadcast_to(jnp.take_along_axis(frames, channel, axis=-1), frames.shape)
    visible = jax.random.bernoulli(kind_rng, options.channel_exchange, (clips,))[:, None, None, None, None]
    changed = jnp.where(visible, copied, frames)
    if options.infrared_mix:
        grey = jnp.broadcast_to(jnp.sum(frames * jnp.array(GREY), -1, keepdims=True), frames.shape)
        kind = jax.random.randint(mix_rng, (clips, 1, 1, 1, 1), 0, 8)  # 6 of 8 copy a channel, 1 grey, 1 unchanged
        infrared = jnp.where(kind < 6, copied, jnp.where(kind == 6, grey, frames))
    else:
        infrared = frames
    return jnp.where((modality == INFRARED)[:, None, None, None, None], infrared, changed)


def _relight(frames: jax.Array, rng: jax.Array, options: Augmentation) -> jax.Array:
    gain_rng, contrast_rng, gamma_rng, negative_rng = jax.random.split(rng, 4)
    shape = (frames.shape[0], 1, 1, 1, 1)

    def uniform(key: jax.Array, width: float) -> jax.Array:
        return jax.random.uniform(key, shape, minval=-width, maxval=width)

    frames = jnp.where(jax.random.bernoulli(negative_rng, options.negative, shape), 1.0 - frames, frames)
    mean = jnp.mean(frames, axis=(1, 2, 3, 4), keepdims=True)
    frames = (frames - mean) * (1 + uniform(contrast_rng, options.contrast)) + mean
    frames = jnp.clip(frames * (1 + uniform(gain_rng, options.brightness)), 0.0, 1.0)
    # The power has no slope at zero, which nothing needs, but a NaN there would spread.
    return jnp.maximum(frames, 1e-4) ** jnp.exp(uniform(gamma_rng, options.gamma)) if options.gamma else frames


def _erase(frames: jax.Array, rng: jax.Array, probability: float, mean: tuple[float, ...]) -> jax.Array:
    clips, _, height, width, _ = frames.shape
    keys = jax.random.split(rng, 5)
    area = jax.random.uniform(keys[0], (clips,), minval=0.02, maxval=0.4) * (height * width)
    aspect = jnp.exp(jax.random.uniform(keys[1], (clips,), minval=jnp.log(0.3), maxval=jnp.log(10 / 3)))
    box_height = jnp.minimum(jnp.sqrt(area * aspect), height)
    box_width = jnp.minimum(jnp.sqrt(area / aspect), width)
    top = jax.random.uniform(keys[2], (clips,)) * (height - box_height)
    left = jax.random.uniform(keys[3], (clips,)) * (width - box_width)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)

    def inside(start: jax.Array, length: jax.Array, position: jax.Array) -> jax.Array:
        start, length = start[:, None, None], length[:, None, None]
        return (position >= jnp.round(start)) & (position < jnp.round(start + length))

    box = inside(top, box_height, y) & inside(left, box_width, x)
    box &= jax.random.bernoulli(keys[4], probability, (clips,))[:, None, None]
    return jnp.where(box[:, None, :, :, None], jnp.array(mean), frames)
