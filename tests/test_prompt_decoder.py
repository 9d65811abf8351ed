"""The decoder of banks and prompts: PyTorch, masks, what looks at what, and the sizes of the papers that use it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreid.layers.prompt_decoder import PromptAttention, PromptDecoder

ROWS, QUERIES, TOKENS, WIDTH = 3, 4, 6, 8


def inputs(own=False, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (ROWS, QUERIES, WIDTH)[not own :], (ROWS, TOKENS, WIDTH)
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]], bool)
    return *(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes), mask


def decoder(**settings):
    """A module of four heads, and parameters none of which has its initial value."""
    module = PromptDecoder(heads=4, **settings)
    variables = jax.jit(lambda key: module.init(key, *inputs()[:2], False))(jax.random.key(0))
    rng = np.random.default_rng(1)
    return module, jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape), jnp.float32) * 0.3, variables)


def decode(module, variables, queries, tokens, mask=None):
    return jax.jit(lambda *arrays: module.apply(*arrays[:3], False, *arrays[3:]))(variables, queries, tokens, mask)


def decode_with_torch(params, x, tokens, mask, heads=4):
    """The layers that `params` holds, by the functions of PyTorch."""
    import torch
    from torch.nn import functional

    p = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), params)

    def linear(y, layer):
        return functional.linear(y, layer["kernel"].T, layer.get("bias"))

    def norm(y, layer):
        return functional.layer_norm(y, (WIDTH,), layer["scale"], layer["bias"])

    def attention(y, context, layer, mask=None):
        q, k, v = (
            linear(z, layer[name]).unflatten(-1, (heads, -1)).transpose(1, 2)
            for name, z in (("query", y), ("key", context), ("value", context))
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, mask)
        return linear(mixed.transpose(1, 2).flatten(2), layer["out"])

    context = norm(tokens, p["tokens_in"])
    if "tokens" in p:
        context, x = norm(linear(context, p["tokens"]), p["tokens_out"]), linear(norm(x, p["bank_in"]), p["bank"])
    x = x.expand(len(tokens), -1, -1)
    for i in range(sum(name.startswith("cross_") for name in p)):
        if f"self_{i}" in p:
            n = norm(x, p[f"norm_self_{i}"])
            x = x + attention(n, n, p[f"self_{i}"])
        x = x + attention(norm(x, p[f"norm_cross_{i}"]), context, p[f"cross_{i}"], mask)
        n = linear(norm(x, p[f"norm_mlp_{i}"]), p[f"up_{i}"])
        x = x + linear(n * torch.sigmoid(1.702 * n), p[f"down_{i}"])
    if "change" in p:
        x = linear(norm(x, p["change_in"]), p["change"])
    return x * p.get("alpha", 1.0)


def test_attention_by_hand():
    """Two channels, one head, identity maps: q = (1, 0) looks at (1, 0) and (0, 1)."""
    eye = {"kernel": jnp.eye(2)}
    params = {"query": eye, "key": eye, "value": eye, "out": {**eye, "bias": jnp.zeros(2)}}
    module, q, k = PromptAttention(1), jnp.array([[[1.0, 0.0]]]), jnp.eye(2)[None]
    found = module.apply({"params": params}, q, k)
    np.testing.assert_allclose(found[0, 0], [0.669762, 0.330238], atol=1e-6)
    found = module.apply({"params": params}, q, k, jnp.array([True, False])[None, None, None])
    np.testing.assert_allclose(found[0, 0], [1.0, 0.0], atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"self_attention": True, "depth": 1}, {"simple": True}, {"alpha": 0.1}], ids=str
)
def test_results_and_gradients_are_pytorch_s(settings, own):
    import torch

    module, variables = decoder(**settings)
    queries, tokens, mask = inputs(own)
    weight = np.random.default_rng(2).normal(size=(ROWS, QUERIES, WIDTH)).astype(np.float32)

    @jax.jit
    def run(queries, tokens):
        y = module.apply(variables, queries, tokens, False, mask)
        return (y * weight).sum(), y

    slopes, found = jax.grad(run, (0, 1), has_aux=True)(queries, tokens)
    leaves = [torch.tensor(np.asarray(x), requires_grad=True) for x in (queries, tokens)]
    wanted = decode_with_torch(variables["params"], *leaves, torch.tensor(mask)[:, None, None])
    (wanted * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-4)
    for slope, leaf in zip(slopes, leaves, strict=True):
        np.testing.assert_allclose(slope, leaf.grad.numpy(), atol=1e-3)
        assert np.abs(slope).max() > 0.1


FORMS = pytest.mark.parametrize("settings", [{}, {"simple": True}], ids=str)


@FORMS
def test_masked_tokens_are_left_out(settings):
    module, variables = decoder(**settings)
    queries, tokens, mask = inputs()
    found = decode(module, variables, queries, tokens, mask)
    for row, seen in enumerate(mask):
        alone = decode(module, variables, queries, tokens[row : row + 1, seen])
        np.testing.assert_allclose(found[row], alone[0], atol=1e-5)
    order = np.array([0, 4, 2, 3, 5, 1])  # of row 1, which doesn't see 1, 4 and 5
    moved = tokens.at[1].set(tokens[1, order])
    np.testing.assert_allclose(decode(module, variables, queries, moved, mask), found, atol=1e-6)
    other = jnp.where(mask[..., None], tokens, 1 + inputs(seed=5)[1])
    np.testing.assert_allclose(decode(module, variables, queries, other, mask), found, atol=1e-6)
    assert np.abs(decode(module, variables, queries, tokens) - found)[1:].max() > 0.1


@FORMS
def test_a_row_that_sees_nothing_gets_zeros(settings):
    module, variables = decoder(**settings)
    queries, tokens, mask = inputs()
    mask[1] = False
    found = decode(module, variables, queries, tokens, mask)
    assert not found[1].any()
    assert found[0].any()

    def total(variables, queries, tokens):
        return module.apply(variables, queries, tokens, False, mask).sum()

    slopes = jax.jit(jax.grad(total, (0, 1, 2)))(variables, queries, tokens)
    assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))
    assert not slopes[2][1].any()


def test_shared_queries_are_every_row_s_own():
    queries, tokens, _ = inputs()
    own = jnp.broadcast_to(queries, (ROWS, *queries.shape))
    for settings in ({}, {"simple": True}):
        module, variables = decoder(**settings)
        found = decode(module, variables, queries, tokens)
        np.testing.assert_allclose(decode(module, variables, own, tokens), found, atol=1e-6)


@pytest.mark.parametrize("self_attention", [False, True])
def test_queries_look_at_each_other_only_by_self_attention(self_attention):
    module, variables = decoder(self_attention=self_attention)
    queries, tokens, _ = inputs(own=True)
    found = decode(module, variables, queries, tokens)
    np.testing.assert_allclose(decode(module, variables, queries[:, ::-1], tokens), found[:, ::-1], atol=1e-5)
    change = np.abs(decode(module, variables, queries.at[:, 0, ::2].add(1.0), tokens) - found)
    assert change[:, 0].max() > 1e-2
    assert (change[:, 1:].max() > 1e-3) == self_attention
    change = np.abs(decode(module, variables, queries, tokens.at[0].set(tokens[1])) - found)
    assert change[0].max() > 1e-2
    assert not change[1:].any()


def test_the_result_is_multiplied_with_alpha():
    module, variables = decoder(alpha=0.1)
    queries, tokens, _ = inputs()
    new = jax.jit(lambda key: module.init(key, queries, tokens, False))(jax.random.key(0))
    np.testing.assert_allclose(new["params"]["alpha"], np.full(WIDTH, 0.1))
    found = decode(module, variables, queries, tokens)
    params = dict(variables["params"])
    alpha = params.pop("alpha")
    plain = decode(PromptDecoder(heads=4), {"params": params}, queries, tokens)
    np.testing.assert_allclose(found, alpha * plain, atol=1e-6)


def test_unused_tensors_change_nothing():
    module, variables = decoder(unused=True)
    queries, tokens, _ = inputs()
    used = {name: leaf for name, leaf in variables["params"].items() if not name.startswith("unused_")}
    assert variables["params"].keys() - used.keys() == {"unused_alpha", "unused_norm"}
    found = decode(module, variables, queries, tokens)
    np.testing.assert_array_equal(decode(PromptDecoder(heads=4), {"params": used}, queries, tokens), found)
    slopes = jax.jit(jax.grad(lambda v: module.apply(v, queries, tokens, False).sum()))(variables)["params"]
    zero = {name for name, leaf in slopes.items() if not any(x.any() for x in jax.tree.leaves(leaf))}
    assert zero == {"unused_alpha", "unused_norm"}


def test_dropout_acts_in_training_alone():
    queries, tokens, _ = inputs()
    _, variables = decoder()

    def run(rate, train, key=0):
        rngs = {"dropout": jax.random.key(key)}
        return PromptDecoder(heads=4, dropout=rate).apply(variables, queries, tokens, train, rngs=rngs)

    np.testing.assert_array_equal(run(0.1, False), run(0.0, True))
    assert np.abs(run(0.1, True) - run(0.1, False)).max() > 1e-2
    assert np.abs(run(0.1, True, 1) - run(0.1, True, 2)).max() > 1e-2


@pytest.mark.parametrize(
    ("module", "tensors", "size", "layer"),
    [
        (PromptDecoder(), 40, 7_093_760, 3_150_848),
        (PromptDecoder(self_attention=True), 54, 9_193_984, 4_200_960),
        (PromptDecoder(simple=True), 28, 6_302_720, 3_150_848),
        (PromptDecoder(alpha=0.1), 41, 7_094_272, 3_150_848),
        (PromptDecoder(self_attention=True, unused=True), 57, 9_195_520, 4_200_960),
    ],
    ids=["TF-CLIP", "TF-CLIP, MARS", "TF-CLIP, LS-VID", "CG-CLIP", "CSIP-ReID"],
)
def test_sizes(module, tensors, size, layer):
    shapes = jax.ShapeDtypeStruct((5, 512), jnp.float32), jax.ShapeDtypeStruct((1, 146, 512), jnp.float32)
    params = jax.eval_shape(lambda key, *x: module.init(key, *x, False), jax.random.key(0), *shapes)["params"]
    sizes = {name: [leaf.size for leaf in jax.tree.leaves(tree)] for name, tree in params.items()}
    assert sum(map(len, sizes.values())) == tensors
    assert sum(map(sum, sizes.values())) == size
    for i in range(2):
        assert sum(sum(leaves) for name, leaves in sizes.items() if name.endswith(f"_{i}")) == layer
