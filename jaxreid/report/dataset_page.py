"""A page that shows what a data set holds: persons, cameras, modalities, a few frames each, counts and lengths."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jaxreid.data import schema
from jaxreid.data.prepared import camera_names, read_metadata
from jaxreid.data.sidecars import sidecar_kinds
from jaxreid.data.split import FrameReader, Split, modality_name, open_split, split_names
from jaxreid.report import page
from jaxreid.report.data_figures import data_table, length_histograms
from jaxreid.report.page import TrackletPictures
from jaxreid.report.pictures import tracklet_pictures

PERSONS, TRACKLETS, FRAMES = 6, 6, 4
# Metadata that lists too much for a table, or says what the page shows anyway.
REMARKS = ("differences", "warnings")
UNSHOWN = (*REMARKS, "train_pids", "counts", "cameras", "world", "attribute_values", "excluded_frames", "sidecars")


@dataclasses.dataclass(frozen=True)
class Person:
    """One person of a split: what is known, and some of the tracklets."""

    title: str
    facts: str
    tracklets: tuple[TrackletPictures, ...]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Some persons of a split, out of `known`."""

    name: str
    known: int
    persons: tuple[Person, ...]


def render(directory: Path, name: str, persons: int = PERSONS, tracklets: int = TRACKLETS) -> str:
    """The page of a prepared data set.

    Args:
      directory: the prepared TFDS directory.
      name: what the page calls it.
      persons: of each split; tracklets: of each person.
    """
    splits = [open_split(directory, split) for split in split_names(directory)]
    facts = read_metadata(directory)
    cameras = camera_names(facts)
    return page.render_template(
        "dataset.html",
        title=name,
        directory=str(directory),
        data=data_table(splits),
        camera_names=cameras,
        lengths=length_histograms(splits),
        splits=[sample(split, cameras, persons, tracklets) for split in splits],
        problems=_problems(facts),
        facts=_facts(directory, facts),
    )


def sample(split: Split, cameras: dict[int, str], persons: int = PERSONS, tracklets: int = TRACKLETS) -> Sample:
    """Persons at even distances in the order of their numbers; of each the tracklets of as many cameras as fit."""
    reader = split.reader(cache=False)
    pids = np.unique(split.labels.pid)
    chosen = pids[np.unique(np.linspace(0, len(pids) - 1, persons).round().astype(int))]
    return Sample(split.name, len(pids), tuple(_person(split, reader, int(pid), cameras, tracklets) for pid in chosen))


def _person(split: Split, reader: FrameReader, pid: int, cameras: dict[int, str], tracklets: int) -> Person:
    table, labels = split.table, split.labels
    rows = np.flatnonzero(labels.pid == pid)
    seen = len(np.unique(table.camera[rows]))
    title = f"person {pid}" if pid >= 0 else "nobody in particular"
    notes = [f"{len(rows)} tracklets", f"{seen} camera{'s' if seen > 1 else ''}"]
    notes += ["junk"] * bool(labels.junk[rows].all()) + ["distractor"] * bool(labels.distractor[rows].all())
    shown = [_tracklet(split, reader, row, cameras) for row in spread(table, labels.clothes, rows, tracklets)]
    return Person(title, ", ".join(notes), tuple(shown))


def spread(table: Any, clothes: np.ndarray, rows: np.ndarray, count: int) -> list[int]:
    """Up to `count` of the rows, no two alike in camera, modality, session and clothes as long as there are others."""
    kinds = list(zip(table.camera[rows], table.modality[rows], table.session[rows], clothes[rows], strict=True))
    first = {kind: place for place, kind in reversed(list(enumerate(kinds)))}
    order = sorted(range(len(rows)), key=lambda place: (first[kinds[place]] != place, place))
    found = order[:count]
    if len(first) > count:  # of many kinds those at even distances
        found = [order[place] for place in np.linspace(0, len(first) - 1, count).round().astype(int)]
    return [int(rows[place]) for place in sorted(found)]


def _tracklet(split: Split, reader: FrameReader, row: int, cameras: dict[int, str]) -> TrackletPictures:
    table, labels = split.table, split.labels
    modality = modality_name(int(table.modality[row]))
    pictures = tracklet_pictures(split, reader, row, FRAMES)
    camera = int(table.camera[row])
    where = " ".join(["camera", str(camera), cameras.get(camera, "")]).strip()
    altitude, distance, angle = table.geometry[row]
    known = [
        schema.PLATFORMS[table.platform[row]] if table.platform[row] > 0 else "",
        f"{altitude:g} m up, {distance:g} m off, {angle:g}°" if np.isfinite(table.geometry[row]).all() else "",
        f"session {table.session[row]}" if table.session[row] >= 0 else "",
        f"clothes {labels.clothes[row]}" if labels.clothes[row] >= 0 else "",
    ]
    facts = [labels.names[row], f"{where}, {modality}, {table.length[row]} frames", ", ".join(filter(None, known))]
    return TrackletPictures(labels.names[row], pictures, tuple(filter(None, facts)))


def _problems(facts: dict[str, Any]) -> list[str]:
    """What the builder remarked."""
    lines = [str(line) for key in REMARKS for line in facts.get(key) or ()]
    excluded = facts.get("excluded_frames") or {}
    if excluded:
        lines.append(f"frames that were left out: {_short(excluded)}")
    return lines


def _facts(directory: Path, facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines of metadata, and the sidecars that are there."""
    shown = [(key.replace("_", " "), _short(value)) for key, value in facts.items() if key not in UNSHOWN]
    return [*shown, ("sidecars", ", ".join(sidecar_kinds(directory)) or "none")]


def _short(value: Any, most: int = 300) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{key}: {item}" for key, item in value.items())
    elif isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    text = str(value)
    return text if len(text) <= most else f"{text[:most]} …"
