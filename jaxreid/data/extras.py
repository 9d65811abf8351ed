"""Extras: what a method gets beside the frames of a clip (`Batch.extras`), from sidecars, records and pictures.

| name | of | array | from |
|---|---|---|---|
| `keypoints` | frame | f32 [17, 3]: x, y, score; COCO-17 | the sidecar |
| `joints3d` | frame | f32 [J, 3], metres | the sidecar; of a skeleton set, the records |
| `native_height` | frame | f32 [], rows of the stored picture | the picture |
| `frame_number` | frame | i32 [], index in the source tracklet | the record |
| `frame_place` | frame | i32 [], index in the record | the clip |
| `captions` | clip | i32 [K, L], ids of K texts of its tracklet, long ones cut | the sidecar, and a tokenizer |
| `second_frames` | frame | u8 [h, w, 3], the frame at a size of its own | the picture |
| `erased`, `erased_box` | frame | bool [], f32 [4]: top, left, bottom, right | the augmentation; else false, 0 |

Every extra comes with `NAME_mask`, bool[B, T]: false on frames that only fill the clip, where the maker found nothing,
and, where the method declares `missing="mask"`, where nobody looked; values are zero there. That of captions is
bool[B, K]: which texts there are.

x and y are unit coordinates from here on: 0 is the left (upper) edge of the picture, 1 the right (lower) one, so the
centre of pixel i of n is (i + 0.5) / n whatever size the frame is brought to.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import cv2
import numpy as np

from jaxreid.data.sidecars import MissingSidecar, Sidecar
from jaxreid.data.split import FrameReader, Split
from jaxreid.errors import UserError, some

_LOG = logging.getLogger(__name__)
SIDECARS = ("keypoints", "joints3d")
CAPTIONS = "captions"
OF_SIDECARS = (*SIDECARS, CAPTIONS)
SECOND = "second_frames"
OF_PICTURES = ("native_height", SECOND)
OF_AUGMENTATION = ("erased", "erased_box")
NAMES = (*OF_SIDECARS, *OF_PICTURES, "frame_number", "frame_place", *OF_AUGMENTATION)


@dataclasses.dataclass(frozen=True)
class Extra:
    """An array of every frame (captions: of the clip) that a method asks for: `shape` and `dtype` of one.

    `missing`: where a tracklet, or a frame, has no entry in the sidecar, either that is an error before anything is
    read, or it is masked.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    missing: Literal["error", "mask"] = "error"

    def empty(self, frames: int) -> np.ndarray:
        return np.zeros((frames, *self.shape), self.dtype)


Wanted = Mapping[str, Extra]


def mask_name(name: str) -> str:
    return f"{name}_mask"


def of_clip(name: str) -> bool:
    """Whether an extra, or its mask, is one of the clip and not of every frame."""
    return name.removesuffix("_mask") == CAPTIONS


def check(wanted: Wanted) -> None:
    """Raises UserError on a name that nobody can fill."""
    if unknown := sorted(set(wanted) - set(NAMES)):
        raise UserError(f"there is no extra {', '.join(unknown)}; known are {', '.join(NAMES)}")


def empty_extras(wanted: Wanted, clips: int, frames: int) -> dict[str, np.ndarray]:
    """Zeros of the shapes in a batch, every mask false."""
    found: dict[str, np.ndarray] = {}
    for name, extra in wanted.items():
        lead = (clips,) if of_clip(name) else (clips, frames)
        found[name] = np.zeros((*lead, *extra.shape), extra.dtype)
        found[mask_name(name)] = np.zeros((clips, extra.shape[0]) if of_clip(name) else lead, bool)
    return found


