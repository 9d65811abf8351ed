"""Augmentation and normalization on the device: pure functions of a batch and a random key.

One draw per clip, unless `Augmentation.per_frame` says otherwise: crop, flip, erased box and colour change are the
same for all frames of a clip, and differ between two clips of one tracklet. Pixels are handled as floats in 0…1 until
`normalize`. What lies on the frames (`Batch.extras`) moves with them, by `jaxreid.geometry`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxreid.data.batch import Batch
from jaxreid.data.extras import SECOND
from jaxreid.data.schema import INFRARED
from jaxreid.geometry import Geometry
from jaxreid.values import check, flag, fraction, non_negative, number, one_of, series, some_of, whole

GREY = (0.2989, 0.5870, 0.1140)

# What can be drawn for every frame, and the draws that it takes.
PER_FRAME = {
    "crop": ("top", "left"),
    "flip": ("flip",),
    "channel": ("channel", "mix"),
    "erase": ("erase", "area", "aspect", "box_top", "box_left"),
    "jitter": ("contrast", "brightness", "gamma", "saturation", "hue"),
    "erase_size": ("area", "aspect"),  # a box for the clip, with its place; how large it is, each frame draws
}
FILLS = ("mean", "random", "constant")  # what erased boxes show


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Strengths; the defaults change nothing.

    crop: pixels of zero padding before a random crop of the original size. flip: probability. erase: probability
    of a box of aspect 0.3–3.3; its area is between 2 % of the frame and erase_area. erase_fill: what it shows, the
    "mean", "random" normal noise of every pixel, or the "constant" erase_constant, both as values after normalizing.
    channel_exchange: probability that a visible clip shows one of its colour channels in all three (ADCA, PGM).
    infrared_mix: whether infrared clips draw among copies of one channel, a grey mix and no change (the same
    ancestors).
    brightness, contrast: half widths of a uniform factor around 1 (0.2 = 0.8 to 1.2). gamma: half width of the
    logarithm of an exponent. saturation: half width of a factor on the distance from grey; hue: half width of a turn
    of the colour circle (0.5 = any hue). jitter: probability that any of these five changes. negative: probability that
    light and dark change places, as fabrics do between visible and infrared light.
    per_frame: keys of PER_FRAME, what every frame of a clip draws for itself: ("erase",) in TF-CLIP, all of them in
    VLD, where only whether a clip's colours are exchanged is drawn per clip. Contrast is then that of single frames.
    """

    crop: int = 0
    flip: float = 0.0
    erase: float = 0.0
    erase_area: float = 0.4
    erase_fill: str = "mean"
    erase_constant: tuple[float, ...] = (0.0, 0.0, 0.0)
    channel_exchange: float = 0.0
    infrared_mix: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    negative: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 1.0
    per_frame: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("per_frame", "erase_constant"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check(vars(self), VALUES, "augment.")


LEAST_AREA = 0.02  # of an erased box, share of the frame

VALUES = {
    "crop": whole(0),
    "erase_area": number(LEAST_AREA, 1),
    "erase_fill": one_of(FILLS),
    "erase_constant": series(number(), length=3),
    "hue": number(0, 0.5),
    "infrared_mix": flag,
    "gamma": non_negative,
    "per_frame": some_of(PER_FRAME),
    "saturation": fraction,
    **dict.fromkeys(("flip", "erase", "channel_exchange", "brightness", "contrast", "negative", "jitter"), fraction),
}
UNCHANGED = Augmentation()


def to_unit(batch: Batch) -> Batch:
    """uint8 → float32 in 0…1."""
    return _each_stream(batch, lambda frames: frames.astype(jnp.float32) / 255.0)


def normalize(batch: Batch, mean: tuple[float, ...], std: tuple[float, ...], dtype: jnp.dtype) -> Batch:
    """(frames − mean) / std per channel, in the compute dtype."""
    return _each_stream(batch, lambda frames: ((frames - jnp.array(mean)) / jnp.array(std)).astype(dtype))


def _each_stream(batch: Batch, change: Callable[[jax.Array], jax.Array]) -> Batch:
    """The frames changed and, where the batch has them, the second ones."""
    second = {name: change(x) for name, x in batch.extras.items() if name == SECOND}
    return batch.replace(frames=change(batch.frames), extras={**batch.extras, **second})


@dataclasses.dataclass(frozen=True)
class Pixels:
    """How frames enter the network: channel mean and standard deviation (of values in 0…1), the compute type and the
    size in pixels, which augmentation needs where a stage reads no frames."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: Any
    size: tuple[int, int] = (0, 0)

    def __call__(self, batch: Batch, rng: jax.Array | None = None, options: Augmentation = UNCHANGED) -> Batch:
        """Bytes → what the network sees, with a key augmented."""
        batch = to_unit(batch)
        if rng is not None:
            batch = augment(batch, rng, options, self.mean, self.std, self.size)
        return normalize(batch, self.mean, self.std, self.dtype)


# What is drawn for every clip, as numbers in [0, 1). All of them in one call: random bits for each separately would be
# most of what this module takes to compile.
DRAWS = (
    *("top", "left", "flip"),
    *("exchange", "channel", "mix"),
    *("negative", "contrast", "brightness", "gamma"),
    *("erase", "area", "aspect", "box_top", "box_left"),
)
MORE_DRAWS = ("saturation", "hue")  # from a key of their own: those above stay as they are without them
Draws = dict[str, jax.Array]  # name → f32[B]


def augment(
    batch: Batch,
    rng: jax.Array,
    options: Augmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...] = (1.0, 1.0, 1.0),
    size: tuple[int, int] = (0, 0),
) -> Batch:
    """Frames f32[B, T, H, W, 3] in 0…1 → the same shape, changed, and what lies on them with them.

    Args:
      mean, std: those they will be normalized with.
      size: of the frames, where the batch has none (0 × 0).
    """
    clips, length, *own, _ = batch.frames.shape
    height, width = own if all(own) else size
    modality = batch.modality
    draws = dict(zip(DRAWS, jax.random.uniform(rng, (len(DRAWS), clips)), strict=True))
    if options.saturation or options.hue:
        more = jax.random.uniform(jax.random.fold_in(rng, 2), (len(MORE_DRAWS), clips))
        draws |= dict(zip(MORE_DRAWS, more, strict=True))
    if options.per_frame:  # every frame is a clip of its own, which shares some draws with its neighbours
        names = [name for what in options.per_frame for name in PER_FRAME[what]]
        of_frames = jax.random.uniform(jax.random.fold_in(rng, 1), (len(names), clips * length))
        draws = {name: jnp.repeat(draw, length) for name, draw in draws.items()}
        draws |= dict(zip(names, of_frames, strict=True))
        modality = jnp.repeat(modality, length)
    if options.jitter < 1:  # from a key of its own as well; the middle of what is drawn changes nothing
        own = "jitter" in options.per_frame
        changed = jax.random.uniform(jax.random.fold_in(rng, 4), (clips * length if own else clips,)) < options.jitter
        changed = jnp.repeat(changed, length) if options.per_frame and not own else changed
        draws |= {name: jnp.where(changed, draws[name], 0.5) for name in PER_FRAME["jitter"] if name in draws}

    def stream(x: jax.Array) -> jax.Array:
        """The frames, or others of the same moments at another size."""
        if not x.size:
            return x
        frames = x.reshape(-1, 1, *x.shape[2:]) if options.per_frame else x
        if options.flip or options.crop:
            frames = _crop_and_flip(frames, draws, options, (height, width))
        if options.channel_exchange or options.infrared_mix:
            frames = _exchange_channels(frames, modality, draws, options)
        if options.brightness or options.contrast or options.gamma or options.negative:
            frames = _relight(frames, batch.frame_mask.reshape(frames.shape[:2]), draws, options)
        if options.saturation or options.hue:
            frames = _recolour(frames, draws, options)
        if options.erase:
            box = _inside(frames.shape, draws, options, (height, width))
            frames = jnp.where(box, _fill(frames.shape, options, rng, mean, std), frames)
        return frames.reshape(x.shape)

    batch = _each_stream(batch, stream)
    if not batch.extras:
        return batch
    geometry = _geometry(draws, options, (clips, length), (height, width))
    return batch.replace(extras=geometry.applied(batch.extras))


def _geometry(draws: Draws, options: Augmentation, shape: tuple[int, int], size: tuple[int, int]) -> Geometry:
    """What was drawn, for every frame of clips of `shape` [B, T], as shares of frames of `size`."""
    (height, width), pad = size, options.crop

    def each(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x.reshape(shape[0], -1, *x.shape[1:]), (*shape, *x.shape[1:]))

    down, right = ((_integer(draws[name], 2 * pad + 1) - pad) / n for name, n in (("top", height), ("left", width)))
    flipped = draws["flip"] < options.flip
    box = jnp.stack(_box(draws, options, size), axis=-1) / jnp.array([height, width, height, width], jnp.float32)
    erased = draws["erase"] < options.erase
    box = jnp.where(erased[:, None], box, 0.0)
    return Geometry(*map(each, (down, right, flipped, erased, box)), flips=options.flip > 0)


def _integer(draw: jax.Array, count: int) -> jax.Array:
    """i32, one of 0 … count − 1."""
    return jnp.floor(draw * count).astype(jnp.int32)


def _crop_and_flip(frames: jax.Array, draws: Draws, options: Augmentation, size: tuple[int, int]) -> jax.Array:
    """Frames cropped as those of `size` are: by the same share, to the next pixel."""
    _, _, height, width, _ = frames.shape
    pads = [-(-options.crop * own // of) for own, of in zip((height, width), size, strict=True)]
    padded = jnp.pad(frames, ((0, 0), (0, 0), *((pad, pad) for pad in pads), (0, 0)))

    def offset(name: str, pad: int, own: int, of: int) -> jax.Array:
        drawn = _integer(draws[name], 2 * options.crop + 1)
        if own != of:
            drawn = pad + jnp.round((drawn - options.crop) * (own / of)).astype(jnp.int32)
        return drawn[:, None]

    top, left = offset("top", pads[0], height, size[0]), offset("left", pads[1], width, size[1])
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


def _relight(frames: jax.Array, mask: jax.Array, draws: Draws, options: Augmentation) -> jax.Array:
    """Negative, contrast around the mean of a clip's frames that count (`mask` [B, T]), brightness and gamma."""

    def around_zero(name: str) -> jax.Array:
        """Uniform within the option's half width."""
        return getattr(options, name) * (2 * _per_frame(draws[name]) - 1)

    frames = jnp.where(_per_frame(draws["negative"] < options.negative), 1.0 - frames, frames)
    counted = mask.shape[1] / jnp.maximum(mask.sum(axis=1), 1)
    shown = jnp.where(mask[..., None, None, None], frames, 0.0)
    mean = jnp.mean(shown, axis=(1, 2, 3, 4), keepdims=True) * _per_frame(counted)
    frames = (frames - mean) * (1 + around_zero("contrast")) + mean
    frames = jnp.clip(frames * (1 + around_zero("brightness")), 0.0, 1.0)
    # The power has no slope at zero, which nothing needs, but a NaN there would spread.
    return jnp.maximum(frames, 1e-4) ** jnp.exp(around_zero("gamma")) if options.gamma else frames


def _recolour(frames: jax.Array, draws: Draws, options: Augmentation) -> jax.Array:
    """Saturation, then hue; grey stays grey."""
    grey = jnp.sum(frames * jnp.array(GREY), -1, keepdims=True)
    factor = 1 + options.saturation * (2 * _per_frame(draws["saturation"]) - 1)
    frames = jnp.clip(grey + factor * (frames - grey), 0.0, 1.0)
    if not options.hue:
        return frames
    # Hue, chroma and value; a colour is made of them again by how far its hue is from red, green and blue.
    high, low = frames.max(-1), frames.min(-1)
    chroma = high - low
    red, green, blue = (frames[..., i] for i in range(3))
    safe = jnp.where(chroma > 0, chroma, 1.0)
    of_red, of_green, of_blue = (green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe
    hue = jnp.where(high == red, of_red, jnp.where(high == green, of_green, of_blue))  # in sixths of the circle
    hue = hue + 6 * options.hue * (2 * _per_frame(draws["hue"])[..., 0] - 1)
    apart = (hue[..., None] + jnp.array([5.0, 3.0, 1.0])) % 6
    return high[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(apart, 4 - apart), 0.0, 1.0)


def _box(draws: Draws, options: Augmentation, size: tuple[int, int]) -> tuple[jax.Array, ...]:
    """Top, left, bottom and right of the erased boxes of frames of `size`, whole pixels f32[B]."""
    height, width = size
    area = (LEAST_AREA + (options.erase_area - LEAST_AREA) * draws["area"]) * (height * width)
    aspect = jnp.exp(jnp.log(0.3) + (jnp.log(10 / 3) - jnp.log(0.3)) * draws["aspect"])
    box_height = jnp.minimum(jnp.sqrt(area * aspect), height)
    box_width = jnp.minimum(jnp.sqrt(area / aspect), width)
    top = draws["box_top"] * (height - box_height)
    left = draws["box_left"] * (width - box_width)
    return jnp.round(top), jnp.round(left), jnp.round(top + box_height), jnp.round(left + box_width)


def _fill(shape: Any, options: Augmentation, rng: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    """What erased boxes show, before normalizing."""
    middle, spread = jnp.array(mean), jnp.array(std)
    if options.erase_fill == "random":
        return middle + spread * jax.random.normal(jax.random.fold_in(rng, 3), shape)
    return middle + spread * jnp.array(options.erase_constant) if options.erase_fill == "constant" else middle


def _inside(shape: Any, draws: Draws, options: Augmentation, size: tuple[int, int]) -> jax.Array:
    """Which pixels are erased, bool[B, 1, H, W, 1]: where those of frames of `size` are."""
    _, _, height, width, _ = shape
    sides = (edge[:, None, None] for edge in _box(draws, options, size))
    scales = height / size[0], width / size[1], height / size[0], width / size[1]
    top, left, bottom, right = (
        edge if scale == 1 else jnp.round(edge * scale) for edge, scale in zip(sides, scales, strict=True)
    )
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    box = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    box &= (draws["erase"] < options.erase)[:, None, None]
    return box[:, None, :, :, None]
