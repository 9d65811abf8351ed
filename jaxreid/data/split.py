"""One split of a built data set: its tables, and its frames read on demand.

What an unsupervised method may see (`TrackletTable`) and what could reveal an identity (`Labels`) are separate
types from here on, so that the second can be withheld.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxreid.data import pictures, schema
from jaxreid.data.names import printable
from jaxreid.data.prepared import SCALE
from jaxreid.errors import UserError
from jaxreid.files import expand, written_aside

UNKNOWN = -1
_LOG = logging.getLogger(__name__)
INDEX_VERSION = 3  # of the columns below; a file of another one is made anew


@dataclasses.dataclass(frozen=True)
class TrackletTable:
    """What is known of each of N tracklets without knowing who it shows; one row per tracklet.

    −1 is unknown; `location` and `scale` are all unknown where they are not given.
    """

    length: np.ndarray  # i32[N], frames in the record
    camera: np.ndarray  # i32[N], the data set's own number
    camera_index: np.ndarray  # i32[N], row in the training camera table, −1 not in it
    modality: np.ndarray  # i32[N]
    platform: np.ndarray  # i32[N]
    session: np.ndarray  # i32[N]
    geometry: np.ndarray  # f32[N, 3]
    recording: np.ndarray  # i32[N], tracklets cut from one continuous recording share it; −1 unknown
    location: np.ndarray = None  # type: ignore[assignment]  # i32[N], class of the place
    scale: np.ndarray = None  # type: ignore[assignment]  # i32[N], class of the person's size in the picture

    def __post_init__(self) -> None:
        for name in ("location", "scale"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.full(len(self), UNKNOWN, np.int32))

    def __len__(self) -> int:
        return len(self.length)


@dataclasses.dataclass(frozen=True)
class Labels:
    """Everything that could carry an identity; withheld from methods that do not declare that they use it.

    `junk` and `distractor` are nowhere true where they are not given.
    """

    pid: np.ndarray  # i32[N], the data set's own number
    identity: np.ndarray  # i32[N], 0…C−1 over the training identities, −1 elsewhere
    clothes: np.ndarray  # i32[N]
    pair: np.ndarray  # i32[N]
    names: tuple[str, ...]  # tracklet ids
    junk: np.ndarray = None  # type: ignore[assignment]  # bool[N], belongs in no ranking
    distractor: np.ndarray = None  # type: ignore[assignment]  # bool[N], somebody whom no query looks for

    def __post_init__(self) -> None:
        for name in ("junk", "distractor"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.zeros(len(self.pid), bool))


@dataclasses.dataclass(frozen=True)
class Split:
    """Tracklets of one split in the order of their names; or of several splits (`parts`), one after the other."""

    directory: Path
    name: str
    table: TrackletTable
    labels: Labels
    record: np.ndarray  # i64[N], position in the files
    parts: tuple[Split, ...] = ()
    frame_numbers: np.ndarray | None = None  # i32[F], of all frames, tracklet by tracklet; None = 0, 1, … in each
    skeletons: bool = False  # whether records hold joints and no picture

    def __len__(self) -> int:
        return len(self.record)

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *self.table.length])

    def frame_index(self, row: int) -> np.ndarray:
        """Where the frames of tracklet `row` stand in the source tracklet, i32[T]; a thinned set has gaps."""
        if self.frame_numbers is None:
            return np.arange(self.table.length[row], dtype=np.int32)
        return self.frame_numbers[self._starts[row] : self._starts[row + 1]]

    def reader(self, *, cache: bool) -> FrameReader:
        if self.parts:
            return JoinedReader([part.reader(cache=cache) for part in self.parts])
        return FrameReader(self.directory, self.name, self.record, self.labels.names, cache)


def join(splits: Sequence[Split]) -> Split:
    """Several splits as one, which is named after them."""

    def rows(kind: str) -> dict[str, Any]:
        pieces = [vars(getattr(split, kind)) for split in splits]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0] if name != "names"}

    starts = np.cumsum([0, *(len(split) for split in splits)])
    return Split(
        directory=splits[0].directory,
        name="+".join(split.name for split in splits),
        table=TrackletTable(**rows("table")),
        labels=Labels(**rows("labels"), names=tuple(name for split in splits for name in split.labels.names)),
        record=np.concatenate([split.record + start for split, start in zip(splits, starts, strict=False)]),
        parts=tuple(splits),
        frame_numbers=np.concatenate([split.frame_index(row) for split in splits for row in range(len(split))]),
        skeletons=all(split.skeletons for split in splits),
    )


class FrameReader:
    """Encoded frames of a tracklet by its row; pickles into loader processes, opens the files on first use."""

    REMEDY = "build the data set again from intact files"
    sixteen_bit = SCALE  # what is done with 16-bit pictures

    def __init__(self, directory: Path, split: str, record: np.ndarray, names: Sequence[str], cache: bool) -> None:
        self.directory, self.split, self.record, self.names, self.cache = (
            directory,
            split,
            record,
            names,
            cache,
        )
        self._known: dict[int, list[bytes]] = {}
        self._spans: dict[int, tuple[int, int]] = {}
        self._told = False

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k not in ("_source", "_raw")}
        return {**state, "_known": {}}

    @functools.cached_property
    def _source(self) -> Any:
        return _open_source(self.directory, self.split)

    @functools.cached_property
    def _raw(self) -> Any:
        return _open_source(self.directory, self.split, raw=True)

    def encoded(self, row: int) -> Sequence[bytes]:
        """The encoded bytes of every frame of tracklet `row`."""
        frames = self._known.get(row)
        if frames is None:
            frames = _frames_of(self._raw[int(self.record[row])])
            if not frames and len(self._source[int(self.record[row])]["joints3d"]):
                raise UserError(
                    f"{self.directory} split {self.split!r}: tracklet {self.names[row]!r} has no pictures: this data "
                    "set is one of skeletons (`joints` reads them), choose a method that needs nothing else"
                )
            if self.cache:
                self._known[row] = frames
        return frames

    def joints(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """3-D joints f32[T, J, 3] of tracklet `row` of a skeleton set, metres; bool[T], false where there are none."""
        record = self._source[int(self.record[row])]
        return record["joints3d"], np.asarray(record["joints_valid"], bool)

    def decode(self, row: int, index: int) -> np.ndarray:
        """One frame, u8[H, W, 3] in RGB order; raises as `decode_each`."""
        return next(self.decode_each(row, (index,)))

    def decode_each(self, row: int, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """Frames of one tracklet one by one, u8[H, W, 3] in RGB order. The record is read once, no other frame decoded.

        Raises:
          UserError: a frame cannot be decoded; the message names the tracklet and the frame.
        """
        encoded = self.encoded(row)
        for index in indices:
            stored = self._load(encoded, row, index)
            yield pictures.to_rgb(stored, self._span(encoded, row, index) if stored.dtype == np.uint16 else None)

    def place(self, row: int, index: int) -> str:
        """Which frame that is, for messages."""
        return f"{self.directory} split {self.split!r}: frame {index} of tracklet {self.names[row]!r}"

    def _load(self, encoded: Sequence[bytes], row: int, index: int) -> np.ndarray:
        try:
            return pictures.load(encoded[index])
        except pictures.PictureError as error:
            raise UserError(f"{self.place(row, index)}: {error}; {self.REMEDY}") from error

    def _span(self, encoded: Sequence[bytes], row: int, index: int) -> tuple[int, int]:
        """The values of a tracklet's 16-bit frames that become 0 and 255; found once, with a warning the first time."""
        if row not in self._spans:
            told, self._told = self._told, True
            stored = (self._load(encoded, row, each) for each in range(len(encoded)))
            span = pictures.value_range(frame for frame in stored if frame.dtype == np.uint16)
            remark = pictures.sixteen_bit_remark(self.place(row, index), span, self.sixteen_bit)
            if not told:
                _LOG.warning("%s", remark)
            self._spans[row] = span
        return self._spans[row]


