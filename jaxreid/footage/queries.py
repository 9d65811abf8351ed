"""Queries that are not in the gallery: people in pictures, folders and videos."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import jaxreid
from jaxreid.errors import UserError
from jaxreid.footage.sources import SourceOptions, loose_source, without_sidecars
from jaxreid.retrieval import Gallery
from jaxreid.retrieval.queries import Query

PICTURES = 5  # shown of a query
BATCH = 8  # clips in a step: queries are few


def file_queries(gallery: Gallery, path: Path, checkpoint: Path | None, options: SourceOptions) -> list[Query]:
    """Every tracklet of a picture, a folder or a video, embedded by the run that filled the gallery.

    Raises:
      UserError: another run than that; the files cannot be read; or they lack a sidecar that the run's method takes.
    """
    if gallery.model is None:
        raise UserError(f"the gallery {gallery.directory} does not say which run filled it: only its own tracklets "
                         "can be looked for")  # fmt: skip
    embedder = jaxreid.load(checkpoint or gallery.model["workdir"], options.data_dir, BATCH)
    gallery.check_model(embedder.identity)
    if embedder.sidecars and not path.is_dir():  # before people are looked for in a video
        raise UserError(without_sidecars(path, embedder.sidecars))
    options = dataclasses.replace(options, info=embedder.info, sidecars=embedder.sidecars)
    with tempfile.TemporaryDirectory() as crops:
        source = loose_source(path, Path(crops), options)
        features = embedder.embed_split(source.split, source.reader)
        return [
            Query(name, feature, source.pictures(row, PICTURES), source.cameras[row])
            for row, (name, feature) in enumerate(zip(source.split.labels.names, features, strict=True))
        ]
