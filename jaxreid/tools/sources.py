"""Where tracklets to embed come from: a built data set, a folder of tracklets, a video, pictures."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxreid.data import build
from jaxreid.data.loose import FileReader, loose_split
from jaxreid.data.schema import MODALITIES
from jaxreid.data.split import UNKNOWN, FrameReader, Split, open_split
from jaxreid.errors import UserError
from jaxreid.files import expand
from jaxreid.methods.method import DatasetInfo
from jaxreid.report.pictures import thumbnail
from jaxreid.tools.tracklets import make_tracklets

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclasses.dataclass(frozen=True)
class Source:
    """Tracklets with what is known of each; `name` is what a gallery calls the source, `times` are in seconds."""

    name: str
    split: Split
    reader: FrameReader
    cameras: Sequence[str]
    times: Sequence[float | None]

    def metadata(self, row: int) -> dict[str, Any]:
        """JSON-ready: `source`, `time` of the first frame, `camera`, `modality`, `tracklet` (its name), `frames`."""
        table = self.split.table
        return {
            "source": self.name,
            "time": self.times[row],
            "camera": self.cameras[row],
            "modality": MODALITIES[table.modality[row]],
            "tracklet": self.split.labels.names[row],
            "frames": int(table.length[row]),
        }

    def pictures(self, row: int, count: int = 1) -> tuple[bytes, ...]:
        """Thumbnails of frames at even distances; of the middle one where one is asked for."""
        length = int(self.split.table.length[row])
        chosen = np.linspace(0, length - 1, count).round().astype(int) if count > 1 else [length // 2]
        return tuple(map(thumbnail, self.reader.decode_each(row, np.unique(chosen).tolist())))


def open_source(text: str, split: str, modality: str, data_dir: Path | None, crops: Path, info: DatasetInfo) -> Source:
    """The source that a word of the command line names; a path that exists comes before a data set's name.

    Args:
      text: a data set's NAME[/CONFIG], a folder `<camera>/<tracklet>/*.jpg`, or a video.
      split: of a data set.
      modality: of a video.
      data_dir: where built data sets live.
      crops: tracklets of videos are made in this folder, or taken from it.
      info: the data set that the network knows the cameras of.

    Raises:
      UserError: it is none of these, or cannot be read; the message says what to do.
    """
    path = expand(text)
    if path.is_dir():
        return folder_source(path)
    if path.is_file():
        return video_source(path, crops, modality)
    if text.partition("/")[0] in build.builder_names():
        return dataset_source(text, split, data_dir, info)
    raise UserError(f"{text} is no file, no folder and no data set; data sets are {', '.join(build.builder_names())}")


def dataset_source(name: str, split: str, data_dir: Path | None, info: DatasetInfo) -> Source:
    """A split of a built data set (which is built first where that needs no download)."""
    directory = build.build(name, data_dir=data_dir)
    same = name == info.name
    found = open_split(directory, split, info.cameras if same else None)
    if not same:  # its cameras are not those that the network may know
        unknown = np.full(len(found), UNKNOWN, np.int32)
        found = dataclasses.replace(found, table=dataclasses.replace(found.table, camera_index=unknown))
    names = {int(camera["number"]): camera["name"] for camera in build.read_metadata(directory).get("cameras", ())}
    cameras = [str(names.get(number, number)) for number in found.table.camera.tolist()]
    return Source(f"{name}:{split}", found, found.reader(cache=False), cameras, [None] * len(found))


def folder_source(path: Path, name: str | None = None) -> Source:
    """`path`/<camera>/<tracklet>/*.jpg, with what `tracklets.csv` says of modality and time where it is there."""
    listing = importlib.import_module(f"{build.builder_package('folder').__name__}.listing")
    tracklets = listing.list_folder(None, path).tracklets
    times: dict[str, float] = {}
    if (path / listing.TABLE).is_file():
        with (path / listing.TABLE).open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                if start := (row.get("start_time") or "").strip():
                    times[f"{row['camera'].strip()}/{row['tracklet'].strip()}"] = float(start)
    split = loose_split(
        [len(tracklet.frames) for tracklet in tracklets],
        [tracklet.modality for tracklet in tracklets],
        names=[tracklet.tracklet_id for tracklet in tracklets],
    )
    reader = FileReader([[path / frame for frame in tracklet.paths] for tracklet in tracklets])
    cameras = [tracklet.camera for tracklet in tracklets]
    return Source(name or str(path.resolve()), split, reader, cameras, [times.get(t.tracklet_id) for t in tracklets])


def video_source(path: Path, crops: Path, modality: str = "rgb") -> Source:
    """The people of a video, detected and linked by `jaxreid.tools.tracklets` unless that was done before.

    Args:
      crops: their tracklets are kept in a folder of it, named after the file, its size and its time.
    """
    status = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {modality}".encode()).hexdigest()[:8]
    folder = crops / f"{path.stem}-{key}"
    if not folder.exists():
        crops.mkdir(parents=True, exist_ok=True)
        make_tracklets([path], folder, modality=modality)
    return folder_source(folder, str(path.resolve()))


def picture_source(path: Path, modality: str = "rgb") -> Source:
    """One tracklet: a picture file, or the pictures in a folder in the order of their names."""
    from jaxreid.data.building.listed import natural_key

    files = [path] if path.is_file() else pictures_in(path)
    files.sort(key=lambda file: natural_key(file.name))
    split = loose_split([len(files)], modality, names=[path.name])
    return Source(str(path.resolve()), split, FileReader([files]), [""], [None])


def pictures_in(folder: Path) -> list[Path]:
    """Picture files that lie in a folder itself."""
    return [file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES]
