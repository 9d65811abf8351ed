"""Clusters against scikit-learn, scipy and plain loops; figures against scikit-learn."""

import jax
import jax.numpy as jnp
import k_reciprocal_reference as reference
import numpy as np
import pytest
from messages import refuses
from scipy.optimize import linear_sum_assignment
from sklearn import metrics as sklearn_metrics
from sklearn.cluster import DBSCAN

from jaxreid.retrieval import clustering


def graph_of(distance, eps, capacity=None):
    """The graph of a distance matrix, made with NumPy."""
    order = np.argsort(distance, axis=1, kind="stable")[:, :capacity]
    near = np.take_along_axis(distance, order, axis=1) <= eps
    count = (distance <= eps).sum(axis=1)
    return clustering.SparseGraph(
        jnp.asarray(np.where(near, order, -1), jnp.int32), jnp.asarray(count, jnp.int32), jnp.int32(0)
    )


def edges_of(graph):
    index = np.asarray(graph.index)
    found = np.zeros((len(index), len(index) + 1), bool)
    np.put_along_axis(found, np.where(index < 0, len(index), index), True, axis=1)
    return found[:, :-1]


# ----------------------------------------------------------------------------------------------------- DBSCAN


def test_golden_example():
    assert clustering.cluster(reference.GOLDEN, 0.6, min_samples=2, k1=4, k2=2).tolist() == [0, 0, 0, 1, 1, 1]
    assert clustering.cluster(reference.GOLDEN, 0.6, min_samples=4, k1=4, k2=2).tolist() == [-1] * 6


@pytest.mark.parametrize("spread", [0.3, 0.6])
def test_labels_equal_scikit_learn(spread):
    features, _ = reference.people(np.random.default_rng(7), 200, spread=spread)
    _, distance = reference.clustering_distance(features, 20, 6)
    seen = set()
    for eps, min_samples in ((0.6, 4), (0.5, 4), (0.3, 2), (0.7, 8)):
        # A distance at the threshold could fall on either side by rounding.
        assert np.abs(distance - eps).min() > 1e-6
        expected = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(distance)
        np.testing.assert_array_equal(clustering.cluster(features, eps, min_samples, k1=20), expected)
        seen |= {int(expected.max()), int(expected.min())}
    assert len(seen) > 2


def test_graph_lists_the_neighbours():
    features, _ = reference.people(np.random.default_rng(5), 200)
    _, distance = reference.clustering_distance(features, 20, 6)
    graph = clustering.jaccard_neighbours(features, 0.6, k1=20)
    np.testing.assert_array_equal(graph.count, (distance <= 0.6).sum(axis=1))
    np.testing.assert_array_equal(edges_of(graph), distance <= 0.6)
    # With too little room the nearest stay, and the count tells of all.
    short = clustering.jaccard_neighbours(features, 0.6, k1=20, capacity=4)
    np.testing.assert_array_equal(short.count, graph.count)
    assert int(short.count.max()) > 4
    for row in range(200):
        kept = np.asarray(short.index[row])
        kept, left = kept[kept >= 0], np.setdiff1d(np.flatnonzero(distance[row] <= 0.6), short.index[row])
        assert not len(left) or distance[row, kept].max() <= distance[row, left].min() + 1e-6


def test_short_lists_are_made_again_with_more_room():
    features, _ = reference.people(np.random.default_rng(5), 200)
    assert int(clustering.jaccard_neighbours(features, 0.6, k1=20, capacity=4).count.max()) > 4
    expected = clustering.cluster(features, 0.6, k1=20)
    np.testing.assert_array_equal(clustering.cluster(features, 0.6, k1=20, capacity=4), expected)
    assert expected.max() >= 1


def random_distances(rng, count):
    points = rng.normal(size=(count, 2)) * 3
    return np.linalg.norm(points[:, None] - points, axis=2)


@pytest.mark.parametrize("seed", range(4))
def test_dbscan_of_any_distance_equals_scikit_learn(seed):
    distance = random_distances(np.random.default_rng(seed), 120)
    for eps, min_samples in ((0.5, 3), (0.9, 5), (1.5, 12), (0.1, 1)):
        expected = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(distance)
        np.testing.assert_array_equal(clustering.dbscan(graph_of(distance, eps), min_samples), expected)


