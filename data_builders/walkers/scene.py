"""Where people walk: one place per camera, drawn as a wide picture that a crop window moves over."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

PICTURE_HEIGHT, PICTURE_WIDTH = 4.0, 16.0  # metres at the distance of the path
RESOLUTION = 32  # picture elements per metre
VISIBLE_CONTRAST = 0.35
INFRARED_RANGE = (0.05, 0.22)


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """`picture` f32[h, w, 3] in [0, 1], centred where a person's middle passes; `place` is its name in words."""

    place: str
    picture: np.ndarray

    def crops(self, centre: np.ndarray, metres: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Background f32[T, H, W, 3] of windows `metres` [T] high around `centre` [T, 2] (x right, y down)."""
        height, width = size
        out = np.empty((len(centre), height, width, 3), np.float32)
        middle = np.array(self.picture.shape[1::-1]) / 2
        for t, (point, extent) in enumerate(zip(centre, metres, strict=True)):
            step = extent * RESOLUTION / height
            corner = middle + point * RESOLUTION - 0.5 * step * np.array([width, height])
            matrix = np.array([[step, 0, corner[0]], [0, step, corner[1]]])
            cv2.warpAffine(
                self.picture, matrix, (width, height), dst=out[t],
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101,
            )  # fmt: skip
        return out


def _colour(rng, low=60, high=200):
    base = rng.uniform(low, high)
    return np.clip(base + rng.uniform(-35, 35, 3), 0, 255).tolist()


def _grain(image, rng, amount, size):
    coarse = rng.normal(0, amount, (image.shape[0] // size + 1, image.shape[1] // size + 1, 1))
    fine = cv2.resize(coarse, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    image += fine[..., None]


def _bricks(image, rng, base):
    row_height, length = rng.integers(5, 9), rng.integers(14, 24)
    joint = _colour(rng, 120, 200)
    for row, y in enumerate(range(0, base, row_height)):
        cv2.line(image, (0, y), (image.shape[1], y), joint, 1)
        for x in range(-(row % 2) * length // 2, image.shape[1], length):
            cv2.line(image, (x, y), (x, y + row_height), joint, 1)


def _hedge(image, rng, base):
    top = int(base * rng.uniform(0.3, 0.6))
    green = np.array([rng.uniform(30, 60), rng.uniform(80, 130), rng.uniform(30, 60)])
    cv2.rectangle(image, (0, top), (image.shape[1], base), green.tolist(), -1)
    for _ in range(700):
        x, y = rng.integers(image.shape[1]), rng.integers(top, base)
        cv2.circle(image, (int(x), int(y)), int(rng.integers(2, 6)), (green * rng.uniform(0.6, 1.5)).tolist(), -1)


def _windows(image, rng, base):
    width, height, gap = rng.integers(22, 40), rng.integers(24, 40), rng.integers(10, 24)
    glass, frame = _colour(rng, 40, 110), _colour(rng, 140, 220)
    for y in range(int(rng.integers(0, 20)), base - 8, height + gap):
        for x in range(int(rng.integers(0, 20)), image.shape[1], width + gap):
            cv2.rectangle(image, (x, y), (x + width, min(y + height, base - 4)), glass, -1)
            cv2.rectangle(image, (x, y), (x + width, min(y + height, base - 4)), frame, 2)


def _doors(image, rng, base):
    x = int(rng.integers(0, 60))
    while x < image.shape[1]:
        width = int(rng.integers(24, 36))
        cv2.rectangle(image, (x, base - 66), (x + width, base), _colour(rng), -1)
        cv2.circle(image, (x + width - 5, base - 30), 2, _colour(rng, 180, 230), -1)
        x += width + int(rng.integers(30, 90))


def _fence(image, rng, base):
    colour, gap = _colour(rng, 40, 120), int(rng.integers(6, 14))
    for x in range(0, image.shape[1], gap):
        cv2.line(image, (x, base - 45), (x, base), colour, 2)
    for y in (base - 40, base - 8):
        cv2.line(image, (0, y), (image.shape[1], y), colour, 3)


def _cars(image, rng, base):
    x = int(rng.integers(-40, 20))
    while x < image.shape[1]:
        colour = _colour(rng, 50, 220)
        cv2.rectangle(image, (x, base - 22), (x + 110, base - 2), colour, -1)
        roof = np.array([[x + 18, base - 22], [x + 34, base - 40], [x + 80, base - 40], [x + 98, base - 22]])
        cv2.fillConvexPoly(image, roof.astype(np.int32), (np.array(colour) * 0.6).tolist())
        for wheel in (22, 88):
            cv2.circle(image, (x + wheel, base - 2), 8, (30, 30, 30), -1)
        x += int(rng.integers(120, 190))


def _pillars(image, rng, base):
    colour = np.array(_colour(rng, 120, 210))
    for x in range(int(rng.integers(0, 50)), image.shape[1], int(rng.integers(50, 90))):
        width = int(rng.integers(8, 16))
        cv2.rectangle(image, (x, 0), (x + width, base), colour.tolist(), -1)
        cv2.rectangle(image, (x + width, 0), (x + width + 3, base), (colour * 0.6).tolist(), -1)


def _shelves(image, rng, base):
    for y in range(int(rng.integers(4, 16)), base, int(rng.integers(18, 28))):
        x = 0
        while x < image.shape[1]:
            width, height = int(rng.integers(5, 14)), int(rng.integers(8, 16))
            cv2.rectangle(image, (x, y - height), (x + width, y), _colour(rng, 50, 220), -1)
            x += width + int(rng.integers(0, 4))
        cv2.line(image, (0, y), (image.shape[1], y), _colour(rng, 60, 120), 3)


PLACES = {
    "a brick wall": _bricks, "a hedge": _hedge, "an office front": _windows, "a corridor": _doors,
    "a fence": _fence, "a car park": _cars, "a station hall": _pillars, "a shop": _shelves,
}  # fmt: skip


def _boards(image, rng, base):
    """Advertising boards before dark stands."""
    image[:base] = _colour(rng, 40, 80)
    _grain(image[:base], rng, 30, 6)
    x = int(rng.integers(-60, 0))
    while x < image.shape[1]:
        width = int(rng.integers(50, 110))
        cv2.rectangle(image, (x, base - 28), (x + width, base), _colour(rng, 40, 230), -1)
        for letter in range(x + 8, x + width - 8, 9):
            cv2.rectangle(image, (letter, base - 20), (letter + 5, base - 8), _colour(rng, 60, 250), -1)
        x += width + 2


def _gym(image, rng, base):
    """Wall bars and panels."""
    for x in range(int(rng.integers(0, 40)), image.shape[1], int(rng.integers(70, 120))):
        for y in range(8, base - 4, 9):
            cv2.line(image, (x, y), (x + 34, y), _colour(rng, 110, 150), 2)


# Sports grounds and the colour of their floors.
COURTS = {"a football pitch": _boards, "a sports hall": _gym}
FLOORS = {"a football pitch": (70, 128, 62), "a sports hall": (176, 132, 88)}


def _parking(image, rng):
    for x in range(int(rng.integers(0, 30)), image.shape[1], 80):
        cv2.line(image, (x, 0), (x, image.shape[0]), (215, 215, 205), 3)
    cv2.line(image, (0, int(rng.integers(10, 30))), (image.shape[1], 30), (215, 215, 205), 3)


def _slabs(image, rng):
    size = int(rng.integers(18, 30))
    for x in range(0, image.shape[1], size):
        cv2.line(image, (x, 0), (x, image.shape[0]), (108, 106, 102), 1)
    for y in range(0, image.shape[0], size):
        cv2.line(image, (0, y), (image.shape[1], y), (108, 106, 102), 1)


def _path(image, rng):
    middle = int(image.shape[0] * rng.uniform(0.35, 0.65))
    cv2.rectangle(image, (0, middle - 24), (image.shape[1], middle + 24), (172, 158, 134), -1)
    for _ in range(220):
        x, y = int(rng.integers(image.shape[1])), int(rng.integers(image.shape[0]))
        cv2.circle(image, (x, y), int(rng.integers(2, 5)), (62, 96 + int(rng.integers(40)), 54), -1)


# Grounds as they are seen from the air, and their colours.
GROUNDS = {"a car park": _parking, "a square": _slabs, "a lawn": _path}
GROUND_COLOURS = {"a car park": (98, 98, 102), "a square": (150, 147, 140), "a lawn": (84, 124, 70)}


def draw_ground(rng: np.random.Generator, place: str, elevation: float) -> Scene:
    """A random ground of the kind `place` (a key of GROUNDS), seen from `elevation` radians above the horizon."""
    height, width = int(PICTURE_HEIGHT * RESOLUTION), int(PICTURE_WIDTH * RESOLUTION)
    image = np.empty((height, width, 3), np.float32)
    image[:] = np.array(GROUND_COLOURS[place]) + rng.uniform(-14, 14, 3)
    GROUNDS[place](image, rng)
    _grain(image, rng, 9, 20)
    _grain(image, rng, 7, 3)
    flat = max(1, int(height * np.sin(elevation)))
    image = cv2.resize(image, (width, flat), interpolation=cv2.INTER_AREA)
    image = cv2.copyMakeBorder(
        image, (height - flat) // 2, height - flat - (height - flat) // 2, 0, 0, cv2.BORDER_REFLECT_101
    )
    return Scene(place, np.ascontiguousarray(np.clip(image / 255, 0, 1), np.float32))


def draw_scene(rng: np.random.Generator, place: str, elevation: float, infrared: bool) -> Scene:
    """A random scene of the kind `place` (a key of PLACES or COURTS), seen from `elevation` radians above the horizon.

    Visible scenes are quiet (their contrast is reduced), infrared scenes grey and dark: the illuminator reaches
    people better than walls.
    """
    height, width = int(PICTURE_HEIGHT * RESOLUTION), int(PICTURE_WIDTH * RESOLUTION)
    image = np.empty((height, width, 3), np.float32)
    # From higher up more ground is seen, so the foot of the wall lies higher in the picture.
    base = int(height / 2 + RESOLUTION * np.clip(0.75 - 1.6 * elevation + rng.uniform(-0.15, 0.15), -0.9, 0.8))
    image[:] = _colour(rng, 110, 190)
    (PLACES | COURTS)[place](image, rng, base)
    image[base:] = FLOORS[place] if place in FLOORS else _colour(rng, 90, 170)
    _grain(image, rng, 14, 24)
    _grain(image[base:], rng, 10, 5)
    slope = rng.uniform(-1, 1)
    for x in range(-width, 2 * width, int(rng.integers(24, 60))):
        foot = (int(x + slope * (height - base)), height)
        cv2.line(image, (x, base), foot, (image[base:].mean((0, 1)) * 0.75).tolist(), 1)
    if place in FLOORS:
        cv2.line(image, (0, base + 10), (width, base + 10), (226, 226, 220), 2)
        for x in range(int(rng.integers(0, 120)), width, 170):
            cv2.line(image, (x, base), (int(x + slope * (height - base)), height), (226, 226, 220), 3)
    image = np.clip(cv2.GaussianBlur(image, (0, 0), 0.8) / 255, 0, 1)
    if infrared:
        grey = image.mean(-1, keepdims=True)
        low, high = INFRARED_RANGE
        grey = (grey - grey.min()) / max(np.ptp(grey), 1e-6)
        image = np.repeat(low + (high - low) * grey, 3, -1)
    else:
        mean = image.mean((0, 1))
        image = mean + VISIBLE_CONTRAST * (image - mean)
    return Scene(place, np.ascontiguousarray(image, np.float32))
