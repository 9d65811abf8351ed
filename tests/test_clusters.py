"""Cluster memories, matchings and losses against plain loops and scipy."""

import jax
import jax.numpy as jnp
import k_reciprocal_reference as reference
import numpy as np
import pytest
from messages import refuses
from scipy.optimize import linear_sum_assignment

from jaxreid.data.samplers import Columns, LabelSampler
from jaxreid.losses.cluster import hard_negative_contrast, slot_contrast
from jaxreid.memory import clusters


def test_codes_are_numbered_in_order():
    code = jnp.array([7, -1, 3, 7, 100, -1, 3], jnp.int32)
    assert clusters.consecutive(code).tolist() == [1, -1, 0, 1, 2, -1, 0]
    assert clusters.consecutive(jnp.full(3, -1, jnp.int32)).tolist() == [-1, -1, -1]


def test_slots_hold_the_mean_of_their_clips():
    rng = np.random.default_rng(0)
    z = reference.unit_rows(rng.normal(size=(13, 4))).astype(np.float32)
    tracklet = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, -1], np.int32)  # the last row is padding
    label = np.array([1, 0, 1, -1, 3, 3], np.int32)
    camera, modality = np.array([5, 6, 5, 6, 7, 7], np.int32), np.array([0, 0, 0, 0, 1, 1], np.int32)
    memory = clusters.fill(clusters.empty_memory(6, 4), z, tracklet, tracklet >= 0, label, label + 10, camera, modality)
    assert memory.valid.tolist() == [True, True, False, True, False, False]
    assert memory.modality.tolist() == [0, 0, -1, 1, -1, -1]
    assert memory.camera.tolist() == [6, 5, -1, 7, -1, -1]
    assert memory.cluster.tolist() == [10, 11, -1, 13, -1, -1]
    for slot, rows in ((0, [2, 3]), (1, [0, 1, 4, 5]), (3, [8, 9, 10, 11])):
        mean = z[rows].mean(axis=0)
        np.testing.assert_allclose(memory.feature[slot], mean / np.linalg.norm(mean), atol=1e-6)
    assert not np.any(np.asarray(memory.feature)[[2, 4, 5]])


def test_pairs_are_counted():
    rng = np.random.default_rng(1)
    one, other = (reference.unit_rows(rng.normal(size=(n, 3))).astype(np.float32) for n in (20, 30))
    label, other_label = rng.integers(-1, 6, 20), rng.integers(-1, 6, 30)
    expected = np.zeros((4, 4))
    for i in range(20):
        for j in range(30):
            if 0 <= label[i] < 4 and 0 <= other_label[j] < 4 and one[i] @ other[j] >= 0.5:
                expected[label[i], other_label[j]] += 1
    assert expected.max() > 1
    found = clusters.pair_counts(*map(jnp.asarray, (one, other, label, other_label)), 4, 0.5)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_matching_takes_the_largest_first(seed):
    value = np.random.default_rng(seed).integers(0, 5, size=(7, 9)).astype(np.float32)  # many ties
    left, expected = value.copy(), np.full(7, -1)
    while left.max() > 0:
        row, column = np.unravel_index(left.argmax(), left.shape)
        expected[row] = column
        left[row], left[:, column] = 0, 0
    found = clusters.greedy_matching(jnp.asarray(value))
    np.testing.assert_array_equal(found, expected)
    back = clusters.inverse(found, 9)
    assert [int(back[c]) for c in found if c >= 0] == [r for r, c in enumerate(found.tolist()) if c >= 0]
    assert (np.asarray(back) >= 0).sum() == (expected >= 0).sum()


