"""How well the queries of each camera find their matches in each camera."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import jax
import numpy as np

from jaxreid import retrieval
from jaxreid.report.page import CameraTable
from jaxreid.retrieval.distances import Distance
from jaxreid.retrieval.metrics import Scores
from jaxreid.retrieval.protocols import Protocol, Rows, has_match

MOST_CAMERAS = 16  # of each side, in a table that can be read
BLOCK = 256  # queries ranked at a time: a number that splits share, so that one compilation serves them
FILLER = np.iinfo(np.int32).min  # identity of rows that only fill a gallery


def camera_table(
    query_features: Any,
    gallery_features: Any,
    query: Rows,
    gallery: Rows,
    protocol: Protocol,
    distance: Distance,
    whole: Scores,
) -> CameraTable:
    """Scores of one direction for every pair of a query camera and a gallery camera.

    In the cell (a, b) the queries of camera a are ranked against the gallery tracklets of camera b alone, under the
    rules of the protocol; the mean goes over the queries that have a match there. All pairs together cost about as
    much as scoring the whole gallery.

    Args:
      query_features, gallery_features: f32[Q, D] and f32[G, D], or what else the distance compares.
      query, gallery: what is known about each of them.
      protocol, distance: as the whole gallery was scored.
      whole: the scores against the whole gallery, for the last column.
    """
    kept, kept_gallery = protocol.kept(query), protocol.kept(gallery)
    query, query_features = query[kept], jax.tree.map(lambda x: x[kept], query_features)
    gallery, gallery_features = gallery[kept_gallery], jax.tree.map(lambda x: x[kept_gallery], gallery_features)
    # Which rows are looked at is settled; a smaller gallery must not lose others.
    protocol = dataclasses.replace(protocol, whole_batches=())
    rows, more_rows = _most_frequent(query.camera)
    columns, more_columns = _most_frequent(gallery.camera)
    of_row = [query.camera == camera for camera in rows]

    shape = (len(rows), len(columns))
    mean, first, count = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, int)
    for b, camera in enumerate(columns):
        chosen = np.flatnonzero(gallery.camera == camera)
        if not has_match(query, gallery[chosen], protocol):
            continue
        of_camera = jax.tree.map(operator.itemgetter(chosen), gallery_features)
        scores = _score_padded(query_features, of_camera, query, gallery[chosen], protocol, distance)
        for a, mine in enumerate(of_row):
            found = mine & scores.valid
            if found.any():
                mean[a, b] = 100.0 * scores.average_precision[found].mean()
                first[a, b] = 100.0 * (scores.first_match[found] == 1).mean()
                count[a, b] = found.sum()

    precision, valid = whole.average_precision[kept], whole.valid[kept]
    every = [100.0 * precision[m & valid].mean() if (m & valid).any() else np.nan for m in of_row]
    return CameraTable(
        query_cameras=tuple(rows.tolist()),
        gallery_cameras=tuple(columns.tolist()),
        mAP=mean,
        rank_1=first,
        queries=count,
        whole_mAP=np.array(every),
        whole_queries=np.array([int((m & valid).sum()) for m in of_row]),
        gallery=np.array([int((gallery.camera == camera).sum()) for camera in columns]),
        left_out=(more_rows, more_columns),
    )


def _most_frequent(cameras: np.ndarray) -> tuple[np.ndarray, int]:
    """The cameras with most tracklets, in the order of their numbers, and how many others there are."""
    values, counts = np.unique(cameras, return_counts=True)
    chosen = np.argsort(-counts, kind="stable")[:MOST_CAMERAS]
    return np.sort(values[chosen]), len(values) - len(chosen)


def _score_padded(
    query_features: Any,
    gallery_features: Any,
    query: Rows,
    gallery: Rows,
    protocol: Protocol,
    distance: Distance,
) -> Scores:
    """`retrieval.score`, with junk rows that fill the gallery up to a power of two: few shapes are compiled."""
    count = len(gallery)
    padded = np.minimum(np.arange(1 << max(6, (count - 1).bit_length())), count - 1)
    rows = gallery[padded]
    identity = np.where(np.arange(len(padded)) < count, rows.identity, FILLER)
    return retrieval.score(
        query_features,
        jax.tree.map(lambda x: x[padded], gallery_features),
        query,
        dataclasses.replace(rows, identity=identity),
        dataclasses.replace(protocol, junk_identities=(*protocol.junk_identities, FILLER)),
        distance=distance,
        block=BLOCK,
    )
