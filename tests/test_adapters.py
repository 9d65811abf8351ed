"""Adapters and prompts inside the blocks: golden numbers, where they start, what they see."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from jaxreid.backbones.transformer import Adapters, Block, Hooks, TransformerConfig
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.layers.adapters import TemporalAdapter, TokenAdapter
from jaxreid.layers.prompts import DeepPrompts

VSLA = Adapters(
    beside_attention=partial(TemporalAdapter, 4, heads=1),
    beside_mlp=partial(TokenAdapter, 4),
)
TINY = ViTConfig(width=16, depth=3, heads=2, patch=8, image_size=(16, 8), projection=8)


def fill(shape, seed, amplitude=0.2):
    return np.float32(amplitude * np.sin(0.7 * np.arange(np.prod(shape)) + seed)).reshape(shape)


@pytest.mark.parametrize(
    ("prompted", "adapt", "first", "total"),
    [
        (True, True, [0.115502, -0.315878, -0.598695, -0.599937, -0.319019, 0.111939, 0.490250, 0.637989], -0.8804066),
        (False, True, [0.182184, -0.256183, -0.574064, -0.621953, -0.377328, 0.044760, 0.445797, 0.637168], -0.4838819),
        (False, False, [0.175912, -0.264913, -0.581145], -0.4809288),
    ],
)
def test_the_block_of_vsla_clip(prompted, adapt, first, total):
    """Deterministic weights; the numbers were computed apart from the library."""
    block = Block(TransformerConfig(width=8, depth=1, heads=2), VSLA)
    kernels = {
        **{f"attention/{name}": (8, 8, 1 + i) for i, name in enumerate(("query", "key", "value", "out"))},
        "beside_attention/down": (8, 4, 5),
        **{f"beside_attention/{name}": (4, 4, 6 + i) for i, name in enumerate(("query", "key", "value", "out"))},
        **{"beside_attention/up": (4, 8, 10), "mlp/up": (8, 32, 11), "mlp/down": (32, 8, 12)},
        **{"beside_mlp/down": (8, 4, 13), "beside_mlp/up": (4, 8, 14)},
    }
    params = {f"{path}/kernel": fill((i, o), seed) for path, (i, o, seed) in kernels.items()}
    params |= {f"{path}/bias": np.zeros(o, np.float32) for path, (_, o, _) in kernels.items()}
    for norm in ("norm_1", "norm_2"):
        params |= {f"{norm}/scale": np.ones(8, np.float32), f"{norm}/bias": np.zeros(8, np.float32)}
    params = unflatten_dict(params, sep="/")
    x, mask = fill((2, 3, 8), 16, 1.0), jnp.ones((1, 2), bool)
    prompts = fill((1, 1, 8), 15) if prompted else None
    y = jax.jit(partial(block.apply, adapt=adapt))({"params": params}, x, frame_mask=mask, prompts=prompts).tokens
    np.testing.assert_allclose(y[0, 0, : len(first)], first, atol=2e-6)
    assert float(y.sum()) == pytest.approx(total, abs=2e-5)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)


def test_adapters_start_as_nothing_or_as_pytorch_s_layers():
    x, mask = jnp.ones((1, 2, 3, 16)), jnp.ones((1, 2), bool)
    for make in (TokenAdapter, partial(TemporalAdapter, heads=2)):
        silent, live = (make(4, zero_init=zero) for zero in (True, False))
        out, variables = jax.jit(silent.init_with_output)(jax.random.key(0), x, mask)
        np.testing.assert_array_equal(out, 0)
        assert np.abs(variables["params"]["down"]["kernel"]).max() > 0
        kernels = jax.jit(live.init)(jax.random.key(0), x, mask)["params"]
        assert 0.8 < np.abs(kernels["up"]["kernel"]).max() * 4**0.5 <= 1.0  # uniform within ±1/√inputs
        assert 0.8 < np.abs(kernels["down"]["kernel"]).max() * 16**0.5 <= 1.0


def test_published_parameter_counts():
    """12 × (394,240 + 657,408) of VSLA-CLIP on ViT-B/16; platform prompts of two cameras, 13,824."""
    x, mask = jnp.zeros((1, 2, 3, 768)), jnp.ones((1, 2), bool)

    def count(module, *args):
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), *args)))

    assert count(TokenAdapter(256), x, mask) == 394_240
    assert count(TemporalAdapter(256), x, mask) == 657_408
    assert count(DeepPrompts(9, 2, 1, 768), jnp.zeros(3, int)) == 13_824


def tower(zero_init, adapters=None):
    """(model, variables, frames of two clips of three)."""
    adapters = adapters or Adapters(
        beside_attention=partial(TemporalAdapter, 4, 1, zero_init), beside_mlp=partial(TokenAdapter, 4, zero_init)
    )
    model, rng = ViT(TINY, adapters), np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, 16, 8, 3)), jnp.float32)

    def draw(path, leaf):
        name = "/".join(key.key for key in path)
        zero = zero_init and "beside" in name and "/up/" in name
        scale = 0.0 if zero or leaf.ndim == 1 else leaf.shape[0] ** -0.5
        return jnp.asarray(name.endswith("scale") + scale * rng.normal(size=leaf.shape), jnp.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return model, jax.tree_util.tree_map_with_path(draw, shapes), x


def apply(model, variables, x, *args, hooks=Hooks(), **options):  # noqa: B008
    """`model.apply`, compiled. All but the arrays of the hooks is static."""

    def run(variables, x, mask, prompts):
        given = hooks._replace(frame_mask=mask, prompts=prompts)
        return model.apply(variables, x, *args, hooks=given, **options)

    return jax.jit(run)(variables, x, hooks.frame_mask, hooks.prompts)


def test_an_adapted_tower_starts_as_the_tower_and_can_be_passed_by():
    hooks = Hooks(jnp.ones((2, 3), bool))
    model, variables, x = tower(zero_init=True)
    bare = {k: v for k, v in variables["params"].items() if "block" not in k}
    for i in range(TINY.depth):
        block = variables["params"][f"block_{i:02d}"]
        assert block["beside_attention"].keys() == {"down", "query", "key", "value", "out", "up"}
        bare[f"block_{i:02d}"] = {k: v for k, v in block.items() if not k.startswith("beside")}
    plain = apply(ViT(TINY), {"params": bare}, x)["tokens"]
    np.testing.assert_allclose(apply(model, variables, x, hooks=hooks)["tokens"], plain, atol=1e-5)
    model, variables, x = tower(zero_init=False)
    for name in bare:
        if "block" in name:
            variables["params"][name] = variables["params"][name] | bare[name]
    assert np.abs(apply(model, variables, x, hooks=hooks)["tokens"] - plain).max() > 1e-2
    passed = apply(model, variables, x, hooks=hooks._replace(adapt=False))["tokens"]
    np.testing.assert_allclose(passed, plain, atol=1e-5)


def test_temporal_adapters_mix_the_frames_of_a_clip_that_count():
    model, variables, x = tower(zero_init=False)
    mask = jnp.array([[True, True, False], [True, True, True]])
    out = apply(model, variables, x, hooks=Hooks(mask))["class_token"]
    changed = apply(model, variables, x.at[1].add(1.0), hooks=Hooks(mask))["class_token"]
    np.testing.assert_array_equal(np.abs(changed - out).max(-1) > 1e-4, [True, True, True, False, False, False])
    padding = apply(model, variables, x.at[2].set(1e3), hooks=Hooks(mask))["class_token"]
    np.testing.assert_allclose(np.delete(padding, 2, 0), np.delete(out, 2, 0), atol=1e-5)
    order = np.array([1, 0, 2, 5, 3, 4])  # of frames within clips: it does not matter
    moved = apply(model, variables, x[order], hooks=Hooks(mask))["class_token"]
    np.testing.assert_allclose(moved, out[order], atol=1e-5)
    alone = apply(model, variables, x[:1])["class_token"]  # without a mask, clips of one frame
    assert np.abs(alone - out[:1]).max() > 1e-4
    nothing = apply(model, variables, x, hooks=Hooks(jnp.zeros((2, 3), bool)))["class_token"]
    assert np.isfinite(nothing).all()


def test_the_class_token_alone_is_that_of_the_whole_pass():
    model, variables, x = tower(zero_init=False)
    hooks = Hooks(jnp.ones((2, 3), bool), jnp.ones((3, 6, 2, 16)))
    whole = apply(model, variables, x, hooks=hooks)
    alone = apply(model, variables, x, hooks=hooks, class_token_only=True)
    np.testing.assert_allclose(alone["class_token"], whole["class_token"], atol=1e-5)


def test_adapters_in_series_and_in_some_blocks():
    adapters = Adapters(
        after_attention=partial(TokenAdapter, 4, False), after_mlp=partial(TokenAdapter, 4, False), blocks=(2,)
    )
    model, variables, x = tower(zero_init=False, adapters=adapters)
    names = {k: {n for n in v if n.startswith("after")} for k, v in variables["params"].items() if "block" in k}
    assert names == {"block_00": set(), "block_01": set(), "block_02": {"after_attention", "after_mlp"}}
    silent = jax.tree.map(jnp.zeros_like, variables["params"]["block_02"])
    variables["params"]["block_02"] |= {k: silent[k] for k in ("after_attention", "after_mlp")}
    out = apply(model, variables, x, taps=(1, 2))["taps"]
    np.testing.assert_array_equal(out[0].tokens, out[1].tokens)  # their output replaces the branch's: nothing


def test_prompts_as_keys_and_values_are_prompts_as_tokens():
    """Prompts that stand in the row, and whose outputs are dropped, change the others just so (without a norm)."""
    model, variables, x = tower(zero_init=True)
    prompts = jax.random.normal(jax.random.key(3), (1, 6, 2, 16))
    embedded = jax.jit(partial(model.apply, method="embed"))(variables, x)
    out = apply(model, variables, embedded, 0, 1, hooks=Hooks(prompts=prompts), method="run_blocks")
    # The norm of a row with its own mean and deviation put back is that row.
    w = variables["params"]["block_00"]["norm_1"]
    normed = (prompts[0] - prompts[0].mean(-1, keepdims=True)) / prompts[0].std(-1, keepdims=True)
    np.testing.assert_array_equal(w["scale"], 1)
    as_rows = apply(model, variables, jnp.concatenate([embedded, normed], axis=1), 0, 1, method="run_blocks")
    by_hook = apply(model, variables, embedded, 0, 1, hooks=Hooks(prompts=normed[None]), method="run_blocks")
    np.testing.assert_allclose(as_rows[:, :3], by_hook, atol=1e-4)
    assert np.abs(out - by_hook).max() > 1e-3


def test_prompts_reach_their_blocks_alone_and_follow_the_camera():
    model, variables, x = tower(zero_init=True)
    module = DeepPrompts(blocks=2, conditions=3, length=2, width=16)
    camera = jnp.array([0, 0, 1, 1, 2, -1])
    table = module.init(jax.random.key(0), camera)
    prompts = 50 * module.apply(table, camera)
    assert prompts.shape == (2, 6, 2, 16)
    np.testing.assert_allclose(prompts[:, 5], prompts[:, jnp.array([0, 2, 4])].mean(1), atol=1e-5)
    taps = apply(model, variables, x, hooks=Hooks(prompts=prompts), taps=(0, 1, 2))["taps"]
    assert [tap.keys.shape[1] for tap in taps] == [5, 5, 3]
    same = jnp.repeat(x[:1], 6, axis=0)
    out = apply(model, variables, same, hooks=Hooks(prompts=prompts))["class_token"]
    distance = np.abs(out - out[:1]).max(-1)
    np.testing.assert_array_equal(distance > 1e-4, [False, False, True, True, True, True])
