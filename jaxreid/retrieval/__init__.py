"""Ranking a gallery and scoring it, on feature arrays alone: distances, protocols, metrics."""

from jaxreid.retrieval.distances import DISTANCES, cosine_distance, euclidean_distance, l2_normalise
from jaxreid.retrieval.metrics import Scores, nearest, pooled, result_record, score, score_distances
from jaxreid.retrieval.protocols import PROTOCOLS, Protocol, Rows

__all__ = [
    "DISTANCES",
    "PROTOCOLS",
    "Protocol",
    "Rows",
    "Scores",
    "cosine_distance",
    "euclidean_distance",
    "l2_normalise",
    "nearest",
    "pooled",
    "result_record",
    "score",
    "score_distances",
]
