"""Association: golden numbers of HiTPro's toy world, invariants, brute force."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_world
from messages import refuses

from jaxreid.memory import association, prototypes
from jaxreid.memory.association import AssociationConfig, associate

# The toy world's golden numbers are of plain prototypes, centred by modality in stage 2.
PLAIN = functools.partial(AssociationConfig, stage1_space="raw", stage2_space="centred", metric_rounds=0)
CONFIG = PLAIN()
RAW = PLAIN(stage2_space="raw")
AGGREGATED = PLAIN(stage2_space="aggregated")


def lists(index):
    """Rows of a −1-padded table without the padding, empty rows left out."""
    return {k: [int(j) for j in row if j >= 0] for k, row in enumerate(np.asarray(index)) if (row >= 0).any()}


def dense(index, weight):
    """Lists as a matrix of weights: slots whose aggregated features are equal tie, and their order is free."""
    index, weight = np.asarray(index), np.asarray(weight)
    matrix = np.zeros((len(index), len(index)))
    k, p = np.nonzero(index >= 0)
    matrix[k, index[k, p]] = weight[k, p]
    return matrix


def random_memory(slots=60, cameras=6, dim=8, capacity=64, seed=0, config=CONFIG, spread=0.6):
    """Three visible and three infrared cameras; slots scatter around 10 directions."""
    rng = np.random.default_rng(seed)
    memory = prototypes.empty_memory(
        rng.integers(0, cameras, slots),
        [0] * (cameras // 2) + [1] * (cameras - cameras // 2),
        dim,
        capacity=capacity,
        within_positives=config.within_positives,
        cross_positives=config.cross_positives,
        look_alikes=config.num_look_alikes,
    )
    directions = rng.normal(size=(10, dim))
    features = directions[rng.integers(0, 10, 2 * slots)] + spread * rng.normal(size=(2 * slots, dim))
    slot = np.arange(2 * slots) % slots
    features = prototypes.unit_rows(jnp.asarray(features))
    return prototypes.rebuild(memory, features, jnp.asarray(slot), jnp.ones(2 * slots, bool))


# The toy world ------------------------------------------------------------------------------------------------------


def test_toy_best_table():
    memory = toy_world.memory()
    index, similarity = association.camera_best(memory.feature, memory.camera, memory.valid, 4)
    expected = [[1, 2, 4, 6], [0, 3, 5, 6], [0, 3, 4, 6], [1, 2, 5, 6], [0, 2, 5, 6], [1, 3, 4, 6], [0, 2, 4, -1]]
    np.testing.assert_array_equal(index[:7, :, 0], expected)
    np.testing.assert_array_equal(index[7], -1)
    angle = np.asarray(toy_world.PROTOTYPE_ANGLES)
    cosine = np.cos(np.deg2rad(angle[:, None] - angle[np.maximum(expected, 0)]))
    filled = np.asarray(expected) >= 0
    np.testing.assert_allclose(np.asarray(similarity[:7, :, 0])[filled], cosine[filled], atol=1e-6)


@pytest.mark.parametrize(
    ("kappa", "infrared"), [(0.5, 0.950600), (0, 0.844561), (-0.5, 0.738523), (-1, 0.632484), (-2, 0.420407)]
)
def test_toy_stage1(kappa, infrared):
    memory = associate(toy_world.memory(), kappa, CONFIG)
    np.testing.assert_allclose(memory.within_threshold, [0.984808, infrared], atol=2e-6)
    # Slot 5 has none: its only infrared neighbour is another person, who prefers somebody else. All visible row
    # bests tie, so a threshold without tolerance may lose all four of them.
    assert lists(memory.within_index) == {0: [2], 1: [3], 2: [0], 3: [1], 4: [6], 6: [4]}
    np.testing.assert_allclose(memory.within_weight[:, 0], [1, 1, 1, 1, 1, 0, 1, 0])
    floor = np.minimum([0.984808] * 4 + [infrared] * 3, [0.984808] * 4 + [0.994522, 0.544639, 0.994522])
    np.testing.assert_allclose(memory.within_floor[:7], floor, atol=2e-6)


def test_toy_row_thresholds_are_what_decides():
    # Without the mutual test slot 5 is ruled by its own threshold: 0.844561 at κ = 0, 0.444639 at κ = −2, and its best
    # has 0.544639.
    config = PLAIN(mutual=False)
    assert 5 not in lists(associate(toy_world.memory(), 0.0, config).within_index)
    assert lists(associate(toy_world.memory(), -2.0, config).within_index)[5] == [6]


def test_toy_stage2_raw():
    memory = associate(toy_world.memory(), 0.0, RAW)
    np.testing.assert_allclose(memory.cross_threshold, 0.953242, atol=1e-6)
    assert lists(memory.cross_index) == {2: [4], 3: [5], 4: [2], 5: [3]}

    memory = associate(toy_world.memory(), -1.0, RAW)
    np.testing.assert_allclose(memory.cross_threshold, 0.928032, atol=1e-6)
    assert lists(memory.cross_index) == {2: [4, 6], 3: [5], 4: [2], 5: [3], 6: [2]}
    np.testing.assert_allclose(memory.cross_weight[2, :3], [0.632236, 0.367764, 0], atol=1e-5)

    memory = associate(toy_world.memory(), -2.0, RAW)
    np.testing.assert_allclose(memory.cross_threshold, 0.902821, atol=1e-6)
    expected = {0: [4], 1: [5], 2: [4, 6], 3: [5], 4: [2, 0], 5: [3, 1], 6: [2]}
    assert lists(memory.cross_index) == expected
    np.testing.assert_allclose(memory.cross_weight[4, :2], [0.734831, 0.265169], atol=1e-5)
    np.testing.assert_allclose(memory.cross_weight[5, :2], [0.767163, 0.232837], atol=1e-5)


def test_toy_stage2_raw_row_bests():
    memory = toy_world.memory()
    _, similarity = association.camera_best(memory.feature, memory.camera, memory.valid, 4)
    cross = np.asarray(memory.modality[:7, None] != memory.camera_modality)
    best = np.where(cross, similarity[:7, :, 0], -1).max(axis=1)
    expected = [0.927184, 0.906308, 0.978148, 0.965926, 0.978148, 0.965926, 0.951057]
    np.testing.assert_allclose(best, expected, atol=1e-6)
    np.testing.assert_allclose([best.mean(), best.std()], [0.953242, 0.025210], atol=1e-6)


ALL_CORRECT = {0: [4, 6], 1: [5], 2: [4, 6], 3: [5], 4: [0, 2], 5: [1, 3], 6: [0, 2]}


@pytest.mark.parametrize("config", [AGGREGATED, CONFIG], ids=lambda config: config.stage2_space)
def test_toy_stage2_gains_from_stage1(config):
    memory = associate(toy_world.memory(), 0.0, config)
    np.testing.assert_allclose(memory.cross_threshold, 0.939693, atol=1e-6)
    assert {k: sorted(row) for k, row in lists(memory.cross_index).items()} == ALL_CORRECT
    tied = [0, 2, 4, 5, 6]
    np.testing.assert_allclose(memory.cross_weight[jnp.array(tied), :2], 0.5, atol=1e-5)


def test_toy_representations():
    memory = associate(toy_world.memory(), 0.0, CONFIG)
    aggregated = association.cross_representation(memory, AGGREGATED)
    np.testing.assert_allclose(toy_world.angles(aggregated[:7]), [5, 65, 5, 65, 25, 85, 25], atol=1e-4)
    means = [aggregated[:4].mean(axis=0), aggregated[4:7].mean(axis=0)]
    np.testing.assert_allclose(means, [[0.7094, 0.4967], [0.6333, 0.6138]], atol=5e-5)
    centred = association.cross_representation(memory, CONFIG)
    np.testing.assert_allclose(toy_world.angles(centred[:7]), [-55, 125, -55, 125, -35, 145, -35], atol=1e-3)
    np.testing.assert_array_equal(centred[7], 0)
    np.testing.assert_allclose(centred[0] @ centred[4], 0.939693, atol=1e-6)
    np.testing.assert_allclose(centred[0] @ centred[5], -0.939693, atol=1e-6)
    assert association.cross_representation(memory, RAW) is memory.feature
    without = association.cross_representation(memory, PLAIN(stage2_space="aggregated", aggregation=0.0))
    np.testing.assert_array_equal(without, memory.feature)


def test_toy_softmax_code():
    memory = associate(toy_world.memory(), 0.0, CONFIG)
    config = PLAIN(stage2_space="softmax_code")
    code = np.asarray(association.cross_representation(memory, config))
    angle = np.array([5, 65, 5, 65, 25, 85, 25.0])
    cosine = np.cos(np.deg2rad(angle[:, None] - angle))
    expected = np.zeros((8, 8))
    for camera in range(4):
        inside = [k for k, c in enumerate(toy_world.SLOT_CAMERA) if c == camera]
        power = np.exp(20 * cosine[:, inside])
        expected[:7, inside] = power / power.sum(axis=1, keepdims=True)
    expected[:7] /= np.linalg.norm(expected[:7], axis=1, keepdims=True)
    np.testing.assert_allclose(code, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kappa", "threshold", "expected"),
    [
        (0.0, 0.830511, {0: [1], 1: [0]}),
        (-1.0, 0.661822, {0: [1], 1: [0, 2], 2: [1]}),
        (-2.0, 0.493133, {0: [1, 2], 1: [0, 2], 2: [1, 0, 3], 3: [2]}),
    ],
)
def test_look_alike_golden(kappa, threshold, expected):
    features = toy_world.vectors([0, 3, 50, 100])
    index, found = association.look_alikes(features, jnp.zeros(4, jnp.int32), jnp.ones(4, bool), kappa)
    np.testing.assert_allclose(found, threshold, atol=1e-6)
    assert lists(index) == expected
    assert index.shape == (4, 8)


def test_soft_weight_temperatures():
    def weights(temperature):
        config = dataclasses.replace(RAW, weight_temperature=temperature)
        return associate(toy_world.memory(), -1.0, config).cross_weight[2, :2]

    np.testing.assert_allclose(weights(1e6), [0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(weights(1e-4), [1, 0], atol=1e-6)
    uniform = associate(toy_world.memory(), -1.0, dataclasses.replace(RAW, weights="uniform"))
    np.testing.assert_allclose(uniform.cross_weight[2], [0.5, 0.5, 0, 0, 0, 0])


# Brute force --------------------------------------------------------------------------------------------------------


def brute_force_mine(similarity, camera, modality, valid, kappa, positives, config, cross):
    """The mining rule of docs/hitpro.md, section 3.4, slot by slot on a full similarity matrix."""
    slots = len(camera)

    def table(k, c):
        inside = [j for j in range(slots) if valid[j] and camera[j] == c and j != k]
        return sorted(inside, key=lambda j: -similarity[k, j])[: config.candidates_per_camera]

    candidates = {}
    for k in np.flatnonzero(valid):
        cameras = {c: m for c, m in zip(camera[valid], modality[valid], strict=True)}
        if cross:
            cameras = [c for c, m in cameras.items() if m != modality[k]]
        else:
            cameras = [c for c, m in cameras.items() if m == modality[k] and c != camera[k]]
        candidates[k] = [j for c in cameras for j in table(k, c)]
    best = {k: max(similarity[k, j] for j in row) for k, row in candidates.items() if row}
    index = -np.ones((slots, positives), int)
    weight = np.zeros((slots, positives))
    for k, row in candidates.items():
        group = [best[j] for j in best if cross or modality[j] == modality[k]]
        threshold = min(np.mean(group) + kappa * np.std(group), max(group)) if group else 0.0
        if config.threshold == "fixed":
            threshold = config.fixed_threshold
        accepted = []
        for j in row:
            if config.mutual and k not in table(j, camera[k]):
                continue
            if config.threshold != "none" and similarity[k, j] < max(threshold, best[k] - config.delta) - 1e-6:
                continue
            accepted.append(j)
        accepted = sorted(accepted, key=lambda j: -similarity[k, j])[:positives]
        if accepted:
            index[k, : len(accepted)] = accepted
            values = similarity[k, accepted]
            raw = np.exp((values - values.max()) / config.weight_temperature)
            raw = np.ones(len(accepted)) if config.weights == "uniform" else raw
            weight[k, : len(accepted)] = raw / raw.sum()
    return index, weight


def centred(features, group, valid):
    """Rows minus the mean of their group, of unit length."""
    features = features.copy()
    for one in np.unique(group[valid]):
        rows = valid & (group == one)
        features[rows] -= features[rows].mean(axis=0)
        features[rows] /= np.linalg.norm(features[rows], axis=1, keepdims=True)
    return features


def brute_force_metric(x, camera, valid, rounds, floor):
    """The pair metric of docs/hitpro.md, section 3.4, pair by pair."""
    known, g = np.flatnonzero(valid), x.copy()
    for _ in range(rounds):

        def nearest(k, c, g=g):
            inside = [j for j in known if camera[j] == c and j != k]
            return max(inside, key=lambda j: g[k] @ g[j], default=-1)

        pairs = [(k, nearest(k, c)) for k in known for c in np.unique(camera[valid]) if c != camera[k]]
        pairs = [(k, j) for k, j in pairs if j >= 0 and nearest(j, camera[k]) == k]
        s, u = np.linalg.eigh(np.mean([np.outer(x[k] - x[j], x[k] - x[j]) for k, j in pairs], axis=0))
        g = x @ (u / np.sqrt(s + floor * s.mean()) @ u.T)
        g[known] /= np.linalg.norm(g[known], axis=1, keepdims=True)
    return g


@pytest.mark.parametrize(
    ("config", "kappa"),
    [
        (CONFIG, 0.0),
        (CONFIG, -2.0),
        (PLAIN(candidates_per_camera=2, within_positives=3, delta=0.3), -1.0),
        (PLAIN(mutual=False, weights="uniform", stage2_space="aggregated"), -1.0),
        (PLAIN(threshold="fixed", fixed_threshold=0.7, stage2_space="raw"), 0.0),
        (PLAIN(threshold="none", block=7), 0.0),
        (PLAIN(stage2_space="softmax_code", delta=0.5), -1.0),
        (PLAIN(stage1_space="camera_centred", stage2_space="camera_centred"), -1.0),
        (PLAIN(metric_rounds=1, stage2_space="aggregated"), -1.0),
        (AssociationConfig(delta=0.5), -1.0),
        (AssociationConfig(metric_rounds=3, metric_floor=0.1, delta=0.5), -1.0),
    ],
)
def test_association_against_brute_force(config, kappa):
    memory = random_memory(config=config)
    found = associate(memory, kappa, config)
    camera, modality, valid = (np.asarray(x) for x in (memory.camera, memory.modality, memory.valid))

    features = np.asarray(memory.feature, np.float64)
    if config.stage1_space == "camera_centred":
        features = centred(features, camera, valid)
    features = brute_force_metric(features, camera, valid, config.metric_rounds, config.metric_floor)
    np.testing.assert_allclose(found.within_space, features, atol=2e-5)
    index, weight = brute_force_mine(
        features @ features.T, camera, modality, valid, kappa, config.within_positives, config, cross=False
    )
    np.testing.assert_allclose(dense(found.within_index, found.within_weight), dense(index, weight), atol=1e-5)
    assert (index >= 0).any()

    if config.stage2_space == "raw":
        features = np.asarray(memory.feature, np.float64)
    else:
        own, features = features, features.copy()
        for k in np.flatnonzero((index >= 0).any(axis=1)):
            mixture = 0.5 * own[k] + 0.5 * weight[k] @ own[index[k]]
            features[k] = mixture / np.linalg.norm(mixture)
    if config.stage2_space == "centred":
        features = centred(features, modality, valid)
    if config.stage2_space == "camera_centred":
        features = centred(features, camera, valid)
    if config.stage2_space == "softmax_code":
        power = np.exp(20 * features @ features.T) * valid
        total = np.stack([power[:, camera == c].sum(axis=1) for c in camera], axis=1)
        code = power / np.maximum(total, 1e-12) * valid[:, None]
        features = code / np.maximum(np.linalg.norm(code, axis=1, keepdims=True), 1e-12)
    index, weight = brute_force_mine(
        features @ features.T, camera, modality, valid, kappa, config.cross_positives, config, cross=True
    )
    np.testing.assert_allclose(dense(found.cross_index, found.cross_weight), dense(index, weight), atol=1e-5)
    assert (index >= 0).any()


@pytest.mark.parametrize("kappa", [1.0, 0.0, -2.0])
def test_look_alikes_against_brute_force(kappa):
    memory = random_memory()
    index, threshold = association.look_alikes(memory.feature, memory.camera, memory.valid, kappa, count=5, block=16)
    features, camera = np.asarray(memory.feature[:60], np.float64), np.asarray(memory.camera[:60])
    similarity = np.where((camera[:, None] == camera) & ~np.eye(60, dtype=bool), features @ features.T, -np.inf)
    best = similarity.max(axis=1)
    np.testing.assert_allclose(threshold, best.mean() + kappa * best.std(), atol=1e-6)
    for k in range(60):
        near = [j for j in np.argsort(-similarity[k])[:5] if similarity[k, j] >= threshold - 1e-6]
        assert [j for j in index[k].tolist() if j >= 0] == near
    assert (np.asarray(index[60:]) == -1).all()


# Invariants ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, PLAIN(candidates_per_camera=2, stage2_space="raw")])
def test_padding_changes_no_bit(config):
    for small, large in (
        (toy_world.memory(8), toy_world.memory(16)),
        (random_memory(capacity=64, config=config), random_memory(capacity=128, config=config)),
    ):
        slots = small.capacity
        a, b = associate(small, -1.0, config), associate(large, -1.0, config)
        for name in ("within_index", "within_weight", "cross_index", "cross_weight", "look_alike_index"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name)[:slots], err_msg=name)
        for name in ("within_threshold", "cross_threshold", "look_alike_threshold"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        for name in ("within_index", "cross_index", "look_alike_index"):
            assert (np.asarray(getattr(b, name)[slots:]) == -1).all()


def test_permuting_slots_permutes_results():
    memory = random_memory()
    order = np.random.default_rng(1).permutation(memory.capacity)
    place = jnp.asarray(np.append(np.argsort(order), -1))  # where a slot went; −1 stays −1
    names = ("feature", "camera", "modality", "valid", "count", "concentration")
    shuffled = memory.replace(**{name: getattr(memory, name)[order] for name in names})
    a, b = associate(memory, -1.0, CONFIG), associate(shuffled, -1.0, CONFIG)
    for name in ("within_index", "cross_index", "look_alike_index"):
        np.testing.assert_array_equal(place[getattr(a, name)[order]], getattr(b, name), err_msg=name)
    for name in ("within_weight", "cross_weight"):
        np.testing.assert_allclose(getattr(a, name)[order], getattr(b, name), atol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, AssociationConfig()])
def test_rotating_all_features_changes_nothing(config):
    memory = random_memory()
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))
    rotated = memory.replace(feature=memory.feature @ jnp.asarray(rotation, jnp.float32))
    a, b = associate(memory, -1.0, config), associate(rotated, -1.0, config)
    for name in ("within_index", "cross_index", "look_alike_index"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name in ("within_weight", "cross_weight", "within_threshold", "cross_threshold"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=2e-5)


def test_what_a_camera_adds_to_every_prototype_hides_nobody():
    """A constant of each camera decides who is mined from plain prototypes, and nothing from centred ones."""
    memory = random_memory()
    constant = 0.5 * np.random.default_rng(3).normal(size=(7, 8))
    shifted = memory.feature + jnp.asarray(constant, jnp.float32)[memory.camera]
    shifted = memory.replace(feature=jnp.where(memory.valid[:, None], shifted, 0.0))
    for config, same in ((AssociationConfig(look_alikes=False), True), (PLAIN(look_alikes=False), False)):
        a, b = associate(memory, -1.0, config), associate(shifted, -1.0, config)
        names = ("within_index", "cross_index")
        assert all((getattr(a, name) == getattr(b, name)).all() for name in names) == same


def mine_random(scale=1.0, offset=0.0, kappa=-1.0, **changes):
    """Stage 1 on a table whose similarities were mapped to scale·s + offset; δ and T_w scale along."""
    memory = random_memory()
    config = PLAIN(
        delta=0.2 * scale, weight_temperature=0.05 * scale, candidates_per_camera=2, within_positives=16, **changes
    )
    index, similarity = association.camera_best(memory.feature, memory.camera, memory.valid, 6, 2)
    similarity = jnp.where(index >= 0, scale * similarity + offset, similarity)
    candidate = memory.modality[:, None] == memory.camera_modality
    candidate &= memory.camera[:, None] != jnp.arange(6)
    return association.mine(
        index, similarity, candidate, memory.modality, 2, memory.camera, kappa, config.within_positives, config
    )


@pytest.mark.parametrize(("scale", "offset"), [(0.5, 0.2), (2.0, -0.5), (0.3, 0.0)])
def test_dynamic_threshold_follows_an_affine_map(scale, offset):
    plain, mapped = mine_random(), mine_random(scale, offset)
    np.testing.assert_array_equal(plain.index, mapped.index)
    np.testing.assert_allclose(plain.weight, mapped.weight, atol=1e-4)
    fixed = {"threshold": "fixed", "fixed_threshold": 0.7}
    assert (mine_random(**fixed).index != mine_random(scale, offset, **fixed).index).any()


def test_lowering_kappa_only_adds_positives():
    before, sizes = None, []
    for kappa in (1.0, 0.5, 0.0, -0.5, -1.0, -2.0, -4.0):
        positives = {(k, j) for k, row in lists(mine_random(kappa=kappa).index).items() for j in row}
        assert before is None or before <= positives
        before = positives
        sizes.append(len(positives))
    assert sizes[0] < sizes[-1]


def test_the_best_pair_of_a_block_is_always_found():
    found = mine_random(kappa=100.0)
    assert len(lists(found.index)) >= 2


@pytest.mark.parametrize("space", ["camera_centred", "centred", "aggregated", "raw", "softmax_code"])
def test_lists_hold_what_they_may(space):
    config = PLAIN(stage2_space=space, candidates_per_camera=2, delta=1.0)
    memory = associate(random_memory(config=config), -3.0, config)
    camera, modality, valid = (np.asarray(x) for x in (memory.camera, memory.modality, memory.valid))

    def pairs(index):
        k, _ = np.nonzero(np.asarray(index) >= 0)
        j = np.asarray(index)[np.asarray(index) >= 0]
        assert len(k) and valid[j].all() and valid[k].all() and (j != k).all()
        return k, j

    k, j = pairs(memory.within_index)
    assert (camera[k] != camera[j]).all() and (modality[k] == modality[j]).all()
    k, j = pairs(memory.cross_index)
    assert (modality[k] != modality[j]).all()
    k, j = pairs(memory.look_alike_index)
    assert (camera[k] == camera[j]).all()
    for index, weight in (
        (memory.within_index, memory.within_weight),
        (memory.cross_index, memory.cross_weight),
    ):
        has = (np.asarray(index) >= 0).any(axis=1)
        np.testing.assert_allclose(np.asarray(weight).sum(axis=1), has.astype(float), atol=1e-6)
        assert (np.asarray(weight)[np.asarray(index) < 0] == 0).all()


def test_unreliable_slots_are_not_mined():
    memory = random_memory()
    limit = float(np.median(np.asarray(memory.concentration[:60])))
    found = associate(memory, -2.0, PLAIN(min_concentration=limit))
    mixed = set(np.flatnonzero(np.asarray(memory.concentration) < limit).tolist())
    for index in (found.within_index, found.cross_index):
        rows = lists(index)
        assert rows and not mixed & set(rows) and not mixed & {j for row in rows.values() for j in row}
    np.testing.assert_array_equal(found.valid, memory.valid)
    assert mixed & set(lists(found.look_alike_index))


def test_look_alikes_can_be_off():
    found = associate(random_memory(), 0.0, PLAIN(look_alikes=False))
    assert (np.asarray(found.look_alike_index) == -1).all()


def test_empty_memory_has_no_positives():
    memory = prototypes.empty_memory(toy_world.SLOT_CAMERA, toy_world.CAMERA_MODALITY, dim=2, capacity=8)
    for config in (CONFIG, PLAIN(stage2_space="softmax_code"), PLAIN(threshold="none")):
        found = associate(memory, 0.0, config)
        for leaf in jax.tree.leaves(found):
            assert np.isfinite(np.asarray(leaf, np.float64)).all()
        for index in (found.within_index, found.cross_index, found.look_alike_index):
            assert (np.asarray(index) == -1).all()


def test_one_compile_for_all_kappas_and_a_stable_type():
    traces = []

    @jax.jit
    def compiled(memory, kappa):
        traces.append(kappa)
        return associate(memory, kappa, CONFIG)

    memory = toy_world.memory()
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), memory)
    for kappa in (0.0, -0.5, -2.0):
        memory = compiled(memory, jnp.float32(kappa))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), memory) == shapes
    assert len(traces) == 1


def test_no_matrix_of_all_pairs():
    """At full size the work memory stays far below the K × K matrix."""
    slots, cameras = 10_240, 24
    memory = jax.eval_shape(
        lambda: prototypes.empty_memory(np.zeros(slots), [0] * 12 + [1] * 12, dim=64, capacity=slots)
    )
    assert memory.num_cameras == cameras
    analysis = jax.jit(associate, static_argnums=2).lower(memory, jnp.float32(0), CONFIG).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 4 * slots * slots / 2


def test_bad_settings_are_named():
    with refuses(ValueError, "stage2_space", "centered"):
        AssociationConfig(stage2_space="centered")
    with pytest.raises(ValueError, match="weight_temperature"):
        AssociationConfig(weight_temperature=0.0)
    with refuses(ValueError, "cross_positives", 0):
        AssociationConfig(cross_positives=0)
    with refuses(ValueError, "widths"):
        associate(toy_world.memory(cross_positives=3), 0.0, CONFIG)
