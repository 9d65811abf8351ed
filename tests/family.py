"""Small methods of the CLIP-ReID family and batches for them: two towers of a few thousand parameters."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.backbones.text import TextConfig
from jaxreid.backbones.vit import ViTConfig
from jaxreid.backbones.word_table import walkers_words
from jaxreid.data.batch import Batch
from jaxreid.data.split import Labels, TrackletTable
from jaxreid.dataset_info import DatasetInfo
from jaxreid.devices.parallel import flatten_paths
from jaxreid.methods.method import Context, find_method
from jaxreid.optimizers import Progress

IMAGE = ViTConfig(width=16, depth=2, heads=4, patch=8, image_size=(24, 24), projection=8)
TEXT = TextConfig(width=16, depth=1, heads=2, projection=8, vocabulary=len(walkers_words().clip_ids))
CAMERAS, CLIPS, FRAMES, PEOPLE = 3, 8, 3, 4


def small_towers(patch):
    """Registers the towers under the name "small" while a MonkeyPatch lasts."""
    patch.setitem(importlib.import_module("jaxreid.backbones.clip").VISION_TOWERS, "small", IMAGE)
    patch.setitem(importlib.import_module("jaxreid.backbones.text").TEXT_TOWERS, "small", TEXT)


def small_super_resolution(patch):
    """The towers, and a network of super-resolution of a few thousand parameters in place of "swinir_tiny"."""
    small_towers(patch)
    swinir = importlib.import_module("jaxreid.backbones.swinir")
    tiny = swinir.SwinIRConfig(width=8, groups=1, depth=1, heads=2, drop_path=0.0)
    patch.setitem(swinir.VARIANTS, "swinir_tiny", tiny)


def make_config(name, **changes):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.backbone.name, config.backbone.checkpoint = "small", ""
    config.update_from_flattened_dict(changes)
    return config


def make_info():
    """Two tracklets of each person, one visible and one infrared."""
    identity = np.repeat(np.arange(PEOPLE, dtype=np.int32), 2)
    count = len(identity)
    unknown, camera = np.full(count, -1, np.int32), np.arange(count, dtype=np.int32) % CAMERAS
    table = TrackletTable(
        length=np.full(count, 8, np.int32),
        camera=camera,
        camera_index=camera,
        modality=np.arange(count, dtype=np.int32) % 2,
        platform=unknown,
        session=unknown,
        geometry=np.full((count, 3), np.nan, np.float32),
        recording=unknown,
    )
    labels = Labels(identity, identity, unknown, unknown, tuple(map(str, range(count))))
    frame_size = (24, 24)
    return DatasetInfo(
        "toy", table, np.arange(CAMERAS), frame_size, num_classes=PEOPLE, labels=labels, tokenize=walkers_words()
    )


def make_method(name, **changes):
    config = make_config(name, **changes)
    return find_method(config.method)(config, make_info())


def make_batch(seed=0):
    """A clip of every tracklet: rows 2k and 2k + 1 are person k, visible and infrared."""
    table, labels = make_info().table, make_info().labels
    unknown = jnp.full(CLIPS, -1, jnp.int32)
    return Batch(
        frames=jax.random.normal(jax.random.key(seed), (CLIPS, FRAMES, 24, 24, 3)),
        frame_mask=jnp.ones((CLIPS, FRAMES), bool),
        tracklet=jnp.arange(CLIPS, dtype=jnp.int32),
        part=jnp.zeros(CLIPS, jnp.int32),
        geometry=jnp.zeros((CLIPS, 3)),
        valid=jnp.ones(CLIPS, bool),
        identity=jnp.asarray(labels.identity),
        **{name: jnp.asarray(getattr(table, name)) for name in ("camera", "camera_index", "modality")},
        **dict.fromkeys(("platform", "session", "pair", "clothes"), unknown),
    )


def filled(init, *args, seed=1, scale=0.4):
    """Variables of the shapes that `init(key, *args)` makes, nothing at its special starting value, variances
    positive; not compiled."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        one = 1.0 if path[-1].key in ("scale", "var") else 0.0
        # Wide inputs get small weights, so that activations stay of order one.
        size = scale / max(1, int(np.prod(shape.shape[:-1]))) ** 0.5
        value = one + size * rng.normal(size=shape.shape)
        return jnp.asarray(np.abs(value) + 0.1 if path[-1].key == "var" else value, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(init, jax.random.key(0), *args))


def random_variables(method, scale=1.0):
    return filled(method.init, make_batch(), scale=scale)


def progress(fraction=0.5):
    return Progress(step=jnp.int32(0), epoch=jnp.float32(1), fraction=jnp.float32(fraction))


def context(fraction=0.5):
    return Context(jax.random.key(0), progress(fraction))


def loss_of(stage, fraction=0.5):
    """(params, batch_stats, memory, batch) → (loss, (metrics, batch_stats, memory)), not jitted."""

    def loss(params, stats, memory, batch):
        variables = {"params": params, "batch_stats": stats}
        out = stage.loss(variables, memory, batch, context(fraction))
        return out.total, (out.metrics, out.batch_stats, out.memory)

    return loss


def largest(tree):
    """Path → largest absolute value of every leaf."""
    found = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {"/".join(key.key for key in path): float(np.abs(leaf).max()) for path, leaf in found}


def paths(tree):
    """Paths of all leaves of a nested dict."""
    return [path for path, _ in flatten_paths(tree)]
