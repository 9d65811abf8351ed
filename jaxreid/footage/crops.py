"""A person in one camera: where a track saw them, and the crops that become the files of a tracklet."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

JPEG_QUALITY = 95
Box = tuple[float, float, float, float]  # x, y, width, height in pixels


class Sighting(NamedTuple):
    """A person in a frame: box, seconds, the detector's score, and the share of the box's pixels that moves."""

    box: Box
    time: float = 0.0
    score: float = 1.0
    motion: float = 1.0


@dataclasses.dataclass
class Tracklet:
    """A person in one camera while a track lasts. Crops wait in memory until they are written.

    Attributes:
      camera: that sees the person.
      recording: the unbroken track that it was cut from.
      folder: of the crops.
      sightings: by frame number, rising.
      crops: how many there are.
    """

    camera: str
    recording: str
    folder: Path
    sightings: dict[int, Sighting] = dataclasses.field(default_factory=dict)
    crops: int = 0
    _waiting: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)

    def add_crop(self, frame: int, pixels: np.ndarray) -> None:
        """Takes the crop u8[h, w, 3] in BGR order of a frame."""
        _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        self._waiting.append((f"{frame:06d}.jpg", jpeg.tobytes()))
        self.crops += 1

    def write(self) -> None:
        """Writes the crops that wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._waiting:
            (self.folder / name).write_bytes(content)
        self._waiting.clear()


def crop(
    image: np.ndarray, box: Box | np.ndarray, margin: float = 0.0, size: tuple[int, int] | None = None
) -> np.ndarray | None:
    """The part of a picture under a box, cut at the picture's border; None if nothing is left.

    Args:
      image: u8[H, W, 3].
      box: (x, y, width, height) in pixels of it.
      margin: what is shown beyond the box on each side, in shares of its width and height.
      size: (height, width) in pixels that the crop is resized to; None: as it is.
    """
    x, y, w, h = (float(value) for value in box)
    margin_x, margin_y = w * margin, h * margin
    left, top = max(0, round(x - margin_x)), max(0, round(y - margin_y))
    right = min(image.shape[1], round(x + w + margin_x))
    bottom = min(image.shape[0], round(y + h + margin_y))
    if right <= left or bottom <= top:
        return None
    pixels = image[top:bottom, left:right]
    if size is None:
        return pixels
    height, width = size
    method = cv2.INTER_AREA if height * width < pixels.shape[0] * pixels.shape[1] else cv2.INTER_LINEAR
    return cv2.resize(pixels, (width, height), interpolation=method)
