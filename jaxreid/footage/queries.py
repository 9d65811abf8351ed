"""Queries that are not in the gallery: people in pictures, folders and videos."""

from __future__ import annotations

import tempfile
from pathlib import Path

import jaxreid
from jaxreid.data.prepared import SCALE
from jaxreid.errors import UserError
from jaxreid.footage.sources import loose_source
from jaxreid.retrieval import Gallery
from jaxreid.retrieval.queries import Query

PICTURES = 5  # shown of a query
BATCH = 8  # clips in a step: queries are few


def file_queries(
    gallery: Gallery, path: Path, checkpoint: Path | None, modality: str, sixteen_bit: str = SCALE
) -> list[Query]:
    """Every tracklet of a picture, a folder or a video, embedded by the run that filled the gallery.

    Raises:
      UserError: another run than that; or the files cannot be read.
    """
    if gallery.model is None:
        raise UserError(f"the gallery {gallery.directory} does not say which run filled it: only its own tracklets "
                         "can be looked for")  # fmt: skip
    embedder = jaxreid.load(checkpoint or gallery.model["workdir"], batch_size=BATCH)
    gallery.check_model(embedder.identity)
    with tempfile.TemporaryDirectory() as crops:
        source = loose_source(path, Path(crops), modality, sixteen_bit)
        features = embedder.embed_split(source.split, source.reader)
        return [
            Query(name, feature, source.pictures(row, PICTURES), source.cameras[row])
            for row, (name, feature) in enumerate(zip(source.split.labels.names, features, strict=True))
        ]