def test_dbscan_at_its_extremes():
    distance = random_distances(np.random.default_rng(9), 40)
    assert np.all(np.asarray(clustering.dbscan(graph_of(distance, 1e-9), 2)) == clustering.NOISE)
    assert np.all(np.asarray(clustering.dbscan(graph_of(distance, 1e9), 40)) == 0)
    np.testing.assert_array_equal(clustering.dbscan(graph_of(distance, 1e-9), 1), np.arange(40))  # all alone, all core


def test_a_border_row_belongs_to_the_first_cluster_that_reaches_it():
    # Cores 0, 1 and 2, 3 on a line, row 4 between them and no core.
    place = np.array([0.0, 0.5, 3.5, 4.0, 2.0])
    distance = np.abs(place[:, None] - place)
    graph = graph_of(distance, 1.5)
    assert np.asarray(graph.count).tolist() == [2, 3, 3, 2, 3]
    expected = DBSCAN(eps=1.5, min_samples=3, metric="precomputed").fit_predict(distance)
    np.testing.assert_array_equal(clustering.dbscan(graph, 3), expected)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_long_chain_is_one_component(shuffled):
    rng = np.random.default_rng(0)
    order = rng.permutation(500) if shuffled else np.arange(500)
    index = np.full((500, 2), -1, np.int32)
    index[order[:-1], 0] = order[1:]  # edges in one direction only
    member = np.ones(500, bool)
    assert np.all(np.asarray(clustering.connected_components(index, member)) == 0)
    # A row that is no member breaks the chain, whatever edges lead there.
    member[order[200]] = False
    root = np.asarray(clustering.connected_components(index, member))
    assert np.all(root[order[:200]] == order[:200].min()) and np.all(root[order[201:]] == order[201:].min())
    assert root[order[200]] == 500


def test_clustering_compiles_once_for_other_features_and_labels():
    traces = []

    @jax.jit
    def labels(features):
        traces.append(1)
        return clustering.dbscan(clustering.jaccard_graph(features, 0.6, 10, 3, capacity=32, width=64), 3)

    found = [np.asarray(labels(reference.people(np.random.default_rng(s), 80)[0])) for s in range(3)]
    assert len(traces) == 1
    assert len({labels.tobytes() for labels in found}) == 3


# -------------------------------------------------------------------------------------------------- bad input


def test_bad_features_are_named():
    features, _ = reference.people(np.random.default_rng(0), 30)
    for bad, message in ((np.nan, "row 7"), (np.inf, "row 7"), (0.0, "row 7")):
        broken = features.copy()
        broken[7] = bad
        for function in (clustering.jaccard_neighbours, clustering.cluster):
            with refuses(ValueError, "1 of 30", message):
                function(broken, 0.6)
    with refuses(ValueError, "[N, D]"):
        clustering.cluster(features[0], 0.6)
    with refuses(ValueError, "row"):
        clustering.cluster(features[:0], 0.6)
    with refuses(ValueError, "eps", 1.5):
        clustering.jaccard_neighbours(features, 1.5)


def test_a_row_that_does_not_fit_is_an_error():
    features, _ = reference.people(np.random.default_rng(3), 200)
    with refuses(ValueError, "width", 8):
        clustering.jaccard_neighbours(features, 0.6, k1=20, width=8)


# ---------------------------------------------------------------------------------------------------- k-means


def test_k_means_is_lloyds_iteration():
    features, _ = reference.people(np.random.default_rng(0), 120, dim=5)
    unit = reference.unit_rows(features)
    centres = np.asarray(clustering.spherical_k_means(features, jax.random.PRNGKey(0), 6, 0).centres, np.float64)
    assert np.abs(unit[:, None] - centres).max(axis=2).min(axis=0).max() < 1e-6  # k-means++ starts from rows
    for _ in range(7):
        label = np.argmax(unit @ centres.T, axis=1)
        for k in range(6):
            if np.any(label == k):
                mean = unit[label == k].mean(axis=0)
                centres[k] = mean / np.linalg.norm(mean)
    found = clustering.spherical_k_means(features, jax.random.PRNGKey(0), 6, 7)
    np.testing.assert_allclose(found.centres, centres, atol=1e-5)
    np.testing.assert_array_equal(found.label, np.argmax(unit @ centres.T, axis=1))
    assert float(found.similarity) == pytest.approx((unit @ centres.T).max(axis=1).mean(), abs=1e-6)


def test_k_means_finds_separate_groups():
    rng = np.random.default_rng(1)
    who = np.repeat(np.arange(5), 20)
    features = np.eye(5)[who] + 0.05 * rng.normal(size=(100, 5))
    found = clustering.spherical_k_means(features, jax.random.PRNGKey(3), 5)
    assert sklearn_metrics.adjusted_rand_score(who, found.label) == 1


