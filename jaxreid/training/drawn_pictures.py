"""Pictures of drawn people that no data set shows, and what other cameras would have made of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.backbones.vit import ViTConfig
from jaxreid.data.builders import builder_module

Array = jax.Array

# Words that a single grey picture can't answer (colours, gait) are not asked for.
COLOURLESS = ("height", "build", "legs", "upper", "sleeve", "pattern", "lower", "hair", "hat", "bag")
SEED = 7_000_001  # of the people and cameras: no data set's world has a seed in this range
# Three dark and three light ones, so that patterns stay visible in grey.
CLOTHES_COLOURS = ("black", "blue", "brown", "sand", "white", "yellow")


class Pictures(NamedTuple):
    """N pictures and what is known of them."""

    frames: np.ndarray  # u8[N, H, W, 3]
    materials: np.ndarray  # u8[N, 2h, 2w, M], share of each material in the quarters of every patch, 255 = all
    words: np.ndarray  # i32[N, A], which word of each attribute
    place: np.ndarray  # i32[N]


def draw_pictures(identities: int, config: ViTConfig, seed: int = SEED) -> Pictures:
    """Visible pictures of `identities` people, each seen by about six of 24 cameras, two frames each."""
    names = "world", "person", "scene", "caption", "figure"
    drawing, person, scene, caption, figure = (builder_module("walkers", name) for name in names)
    place_names, attributes = list(scene.PLACES), list(caption.ATTRIBUTES)
    asked = [attributes.index(name) for name in COLOURLESS]
    world = drawing.World(
        drawing.WorldConfig(
            "starting_tower", seed=seed, train_identities=identities, test_identities=0,
            visible_cameras=24, infrared_cameras=0, presence=1 / 4, tracklets_per_camera=(1, 1), frames=(2, 2),
            height=config.image_size[0], width=config.image_size[1],
            wardrobe=person.Wardrobe(
                colours=CLOTHES_COLOURS, accessory_colours=CLOTHES_COLOURS,
                skin=tuple(person.SKIN), hair=tuple(person.HAIR_COLOURS),
            ),
            flash=0.5, camera_strength=0.6, nuisance=0.4,
        )
    )  # fmt: skip
    rows, columns = config.grid
    frames, shares, words, place = [], [], [], []
    for spec in world.specs("train"):
        drawn = world.draw(spec)
        count = len(drawn.frames)
        cells = drawn.materials.reshape(count, 2 * rows, -1, 2 * columns, drawn.materials.shape[2] // (2 * columns))
        frames.append(drawn.frames)
        share = np.stack([(cells == m).mean((2, 4)) for m in range(len(figure.MATERIALS))], -1)
        shares.append((share * 255 + 0.5).astype(np.uint8))
        words += [caption.attribute_codes(world.persons[spec.pid])[asked]] * count
        place += [place_names.index(world.scenes[spec.camera].place)] * count
    return Pictures(np.concatenate(frames), np.concatenate(shares), np.stack(words), np.array(place, np.int32))


def photograph(rng: Array, frames: Array) -> Array:
    """Frames f32[B, H, W, 3] in 0…1 as other cameras would have taken them, same shape."""
    keys = iter(jax.random.split(rng, 12))
    one = (frames.shape[0], 1, 1, 1)

    def uniform(low, high, shape=one):
        return jax.random.uniform(next(keys), shape, minval=low, maxval=high)

    def chance(probability):
        return jax.random.bernoulli(next(keys), probability, one)

    weights = jax.nn.softmax(jax.random.normal(next(keys), (frames.shape[0], 1, 1, 3)))
    grey = jnp.broadcast_to((frames * weights).sum(-1, keepdims=True), frames.shape)
    coloured = frames * uniform(0.7, 1.3, (frames.shape[0], 1, 1, 3))
    frames = jnp.where(chance(0.7), jnp.where(chance(0.2), 1 - grey, grey), coloured)
    mean = frames.mean((1, 2, 3), keepdims=True)
    frames = mean + (frames - mean) * uniform(0.7, 1.5)
    frames = jnp.clip(frames * uniform(0.6, 1.3), 1e-3, 1.0) ** jnp.exp(uniform(-0.4, 0.5))
    padded = jnp.pad(frames, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    soft = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
    blur = uniform(0.0, 1.0) * chance(0.3)
    frames = frames + blur * (soft - frames)
    noise = uniform(0.0, 0.04) * jax.random.normal(next(keys), frames.shape)
    return jnp.clip(frames + noise, 0.0, 1.0)
