"""What MARS's tables say; no frame is looked at."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

from jaxreid.data.building import listed, mars_layout
from jaxreid.data.building.listed import Listing, Tracklet

from .published import LISTED, PER_CAMERA, PUBLISHED

EXPECTED = f"{mars_layout.EXPECTED}   (also 0000 and 00-1: distractors and junk)"
JUNK, DISTRACTOR = -1, 0


def list_dataset(source: Path) -> Listing:
    """The tracklets of the tables, in their order; `gallery` is test without the queries.

    Raises:
      DataSetError: see `mars_layout.list_rows`.
    """
    rows = mars_layout.list_rows("mars", source, EXPECTED)
    splits = {"train": _flagged(rows.train), "query": _flagged(rows.query), "gallery": _flagged(rows.others)}
    parts = {
        **splits,
        "test": rows.test,
        "gallery without junk": [tracklet for tracklet in rows.others if tracklet.pid != JUNK],
        "junk": [tracklet for tracklet in rows.test if tracklet.pid == JUNK],
        "distractors": [tracklet for tracklet in rows.test if tracklet.pid == DISTRACTOR],
    }
    return Listing(
        splits=splits,
        digest=rows.digest,
        differences=[
            *rows.differences,
            *listed.differences(PUBLISHED, parts),
            *listed.differences(LISTED, parts),
            *_camera_differences(parts),
            *_query_differences(rows.query),
        ],
    )


def _flagged(tracklets: list[Tracklet]) -> list[Tracklet]:
    return [
        dataclasses.replace(
            tracklet, features={"is_junk": tracklet.pid == JUNK, "is_distractor": tracklet.pid == DISTRACTOR}
        )
        for tracklet in tracklets
    ]


def _camera_differences(parts: dict[str, list[Tracklet]]) -> list[str]:
    lines = []
    for part, expected in PER_CAMERA.items():
        found = Counter(tracklet.camera for tracklet in parts[part])
        lines += [
            f"{part}: expected {number} tracklets before camera {camera}, found {found[camera]}"
            for camera, number in enumerate(expected, start=1)
            if number != found[camera]
        ]
    return lines


def _query_differences(query: list[Tracklet]) -> list[str]:
    """A query is the one of its person and camera, and never a distractor or junk."""
    pairs = Counter((tracklet.pid, tracklet.camera) for tracklet in query)
    again = [pair for pair, count in pairs.items() if count > 1]
    lines = [f"query: several tracklets of identity {pid} before camera {camera}" for pid, camera in again]
    return lines + [
        f"query: {tracklet.tracklet_id} shows nobody" for tracklet in query if tracklet.pid in (JUNK, DISTRACTOR)
    ]
