"""Temporal aggregation, attention to a context, batch norm and cosine classifier: numbers by hand, PyTorch, masks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refuses

from jaxreid.arrays import masked_mean
from jaxreid.backbones.batch_norm import MaskedBatchNorm, calibrate_norm
from jaxreid.layers.cross_attention import ContextBlock
from jaxreid.layers.neck import CosineClassifier
from jaxreid.layers.temporal import TemporalAggregation

FRAMES = jnp.array([[[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]]])


def count(variables):
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def trained(module, *inputs, seed=0):
    """Parameters as after training: nothing at its special initial value."""
    variables = jax.jit(module.init)(jax.random.key(0), *inputs)
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


# Temporal aggregation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "expected"), [([1, 1, 1], [3, 5]), ([1, 1, 0], [2, 3]), ([0, 0, 1], [5, 9]), ([0, 0, 0], [0, 0])]
)
def test_new_layer_is_the_masked_mean(mask, expected):
    mask = jnp.array([mask], bool)
    module = TemporalAggregation(reduction=2)
    variables = jax.jit(module.init)(jax.random.key(0), FRAMES, mask)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, FRAMES, mask), [expected], rtol=1e-6)
    np.testing.assert_allclose(masked_mean(FRAMES, mask), [expected], rtol=1e-6)


def test_parameter_counts():
    shape = jax.ShapeDtypeStruct((1, 6, 2048), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, 6), bool)
    layer = jax.eval_shape(TemporalAggregation().init, jax.random.key(0), shape, mask)
    assert count(layer) == 8_192 + 4_096 + 524_544 + 256 == 537_088
    norm = MaskedBatchNorm(use_bias=False)
    vector = jax.ShapeDtypeStruct((4, 2048), jnp.float32)
    scale = jax.eval_shape(lambda key, x: norm.init(key, x, use_running_average=True), jax.random.key(0), vector)
    # With the two-stem ResNet-50 this is all that HiTPro trains there.
    assert count(layer) + count(scale) + 23_508_032 + 9_536 == 24_056_704


def test_trained_layer_against_a_plain_loop():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 5, 8)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    module = TemporalAggregation(reduction=4)
    variables = trained(module, jnp.asarray(features), jnp.asarray(mask))
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    expected = []
    for clip, valid in zip(features.astype(np.float64), mask, strict=True):
        clip = clip[valid]
        hidden, energy = [], []
        for t, frame in enumerate(clip):
            before = clip[t - 1] if t > 0 else np.zeros(8)
            after = clip[t + 1] if t + 1 < len(clip) else np.zeros(8)
            kernel = p["conv_kernel"]
            h = frame + kernel[0] * before + kernel[1] * frame + kernel[2] * after + p["conv_bias"]
            normed = (h - h.mean()) / np.sqrt(h.var() + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
            energy.append(p["score"]["kernel"][:, 0] @ np.tanh(normed @ p["reduce"]["kernel"] + p["reduce"]["bias"]))
            hidden.append(h)
        attention = np.exp(energy) / np.exp(energy).sum()
        expected.append(attention @ np.array(hidden))
    np.testing.assert_allclose(jax.jit(module.apply)(variables, features, mask), expected, atol=2e-5)


def test_masked_frames_have_no_influence():
    rng = np.random.default_rng(1)
    features = jnp.asarray(rng.normal(size=(1, 4, 8)), jnp.float32)
    mask = jnp.array([[True, True, True, False]])
    module = TemporalAggregation(reduction=4)
    variables = trained(module, features, mask)
    plain = jax.jit(module.apply)(variables, features, mask)
    dirty = features.at[0, 3].set(jnp.nan)
    np.testing.assert_array_equal(jax.jit(module.apply)(variables, dirty, mask), plain)
    gradient = jax.jit(jax.grad(lambda v, x: module.apply(v, x, mask).sum(), argnums=(0, 1)))(variables, dirty)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    np.testing.assert_array_equal(gradient[1][0, 3], 0)
    longer = jnp.pad(features, ((0, 0), (0, 3), (0, 0)), constant_values=7.0)
    padded = jax.jit(module.apply)(variables, longer, jnp.pad(mask, ((0, 0), (0, 3))))
    np.testing.assert_allclose(padded, plain, atol=1e-6)


def test_new_layer_can_learn():
    """Zero initial values must not leave the layer without gradient."""
    module = TemporalAggregation(reduction=2)
    mask = jnp.ones((1, 3), bool)
    variables = jax.jit(module.init)(jax.random.key(0), FRAMES, mask)
    gradient = jax.jit(jax.grad(lambda v: module.apply(v, FRAMES, mask)[0, 0]))(variables)["params"]
    assert np.abs(gradient["conv_kernel"]).max() > 0
    assert np.abs(gradient["score"]["kernel"]).max() > 0


def test_bad_width_is_named():
    with refuses(ValueError, "width 2", 8):
        TemporalAggregation().init(jax.random.key(0), FRAMES, jnp.ones((1, 3), bool))


# Attention to a context ---------------------------------------------------------------------------------------------


def block_by_hand(params, x, queries, context, mask, heads, last=True):
    """Clip by clip and head by head; without `last`, the MLP adds no more than its last bias."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def linear(y, name):
        return y @ p[name]["kernel"] + p[name]["bias"]

    result = []
    for row, q, c, sees in zip(*(np.asarray(y, np.float64) for y in (x, queries, context)), mask, strict=True):
        q, k, v = (np.split(linear(y, n), heads, axis=1) for y, n in ((q, "query"), (c, "key"), (c, "value")))
        mixed = []
        for head in range(heads):
            weights = np.exp(q[head] @ k[head].T / np.sqrt(k[head].shape[1])) * sees
            mixed.append(weights / weights.sum(1, keepdims=True) @ v[head])
        row = row + linear(np.concatenate(mixed, axis=1), "out")
        normed = (row - row.mean(1, keepdims=True)) / np.sqrt(row.var(1, keepdims=True) + 1e-5)
        hidden = linear(normed * p["norm"]["scale"] + p["norm"]["bias"], "up")
        result.append(row + linear(hidden / (1 + np.exp(-1.702 * hidden)) * last, "down"))
    return np.array(result)


