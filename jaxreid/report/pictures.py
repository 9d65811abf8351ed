"""Pictures small enough for a page that holds them all."""

from __future__ import annotations

import cv2
import numpy as np

from jaxreid.data.pictures import PictureError, load, to_rgb
from jaxreid.errors import UserError

SIDE, BYTES = 160, 6_000  # what a page shows, on a screen of fine dots; what a JPEG of that size takes
THUMBNAIL = 128
QUALITY = 80


def shrunk(encoded: bytes, side: int = SIDE, most: int = BYTES) -> bytes:
    """A JPEG or PNG as it is where it is small, else encoded again.

    Args:
      side: pixels of the longer side, at most.
      most: bytes from which on encoding again is tried; kept as it is if that saves nothing.

    Raises:
      UserError: the picture cannot be decoded.
    """
    try:
        image = to_rgb(load(encoded))
    except PictureError as error:
        raise UserError(f"a picture of the report: {error}; it begins with {encoded[:4]!r}") from error
    longer = max(image.shape[:2])
    if longer <= side and len(encoded) <= most:
        return encoded
    smaller = thumbnail(image, side)
    return smaller if longer > side or len(smaller) < len(encoded) else encoded


def thumbnail(frame: np.ndarray, side: int = THUMBNAIL) -> bytes:
    """A JPEG of a frame u8[H, W, 3] in RGB order, its longer side at most `side` pixels: 2 to 4 kB for a person."""
    image = frame[..., ::-1]
    longer = max(image.shape[:2])
    if longer > side:
        size = tuple(max(1, round(n * side / longer)) for n in image.shape[1::-1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", np.ascontiguousarray(image), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
