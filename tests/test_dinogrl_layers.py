"""What DinoGRL is made of, piece by piece: numbers by hand, by brute force, or of a restatement in PyTorch."""

import importlib
from pathlib import Path

import family
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import released_files
from messages import refuses

from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.backbones.mask_branch import MaskBranch, MaskBranchConfig
from jaxreid.backbones.pretrained import load_variables
from jaxreid.layers.gait_maps import CellBranch
from jaxreid.layers.pbmge import Exchange
from jaxreid.layers.silhouettes import (
    border_loss,
    cleaned,
    diversity_loss,
    kept_maps,
    mask_sobel_loss,
    person,
    resized,
    sobel_loss,
)
from jaxreid.losses.triplet import batch_all_triplet
from jaxreid.retrieval.distances import part_euclidean_distance

torch = pytest.importorskip("torch")  # what the restatement is written in
from references import dinogrl_forward as reference  # noqa: E402

pytestmark = pytest.mark.parity

BINS, GRANULARITIES, PARTS, WIDTH = (1, 2, 4), (2, 4), 7, 6


@pytest.mark.parametrize("prefix", ["", "Mask_Branch."])
def test_a_mask_branch_of_big_gait(tmp_path, prefix):
    """The file's names as its module makes them; the norm behind the bottleneck is never called."""
    norm, linear = released_files.plain_batch_norm, released_files.linear
    shapes = norm("bn_s", 8) | norm("bn_t", 2) | linear("down_sampling", 8, 2) | linear("up_sampling", 2, 8)
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    tensors = released_files.random_file(tmp_path / "mask.safetensors", shapes)
    config = MaskBranchConfig(8)
    variables = load_variables(tmp_path / "mask.safetensors", config)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 8))
    shares, rebuilt = MaskBranch(config).apply(variables, jnp.asarray(x, jnp.float32))
    t = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    z = (x - t["bn_s.running_mean"]) / np.sqrt(t["bn_s.running_var"] + 1e-5)
    z = np.exp(z @ t["down_sampling.weight"].T + t["down_sampling.bias"])
    z /= z.sum(-1, keepdims=True)
    np.testing.assert_allclose(shares, z, atol=1e-5)
    np.testing.assert_allclose(rebuilt, z @ t["up_sampling.weight"].T + t["up_sampling.bias"], atol=1e-5)
    with refuses(ValueError, "down_sampling.weight", "width 9"):
        load_variables(tmp_path / "mask.safetensors", MaskBranchConfig(9))


# Silhouettes ----------------------------------------------------------------------------------------------------------


def shares_of(first):
    return jnp.stack([first, 1 - first], axis=-1)


def test_the_person_is_whoever_does_not_fill_the_bands():
    """5 + 5 rows of 64: 160 of 320 cells of a channel are still the person's, 161 are the background."""
    inside = np.zeros((1, 64, 32), np.float32)
    inside[:, 20:50, 10:22] = 0.9
    for turned in (inside, 1 - inside):
        np.testing.assert_allclose(person(shares_of(jnp.asarray(turned))), inside, atol=1e-6)
    edge = np.zeros((1, 64, 32), np.float32)
    edge[:, :5] = 1
    assert (np.asarray(person(shares_of(jnp.asarray(edge)))) == edge).all()  # 160
    edge[:, 60, 0] = 1
    assert (np.asarray(person(shares_of(jnp.asarray(edge)))) == 1 - edge).all()
    edge[:, 60, 0], edge[:, 58, 0] = 0, 1  # the sixth row from below is none of the band
    assert (np.asarray(person(shares_of(jnp.asarray(edge)))) == edge).all()


