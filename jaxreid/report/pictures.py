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

DRAWN = 320  # pixels of the longer side of a picture with key points
LEAST_SCORE = 0.1  # of a key point that is drawn
LEFT, RIGHT, MIDDLE = (255, 150, 30), (60, 140, 255), (90, 220, 90)  # RGB
# Pairs of COCO-17 that a line joins; odd numbers are the person's left, even ones the right.
LIMBS = (
    (0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 12),
    (11, 13), (13, 15), (12, 14), (14, 16),
)  # fmt: skip


def tracklet_pictures(split: Split, reader: FrameReader, row: int, count: int) -> tuple[bytes, ...]:
    """Up to `count` frames of a tracklet, evenly spaced (one: the middle one); of a set of skeletons the joints, drawn,
    of frames that have any."""
    places = np.arange(split.table.length[row])
    if split.skeletons:
        joints, there = reader.joints(row)
        places = np.flatnonzero(there)
        return tuple(skeleton(joints[place]) for place in spaced(places, count))
    encoded = reader.encoded(row)
    return tuple(shrunk(encoded[place]) for place in spaced(places, count))


def spaced(places: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of the places, evenly spaced; one: the middle one."""
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


def drawn(values: np.ndarray) -> bytes:
    """A PNG of values f32[h, w, 3] in 0…1, RGB; cells of a coarse grid keep their edges."""
    scale = max(THUMBNAIL // max(values.shape[:2]), 1)
    image = np.kron((values.clip(0, 1) * 255).round().astype(np.uint8), np.ones((scale, scale, 1), np.uint8))
    return cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()


def with_keypoints(frame: np.ndarray, points: np.ndarray) -> bytes:
    """A JPEG of a frame, enlarged or shrunk, with its key points on it.

    Args:
      frame: u8[H, W, 3] in RGB order.
      points: f32[17, 3] of COCO-17 in pixels of the frame, as a sidecar holds them.
    """
    scale = DRAWN / max(frame.shape[:2])
    size = tuple(max(1, round(n * scale)) for n in frame.shape[1::-1])
    image = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    known = points[:, 2] >= LEAST_SCORE
    places = [(round(float(x)), round(float(y))) for x, y in points[:, :2] * scale]
    for a, b in LIMBS:
        if known[a] and known[b]:
            cv2.line(image, places[a], places[b], _colour_of(a, b), 2, cv2.LINE_AA)
    for joint in np.flatnonzero(known):
        cv2.circle(image, places[joint], 4, _colour_of(int(joint)), -1, cv2.LINE_AA)
    return thumbnail(image, DRAWN)


def _colour_of(*joints: int) -> tuple[int, int, int]:
    sides = {0 if joint == 0 else 1 + joint % 2 for joint in joints} - {0}
    if len(sides) != 1:
        return MIDDLE
    return LEFT if sides == {2} else RIGHT
