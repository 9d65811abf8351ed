"""Ranking a gallery and scoring it, on feature arrays alone: distances, protocols, metrics."""

from jaxreid.retrieval.distances import DISTANCES, cosine_distance, euclidean_distance, l2_normalise
from jaxreid.retrieval.metrics import Scores, nearest, result_record, score, score_distances
from jaxreid.retrieval.protocols import PROTOCOLS, Protocol, Rows
from jaxreid.retrieval.rerank import (
    KReciprocal,
    alpha_query_expansion,
    database_augmentation,
    k_reciprocal_blocks,
    k_reciprocal_distances,
)

__all__ = [
    "DISTANCES",
    "PROTOCOLS",
    "KReciprocal",
    "Protocol",
    "Rows",
    "Scores",
    "alpha_query_expansion",
    "cosine_distance",
    "database_augmentation",
    "euclidean_distance",
    "k_reciprocal_blocks",
    "k_reciprocal_distances",
    "l2_normalise",
    "nearest",
    "result_record",
    "score",
    "score_distances",
]
