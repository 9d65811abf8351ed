"""What lies in a folder of tracklets, and what `tracklets.csv` says of it; nothing is opened but the table."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import re
from pathlib import Path

from jaxreid.data.building.contents import IMAGE_SUFFIXES, is_image, left_out, list_frames, scan, twins_error
from jaxreid.data.building.listed import shorten
from jaxreid.data.names import known, nfc, printable
from jaxreid.errors import DataSetError

TABLE = "tracklets.csv"
MODALITIES = ("rgb", "ir")
SPLITS = ("train", "train_aux", "val", "query", "gallery")
REQUIRED_COLUMNS = ("camera", "tracklet", "identity", "modality", "split")


@dataclasses.dataclass(frozen=True)
class Tracklet:
    """One tracklet folder and its row of the table; "" is unknown. Names are in composed Unicode form."""

    camera: str
    name: str
    folder: str  # as it is on the disk, <camera>/<name>
    frames: tuple[str, ...]  # file names in the order of their numbers
    identity: str = ""
    modality: str = "rgb"
    split: str = ""
    recording: str = ""
    start_time: float | None = None  # seconds

    @property
    def tracklet_id(self) -> str:
        return f"{self.camera}/{self.name}"

    @property
    def paths(self) -> list[str]:
        """The frames' paths relative to the folder."""
        return [f"{self.folder}/{frame}" for frame in self.frames]


@dataclasses.dataclass(frozen=True)
class Folder:
    """A listed folder: its tracklets sorted by camera and name, and the name that its built form gets.

    `faults` are frames that cannot be used, and links to nothing where a camera, a tracklet or a frame should be.
    """

    path: Path
    name: str
    tracklets: tuple[Tracklet, ...]
    has_table: bool
    warnings: tuple[str, ...]
    faults: tuple[tuple[str, str], ...]