class ExtraReader:
    """The extras of a split's frames; pickles into loader processes.

    Args:
      split: whose frames.
      reader: of the same split: skeleton sets have joints in their records.
      wanted: by name.
      tokenize: texts, context=L → ids i32[N, L], for captions.

    Raises:
      UserError: an unknown name, or a sidecar whose values have another shape.
      MissingSidecar: there is no such sidecar, or it lacks tracklets of the split; the message names them.
    """

    def __init__(
        self, split: Split, reader: FrameReader, wanted: Wanted, tokenize: Callable[..., np.ndarray] | None = None
    ) -> None:
        check(wanted)
        self.split, self.reader, self.wanted = split, reader, dict(wanted)
        self.sidecars: dict[str, Sidecar] = {}
        for name, extra in self.wanted.items():
            if name in OF_SIDECARS and not self._in_records(name):
                self.sidecars[name] = self._sidecar(name, extra)
        if CAPTIONS in self.wanted:
            self._ids, self._there = self._captions(self.wanted[CAPTIONS], tokenize)

    def _in_records(self, name: str) -> bool:
        return name == "joints3d" and self.split.skeletons

    def _sidecar(self, name: str, extra: Extra) -> Sidecar:
        sidecar = Sidecar.open(self.split.directory, name)
        fits = sidecar.is_text if name == CAPTIONS else tuple(sidecar.meta.get("shape", ())) == extra.shape
        if not fits:
            raise UserError(
                f"{sidecar.directory} holds {'texts' if sidecar.is_text else sidecar.meta['shape']} per frame, "
                f"needed are {list(extra.shape)}"
            )
        if absent := sidecar.missing(self.split.labels.names):
            lacking = (
                f"the {name} sidecar {sidecar.directory} lacks {len(absent)} of {len(self.split)} tracklets of split "
                f"{self.split.name!r}: {some(absent)}"
            )
            if extra.missing == "error":
                raise MissingSidecar(f"{lacking}; make it anew with: {sidecar.meta['command']}")
            _LOG.warning("%s; their %s are masked", lacking, name)
        return sidecar

    def _captions(self, extra: Extra, tokenize: Callable[..., np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
        """Ids i32[N, K, L] of every tracklet's first K texts, and which there are bool[N, K]."""
        if tokenize is None:
            raise UserError("captions become ids by the tokenizer of a text tower, and this run's config names none")
        count, context = extra.shape
        sidecar, names = self.sidecars[CAPTIONS], self.split.labels.names
        texts = [sidecar.texts(name)[:count] if name in sidecar else [] for name in names]
        there = np.arange(count) < np.array([len(each) for each in texts])[:, None]
        ids = np.zeros((len(names), count, context), extra.dtype)
        if there.any():
            known, place = np.unique([text for each in texts for text in each], return_inverse=True)
            ids[there] = tokenize(known.tolist(), context=context, truncate="sentences")[place.reshape(-1)]
        return ids, there

    @property
    def needs_pictures(self) -> bool:
        """Whether what is wanted is made of pictures, or needs their size."""
        return bool({*self.wanted} & {*OF_PICTURES, "keypoints"})

    def read(self, row: int, frames: Sequence[int]) -> dict[str, np.ndarray]:
        """Values [T, …] of the frames of tracklet `row`, and the mask bool[T] of each; `of_picture` fills in the rest.

        Raises:
          MissingSidecar: a frame has no entry.
        """
        found: dict[str, np.ndarray] = {}
        for name, extra in self.wanted.items():
            if name == CAPTIONS:
                found[name], found[mask_name(name)] = self._ids[row], self._there[row]
                continue
            values, mask = extra.empty(len(frames)), np.ones(len(frames), bool)
            if name == "frame_number":
                values[:] = self.split.frame_index(row)[list(frames)]
            elif name == "frame_place":
                values[:] = frames
            elif self._in_records(name):
                joints, valid = self.reader.joints(row)
                values, mask = self._checked(joints[list(frames)], extra, row), valid[list(frames)]
            elif name in self.sidecars:
                values, mask = self._from_sidecar(name, extra, row, frames)
            found[name], found[mask_name(name)] = np.where(_like(mask, values), values, 0).astype(extra.dtype), mask
        return found

    def _checked(self, joints: np.ndarray, extra: Extra, row: int) -> np.ndarray:
        if joints.shape[1:] != extra.shape:
            raise UserError(
                f"{self.split.directory} split {self.split.name!r}: tracklet {self.split.labels.names[row]!r} has "
                f"joints {list(joints.shape[1:])} per frame, needed are {list(extra.shape)}"
            )
        return joints

    def _from_sidecar(self, name: str, extra: Extra, row: int, frames: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        sidecar, tracklet = self.sidecars[name], self.split.labels.names[row]
        index = self.split.frame_index(row)[list(frames)]
        if extra.missing == "error":
            return sidecar.read(tracklet, index)
        return sidecar.read_known(tracklet, index)

    def of_picture(self, found: dict[str, np.ndarray], frame: int, stored: np.ndarray, picture: np.ndarray) -> None:
        """Fills in what the picture of frame `frame` of a clip tells.

        Args:
          stored: u8[H, W, 3], as it is in the record.
          picture: the same or, where that is asked for, with black around it; the network sees it resized.
        """
        if "native_height" in found:
            found["native_height"][frame] = len(stored)
        if SECOND in found:
            size = found[SECOND].shape[2:0:-1]
            found[SECOND][frame] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        if "keypoints" in found:  # pixels of the stored frame → unit coordinates
            beside = [(b - a) // 2 for a, b in zip(stored.shape[1::-1], picture.shape[1::-1], strict=True)]
            points = found["keypoints"][frame]
            points[:, :2] = np.where(points.any(-1, keepdims=True), points[:, :2] + beside, 0) / picture.shape[1::-1]


class ArrayExtras(ExtraReader):
    """Extras of frames in memory: by name an array [T, …] for each tracklet, as a sidecar would hold it.

    Raises:
      UserError: one that is wanted is not given, or has another shape than its tracklet's frames ask for.
    """

    def __init__(self, split: Split, wanted: Wanted, given: Mapping[str, Sequence[np.ndarray]]) -> None:
        check(wanted)
        if CAPTIONS in wanted:
            raise UserError("this run's method takes captions, which frames without a data set cannot have")
        self.split, self.wanted, self.sidecars = split, dict(wanted), {}
        self.given = {
            name: [np.asarray(x, wanted[name].dtype) for x in given[name]] for name in given if name in wanted
        }
        needed = sorted(name for name in wanted if name in SIDECARS and name not in self.given)
        unknown = sorted(set(given) - set(wanted))
        if needed or unknown:
            asked = ", ".join(f"{name} {[*extra.shape]} of every frame" for name, extra in wanted.items())
            raise UserError(f"extras {sorted(given) or 'none'} were given; this run's method takes {asked or 'none'}")
        for name, arrays in self.given.items():
            for row, (x, frames) in enumerate(zip(arrays, split.table.length, strict=True)):
                if x.shape != (frames, *wanted[name].shape):
                    raise UserError(
                        f"extras[{name!r}] of tracklet {row} is {list(x.shape)}, needed is "
                        f"{[int(frames), *wanted[name].shape]}"
                    )

    def _in_records(self, name: str) -> bool:
        return False

    def read(self, row: int, frames: Sequence[int]) -> dict[str, np.ndarray]:
        found = super().read(row, frames)
        for name, arrays in self.given.items():
            found[name] = arrays[row][list(frames)]
        return found


def _like(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    return mask.reshape(-1, *(1,) * (values.ndim - 1))