@pytest.mark.parametrize(("ones", "others"), [(6, 6), (9, 4), (4, 9), (3, 11), (0, 5)])
def test_bipartite_matching_costs_least_in_both_rounds(ones, others):
    rng = np.random.default_rng(ones)
    features = [reference.unit_rows(rng.normal(size=(12, 5))).astype(np.float32) for _ in range(2)]
    valid = []
    for side, count in zip(features, (ones, others), strict=True):
        rows = np.sort(rng.permutation(12)[:count])
        valid.append(np.isin(np.arange(12), rows))
        side[~valid[-1]] = 0
    cost = np.exp(-features[0].astype(np.float64) @ features[1].T)
    expected = [np.full(12, -1), np.full(12, -1)]
    rows, columns = (np.flatnonzero(side) for side in valid)
    for _ in range(2):
        first = linear_sum_assignment(cost[np.ix_(rows, columns)])
        for row, column in zip(rows[first[0]], columns[first[1]], strict=True):
            expected[0][row] = column if expected[0][row] < 0 else expected[0][row]
            expected[1][column] = row if expected[1][column] < 0 else expected[1][column]
        left = [np.flatnonzero(v & (e < 0)) for v, e in zip(valid, expected, strict=True)]
        rows, columns = (own if len(own) else np.flatnonzero(v) for own, v in zip(left, valid, strict=True))
    found = clusters.bipartite_matching(*(jnp.asarray(x) for pair in zip(features, valid, strict=True) for x in pair))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_matching_ends_with_features_that_are_not_finite():
    features = jnp.full((12, 5), jnp.nan)
    slots = jnp.arange(12)
    one, other = jax.jit(clusters.bipartite_matching)(features, slots < 7, features, slots < 4)
    assert (one >= 0).sum() >= 4 and (other >= 0).sum() == 4


def test_matched_slots_are_pulled_together():
    memory = clusters.empty_memory(4, 2).replace(
        feature=jnp.array([[1.0, 0], [0, 1], [0, 1], [1, 0]]),
        modality=jnp.array([0, 0, 1, 1]),
        partner=jnp.array([2, -1, 0, -1]),
    )
    found = clusters.pull_together(memory, 0.1, 0).feature
    np.testing.assert_allclose(found[0], np.array([0.1, 0.9]) / np.hypot(0.1, 0.9), atol=1e-6)
    np.testing.assert_array_equal(found[1:], memory.feature[1:])


def test_slot_contrast_is_cross_entropy():
    rng = np.random.default_rng(2)
    logits, target = rng.normal(size=(5, 8)) * 4, np.array([3, -1, 0, 7, 2])
    considered = rng.random((5, 8)) < 0.5
    values = []
    for row, slot in enumerate(target):
        if slot >= 0:
            others = [logits[row, j] for j in range(8) if considered[row, j] or j == slot]
            values.append(np.log(np.exp(others).sum()) - logits[row, slot])
    found = slot_contrast(jnp.asarray(logits), jnp.asarray(target), jnp.asarray(considered))
    assert float(found) == pytest.approx(np.mean(values), abs=1e-6)
    nothing = slot_contrast(jnp.asarray(logits), jnp.full(5, -1), jnp.asarray(considered))
    assert float(nothing) == 0


@pytest.mark.parametrize("hardest", [1, 3, 50])
def test_hard_negative_contrast(hardest):
    rng = np.random.default_rng(3)
    logits, kind = rng.normal(size=(6, 10)) * 3, rng.integers(0, 3, size=(6, 10))
    kind[2][kind[2] == 1] = 0  # no positive there
    values = []
    for row in range(6):
        positive, negative = logits[row][kind[row] == 1], np.sort(logits[row][kind[row] == 2])[::-1][:hardest]
        if len(positive):
            values.append(np.log(np.exp(np.concatenate([positive, negative])).sum()) - positive.mean())
    assert len(values) < 6

    def loss(x):
        return hard_negative_contrast(x, jnp.asarray(kind == 1), jnp.asarray(kind == 2), hardest)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    assert float(value) == pytest.approx(np.mean(values), abs=1e-5)
    assert np.isfinite(gradient).all() and not np.any(np.asarray(gradient)[2])


def test_sampler_draws_a_fixed_number_of_batches_without_noise():
    labels, modality = np.array([0, 0, -1, 1, 1, 2, -1, 2]), np.array([0, 0, 0, 0, 0, 1, 1, 1])
    columns = Columns(modality, *np.zeros((3, 8), np.int64))
    tracklet, _ = LabelSampler(num_labels=2, num_instances=2, parts=1, steps=7).draw(
        labels, columns, np.random.default_rng(0)
    )
    assert tracklet.shape == (7, 8)
    assert set(tracklet.reshape(-1)) == {0, 1, 3, 4, 5, 7}
    with refuses(ValueError, "modality 1", 3):
        LabelSampler(2, 2, 1).draw(np.where(modality == 1, -1, labels), columns, np.random.default_rng(0))
