"""Re-ranking: k-reciprocal encoding over queries and gallery, and features averaged with their neighbours.

Zhong et al. (2017), "Re-ranking Person Re-identification with k-reciprocal Encoding"; Radenović et al. (2018),
"Fine-tuning CNN Image Retrieval with No Human Annotation" (αQE). The N = Q + G rows are encoded once in O(N·k)
memory; distances of queries to the gallery come out in row blocks, as any other distance.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import unit_rows
from jaxreid.errors import UserError
from jaxreid.retrieval import distances as distances_lib
from jaxreid.retrieval import k_reciprocal
from jaxreid.retrieval.neighbours import block_of, map_rows, nearest_neighbours, top_k
from jaxreid.shapes import AnyArray, Array, Float, Int

WIDTH_MULTIPLE = 64


class KReciprocal:
    """The re-ranked distance of row numbers, a `distances.Distance`: (queries i32[B], gallery rows i32[C]) → f32[B, C].

        reranked = KReciprocal(query_features, gallery_features)
        score(np.arange(len(query_features)), np.arange(len(gallery_features)), …, distance=reranked)

    d = (1 − λ)·Jaccard + λ·original, where the original is the squared distance over the largest of its row among
    all N (equation 12 and the released program). In [0, 1].

    Args:
      query: f32[Q, D]; gallery: f32[G, D].
      k1: neighbours of the reciprocal sets, the row itself not counted.
      k2: rows of the local query expansion, the row itself counted; 1 for none.
      lambda_: weight of the original distance.
      distance: 'cosine' (of unit rows) or 'euclidean' (of the features as they are).
      width: entries of an encoding's row that room is made for at first.

    Raises:
      UserError: features are not finite, (cosine) zero, or differ in width; or an argument is out of range.
    """

    def __init__(
        self,
        query: AnyArray,
        gallery: AnyArray,
        k1: int = 20,
        k2: int = 6,
        lambda_: float = 0.3,
        distance: str = "cosine",
        width: int = 128,
    ) -> None:
        if distance not in ("cosine", "euclidean"):
            raise UserError(f"unknown distance {distance!r}; known: cosine, euclidean")
        query, gallery = (_matrix(x, what, distance) for x, what in ((query, "query"), (gallery, "gallery")))
        if query.shape[1] != gallery.shape[1]:
            raise UserError(f"query features are {query.shape[1]} wide, gallery features {gallery.shape[1]}")
        if k1 < 1 or k2 < 1 or not 0 <= lambda_ <= 1:
            raise UserError(f"k1={k1} and k2={k2} must be at least 1, lambda={lambda_} between 0 and 1")
        self.queries, self.lambda_ = len(query), lambda_
        features = jnp.concatenate([query, gallery])
        self.features = unit_rows(features) if distance == "cosine" else features
        k = min(k1 + 1, len(features))
        index, self.farthest = _ranking(self.features, max(k, min(k2, len(features))))
        k_half = min(round(k1 / 2) + 1, k)
        while True:  # rows that do not fit are made again with more room
            self.encoding = k_reciprocal.encode(
                self.features, index, k, k_half, min(k2, len(features)), width, 3 * width, self.farthest
            )
            if not int(self.encoding.lost.max()):
                break
            width *= 2
        # Columns are ascending, empty places last: what no row uses is cut off, in steps that share compilations.
        used = int(jnp.sum(self.encoding.column < len(features), axis=1).max())
        kept = -(-used // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        column, value = (entries[:, :kept] for entries in (self.encoding.column, self.encoding.value))
        self.encoding = self.encoding._replace(column=column, value=value)
        self.lists = k_reciprocal.inverted_lists(self.encoding)

    def __call__(
        self, query: Int[AnyArray, " queries"], gallery: Int[AnyArray, " gallery"]
    ) -> Float[Array, "queries gallery"]:
        parts = (self.features, self.farthest, self.encoding, self.lists, self.lambda_)
        return _distances(*parts, jnp.asarray(query), self.queries + jnp.asarray(gallery))


RERANKING = {"": None, "k_reciprocal": KReciprocal}  # by the names of configs


def _matrix(features: AnyArray, what: str, distance: str = "cosine") -> Float[Array, "rows dim"]:
    host = np.asarray(features, np.float32)
    if host.ndim != 2 or not len(host):
        raise UserError(f"{what} features must be [rows, D] with at least one row, got {host.shape}")
    distances_lib.check_rows(host, what, distance)
    return jnp.asarray(host)


def _squared(
    features: Float[Array, "rows dim"], square: Float[Array, " rows"], rows: Int[Array, " some"]
) -> Float[Array, "some rows"]:
    """Squared Euclidean distances of some rows to all."""
    product = jnp.matmul(features[rows], features.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(square[rows][:, None] + square - 2.0 * product, 0.0)


@functools.partial(jax.jit, static_argnames="k")
def _ranking(features: Float[Array, "rows dim"], k: int) -> tuple[Int[Array, "rows {k}"], Float[Array, " rows"]]:
    """(the k nearest of every row, itself first; its largest squared distance)."""
    rows, square = features.shape[0], jnp.sum(features**2, axis=1)

    def of_block(numbers: Array) -> tuple[Array, Array]:
        distance = _squared(features, square, numbers)
        # A row is nearest to itself, whatever rounding says.
        own = jnp.arange(rows) == numbers[:, None]
        return top_k(jnp.where(own, jnp.inf, -distance), k)[1].astype(jnp.int32), distance.max(axis=1)

    index, farthest = map_rows(of_block, rows, block_of(rows, rows))
    return index, jnp.maximum(farthest, jnp.finfo(jnp.float32).tiny)  # all rows the same: every distance is 0


@jax.jit
def _distances(
    features: Array,
    farthest: Array,
    encoding: k_reciprocal.SparseRows,
    lists: k_reciprocal.InvertedLists,
    lambda_: float,
    rows: Array,
    columns: Array,
) -> Array:
    jaccard = k_reciprocal.jaccard_distance(k_reciprocal.shared_weight(encoding, lists, rows))
    original = _squared(features, jnp.sum(features**2, axis=1), rows) / farthest[rows][:, None]
    return ((1.0 - lambda_) * jaccard + lambda_ * original)[:, columns]


def k_reciprocal_blocks(
    query: AnyArray, gallery: AnyArray, block: int | None = None, **options: Any
) -> Iterator[tuple[np.ndarray, AnyArray]]:
    """Re-ranked distances, a block of queries at a time, as `distances.distance_blocks` gives them.

    Args:
      query: f32[Q, D]; gallery: f32[G, D].
      options: of `KReciprocal`.
    """
    reranked = KReciprocal(query, gallery, **options)
    block = distances_lib.block_rows(block, len(query) + len(gallery))
    return distances_lib.distance_blocks(np.arange(len(query)), np.arange(len(gallery)), reranked, block)


def k_reciprocal_distances(
    query: AnyArray, gallery: AnyArray, block: int | None = None, **options: Any
) -> Float[np.ndarray, "queries gallery"]:
    """Re-ranked distances of all queries to the whole gallery; see `k_reciprocal_blocks`."""
    found = np.empty((len(query), len(gallery)), np.float32)
    for rows, distances in k_reciprocal_blocks(query, gallery, block, **options):
        found[rows] = distances[: len(rows)]
    return found


def alpha_query_expansion(
    query: AnyArray, gallery: AnyArray, neighbours: int = 10, alpha: float = 3.0
) -> Float[Array, "queries dim"]:
    """Queries averaged with their nearest gallery rows (αQE): unit rows.

    q ← normalize(q + Σ max(q·g, 0)^α g) over the `neighbours` nearest g; Radenović et al. (2018), section 3.4.

    Args:
      query: f32[Q, D]; gallery: f32[G, D]; made unit rows.
    """
    query, gallery = unit_rows(_matrix(query, "query")), unit_rows(_matrix(gallery, "gallery"))
    return _expand(query, gallery, min(neighbours, len(gallery)), alpha, False)


def database_augmentation(gallery: AnyArray, neighbours: int = 10, alpha: float = 3.0) -> Float[Array, "gallery dim"]:
    """Gallery rows averaged with their nearest others in the same way: unit rows."""
    gallery = unit_rows(_matrix(gallery, "gallery"))
    return _expand(gallery, gallery, min(neighbours + 1, len(gallery)), alpha, True)


@functools.partial(jax.jit, static_argnames=("k", "same"))
def _expand(
    query: Float[Array, "queries dim"], gallery: Float[Array, "gallery dim"], k: int, alpha: float, same: bool
) -> Float[Array, "queries dim"]:
    """`same`: the rows are the gallery's own, and a row is no neighbour of itself."""
    found = nearest_neighbours(query, gallery, k)

    def of_block(rows: Array) -> Array:
        index = found.index[rows]
        weight = jnp.maximum(found.similarity[rows], 0.0) ** alpha
        weight = jnp.where(index == rows[:, None], 0.0, weight) if same else weight
        mean = jnp.einsum("bk,bkd->bd", weight, gallery[index], precision=jax.lax.Precision.HIGHEST)
        return unit_rows(query[rows] + mean)

    return map_rows(of_block, query.shape[0], k_reciprocal.block_rows(query.shape[0], k * gallery.shape[1]))
