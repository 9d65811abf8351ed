"""The vision transformer: published sizes, parts against the whole, flags, types, gradients."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refuses

from jaxreid.backbones.attention import attend
from jaxreid.backbones.clip import VISION_TOWERS, vision_config
from jaxreid.backbones.dinov2 import TOWERS as DINOV2_TOWERS
from jaxreid.backbones.dinov2 import dinov2_config
from jaxreid.backbones.imagenet import imagenet_config
from jaxreid.backbones.text import text_config
from jaxreid.backbones.transformer import Adapters, Hooks, LayerNorm, exact_gelu, quick_gelu
from jaxreid.backbones.vit import ViT, ViTConfig, sincos_positions
from jaxreid.layers.adapters import TemporalAdapter
from jaxreid.layers.stfl import channel_shift

TINY = ViTConfig(width=32, depth=2, heads=2, patch=8, image_size=(32, 16), projection=16)


def build(config=TINY, frames=2, **changes):
    """(model, variables, frames), all parameters random: the 0s and 1s of initialization would hide mistakes."""
    model = ViT(dataclasses.replace(config, **changes))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        fan_in = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 10
        return np.float32(rng.normal(path[-1].key == "scale", fan_in**-0.5, leaf.shape))

    params = jax.tree_util.tree_map_with_path(draw, abstract_params(model.config))
    x = rng.normal(size=(frames, *model.config.image_size, 3)).astype(np.float32)
    return model, {"params": params}, x


def run(model, variables, *args, method="__call__", **options):
    """`model.apply`, compiled."""
    return jax.jit(lambda variables, x: model.apply(variables, x, *args[1:], method=method, **options))(
        variables, args[0]
    )


def abstract_params(config):
    frame = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
    return jax.eval_shape(ViT(config).init, jax.random.key(0), frame)["params"]


@pytest.mark.parametrize(
    ("name", "positions", "count"),
    [
        ("ViT-B/32", 50, 87_849_216),
        ("ViT-B/16", 197, 86_192_640),
        ("ViT-L/14", 257, 303_966_208),
        ("ViT-L/14@336", 577, 304_293_888),
    ],
)
def test_published_parameter_counts(name, positions, count):
    params = abstract_params(vision_config(name))
    assert params["position_embedding"].shape[0] == positions
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "count"),
    [("S", 22_056_576), ("B", 86_580_480), ("L", 304_368_640), ("g", 1_136_480_768)],
)
def test_published_parameter_counts_of_dinov2(name, count):
    """Published with the mask token, one row that only their training uses."""
    for registers in (0, 4):
        config = dinov2_config(f"ViT-{name}/14" + ("_reg4" if registers else ""))
        params = abstract_params(config)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) + config.width == count + registers * config.width
        assert params["position_embedding"].shape == (1370, config.width)
    gated = {"gate", "up", "down"} if name == "g" else {"up", "down"}
    assert params["block_00"]["mlp"].keys() == gated
    assert len(DINOV2_TOWERS) == 8


def test_what_no_shape_shows():
    """Fields that change the numbers of a tower without changing a parameter."""
    clip = [(vision_config(name), "quick_gelu", 1e-5) for name in ("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336")]
    dinov2 = [(config, "silu" if config.gated_mlp else "gelu", 1e-6) for config in DINOV2_TOWERS.values()]
    for config, activation, eps in [*clip, *dinov2, (imagenet_config("ViT-B/16"), "gelu", 1e-6)]:
        assert (config.activation, config.eps, config.width // config.heads) == (activation, eps, 64)
    text = text_config("ViT-L/14")
    assert (text.activation, text.eps, text.width // text.heads) == ("quick_gelu", 1e-5, 64)


def test_other_towers_and_their_sizes():
    params = abstract_params(imagenet_config("ViT-B/16"))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 85_798_656  # 86,567,656 with the classifier
    assert dinov2_config("ViT-S/14", (448, 224)).grid == (32, 16)
    with refuses(ValueError, "(256, 128)", 14):
        dinov2_config("ViT-S/14", (256, 128))
    with refuses(ValueError, "'ViT-H/14'"):
        dinov2_config("ViT-H/14")


@pytest.mark.parametrize(
    ("name", "size", "stride", "grid", "tokens"),
    [
        ("ViT-B/16", (256, 128), None, (16, 8), 129),
        ("ViT-B/16", (256, 128), 12, (21, 10), 211),
        ("ViT-B/16", (288, 144), 16, (18, 9), 163),
        ("ViT-L/14", (252, 126), None, (18, 9), 163),
        ("ViT-L/14", (256, 128), 14, (18, 9), 163),
        ("ViT-L/14", None, None, (16, 16), 257),
        ("ViT-L/14@336", None, None, (24, 24), 577),
        ("ViT-B/32", (256, 128), None, (8, 4), 33),
    ],
)
def test_grids_of_rectangular_inputs(name, size, stride, grid, tokens):
    config = vision_config(name, size, stride)
    assert (config.grid, config.tokens) == (grid, tokens)
    assert abstract_params(config)["position_embedding"].shape == (tokens, config.width)


def test_a_named_tower_takes_other_fields_and_refuses_other_names():
    config = vision_config("ViT-B/16", activation="gelu", dtype=jnp.bfloat16)
    assert (config.activation, config.dtype) == ("gelu", jnp.bfloat16)
    assert VISION_TOWERS["ViT-B/16"].activation == "quick_gelu"
    with refuses(ValueError, "ViT-B/8", "ViT-L/14@336"):
        vision_config("ViT-B/8")


def test_outputs_and_their_parts():
    model, variables, x = build(register_tokens=3)
    outputs = run(model, variables, x)
    assert {k: v.shape for k, v in outputs.items()} == {
        "tokens": (2, 1 + 3 + 8, 32),
        "class_token": (2, 32),
        "patch_tokens": (2, 8, 32),
        "projected": (2, 16),
    }
    np.testing.assert_array_equal(outputs["class_token"], outputs["tokens"][:, 0])
    np.testing.assert_array_equal(outputs["patch_tokens"], outputs["tokens"][:, 4:])
    kernel = np.asarray(variables["params"]["projection"]["kernel"])
    np.testing.assert_allclose(outputs["projected"], np.asarray(outputs["class_token"]) @ kernel, atol=1e-5)
    every = run(model, variables, outputs["tokens"], method="project")
    np.testing.assert_allclose(every[:, 0], outputs["projected"], atol=1e-6)
    model, variables, x = build(projection=None)
    assert "projected" not in run(model, variables, x)
    with refuses(ValueError, "projection"):
        run(model, variables, x, method="project")


@pytest.mark.parametrize("split", [0, 1, 2])
def test_running_blocks_in_two_parts_equals_one_pass(split):
    model, variables, x = build()
    stream = run(model, variables, x, method="embed")
    stream = run(model, variables, stream, 0, split, method="run_blocks")
    stream = run(model, variables, stream, split, 2, method="run_blocks")
    parts = run(model, variables, stream, method="finish")
    np.testing.assert_allclose(parts["tokens"], run(model, variables, x)["tokens"], atol=1e-5)


def test_the_class_token_alone_is_that_of_the_whole_pass():
    """What is left out is never read: values equal to the last bits, and gradients up to the order of sums."""
    model, variables, x = build(register_tokens=2, layer_scale=0.3, remat=True)

    def loss(variables, **options):
        outputs = model.apply(variables, x, **options)
        return (outputs["class_token"] ** 2).sum() + (outputs["projected"] * 0.3).sum()

    whole, alone = (jax.jit(jax.value_and_grad(lambda v, o=o: loss(v, **o))) for o in ({}, {"class_token_only": True}))
    (value, gradient), (value_alone, gradient_alone) = whole(variables), alone(variables)
    np.testing.assert_allclose(value_alone, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, gradient_alone)
    assert set(run(model, variables, x, class_token_only=True)) == {"class_token", "projected"}


def test_taps_give_the_stream_and_what_attention_compares():
    model, variables, x = build(TINY, depth=3)
    out = run(model, variables, x, taps=(-1, 0, 1))
    last, first, second = out["taps"]
    stream = run(model, variables, x, method="embed")
    for number, tap in enumerate((first, second, last)):
        np.testing.assert_allclose(
            tap.tokens, run(model, variables, stream, 0, number + 1, method="run_blocks"), atol=1e-5
        )
    w = variables["params"]["block_01"]
    normed = np.asarray(LayerNorm(TINY.eps).apply({"params": w["norm_1"]}, first.tokens))
    for name, found in (("query", second.queries), ("key", second.keys)):
        expected = normed @ w["attention"][name]["kernel"] + w["attention"][name]["bias"]
        np.testing.assert_allclose(found, expected.reshape(2, 9, 2, 16), atol=1e-5)
    alone = run(model, variables, x, taps=(-1, 0), class_token_only=True)
    assert alone["taps"][0].tokens.shape == (2, 1, 32)
    np.testing.assert_allclose(alone["taps"][1].tokens, first.tokens, atol=1e-6)
    with refuses(ValueError, "taps", "(3,)"):
        run(model, variables, x, taps=(3,))


def test_an_attention_hook_stands_between_the_heads_and_the_softmax():
    """LSMRL's grouped heads: two of them read the frame before. A clip of equal frames notices nothing."""
    model, variables, x = build(TINY, frames=6, heads=4)

    def grouped(q, k, v):
        def shift(y):  # clips of three frames; the first keeps its own
            y = y.reshape(2, 3, *y.shape[1:])
            before = jnp.concatenate([y[:, :1], y[:, :-1]], axis=1)
            return jnp.concatenate([before[..., :2, :], y[..., 2:, :]], axis=-2).reshape(6, *y.shape[2:])

        return attend(q, shift(k), shift(v))

    hooks = Hooks(attention={1: grouped})
    plain, hooked = run(model, variables, x), run(model, variables, x, hooks=hooks)
    changed = np.abs(plain["tokens"] - hooked["tokens"]).max((1, 2)) > 1e-3
    np.testing.assert_array_equal(changed, [False, True, True] * 2)
    still = np.repeat(x[::3], 3, axis=0)
    np.testing.assert_allclose(
        run(model, variables, still, hooks=hooks)["tokens"], run(model, variables, still)["tokens"], atol=1e-5
    )
    alone = run(model, variables, x, hooks=hooks, class_token_only=True)
    np.testing.assert_allclose(alone["class_token"], hooked["class_token"], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "options", "loops"),
    [
        ({"register_tokens": 2, "layer_scale": 0.5}, {"taps": (2,)}, 2),
        ({"depth": 6, "drop_path": 0.5, "remat": True}, {"train": True, "class_token_only": True, "adapted": True}, 2),
    ],
)
def test_scan_and_remat_change_no_number(changes, options, loops):
    """Values and gradients, on the same parameter tree; what differs between blocks stays outside of the loops."""
    config = dataclasses.replace(TINY, width=16, **{"depth": 5} | changes)
    x = np.random.default_rng(1).normal(size=(4, *config.image_size, 3)).astype(np.float32)
    options, adapters, hooks = dict(options), Adapters(), Hooks()
    if options.pop("adapted", False):  # blocks 0 and 1 with prompts, 2 on other tokens, 3 to 5 with adapters
        adapters = Adapters(beside_attention=partial(TemporalAdapter, 4, 2, False), blocks=(3, 4, 5))
        mask, prompts = jnp.array([[True, True], [True, False]]), jnp.arange(64.0).reshape(2, 1, 2, 16) % 7
        hooks = Hooks(mask, prompts, normed={2: channel_shift(2)})
    shapes = jax.eval_shape(ViT(config, adapters).init, jax.random.key(0), x)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.3, leaf.shape)), shapes)

    def loss(params, model):
        out = model.apply({"params": params}, x, hooks=hooks, rngs={"drop_path": jax.random.key(4)}, **options)
        tapped = sum((tap.tokens**2).sum() for tap in out.get("taps", ()))
        return (out["projected"] * jnp.arange(16)).sum() + tapped

    def run(model):
        tree = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
        assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, shapes)
        forward = str(jax.make_jaxpr(loss, static_argnums=1)(params, model))
        assert forward.count(" scan[") == (loops if model.config.scan else 0)
        assert ("remat" in forward) == model.config.remat
        return jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, model)

    value, gradient = run(ViT(dataclasses.replace(config, remat=False), adapters))
    value_too, gradient_too = run(ViT(dataclasses.replace(config, scan=True), adapters))
    np.testing.assert_allclose(value_too, value, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    for a, b in zip(jax.tree.leaves(gradient_too), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * largest, rtol=1e-4)


def test_scan_compiles_one_block():
    """Twelve blocks, one of them by itself for the class token alone: the products of two."""
    model, variables, x = build(TINY, depth=12)
    scanned = ViT(dataclasses.replace(model.config, scan=True))

    def products(model):
        program = jax.make_jaxpr(partial(model.apply, class_token_only=True))(variables, x)
        return str(program).count("dot_general[")

    assert products(model) > 5 * products(scanned)


def test_run_blocks_names_a_wrong_range():
    model, variables, x = build()
    with refuses(ValueError, "[2, 3]", 2):
        run(model, variables, x, hooks=Hooks(attention={3: attend}, prompts=jnp.zeros((3, 1, 1, 32))))
    with refuses(ValueError, "1:4", 2):
        run(model, variables, run(model, variables, x, method="embed"), 1, 4, method="run_blocks")


def reference_tower(params, frames, config):
    """The tower once more in float64 NumPy, frame by frame and head by head."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, w):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.eps) * w["scale"] + w["bias"]

    def linear(x, w):
        return x @ w["kernel"] + w.get("bias", 0.0)

    def attention(x, w):
        q, k, v = (linear(x, w[name]) for name in ("query", "key", "value"))
        d, mixed = config.width // config.heads, []
        for h in range(config.heads):
            head = slice(h * d, (h + 1) * d)
            scores = np.exp(q[:, head] @ k[:, head].T / np.sqrt(d))
            mixed.append(scores / scores.sum(-1, keepdims=True) @ v[:, head])
        return linear(np.concatenate(mixed, -1), w["out"])

    tokens = []
    for frame in np.asarray(frames, np.float64):
        (rows, columns), s, size = config.grid, config.patch_stride, config.patch
        corners = [(i * s, j * s) for i in range(rows) for j in range(columns)]
        patches = np.stack([frame[y : y + size, x : x + size].ravel() for y, x in corners])
        patches = patches @ p["patch_embedding"]["kernel"].reshape(-1, config.width)
        patches = patches + p["patch_embedding"].get("bias", 0.0)
        x = np.concatenate([p["class_token"][None], patches]) + p["position_embedding"]
        if config.register_tokens:
            x = np.concatenate([x[:1], p["register_tokens"], x[1:]])
        if config.pre_norm_embeddings:
            x = norm(x, p["norm_pre"])
        for i in range(config.depth):
            w = p[f"block_{i:02d}"]
            x = x + w.get("layer_scale_1", 1.0) * attention(norm(x, w["norm_1"]), w["attention"])
            hidden = linear(norm(x, w["norm_2"]), w["mlp"]["up"])
            hidden = hidden / (1.0 + np.exp(-1.702 * hidden))
            x = x + w.get("layer_scale_2", 1.0) * linear(hidden, w["mlp"]["down"])
        tokens.append(norm(x, p["norm_post"]))
    return np.stack(tokens)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stride": 5},
        {"image_size": (35, 18)},  # pixels beyond the last whole patch
        {"heads": 4, "eps": 1e-2, "mlp_ratio": 2.0, "remat": True},
        {"conv_bias": True, "pre_norm_embeddings": False, "layer_scale": 0.5, "register_tokens": 4},
        {"conv_bias": True, "stride": 4, "layer_scale": 1e-1, "position_init": "normal"},
    ],
    ids=str,
)
def test_every_flag_against_a_plain_reference(changes):
    model, variables, x = build(dataclasses.replace(TINY, **changes))
    expected = reference_tower(variables["params"], x, model.config)
    np.testing.assert_allclose(run(model, variables, x)["tokens"], expected, atol=2e-5)


def test_biases_on_class_token_and_on_all_tokens():
    model, variables, x = build(pre_norm_embeddings=False, register_tokens=2)
    plain = run(model, variables, x, method="embed")
    bias = jax.random.normal(jax.random.key(5), (2, 32))
    on_class = run(model, variables, x, class_bias=bias, method="embed") - plain
    np.testing.assert_allclose(on_class[:, 0], bias, atol=1e-6)
    np.testing.assert_array_equal(on_class[:, 1:], 0)
    on_all = run(model, variables, x, token_bias=bias, method="embed") - plain
    np.testing.assert_array_equal(on_all[:, 1:3], 0)  # registers stand outside of the positions
    for i in (0, 3, 10):
        np.testing.assert_allclose(on_all[:, i], bias, atol=1e-6)


def test_layer_scale_zero_makes_blocks_the_identity():
    model, variables, x = build(layer_scale=0.0)
    params = variables["params"]
    for name in ("block_00", "block_01"):
        for scale in ("layer_scale_1", "layer_scale_2"):
            params[name][scale] = jnp.zeros(32)
    stream = run(model, variables, x, method="embed")
    np.testing.assert_array_equal(run(model, variables, stream, 0, 2, method="run_blocks"), stream)


def test_the_two_activations_are_two_functions():
    x = jnp.linspace(-4.0, 4.0, 4001)
    gap = float(jnp.max(jnp.abs(quick_gelu(x) - exact_gelu(x))))
    assert 0.015 < gap < 0.025  # as measured before: up to 0.02
    tanh_gap = float(jnp.max(jnp.abs(exact_gelu(x) - jax.nn.gelu(x, approximate=True))))
    assert tanh_gap == pytest.approx(4.7e-4, abs=0.2e-4)  # so `nn.gelu`'s default will not do
    quick, variables, frames = build()
    exact = ViT(dataclasses.replace(TINY, activation="gelu"))
    difference = run(quick, variables, frames)["projected"] - run(exact, variables, frames)["projected"]
    assert float(jnp.abs(difference).max()) > 1e-3


def test_gradients_are_finite_and_reach_every_parameter():
    model, variables, x = build(layer_scale=0.5, register_tokens=2, conv_bias=True)
    target = jax.random.normal(jax.random.key(3), (2, 16))

    def loss(params, model):
        return jnp.sum((model.apply({"params": params}, x)["projected"] - target) ** 2)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        assert np.abs(leaf).max() > 1e-6 or "key']['bias" in name, name  # softmax ignores the bias of the keys
    remat = ViT(dataclasses.replace(model.config, remat=True))
    for a, b in zip(
        jax.tree.leaves(gradient),
        jax.tree.leaves(jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], remat)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_bfloat16_compute_keeps_float32_parameters_and_outputs():
    model, variables, x = build()
    half = ViT(dataclasses.replace(TINY, dtype=jnp.bfloat16))
    params = jax.eval_shape(half.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert run(half, variables, x, method="embed").dtype == jnp.bfloat16
    exact, close = run(model, variables, x), run(half, variables, x)
    assert {v.dtype for v in close.values()} == {jnp.dtype("float32")}
    # bfloat16 keeps 8 bits (relative 2⁻⁹ per rounding); the normed tokens are of order 1, two blocks deep.
    error = np.abs(np.asarray(close["tokens"] - exact["tokens"]))
    assert error.max() < 0.1 and np.sqrt((error**2).mean()) < 0.02
    cosine = jnp.sum(close["class_token"] * exact["class_token"], -1) / (
        jnp.linalg.norm(close["class_token"], axis=-1) * jnp.linalg.norm(exact["class_token"], axis=-1)
    )
    assert float(cosine.min()) > 0.999
    jaxpr = str(jax.make_jaxpr(half.apply)(variables, x))
    assert "f32[1,2,2,9,9] = exp" in jaxpr and "bf16[1,2,2,9,9] = exp" not in jaxpr  # softmax in float32


def test_drop_path_is_off_in_evaluation_and_drops_whole_frames_in_training():
    model, variables, x = build(frames=64, drop_path=0.5)
    plain = ViT(TINY)
    expected = run(plain, variables, x)["tokens"]
    np.testing.assert_array_equal(run(model, variables, x)["tokens"], expected)
    stream = run(plain, variables, x, method="embed")
    keys = {"drop_path": jax.random.key(7)}
    # the last block drops attention and MLP with probability ½ each: a quarter of the frames passes unchanged
    out = run(model, variables, stream, 1, 2, True, method="run_blocks", rngs=keys)
    unchanged = np.all(np.asarray(out == stream), axis=(1, 2))
    assert 5 <= unchanged.sum() <= 29  # binomial(64, ¼): outside with probability < 2e-4
    first = run(model, variables, stream, 0, 1, True, method="run_blocks", rngs=keys)
    np.testing.assert_array_equal(first, run(plain, variables, stream, 0, 1, method="run_blocks"))


def test_start_of_training_is_well_scaled():
    config = ViTConfig(width=128, depth=4, heads=2, patch=8, image_size=(64, 32), projection=64)
    model = ViT(config)
    x = jax.random.normal(jax.random.key(1), (8, 64, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 830_720
    positions = np.asarray(variables["params"]["position_embedding"])
    np.testing.assert_array_equal(positions[0], 0)
    assert np.sqrt((positions[1:] ** 2).mean()) == pytest.approx(0.5, abs=1e-3)
    blocks = variables["params"]["block_00"]
    assert np.std(blocks["attention"]["query"]["kernel"]) == pytest.approx(128**-0.5, rel=0.03)
    assert np.std(blocks["attention"]["out"]["kernel"]) == pytest.approx((128 * 8) ** -0.5, rel=0.03)
    assert np.std(blocks["mlp"]["down"]["kernel"]) == pytest.approx((512 * 8) ** -0.5, rel=0.03)
    stream = run(model, variables, x, method="embed")
    out = run(model, variables, stream, 0, 4, method="run_blocks")
    assert float(stream.std()) == pytest.approx(1.0, abs=0.01)
    assert 1.0 < float(out.std()) < 1.5


def test_sincos_positions_tell_all_patches_apart():
    table = sincos_positions((16, 8), 64)
    distance = np.linalg.norm(table[:, None] - table[None], axis=-1) + 1e9 * np.eye(128)
    neighbours = distance.argmin(1)
    rows, columns = np.divmod(np.arange(128), 8)
    steps = np.abs(rows - rows[neighbours]) + np.abs(columns - columns[neighbours])
    assert (steps == 1).all()  # the nearest in the table is a neighbour in the picture
    np.testing.assert_allclose((table**2).mean(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"heads": 5}, ("width 32", "heads 5")),
        ({"activation": "relu"}, ("'relu'", "quick_gelu")),
        ({"position_init": "zeros"}, ("'zeros'",)),
        ({"image_size": (32, 4)}, ("(32, 4)", "patch")),
        ({"width": 30}, (30, 4)),
    ],
)
def test_impossible_configurations_are_named(changes, named):
    with refuses(ValueError, *named):
        dataclasses.replace(TINY, **changes)


def test_frames_of_another_size_are_named():
    model, variables, _ = build()
    with refuses(ValueError, "(2, 16, 32, 3)", "[N, 32, 16, 3]"):
        run(model, variables, jnp.zeros((2, 16, 32, 3)))
