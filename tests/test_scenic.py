"""The bridge to google-research/scenic: its names and shapes always, its own code where it can be imported."""

import builtins
import dataclasses
import itertools

import jax
import numpy as np
import pytest
from flax.core import freeze
from flax.traverse_util import flatten_dict, unflatten_dict
from messages import refuses

from jaxreid.backbones import clip as image_towers
from jaxreid.backbones.tensors import CheckpointError
from jaxreid.backbones.text import TextConfig, TextTower
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.contrib import scenic
from jaxreid.data.samplers import IdentitySampler
from jaxreid.data.split import open_split

IMAGE = ViTConfig(width=24, depth=2, heads=3, patch=8, image_size=(32, 32), projection=10)
TEXT = TextConfig(width=16, depth=2, heads=2, projection=10, vocabulary=40, context=7)


def block(width, heads):
    """Shapes of one block of its transformer."""
    depth = width // heads
    inward = {f"attn/{name}/kernel": (width, heads, depth) for name in ("query", "key", "value")}
    inward |= {f"attn/{name}/bias": (heads, depth) for name in ("query", "key", "value")}
    norms = {f"{norm}/{leaf}": (width,) for norm in ("ln_1", "ln_2") for leaf in ("scale", "bias")}
    return {
        **inward,
        "attn/out/kernel": (heads, depth, width),
        "attn/out/bias": (width,),
        "mlp/c_fc/kernel": (width, 4 * width),
        "mlp/c_fc/bias": (4 * width,),
        "mlp/c_proj/kernel": (4 * width, width),
        "mlp/c_proj/bias": (width,),
        **norms,
    }


def blocks(tower, width, heads):
    shapes = block(width, heads)
    return {f"{tower}/transformer/resblocks.{i}/{key}": shape for i in range(2) for key, shape in shapes.items()}


# scenic's `CLIP` of the two towers, written down from its layers.
SHAPES = {
    "visual/conv1/kernel": (8, 8, 3, 24),
    "visual/class_embedding": (24,),
    "visual/positional_embedding": (1 + 16, 24),
    "visual/ln_pre/scale": (24,),
    "visual/ln_pre/bias": (24,),
    **blocks("visual", 24, 3),
    "visual/ln_post/scale": (24,),
    "visual/ln_post/bias": (24,),
    "visual/proj/kernel": (24, 10),
    "text/token_embedding/embedding": (40, 16),
    "text/positional_embedding": (7, 16),
    **blocks("text", 16, 2),
    "text/ln_final/scale": (16,),
    "text/ln_final/bias": (16,),
    "text/text_projection/kernel": (16, 10),
    "logit_scale": (),
}


@pytest.fixture(scope="module")
def theirs():
    """The "params" of a whole CLIP, random."""
    rng = np.random.default_rng(0)
    return unflatten_dict({key: rng.normal(size=s).astype(np.float32) for key, s in SHAPES.items()}, sep="/")


def test_a_whole_clip_there_and_back(theirs):
    image, text = scenic.from_scenic(theirs, IMAGE), scenic.from_scenic(theirs, TEXT)
    whole = scenic.to_scenic(image, IMAGE) | scenic.to_scenic(text, TEXT) | {"logit_scale": theirs["logit_scale"]}
    found = flatten_dict(whole, sep="/")
    assert {key: np.shape(leaf) for key, leaf in found.items()} == SHAPES
    for key, leaf in flatten_dict(theirs, sep="/").items():
        np.testing.assert_array_equal(found[key], leaf, err_msg=key)


def test_heads_are_consecutive_columns(theirs):
    attention, ours = theirs["visual"]["transformer"]["resblocks.1"]["attn"], scenic.from_scenic(theirs, IMAGE)
    ours = ours["block_01"]["attention"]
    np.testing.assert_array_equal(ours["query"]["kernel"][:, 8:16], attention["query"]["kernel"][:, 1])
    np.testing.assert_array_equal(ours["value"]["bias"][16:], attention["value"]["bias"][2])
    np.testing.assert_array_equal(ours["out"]["kernel"][8:16], attention["out"]["kernel"][1])


def test_one_tower_frozen_and_named_with_underscores(theirs):
    renamed = {key.replace("resblocks.", "resblocks_"): leaf for key, leaf in theirs["visual"]["transformer"].items()}
    tower = freeze(theirs["visual"] | {"transformer": renamed})
    jax.tree.map(np.testing.assert_array_equal, scenic.from_scenic(tower, IMAGE), scenic.from_scenic(theirs, IMAGE))


