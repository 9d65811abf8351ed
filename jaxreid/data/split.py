"""One split of a built data set: its tables, and its frames read on demand.

What an unsupervised method may see (`TrackletTable`) and what could tell an identity (`Labels`) are separate
types from here on, so that the second can be withheld.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxreid.data import schema

UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class TrackletTable:
    """What is known of each of N tracklets without knowing who it shows; one row per tracklet."""

    length: np.ndarray  # i32[N], frames in the record
    camera: np.ndarray  # i32[N], the data set's own number
    camera_index: np.ndarray  # i32[N], row in the training camera table, −1 not in it
    modality: np.ndarray  # i32[N]
    platform: np.ndarray  # i32[N]
    session: np.ndarray  # i32[N]
    geometry: np.ndarray  # f32[N, 3]
    recording: np.ndarray  # i32[N], tracklets cut from one continuous recording share it; −1 unknown

    def __len__(self) -> int:
        return len(self.length)


@dataclasses.dataclass(frozen=True)
class Labels:
    """Everything that could carry an identity; withheld from methods that do not declare that they use it."""

    pid: np.ndarray  # i32[N], the data set's own number
    identity: np.ndarray  # i32[N], 0…C−1 over the training identities, −1 elsewhere
    clothes: np.ndarray  # i32[N]
    pair: np.ndarray  # i32[N]
    names: tuple[str, ...]  # tracklet ids


@dataclasses.dataclass(frozen=True)
class Split:
    """Tracklets of one split in the order of their names."""

    directory: Path
    name: str
    table: TrackletTable
    labels: Labels
    record: np.ndarray  # i64[N], position in the files

    def __len__(self) -> int:
        return len(self.record)

    def reader(self, *, cache: bool) -> FrameReader:
        return FrameReader(self.directory, self.name, self.record, self.labels.names, cache)


class FrameReader:
    """Encoded frames of a tracklet by its row; pickles into loader processes, opens the files on first use."""

    def __init__(self, directory: Path, split: str, record: np.ndarray, names: Sequence[str], cache: bool) -> None:
        self.directory, self.split, self.record, self.names, self.cache = (
            directory,
            split,
            record,
            names,
            cache,
        )
        self._known: dict[int, list[bytes]] = {}

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k != "_source"}
        return {**state, "_known": {}}

    @functools.cached_property
    def _source(self) -> Any:
        return _open_source(self.directory, self.split)

    def encoded(self, row: int) -> list[bytes]:
        """The original bytes of every frame of tracklet `row`."""
        frames = self._known.get(row)
        if frames is None:
            frames = self._source[int(self.record[row])]["frames"]
            if self.cache:
                self._known[row] = frames
        return frames

    def decode(self, row: int, index: int) -> np.ndarray:
        """One frame, u8[H, W, 3] in RGB order.

        Raises:
          ValueError: the frame cannot be decoded; the message names the tracklet and the frame.
        """
        raw = self.encoded(row)[index]
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise ValueError(
                f"{self.directory} split {self.split!r}: frame {index} of tracklet {self.names[row]!r} cannot be "
                f"decoded ({len(raw)} bytes); build the data set again from intact files"
            )
        return image


def _open_source(directory: Path, split: str) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(str(directory)).as_data_source(split)  # pyright: ignore[reportCallIssue]


def split_names(directory: Path) -> tuple[str, ...]:
    """Names of the splits of a built data set."""
    info = json.loads((Path(directory) / "dataset_info.json").read_text())
    return tuple(split["name"] for split in info["splits"])


def open_split(directory: Path, name: str, cameras: np.ndarray | None = None) -> Split:
    """Opens a split of a built data set.

    Args:
      directory: the TFDS directory of the data set (…/name/config/version).
      name: the split.
      cameras: sorted camera numbers of the training camera table; the split's own where not given.

    Raises:
      ValueError: the data set has no such split, or it is empty.
    """
    directory = Path(directory)
    known = split_names(directory)
    if name not in known:
        raise ValueError(f"{directory}: no split {name!r}; it has {', '.join(known)}")
    rows = _index(directory, name)
    if not len(rows["names"]):
        raise ValueError(f"{directory}: split {name!r} holds no tracklet")
    cameras = np.unique(rows["camera"]) if cameras is None else cameras
    index = np.searchsorted(cameras, rows["camera"])
    found = cameras[np.minimum(index, len(cameras) - 1)] == rows["camera"]
    table = TrackletTable(
        length=rows["length"],
        camera=rows["camera"],
        camera_index=np.where(found, index, UNKNOWN).astype(np.int32),
        modality=rows["modality"],
        platform=rows["platform"],
        session=rows["session"],
        geometry=rows["geometry"],
        recording=_codes(rows["recording"]),
    )
    labels = Labels(
        pid=rows["pid"],
        identity=rows["label"],
        clothes=rows["clothes"],
        pair=_codes(rows["pair"]),
        names=tuple(rows["names"].tolist()),
    )
    return Split(directory, name, table, labels, rows["record"])


def _codes(names: np.ndarray) -> np.ndarray:
    """Equal names get equal numbers; the empty name gets −1."""
    values, codes = np.unique(names, return_inverse=True)
    return np.where(values[codes] == "", UNKNOWN, codes).astype(np.int32)


def _index(directory: Path, split: str) -> dict[str, np.ndarray]:
    """The split's tables, from the file beside the records; one pass over the records makes it the first time."""
    path = directory / "index" / f"{split}.npz"
    if path.exists():
        with np.load(path) as file:
            return dict(file)
    rows = _read_index(_open_source(directory, split))
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.npz")
    np.savez(aside, **rows)  # pyright: ignore[reportArgumentType]
    os.replace(aside, path)
    return rows


def _read_index(source: Any) -> dict[str, np.ndarray]:
    columns: dict[str, list[Any]] = {
        name: [] for name in ["names", "length", "camera", "modality", "platform", "session", "geometry"]
    }
    columns |= {name: [] for name in ["recording", "pair", "pid", "label", "clothes"]}
    for position in range(len(source)):
        record = source[position]
        columns["names"].append(record["tracklet_id"].decode())
        columns["length"].append(len(record["frames"]))
        columns["camera"].append(record["camid"])
        columns["geometry"].append([record["altitude"], record["distance"], record["angle"]])
        columns["recording"].append(record["recording"].decode())
        columns["pair"].append(record["pair_id"].decode())
        columns["clothes"].append(record["clothes_id"])
        for name in ("modality", "platform", "session", "pid", "label"):
            columns[name].append(record[name])
    order = np.argsort(np.array(columns["names"], str), kind="stable")
    text, real = ("names", "recording", "pair"), ("geometry",)
    rows = {
        name: np.array(values, str if name in text else np.float32 if name in real else np.int32)[order]
        for name, values in columns.items()
    }
    return {**rows, "record": order.astype(np.int64)}


def modality_name(code: int) -> str:
    """The word for a modality that people read."""
    return {schema.VISIBLE: "visible", schema.INFRARED: "infrared"}.get(code, schema.MODALITIES[code])