class JoinedReader(FrameReader):
    """The readers of several splits as one; rows count on from one to the next."""

    def __init__(self, readers: Sequence[FrameReader]) -> None:
        first = readers[0]
        names = [name for reader in readers for name in reader.names]
        record = np.concatenate([reader.record for reader in readers])
        super().__init__(first.directory, "+".join(reader.split for reader in readers), record, names, first.cache)
        self.readers = readers
        self.starts = np.cumsum([0, *(len(reader.record) for reader in readers)])

    def encoded(self, row: int) -> Sequence[bytes]:
        reader, row = self._part(row)
        return reader.encoded(row)

    def joints(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        reader, row = self._part(row)
        return reader.joints(row)

    def _part(self, row: int) -> tuple[FrameReader, int]:
        which = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.readers[which], row - int(self.starts[which])


def _open_source(directory: Path, split: str, raw: bool = False) -> Any:
    """Records by number: as dicts, or as the bytes of a serialised tf.train.Example."""
    import tensorflow_datasets as tfds

    method = tfds.decode.DeserializeMethod.RAW_BYTES if raw else tfds.decode.DeserializeMethod.DESERIALIZE_AND_DECODE
    builder = tfds.builder_from_directory(str(directory))
    return builder.as_data_source(split, deserialize_method=method)  # pyright: ignore[reportCallIssue]


def _frames_of(raw: bytes) -> list[bytes]:
    """The pictures of a serialised record. Other fields are left alone: parsing them all takes longer than decoding a
    few pictures."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example.FromString(raw)  # pyright: ignore[reportAttributeAccessIssue]
    return list(example.features.feature["frames"].bytes_list.value)


def split_names(directory: Path) -> tuple[str, ...]:
    """Names of the splits of a built data set."""
    info = json.loads((Path(directory) / "dataset_info.json").read_text(encoding="utf-8"))
    return tuple(split["name"] for split in info["splits"])


def open_split(directory: Path, name: str, cameras: np.ndarray | None = None) -> Split:
    """Opens a split of a built data set.

    Args:
      directory: the TFDS directory of the data set (…/name/config/version).
      name: the split.
      cameras: sorted camera numbers of the training camera table; the split's own where not given.

    Raises:
      UserError: the data set has no such split, or it is empty.
    """
    directory = Path(directory)
    known = split_names(directory)
    if name not in known:
        raise UserError(f"{directory}: no split {name!r}; it has {', '.join(known)}")
    rows = _index(directory, name)
    if not len(rows["names"]):
        raise UserError(f"{directory}: split {name!r} holds no tracklet")
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
        location=rows["location"],
        scale=rows["scale"],
    )
    labels = Labels(
        pid=rows["pid"],
        identity=rows["label"],
        clothes=rows["clothes"],
        pair=_codes(rows["pair"]),
        names=tuple(rows["names"].tolist()),
        junk=rows["junk"],
        distractor=rows["distractor"],
    )
    return Split(
        directory,
        name,
        table,
        labels,
        rows["record"],
        frame_numbers=rows["frame_index"],
        skeletons=not rows["pictures"].any(),
    )


def _codes(names: np.ndarray) -> np.ndarray:
    """Equal names get equal numbers; the empty name gets −1."""
    values, codes = np.unique(names, return_inverse=True)
    return np.where(values[codes] == "", UNKNOWN, codes).astype(np.int32)


def _index(directory: Path, split: str) -> dict[str, np.ndarray]:
    """The split's tables, from the file beside the records; one pass over the records makes it the first time.

    Where that place is read-only, the file lies in the user's cache; where there is none either, in memory.
    """
    places = [place / f"{split}.npz" for place in (directory / "index", *_cache_of(directory))]
    for path in places:
        if path.exists():
            with np.load(path) as file:
                if file.get("version") == INDEX_VERSION:
                    return dict(file)
    rows = _read_index(_open_source(directory, split))
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(path) as aside, aside.open("wb") as file:
                np.savez(file, **rows, version=np.array(INDEX_VERSION))  # pyright: ignore[reportArgumentType]
            break
        except OSError as error:
            _LOG.warning("no index can be kept as %s (%s)", path, error.strerror)
    return rows


def _cache_of(directory: Path) -> list[Path]:
    """Where a user keeps what belongs into a prepared set that only others can write to; nowhere without a home."""
    try:
        cache = expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    except UserError:
        return []
    status = (directory / "dataset_info.json").stat()  # of another build under this path it is another file
    key = f"{printable(directory.resolve())} {status.st_size} {status.st_mtime_ns}"
    return [cache / "jaxreid" / "index" / hashlib.sha256(key.encode()).hexdigest()[:16]]


# Column → feature of the record, for those that are one number.
_NUMBERS = {
    "camera": "camid", "modality": "modality", "platform": "platform", "session": "session", "pid": "pid",
    "label": "label", "clothes": "clothes_id", "location": "location", "scale": "scale_class",
}  # fmt: skip
_WORDS = {"names": "tracklet_id", "recording": "recording", "pair": "pair_id"}
_FLAGS = {"junk": "is_junk", "distractor": "is_distractor"}


def _read_index(source: Any) -> dict[str, np.ndarray]:
    columns = ("length", "pictures", "geometry", *_NUMBERS, *_WORDS, *_FLAGS)
    found: dict[str, list[Any]] = {name: [] for name in columns}
    frame_index: list[np.ndarray] = []
    for position in range(len(source)):
        record = source[position]
        found["length"].append(len(record["frames"]) or len(record["joints3d"]))
        found["pictures"].append(len(record["frames"]))
        numbers = np.asarray(record["frame_index"], np.int32)
        # Skeleton sets name none.
        frame_index.append(numbers if len(numbers) else np.arange(found["length"][-1], dtype=np.int32))
        found["geometry"].append([record["altitude"], record["distance"], record["angle"]])
        for name, feature in (_NUMBERS | _FLAGS).items():
            found[name].append(record[feature])
        for name, feature in _WORDS.items():
            found[name].append(record[feature].decode())
    kinds = dict.fromkeys(_WORDS, str) | dict.fromkeys(_FLAGS, bool) | {"geometry": np.float32}
    order = np.argsort(np.array(found["names"], str), kind="stable")
    rows = {name: np.array(values, kinds.get(name, np.int32))[order] for name, values in found.items()}
    numbers = np.concatenate([np.zeros(0, np.int32), *(frame_index[place] for place in order)])
    return {**rows, "record": order.astype(np.int64), "frame_index": numbers}


def modality_name(code: int) -> str:
    """The word for a modality that people read."""
    return {schema.VISIBLE: "visible", schema.INFRARED: "infrared"}.get(code, schema.MODALITIES[code])