def test_positions_are_resized_to_another_input(theirs):
    tall = dataclasses.replace(IMAGE, image_size=(64, 32))
    table = scenic.from_scenic(theirs, tall)["position_embedding"]
    assert table.shape == (1 + 32, 24)
    np.testing.assert_array_equal(table[0], theirs["visual"]["positional_embedding"][0])


def test_what_does_not_fit_is_named(theirs):
    shapeless = dataclasses.replace(IMAGE, heads=4)  # the kernels have as many numbers
    with refuses(CheckpointError, "resblocks.0/attn/query/kernel", "(24, 3, 8)"):
        scenic.from_scenic(theirs, shapeless)
    with refuses(CheckpointError, "unused", 16):
        scenic.from_scenic(theirs, dataclasses.replace(IMAGE, depth=1))
    with refuses(CheckpointError, "image tower"):
        scenic.from_scenic({"params": theirs}, IMAGE)
    for change, named in (
        ({"activation": "gelu"}, ("activation", "'quick_gelu'", "'gelu'")),
        ({"eps": 1e-6}, ("eps", "1e-05", "1e-06")),
        ({"stride": 4}, ("overlap", "stride 4")),
    ):
        with refuses(CheckpointError, *named):
            scenic.from_scenic(theirs, dataclasses.replace(IMAGE, **change))
    scaled = dataclasses.replace(IMAGE, layer_scale=1.0)
    params = jax.eval_shape(lambda: ViT(scaled).init(jax.random.key(0), np.zeros((1, 32, 32, 3))))["params"]
    with refuses(CheckpointError, "scenic CLIP"):
        scenic.to_scenic(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params), scaled)


def test_without_scenic_the_error_says_where_to_get_it(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **named):
        if name.startswith("scenic"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    for make in (lambda: scenic.tower(IMAGE), lambda: scenic.clip(IMAGE, TEXT)):
        with refuses(ImportError, "PYTHONPATH"):
            make()


# ----------------------------------------------------------------------------------------------- against its own code


def scenic_module(name):
    return pytest.importorskip(f"scenic.{name}", reason="google-research/scenic is not on PYTHONPATH")


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize("size", [(32, 32), (64, 24)])
def test_towers_compute_the_same_in_its_layers(size):
    scenic_module("projects.baselines.clip.layers")
    image = dataclasses.replace(IMAGE, image_size=size)
    rng = np.random.default_rng(1)
    frames = rng.normal(size=(3, *size, 3)).astype(np.float32)
    ids = np.array([[38, 5, 7, 39, 0, 0, 0], [38, 1, 2, 3, 4, 5, 39]], np.int32)  # 39 is the largest: the end

    module = scenic.clip(image, TEXT)
    theirs = module.init(jax.random.key(0), frames, ids)["params"]
    theirs = jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32) + leaf, theirs)
    # Theirs in our towers, and what comes back, in its own.
    params = {config: scenic.from_scenic(theirs, config) for config in (image, TEXT)}
    seen = jax.jit(ViT(image).apply)({"params": params[image]}, frames)
    read = jax.jit(TextTower(TEXT).apply)({"params": params[TEXT]}, ids)
    back = scenic.to_scenic(params[image], image) | scenic.to_scenic(params[TEXT], TEXT)
    back |= {"logit_scale": theirs["logit_scale"]}
    for weights in (theirs, back):
        projected, text = module.apply({"params": weights}, frames, ids, normalize=False)
        close(seen["projected"], projected)
        close(read["projected"], text)

    _, tokens = scenic.tower(image).apply({"params": back["visual"]}, frames)
    stream = ViT(image).apply({"params": params[image]}, frames, taps=(-1,))["taps"][0].tokens
    close(stream, tokens)
    close(read["projected"], scenic.tower(TEXT).apply({"params": back["text"]}, ids))


@pytest.mark.parametrize("name", image_towers.VISION_TOWERS)
def test_named_towers_have_its_names_and_shapes(name):
    """Both trees are built abstractly: no weight is made."""
    layers = scenic_module("projects.baselines.clip.layers")
    del layers
    config = image_towers.vision_config(name)
    frames = jax.ShapeDtypeStruct((1, *config.image_size, 3), np.float32)
    there = jax.eval_shape(scenic.tower(config).init, jax.random.key(0), frames)["params"]
    here = jax.eval_shape(ViT(config).init, jax.random.key(0), frames)["params"]
    shapes = {key: leaf.shape for key, leaf in flatten_dict(there, sep="/").items()}
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), here)
    found = flatten_dict(scenic.to_scenic(empty, config)["visual"], sep="/")
    assert {key: leaf.shape for key, leaf in found.items()} == shapes


