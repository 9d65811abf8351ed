"""What builders of recorded data sets share: tracklets of a list, published counts, frames that cannot be used.

Needs no TFDS. The builders of sets that come with lists of their tracklets are in `listed_builder.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxreid.data.building.progress import progress
from jaxreid.errors import DataSetError

DEFAULT_MAX_EXCLUDED = 0.05
UNCHECKED = "_unchecked"  # ends the names of configurations whose counts need not be the published ones
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Tracklet:
    """One tracklet as the lists describe it; none of its files was looked at."""

    tracklet_id: str
    pid: int
    camera: int
    cam_name: str
    modality: str
    frames: tuple[str, ...]  # in order, relative to the directory that the lists mean
    directory: str = ""  # that directory, relative to the source
    recording: str = ""
    pair_id: str = ""
    # Further features of the record by their names in schema.py; no part of what tracklets are compared by.
    features: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    # Positions of `frames` in the tracklet of the source, of `source_frames` frames; None where all of them are here.
    frame_index: tuple[int, ...] | None = None
    source_frames: int = 0

    def thinned(self, max_frames: int) -> Tracklet:
        """Itself, or frames ⌊i·n/max_frames⌋ of its n frames where they are more."""
        count = len(self.frames)
        if count <= max_frames:
            return self
        index = tuple(i * count // max_frames for i in range(max_frames))
        frames = tuple(self.frames[i] for i in index)
        return dataclasses.replace(self, frames=frames, frame_index=index, source_frames=count)

    @property
    def paths(self) -> list[str]:
        """The frames' paths relative to the source."""
        return [f"{self.directory}/{frame}" for frame in self.frames] if self.directory else list(self.frames)


@dataclasses.dataclass(frozen=True)
class Listing:
    """What the lists of a data set say: the tracklets of each split in the lists' order."""

    splits: dict[str, list[Tracklet]]
    digest: str  # of the lists
    differences: list[str]  # from the published counts
    warnings: list[str] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # further metadata
    faults: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # of frames in no tracklet: path, fault


class ExcludedFrames:
    """Frames that cannot be used, with their faults: too many of them are an error.

    Args:
      name: the data set, for messages.
      root: what paths are relative to.
      total: all frames of the set.
      limit: the largest share of them that may be unusable.
    """

    def __init__(self, name: str, root: Path, total: int, limit: float) -> None:
        self.name, self.root, self.total, self.limit = name, root, total, limit
        self.faults: dict[str, str] = {}

    def add(self, faults: Iterable[tuple[str, str]], hint: str = "") -> None:
        """Takes account of frames, each a path and its fault.

        Raises:
          DataSetError: now there are more than `limit`; the message ends with `hint`.
        """
        self.faults.update(faults)
        count = len(self.faults)
        if count > self.limit * self.total:
            raise DataSetError(
                f"{self.name}: {count} of {self.total} frames ({count / self.total:.1%}) cannot be used, more than the "
                f"{self.limit:.1%} that are allowed; repair or replace them, or allow more (build it with --option "
                f"max_excluded=SHARE):\n{self.named()}" + (f"\n{hint}" if hint else "")
            )

    def usable(self, paths: Sequence[str]) -> list[int]:
        """Positions in `paths` of the frames that can be used."""
        return [index for index, path in enumerate(paths) if path not in self.faults]

    def named(self) -> str:
        """The first of them, a line each."""
        return shorten([f"{self.root / path}: {fault}" for path, fault in self.faults.items()])

    def warn(self) -> None:
        """Says what is left out, if anything is."""
        if self.faults:
            count = len(self.faults)
            _LOG.warning("%d of %d frames cannot be used and are left out:\n%s", count, self.total, self.named())

    def metadata(self) -> list[dict[str, str]]:
        return [{"path": path, "fault": fault} for path, fault in self.faults.items()]


