"""Training of the small image towers that ship with the package, on drawn people that no data set shows.

What it may see: visible pictures (never an infrared one, never two pictures known to be of one person) and what
their captions say. Two stages, because a tower that has to learn people and places together learns places:

1. *People*: the words of the caption about the person, and for every patch which materials it shows.
2. *Places*: the same, and the word for the place. A tower like CLIP's also describes where a picture was taken;
   the camera is then in every feature, and a method that learns without labels has to get rid of it.

Pictures are changed as a camera changes them (grey through a random filter, gamma, gain, contrast, colour, blur,
noise), which is all that such a tower knows of low light and single-channel pictures.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Hashable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.errors import UserError
from jaxreid.training.drawn_pictures import Pictures, photograph

log = logging.getLogger(__name__)

Array = jax.Array

JOINT = 64
TOWER = ViTConfig(width=128, depth=4, heads=4, patch=8, image_size=(64, 32), projection=JOINT)
MEAN, STD = 0.5, 0.5


@dataclasses.dataclass(frozen=True)
class Stage:
    name: str
    steps: int
    lr: float  # of the matrices (Muon); everything else takes a fifth of it (Adam)
    place_weight: float


STAGES = (Stage("people", 1800, 1e-2, 0.0), Stage("places", 400, 5e-3, 2.0))
BATCH = 48
WORD_WEIGHT = 2.0


class Reader(nn.Module):
    """The tower and what reads words and materials off it; only the tower is kept."""

    config: ViTConfig
    vocabulary: tuple[int, ...]  # number of words of each attribute, the place last
    materials: int

    @nn.compact
    def __call__(self, frames: Array) -> tuple[list[Array], Array]:
        """Normalized frames → logits of every attribute's words [2, N, words], asked of the class token and of the
        mean patch, and of the materials of the patches' quarters."""
        tower = ViT(self.config, name="tower")
        out = tower(frames)
        # Towers without a joint space of their own get one for as long as they are trained.
        project = tower.project if self.config.projection else nn.Dense(JOINT, use_bias=False, name="joint")
        # The mean patch learns its words sooner, and the class token then finds them in the patches.
        picture = jnp.stack([project(out["class_token"]), project(out["patch_tokens"].mean(1))])
        picture = picture / jnp.linalg.norm(picture, axis=-1, keepdims=True)
        scale = jnp.exp(self.param("logit_scale", nn.initializers.constant(np.log(10.0)), ()))
        words = self.param("words", nn.initializers.normal(1.0), (sum(self.vocabulary), picture.shape[-1]))
        words = words / jnp.linalg.norm(words, axis=-1, keepdims=True)
        logits = jnp.split(scale * picture @ words.T, np.cumsum(self.vocabulary)[:-1], axis=-1)
        quarters = nn.Dense(4 * self.materials, name="materials")(out["patch_tokens"])
        rows, columns = self.config.grid
        quarters = quarters.reshape(-1, rows, columns, 2, 2, self.materials).transpose(0, 1, 3, 2, 4, 5)
        return logits, quarters.reshape(-1, 2 * rows, 2 * columns, self.materials)


def loss(
    reader: Reader, params: Any, rng: Array, batch: Pictures, place_weight: float
) -> tuple[Array, dict[str, Array]]:
    """Weighted sum of the cross entropies of words (mean over attributes), materials (mean over cells) and place."""
    flip_rng, photograph_rng = jax.random.split(rng)
    frames, materials = batch.frames.astype(jnp.float32) / 255, batch.materials.astype(jnp.float32) / 255
    flip = jax.random.bernoulli(flip_rng, 0.5, (len(frames),))[:, None, None, None]
    frames = jnp.where(flip, frames[:, :, ::-1], frames)
    materials = jnp.where(flip, materials[:, :, ::-1], materials)
    words, quarters = reader.apply({"params": params}, (photograph(photograph_rng, frames) - MEAN) / STD)
    word_loss = jnp.stack([_cross_entropy(x, y) for x, y in zip(words[:-1], batch.words.T, strict=True)]).mean(0)
    place_loss = _cross_entropy(words[-1], batch.place)
    patch_loss = optax.softmax_cross_entropy(jnp.asarray(quarters), materials).mean()
    metrics = {"words": word_loss[0], "mean_patch_words": word_loss[1], "patches": patch_loss, "place": place_loss[0]}
    return WORD_WEIGHT * word_loss.mean() + patch_loss + place_weight * place_loss.mean(), metrics


def _cross_entropy(logits: Array, target: Any) -> Array:
    target = jnp.broadcast_to(target, logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean(-1)


def optimizer(params: Any, stage: Stage) -> optax.GradientTransformation:
    """Muon for the matrices inside the blocks, Adam for the rest; short warm-up, cosine to 5 %."""

    def schedule(rate):
        return optax.warmup_cosine_decay_schedule(0.0, rate, min(20, stage.steps // 4), stage.steps, 0.05 * rate)

    def kind(path, leaf):
        return "muon" if leaf.ndim == 2 and "block" in jax.tree_util.keystr(path) else "adam"

    transforms: dict[Hashable, optax.GradientTransformation] = {
        "muon": optax.contrib.muon(schedule(stage.lr)),
        "adam": optax.adam(schedule(0.2 * stage.lr)),
    }
    return optax.partition(transforms, jax.tree_util.tree_map_with_path(kind, params))


def make_reader(pictures: Pictures, seed: int, config: ViTConfig = TOWER) -> tuple[Reader, Any]:
    """A reader for the vocabulary of `pictures`, and its first parameters."""
    vocabulary = (*(int(column.max()) + 1 for column in pictures.words.T), int(pictures.place.max()) + 1)
    reader = Reader(config, vocabulary, pictures.materials.shape[-1])
    return reader, reader.init(jax.random.key(seed), jnp.zeros((1, *config.image_size, 3)))["params"]


def train(reader: Reader, params: Any, pictures: Pictures, stage: Stage, seed: int) -> Any:
    """Parameters of the reader after one stage."""
    transformation = optimizer(params, stage)
    state = transformation.init(params)
    order = np.random.default_rng(seed)
    rng = jax.random.key(seed)

    @jax.jit
    def step(params, state, number, batch):
        def objective(params):
            return loss(reader, params, jax.random.fold_in(rng, number), batch, stage.place_weight)

        gradients, metrics = jax.grad(objective, has_aux=True)(params)
        updates, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, metrics

    start, running = time.perf_counter(), None
    for number in range(stage.steps):
        rows = order.integers(len(pictures.frames), size=BATCH)
        params, state, metrics = step(params, state, number, Pictures(*(x[rows] for x in pictures)))
        running = metrics if running is None else jax.tree.map(lambda a, b: 0.95 * a + 0.05 * b, running, metrics)
        if number % 50 == 0 or number == stage.steps - 1:
            values = " ".join(f"{name} {float(value):.3f}" for name, value in running.items())
            if not np.isfinite(list(running.values())).all():
                raise UserError(f"{stage.name} {number}/{stage.steps}: {values} is not finite; lower its learning rate")
            log.info("%s %d/%d %.0f s: %s", stage.name, number, stage.steps, time.perf_counter() - start, values)
    return params
