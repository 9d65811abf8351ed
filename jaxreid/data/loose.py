"""Tracklets that belong to no data set: frames in memory, or picture files, as a split and a reader of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxreid.data.names import printable
from jaxreid.data.prepared import SCALE
from jaxreid.data.schema import MODALITIES
from jaxreid.data.split import UNKNOWN, FrameReader, Labels, Split, TrackletTable
from jaxreid.errors import UserError


def loose_split(
    lengths: Sequence[int],
    modality: str | Sequence[str] = "rgb",
    camera_index: int | Sequence[int] = UNKNOWN,
    names: Sequence[str] | None = None,
    directory: Path = Path(),
) -> Split:
    """A split of N tracklets of which no more is known.

    Args:
      lengths: frames of every tracklet.
      modality: a word of `schema.MODALITIES`, for all or for each.
      camera_index: row in a training camera table, for all or for each; −1 for a camera that is not in it.
      names: of the tracklets; numbers where not given.
      directory: of a built set that has sidecars of these tracklets, by their names and the places of their frames.

    Raises:
      UserError: there is no tracklet, or an unknown modality.
    """
    count = len(lengths)
    if not count:
        raise UserError("no tracklet given")
    words = [modality] * count if isinstance(modality, str) else list(modality)
    if wrong := sorted(set(words) - set(MODALITIES)):
        raise UserError(f"unknown modality {', '.join(map(repr, wrong))}; one of {', '.join(MODALITIES)}")
    if len(words) != count:
        raise UserError(f"{count} tracklets and {len(words)} modalities; one for each, or one for all")
    unknown = np.full(count, UNKNOWN, np.int32)
    table = TrackletTable(
        length=np.asarray(lengths, np.int32),
        camera=unknown,
        camera_index=np.broadcast_to(np.asarray(camera_index, np.int32), count).copy(),
        modality=np.array([MODALITIES.index(word) for word in words], np.int32),
        platform=np.zeros(count, np.int32),
        session=unknown,
        geometry=np.full((count, 3), np.nan, np.float32),
        recording=unknown,
    )
    labels = Labels(unknown, unknown, unknown, unknown, tuple(names or map(str, range(count))))
    return Split(directory, "loose", table, labels, np.arange(count))


class ArrayReader(FrameReader):
    """Frames in memory: a sequence of u8[T, H, W, 3] in RGB order for every tracklet."""

    def __init__(self, tracklets: Sequence[Any]) -> None:
        super().__init__(Path(), "loose", np.arange(len(tracklets)), (), cache=False)
        self.tracklets = tracklets

    def decode_each(self, row: int, indices: Iterable[int]) -> Iterator[np.ndarray]:
        for index in indices:
            image = self.tracklets[row][index]
            if not image.size:
                raise UserError(f"frame {index} of tracklet {row} has no pixels: its shape is {image.shape}")
            yield image


class FileReader(FrameReader):
    """Picture files: the paths of every tracklet's frames. Only what is asked for is read.

    Args:
      paths: of the frames of every tracklet.
      sixteen_bit: what is done with 16-bit pictures, one of `jaxreid.data.prepared.SIXTEEN_BIT`.
    """

    REMEDY = "mend it or take it away"

    def __init__(self, paths: Sequence[Sequence[Path]], sixteen_bit: str = SCALE) -> None:
        super().__init__(Path(), "loose", np.arange(len(paths)), (), cache=False)
        self.paths, self.sixteen_bit = paths, sixteen_bit

    def encoded(self, row: int) -> Sequence[bytes]:
        return _Files(self.paths[row])

    def place(self, row: int, index: int) -> str:
        return printable(self.paths[row][index])


class _Files(Sequence[bytes]):
    """The contents of files, each read when it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return self.paths[index].read_bytes()
