"""Pictures small enough for a page that holds them all, and drawings of skeletons where there are none."""

from __future__ import annotations

import cv2
import numpy as np

from jaxreid.data.pictures import PictureError, load, to_rgb
from jaxreid.data.split import FrameReader, Split
from jaxreid.errors import UserError

SIDE, BYTES = 160, 6_000  # what a page shows, on a screen of fine dots; what a JPEG of that size takes
THUMBNAIL = 128
QUALITY = 80
JOINTS_SIDE = 96  # pixels of the drawing of a skeleton
DOT, BONE = (160, 90, 30), (205, 165, 125)  # colours, blue first

# Joints that a bone connects, by the number of joints: Kinect's first and second skeleton, in the order of its files.
_LIMBS = ((4, 5), (5, 6), (6, 7), (8, 9), (9, 10), (10, 11), (12, 13), (13, 14), (14, 15), (16, 17), (17, 18), (18, 19))
BONES = {
    20: ((0, 1), (1, 2), (2, 3), (2, 4), (2, 8), (0, 12), (0, 16), *_LIMBS),
    25: ((0, 1), (1, 20), (20, 2), (2, 3), (20, 4), (20, 8), (0, 12), (0, 16), *_LIMBS,
         (7, 21), (6, 22), (11, 23), (10, 24)),
}  # fmt: skip


def tracklet_pictures(split: Split, reader: FrameReader, row: int, count: int) -> tuple[bytes, ...]:
    """Up to `count` frames of a tracklet, evenly spaced (one: the middle one); of a set of skeletons the joints, drawn,
    of frames that have any."""
    places = np.arange(split.table.length[row])
    if split.skeletons:
        joints, there = reader.joints(row)
        places = np.flatnonzero(there)
        return tuple(skeleton(joints[place]) for place in _spaced(places, count))
    encoded = reader.encoded(row)
    return tuple(shrunk(encoded[place]) for place in _spaced(places, count))


def _spaced(places: np.ndarray, count: int) -> np.ndarray:
    if count == 1 or len(places) < 2:
        return places[len(places) // 2 :][:1]
    return places[np.unique(np.linspace(0, len(places) - 1, count).round().astype(int))]


def skeleton(joints: np.ndarray, side: int = JOINTS_SIDE) -> bytes:
    """A PNG of the joints f32[J, 3] as dots, with bones where it is known which they connect, seen from the front: x
    right, y up, as large as fits."""
    flat = joints[:, :2] * [1, -1]
    low, extent = flat.min(0), np.ptp(flat, axis=0)
    scale = 0.8 * side / max(extent.max(), 1e-6)
    places = [tuple(map(round, place)) for place in ((flat - low - extent / 2) * scale + side / 2).tolist()]
    image = np.full((side, side, 3), 245, np.uint8)
    for one, other in BONES.get(len(joints), ()):
        cv2.line(image, places[one], places[other], BONE, 2, cv2.LINE_AA)
    for place in places:
        cv2.circle(image, place, 2, DOT, -1, cv2.LINE_AA)
    return cv2.imencode(".png", image)[1].tobytes()


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