def test_cleaning_is_dilation_and_erosion_by_hand():
    """3 × 3 and 5 × 5 cells of 64 rows, pixel by pixel; what is beyond the border neither fills nor empties."""
    rng = np.random.default_rng(0)
    share = rng.random((2, 64, 32)).astype(np.float32) * (rng.random((2, 64, 32)) > 0.3)

    def around(x, radius, of):
        found = np.zeros_like(x)
        for n, i, j in np.ndindex(*x.shape):
            found[n, i, j] = of(x[n, max(i - radius, 0) : i + radius + 1, max(j - radius, 0) : j + radius + 1])
        return found

    for rows, grow, shrink in ((64, 1, 2), (32, 1, 1)):
        x = share[:, :rows]
        dilated = around((x > 0.5).astype(np.float32), grow, np.max)
        eroded = around(dilated, shrink, np.min)
        expected = np.where(dilated != eroded, x, 0) + eroded
        np.testing.assert_array_equal(cleaned(jnp.asarray(x)), expected)


def test_how_rough_maps_are():
    rng = np.random.default_rng(0)
    maps = rng.random((3, 8, 6, 4)).astype(np.float32)
    mask = jnp.ones(3, bool)
    theirs = torch.as_tensor(maps).permute(0, 3, 1, 2)
    assert float(sobel_loss(jnp.asarray(maps), mask)) == pytest.approx(float(reference.sobel(theirs)), rel=1e-5)
    shares = shares_of(jnp.asarray(maps[..., 0]))
    reread = torch.as_tensor(np.array(shares)).view(3, 48, 2).reshape(3, 2, 8, 6)  # cells and channels as they lie
    found = float(mask_sobel_loss(shares, mask, "legacy"))
    assert found == pytest.approx(float(reference.sobel(reread)), rel=1e-5)
    some = jnp.array([True, False, False])
    assert float(sobel_loss(jnp.asarray(maps), some)) == pytest.approx(float(reference.sobel(theirs[:1])), rel=1e-5)
    # Of both shares together nothing but the border is left, whatever they are.
    slope = jax.grad(lambda x: sobel_loss(shares_of(x), mask))(jnp.asarray(maps[..., 0]))
    assert float(jnp.abs(slope).max()) < 1e-7
    slope = jax.grad(lambda x: mask_sobel_loss(shares_of(x), mask, "channels"))(jnp.asarray(maps[..., 0]))
    assert float(jnp.abs(slope).max()) > 1e-4
    # Two channels of 0.25: 4 · 0.5 at each of the inner 16 cells of the border, 3 · 0.5 both ways at its corners.
    flat = sobel_loss(jnp.full((1, 6, 6, 2), 0.25), jnp.ones(1, bool))
    assert float(flat) == pytest.approx((16 * 4 * 0.5 + 4 * 2 * 3 * 0.5) / (36 * 2))


def test_how_much_of_a_mask_lies_along_the_edges():
    """Of 32 × 16 cells three rows above and below and one column on each side, which is 5/64 of either."""
    shares = np.random.default_rng(2).random((3, 32, 16)).astype(np.float32)
    lines = np.concatenate([shares[:, :3], shares[:, 29:]], 1).mean((1, 2))
    sides = np.concatenate([shares[:, :, :1], shares[:, :, 15:]], 2).mean((1, 2))
    each = (lines + sides) / 2
    mask = jnp.array([True, False, True])
    found = float(border_loss(shares_of(jnp.asarray(shares)), mask))
    assert found == pytest.approx(each[[0, 2]].mean(), rel=1e-5)


def test_how_evenly_parts_are_used():
    even = jnp.full((2, 4, 3, 16), 1 / 16)
    one = jnp.zeros((2, 4, 3, 16)).at[..., 3].set(1.0)
    mask = jnp.ones(2, bool)
    assert float(diversity_loss(even, mask)) == pytest.approx(0.0, abs=1e-3)
    assert float(diversity_loss(one, mask)) == pytest.approx(4.0, abs=1e-3)
    assert float(diversity_loss(jnp.concatenate([even[:1], one[:1]]), mask)) == pytest.approx(2.0, abs=1e-3)
    assert float(diversity_loss(one * 0, mask)) == pytest.approx(4.0)


