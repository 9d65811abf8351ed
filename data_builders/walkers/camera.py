"""Who looks: where a camera hangs, how it projects, and what its optics and sensor do to a picture."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

# Altitude (m), distance (m) and angle (degrees below the horizon) of the points that aerial cameras look from, by point
# id from 1: those of DetReIDX.
CAPTURE_POINTS = (
    (5.8, 10, 30), (11.5, 20, 30), (17.3, 30, 30), (23.1, 40, 30), (40, 80, 30), (60, 120, 30),
    (15, 10, 60), (30, 20, 60), (45, 30, 60), (60, 40, 60), (75, 80, 60), (90, 120, 60),
    (10, 0, 90), (20, 0, 90), (30, 0, 90), (40, 0, 90), (80, 0, 90), (120, 0, 90),
)  # fmt: skip
# Metres up to which a crop has all its rows, and rows of the farthest, which show a person of average height in 12.
SHARP_RANGE, FEWEST_ROWS = 20.0, 16


@dataclasses.dataclass(frozen=True)
class Camera:
    """A fixed camera over a straight path.

    Camera coordinates are metres: x right, y down, z forward, origin in the lens. The path crosses the optical axis
    at `distance` metres; `heading` is the walking direction in radians (0 walks right, -pi/2 walks at the camera).
    """

    number: int  # from 1, over all cameras of a world
    modality: str  # "rgb" | "ir"
    heading: float
    height: float
    distance: float
    cast: tuple[float, float, float]
    gain: float
    gamma: float
    blur: float  # standard deviation in pixels of a 64-row frame
    noise: float  # standard deviation of a value in [0, 1]
    vignette: float
    point: int = 0  # of CAPTURE_POINTS, from 1, for a camera in the air
    session: int = 0  # the only one in which the camera looks; 0 all

    @property
    def name(self) -> str:
        return f"uav{self.session}p{self.point}" if self.aerial else f"{self.modality}{self.number}"

    @property
    def aerial(self) -> bool:
        return self.point > 0

    @property
    def range(self) -> float:
        """Metres to the place that the camera looks at."""
        return float(np.hypot(self.height, self.distance))

    def rows(self, height: int) -> int:
        """Rows of a crop that the sensor resolves, at most `height`."""
        return height if not self.aerial else max(round(height * min(SHARP_RANGE / self.range, 1.0)), FEWEST_ROWS)

    @property
    def infrared(self) -> bool:
        return self.modality == "ir"

    @property
    def elevation(self) -> float:
        """Angle in radians below the horizon under which the camera looks at a person's middle."""
        return float(np.arctan2(self.height - 0.95, self.distance))

    def view(self, points: np.ndarray) -> np.ndarray:
        """Ground coordinates [..., 3] (right, away, up; origin below the lens) in camera coordinates."""
        right, away, up = np.moveaxis(points, -1, 0)
        sine, cosine = np.sin(self.elevation), np.cos(self.elevation)
        down = self.height - up
        return np.stack([right, down * cosine - away * sine, away * cosine + down * sine], -1)

    def expose(self, frames: np.ndarray, gain: float, rng: np.random.Generator) -> np.ndarray:
        """Radiance f32[T, H, W, 3] in [0, 1] as the camera records it: u8[T, H, W, 3]."""
        count, height, width, _ = frames.shape
        # One tall picture: the optics work on every frame with a few calls.
        if self.blur > 0:
            sigma = self.blur * height / 64
            frames = np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        radius = ((y / (height - 1) - 0.5) ** 2 + (x / (width - 1) - 0.5) ** 2) * 2
        falloff = (1 - self.vignette * radius)[..., None] * np.asarray(self.cast, np.float32) * (self.gain * gain)
        frames = np.clip(frames * falloff, 0, 1)
        frames = cv2.pow(frames.reshape(count * height, -1), self.gamma).reshape(frames.shape)
        if self.infrared:  # one sensor channel, shown as grey
            noise = rng.standard_normal((count, height, width, 1), np.float32)
        else:
            noise = rng.standard_normal((count, height, width, 3), np.float32)
        noise *= self.noise
        frames = frames + noise
        np.clip(frames, 0, 1, out=frames)
        frames *= 255
        frames += 0.5
        return frames.astype(np.uint8)


def draw_camera(
    rng: np.random.Generator,
    number: int,
    modality: str,
    strength: float,
    height: tuple[float, float] = (2.2, 4.0),
    distance: tuple[float, float] = (7.0, 11.0),
) -> Camera:
    """A random camera; `strength` scales how far its picture is from neutral (colour cast, gain, blur, ...)."""
    infrared = modality == "ir"
    cast = (1.0, 1.0, 1.0) if infrared else tuple(1 + strength * rng.uniform(-0.3, 0.3, 3))
    return Camera(
        number=number,
        modality=modality,
        heading=rng.uniform(-1.2, 1.2),
        height=rng.uniform(*height),
        distance=rng.uniform(*distance),
        cast=cast,
        gain=1 + strength * rng.uniform(-0.35, 0.35),
        gamma=float(np.exp(strength * rng.uniform(-0.4, 0.4))),
        blur=0.3 + strength * rng.uniform(0, 0.6),
        noise=(0.02 if infrared else 0.008) + strength * rng.uniform(0, 0.03),
        vignette=(0.25 if infrared else 0.05) + strength * rng.uniform(0, 0.35),
    )


def draw_aerial_camera(rng: np.random.Generator, number: int, session: int, point: int, strength: float) -> Camera:
    """A random camera of a drone that hovers at a capture point."""
    height, distance, _ = CAPTURE_POINTS[point - 1]
    drawn = draw_camera(rng, number, "rgb", strength, height=(height, height), distance=(distance, distance))
    heading = rng.uniform(-np.pi, np.pi)
    return dataclasses.replace(drawn, heading=heading, noise=1.5 * drawn.noise, point=point, session=session)
