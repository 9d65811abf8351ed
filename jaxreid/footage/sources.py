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
from jaxreid.data.building.contents import (
    IMAGE_SUFFIXES,
    PICTURE_SUFFIXES,
    is_image,
    left_out,
    list_frames,
    twins_error,
)
from jaxreid.data.building.listed import shorten
from jaxreid.data.loose import FileReader, loose_split
from jaxreid.data.names import printable
from jaxreid.data.pictures import FORMATS, format_of
from jaxreid.data.prepared import SCALE, camera_names, is_prepared, read_metadata
from jaxreid.data.schema import MODALITIES
from jaxreid.data.sidecars import MissingSidecar, making
from jaxreid.data.split import UNKNOWN, FrameReader, Split, open_split, split_names
from jaxreid.dataset_info import DatasetInfo
from jaxreid.errors import UserError
from jaxreid.files import expand
from jaxreid.footage.making import make_tracklets
from jaxreid.footage.settings import TrackletError
from jaxreid.footage.video import VideoError
from jaxreid.report.pictures import thumbnail

FOLDER = "folder"  # the data set that a folder of tracklets is built as
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


RESCORE = {"auto": None, "always": True, "never": False}  # what a command line says of scores of pairs → asked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How sources are read, and for which run.

    Attributes:
      split: of a data set, "gallery" where empty; of a folder those that its table puts there, all where empty.
      modality: of videos and pictures.
      sixteen_bit: what is done with 16-bit pictures, one of `jaxreid.data.prepared.SIXTEEN_BIT`.
      data_dir: where built data sets live.
      info: the data set that the network knows the cameras of.
      sidecars: kinds that the run's method takes beside frames; a folder has those of the set it was built as.
    """

    split: str = ""
    modality: str = "rgb"
    sixteen_bit: str = SCALE
    data_dir: Path | None = None
    info: DatasetInfo | None = None
    sidecars: tuple[str, ...] = ()


def open_source(text: str, crops: Path, options: SourceOptions) -> Source:
    """The source that a word of the command line names; a path that exists comes before a data set's name.

    Args:
      text: a data set's NAME[/CONFIG], the directory of a built one, a folder `<camera>/<tracklet>/*.jpg`, or what
        `file_source` takes.
      crops: tracklets of videos are made in this folder, or taken from it.

    Raises:
      UserError: it is none of these, cannot be read, or lacks a sidecar; the message says what to do.
    """
    path = expand(text)
    if is_prepared(path):
        return dataset_source(f"{path.absolute().parent.parent.name}/{path.absolute().parent.name}", path, options)
    if path.exists():
        return loose_source(path, crops, options)
    if text == FOLDER:
        raise UserError(f"{FOLDER} is what a folder of one's own is built as: give that folder, or the set's directory")
    if text.partition("/")[0] in builder_names():
        return dataset_source(
            text, build.build(text, data_dir=options.data_dir, sixteen_bit=options.sixteen_bit), options
        )
    raise UserError(f"{text} is no file, no folder and no data set; data sets are {', '.join(builder_names())}")


def loose_source(path: Path, crops: Path, options: SourceOptions) -> Source:
    """A folder `<camera>/<tracklet>/*.jpg`, or what `file_source` takes."""
    if path.is_dir() and not pictures_in(path):
        return folder_source(path, options)
    return file_source(path, crops, options)


def file_source(path: Path, crops: Path, options: SourceOptions) -> Source:
    """A picture, a folder of pictures, or a video; what a file is, its content says.

    Raises:
      UserError: it is none of these, or cannot be read.
    """
    if path.is_dir():
        return picture_source(path, options)
    with path.open("rb") as file:
        start = file.read(16)
    if format_of(start):
        return picture_source(path, options)
    if is_image(path.name, PICTURE_SUFFIXES):
        raise UserError(f"{printable(path)} is called a picture, but its content is none; accepted are {ACCEPTED}")
    try:
        return video_source(path, crops, options)
    except (VideoError, TrackletError) as error:
        raise UserError(
            f"{error}\nOptions named here are those of jaxreid tracklets: make tracklets with it, and "
            f"give their folder. Accepted are {ACCEPTED}"
        ) from error


def dataset_source(name: str, directory: Path, options: SourceOptions) -> Source:
    """A split of a built data set."""
    split, info = options.split or "gallery", options.info
    same = info is not None and (name == info.name or _is_training_set(directory, info))
    found = open_split(directory, split, info.cameras if info is not None else None)
    if not same:  # its cameras are not those that the network may know
        unknown = np.full(len(found), UNKNOWN, np.int32)
        found = dataclasses.replace(found, table=dataclasses.replace(found.table, camera_index=unknown))
    names = camera_names(read_metadata(directory))
    cameras = [names.get(number, str(number)) for number in found.table.camera.tolist()]
    return Source(f"{name}:{split}", found, found.reader(cache=False), cameras, [None] * len(found))


def folder_source(
    path: Path, options: SourceOptions = SourceOptions(), name: str | None = None, only: str | None = None
) -> Source:
    """`path`/<camera>/<tracklet>/*.jpg, with what `tracklets.csv` says of modality and time where it is there.

    Args:
      name: of the source, if not the path.
      only: the one <camera>/<tracklet> that is wanted, if not all.

    Raises:
      UserError: frames cannot be used, which the message names; no tracklet is in the split that is asked for; or a
        sidecar is needed, and the folder was not built as a data set since it looks as it does.
    """
    # A sidecar counts the frames of the built set, which leaves out pictures of other formats.
    suffixes = IMAGE_SUFFIXES if options.sidecars else PICTURE_SUFFIXES
    folder = builder_module(FOLDER, "listing").list_folder(None, path, suffixes)
    _remark(path, folder.warnings, folder.faults)
    tracklets = [
        tracklet
        for tracklet in folder.tracklets
        if options.split in ("", tracklet.split) and only in (None, tracklet.folder)
    ]
    if not tracklets:
        raise UserError(f"{printable(path)}: its table puts no tracklet into the split {options.split!r}")
    trained_on_one = options.info is not None and options.info.name == FOLDER
    built = _built(path, options.data_dir) if options.sidecars or trained_on_one else None
    if built is None and options.sidecars:
        raise MissingSidecar(
            f"this run's method takes {', '.join(options.sidecars)} beside frames, and of {printable(path)} as it is "
            f"now there are none; make them with: {making(options.sidecars[0], path, options.data_dir)}"
        )
    index = _camera_index(built, options.info)
    split = loose_split(
        [len(tracklet.frames) for tracklet in tracklets],
        [tracklet.modality for tracklet in tracklets],
        [index.get(tracklet.camera, UNKNOWN) for tracklet in tracklets],
        names=[tracklet.tracklet_id for tracklet in tracklets],
        directory=built or Path(),
    )
    reader = FileReader([[path / frame for frame in tracklet.paths] for tracklet in tracklets], options.sixteen_bit)
    cameras, times = zip(*((tracklet.camera, tracklet.start_time) for tracklet in tracklets), strict=True)
    return Source(name or printable(path.resolve()), split, reader, cameras, times)


def _built(path: Path, data_dir: Path | None) -> Path | None:
    """The data set that a folder was built as; None where there is none, or none that is whole."""
    try:
        return build.find(FOLDER, data_dir=data_dir, source=path)
    except UserError:
        return None


def _is_training_set(directory: Path, info: DatasetInfo) -> bool:
    """Whether a built set is the one that a network was trained on: whether its tables are."""
    if "train" not in split_names(directory):
        return False
    table = open_split(directory, "train", info.cameras).table
    return all(np.array_equal(column, getattr(info.table, name), True) for name, column in vars(table).items())


def _camera_index(directory: Path | None, info: DatasetInfo | None) -> dict[str, int]:
    """Name → row in the network's table of cameras, where a folder is what the network was trained on."""
    if directory is None or info is None or not _is_training_set(directory, info):
        return {}
    names = camera_names(read_metadata(directory))
    return {names[number]: row for row, number in enumerate(info.cameras.tolist())}


def _remark(path: Path, warnings: Sequence[str], faults: Sequence[tuple[str, str]]) -> None:
    """Warns of what is left out of a folder. Raises UserError where frames in it cannot be used."""
    for warning in warnings:
        _LOG.warning("%s", warning)
    if faults:
        lines = shorten([f"{printable(path / name)}: {fault}" for name, fault in faults])
        raise UserError(f"{len(faults)} frames cannot be used; mend them or take them away:\n{lines}")


def video_source(path: Path, crops: Path, options: SourceOptions = SourceOptions()) -> Source:
    """The people of a video, detected and linked by `jaxreid.footage.making` unless that was done before.

    Args:
      crops: their tracklets are kept in a folder of it, named after the file, its size and its time.
    """
    status, name, stem = path.stat(), printable(path.resolve()), printable(path.stem).replace("\\", "_")
    key = hashlib.sha256(f"{name} {status.st_size} {status.st_mtime_ns} {options.modality}".encode()).hexdigest()[:8]
    folder = crops / f"{stem}-{key}"
    if not folder.exists():
        crops.mkdir(parents=True, exist_ok=True)
        make_tracklets([path], folder, modality=options.modality)
    return folder_source(folder, dataclasses.replace(options, split=""), name)


def picture_source(path: Path, options: SourceOptions = SourceOptions()) -> Source:
    """One tracklet: a picture file, or the pictures in a folder in the order of their names.

    Raises:
      UserError: pictures in a folder cannot be used, or two have one name, which the message names; or sidecars are
        needed, and it is no tracklet of a folder that was built as a data set.
    """
    if options.sidecars:
        return _tracklet_source(path, options)
    files = [path]
    if path.is_dir():
        found = list_frames(path, PICTURE_SUFFIXES)
        if found.twins:
            raise UserError(twins_error(path, found.twins))
        _remark(path, [left_out(path, found.others)] if found.others else [], found.faults)
        files = [path / name for name in found.images]
    split = loose_split([len(files)], options.modality, names=[printable(path.name)])
    return Source(printable(path.resolve()), split, FileReader([files], options.sixteen_bit), [""], [None])


def _tracklet_source(path: Path, options: SourceOptions) -> Source:
    """A folder <camera>/<tracklet> of a folder of tracklets that was built as a data set, whose sidecars it has."""
    place = path.resolve()
    root = place.parent.parent
    if not path.is_dir() or _built(root, options.data_dir) is None:
        raise UserError(without_sidecars(path, options.sidecars))
    whole = dataclasses.replace(options, split="")
    return folder_source(root, whole, printable(place), f"{place.parent.name}/{place.name}")


def without_sidecars(path: Path, kinds: Sequence[str]) -> str:
    """What to do about pictures or a video that a method takes more than frames of."""
    return (
        f"this run's method takes {', '.join(kinds)} beside frames, which {printable(path)} alone does not have: put "
        "frames into FOLDER/<camera>/<tracklet>/ (jaxreid tracklets does so with a video), make them for FOLDER "
        "(docs/sidecars.md) and give FOLDER; in Python, jaxreid.load(…).embed(frames, extras=…) takes them"
    )


def pictures_in(folder: Path) -> list[Path]:
    """Picture files that lie in a folder itself."""
    return [file for file in folder.iterdir() if file.is_file() and is_image(file.name, PICTURE_SUFFIXES)]
