"""A data set that is not there, as large as its authors say: what a dry run needs to know before a download.

A builder folder may hold `published.py` with `PUBLISHED`: split → tracklets and frames by modality, identities and
cameras; and with `ORIGIN`, what these numbers are where nobody published them.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxreid.data import builders, schema
from jaxreid.data.split import UNKNOWN, Labels, Split, TrackletTable


def published(name: str) -> dict[str, dict[str, Any]] | None:
    """The published counts of a data set, None where its builder folder gives none or not all that a plan needs."""
    counts = getattr(_figures(name), "PUBLISHED", {})
    complete = all({"tracklets", "frames"} <= counts.get(split, {}).keys() for split in ("train", "query", "gallery"))
    return counts if complete else None


def origin(name: str) -> str:
    """What the counts of `published` are."""
    return getattr(_figures(name), "ORIGIN", "the published size")


def _figures(name: str) -> ModuleType | None:
    try:
        return builders.builder_module(name, "published")
    except ModuleNotFoundError:
        return None


def planned_split(name: str, split: str, counts: dict[str, Any]) -> Split:
    """Tables of the published size: tracklets of equal length, dealt out to identities and cameras in turn."""
    modality = np.repeat([schema.MODALITIES.index(m) for m in counts["tracklets"]], list(counts["tracklets"].values()))
    rows = np.arange(len(modality))
    length = np.empty(len(rows), np.int64)
    for word, tracklets in counts["tracklets"].items():
        # As many frames as published, to the last one.
        frames = counts["frames"][word]
        own = np.arange(tracklets)
        length[modality == schema.MODALITIES.index(word)] = (own + 1) * frames // tracklets - own * frames // tracklets
    person = rows % counts["identities"]
    camera = rows // counts["identities"] % counts["cameras"]
    unknown = np.full(len(rows), UNKNOWN, np.int32)
    table = TrackletTable(
        length=length.astype(np.int32),
        camera=camera.astype(np.int32),
        camera_index=camera.astype(np.int32),
        modality=modality.astype(np.int32),
        platform=unknown,
        session=unknown,
        geometry=np.full((len(rows), 3), np.nan, np.float32),
        recording=np.unique(np.stack([person, camera, modality]), axis=1, return_inverse=True)[1].astype(np.int32),
    )
    names = tuple(f"{split}-{row}" for row in rows)
    labels = Labels(person.astype(np.int32), person.astype(np.int32), unknown, unknown, names)
    return Split(Path(f"{name} (not built)"), split, table, labels, rows)
