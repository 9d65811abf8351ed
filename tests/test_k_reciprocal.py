"""The sparse k-reciprocal encoding against the same written with dense matrices, and its golden example."""

import functools

import jax
import jax.numpy as jnp
import k_reciprocal_reference as reference
import numpy as np
import pytest

from jaxreid.retrieval import k_reciprocal
from jaxreid.retrieval.neighbours import nearest_neighbours


def encode(features, k1, k2, width=128):
    unit = jnp.asarray(reference.unit_rows(features), jnp.float32)
    index = nearest_neighbours(unit, unit, k1).index
    return k_reciprocal.encode(unit, index, k1, min(round(k1 / 2) + 1, k1), k2, width, 3 * width)


def dense(encoding):
    rows = len(encoding.column)
    weights = np.zeros((rows, rows + 1))
    np.put_along_axis(weights, np.asarray(encoding.column), np.asarray(encoding.value), axis=1)
    return weights[:, :rows]


def shared(encoding, numbers, chunk=0):
    lists = k_reciprocal.inverted_lists(encoding)
    return jax.jit(functools.partial(k_reciprocal.shared_weight, chunk=chunk))(encoding, lists, jnp.asarray(numbers))


def distances(encoding):
    return np.asarray(k_reciprocal.jaccard_distance(shared(encoding, np.arange(len(encoding.column)))))


def test_golden_example():
    # Neighbours by the angles themselves: rounding would break the ties of 5 and 85 degrees one way or the other.
    index = reference.ranking(np.abs(np.subtract.outer(reference.ANGLES, reference.ANGLES)))[:, :4]
    encoding = k_reciprocal.encode(jnp.asarray(reference.GOLDEN), jnp.asarray(index), 4, 3, 2)
    weights = dense(encoding)
    np.testing.assert_allclose(weights[:2], [[0.3350, 0.3350, 0.3300, 0, 0, 0]] * 2, atol=5e-5)
    np.testing.assert_allclose(weights[2], [0.3164, 0.3211, 0.3210, 0.0415, 0, 0], atol=5e-5)
    np.testing.assert_allclose(weights[[3, 5]], weights[[2, 0], ::-1], atol=1e-6)
    found = distances(encoding)
    for pairs, value in (
        ([(0, 1)], 0),
        ([(0, 2), (1, 2)], 0.0797),
        ([(2, 3)], 0.9567),
        ([(1, 3), (0, 3), (2, 5)], 0.9788),
        ([(0, 5)], 1),
    ):
        for i, j in pairs:
            assert found[i, j] == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize(("count", "k1", "k2", "dim"), [(200, 20, 6, 8), (90, 7, 1, 4), (5, 5, 3, 3)])
def test_equals_the_dense_form(count, k1, k2, dim):
    features, _ = reference.people(np.random.default_rng(count), count, dim=dim)
    encoding = encode(features, k1, k2)
    weights, distance = reference.clustering_distance(features, k1, k2)
    assert int(encoding.lost.max()) == 0
    np.testing.assert_allclose(dense(encoding), weights, atol=1e-6)
    np.testing.assert_allclose(distances(encoding), distance, atol=2e-6)


def test_invariants():
    features, _ = reference.people(np.random.default_rng(1), 200)
    encoding = encode(features, 20, 6)
    columns = np.asarray(encoding.column)
    assert np.all((np.diff(columns, axis=1) > 0) | (columns[:, 1:] == 200))  # ascending, then empty
    np.testing.assert_allclose(np.asarray(encoding.value).sum(axis=1), 1, atol=1e-6)
    found = distances(encoding)
    np.testing.assert_allclose(np.diag(found), 0, atol=1e-6)
    np.testing.assert_allclose(found, found.T, atol=1e-6)
    assert found.min() >= 0 and found.max() <= 1
    apart = ~np.any((dense(encoding)[:, None] > 0) & (dense(encoding)[None] > 0), axis=2)
    assert apart.any() and np.all(found[apart] == 1)


@pytest.mark.parametrize("chunk", [7, 64, 100_000])
def test_segments_may_be_added_up_in_chunks_of_any_size(chunk):
    features, _ = reference.people(np.random.default_rng(2), 200)
    encoding = encode(features, 20, 6)
    weights = dense(encoding)
    numbers = np.array([0, 199, 3, 3])
    expected = np.minimum(weights[numbers, None], weights[None]).sum(axis=2)
    np.testing.assert_allclose(shared(encoding, numbers, chunk), expected, atol=1e-6)


@pytest.mark.parametrize("rows", [50, 2**31 - 100])
def test_order_of_columns(rows):
    """One key of column and place where it has room, and the sort of pairs where there are too many rows for it."""
    column = np.random.default_rng(0).integers(0, 51, (3, 70))
    ordered, place = k_reciprocal._order(jnp.asarray(column, jnp.int32), rows)
    expected = np.argsort(column, axis=1, kind="stable")
    np.testing.assert_array_equal(place, expected)
    np.testing.assert_array_equal(ordered, np.take_along_axis(column, expected, axis=1))


@pytest.mark.parametrize("cached", [1, 300, 1 << 19])
def test_blocks_of_any_size_give_the_same(cached, monkeypatch):
    monkeypatch.setattr(k_reciprocal, "CACHED", cached)
    features, _ = reference.people(np.random.default_rng(5), 60)
    unit = jnp.asarray(reference.unit_rows(features), jnp.float32)
    index = nearest_neighbours(unit, unit, 8).index
    encoding = k_reciprocal.encode.__wrapped__(unit, index, 8, 5, 3, 32, 96)
    lists = k_reciprocal.inverted_lists.__wrapped__(encoding)
    weights, distance = reference.clustering_distance(features, 8, 3)
    np.testing.assert_allclose(dense(encoding), weights, atol=1e-6)
    found = k_reciprocal.jaccard_distance(k_reciprocal.shared_weight(encoding, lists, jnp.arange(60)))
    np.testing.assert_allclose(found, distance, atol=2e-6)
    # Every entry stands once in the list of its column, in the order of the rows.
    for column in range(60):
        held = slice(int(lists.start[column]), int(lists.start[column] + lists.segments[column]))
        row, value = np.asarray(lists.row[held]).ravel(), np.asarray(lists.value[held]).ravel()
        np.testing.assert_array_equal(row[value > 0], np.flatnonzero(dense(encoding)[:, column]))


def test_mutual_neighbours():
    # 0 and 1 have each other; 2 has 0 but is not among its two nearest.
    index = jnp.array([[0, 1], [1, 0], [2, 0]])
    np.testing.assert_array_equal(k_reciprocal.mutual(index, 2), [[True, True], [True, True], [True, False]])


def test_rows_too_long_are_counted():
    features, _ = reference.people(np.random.default_rng(3), 200)
    needed = (reference.clustering_distance(features, 20, 1)[0] > 0).sum(axis=1)
    encoding = encode(features, 20, 1, width=16)
    assert needed.max() > 16
    np.testing.assert_array_equal(encoding.lost, np.maximum(needed - 16, 0))


def test_equal_rows_are_at_distance_zero():
    features = np.repeat(np.eye(8, dtype=np.float32), 4, axis=0)
    found = distances(encode(features, 4, 2))
    same = np.arange(32)[:, None] // 4 == np.arange(32) // 4
    np.testing.assert_allclose(found, np.where(same, 0, 1), atol=1e-6)
