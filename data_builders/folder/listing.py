"""What lies in a folder of tracklets, and what `tracklets.csv` says of it; nothing is opened but the table."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import re
from collections import Counter
from pathlib import Path

from jaxreid.data.build import DataSetError
from jaxreid.data.building.listed import natural_key, shorten

TABLE = "tracklets.csv"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MODALITIES = ("rgb", "ir")
SPLITS = ("train", "train_aux", "val", "query", "gallery")
REQUIRED_COLUMNS = ("camera", "tracklet", "identity", "modality", "split")


@dataclasses.dataclass(frozen=True)
class Tracklet:
    """One tracklet folder and its row of the table; "" is unknown."""

    camera: str
    name: str
    frames: tuple[str, ...]  # file names in the order of their numbers
    identity: str = ""
    modality: str = "rgb"
    split: str = ""
    recording: str = ""

    @property
    def tracklet_id(self) -> str:
        return f"{self.camera}/{self.name}"

    @property
    def paths(self) -> list[str]:
        """The frames' paths relative to the folder."""
        return [f"{self.camera}/{self.name}/{frame}" for frame in self.frames]


@dataclasses.dataclass(frozen=True)
class Folder:
    """A listed folder: its tracklets sorted by camera and name, and the name that its built form gets."""

    path: Path
    name: str
    tracklets: tuple[Tracklet, ...]
    has_table: bool
    warnings: tuple[str, ...]


def list_folder(config: str | None, source: Path | None) -> Folder:
    """Lists `source`/<camera>/<tracklet>/*.jpg|jpeg|png and reads `source`/tracklets.csv where there is one.

    The name carries a fingerprint of the paths, sizes and times of the frames and of the table.

    Raises:
      DataSetError: no such folder, a folder of another layout, an empty tracklet, or a table that does not fit it;
        the message lists every place.
    """
    if config is not None:
        raise DataSetError(f"folder: takes no configuration, got {config!r}; give the directory with --source")
    if source is None:
        raise DataSetError("folder: which directory? Give it with --source DIR, holding <camera>/<tracklet>/*.jpg")
    if not source.is_dir():
        raise DataSetError(f"folder: {source} is not a directory")
    digest = hashlib.sha256()
    errors: list[str] = []
    warnings: list[str] = []
    found: dict[tuple[str, str], Tracklet] = {}
    for camera in _subdirectories(source):
        loose = [entry.name for entry in _files(camera) if _is_image(entry.name)]
        if loose:
            errors.append(f"{camera.path}: images lie in the camera's folder, e.g. {loose[0]}; put each tracklet's "
                          "into a folder of its own")  # fmt: skip
        for tracklet in _subdirectories(camera):
            images = [entry for entry in _files(tracklet) if _is_image(entry.name)]
            others = [entry.name for entry in _files(tracklet) if not _is_image(entry.name)]
            if others:
                warnings.append(
                    f"{tracklet.path}: {len(others)} files are not images and are left out, e.g. {others[0]}"
                )
            if not images:
                errors.append(f"{tracklet.path}: holds no image (*.jpg, *.jpeg, *.png); remove the folder or fill it")
            for entry in images:
                status = entry.stat()
                digest.update(
                    f"{camera.name}/{tracklet.name}/{entry.name}\n{status.st_size} {status.st_mtime_ns}\n".encode()
                )
            frames = tuple(sorted((entry.name for entry in images), key=natural_key))
            found[camera.name, tracklet.name] = Tracklet(camera.name, tracklet.name, frames)
    if not found:
        raise DataSetError(f"folder: {source} holds no tracklets; expected {source}/<camera>/<tracklet>/*.jpg")
    table = source / TABLE
    if table.is_file():
        digest.update(table.read_bytes())
        found, problems = _apply_table(table, found)
        errors += problems
    if errors:
        raise DataSetError(f"folder: {source} cannot be built:\n" + shorten(errors))
    per_camera = Counter(tracklet.camera for tracklet in found.values())
    warnings += [f"camera {camera} has one tracklet only" for camera, count in per_camera.items() if count == 1]
    name = f"{re.sub(r'[^A-Za-z0-9_-]+', '_', source.name) or 'root'}-{digest.hexdigest()[:12]}"
    tracklets = tuple(sorted(found.values(), key=lambda tracklet: tracklet.tracklet_id))
    return Folder(source, name, tracklets, table.is_file(), tuple(warnings))


