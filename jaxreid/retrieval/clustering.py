"""Clusters without labels: DBSCAN on the k-reciprocal Jaccard distance, k-means, assignment; figures against labels.

Sizes are static: a row has a fixed number of places for neighbours and the number of clusters is data, so that labels
that change every epoch never cause a new compile.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from optax.assignment import hungarian_algorithm

from jaxreid.arrays import unit_rows
from jaxreid.errors import UserError
from jaxreid.retrieval import k_reciprocal
from jaxreid.retrieval.distances import check_rows
from jaxreid.retrieval.neighbours import map_rows, nearest_neighbours, top_k
from jaxreid.shapes import AnyArray, Array, Bool, Float, Int, Real, Scalar

NOISE = -1
FEW = 32
LARGEST_COST = 1e30  # sums of larger ones overflow, and a search among infinite ones would not end


class SparseGraph(NamedTuple):
    """The rows within a distance of each: `index`, −1 where there is none; `count` of all of them, the row itself and
    those beyond the capacity counted; `lost`, the most entries that a row of the encoding had no place for (0:
    distances are exact)."""

    index: Int[Array, "rows capacity"]
    count: Int[Array, " rows"]
    lost: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("k1", "k2", "capacity", "width"))
def jaccard_graph(
    features: Float[AnyArray, "rows dim"], eps: Scalar, k1: int = 30, k2: int = 6, capacity: int = 128, width: int = 128
) -> SparseGraph:
    """`jaccard_neighbours` as a pure function: nothing is checked, what did not fit is in `count` and `lost`."""
    features = unit_rows(features)
    rows = features.shape[0]
    k1, k2, capacity = min(k1, rows), min(k2, rows), min(capacity, rows)
    index = nearest_neighbours(features, features, k1).index
    # The ancestors' slice [:k + 1] of a list of k1 entries: the half neighbourhood has one more than half of k1.
    k_half = min(round(k1 / 2) + 1, k1)
    encoding = k_reciprocal.encode(features, index, k1, k_half, k2, width, 3 * width)
    lists = k_reciprocal.inverted_lists(encoding)

    def of_block(numbers: Array) -> tuple[Array, Array]:
        distance = k_reciprocal.jaccard_distance(k_reciprocal.shared_weight(encoding, lists, numbers))
        count = jnp.sum(distance <= eps, axis=1, dtype=jnp.int32)

        def nearest(k: int) -> Array:
            negative, index = top_k(-distance, k)
            index = jnp.where(negative >= -eps, index, -1).astype(jnp.int32)
            return jnp.pad(index, ((0, 0), (0, capacity - k)), constant_values=-1)

        # Short lists take a fraction of the time, and most blocks have no others.
        few = min(FEW, capacity)
        index = jax.lax.cond(count.max() <= few, functools.partial(nearest, few), functools.partial(nearest, capacity))
        return index, count

    neighbours, count = map_rows(of_block, rows, k_reciprocal.block_rows(rows, rows))
    return SparseGraph(neighbours, count, encoding.lost.max())


def jaccard_neighbours(
    features: AnyArray, eps: float, k1: int = 30, k2: int = 6, capacity: int = 128, width: int = 128
) -> SparseGraph:
    """Rows within k-reciprocal Jaccard distance `eps` of each other, as unsupervised re-identification clusters them.

    Args:
      features: f32[N, D]; made unit rows.
      eps: largest distance, in (0, 1).
      k1, k2: neighbourhood and local query expansion, at most N.
      capacity: neighbours kept per row, the nearest; `count` counts all.
      width: entries per row of the encoding before the expansion (three times as many after it).

    Raises:
      UserError: features that are not finite or zero, `eps` out of range, or a row of the encoding that does not fit
        `width`.
    """
    if not 0 < eps < 1:
        raise UserError(f"jaccard_neighbours: eps={eps} is not between 0 and 1, where Jaccard distances lie")
    graph = jaccard_graph(_checked(features), eps, k1, k2, capacity, width)
    if lost := int(graph.lost):
        raise UserError(f"jaccard_neighbours: a row has {lost} entries more than width={width} holds; raise width")
    return graph


def _checked(features: AnyArray) -> Float[np.ndarray, "rows dim"]:
    host = np.asarray(features, np.float32)
    if host.ndim != 2 or not len(host):
        raise UserError(f"features must be [N, D] with at least one row, got {host.shape}")
    check_rows(host, "clustered", "cosine")
    return host


# ----------------------------------------------------------------------------------------------------- DBSCAN


def connected_components(index: Int[AnyArray, "rows edges"], member: Bool[AnyArray, " rows"]) -> Int[Array, " rows"]:
    """The smallest member that each member is connected to; N for rows that are no members.

    Args:
      index: edges from each row, −1 where there is none; they count in both directions.
      member: rows that pass connections on; edges of others count for nothing.
    """
    rows, edges = index.shape
    target = jnp.where((index >= 0) & member[:, None] & member[jnp.maximum(index, 0)], index, rows)
    flat, numbers = target.reshape(-1), jnp.arange(rows, dtype=jnp.int32)

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        root, _ = state
        padded = jnp.append(root, rows)
        # Each row, its neighbours and its root take the smallest root among them (hooking).
        best = jnp.minimum(root, padded[target].min(axis=1, initial=rows))
        found = padded.at[flat].min(jnp.repeat(best, edges))
        found = found.at[jnp.where(member, root, rows)].min(best)[:rows]
        found = jnp.where(member, jnp.minimum(found, best), rows)
        shortcut = jnp.append(found, rows)[found]  # pointer jumping
        shortcut = jnp.append(shortcut, rows)[shortcut]
        return shortcut, jnp.any(shortcut != root)

    start = jnp.where(member, numbers, rows)
    return jax.lax.while_loop(lambda state: state[1], step, (start, jnp.bool_(True)))[0]


@functools.partial(jax.jit, static_argnames="min_samples")
def dbscan(graph: SparseGraph, min_samples: int = 4) -> Int[Array, " rows"]:
    """DBSCAN labels: clusters from 0 in the order of their first core row, −1 for noise.

    Ester et al. (1996), "A Density-Based Algorithm for Discovering Clusters". A row with at least `min_samples` rows
    within the distance, itself counted, is a core; connected cores are a cluster; another row next to a core belongs
    to the first cluster that has one, as in scikit-learn. Exact where no `count` is above the graph's capacity.
    """
    rows = graph.index.shape[0]
    core = graph.count >= min_samples
    root = connected_components(graph.index, core)
    padded = jnp.append(root, rows)
    neighbours = jnp.where(graph.index >= 0, graph.index, rows)
    nearby = padded[neighbours].min(axis=1, initial=rows)
    nearby = jnp.append(nearby, rows).at[neighbours.reshape(-1)].min(jnp.repeat(root, neighbours.shape[1]))[:rows]
    root = jnp.where(core, root, nearby)
    is_first = core & (root == jnp.arange(rows))
    number = jnp.cumsum(is_first) - 1
    return jnp.where(root < rows, number[jnp.minimum(root, rows - 1)], NOISE).astype(jnp.int32)


def cluster(
    features: AnyArray, eps: float = 0.6, min_samples: int = 4, k1: int = 30, k2: int = 6, capacity: int = 128
) -> Int[np.ndarray, " rows"]:
    """Pseudo-labels of features f32[N, D] by DBSCAN on the k-reciprocal Jaccard distance; −1 for noise.

    Lists that turn out too short are made again with more room.

    Raises:
      UserError: features that are not finite or zero.
    """
    features, width = _checked(features), 128
    while True:
        graph = jaccard_graph(features, eps, k1, k2, capacity, width)
        lost, most = int(graph.lost), int(graph.count.max())
        if not lost and most <= graph.index.shape[1]:
            return np.asarray(dbscan(graph, min_samples))
        width = 2 * width if lost else width
        capacity = max(capacity, 1 << (most - 1).bit_length())


# ---------------------------------------------------------------------------------------------------- k-means


class KMeans(NamedTuple):
    """`centres`, unit rows; `label`; `similarity`, mean cosine of rows to their centres."""

    centres: Float[Array, "clusters dim"]
    label: Int[Array, " rows"]
    similarity: Float[Array, ""]


def spherical_k_means(features: AnyArray, rng: Array, clusters: int, iterations: int = 25) -> KMeans:
    """k-means by cosine, started by k-means++ (Arthur and Vassilvitskii 2007); a centre without rows stays.

    Args:
      features: f32[N, D], made unit rows; rng: a random key.

    Raises:
      UserError: features that are not finite or zero (not checked inside of jit).
    """
    return _k_means(features if isinstance(features, Tracer) else _checked(features), rng, clusters, iterations)


@functools.partial(jax.jit, static_argnames=("clusters", "iterations"))
def _k_means(features: Float[Array, "rows dim"], rng: Array, clusters: int, iterations: int) -> KMeans:
    features = unit_rows(features)
    rows = features.shape[0]

    def seed(state: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
        distance, first = state
        # The first is drawn evenly; ‖x − c‖²/2 = 1 − cos is what the others are drawn by.
        logits = jnp.where(first, 0.0, jnp.log(jnp.maximum(distance, 1e-12)))
        chosen = features[jax.random.categorical(key, jnp.broadcast_to(logits, (rows,)))]
        return (jnp.minimum(distance, jnp.maximum(1.0 - features @ chosen, 0.0)), jnp.bool_(False)), chosen

    keys = jax.random.split(rng, clusters)
    _, centres = jax.lax.scan(seed, (jnp.full(rows, 2.0), jnp.bool_(True)), keys)

    def refine(_: int, centres: Array) -> Array:
        label = jnp.argmax(features @ centres.T, axis=1)
        total = jax.ops.segment_sum(features, label, clusters)
        length = jnp.linalg.norm(total, axis=1, keepdims=True)
        return jnp.where(length > 1e-12, total / jnp.maximum(length, 1e-12), centres)

    centres = jax.lax.fori_loop(0, iterations, refine, centres)
    similarity = features @ centres.T
    return KMeans(centres, jnp.argmax(similarity, axis=1).astype(jnp.int32), similarity.max(1).mean())


# ------------------------------------------------------------------------------------------------- assignment


def linear_assignment(
    cost: Real[AnyArray, "rows columns"],
    rows: Bool[AnyArray, " rows"] | None = None,
    columns: Bool[AnyArray, " columns"] | None = None,
) -> Int[Array, " rows"]:
    """The column of each row, in one-to-one pairs of the least total cost; −1 for rows without one.

    There are as many pairs as rows or columns take part, whichever are fewer. By `optax.assignment`, on the device: a
    callback to the host can starve the collectives of several CPU devices and needs a CPU backend beside others.

    Args:
      cost: taken as f32.
      rows, columns: those that take part; all where not given.

    Raises:
      UserError: a cost of rows and columns that take part is NaN or beyond ±1e30. Inside of jit, where nothing can be
        raised, such a pair costs as much as the dearest other.
    """
    rows = jnp.ones(cost.shape[0], bool) if rows is None else rows
    columns = jnp.ones(cost.shape[1], bool) if columns is None else columns
    if not any(isinstance(value, Tracer) for value in (cost, rows, columns)):
        broken = np.argwhere(~(np.abs(cost) <= LARGEST_COST) & np.asarray(rows)[:, None] & np.asarray(columns))
        if len(broken):
            raise UserError(
                f"linear_assignment: {len(broken)} costs are NaN or beyond ±{LARGEST_COST:g}, the first of them in row "
                f"{broken[0][0]}, column {broken[0][1]}"
            )
    return _assigned(jnp.asarray(cost, jnp.float32), jnp.asarray(rows), jnp.asarray(columns))


@jax.jit
def _assigned(
    cost: Float[Array, "rows columns"], rows: Bool[Array, " rows"], columns: Bool[Array, " columns"]
) -> Int[Array, " rows"]:
    usable = jnp.abs(cost) <= LARGEST_COST
    cost = jnp.where(usable, cost, jnp.max(cost, where=usable, initial=0.0))
    # The side of which fewer take part searches, so that each of its rows gets a pair.
    return jax.lax.cond(
        rows.sum() > columns.sum(),
        lambda: inverse(_search(cost.T, columns, rows), len(rows)),
        lambda: _search(cost, rows, columns),
    )


def _search(cost: Array, rows: Array, columns: Array) -> Array:
    """The column of each row that takes part, no more of them than of columns; −1 for the others."""
    numbers = jnp.arange(len(rows))
    # A row that takes no part has a column of its own: one step each, instead of a search among equals.
    idle = (numbers[:, None] == numbers) & ~rows
    pairs = jnp.where(rows[:, None] & columns, cost, jnp.inf)
    row, column = hungarian_algorithm(jnp.concatenate([pairs, jnp.where(idle, 0.0, jnp.inf)], axis=1))
    column = jnp.where(column < len(columns), column, NOISE).astype(jnp.int32)
    return jnp.zeros(len(rows), jnp.int32).at[row].set(column)


def inverse(partner: Int[Array, " rows"], size: int) -> Int[Array, " {size}"]:
    """The partners of the other side; −1 is none on both."""
    numbers = jnp.arange(len(partner), dtype=jnp.int32)
    return jnp.full(size, -1, jnp.int32).at[jnp.where(partner >= 0, partner, size)].set(numbers, mode="drop")


# ---------------------------------------------------------------------------------------------------- figures


def cluster_quality(labels: Int[AnyArray, " rows"], truth: Int[AnyArray, " rows"]) -> dict[str, float]:
    """How clusters agree with identities; noise (−1) counts as rows that are alone.

    Returns:
      `ari`, `nmi` (arithmetic mean), pairwise `precision` and `recall` in [0, 1] (of pairs in one cluster, those of one
      person; of pairs of one person, those in one cluster), `clusters` and the share `covered` of rows that are no
      noise.
    """
    labels, truth = np.asarray(labels).copy(), np.unique(truth, return_inverse=True)[1]
    noise = labels == NOISE
    covered, found = float(1 - noise.mean()), len(np.unique(labels[~noise]))
    labels[noise] = labels.max(initial=0) + 1 + np.arange(noise.sum())
    labels = np.unique(labels, return_inverse=True)[1]
    table = np.unique(np.stack([labels, truth]), axis=1, return_counts=True)
    cells = table[1].astype(np.float64)
    rows, columns = (np.bincount(values).astype(np.float64) for values in (labels, truth))
    total = float(len(labels))

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    def entropy(counts: np.ndarray) -> float:
        share = counts[counts > 0] / total
        return float(-(share * np.log(share)).sum())

    together, clustered, same, every = pairs(cells), pairs(rows), pairs(columns), total * (total - 1) / 2
    expected = clustered * same / every if every else 0.0
    most = (clustered + same) / 2
    mutual = entropy(rows) + entropy(columns) - entropy(cells)
    mean_entropy = (entropy(rows) + entropy(columns)) / 2
    return {
        "ari": 1.0 if most == expected else (together - expected) / (most - expected),
        "nmi": 1.0 if mean_entropy == 0 else max(mutual, 0.0) / mean_entropy,
        "precision": together / clustered if clustered else 0.0,
        "recall": together / same if same else 0.0,
        "clusters": found,
        "covered": covered,
    }