def context_inputs():
    rng = np.random.default_rng(2)
    x, queries, context = (jnp.asarray(rng.normal(size=(2, n, 6)), jnp.float32) for n in (3, 3, 5))
    return x, queries, context, np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0]], bool)


@pytest.mark.parametrize(
    ("settings", "inner", "hidden"), [({}, 6, 24), ({"channels": 5, "mlp_ratio": 1.5, "dropout": 0.5}, 15, 9)]
)
def test_context_block_by_hand(settings, inner, hidden):
    module, (x, queries, context, mask) = ContextBlock(3, **settings), context_inputs()
    variables = trained(module, x, queries, context)
    shapes = {name: leaf.get("kernel", leaf.get("scale")).shape for name, leaf in variables["params"].items()}
    assert shapes == {
        **dict.fromkeys(("query", "key", "value"), (6, inner)),
        **{"out": (inner, 6), "norm": (6,), "up": (6, hidden), "down": (hidden, 6)},
    }
    for seen in (mask, np.ones_like(mask)):
        found = jax.jit(module.apply)(variables, x, queries, context, seen[:, None, None])
        wanted = block_by_hand(variables["params"], x, queries, context, seen, 3)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(wanted - x).max() > 0.1


def test_new_context_block_is_the_identity_unless_asked_otherwise():
    x, queries, context, _ = context_inputs()
    for module, inner, last in (
        (ContextBlock(3), None, 0.0),
        (ContextBlock(3, inner_init=nn.initializers.constant(2.0), last_init=nn.initializers.ones), 2.0, 1.0),
    ):
        variables = jax.jit(module.init)(jax.random.key(0), x, queries, context)
        params = variables["params"]
        if inner is not None:
            assert all((params[name]["kernel"] == inner).all() for name in ("query", "key", "value", "up"))
        assert all((params[name]["kernel"] == last).all() for name in ("out", "down"))
        assert (jax.jit(module.apply)(variables, x, queries, context) == x).all() == (last == 0)


def test_dropout_of_the_context_block_is_in_its_mlp_and_in_training():
    x, queries, context, mask = context_inputs()
    variables = trained(ContextBlock(3), x, queries, context)

    def run(rate, train, key=0):
        rngs = {"dropout": jax.random.key(key)}
        return ContextBlock(3, dropout=rate).apply(variables, x, queries, context, None, train, rngs=rngs)

    np.testing.assert_array_equal(run(0.5, False), run(0.0, True))
    assert np.abs(run(0.5, True) - run(0.5, False)).max() > 0.1
    assert np.abs(run(0.5, True, 1) - run(0.5, True, 2)).max() > 0.1
    wanted = block_by_hand(variables["params"], x, queries, context, np.ones_like(mask), 3, last=False)
    np.testing.assert_allclose(run(1.0, True), wanted, atol=1e-4)  # nothing is left of the MLP's hidden layer


def test_sizes_of_context_blocks():
    def size(module, width):
        x = jnp.zeros((1, 1, width))
        return count(jax.eval_shape(module.init, jax.random.key(0), x, x, x))

    # HAMoBE's gait decoder: that and its two norms, a query, and an MLP before it.
    assert size(ContextBlock(12, channels=64), 512) + 2 * 1024 + 512 + 525_312 == 4_204_288
    # CG-CLIP's TFE: that and three norms, 16 tokens, and a row for each of 8 frames.
    assert size(ContextBlock(12), 768) + 3 * 1536 + 16 * 768 + 8 * 768 == 7_109_376