def shorten(lines: list[str], limit: int = 10) -> str:
    """The first lines, one per line, and how many there are beyond them."""
    more = [f"… and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n".join(f"  {line}" for line in [*lines[:limit], *more])


def missing_frames(source: Path, tracklets: Iterable[Tracklet], total: int) -> list[tuple[str, str]]:
    """Frames that are listed but not there: path and fault.

    Folders are listed, files are not opened: a file system answers that for a whole set in a minute at most.
    """

    @functools.lru_cache(maxsize=256)  # tracklets of one folder stand near each other in the lists
    def names(folder: str) -> frozenset[str]:
        try:
            return frozenset(os.listdir(source / folder))
        except OSError:
            return frozenset()

    missing = []
    for tracklet in progress(tracklets, "looking for frames", total):
        for path in tracklet.paths:
            folder, _, name = path.rpartition("/")
            if name not in names(folder):
                missing.append((path, "is missing"))
    return missing


def find_lists(name: str, source: Path, files: Sequence[str], folders: Sequence[str], expected: str) -> dict[str, Path]:
    """The paths of a data set's lists by name, each in the first of `folders` that holds it.

    Raises:
      DataSetError: the source or a list is missing.
    """
    if not source.is_dir():
        raise DataSetError(f"{name}: {source} is not a directory\n{expected}")
    found = {}
    for file in files:
        for folder in folders:
            if (source / folder / file).is_file():
                found[file] = source / folder / file
                break
    missing = [file for file in files if file not in found]
    if missing:
        places = " or ".join(str(source / folder) for folder in folders)
        raise DataSetError(f"{name}: {', '.join(missing)} missing in {places}\n{expected}")
    return found


def read_lines(path: Path) -> list[str]:
    """The lines of a list, which line feeds and carriage returns end and nothing else that Unicode has for it; bytes
    that are no text show up in them."""
    text = path.read_text(encoding="utf-8-sig", errors="replace").rstrip()
    return text.split("\n") if text else []


def digest(paths: Iterable[Path]) -> str:
    """A short digest of the contents of files."""
    content = hashlib.sha256()
    for path in paths:
        content.update(path.read_bytes())
    return content.hexdigest()[:12]


def refuse(name: str, source: Path, errors: list[str]) -> None:
    """Raises a `DataSetError` that lists the errors, if there are any."""
    if errors:
        raise DataSetError(f"{name}: {source} cannot be built:\n{shorten(errors)}")


def natural_key(name: str) -> tuple:
    """Sorts `2.jpg` before `10.jpg`."""
    parts = re.split(r"(\d+)", name)
    return tuple((int(part), part) if i % 2 else part for i, part in enumerate(parts))


def integers(cells: Iterable[str]) -> list[int] | None:
    """Whole numbers, also when printed as 24.0 or 2.4e+01; None if a cell is something else."""
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        return None
    return [int(value) for value in values] if all(value.is_integer() for value in values) else None


def repeated(tracklets: Iterable[Tracklet]) -> list[str]:
    """Tracklet ids that occur more than once."""
    return [name for name, count in Counter(tracklet.tracklet_id for tracklet in tracklets).items() if count > 1]


def told_apart(tracklets: list[Tracklet | None], table: Path, errors: list[str]) -> list[Tracklet | None]:
    """The rows of a table, those that share a tracklet's number named after their first frames; what is still there
    twice is an error. None stands for a row that could not be read."""
    shared = set(repeated(tracklet for tracklet in tracklets if tracklet))
    tracklets = [
        dataclasses.replace(tracklet, tracklet_id=Path(tracklet.frames[0]).stem)
        if tracklet and tracklet.tracklet_id in shared
        else tracklet
        for tracklet in tracklets
    ]
    again = repeated(tracklet for tracklet in tracklets if tracklet)
    if again:
        errors.append(f"{table}: {len(again)} tracklets are in several rows, e.g. {again[0]}")
    return tracklets


def differences(published: Mapping[str, Mapping[str, Any]], splits: Mapping[str, Sequence[Tracklet]]) -> list[str]:
    """Where tracklets are not as many as published: a line per split and figure.

    Args:
      published: per split any of `tracklets` and `frames` (a number, or numbers by modality), `identities`, and
        `cameras`, which is compared with the cameras of all splits together.
      splits: the tracklets that were found.
    """
    lines = []
    for split, figures in published.items():
        found = splits.get(split, ())
        tracklets = Counter(tracklet.modality for tracklet in found)
        frames: Counter[str] = Counter()
        for tracklet in found:
            frames[tracklet.modality] += len(tracklet.frames)
        pairs = [("identities", figures.get("identities"), len({tracklet.pid for tracklet in found}))]
        for what, counts in (("tracklets", tracklets), ("frames", frames)):
            expected = figures.get(what)
            if isinstance(expected, Mapping):
                pairs += [(f"{modality} {what}", number, counts[modality]) for modality, number in expected.items()]
            else:
                pairs.append((what, expected, counts.total()))
        lines += [
            f"{split}: expected {expected} {what}, found {number}"
            for what, expected, number in pairs
            if expected not in (None, number)
        ]
    cameras = max((figures.get("cameras", 0) for figures in published.values()), default=0)
    found = len({tracklet.camera for members in splits.values() for tracklet in members})
    if cameras not in (0, found):
        lines.append(f"all splits: expected {cameras} cameras, found {found}")
    return lines


def counts(tracklets: Iterable[Tracklet], excluded: ExcludedFrames) -> dict[str, int]:
    """Numbers of the tracklets that keep a frame, for the metadata."""
    kept = {tracklet: len(excluded.usable(tracklet.paths)) for tracklet in tracklets}
    kept = {tracklet: frames for tracklet, frames in kept.items() if frames}
    modalities = Counter(tracklet.modality for tracklet in kept)
    return {
        "tracklets": len(kept),
        "frames": sum(kept.values()),
        "identities": len({tracklet.pid for tracklet in kept}),
        "cameras": len({tracklet.camera for tracklet in kept}),
        **dict(sorted(modalities.items())),
    }


def camera_table(tracklets: Iterable[Tracklet]) -> list[dict[str, Any]]:
    """Number, name and modalities of every camera, for the metadata."""
    modalities: dict[tuple[int, str], set[str]] = {}
    for tracklet in tracklets:
        modalities.setdefault((tracklet.camera, tracklet.cam_name), set()).add(tracklet.modality)
    return [
        {"number": number, "name": name, "modality": "+".join(sorted(modalities[number, name]))}
        for number, name in sorted(modalities)
    ]


def identity_remarks(splits: Mapping[str, Sequence[Tracklet]], closed_set: bool = False) -> list[str]:
    """What should be known about the identities of the splits before scoring.

    In a closed set those of the test are of the training, too; elsewhere that spoils the scores.
    """
    remarks = [] if closed_set else shared_identities(splits)
    alone = sorted(_pids(splits, "query") - _pids(splits, "gallery"))
    if alone:
        remarks.append(f"{len(alone)} query identities are not in the gallery, e.g. {_some(alone)}")
    return remarks


def shared_identities(splits: Mapping[str, Sequence[Tracklet]]) -> list[str]:
    """A line if there are identities that are in train and in the test splits."""
    both = sorted(_pids(splits, "train", "train_aux") & _pids(splits, "query", "gallery"))
    return [f"{len(both)} identities are in train and in the test splits, e.g. {_some(both)}"] if both else []


def _pids(splits: Mapping[str, Sequence[Tracklet]], *names: str) -> set[int]:
    return {tracklet.pid for name in names for tracklet in splits.get(name, ()) if tracklet.pid >= 0}


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:3]))


def choose(
    name: str, config: str | None, named: Mapping[str, Any], given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a configuration.

    Args:
      name: the data set, for messages.
      config: the configuration's name, None if it was not named.
      named: what that name says.
      given: options; None is not given.
      defaults: the rest, and the types of all.

    Raises:
      DataSetError: an option is of another type, or contradicts the configuration's name.
    """
    chosen = {**defaults, **named}
    for option, value in given.items():
        if value is None:
            continue
        if type(value) is not type(defaults[option]):
            kind = "True or False" if isinstance(defaults[option], bool) else "a whole number"
            raise DataSetError(f"{name}: {option} must be {kind}, got {value!r}")
        if config is not None and value != chosen[option]:
            raise DataSetError(
                f"{name}: option {option}={value} contradicts the configuration {config!r}, which means "
                f"{option}={chosen[option]}; give one of the two"
            )
        chosen[option] = value
    return chosen
