"""Queries that are not in the gallery: people in pictures, folders and videos."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import jaxreid
from jaxreid.errors import UserError
from jaxreid.footage.sources import SourceOptions, loose_source, without_sidecars
from jaxreid.retrieval import Gallery
from jaxreid.retrieval.queries import Query, Rescoring

if TYPE_CHECKING:
    from jaxreid.embedder import Embedder

PICTURES = 5  # shown of a query
BATCH = 8  # clips in a step: queries are few
SIZE = 50  # tracklets that are re-scored where the run says nothing of it


def open_run(gallery: Gallery, checkpoint: Path | None, data_dir: Path | None) -> Embedder:
    """The run that filled a gallery.

    Raises:
      UserError: it is another run than that, or not known.
    """
    if gallery.model is None:
        raise UserError(f"the gallery {gallery.directory} does not say which run filled it: only its own tracklets "
                         "can be looked for")  # fmt: skip
    embedder = jaxreid.load(checkpoint or gallery.model["workdir"], data_dir, BATCH)
    gallery.check_model(embedder.identity)
    return embedder


def file_queries(path: Path, embedder: Embedder, options: SourceOptions, pairs: bool = False) -> list[Query]:
    """Every tracklet of a picture, a folder or a video, embedded by a run; with `pairs` for a score of pairs, too.

    Raises:
      UserError: the files cannot be read, or lack a sidecar that the run's method takes.
    """
    if embedder.sidecars and not path.is_dir():  # before people are looked for in a video
        raise UserError(without_sidecars(path, embedder.sidecars))
    options = dataclasses.replace(options, info=embedder.info, sidecars=embedder.sidecars)
    with tempfile.TemporaryDirectory() as crops:
        source = loose_source(path, Path(crops), options)
        features, rows = embedder.embed_split(source.split, source.reader), np.arange(len(source.split))
        kept = embedder.embed_pairs(source.split, source.reader, rows) if pairs else {}
        return [
            Query(
                name,
                feature,
                source.pictures(row, PICTURES),
                source.cameras[row],
                pairs={key: x[row : row + 1] for key, x in kept.items()},
            )
            for row, (name, feature) in enumerate(zip(source.split.labels.names, features, strict=True))
        ]


@dataclasses.dataclass(frozen=True)
class _GalleryAndQueries:
    """What tracklets have for a score of pairs: the rows of a gallery, then the queries."""

    gallery: Gallery
    queries: Sequence[Query]

    def __len__(self) -> int:
        return len(self.gallery) + len(self.queries)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        count = len(self.gallery)
        found = self.gallery.take_pairs(np.minimum(rows, count - 1))
        for place in np.flatnonzero(rows >= count):
            for name, x in self.queries[rows[place] - count].pairs.items():
                found[name][place] = x[0]
        return found


def pair_rescoring(gallery: Gallery, queries: Sequence[Query], embedder: Embedder) -> Rescoring:
    """How a search among tracklets that have features for pairs is re-scored: as the evaluation of the run, or `SIZE`
    tracklets where that re-scores none."""
    score = embedder.score_pairs(_GalleryAndQueries(gallery, queries))
    size, mix = embedder.rescoring

    def of_query(number: int, rows: np.ndarray) -> np.ndarray:
        return score(np.full(len(rows), len(gallery) + number), rows)

    return Rescoring(of_query, size or SIZE, mix)
