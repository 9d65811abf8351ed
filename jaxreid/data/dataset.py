"""A built data set as a run needs it: training, query and gallery splits and the protocol that scores them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jaxreid.data import build
from jaxreid.data.planned import planned_split, published
from jaxreid.data.schema import INFRARED, VISIBLE
from jaxreid.data.split import Split, modality_name, open_split


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Splits and facts of one built data set. `protocols` are keys of `jaxreid.retrieval.PROTOCOLS`, headline first."""

    name: str
    directory: Path
    train: Split
    query: Split
    gallery: Split
    protocols: tuple[str, ...]
    cameras: np.ndarray  # sorted training camera numbers

    def fingerprint(self) -> dict[str, Any]:
        """What tells this data set from another of the same name (the place it lies at does not)."""
        counts = {split.name: len(split) for split in (self.train, self.query, self.gallery)}
        frames = {split.name: int(split.table.length.sum()) for split in (self.train, self.query, self.gallery)}
        return {"name": self.name, "version": self.directory.name, "tracklets": counts, "frames": frames}


def open_dataset(options: Any, data_dir: Path | None) -> Dataset:
    """Opens (and, where it can be made without a download, first builds) the data set that a config names.

    Args:
      options: `config.dataset`: name, config, path (source folder), train/query/gallery split names, protocols.
      data_dir: where built data sets live.
    """
    directory = build.build(options.name, options.config or None, data_dir=data_dir, source=options.path or None)
    train = open_split(directory, options.train)
    cameras = np.unique(train.table.camera)
    facts = build.read_metadata(directory)
    return Dataset(
        name=f"{options.name}/{options.config}" if options.config else options.name,
        directory=Path(directory),
        train=train,
        query=open_split(directory, options.query, cameras),
        gallery=open_split(directory, options.gallery, cameras),
        protocols=tuple(options.protocols) or tuple(facts.get("protocols", ["market"])),
        cameras=cameras,
    )


def plan_dataset(options: Any) -> Dataset | None:
    """The data set that a config names as large as published, without its data; None where nothing is published."""
    counts = published(options.name)
    if counts is None:
        return None
    splits = {
        role: planned_split(options.name, split, counts[split])
        for role, split in (("train", options.train), ("query", options.query), ("gallery", options.gallery))
    }
    cameras = np.unique(splits["train"].table.camera)
    return Dataset(
        options.name, splits["train"].directory, **splits, protocols=tuple(options.protocols), cameras=cameras
    )


def describe(split: Split) -> str:
    """One line for people: tracklets, frames, cameras and modalities."""
    table = split.table
    parts = [f"{len(split)} tracklets", f"{int(table.length.sum())} frames", f"{len(np.unique(table.camera))} cameras"]
    for code in (VISIBLE, INFRARED):
        if np.any(table.modality == code):
            parts.append(f"{int(np.sum(table.modality == code))} {modality_name(code)}")
    return ", ".join(parts)
