"""The two-stem ResNet-50: published counts, what masks and modalities keep apart, pooling. Parity: beside."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.backbones.resnet import ResNet, ResNetConfig, gem

TINY = ResNetConfig(depths=(1, 2), width=4, stems=2)
MODALITY = np.array([0, 1, 1, 0, 1, 0, 0, 1])


def build(config=TINY, seed=0):
    """(model, variables, frames [8, 32, 16, 3]), everything random."""
    model = ResNet(config)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(8, 32, 16, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, None, MODALITY)

    def draw(path, leaf):
        centre = float(path[-1].key in ("scale", "var"))
        fan_in = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 25
        return np.float32(centre + rng.uniform(-1, 1, leaf.shape) * fan_in**-0.5)

    return model, jax.tree_util.tree_map_with_path(draw, shapes), x


def train_step(model, variables, x, mask, modality, weight):
    """Outputs, new statistics and gradient of a linear function of "pooled"."""

    def loss(params):
        out, update = model.apply(
            variables | {"params": params}, x, mask, modality, train=True, mutable=["batch_stats"]
        )
        return jnp.where(mask[:, None], out["pooled"] * weight, 0).sum(), (out, update)

    return jax.grad(loss, has_aux=True)(variables["params"])


step = jax.jit(train_step, static_argnums=0)


def stems(model, variables, x, modality=None, **options):
    return jax.jit(partial(model.apply, method="run_stems", **options))(variables, x, None, modality)


def abstract(config, size=(288, 144), **inputs):
    frames = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    modality = jax.ShapeDtypeStruct((1,), jnp.int32)
    model = ResNet(config)
    variables = jax.eval_shape(model.init, jax.random.key(0), frames, None, modality)
    return variables, jax.eval_shape(model.apply, variables, frames, None, modality)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_published_parameter_counts_and_names():
    one, two = (abstract(ResNetConfig(stems=stems))[0]["params"] for stems in (1, 2))
    assert count(one) == 23_508_032
    assert count(two) - count(one) == count(two["stem_infrared"]) == 9_536
    assert {leaf.dtype for leaf in jax.tree.leaves(two)} == {jnp.dtype("float32")}
    assert one.keys() == {"stem"} | {f"layer{i}_{j}" for i, n in enumerate((3, 4, 6, 3), 1) for j in range(n)}
    convolutions, norms = {"conv1", "conv2", "conv3"}, {"norm1", "norm2", "norm3"}
    assert one["layer2_1"].keys() == convolutions | norms
    assert one["layer2_0"].keys() == convolutions | norms | {"downsample_conv", "downsample_norm"}
    assert one["layer1_0"]["conv2"]["kernel"].shape == (3, 3, 64, 64)
    assert one["layer4_0"]["downsample_conv"]["kernel"].shape == (1, 1, 1024, 2048)
    assert one["stem"]["conv"]["kernel"].shape == (7, 7, 3, 64)
    assert one["stem"]["norm"].keys() == {"scale", "bias"}


@pytest.mark.parametrize(
    ("size", "last_stride", "grid"),
    [((288, 144), 1, (18, 9)), ((256, 128), 1, (16, 8)), ((224, 224), 2, (7, 7)), ((256, 128), 2, (8, 4))],
)
def test_map_sizes(size, last_stride, grid):
    config = ResNetConfig(last_stride=last_stride)
    _, out = abstract(config, size)
    assert out["map"].shape == (1, *grid, 2048) and out["pooled"].shape == (1, config.channels)


def test_a_trunk_is_fed_with_maps():
    trunk = ResNet(ResNetConfig(stems=0))
    maps = jax.ShapeDtypeStruct((2, 64, 32, 64), jnp.float32)
    variables = jax.eval_shape(lambda x: trunk.init(jax.random.key(0), x, method="run_layers"), maps)
    assert count(variables["params"]) == 23_508_032 - 9_536
    out = jax.eval_shape(lambda v, x: trunk.apply(v, x, method="run_layers"), variables, maps)
    assert out.shape == (2, 16, 8, 2048)


def test_padding_has_no_influence():
    """Rows that are masked out may hold anything: nothing changes for the others, in outputs, statistics, gradients."""
    model, variables, x = build()
    mask = np.array([True, True, False, True, True, False, True, True])
    weight = np.random.default_rng(1).normal(size=(8, TINY.channels)).astype(np.float32)
    dirty = np.where(mask[:, None, None, None], x, 1e4)
    gradient, (out, update) = step(model, variables, dirty, mask, MODALITY, weight)
    every = np.ones(int(mask.sum()), bool)
    expected = step(model, variables, x[mask], every, MODALITY[mask], weight[mask])
    np.testing.assert_array_equal(out["map"][~mask], 0)
    # Convolutions of another number of rows may add in another order: roundings of values up to 5. A leak is 1e4.
    np.testing.assert_allclose(out["map"][mask], expected[1][0]["map"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(out["pooled"][mask], expected[1][0]["pooled"], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), update, expected[1][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), gradient, expected[0])


def test_each_modality_has_its_stem_and_statistics():
    model, variables, x = build()
    both = stems(model, variables, x, MODALITY)
    _, together = stems(model, variables, x, MODALITY, train=True, mutable=["batch_stats"])
    single = ResNet(dataclasses.replace(TINY, stems=1))
    for code, name in enumerate(("stem", "stem_infrared")):
        rows = np.flatnonzero(np.equal(MODALITY, code))
        own = {kind: {"stem": tree[name]} for kind, tree in variables.items()}
        np.testing.assert_allclose(both[rows], stems(single, own, x[rows]), atol=1e-5)
        _, alone = stems(single, own, x[rows], train=True, mutable=["batch_stats"])
        for key, expected in alone["batch_stats"]["stem"]["norm"].items():
            np.testing.assert_allclose(together["batch_stats"][name]["norm"][key], expected, atol=1e-6)
    with pytest.raises(ValueError, match="no modality"):
        model.apply(variables, x)


def test_a_batch_of_one_modality_leaves_the_other_stem_as_it_is():
    model, variables, x = build()
    weight = np.ones((8, TINY.channels), np.float32)
    gradient, (_, update) = step(model, variables, x, np.ones(8, bool), np.zeros(8, int), weight)
    old, new = (tree["batch_stats"]["stem_infrared"] for tree in (variables, update))
    jax.tree.map(np.testing.assert_array_equal, old, new)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), gradient["stem_infrared"])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["stem"]))


def test_statistics_and_gradients_are_those_of_all_devices():
    devices = jax.devices()
    assert len(devices) == 8
    model, variables, x = build()
    mask = np.arange(8) != 5
    weight = np.random.default_rng(1).normal(size=(8, TINY.channels)).astype(np.float32)
    mesh = jax.sharding.Mesh(np.array(devices[:8]), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = step(model, variables, *(jax.device_put(a, spread) for a in (x, mask, MODALITY, weight)))
    alone = step(model, variables, x, mask, MODALITY, weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), sharded, alone)


def test_remat_changes_no_number():
    model, variables, x = build()
    mask, weight = np.arange(8) != 5, np.ones((8, TINY.channels), np.float32)
    remat = ResNet(dataclasses.replace(TINY, remat=True))
    assert "remat" in str(jax.make_jaxpr(lambda x: remat.apply(variables, x, mask, MODALITY))(x))
    plain, other = (step(m, variables, x, mask, MODALITY, weight) for m in (model, remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), other, plain)


def test_without_relu_the_stem_lets_negative_maps_through():
    model, variables, x = build()
    plain = ResNet(dataclasses.replace(TINY, stem_relu=False))
    with_relu, without = (stems(m, variables, x, MODALITY) for m in (model, plain))
    assert without.min() < 0
    np.testing.assert_array_equal(with_relu, jnp.maximum(without, 0))  # max pooling and ReLU commute


def test_bfloat16_keeps_parameters_and_statistics_float32():
    model, variables, x = build(dataclasses.replace(TINY, dtype=jnp.bfloat16))
    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    out, update = jax.eval_shape(apply, variables, x, None, MODALITY)
    assert out["map"].dtype == jnp.bfloat16 and out["pooled"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(update)} == {jnp.dtype("float32")}


def test_gem_by_hand():
    maps = jnp.array([[[[1.0, 0.0], [2.0, 0.0]], [[3.0, 0.0], [0.0, 0.0]]]])  # [1, 2, 2, 2]
    np.testing.assert_allclose(gem(maps), [[9 ** (1 / 3), 1e-4]], rtol=1e-5)  # mean of 1, 8, 27, 0; and of nothing
    gradient = jax.grad(lambda m: gem(m).sum())(maps)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[0, 1, 0, 0], 9 ** (-2 / 3) * 9 / 4, rtol=1e-5)
    assert gem(maps.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parity
def test_batch_norm_of_maps_is_pytorch_s():
    import torch

    rng = np.random.default_rng(0)
    x = (rng.normal(size=(5, 4, 3, 6)) * 3 + 2).astype(np.float32)
    weight = rng.normal(size=x.shape).astype(np.float32)
    mask = np.array([True, False, True, True, False])
    reference = torch.nn.BatchNorm2d(6)
    given = torch.tensor(x[mask], requires_grad=True)
    expected = reference(given.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    (expected * torch.tensor(weight[mask])).sum().backward()
    module = MaskedBatchNorm()
    variables = {"params": {"scale": jnp.ones(6), "bias": jnp.zeros(6)}}
    variables |= {"batch_stats": {"mean": jnp.zeros(6), "var": jnp.ones(6)}}

    def total(x):
        y, update = module.apply(variables, x, mask, use_running_average=False, mutable=["batch_stats"])
        return jnp.where(mask[:, None, None, None], y * weight, 0).sum(), (y, update["batch_stats"])

    dirty = np.where(mask[:, None, None, None], x, np.nan)
    gradient, (y, stats) = jax.jit(jax.grad(total, has_aux=True))(dirty)
    np.testing.assert_allclose(y[mask], expected.detach().numpy(), atol=1e-5)
    np.testing.assert_array_equal(y[~mask], 0)
    np.testing.assert_allclose(gradient[mask], given.grad.numpy(), atol=1e-5)
    np.testing.assert_array_equal(gradient[~mask], 0)
    np.testing.assert_allclose(stats["mean"], reference.running_mean.numpy(), atol=1e-6)
    np.testing.assert_allclose(stats["var"], reference.running_var.numpy(), rtol=1e-5)


def test_impossible_configurations_are_named():
    with pytest.raises(ValueError, match="last_stride 3"):
        ResNetConfig(last_stride=3)
    with pytest.raises(ValueError, match="3 stems"):
        ResNetConfig(stems=3)
    trunk = ResNet(dataclasses.replace(TINY, stems=0))
    with pytest.raises(ValueError, match="no stem"):
        trunk.init(jax.random.key(0), jnp.zeros((1, 32, 16, 3)))
