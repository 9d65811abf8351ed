"""Losses: golden numbers of HiTPro's toy world, its invariants, PyTorch and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_world
from messages import refuses

from jaxreid.losses.contrastive import hierarchical_losses
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.triplet import batch_hard_triplet, pairwise_distance
from jaxreid.memory import prototypes
from jaxreid.memory.association import AssociationConfig, associate

LOSSES = jax.jit(hierarchical_losses, static_argnames="scope")
TRIPLET = jax.jit(jax.value_and_grad(batch_hard_triplet), static_argnums=(3, 4, 5))


def toy(within=None, cross=None, look_alikes=None, capacity=8):
    """The toy world with hand-written lists {slot: {positive: weight}} and {slot: [look-alike]}."""
    memory = toy_world.memory(capacity)
    fields = {}
    for stage, lists in (("within", within or {}), ("cross", cross or {})):
        index = np.array(getattr(memory, f"{stage}_index"))
        weight = np.array(getattr(memory, f"{stage}_weight"))
        for k, row in lists.items():
            index[k, : len(row)], weight[k, : len(row)] = list(row), list(row.values())
        fields |= {f"{stage}_index": jnp.asarray(index), f"{stage}_weight": jnp.asarray(weight)}
    neutral = np.array(memory.look_alike_index)
    for k, row in (look_alikes or {}).items():
        neutral[k, : len(row)] = row
    return memory.replace(look_alike_index=jnp.asarray(neutral), **fields)


def clip_losses(memory, degrees, slot, **options):
    return LOSSES(toy_world.vectors([degrees]), jnp.array([slot]), jnp.ones(1, bool), memory, 0.07, **options)


# HiTPro: golden numbers ---------------------------------------------------------------------------------------------


def test_good_clip():
    losses = clip_losses(toy(within={0: {2: 1.0}}), 4, 0)
    np.testing.assert_allclose(losses["intra"], 0.001905, atol=1e-6)
    np.testing.assert_allclose(losses["within"], 0.000226, atol=1e-6)
    assert losses["cross"] == 0
    assert [int(losses[f"{name}_count"]) for name in ("intra", "within", "cross")] == [1, 1, 0]


def test_bad_clip():
    losses = clip_losses(toy(within={0: {2: 1.0}}, cross={0: {4: 0.5, 6: 0.5}}), 40, 0)
    np.testing.assert_allclose(losses["intra"], 2.561056, atol=1e-5)
    np.testing.assert_allclose(losses["within"], np.log(2), atol=1e-5)
    np.testing.assert_allclose(losses["cross"], 0.015097, atol=1e-6)
    total = losses["intra"] + 0.5 * losses["within"] + 0.5 * losses["cross"]
    np.testing.assert_allclose(total, 2.915178, atol=1e-5)


def test_soft_weights_and_a_camera_with_one_slot():
    losses = clip_losses(toy(cross={2: {4: 0.632236, 6: 0.367764}}), 11, 2)
    # The loss is a difference of two numbers near 14, where fp32 has steps of 1e-6.
    np.testing.assert_allclose(losses["cross"], 2.6349e-5, atol=1e-6)
    np.testing.assert_allclose(clip_losses(toy(cross={2: {4: 1.0}}), 11, 2)["cross"], 4.1676e-5, atol=1e-6)
    assert clip_losses(toy(cross={2: {6: 1.0}}), 11, 2)["cross"] == 0


def test_joint_scope_golden():
    # The floors of these rows are far above all negatives: nothing is neutral here.
    memory = toy(within={0: {2: 1.0}}, cross={2: {4: 0.632236, 6: 0.367764}})
    memory = memory.replace(within_floor=jnp.full(8, 0.98), cross_floor=jnp.full(8, 0.95))
    memory = memory.replace(within_space=memory.feature, cross_space=memory.feature)
    joint = {"scope": "joint"}
    # Logits are near 14, where fp32 has steps of 1e-6; a few of them add up.
    losses = clip_losses(memory, 4, 0, **joint)
    np.testing.assert_allclose(losses["within"], 0.694467, atol=4e-6)
    np.testing.assert_allclose(losses["within_excess"], 0.694467 - np.log(2), atol=4e-6)
    losses = clip_losses(memory, 11, 2, **joint)
    np.testing.assert_allclose(losses["cross"], 0.661607, atol=4e-6)
    np.testing.assert_allclose(losses["cross_excess"], 0.661607 - 0.657756, atol=4e-6)


def look_alike_memory(neutral):
    memory = prototypes.empty_memory([0, 0, 0, 0], [0], dim=2)
    memory = prototypes.rebuild(memory, toy_world.vectors([0, 3, 50, 100]), jnp.arange(4), jnp.ones(4, bool))
    return memory.replace(look_alike_index=memory.look_alike_index.at[0, 0].set(1 if neutral else -1))


@pytest.mark.parametrize(("neutral", "loss", "slope"), [(False, 0.693576, 0.007190), (True, 0.007336, 0.001407)])
def test_look_alikes_are_not_negatives(neutral, loss, slope):
    memory = look_alike_memory(neutral)

    def at(degrees):
        radians = jnp.deg2rad(degrees)
        z = jnp.stack([jnp.cos(radians), jnp.sin(radians)])[None]
        return hierarchical_losses(z, jnp.array([0]), jnp.ones(1, bool), memory, 0.07)["intra"]

    value, derivative = jax.jit(jax.value_and_grad(at))(1.0)
    np.testing.assert_allclose(value, loss, atol=1e-6)
    np.testing.assert_allclose(derivative, slope, atol=1e-6)


# HiTPro: brute force and invariants ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    """A random associated memory (five dimensions), clips with padding, and the association config."""
    rng = np.random.default_rng(0)
    memory = prototypes.empty_memory(rng.integers(0, 6, 40), [0, 0, 0, 1, 1, 1], dim=5, capacity=48)
    directions = rng.normal(size=(8, 5))
    features = prototypes.unit_rows(jnp.asarray(directions[np.arange(80) % 8] + 0.5 * rng.normal(size=(80, 5))))
    memory = prototypes.rebuild(memory, features, jnp.arange(80) % 40, jnp.ones(80, bool))
    plain = {"stage1_space": "raw", "stage2_space": "centred", "metric_rounds": 0}  # which leaves rows without a match
    config = AssociationConfig(candidates_per_camera=2, look_alike_kappa=0.0, **plain)
    memory = associate(memory, -1.0, config)
    slot = jnp.asarray([*rng.integers(0, 40, 20), -1, 45, 3])
    clips = prototypes.unit_rows(memory.feature[slot] + 0.3 * jnp.asarray(rng.normal(size=(23, 5))))
    valid = jnp.arange(23) != 22  # one row without a slot, one with a padding slot, one not valid
    return memory, clips, slot, valid, config


def brute_force(memory, clips, slot, valid, scope="camera", band=0.1, temperature=0.07):
    """Clip by clip and slot by slot in float64."""
    values = {name: np.asarray(getattr(memory, name)) for name in memory.__dataclass_fields__}
    feature = values["feature"].astype(np.float64)
    known = [k for k in range(len(feature)) if values["valid"][k]]
    logits = np.asarray(clips, np.float64) @ feature.T / temperature

    def listed(name, k):
        return [int(j) for j in values[name][k] if j >= 0]

    def log_softmax(b, target, members):
        return logits[b, target] - np.log(sum(np.exp(logits[b, j]) for j in members))

    def in_camera(b, target):
        neutral = listed("look_alike_index", target)
        same = [j for j in known if values["camera"][j] == values["camera"][target]]
        return -log_softmax(b, target, [j for j in same if j not in neutral or j == target])

    def in_modality(b, k, stage, targets):
        x = values[f"{stage}_space"].astype(np.float64)
        near = [j for j in known if x[k] @ x[j] >= values[f"{stage}_floor"][k] - band]
        same = [j for j in known if (values["modality"][j] == values["modality"][k]) == (stage == "within")]
        if stage == "within":
            near = [j for j in near if values["camera"][j] != values["camera"][k]] + listed("look_alike_index", k)
        members = [j for j in same if j not in near or j in targets]
        return -sum(w * log_softmax(b, j, members) for j, w in targets.items())

    sums = {"intra": [], "within": [], "cross": []}
    for b, k in enumerate(np.asarray(slot)):
        if not valid[b] or k not in known:
            continue
        sums["intra"].append(in_camera(b, k))
        for stage in ("within", "cross"):
            targets = dict(zip(listed(f"{stage}_index", k), values[f"{stage}_weight"][k].tolist(), strict=False))
            if not targets:
                continue
            if scope == "camera":
                sums[stage].append(sum(w * in_camera(b, j) for j, w in targets.items()))
            else:
                half = {j: w / 2 for j, w in targets.items()} | {k: 0.5} if stage == "within" else targets
                sums[stage].append(in_modality(b, k, stage, half))
    return {name: np.mean(rows) for name, rows in sums.items()}, {name: len(rows) for name, rows in sums.items()}


@pytest.mark.parametrize("scope", ["camera", "joint"])
def test_hierarchical_losses_against_brute_force(world, scope):
    memory, clips, slot, valid, _ = world
    losses = LOSSES(clips, slot, valid, memory, 0.07, scope=scope)
    expected, counts = brute_force(memory, clips, slot, valid, scope)
    assert counts["intra"] == 20 and 0 < counts["within"] < 20 and 0 < counts["cross"] < 20
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name], value, rtol=2e-5, err_msg=name)
        assert losses[f"{name}_count"] == counts[name]


@pytest.mark.parametrize("scope", ["camera", "joint"])
def test_padding_rows_have_no_influence(world, scope):
    memory, clips, slot, valid, _ = world
    options = {"scope": scope}
    plain = LOSSES(clips, slot, valid, memory, 0.07, **options)
    unused = ~np.asarray(valid) | (np.asarray(slot) < 0) | (np.asarray(slot) >= 40)
    garbage = LOSSES(jnp.where(unused[:, None], jnp.nan, clips), slot, valid, memory, 0.07, **options)
    for name in plain:
        np.testing.assert_array_equal(plain[name], garbage[name], err_msg=name)

    def total(z):
        losses = hierarchical_losses(z, slot, valid, memory, 0.07, **options)
        return losses["intra"] + losses["within"] + losses["cross"]

    gradient = jax.jit(jax.grad(total))(jnp.where(unused[:, None], jnp.nan, clips))
    np.testing.assert_array_equal(gradient[unused], 0)
    assert np.isfinite(gradient).all() and (np.abs(gradient[~unused]).max(axis=1) > 0).all()


@pytest.mark.parametrize("scope", ["camera", "joint"])
def test_an_empty_memory_gives_zero(world, scope):
    memory = prototypes.empty_memory([0, 1], [0, 1], dim=5)
    clips = world[1][:2]

    def total(z):
        losses = hierarchical_losses(z, jnp.arange(2), jnp.ones(2, bool), memory, scope=scope)
        return losses["intra"] + losses["within"] + losses["cross"]

    value, gradient = jax.jit(jax.value_and_grad(total))(clips)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_prototypes_get_no_gradient(world):
    memory, clips, slot, valid, _ = world

    def total(feature):
        losses = hierarchical_losses(clips, slot, valid, memory.replace(feature=feature))
        return losses["intra"] + losses["within"] + losses["cross"]

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(memory.feature), 0)


def test_a_clip_without_positive_adds_nothing(world):
    memory, clips, slot, valid, _ = world
    for stage in ("within", "cross"):
        has = (np.asarray(getattr(memory, f"{stage}_index"))[np.asarray(slot)] >= 0).any(axis=1)
        only = LOSSES(clips, slot, valid & has, memory)
        both = LOSSES(clips, slot, valid, memory)
        np.testing.assert_allclose(only[stage], both[stage], rtol=1e-6)
        gradient = jax.jit(jax.grad(lambda z, s=stage: hierarchical_losses(z, slot, valid, memory)[s]))(clips)
        np.testing.assert_array_equal(gradient[~has], 0)


def rotated(world, cameras):
    """Clips and prototypes of some cameras turned together by one random rotation."""
    memory, clips, slot, valid, _ = world
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))
    rotation = jnp.asarray(rotation, jnp.float32)
    of_slot = jnp.isin(memory.camera, jnp.asarray(cameras))
    feature = jnp.where(of_slot[:, None], memory.feature @ rotation, memory.feature)
    clips = jnp.where(of_slot[slot][:, None], clips @ rotation, clips)
    return LOSSES(clips, slot, valid, memory.replace(feature=feature))


def test_what_each_level_cannot_see(world):
    plain = LOSSES(*world[1:4], world[0])
    one_camera, infrared = rotated(world, [1]), rotated(world, [3, 4, 5])
    np.testing.assert_allclose(one_camera["intra"], plain["intra"], rtol=1e-5)
    assert abs(one_camera["within"] - plain["within"]) > 0.05
    np.testing.assert_allclose(infrared["intra"], plain["intra"], rtol=1e-5)
    np.testing.assert_allclose(infrared["within"], plain["within"], rtol=1e-5)
    assert abs(infrared["cross"] - plain["cross"]) > 0.05


def test_a_constant_added_to_a_camera_changes_only_the_joint_scope(world):
    memory, clips, slot, valid, _ = world
    constant = jnp.asarray([0.3, -0.2, 0.1, 0.4, 0.2])
    shifted = memory.replace(feature=memory.feature + jnp.where(memory.camera == 1, 1.0, 0.0)[:, None] * constant)
    for scope, changes in (("camera", False), ("joint", True)):
        options = {"scope": scope}
        # Without the band, which depends on similarities, so that only the softmax is compared.
        a = LOSSES(clips, slot, valid, memory, neutral_band=-9.0, **options)
        b = LOSSES(clips, slot, valid, shifted, neutral_band=-9.0, **options)
        np.testing.assert_allclose(b["intra"], a["intra"], rtol=1e-5)
        assert (abs(b["within"] - a["within"]) > 0.01) == changes


@pytest.mark.parametrize(("levels", "blind_to"), [(("intra",), "camera"), (("intra", "within"), "modality")])
def test_no_signal_without_the_level(world, levels, blind_to):
    """Without level 3 a clip feels nothing of the other modality, without level 2 nothing of other cameras."""
    memory, clips, slot, valid, _ = world

    @jax.jit
    def gradient(feature):
        def total(z):
            losses = hierarchical_losses(z, slot, valid, memory.replace(feature=feature))
            return sum(losses[level] for level in levels)

        return jax.grad(total)(clips)

    key = np.asarray(getattr(memory, blind_to))
    moved = jnp.where((key == key[0])[:, None], memory.feature, -memory.feature[:, ::-1])
    unchanged = np.asarray(valid) & (key[np.asarray(slot)] == key[0])
    assert unchanged.any()
    a, b = gradient(memory.feature), gradient(moved)
    np.testing.assert_allclose(a[unchanged], b[unchanged], atol=1e-6)
    assert np.abs(a - b).max() > 1e-3


def test_zero_padding_of_slots_changes_nothing():
    lists = {"within": {0: {2: 1.0}}, "cross": {0: {4: 0.5, 6: 0.5}}, "look_alikes": {4: [5]}}
    small, large = clip_losses(toy(**lists), 40, 0), clip_losses(toy(**lists, capacity=16), 40, 0)
    for name in small:
        np.testing.assert_allclose(small[name], large[name], rtol=1e-6, err_msg=name)


def test_sharded_batch_gives_the_same_losses_and_memory(world):
    """Rows of the batch spread over all devices, memory replicated."""
    devices = jax.devices()
    assert len(devices) == 8
    memory, clips, slot, valid, _ = world
    rows = 3 * len(devices)
    batch = [jnp.resize(x, (rows, *x.shape[1:])) for x in (clips, slot, valid)]
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    @jax.jit
    def step(clips, slot, valid, memory):
        def total(z):
            losses = hierarchical_losses(z, slot, valid, memory)
            return losses["intra"] + losses["within"] + losses["cross"]

        updated = prototypes.update_prototypes(memory, clips, slot, valid, 0.5)
        return jax.value_and_grad(total)(clips), updated.feature

    plain = step(*batch, memory)
    sharded = step(*[jax.device_put(x, spread) for x in batch], jax.device_put(memory, whole))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_bad_scope_is_named(world):
    memory, clips, slot, valid, _ = world
    with refuses(ValueError, "scope", "'global'"):
        hierarchical_losses(clips, slot, valid, memory, scope="global")


# Identity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_pytorch_s(smoothing):
    import torch

    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(7, 5)).astype(np.float32) * 4, rng.integers(0, 5, 7)
    reference = torch.tensor(logits[:5], requires_grad=True)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(reference, torch.tensor(label[:5]))
    loss.backward()
    logits[5:], label[5:] = np.nan, -1
    valid = jnp.arange(7) < 5
    value, gradient = jax.jit(jax.value_and_grad(cross_entropy))(
        jnp.asarray(logits), jnp.asarray(label), valid, smoothing
    )
    np.testing.assert_allclose(value, loss.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient[:5], reference.grad.numpy(), atol=1e-6)
    np.testing.assert_array_equal(gradient[5:], 0)


def test_cross_entropy_by_hand():
    # Two classes with logits (ln 3, 0): probabilities ¾ and ¼.
    logits, one = jnp.log(jnp.array([[3.0, 1.0]])), jnp.ones(1, bool)
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([0]), one), np.log(4 / 3), rtol=1e-6)
    smoothed = 0.9 * np.log(4 / 3) + 0.05 * (np.log(4 / 3) + np.log(4))
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([0]), one, 0.1), smoothed, rtol=1e-6)
    assert cross_entropy(logits, jnp.array([0]), ~one) == 0
    for label in (-1, 2):
        assert np.isnan(cross_entropy(logits, jnp.array([label]), one))


# Triplet ------------------------------------------------------------------------------------------------------------


def brute_force_triplet(features, label, valid, margin, metric, soft):
    def distance(a, b):
        if metric == "cosine":
            return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        return np.linalg.norm(a - b)

    losses, rows = [], np.flatnonzero(valid)
    for a in rows:
        positive = [distance(features[a], features[b]) for b in rows if b != a and label[b] == label[a]]
        negative = [distance(features[a], features[b]) for b in rows if label[b] != label[a]]
        if positive and negative:
            gap = max(positive) - min(negative)
            losses.append(np.log1p(np.exp(gap)) if soft else max(0.0, gap + margin))
    return np.mean(losses)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("soft", [False, True])
def test_triplet_against_brute_force(metric, soft):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(14, 6)).astype(np.float32)
    label = np.array([0, 1, 0, 2, 1, 1, 0, 2, 3, 0, 1, 2, 0, 1])  # identity 3 has one row: it does not count
    valid = np.arange(14) < 12
    padded = np.where(valid[:, None], features, np.nan)
    arguments = (jnp.asarray(padded), jnp.asarray(label), jnp.asarray(valid), 0.3, metric, soft)
    value, gradient = TRIPLET(*arguments)
    np.testing.assert_allclose(value, brute_force_triplet(features, label, valid, 0.3, metric, soft), rtol=1e-5)
    np.testing.assert_array_equal(gradient[12:], 0)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    order = rng.permutation(14)
    shuffled, _ = TRIPLET(padded[order], jnp.asarray(label[order]), jnp.asarray(valid[order]), 0.3, metric, soft)
    np.testing.assert_allclose(shuffled, value, rtol=1e-6)


def test_triplet_by_hand():
    # On a line: label 0 at 0 and 1, label 1 at 3 and 5. Hardest pairs (d⁺, d⁻): (1, 3), (1, 2), (2, 2), (2, 4).
    features, label = jnp.array([[0.0], [1.0], [3.0], [5.0]]), jnp.array([0, 0, 1, 1])
    np.testing.assert_allclose(batch_hard_triplet(features, label, jnp.ones(4, bool), 0.5), 0.5 / 4, rtol=1e-6)
    np.testing.assert_allclose(batch_hard_triplet(features, label, jnp.ones(4, bool), 1.5), 2.0 / 4, rtol=1e-6)


def test_triplet_without_anchors_or_with_equal_rows_is_finite():
    label = jnp.array([0, 0, 1, 1])
    for features in (jnp.ones((4, 3)), jnp.zeros((4, 3))):
        for metric in ("euclidean", "cosine"):
            for valid in (jnp.ones(4, bool), jnp.zeros(4, bool), jnp.array([True, True, False, False])):
                value, gradient = TRIPLET(features, label, valid, 0.3, metric)
                np.testing.assert_allclose(value, 0.3 if valid.all() else 0.0, atol=1e-5)
                assert np.isfinite(gradient).all()


def test_unknown_metric_is_named():
    with refuses(ValueError, "metric", "'manhattan'"):
        pairwise_distance(jnp.ones((2, 2)), "manhattan")
