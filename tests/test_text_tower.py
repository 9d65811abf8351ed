"""CLIP's text tower: published counts, causality, prompts as embeddings. Parity: beside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refuses

from jaxreid.backbones.clip import vision_config
from jaxreid.backbones.text import TextConfig, TextTower, text_config
from jaxreid.backbones.vit import ViT

TINY = TextConfig(width=16, depth=2, heads=2, projection=8, vocabulary=50, context=12)
IDS = np.array([[48, 5, 9, 49, 0, 0, 0], [48, 7, 11, 3, 20, 49, 0]])


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(TextTower(TINY).init, jax.random.key(0), IDS)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.3, leaf.shape)), shapes)


def encode(variables, *args, method="__call__", config=TINY, **options):
    return jax.jit(lambda v, a: TextTower(config).apply(v, *a, method=method, **options))(variables, args)


@pytest.mark.parametrize(
    ("name", "count", "total"),
    [
        ("ViT-B/32", 63_428_096, 151_277_313),
        ("ViT-B/16", 63_428_096, 149_620_737),
        ("ViT-L/14", 123_650_304, 427_616_513),
        ("ViT-L/14@336", 123_650_304, 427_944_193),
    ],
)
def test_published_parameter_counts(name, count, total):
    """Of the text tower, and of the whole model with its image tower and the temperature."""
    config, vision = text_config(name), vision_config(name)
    assert config.projection == vision.projection

    def size(module, *args):
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), *args)))

    assert size(TextTower(config), jnp.zeros((1, 77), int)) == count
    assert count + size(ViT(vision), jnp.zeros((1, *vision.image_size, 3))) + 1 == total


def test_tree(variables):
    params = variables["params"]
    assert params.keys() == {
        *("token_embedding", "position_embedding", "block_00", "block_01", "norm_final", "projection")
    }
    assert params["token_embedding"].shape == (50, 16) and params["position_embedding"].shape == (12, 16)
    assert params["projection"]["kernel"].shape == (16, 8) and "bias" not in params["projection"]


def test_what_follows_the_end_token_changes_nothing(variables):
    """Neither padding, nor cutting it off; and no token sees those after it."""
    out = encode(variables, IDS)
    padded = encode(variables, np.pad(IDS, ((0, 0), (0, 5))))
    np.testing.assert_allclose(padded["projected"], out["projected"], atol=1e-5)
    cut = encode(variables, IDS[:1, :4])
    np.testing.assert_allclose(cut["projected"], out["projected"][:1], atol=1e-5)
    np.testing.assert_allclose(cut["tokens"], out["tokens"][:1, :4], atol=1e-5)
    changed = IDS.copy()
    changed[1, 4] = 33
    tokens = encode(variables, changed)["tokens"]
    np.testing.assert_array_equal(tokens[1, :4], out["tokens"][1, :4])
    assert np.abs(tokens[1, 4:] - out["tokens"][1, 4:]).max(axis=-1).min() > 1e-3


def test_embeddings_with_the_end_s_position_give_what_ids_give(variables):
    embeddings = encode(variables, IDS, method="embed_ids")
    np.testing.assert_array_equal(embeddings, variables["params"]["token_embedding"][IDS])
    out = encode(variables, embeddings, np.array([3, 5]), method="encode_embeddings")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), out, encode(variables, IDS))
    kernel = variables["params"]["projection"]["kernel"]
    np.testing.assert_allclose(out["projected"], np.asarray(out["tokens"])[[0, 1], [3, 5]] @ kernel, atol=1e-5)


def test_learned_rows_get_gradients_and_the_rows_after_the_end_none(variables):
    embeddings = encode(variables, IDS, method="embed_ids")

    def loss(embeddings):
        out = TextTower(TINY).apply(variables, embeddings, jnp.array([3, 5]), method="encode_embeddings")
        return (out["projected"] ** 2).sum()

    gradient = np.abs(jax.jit(jax.grad(loss))(embeddings)).max(-1)
    assert (gradient[0, :4] > 0).all() and (gradient[1, :6] > 0).all()
    np.testing.assert_array_equal(gradient[0, 4:], 0)


def test_taps_and_scan(variables):
    """Blocks can be tapped here too; a scanned tower gives the same numbers, still causal."""
    embeddings, end = encode(variables, IDS, method="embed_ids"), np.array([3, 5])
    out = encode(variables, embeddings, end, method="encode_embeddings", taps=(0,))
    assert out["taps"][0].tokens.shape == (2, 7, 16)
    scanned = dataclasses.replace(TINY, scan=True, remat=True)
    same = encode(variables, embeddings, end, method="encode_embeddings", config=scanned)
    np.testing.assert_allclose(same["tokens"], out["tokens"], atol=1e-6)


def test_unknown_names_and_long_rows_are_named(variables):
    with refuses(ValueError, "'RN50'", "ViT-B/16"):
        text_config("RN50")
    with refuses(ValueError, "(1, 13, 16)", 12):
        encode(variables, np.zeros((1, 13), int))
