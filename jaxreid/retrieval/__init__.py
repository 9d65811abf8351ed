"""Ranking a gallery and scoring it, re-ranking, clustering and search, on feature arrays alone.

Each protocol's rules with their sources are in `protocols.PROTOCOLS` and docs/retrieval.md.
"""

from jaxreid.arrays import unit_rows
from jaxreid.retrieval.clustering import (
    cluster,
    cluster_quality,
    connected_components,
    dbscan,
    jaccard_graph,
    jaccard_neighbours,
    linear_assignment,
    spherical_k_means,
)
from jaxreid.retrieval.distances import (
    DISTANCES,
    OwnDistance,
    Parts,
    cosine_distance,
    euclidean_distance,
    part_distance,
    part_euclidean_distance,
)
from jaxreid.retrieval.gallery import Gallery, add_to_gallery
from jaxreid.retrieval.metrics import Scores, nearest, pooled, result_record, score, score_distances
from jaxreid.retrieval.neighbours import nearest_neighbours
from jaxreid.retrieval.open_set import OpenSet, open_set_rates
from jaxreid.retrieval.precision import Matches
from jaxreid.retrieval.protocols import PROTOCOLS, Protocol, Rows
from jaxreid.retrieval.rerank import (
    KReciprocal,
    alpha_query_expansion,
    database_augmentation,
    k_reciprocal_blocks,
    k_reciprocal_distances,
)
from jaxreid.retrieval.search import build_index, search_gallery, search_index
from jaxreid.retrieval.shortlist import Shortlist

__all__ = [
    "DISTANCES",
    "PROTOCOLS",
    "Gallery",
    "KReciprocal",
    "Matches",
    "OpenSet",
    "OwnDistance",
    "Parts",
    "Protocol",
    "Rows",
    "Scores",
    "Shortlist",
    "add_to_gallery",
    "alpha_query_expansion",
    "build_index",
    "cluster",
    "cluster_quality",
    "connected_components",
    "cosine_distance",
    "database_augmentation",
    "dbscan",
    "euclidean_distance",
    "jaccard_graph",
    "jaccard_neighbours",
    "k_reciprocal_blocks",
    "k_reciprocal_distances",
    "linear_assignment",
    "nearest",
    "nearest_neighbours",
    "open_set_rates",
    "part_distance",
    "part_euclidean_distance",
    "pooled",
    "result_record",
    "score",
    "score_distances",
    "search_gallery",
    "search_index",
    "spherical_k_means",
    "unit_rows",
]