def test_clips_that_lose_a_map():
    valid = jnp.arange(32) < 20
    kept = np.stack([kept_maps(jax.random.key(i), valid, 0.2) for i in range(40)])
    lost = ~kept
    assert (lost.sum((1, 2)) == 6).all() and not lost.all(-1).any() and not lost[:, 20:].any()
    assert 0.3 < lost[..., 0].sum() / lost.sum() < 0.7 and lost.any(-1).any(0)[:20].all()
    assert kept_maps(jax.random.key(0), valid, 0.0).all()


def test_a_map_of_cells_is_the_same_the_short_way():
    """First products of the tokens against those of the cells; batch norm of gathered cells; a frame without any."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(3, 4, 2, 8)), jnp.float32)
    active = jnp.asarray(rng.random((3, 8, 4)) > 0.5).at[1].set(False)
    for kind in ("parts", "texture"):
        short, plain = (CellBranch(kind, 4, fast=fast) for fast in (True, False))
        variables = family.filled(lambda key, short=short: short.init(key, tokens, active, True))
        found, expected = (
            each.apply(variables, tokens, active, True, mutable=["batch_stats"]) for each in (short, plain)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
        assert not found[0][1].any() and (np.asarray(found[0][..., 0] > 0) == np.asarray(active)).all()
        gathered = np.asarray(resized(tokens, (8, 4)), np.float64)[np.asarray(active)]
        statistics = found[1]["batch_stats"]["norm_tokens"]
        before = variables["batch_stats"]["norm_tokens"]
        np.testing.assert_allclose(statistics["mean"], 0.9 * before["mean"] + 0.1 * gathered.mean(0), atol=1e-6)
        np.testing.assert_allclose(statistics["var"], 0.9 * before["var"] + 0.1 * gathered.var(0, ddof=1), atol=1e-5)
        nothing = short.apply(variables, tokens, active & False, True, mutable=["batch_stats"])
        assert not nothing[0].any()
        jax.tree.map(np.testing.assert_array_equal, nothing[1]["batch_stats"], variables["batch_stats"])
    one = MaskedBatchNorm(use_scale=False, use_bias=False)
    x = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    normed, _ = one.apply({}, x, None, use_running_average=False, mutable=["batch_stats"])
    mapped, _ = one.apply({}, x, None, use_running_average=False, instead=x[:2], mutable=["batch_stats"])
    np.testing.assert_allclose(mapped, normed[:2], atol=1e-6)


# PBMGE, losses, distances ---------------------------------------------------------------------------------------------


def test_an_exchange_is_that_of_lifted_numbers():
    """Four scalars in place of products of vectors; running statistics move strip by strip; new, it adds nothing."""
    rng = np.random.default_rng(0)
    own, other = (jnp.asarray(rng.normal(size=(5, PARTS, WIDTH)), jnp.float32) for _ in range(2))
    module, valid = Exchange(BINS, GRANULARITIES), jnp.ones(5, bool)
    start = module.init(jax.random.key(0), own, other, valid, False)
    np.testing.assert_array_equal(module.apply(start, own, other, valid, False), np.repeat(own[:, :1], 2, 1))
    assert sum(x.size for x in jax.tree.leaves(start["params"])) == 8 * 6 + 6
    shapes = released_files.dinogrl(part=WIDTH)[1]
    tensors = released_files.random_tensors(shapes)
    net = reference.DinoGRL(tensors, 1, None, None, BINS, GRANULARITIES, train=True)
    names = {"theta": "query", "phi": "context", "g.0": "value", "W1.0": "shared", "W2.0": "specific"}
    names |= {"W1.1": "shared_norm", "W2.1": "specific_norm"}
    key = "enhance_shape_net_3"
    params = {}
    for theirs, ours in names.items():
        params[f"{ours}_{'scale' if 'norm' in ours else 'kernel'}"] = tensors[f"{key}.{theirs}.weight"].reshape(-1)
        params[f"{ours}_bias"] = tensors[f"{key}.{theirs}.bias"]
    stats = {
        ours: {leaf: tensors[f"{key}.{theirs}.1.running_{leaf}"] for leaf in ("mean", "var")}
        for theirs, ours in (("W1", "shared"), ("W2", "specific"))
    }
    found, changed = module.apply(
        {"params": params, "batch_stats": stats}, own, other, valid, True, mutable=["batch_stats"]
    )
    with torch.no_grad():
        gait, _ = net.enriched(*(torch.as_tensor(np.array(x)).double().transpose(1, 2) for x in (own, other)))
    np.testing.assert_allclose(found, gait.numpy().swapaxes(1, 2)[:, PARTS:], atol=1e-4)
    for name in ("mean", "var"):
        expected = net.t[f"{key}.W1.1.running_{name}"]
        np.testing.assert_allclose(changed["batch_stats"]["shared"][name], expected, rtol=1e-4)


def test_triplets_of_all_clips():
    rng = np.random.default_rng(0)
    parts, label = rng.normal(size=(6, 3, 4)).astype(np.float32), np.repeat(np.arange(3), 2)
    order, valid = rng.permutation(6), jnp.ones(6, bool)
    for scale in (1.0, 0.05):
        expected = float(reference.triplet(torch.as_tensor(scale * parts).transpose(1, 2), torch.as_tensor(label)))
        found = batch_all_triplet(jnp.asarray(scale * parts[order]), jnp.asarray(label[order]), valid)
        assert float(found) == pytest.approx(expected, rel=1e-4)
    same = jnp.ones((6, 3, 4))
    assert float(batch_all_triplet(same, jnp.asarray(label), valid)) == pytest.approx(0.2)
    assert float(batch_all_triplet(same, jnp.asarray(label), valid & False)) == 0
    far = jnp.asarray(100.0 * label[:, None, None] + 0 * parts)
    assert float(batch_all_triplet(far, jnp.asarray(label), valid)) == 0
    slope = jax.grad(lambda x: batch_all_triplet(x, jnp.asarray(label), valid))(same)
    assert np.isfinite(slope).all() and not slope.any()
    more = jnp.concatenate([jnp.asarray(parts), 1e3 * jnp.ones((1, 3, 4))])
    found = batch_all_triplet(more, jnp.append(jnp.asarray(label), 0), jnp.append(valid, False))
    assert float(found) == pytest.approx(float(batch_all_triplet(jnp.asarray(parts), jnp.asarray(label), valid)))


def test_parts_stay_parts():
    """Parts that change places within a tracklet change its distances, and these are no distance of long vectors."""
    rng = np.random.default_rng(0)
    query, gallery = (rng.normal(size=(n, 5, 6)).astype(np.float32) for n in (2, 3))
    expected = np.array([[np.mean([np.linalg.norm(q[p] - g[p]) for p in range(5)]) for g in gallery] for q in query])
    np.testing.assert_allclose(part_euclidean_distance(query, gallery), expected, atol=1e-5)
    assert np.abs(part_euclidean_distance(query[:, ::-1], gallery) - expected).max() > 0.05
    long = np.linalg.norm(query.reshape(2, 1, -1) - gallery.reshape(1, 3, -1), axis=-1) / np.sqrt(5)
    assert np.abs(long - expected).max() > 0.01


# The benchmark's scores ---------------------------------------------------------------------------------------------


def test_how_silhouettes_are_scored(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    benchmark = importlib.import_module("benchmarks.dinogrl")
    true = np.zeros((2, 8, 4), bool)
    true[:, 2:6, 1:3] = True
    half = true.copy()
    half[1, :, 2] = False
    assert benchmark.overlap(half, true).tolist() == [1.0, 0.5]
    assert benchmark.overlap(true[0], half).tolist() == [1.0, 0.5]
    for name, mask in benchmark.same_for_everybody(true).items():
        assert (mask == true[0]).all(), name
    coverage = np.zeros((1, 16, 8), np.uint8)
    coverage[:, :2, :2], coverage[:, 2:4, 0] = 255, 255  # a whole cell, and one that is half covered
    cells = benchmark.on_cells(coverage, (8, 4))
    assert np.argwhere(cells).tolist() == [[0, 0, 0]]