# Cosine classifier --------------------------------------------------------------------------------------------------


def test_cosine_classifier_by_hand():
    features, vectors = jnp.array([[3.0, 4.0], [0.0, 0.0], [-1.0, 1.0]]), jnp.array([[2.0, 0, -3], [0, 0, 3]])
    found = CosineClassifier(3, scale=10.0).apply({"params": {"kernel": vectors}}, features)
    diagonal = np.sqrt(0.5)
    np.testing.assert_allclose(found, [[6, 0, 2 * diagonal], [0, 0, 0], [-10 * diagonal, 0, 10]], atol=1e-5)
    other = CosineClassifier(3).apply({"params": {"kernel": 7 * vectors}}, 3 * features)
    np.testing.assert_allclose(other, 1.6 * found, atol=1e-5)  # lengths do not matter, s does


def test_cosine_classifier_with_zero_rows_keeps_finite():
    rng = np.random.default_rng(3)
    features = jnp.asarray(rng.normal(size=(4, 8)), jnp.bfloat16).at[1].set(0)
    module = CosineClassifier(500)
    variables = jax.jit(module.init)(jax.random.key(0), features)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (8, 500)
    np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 0.01], atol=5e-4)
    assert jax.jit(module.apply)(variables, features).dtype == jnp.float32
    variables = {"params": {"kernel": kernel.at[:, 2].set(0)}}

    def loss(variables, features):
        return -jax.nn.log_softmax(module.apply(variables, features))[:, 0].sum()

    value, (by_kernel, by_features) = jax.jit(jax.value_and_grad(loss, (0, 1)))(variables, features)
    slope = by_kernel["params"]["kernel"]
    assert all(np.isfinite(np.asarray(y, np.float32)).all() for y in (value, slope, by_features))
    assert not slope[:, 2].any()
    assert not by_features[1].any()
    assert slope[:, 0].any()
    assert by_features[0].any()


# Batch norm ---------------------------------------------------------------------------------------------------------


