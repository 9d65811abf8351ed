"""The one attention function: against sums by hand, and which of jax's forms computes it where."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import attention as benchmark
from jaxreid.backbones import attention
from jaxreid.backbones.attention import attend, causal_attend


def by_hand(q, k, v, mask):
    """In float64, query by query."""
    out = np.zeros(q.shape)
    mask = np.broadcast_to(mask, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    for n, h, i in np.ndindex(*mask.shape[:3]):
        seen = mask[n, h, i] if mask[n, h, i].any() else np.ones(k.shape[1], bool)
        scores = k[n, seen, h] @ q[n, i, h] / np.sqrt(q.shape[-1]) if mask[n, h, i].any() else np.zeros(k.shape[1])
        weights = np.exp(scores - scores.max())
        out[n, i, h] = weights / weights.sum() @ v[n, seen, h]
    return out


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(3, length, 2, 8)) for length in (5, 7, 7)]


@pytest.mark.parametrize("shape", [*itertools.product((3, 1), (2, 1), (5, 1), (7,))])
def test_masks(arrays, shape):
    mask = np.random.default_rng(1).random(shape) < 0.5
    mask.reshape(-1, 7)[0] = False  # a query that sees none: the mean of all
    found = attend(*(jnp.asarray(x, jnp.float32) for x in arrays), jnp.asarray(mask))
    np.testing.assert_allclose(found, by_hand(*arrays, mask), atol=1e-6)


def test_causal_and_without_a_mask(arrays):
    single = [jnp.asarray(x, jnp.float32) for x in arrays]
    np.testing.assert_allclose(attend(*single), by_hand(*arrays, np.ones((1, 1, 1, 7), bool)), atol=1e-6)
    # Fewer queries than keys are the first of them.
    np.testing.assert_allclose(causal_attend(*single), by_hand(*arrays, np.tri(5, 7, dtype=bool)), atol=1e-6)


def test_softmax_is_float32_whatever_the_type():
    """Scores 64 and 64.125 are one number in bfloat16."""
    q = jnp.array([16.0, 1.0, 0, 0], jnp.bfloat16).reshape(1, 1, 1, 4)
    k = jnp.array([[8.0, 0, 0, 0], [8.0, 0.25, 0, 0]], jnp.bfloat16).reshape(1, 2, 1, 4)
    v = jnp.eye(2, 4, dtype=jnp.bfloat16).reshape(1, 2, 1, 4)
    weights = attend(q, k, v)
    assert weights.dtype == jnp.bfloat16
    np.testing.assert_allclose(weights[0, 0, 0, :2].astype(jnp.float32), [0.4688, 0.5312], atol=3e-3)


# --------------------------------------------------------------------------------------------------------- where


@pytest.mark.parametrize(
    ("capability", "has"), [("9.0", True), ("10.3", True), ("8.0", True), ("7.5", False), ("gfx942", False)]
)
def test_which_devices_have_the_kernel(monkeypatch, capability, has):
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
    assert attention._has_cudnn_attention() == has


def test_a_cpu_has_it_not():
    assert not attention._has_cudnn_attention()


@pytest.fixture
def calls(monkeypatch):
    """What is asked of jax on a device that has the kernel, which this one computes in its own form."""
    found, real = [], jax.nn.dot_product_attention

    def recorded(q, k, v, **options):
        found.append((options.pop("implementation"), q.shape[1], k.shape[1], options))
        return real(q, k, v, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    monkeypatch.setattr(attention, "_has_cudnn_attention", lambda: True)
    return found


@pytest.mark.parametrize(
    ("form", "dtype", "queries", "keys", "channels", "padded"),
    [
        ("cudnn", "bfloat16", 6, 6, 64, (6, 6)),
        ("cudnn", "bfloat16", 5, 5, 64, (6, 6)),  # a CLIP's 129 tokens are an odd number
        ("cudnn", "float16", 4, 7, 8, (4, 8)),  # prompts among the keys
        ("xla", "float32", 6, 6, 64, None),
        ("xla", "bfloat16", 6, 6, 12, None),
        ("xla", "bfloat16", 6, 6, 136, None),
        ("xla", "bfloat16", 1, 6, 64, None),  # the class token alone
    ],
)
def test_which_form(calls, monkeypatch, form, dtype, queries, keys, channels, padded):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, n, 1, channels)), dtype) for n in (queries, keys, keys))
    found = attend(q, k, v)
    assert calls[0][:3] == (form, *(padded or (queries, keys)))
    monkeypatch.setattr(attention, "_has_cudnn_attention", lambda: False)
    plain = attend(q, k, v)
    assert calls[1][:3] == ("xla", queries, keys)
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (found, plain)), atol=1e-6)


def test_which_form_of_masked_attention(calls):
    q = jnp.ones((2, 6, 1, 8), jnp.bfloat16)
    attend(q, q, q, jnp.ones((2, 1, 1, 6), bool))
    causal_attend(q[:, :4], q, q)
    assert [call[0] for call in calls] == ["xla", "xla"]
    causal_attend(q, q, q)
    assert calls[2][0] == "cudnn" and calls[2][3] == {"is_causal": True}


# ----------------------------------------------------------------------------------------------------- benchmark


def test_the_benchmark_s_forms_agree():
    """Those alone and those of a block; what cannot be had is a line with the reason."""
    arrays = np.random.default_rng(0).normal(size=(3, 2, 5, 3, 64)).astype(np.float32)
    make = functools.partial(benchmark.alone, arrays=arrays, precision="float32")
    found = benchmark.compare(make, ("library", "xla", "written_out"), turns=1)
    assert found["library"]["ratio"] == 1 and found["xla"]["gap"] == 0
    assert found["written_out"]["gap"] < 1e-6
    make = functools.partial(benchmark.block, frames=1, precision="float32")
    found = benchmark.compare(make, ("library", "written_out"), turns=1)
    assert 0 < found["written_out"]["gap"] < 1e-4  # another form was traced
    assert "no torch" in benchmark.compare(fails, ("torch",), turns=1)["torch"]["unavailable"]


def fails(form):
    raise ModuleNotFoundError(f"no {form}\nhere")
