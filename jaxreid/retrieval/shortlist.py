"""A learned pairwise score over a shortlist: near by cosine first, then in the order of the pair score."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import unit_rows
from jaxreid.errors import UserError
from jaxreid.retrieval import distances as distances_lib
from jaxreid.retrieval.distances import cosine_distance
from jaxreid.retrieval.neighbours import nearest_neighbours
from jaxreid.shapes import AnyArray, Array, Float, Int, Real

PairScore = Callable[[np.ndarray, np.ndarray], AnyArray]


class Shortlist:
    """The distance of row numbers by a pair score, a `distances.Distance`: (i32[B], gallery rows i32[C]) → f32[B, C].

        paired = Shortlist(query_features, gallery_features, pair_score, size=100)
        score(np.arange(len(query_features)), np.arange(len(gallery_features)), …, distance=paired)

    The `size` rows nearest to a query by cosine (equal ones in the order of the gallery) come first, by falling pair
    score, or `mix` · pair score + (1 − mix) · cosine; equal scores are at equal distance. All others follow by cosine
    distance. A shortlist's distances are whole numbers from −size up, so that nothing is lost to rounding; they are
    comparable within a query only.

    Args:
      query: f32[Q, D]; gallery: f32[G, D]; what shortlists are made by.
      pair_score: (queries i64[B], shortlists i64[B, size]) → f32[B, size], larger is more alike; called once per block,
        with row numbers, so that it may look at any features of the rows. It is not traced.
      size: rows of a shortlist; the whole gallery where it has fewer.
      mix: weight of the pair score.

    Attributes:
      index: i32[Q, size], gallery rows of every query's shortlist, nearest first; `cosine` f32[Q, size].

    Raises:
      UserError: features are not finite, zero, or differ in width; size below 1; scores of another shape.
    """

    def __init__(
        self, query: AnyArray, gallery: AnyArray, pair_score: PairScore, size: int = 100, mix: float = 1.0
    ) -> None:
        distances_lib.check_features(query, gallery, "cosine")
        if size < 1:
            raise UserError(f"a shortlist needs at least 1 row, got size={size}")
        self.query, self.gallery = jnp.asarray(query), jnp.asarray(gallery)
        self.pair_score, self.mix = pair_score, mix
        near = nearest_neighbours(unit_rows(query), unit_rows(gallery), min(size, len(gallery)))
        self.index, self.cosine = np.asarray(near.index), np.asarray(near.similarity)

    def __call__(
        self, query: Int[AnyArray, " queries"], gallery: Int[AnyArray, " gallery"]
    ) -> Float[Array, "queries gallery"]:
        rows = np.asarray(query)
        index = self.index[rows]
        scores = jnp.asarray(self.pair_score(rows, index))
        if scores.shape != index.shape:
            raise UserError(f"the pair score gave {scores.shape} for shortlists {index.shape}")
        found = _in_front(self.query[rows], self.gallery, index, scores, self.cosine[rows], self.mix)
        return found[:, jnp.asarray(gallery)]


@jax.jit
def _in_front(
    query: Float[Array, "queries dim"],
    gallery: Float[Array, "gallery dim"],
    index: Int[AnyArray, "queries size"],
    scores: Real[Array, "queries size"],
    cosine: Float[AnyArray, "queries size"],
    mix: float,
) -> Float[Array, "queries gallery"]:
    """Cosine distances with those of the shortlist put before all others, in the order of the scores; NaN where one
    is."""
    distance = jnp.maximum(cosine_distance(query, gallery), 0.0)
    scores = mix * scores.astype(jnp.float32) + (1.0 - mix) * cosine
    not_larger = jax.vmap(functools.partial(jnp.searchsorted, side="right"))(jnp.sort(scores, axis=1), scores)
    place = jnp.where(jnp.isnan(scores), jnp.nan, -not_larger.astype(jnp.float32))
    return distance.at[jnp.arange(len(index))[:, None], index].set(place)
