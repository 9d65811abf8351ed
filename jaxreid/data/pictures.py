"""Encoded pictures → u8[H, W, 3] in RGB order, in one way wherever a frame comes from.

Grey values and palettes are expanded to RGB, what is transparent lies over black, and values of 16 bits become 8
between the 1st and the 99th percentile of a tracklet. A JPEG is turned as its EXIF data say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import cv2
import numpy as np

from jaxreid.data.prepared import REFUSE, SCALE
from jaxreid.errors import UserError

MAX_PIXELS = 2**26  # twice a frame of 8K; a header that says more is damaged
PERCENTILES = (1, 99)
JPEG_SIGNATURE = b"\xff\xd8"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
FORMATS = {  # what a picture begins with; in a WebP the size of the file stands between
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF....WEBP",
    "BMP": rb"BM",
    "TIFF": rb"II\*\x00|MM\x00\*",
}
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 … SOF15; the three are other segments
_RGB = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}  # by channels
_TYPES = {np.dtype(np.uint8), np.dtype(np.uint16)}


class PictureError(UserError):
    """Bytes that cannot be used as a picture; says what is wrong with them, whoever has them says where they are."""


def load(data: bytes) -> np.ndarray:
    """A picture as it is stored, u8 or u16 [H, W, 3] in RGB order, or [H, W, 4] with its opacity; see `to_rgb`.

    Raises:
      PictureError: it cannot be decoded, or is too large.
    """
    if not data:
        raise PictureError("empty file")
    if (size := _size_in_header(data)) and size[0] * size[1] > MAX_PIXELS:
        raise PictureError(f"its header says {size[1]} × {size[0]} pixels, more than {MAX_PIXELS}")
    plain = _is_plain(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB if plain else cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise PictureError("cannot be decoded")
    if not image.size:
        raise PictureError("has no pixels")
    if image.dtype not in _TYPES:
        raise PictureError(f"holds {image.dtype} values; 8 or 16 bits are read")
    return image if plain else cv2.cvtColor(image, _RGB[image.shape[2] if image.ndim == 3 else 1])


def format_of(data: bytes) -> str | None:
    """Which of `FORMATS` the bytes begin like; None for all else."""
    return next((name for name, start in FORMATS.items() if re.match(start, data, re.DOTALL)), None)


def to_rgb(stored: np.ndarray, span: tuple[int, int] | None = None) -> np.ndarray:
    """u8[H, W, 3] of a stored picture.

    Args:
      stored: from `load`.
      span: the values that become 0 and 255, of a 16-bit picture; its own `value_range` where not given.
    """
    colour, opacity = stored[..., :3], stored[..., 3:]
    if stored.dtype == np.uint16:
        low, high = span or value_range([stored])
        table = np.clip((np.arange(2**16) - low) * (255 / max(high - low, 1)), 0, 255)
        colour = np.round(table).astype(np.uint8)[colour]
    if opacity.shape[-1]:
        colour = np.round(colour * (opacity / np.float64(np.iinfo(stored.dtype).max))).astype(np.uint8)
    return colour


def value_range(frames: Iterable[np.ndarray]) -> tuple[int, int]:
    """The 1st and the 99th percentile of the values of a tracklet's 16-bit frames, of what is not transparent."""
    counts = np.zeros(2**16, np.int64)
    for frame in frames:
        colour = frame[..., :3] if frame.shape[-1] == 3 else frame[frame[..., 3] > 0, :3]
        counts += np.bincount(colour.reshape(-1), minlength=len(counts))
    below = np.cumsum(counts)
    low, high = (int(np.searchsorted(below, below[-1] * percent / 100)) for percent in PERCENTILES)
    return low, high


def sixteen_bit_remark(where: str, span: tuple[int, int], policy: str) -> str:
    """What is to be said of a tracklet of 16-bit pictures, where `where` is the first.

    Raises:
      UserError: the policy is to refuse them.
    """
    found = f"{where} has 16 bits per value, {span[0]} to {span[1]} at the 1st and 99th percentile of its tracklet"
    if policy == REFUSE:
        raise UserError(f"{found}: sixteen_bit={REFUSE} takes none; convert it to 8 bits, or choose {SCALE}")
    return f"{found}, which become 0 and 255 (sixteen_bit={REFUSE} refuses such pictures)"


def is_sixteen_bit(data: bytes) -> bool:
    """Whether a PNG has 16 bits per value; a JPEG never has."""
    return data.startswith(PNG_SIGNATURE) and data[24:25] == b"\x10"


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width of a whole JPEG or PNG as its header says; nothing is decoded."""
    if data.startswith(PNG_SIGNATURE):
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    position = 2
    while data[position + 1] not in _JPEG_FRAMES:
        padding = data[position + 1] == 0xFF
        position += 1 if padding else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
    return int.from_bytes(height, "big"), int.from_bytes(width, "big")


def _size_in_header(data: bytes) -> tuple[int, int] | None:
    """`image_size` of bytes that may be damaged, or another format; None where no size is found."""
    if not data.startswith((JPEG_SIGNATURE, PNG_SIGNATURE)):
        return None
    try:
        return image_size(data)
    except IndexError:
        return None


def _is_plain(data: bytes) -> bool:
    """Whether OpenCV's own conversion to colour loses nothing: a JPEG, or a PNG of 8 bits without transparency."""
    if data.startswith(JPEG_SIGNATURE):
        return True
    if not data.startswith(PNG_SIGNATURE) or len(data) < 26:
        return False
    depth, kind = data[24:26]
    return depth <= 8 and not kind & 4 and data.find(b"tRNS", 0, data.find(b"IDAT")) < 0
