"""Where tracklets to embed come from: a built data set, a folder of tracklets, a video, pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxreid.data import build
from jaxreid.data.builders import builder_module, builder_names
from jaxreid.data.building.contents import PICTURE_SUFFIXES, is_image, left_out, list_frames, twins_error
from jaxreid.data.building.listed import shorten
from jaxreid.data.loose import FileReader, loose_split
from jaxreid.data.names import printable
from jaxreid.data.pictures import FORMATS, format_of
from jaxreid.data.prepared import SCALE, read_metadata
from jaxreid.data.schema import MODALITIES
from jaxreid.data.split import UNKNOWN, FrameReader, Split, open_split
from jaxreid.dataset_info import DatasetInfo
from jaxreid.errors import UserError
from jaxreid.files import expand
from jaxreid.footage.making import make_tracklets
from jaxreid.footage.settings import TrackletError
from jaxreid.footage.video import VideoError
from jaxreid.report.pictures import thumbnail

ACCEPTED = f"a picture ({', '.join(FORMATS)}), a folder of pictures or of <camera>/<tracklet>/, and a video"
_LOG = logging.getLogger(__name__)


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


def open_source(
    text: str,
    split: str,
    modality: str,
    data_dir: Path | None,
    crops: Path,
    info: DatasetInfo,
    sixteen_bit: str = SCALE,
) -> Source:
    """The source that a word of the command line names; a path that exists comes before a data set's name.

    Args:
      text: a data set's NAME[/CONFIG], a folder `<camera>/<tracklet>/*.jpg`, or what `file_source` takes.
      split: of a data set.
      modality: of a video or pictures.
      data_dir: where built data sets live.
      crops: tracklets of videos are made in this folder, or taken from it.
      info: the data set that the network knows the cameras of.
      sixteen_bit: what is done with 16-bit pictures, one of `jaxreid.data.prepared.SIXTEEN_BIT`.

    Raises:
      UserError: it is none of these, or cannot be read; the message says what to do.
    """
    path = expand(text)
    if path.exists():
        return loose_source(path, crops, modality, sixteen_bit)
    if text.partition("/")[0] in builder_names():
        return dataset_source(text, split, data_dir, info, sixteen_bit)
    raise UserError(f"{text} is no file, no folder and no data set; data sets are {', '.join(builder_names())}")


def loose_source(path: Path, crops: Path, modality: str, sixteen_bit: str = SCALE) -> Source:
    """A folder `<camera>/<tracklet>/*.jpg`, or what `file_source` takes."""
    if path.is_dir() and not pictures_in(path):
        return folder_source(path, sixteen_bit=sixteen_bit)
    return file_source(path, crops, modality, sixteen_bit)


def file_source(path: Path, crops: Path, modality: str, sixteen_bit: str = SCALE) -> Source:
    """A picture, a folder of pictures, or a video; what a file is, its content says.

    Raises:
      UserError: it is none of these, or cannot be read.
    """
    if path.is_dir():
        return picture_source(path, modality, sixteen_bit)
    with path.open("rb") as file:
        start = file.read(16)
    if format_of(start):
        return picture_source(path, modality, sixteen_bit)
    if is_image(path.name, PICTURE_SUFFIXES):
        raise UserError(f"{printable(path)} is called a picture, but its content is none; accepted are {ACCEPTED}")
    try:
        return video_source(path, crops, modality)
    except (VideoError, TrackletError) as error:
        raise UserError(
            f"{error}\nOptions named here are those of jaxreid tracklets: make tracklets with it, and "
            f"give their folder. Accepted are {ACCEPTED}"
        ) from error


def dataset_source(name: str, split: str, data_dir: Path | None, info: DatasetInfo, sixteen_bit: str = SCALE) -> Source:
    """A split of a built data set (which is built first where that needs no download)."""
    directory = build.build(name, data_dir=data_dir, sixteen_bit=sixteen_bit)
    same = name == info.name
    found = open_split(directory, split, info.cameras if same else None)
    if not same:  # its cameras are not those that the network may know
        unknown = np.full(len(found), UNKNOWN, np.int32)
        found = dataclasses.replace(found, table=dataclasses.replace(found.table, camera_index=unknown))
    names = {int(camera["number"]): camera["name"] for camera in read_metadata(directory).get("cameras", ())}
    cameras = [str(names.get(number, number)) for number in found.table.camera.tolist()]
    return Source(f"{name}:{split}", found, found.reader(cache=False), cameras, [None] * len(found))


def folder_source(path: Path, name: str | None = None, sixteen_bit: str = SCALE) -> Source:
    """`path`/<camera>/<tracklet>/*.jpg, with what `tracklets.csv` says of modality and time where it is there.

    Raises:
      UserError: frames cannot be used; the message names them.
    """
    folder = builder_module("folder", "listing").list_folder(None, path, PICTURE_SUFFIXES)
    _remark(path, folder.warnings, folder.faults)
    tracklets = folder.tracklets
    split = loose_split(
        [len(tracklet.frames) for tracklet in tracklets],
        [tracklet.modality for tracklet in tracklets],
        names=[tracklet.tracklet_id for tracklet in tracklets],
    )
    reader = FileReader([[path / frame for frame in tracklet.paths] for tracklet in tracklets], sixteen_bit)
    cameras, times = zip(*((tracklet.camera, tracklet.start_time) for tracklet in tracklets), strict=True)
    return Source(name or printable(path.resolve()), split, reader, cameras, times)


def _remark(path: Path, warnings: Sequence[str], faults: Sequence[tuple[str, str]]) -> None:
    """Warns of what is left out of a folder. Raises UserError where frames in it cannot be used."""
    for warning in warnings:
        _LOG.warning("%s", warning)
    if faults:
        lines = shorten([f"{printable(path / name)}: {fault}" for name, fault in faults])
        raise UserError(f"{len(faults)} frames cannot be used; mend them or take them away:\n{lines}")


def video_source(path: Path, crops: Path, modality: str = "rgb") -> Source:
    """The people of a video, detected and linked by `jaxreid.footage.making` unless that was done before.

    Args:
      crops: their tracklets are kept in a folder of it, named after the file, its size and its time.
    """
    status, name, stem = path.stat(), printable(path.resolve()), printable(path.stem).replace("\\", "_")
    key = hashlib.sha256(f"{name} {status.st_size} {status.st_mtime_ns} {modality}".encode()).hexdigest()[:8]
    folder = crops / f"{stem}-{key}"
    if not folder.exists():
        crops.mkdir(parents=True, exist_ok=True)
        make_tracklets([path], folder, modality=modality)
    return folder_source(folder, name)


def picture_source(path: Path, modality: str = "rgb", sixteen_bit: str = SCALE) -> Source:
    """One tracklet: a picture file, or the pictures in a folder in the order of their names.

    Raises:
      UserError: pictures in a folder cannot be used, or two have one name; the message names them.
    """
    files = [path]
    if path.is_dir():
        found = list_frames(path, PICTURE_SUFFIXES)
        if found.twins:
            raise UserError(twins_error(path, found.twins))
        _remark(path, [left_out(path, found.others)] if found.others else [], found.faults)
        files = [path / name for name in found.images]
    split = loose_split([len(files)], modality, names=[printable(path.name)])
    return Source(printable(path.resolve()), split, FileReader([files], sixteen_bit), [""], [None])


def pictures_in(folder: Path) -> list[Path]:
    """Picture files that lie in a folder itself."""
    return [file for file in folder.iterdir() if file.is_file() and is_image(file.name, PICTURE_SUFFIXES)]
