"""Exact nearest neighbours against NumPy's stable sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreid.retrieval.neighbours import map_rows, nearest_neighbours, top_k


@pytest.mark.parametrize(("columns", "k"), [(1, 1), (20, 20), (37, 1), (200, 10), (1000, 20), (1001, 3)])
def test_top_k_is_a_stable_sort(columns, k):
    rng = np.random.default_rng(columns)
    for values in (
        rng.normal(size=(5, columns)),
        rng.integers(0, 4, size=(5, columns)),  # ties everywhere, most of them across the edge of the k
        np.zeros((2, columns)),
        np.where(rng.random((3, columns)) < 0.5, 0.0, -0.0),  # equal, whatever their sign
    ):
        values = values.astype(np.float32)
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]
        found, index = top_k(jnp.asarray(values), k)
        np.testing.assert_array_equal(index, order)
        np.testing.assert_array_equal(found, np.take_along_axis(values, order, axis=1))


def test_top_k_of_infinite_and_whole_numbers():
    values = np.full((2, 300), -np.inf, np.float32)
    values[0, [7, 299]] = 1, 2
    found, index = top_k(jnp.asarray(values), 4)
    np.testing.assert_array_equal(found, [[2, 1, -np.inf, -np.inf], [-np.inf] * 4])
    np.testing.assert_array_equal(index, [[299, 7, 0, 1], [0, 1, 2, 3]])  # never a column that is not there
    whole = np.random.default_rng(0).integers(-9, 9, size=(2, 3, 200)).astype(np.int32)
    np.testing.assert_array_equal(top_k(jnp.asarray(whole), 5)[1], np.argsort(-whole, -1, kind="stable")[..., :5])


@pytest.mark.parametrize("block", [None, 1, 7, 50, 64])
def test_nearest_neighbours_in_blocks_of_any_size(block):
    rng = np.random.default_rng(0)
    query, gallery = (rng.integers(-3, 4, size=(n, 6)).astype(np.float32) for n in (50, 211))
    gallery[100:] = gallery[:111]  # every row twice: whole numbers, so that their similarities are equal exactly
    similarity = query @ gallery.T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :9]
    # Under jit, inner products of any rows are compared.
    found = jax.jit(nearest_neighbours, static_argnums=(2, 3))(query, gallery, 9, block)
    np.testing.assert_array_equal(found.index, order)
    np.testing.assert_array_equal(found.similarity, np.take_along_axis(similarity, order, axis=1))
    assert found.index.dtype == jnp.int32


@pytest.mark.parametrize("value", [3.0, 0.0, np.nan])
def test_rows_that_are_no_unit_rows_are_refused(value):
    unit = np.eye(5, dtype=np.float32)
    other = unit.copy()
    other[3] *= value
    assert nearest_neighbours(unit, unit, 1).index[:, 0].tolist() == [0, 1, 2, 3, 4]
    for sides, what in (((other, unit), "query"), ((unit, other), "gallery")):
        with pytest.raises(ValueError, match=f"1 of 5 {what} rows.* row 3 .*unit_rows"):
            nearest_neighbours(*sides, 2)


def test_map_rows_cuts_the_last_block():
    seen = map_rows(lambda rows: {"row": rows, "square": rows[:, None] ** 2}, 10, 4)
    np.testing.assert_array_equal(seen["row"], np.arange(10))
    np.testing.assert_array_equal(seen["square"], np.arange(10)[:, None] ** 2)