def test_k_means_of_fewer_distinct_rows_than_centres():
    features = np.repeat(np.eye(2, 3, dtype=np.float32), 10, axis=0)
    found = clustering.spherical_k_means(features, jax.random.PRNGKey(0), 4)
    assert np.isfinite(np.asarray(found.centres)).all()
    assert float(found.similarity) == pytest.approx(1)
    assert len(np.unique(np.asarray(found.label)[:10])) == 1


# ------------------------------------------------------------------------------------------------- assignment


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (5, 5), (20, 30), (30, 20), (40, 40)])
def test_assignment_is_scipys(rows, columns):
    cost = np.random.default_rng(rows + columns).normal(size=(rows, columns)).astype(np.float32)
    found = np.asarray(clustering.linear_assignment(cost))
    expected = np.full(rows, -1)
    row, column = linear_sum_assignment(cost)
    expected[row] = column
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("used", "others"), [(60, 60), (60, 20), (20, 60), (0, 5), (256, 256)])
def test_assignment_of_those_that_take_part(used, others):
    """Unused slots cost next to nothing: 256 of them were once searched without end."""
    rng = np.random.default_rng(used)
    cost = rng.random((256, 256), np.float32)
    rows, columns = (np.isin(np.arange(256), rng.permutation(256)[:count]) for count in (used, others))
    cost[~rows] = np.nan  # what takes no part is not looked at
    found = np.asarray(clustering.linear_assignment(cost, rows, columns))
    row, column = np.flatnonzero(rows), np.flatnonzero(columns)
    best = linear_sum_assignment(cost[np.ix_(row, column)])
    expected = np.full(256, -1)
    expected[row[best[0]]] = column[best[1]]
    np.testing.assert_array_equal(found, expected)


def test_assignment_of_equal_costs_is_one_to_one():
    found = np.asarray(clustering.linear_assignment(np.zeros((7, 9), np.float32)))
    assert len(set(found.tolist())) == 7 and found.min() >= 0
    # Whole numbers with many ties: the total is still the least.
    cost = np.random.default_rng(0).integers(0, 3, size=(12, 12)).astype(np.float32)
    found = np.asarray(clustering.linear_assignment(cost))
    assert cost[np.arange(12), found].sum() == cost[linear_sum_assignment(cost)].sum()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
def test_assignment_of_costs_that_are_none(value):
    cost = np.array([[value, 1, 2], [1, 2, 3], [3, 1, value]], np.float32)
    with refuses(ValueError, "2 costs", "row 0, column 0"):
        clustering.linear_assignment(cost)
    assert sorted(jax.jit(clustering.linear_assignment)(cost).tolist()) == [0, 1, 2]
    assert sorted(jax.jit(clustering.linear_assignment)(np.full((3, 3), value)).tolist()) == [0, 1, 2]


# ---------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_figures_equal_scikit_learn(noise):
    rng = np.random.default_rng(0)
    truth, labels = rng.integers(0, 9, 200) * 7, rng.integers(0, 12, 200)
    labels = np.where(rng.random(200) < 0.6, truth // 7, labels)
    labels[rng.random(200) < noise] = -1
    alone = np.where(labels < 0, 1000 + np.arange(200), labels)
    found = clustering.cluster_quality(labels, truth)
    assert found["ari"] == pytest.approx(sklearn_metrics.adjusted_rand_score(truth, alone), abs=1e-9)
    assert found["nmi"] == pytest.approx(sklearn_metrics.normalized_mutual_info_score(truth, alone), abs=1e-9)
    (_, split), (joined, both) = sklearn_metrics.pair_confusion_matrix(truth, alone)
    assert found["precision"] == pytest.approx(both / (both + split) if both + split else 0)
    assert found["recall"] == pytest.approx(both / (both + joined))
    assert found["clusters"] == len(np.unique(labels[labels >= 0]))
    assert found["covered"] == pytest.approx(np.mean(labels >= 0))


def test_figures_of_a_perfect_and_of_one_cluster():
    truth = np.repeat(np.arange(4), 5)
    assert clustering.cluster_quality(3 - truth, truth) == {
        "ari": 1,
        "nmi": 1,
        "precision": 1,
        "recall": 1,
        "clusters": 4,
        "covered": 1,
    }
    one = clustering.cluster_quality(np.zeros(20, int), truth)
    assert (one["ari"], one["nmi"], one["recall"], one["precision"]) == (0, 0, 1, pytest.approx(40 / 190))
