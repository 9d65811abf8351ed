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

from jaxreid.backbones.frame_encoder import EncoderConfig
from jaxreid.backbones.resnet import ResNet, ResNetConfig
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

    config: EncoderConfig
    vocabulary: tuple[int, ...]  # number of words of each attribute, the place last
    materials: tuple[int, int, int]  # rows and columns of cells that materials are asked of, and number of materials

    @nn.compact
    def __call__(self, frames: Array, train: bool = False) -> tuple[list[Array], Array]:
        """Normalized frames → logits of every attribute's words [2, N, words], asked of the class token (a ResNet's
        pooled map) and of the mean patch (position), and of the materials of the parts of every patch."""
        if isinstance(self.config, ResNetConfig):
            out = ResNet(self.config, name="tower")(frames, train=train)
            whole, grid, project = out["pooled"], out["map"].shape[1:3], None
            patches = out["map"].reshape(len(frames), -1, self.config.channels)
        else:
            tower = ViT(self.config, name="tower")
            out = tower(frames)
            whole, grid, patches = out["class_token"], self.config.grid, out["patch_tokens"]
            project = tower.project if self.config.projection else None
        # Towers without a joint space of their own get one for as long as they are trained.
        project = project or nn.Dense(JOINT, use_bias=False, name="joint")
        # The mean patch learns its words sooner, and the class token then finds them in the patches.
        picture = jnp.stack([project(whole), project(patches.mean(1))])
        picture = picture / jnp.linalg.norm(picture, axis=-1, keepdims=True)
        scale = jnp.exp(self.param("logit_scale", nn.initializers.constant(np.log(10.0)), ()))
        words = self.param("words", nn.initializers.normal(1.0), (sum(self.vocabulary), picture.shape[-1]))
        words = words / jnp.linalg.norm(words, axis=-1, keepdims=True)
        logits = jnp.split(scale * picture @ words.T, np.cumsum(self.vocabulary)[:-1], axis=-1)
        high, wide, count = self.materials
        down, across = high // grid[0], wide // grid[1]
        parts = nn.Dense(down * across * count, name="materials")(patches)
        parts = parts.reshape(-1, *grid, down, across, count).transpose(0, 1, 3, 2, 4, 5)
        return logits, parts.reshape(-1, high, wide, count)


def loss(
    reader: Reader, variables: Any, rng: Array, batch: Pictures, place_weight: float
) -> tuple[Array, tuple[dict[str, Array], Any]]:
    """Weighted sum of the cross entropies of words (mean over attributes), materials (mean over cells) and place; with
    them and what changed in "batch_stats" beside it."""
    flip_rng, photograph_rng = jax.random.split(rng)
    frames, materials = batch.frames.astype(jnp.float32) / 255, batch.materials.astype(jnp.float32) / 255
    flip = jax.random.bernoulli(flip_rng, 0.5, (len(frames),))[:, None, None, None]
    frames = jnp.where(flip, frames[:, :, ::-1], frames)
    materials = jnp.where(flip, materials[:, :, ::-1], materials)
    seen = (photograph(photograph_rng, frames) - MEAN) / STD
    (words, parts), changed = reader.apply(variables, seen, train=True, mutable=["batch_stats"])
    word_loss = jnp.stack([_cross_entropy(x, y) for x, y in zip(words[:-1], batch.words.T, strict=True)]).mean(0)
    place_loss = _cross_entropy(words[-1], batch.place)
    patch_loss = optax.softmax_cross_entropy(jnp.asarray(parts), materials).mean()
    metrics = {"words": word_loss[0], "mean_patch_words": word_loss[1], "patches": patch_loss, "place": place_loss[0]}
    return WORD_WEIGHT * word_loss.mean() + patch_loss + place_weight * place_loss.mean(), (metrics, changed)


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


def make_reader(pictures: Pictures, seed: int, config: EncoderConfig = TOWER) -> tuple[Reader, Any]:
    """A reader for the vocabulary of `pictures`, and its first variables."""
    vocabulary = (*(int(column.max()) + 1 for column in pictures.words.T), int(pictures.place.max()) + 1)
    _, rows, columns, count = pictures.materials.shape
    reader = Reader(config, vocabulary, (rows, columns, count))
    return reader, reader.init(jax.random.key(seed), jnp.zeros((1, *pictures.frames.shape[1:])))


def train(reader: Reader, variables: Any, pictures: Pictures, stage: Stage, seed: int) -> Any:
    """Variables of the reader after one stage."""
    transformation = optimizer(variables["params"], stage)
    state = transformation.init(variables["params"])
    order = np.random.default_rng(seed)
    rng = jax.random.key(seed)

    @jax.jit
    def step(variables, state, number, batch):
        def objective(params):
            now = {**variables, "params": params}
            return loss(reader, now, jax.random.fold_in(rng, number), batch, stage.place_weight)

        params = variables["params"]
        gradients, (metrics, changed) = jax.grad(objective, has_aux=True)(params)
        updates, state = transformation.update(gradients, state, params)
        return {**variables, **changed, "params": optax.apply_updates(params, updates)}, state, metrics

    start, running = time.perf_counter(), None
    for number in range(stage.steps):
        rows = order.integers(len(pictures.frames), size=BATCH)
        variables, state, metrics = step(variables, state, number, Pictures(*(x[rows] for x in pictures)))
        running = metrics if running is None else jax.tree.map(lambda a, b: 0.95 * a + 0.05 * b, running, metrics)
        if number % 50 == 0 or number == stage.steps - 1:
            values = " ".join(f"{name} {float(value):.3f}" for name, value in running.items())
            if not np.isfinite(list(running.values())).all():
                raise UserError(f"{stage.name} {number}/{stage.steps}: {values} is not finite; lower its learning rate")
            log.info("%s %d/%d %.0f s: %s", stage.name, number, stage.steps, time.perf_counter() - start, values)
    return variables


def tower_of(variables: Any) -> Any:
    """What is kept of a reader: the tower's parameters, of a ResNet its variables."""
    kept = {collection: tree["tower"] for collection, tree in variables.items() if "tower" in tree}
    return kept if "batch_stats" in kept else kept["params"]