def _apply_table(
    table: Path, found: dict[tuple[str, str], Tracklet]
) -> tuple[dict[tuple[str, str], Tracklet], list[str]]:
    """The tracklets with what the table says of them, and everything that is wrong with it."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        return found, [f"{table}: is not a UTF-8 comma-separated table ({error})"]
    absent = [column for column in REQUIRED_COLUMNS if column not in columns]
    if absent:
        return found, [f"{table}: lacks the columns {absent}; it has {columns}"]
    errors: list[str] = []
    placed: dict[tuple[str, str], int] = {}
    described = dict(found)
    for line, row in enumerate(rows, start=2):
        where = f"{table}, row {line}"
        values = {column: (row.get(column) or "").strip() for column in [*REQUIRED_COLUMNS, "recording"]}
        camera, tracklet, identity, modality, split, recording = values.values()
        key = (camera, tracklet)
        modality = modality.lower() or "rgb"
        if None in row:
            errors.append(f"{where}: has more cells than there are columns; quote cells that hold commas")
        if key in placed:
            errors.append(f"{where}: {camera}/{tracklet} is there already, in row {placed[key]}; keep one of them")
        placed.setdefault(key, line)
        if key not in found:
            errors.append(f"{where}: there is no folder {table.parent / camera / tracklet}; correct or remove the row")
            continue
        if modality not in MODALITIES:
            errors.append(f"{where}: unknown modality {modality!r}; write one of {', '.join(MODALITIES)}")
        if split and split not in SPLITS:
            errors.append(f"{where}: unknown split {split!r}; write one of {', '.join(SPLITS)}, or leave all empty")
        errors += [f"{where}: {problem}" for problem in _time_problems(row)]
        described[key] = dataclasses.replace(
            found[key],
            identity="" if identity == "-1" else identity,
            modality=modality,
            split=split,
            recording=recording,
        )
    unplaced = [f"{camera}/{name}" for camera, name in found if (camera, name) not in placed]
    if unplaced:
        errors.append(
            f"{table}: has no row for {len(unplaced)} tracklet folders, e.g. {', '.join(unplaced[:3])}; add rows or "
            "move the folders away"
        )
    return described, errors + _split_problems(table, list(described.values()))


def _time_problems(row: dict[str, str]) -> list[str]:
    times = []
    for column in ("start_time", "end_time"):
        text = (row.get(column) or "").strip()
        try:
            times.append(float(text) if text else None)
        except ValueError:
            return [f"{column} {text!r} is not a number of seconds"]
    start, end = times
    backwards = start is not None and end is not None and end < start
    return [f"end_time {end} is before start_time {start}"] if backwards else []


def _split_problems(table: Path, tracklets: list[Tracklet]) -> list[str]:
    """What keeps the table's splits from being scored, or from being splits."""
    without = [tracklet.tracklet_id for tracklet in tracklets if not tracklet.split]
    if len(without) == len(tracklets):
        if any(tracklet.identity for tracklet in tracklets):
            return [f"{table}: gives identities but no splits; fill the column split with train, query, gallery"]
        return []
    errors = []
    if without:
        errors.append(
            f"{table}: {len(without)} rows have no split and others do, e.g. {', '.join(without[:3])}; fill in all "
            "or none"
        )
    present = {tracklet.split for tracklet in tracklets}
    for split, other in (("query", "gallery"), ("gallery", "query")):
        if split in present and other not in present:
            errors.append(f"{table}: has {split} rows but no {other} rows; both are needed to score, or neither")
    tested = [tracklet for tracklet in tracklets if tracklet.split in ("query", "gallery")]
    nameless = [tracklet.tracklet_id for tracklet in tested if not tracklet.identity]
    if nameless and len(nameless) < len(tested):
        errors.append(
            f"{table}: {len(nameless)} query or gallery rows have no identity and others do, e.g. "
            f"{', '.join(nameless[:3])}; fill in all (to be scored) or none"
        )
    return errors


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _entries(directory: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataSetError(f"folder: cannot read {os.fspath(directory)}: {error.strerror}") from error


def _subdirectories(directory: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    return [entry for entry in _entries(directory) if entry.is_dir()]


def _files(directory: os.DirEntry[str]) -> list[os.DirEntry[str]]:
    return [entry for entry in _entries(directory) if entry.is_file()]