# ---------------------------------------------------------------------------------------------------------- data sets


def dataset(tiny, **settings):
    how = {"batch_size": 8, "eval_batch_size": 4, "num_shards": 2, "shuffle_seed": 3} | settings
    configs = {"name": "walkers", "config": "tiny", "data_dir": str(tiny.parents[2]), "seq_len": 2}
    configs |= {"height": 64, "width": 32} | how.pop("dataset_configs", {})
    return scenic.get_dataset(**how, dataset_configs=configs)


def test_data_in_the_shape_of_its_dataset(tiny):
    found, train = dataset(tiny), open_split(tiny, "train")
    query, gallery = open_split(tiny, "query"), open_split(tiny, "gallery")
    assert found.meta_data == {
        "num_classes": 6,
        "input_shape": (-1, 2, 64, 32, 3),
        "num_train_examples": len(train),
        "num_eval_examples": len(query),
        "num_test_examples": len(gallery),
        "input_dtype": np.float32,
        "target_is_onehot": False,
    }
    batch = next(found.train_iter)
    shapes = {"inputs": (2, 4, 2, 64, 32, 3), "label": (2, 4), "batch_mask": (2, 4), "frame_mask": (2, 4, 2)}
    shapes |= dict.fromkeys(("tracklet", "camera", "modality"), (2, 4))
    assert {name: array.shape for name, array in batch.items()} == shapes
    assert batch["inputs"].dtype == np.float32 and batch["batch_mask"].all()
    rows = batch["tracklet"]
    np.testing.assert_array_equal(batch["label"], train.labels.identity[rows])
    np.testing.assert_array_equal(batch["camera"], train.table.camera[rows])
    # The order is a function of the seed; the epochs follow each other and differ.
    epoch = len(train) // 8
    again, other = dataset(tiny).train_iter, dataset(tiny, shuffle_seed=4).train_iter
    np.testing.assert_array_equal(next(again)["inputs"], batch["inputs"])
    assert (next(other)["tracklet"] != rows).any()
    later = next(itertools.islice(again, epoch - 1, None))
    assert (later["tracklet"] != rows).any()


def test_every_test_tracklet_once_a_pass_and_padding_masked(tiny):
    query, reader = open_split(tiny, "query"), open_split(tiny, "query").reader(cache=True)
    steps = -(-len(query) // 4)
    found = list(itertools.islice(dataset(tiny).valid_iter, 2 * steps))
    for batches in (found[:steps], found[steps:]):
        mask = np.concatenate([batch["batch_mask"].ravel() for batch in batches]).astype(bool)
        rows = np.concatenate([batch["tracklet"].ravel() for batch in batches])
        label = np.concatenate([batch["label"].ravel() for batch in batches])
        np.testing.assert_array_equal(rows[mask], np.arange(len(query)))
        np.testing.assert_array_equal(label[mask], query.labels.pid)
        assert mask.sum() == len(query) and not label[~mask].any()
    image = reader.decode(0, 0) / np.float32(255)
    expected = (image - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    np.testing.assert_allclose(found[0]["inputs"][0, 0, 0], expected, atol=1e-6)


def test_settings_of_a_project(tiny):
    sampler = IdentitySampler(num_identities=2, num_instances=4)
    found = dataset(tiny, dtype_str="bfloat16", dataset_configs={"sampler": sampler})
    batch = next(found.train_iter)
    assert batch["inputs"].dtype == jax.numpy.bfloat16 and len(set(batch["label"].ravel().tolist())) == 2
    with refuses(ValueError, 8, "config.batch_size", 6):
        dataset(tiny, batch_size=6, dataset_configs={"sampler": sampler})
    with refuses(ValueError, 9, 2):
        dataset(tiny, batch_size=9)
    with pytest.raises(TypeError, match="hight"):
        dataset(tiny, dataset_configs={"hight": 64})


def test_its_registry_and_its_class_take_it(tiny):
    """Needs TensorFlow, which its data sets import."""
    registry, utils = scenic_module("dataset_lib.datasets"), scenic_module("dataset_lib.dataset_utils")
    registry.add_dataset("jaxreid")(scenic.get_dataset)
    configs = {"name": "walkers", "config": "tiny", "data_dir": str(tiny.parents[2]), "height": 64, "width": 32}
    make = registry.get_dataset("jaxreid")
    found = make(batch_size=8, eval_batch_size=4, num_shards=2, dataset_configs=configs | {"seq_len": 2})
    whole = utils.Dataset(**found._asdict())
    assert next(whole.valid_iter)["inputs"].shape == (2, 2, 2, 64, 32, 3)