def test_batch_norm_by_hand():
    module = MaskedBatchNorm()
    x = jnp.array([[1.0], [3.0], [5.0], [100.0]])
    mask = jnp.array([True, True, True, False])
    variables = module.init(jax.random.key(0), x, mask, use_running_average=False)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)
    y, update = module.apply(variables, x, mask, use_running_average=False, mutable=["batch_stats"])
    # Mean 3, biased variance 8/3, unbiased variance 4; momentum 0.1 from mean 0, variance 1.
    np.testing.assert_allclose(y[:, 0], [-2 / np.sqrt(8 / 3 + 1e-5), 0, 2 / np.sqrt(8 / 3 + 1e-5), 0], atol=1e-6)
    np.testing.assert_allclose(update["batch_stats"]["mean"], [0.3], rtol=1e-6)
    np.testing.assert_allclose(update["batch_stats"]["var"], [0.9 + 0.4], rtol=1e-6)
    evaluated = module.apply({**variables, **update}, x, use_running_average=True)
    np.testing.assert_allclose(evaluated[0, 0], (1 - 0.3) / np.sqrt(1.3 + 1e-5), rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("use_bias", [True, False])
def test_batch_norm_is_pytorch_s(use_bias):
    import torch

    rng = np.random.default_rng(0)
    reference = torch.nn.BatchNorm1d(6)
    scale, bias = rng.normal(size=6).astype(np.float32), rng.normal(size=6).astype(np.float32) * use_bias
    with torch.no_grad():
        reference.weight.copy_(torch.tensor(scale))
        reference.bias.copy_(torch.tensor(bias))
    module = MaskedBatchNorm(use_bias=use_bias)
    params = {"scale": jnp.asarray(scale)} | ({"bias": jnp.asarray(bias)} if use_bias else {})
    stats = module.init(jax.random.key(0), jnp.zeros((2, 6)), use_running_average=True)["batch_stats"]
    weight = rng.normal(size=(9, 6)).astype(np.float32)

    for _ in range(3):
        x = (rng.normal(size=(12, 6)) * 3 + 2).astype(np.float32)
        valid = np.arange(12) % 4 != 3
        x_torch = torch.tensor(x[valid], requires_grad=True)
        expected = reference(x_torch)
        (expected * torch.tensor(weight)).sum().backward()

        def total(p, x, valid=valid, stats=stats):
            y, update = module.apply(
                {"params": p, "batch_stats": stats}, x, valid, use_running_average=False, mutable=["batch_stats"]
            )
            return (y[valid] * weight).sum(), (y, update)

        dirty = np.where(valid[:, None], x, np.nan)
        gradient, (y, update) = jax.grad(total, argnums=(0, 1), has_aux=True)(params, jnp.asarray(dirty))
        np.testing.assert_allclose(y[valid], expected.detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(gradient[1][valid], x_torch.grad.numpy(), atol=1e-5)
        np.testing.assert_array_equal(gradient[1][~valid], 0)
        np.testing.assert_allclose(gradient[0]["scale"], reference.weight.grad.numpy(), atol=1e-4)
        reference.zero_grad()
        stats = update["batch_stats"]
        np.testing.assert_allclose(stats["mean"], reference.running_mean.numpy(), atol=1e-6)
        np.testing.assert_allclose(stats["var"], reference.running_var.numpy(), rtol=1e-5)

    reference.eval()
    evaluated = module.apply({"params": params, "batch_stats": stats}, x, use_running_average=True)
    np.testing.assert_allclose(evaluated, reference(torch.tensor(x)).detach().numpy(), atol=1e-5)


def test_batch_norm_without_or_with_one_valid_row_keeps_finite():
    module = MaskedBatchNorm()
    x = jnp.array([[4.0], [jnp.nan]])
    variables = module.init(jax.random.key(0), x, use_running_average=False)
    none = jnp.zeros(2, bool)
    y, update = module.apply(variables, x, none, use_running_average=False, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(update["batch_stats"]["mean"], variables["batch_stats"]["mean"])
    np.testing.assert_array_equal(update["batch_stats"]["var"], variables["batch_stats"]["var"])
    one = jnp.array([True, False])
    y, update = module.apply(variables, x, one, use_running_average=False, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_allclose(update["batch_stats"]["mean"], [0.4], rtol=1e-6)
    np.testing.assert_allclose(update["batch_stats"]["var"], [0.9], rtol=1e-6)


def test_batch_norm_takes_bf16_and_answers_fp32():
    module = MaskedBatchNorm(use_scale=False, use_bias=False)
    x = (100 + jnp.arange(8.0)[:, None]).astype(jnp.bfloat16)
    variables = module.init(jax.random.key(0), x, use_running_average=False)
    assert "params" not in variables
    y, _ = module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    assert y.dtype == jnp.float32
    np.testing.assert_allclose([y.mean(), y.std()], [0, 1], atol=1e-4)


def test_batch_norm_starts_as_asked():
    x, constant = jax.random.normal(jax.random.key(0), (5, 3)), nn.initializers.constant
    for module, wanted in (
        (MaskedBatchNorm(scale_init=nn.initializers.zeros), (0, 0)),
        (MaskedBatchNorm(scale_init=constant(2.0), bias_init=constant(3.0)), (3, 2)),
    ):
        variables = module.init(jax.random.key(0), x, use_running_average=False)
        y, _ = module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        np.testing.assert_allclose([y.mean(0), y.std(0)], np.repeat([wanted], 3, axis=0).T, atol=1e-3)


@pytest.mark.parametrize("use_bias", [True, False])
def test_calibrated_norm_has_the_statistics_of_all_valid_rows(use_bias):
    x = np.random.default_rng(0).normal(3.0, 2.0, (40, 5)).astype(np.float32)
    valid = np.arange(40) % 3 != 1
    scale, bias = np.linspace(0.5, 2.0, 5), np.linspace(-1.0, 1.0, 5) * use_bias
    params = {"scale": jnp.asarray(scale)} | ({"bias": jnp.asarray(bias)} if use_bias else {})
    found, statistics = jax.jit(calibrate_norm)(params, np.where(valid[:, None], x, np.nan), valid)
    seen = x[valid].astype(np.float64)
    mean, variance = seen.mean(0), seen.var(0, ddof=1)
    np.testing.assert_allclose(statistics["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], variance, rtol=1e-5)
    np.testing.assert_allclose(found[valid], (seen - mean) / np.sqrt(variance + 1e-5) * scale + bias, atol=1e-5)
    np.testing.assert_array_equal(found[~valid], 0)


def test_batch_norm_statistics_are_those_of_all_devices():
    devices = jax.devices()
    assert len(devices) == 8
    rows = 4 * len(devices)
    x = jax.random.normal(jax.random.key(0), (rows, 3)) + jnp.arange(rows)[:, None]
    mask = jnp.arange(rows) % 3 != 0
    module = MaskedBatchNorm()
    variables = module.init(jax.random.key(0), x, use_running_average=False)
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    @jax.jit
    def apply(x, mask):
        return module.apply(variables, x, mask, use_running_average=False, mutable=["batch_stats"])

    sharded = apply(jax.device_put(x, spread), jax.device_put(mask, spread))
    for a, b in zip(jax.tree.leaves(apply(x, mask)), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
