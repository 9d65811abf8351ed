"""The tower that ships with the package: what it may see, and that it trains."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_builders.walkers.world import CONFIGS
from jaxreid.backbones.frame_encoder import encoder_config
from jaxreid.training import starting_tower
from jaxreid.training.drawn_pictures import COLOURLESS, SEED, Pictures, draw_pictures, photograph
from jaxreid.training.starting_tower import TOWER, Stage, make_reader, train


@pytest.fixture(scope="module")
def pictures():
    return draw_pictures(12, TOWER)


def test_pictures_are_visible_and_of_other_people(pictures):
    frames = pictures.frames.astype(int)
    assert frames.shape[1:] == (64, 32, 3)
    colourful = (frames.max(-1) - frames.min(-1)).mean((1, 2))
    assert colourful.min() > 3  # an infrared frame has 0
    assert SEED not in {config.seed for config in CONFIGS.values()}
    count = len(frames)
    assert pictures.materials.shape[:3] == (count, 16, 8)
    np.testing.assert_allclose(pictures.materials.astype(int).sum(-1), 255, atol=3)
    assert pictures.words.shape == (count, len(COLOURLESS))
    assert pictures.place.shape == (count,)


def test_materials_lie_where_the_person_is(pictures):
    """Background at the edges; cloth in the middle third, shoes below it, head above it."""
    shares = pictures.materials / 255
    assert shares[:, :, [0, 7], 0].mean() > 0.9
    skin_or_hair, cloth, shoes = (shares[..., m].sum(-1).mean((0, 2)) for m in ([1, 2], [3, 4], [6]))
    assert cloth[4:10].sum() > 0.85 * cloth.sum()
    assert shoes[11:].sum() > 0.95 * shoes.sum()
    assert skin_or_hair[3] > 2 * cloth[3]


def test_photographs_differ_by_key_and_stay_in_range():
    frames = jax.random.uniform(jax.random.key(0), (40, 64, 32, 3))
    first, second = (np.asarray(photograph(jax.random.key(seed), frames)) for seed in (1, 2))
    assert first.shape == frames.shape and first.min() >= 0 and first.max() <= 1
    assert not np.allclose(first, second)
    again = np.asarray(photograph(jax.random.key(1), frames))
    assert np.array_equal(first, again)
    spread = np.abs(first[..., 0] - first[..., 1]).mean((1, 2))
    noise_only = spread < 0.08  # of a picture made grey only the noise tells the channels apart
    assert 0.35 < noise_only.mean() < 0.85


@pytest.mark.extended
@pytest.mark.parametrize("name", ["walkers_vit_tiny", "resnet_tiny"])
def test_training_learns_the_words(name, pictures):
    reader, variables = make_reader(pictures, 0, encoder_config(name, TOWER.image_size, "float32"))

    def word_loss(variables):
        rng = jax.random.key(5)
        batch = Pictures(*(jnp.asarray(x) for x in pictures))
        metrics, _ = starting_tower.loss(reader, variables, rng, batch, 0.0)[1]
        return float(metrics["words"])

    before = word_loss(variables)
    after = word_loss(train(reader, variables, pictures, Stage("people", 40, 1e-2, 0.0), seed=0))
    assert after < 0.75 * before


@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [
        ("walkers_vit_tiny", "walkers_vit_tiny"),
        ("dinov2:walkers_vit_tiny", "walkers_dinov2_tiny"),
        ("imagenet:walkers_vit_tiny", "walkers_imagenet_tiny"),
        ("resnet_tiny", "walkers_resnet_tiny"),
    ],
)
def test_packaged_towers_know_strangers_again(name, checkpoint):
    """Unseen people across visible cameras and across modalities: well above chance, far from solved."""
    path = Path(__file__).parents[1] / "benchmarks" / "walkers_tower.py"
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location("walkers_tower", path)
        benchmark = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(benchmark)
    finally:
        sys.path.remove(str(path.parent))
    config = dataclasses.replace(CONFIGS["vvi"], seed=5, test_identities=24, tracklets_per_camera=(1, 1))
    world = benchmark.World(config)
    tower = encoder_config(name, TOWER.image_size, "float32")
    variables = benchmark.load_variables(checkpoint, tower)
    features, specs = benchmark.tracklet_features(tower, variables, world, "test", frames=2)
    columns = benchmark.columns(specs)
    found = benchmark.scores(features, *columns)
    chance = benchmark.scores(np.random.default_rng(0).standard_normal(features.shape), *columns)
    assert found["V->V"] > 2 * chance["V->V"] and found["I->I"] > 2 * chance["I->I"]
    assert found["V->I"] > 1.3 * chance["V->I"] and found["I->V"] > 1.3 * chance["I->V"]
    assert found["V->I"] < 60 and found["I->V"] < 60