def list_folder(config: str | None, source: Path | None, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Folder:
    """Lists `source`/<camera>/<tracklet>/*.jpg|jpeg|png (or other `suffixes`), and reads `source`/tracklets.csv
    where there is one.

    The name carries a fingerprint of the paths, sizes and times of the frames, of what is wrong with others, and of the
    table.

    Raises:
      DataSetError: no such folder, a folder of another layout, an empty tracklet, two pictures of one name in one, or a
        table that does not fit the folder; the message lists every place.
    """
    if config is not None:
        raise DataSetError(f"folder: takes no configuration, got {config!r}; give the directory with --source")
    if source is None:
        raise DataSetError("folder: which directory? Give it with --source DIR, holding <camera>/<tracklet>/*.jpg")
    if not source.is_dir():
        raise DataSetError(f"folder: {source} is not a directory")
    reader = _Reader(source, suffixes)
    found, errors, warnings, digest = reader.read(), reader.errors, reader.warnings, reader.digest
    digest.update("".join(f"{path} {fault}\n" for path, fault in reader.faults).encode())
    if not found and not errors:
        lost = "".join(f"\n  {source / path}: {fault}" for path, fault in reader.faults)
        raise DataSetError(f"folder: {source} holds no tracklets; expected {source}/<camera>/<tracklet>/*.jpg{lost}")
    table = source / TABLE
    if table.is_file():
        digest.update(table.read_bytes())
        found, problems = _apply_table(table, found)
        errors += problems
    if errors:
        raise DataSetError(f"folder: {source} cannot be built:\n" + shorten(errors))
    name = f"{re.sub(r'[^A-Za-z0-9_-]+', '_', source.name) or 'root'}-{digest.hexdigest()[:12]}"
    tracklets = tuple(sorted(found.values(), key=lambda tracklet: tracklet.tracklet_id))
    return Folder(source, name, tracklets, table.is_file(), tuple(warnings), tuple(reader.faults))


class _Reader:
    """Reads the folders below `source`, and gathers what is to be said of them."""

    def __init__(self, source: Path, suffixes: tuple[str, ...]) -> None:
        self.source, self.suffixes = source, suffixes
        self.digest = hashlib.sha256()
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.faults: list[tuple[str, str]] = []

    def read(self) -> dict[tuple[str, str], Tracklet]:
        """The tracklets by camera and name."""
        found: dict[tuple[str, str], Tracklet] = {}
        for camera in self._folders(""):
            for name in self._folders(f"{camera}/"):
                tracklet = self._tracklet(camera, name)
                other = found.setdefault((tracklet.camera, tracklet.name), tracklet)
                if other is not tracklet:
                    self.errors.append(
                        f"{self.source}: two folders are called {other.tracklet_id}, in two Unicode forms; rename one"
                    )
        return found

    def _folders(self, directory: str) -> list[str]:
        """Names of the folders in the source or, with "camera/", in a camera's folder."""
        entries = scan(self.source / directory)
        place = self.source / directory
        loose = [printable(name) for name in entries.files if is_image(name, self.suffixes)]
        others = [printable(name) for name in entries.files if not is_image(name, self.suffixes)]
        if loose:
            self.errors.append(f"{place}: images lie in {'the camera' if directory else 'the source'}'s folder, e.g. "
                               f"{loose[0]}; put each tracklet's into a folder of its own")  # fmt: skip
        if directory and others:
            self.warnings.append(left_out(place, others))
        self.errors += [f"{place / name}: {fault}; rename it" for name, fault in entries.unreadable]
        self.faults += [(f"{directory}{name}", fault) for name, fault in entries.broken]
        return entries.folders

    def _tracklet(self, camera: str, name: str) -> Tracklet:
        folder = f"{camera}/{name}"
        place = self.source / folder
        there = list_frames(place, self.suffixes)
        if there.others:
            self.warnings.append(left_out(place, there.others))
        if there.twins:
            self.errors.append(twins_error(place, there.twins))
        if not there.images:
            why = f" that can be used ({' '.join(there.faults[0])})" if there.faults else ""
            self.errors.append(
                f"{place}: holds no image{why} (*{', *'.join(self.suffixes)}); remove the folder or fill it"
            )
        self.faults += [(f"{folder}/{frame}", fault) for frame, fault in there.faults]
        for frame in sorted(there.images):
            status = (place / frame).stat()
            self.digest.update(f"{folder}/{frame}\n{status.st_size} {status.st_mtime_ns}\n".encode())
        return Tracklet(nfc(camera), nfc(name), folder, tuple(there.images))


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
        camera, tracklet = (nfc((row[column] or "").strip()) for column in ("camera", "tracklet"))
        key = (camera, tracklet)
        identity, modality, split, recording = (
            known(row.get(column)) for column in ("identity", "modality", "split", "recording")
        )
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
        start, problems = _times(row)
        errors += [f"{where}: {problem}" for problem in problems]
        described[key] = dataclasses.replace(
            found[key],
            identity=identity,
            modality=modality,
            split=split,
            recording=recording,
            start_time=start,
        )
    unplaced = [f"{camera}/{name}" for camera, name in found if (camera, name) not in placed]
    if unplaced:
        errors.append(
            f"{table}: has no row for {len(unplaced)} tracklet folders, e.g. {', '.join(unplaced[:3])}; add rows or "
            "move the folders away"
        )
    return described, errors + _split_problems(table, list(described.values()))


def _times(row: dict[str, str]) -> tuple[float | None, list[str]]:
    """When a tracklet starts, and what is wrong with its times."""
    times = []
    for column in ("start_time", "end_time"):
        text = known(row.get(column))
        try:
            times.append(float(text) if text else None)
        except ValueError:
            return None, [f"{column} {text!r} is not a number of seconds"]
    start, end = times
    backwards = start is not None and end is not None and end < start
    return start, [f"end_time {end} is before start_time {start}"] if backwards else []


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
