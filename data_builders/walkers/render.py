"""One tracklet: a person walks past a camera in front of its scene, and the camera records it.

What may differ between two passages of one person is a `Passage`; it is drawn without knowledge of the person, so
that nothing but body, clothes and gait can tell who walks.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from .camera import Camera
from .figure import FAR, MATERIAL, MATERIAL_MASK, Figure
from .person import COLOURS, GARMENTS, HAIR_COLOURS, JOINT, SKIN, Person, walk
from .scene import Scene

SUPERSAMPLING = 2
FRAME_INTERVAL = 0.1  # seconds
# Everyone's crop moves at this speed (m/s), whatever the person's own gait: the background must not tell who walks.
WALKING_SPEED = 1.2
EXPOSURE = 0.02  # seconds over which a background that runs past is smeared
WINDOW = 2.25  # metres shown by the height of a crop of scale 1
WINDOW_FROM_ABOVE = 1.3  # the same for a person seen from straight above
AIM = 0.93  # metres above the ground that a crop is centred on

_MISALIGNED = np.array([0.3, 0.25, 0.45])  # largest errors of a crop: logarithm of its scale, metres right, metres down

COCO = ("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
        "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee",
        "left_ankle", "right_ankle")  # fmt: skip
HUMAN36M = ("root", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "spine", "thorax",
            "nose", "head_top", "left_shoulder", "left_elbow", "left_wrist", "right_shoulder", "right_elbow",
            "right_wrist")  # fmt: skip

SKIN_INFRARED, HAIR_INFRARED = 0.92, 0.30
FAR_SHADE = 0.78


@dataclasses.dataclass(frozen=True)
class Passage:
    """How a tracklet was taken: shared by everything cut from one recording up to `gain`, then the crop's own."""

    backwards: bool  # walks against the camera's heading
    turn: float  # radians added to the heading
    start: float  # metres along the path at frame 0 of the recording
    phase: float  # of the gait at frame 0 of the recording
    gain: float
    ambient: float  # light on the scene: 1 by day, less when only a flash lights the person
    first_frame: int
    frames: int
    scale: np.ndarray  # [T]
    shift: np.ndarray  # [T, 2] of the crop in metres, right and down
    occluder: tuple[float, ...] | None  # position (m), width (m), height (m), visible grey, infrared value
    noise_seed: int
    speed: float = WALKING_SPEED  # of the crop, m/s


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnTracklet:
    """A rendered tracklet of T frames with its exact annotations.

    Attributes:
      frames: u8[T, H, W, 3] RGB; infrared is grey in three channels.
      keypoints: f32[T, 17, 3] COCO order, x and y in pixels of the frame (the centre of the first pixel is 0.5),
        confidence 1, 0.5 (hidden by the person's own body) or 0 (hidden by an occluder or outside the frame).
      joints3d: f32[T, 17, 3] Human3.6M order, metres in camera coordinates (x right, y down, z forward).
      silhouette: u8[T, H, W] coverage of the pixel by the visible person, 255 full. A crop that the sensor resolves
        with fewer rows has small frames; silhouettes and materials keep the size of the others.
      materials: u8[T, 2H, 2W] index in figure.MATERIALS.
      captions: the visible attributes in words, in one or more wordings.
    """

    frames: np.ndarray
    keypoints: np.ndarray
    joints3d: np.ndarray
    silhouette: np.ndarray
    materials: np.ndarray
    captions: tuple[str, ...]


# From the air a joint is seen if the picture shows at its place what it is made of; by COCO keypoint.
_MADE_OF = {
    "nose": ("skin",), "eye": ("skin",), "ear": ("skin", "hair"), "shoulder": ("skin", "upper_a", "upper_b"),
    "elbow": ("skin", "upper_a", "upper_b"), "wrist": ("skin", "upper_a", "upper_b"),
    "hip": ("upper_a", "upper_b", "lower"), "knee": ("skin", "lower"), "ankle": ("skin", "lower", "shoes"),
}  # fmt: skip
_SHOWS = np.array(
    [np.isin(np.arange(MATERIAL_MASK + 1), [MATERIAL[m] for m in _MADE_OF[name.split("_")[-1]]]) for name in COCO]
)

# u8[256], by label: 255 where a body shows, which is neither background nor what stands before it.
_NO_BODY = MATERIAL["background"], MATERIAL["occluder"]
_BODY = 255 * (~np.isin(np.arange(256) & MATERIAL_MASK, _NO_BODY)).astype(np.uint8)


def draw_passage(
    rng: np.random.Generator,
    crop_rng: np.random.Generator,
    nuisance: float,
    first_frame: int,
    frames: int,
    recorded: int,
    flash: float = 0.0,
    speed: float = WALKING_SPEED,
) -> Passage:
    """A random passage: `rng` belongs to the recording of `recorded` frames, `crop_rng` to the tracklet.

    `flash` is the probability of a passage by night that a flash lights up, before a dark scene.
    """
    length = speed * FRAME_INTERVAL * recorded
    backwards, turn = bool(rng.random() < 0.5), nuisance * rng.uniform(-0.5, 0.5)
    start = -0.5 * length + rng.uniform(-0.8, 0.8)
    phase, gain = rng.uniform(0, 2 * np.pi), 1 + nuisance * rng.uniform(-0.3, 0.3)
    ambient = rng.uniform(0.05, 0.6) if rng.random() < flash else 1.0
    occluder = None
    if crop_rng.random() < 0.25 * nuisance:
        # The tracklet's middle lies somewhere behind it, so that it covers a part of the frames.
        occluder = tuple(crop_rng.uniform((-0.5, 0.25, 0.5, 0.15, 0.05), (0.5, 0.6, 1.5, 0.7, 0.5)))
    return Passage(
        backwards=backwards,
        turn=turn,
        start=start,
        phase=phase,
        gain=gain,
        ambient=ambient,
        first_frame=first_frame,
        frames=frames,
        scale=np.full(frames, np.exp(nuisance * crop_rng.uniform(-0.16, 0.16))),
        shift=np.tile(nuisance * crop_rng.uniform(-0.16, 0.16, 2), (frames, 1)),
        occluder=occluder,
        noise_seed=int(crop_rng.integers(2**31)),
        speed=speed,
    )


def spoil(passage: Passage, rng: np.random.Generator, occlusion: float, misalignment: float) -> Passage:
    """The same passage before whom something may stand, as a poor detector crops it.

    Args:
      occlusion: probability that a thing covers a part of the person in some of the frames.
      misalignment: how far crops are off (1 strong): one error at the first frame and another at the last, between
        which it drifts, so that some frames of a tracklet are better than others.
    """
    occluder = passage.occluder
    if rng.random() < occlusion:
        occluder = tuple(rng.uniform((-0.6, 0.3, 0.7, 0.1, 0.05), (0.6, 0.8, 1.8, 0.8, 0.5)))
    share = np.linspace(0, 1, passage.frames)[:, None]
    first, last = misalignment * rng.uniform(-1, 1, (2, 3)) * _MISALIGNED
    error = (1 - share) * first + share * last
    return dataclasses.replace(
        passage, occluder=occluder, scale=passage.scale * np.exp(error[:, 0]), shift=passage.shift + error[:, 1:]
    )


def colour_table(person: Person, infrared: bool, occluder: tuple[float, ...] | None) -> np.ndarray:
    """u8[256, 4]: red, green, blue and coverage of every label; background has none of either."""
    table = np.zeros((256, 4), np.float32)
    outfit = person.outfit
    rows: dict[str, list[float] | tuple[float, ...]]
    if infrared:
        rows = {name: [255 * value] * 3 for name, value in zip(GARMENTS, outfit.reflectances, strict=True)}
        rows |= {"skin": [255 * SKIN_INFRARED] * 3, "hair": [255 * HAIR_INFRARED] * 3}
    else:
        rows = {name: COLOURS[colour] for name, colour in zip(GARMENTS, outfit.colours, strict=True)}
        rows |= {"skin": SKIN[person.skin], "hair": HAIR_COLOURS[person.hair_colour]}
    if occluder is not None:
        rows["occluder"] = [255 * occluder[4 if infrared else 3]] * 3
    for name, colour in rows.items():
        table[MATERIAL[name]] = (*colour, 255)
        table[MATERIAL[name] + FAR] = (*(FAR_SHADE * np.asarray(colour)), 255)
    return (table + 0.5).astype(np.uint8)


def render(
    person: Person, camera: Camera, scene: Scene, passage: Passage, captions: tuple[str, ...], size: tuple[int, int]
) -> DrawnTracklet:
    """Draws one tracklet with frames of `size` (height, width)."""
    height, width = size
    times = FRAME_INTERVAL * (passage.first_frame + np.arange(passage.frames))
    heading = camera.heading + passage.turn + (np.pi if passage.backwards else 0.0)
    forward = np.array([np.cos(heading), np.sin(heading)])
    left = np.array([-forward[1], forward[0]])
    ground = np.array([0.0, camera.distance]) + (passage.start + passage.speed * times)[:, None] * forward
    elevation = camera.elevation if camera.aerial else 0.0
    extent = WINDOW * np.cos(elevation) + WINDOW_FROM_ABOVE * np.sin(elevation)

    def place(local):  # person's frame -> ground coordinates, [T, N, 3]
        flat = ground[:, None] + local[..., :1] * forward + local[..., 1:2] * left
        return np.concatenate([flat, local[..., 2:]], -1)

    joints = camera.view(place(walk(person, passage.phase + 2 * np.pi * person.gait.cadence * times)))
    aim = camera.view(np.concatenate([ground, np.full((len(ground), 1), AIM)], -1))
    # A window that shows so many metres at the person's distance, whatever that distance is.
    scale = height / extent * passage.scale
    centre = np.array([width, height]) / 2 - passage.shift * scale[:, None]

    def project(points):  # camera coordinates [T, N, 3] -> pixels [T, N, 2]
        flat = points[..., :2] / points[..., 2:] - (aim[:, :2] / aim[:, 2:])[:, None]
        return centre[:, None] + scale[:, None, None] * aim[:, None, 2:] * flat

    pixels = project(joints)
    # The walking direction as the camera sees it; a small step avoids the special case of a far person.
    step = camera.view(np.concatenate([ground + 1e-3 * forward, np.full((len(ground), 1), AIM)], -1)) - aim
    bearing = np.arctan2(aim[:, 0], aim[:, 2])
    seen = np.stack([step[:, 0] * np.cos(bearing) - step[:, 2] * np.sin(bearing),
                     step[:, 0] * np.sin(bearing) + step[:, 2] * np.cos(bearing)], -1)  # fmt: skip
    if camera.aerial:  # depth is height rather than distance here: take the direction on the ground
        bearing = np.arctan2(ground[:, 0], np.maximum(ground[:, 1], 1.0))
        seen = np.stack([forward[0] * np.cos(bearing) - forward[1] * np.sin(bearing),
                         forward[0] * np.sin(bearing) + forward[1] * np.cos(bearing)], -1)  # fmt: skip
    seen /= np.linalg.norm(seen, axis=-1, keepdims=True)

    figure = Figure(person, pixels * SUPERSAMPLING, joints[..., 2], seen, scale * SUPERSAMPLING, elevation)
    labels = figure.paint((height * SUPERSAMPLING, width * SUPERSAMPLING))
    if passage.occluder is not None:
        _occlude(labels, passage, times, forward, scale * SUPERSAMPLING)

    # One tall picture: one table look-up and one downscale for the whole tracklet.
    tall = labels.reshape(-1, labels.shape[-1])
    table = colour_table(person, camera.infrared, passage.occluder)
    layers = np.take(table.view(np.uint32)[:, 0], tall, mode="clip").view(np.uint8).reshape(*tall.shape, 4)
    layers = cv2.resize(layers, (width, height * len(times)), interpolation=cv2.INTER_AREA)
    layers = layers.reshape(len(times), height, width, 4).astype(np.float32) * (1 / 255)
    path = ground - [0.0, camera.distance]
    down = -passage.shift[:, 1] - path[:, 1] * np.sin(elevation)
    window = np.stack([path[:, 0] - passage.shift[:, 0], down], -1)
    background = scene.crops(window, extent / passage.scale, size) * passage.ambient
    smears = (passage.speed * EXPOSURE * scale).astype(int)
    background = np.stack(
        [
            cv2.blur(frame, (int(smear), 1)) if smear > 1 else frame
            for frame, smear in zip(background, smears, strict=True)
        ]
    )
    _shadow(background, centre, scale, camera)
    radiance = layers[..., :3] + (1 - layers[..., 3:]) * background
    rows = camera.rows(height)
    if rows < height:
        small = (max(1, round(width * rows / height)), rows)
        radiance = np.stack([cv2.resize(frame, small, interpolation=cv2.INTER_AREA) for frame in radiance])
    frames = camera.expose(radiance, passage.gain, np.random.default_rng(passage.noise_seed))

    materials = labels & MATERIAL_MASK
    silhouette = cv2.resize(cv2.LUT(tall, _BODY), (width, height * len(times)), interpolation=cv2.INTER_AREA)
    return DrawnTracklet(
        frames=frames,
        keypoints=_keypoints(pixels, figure.depth, labels, camera.aerial)
        * np.array([frames.shape[2] / width, frames.shape[1] / height, 1.0], np.float32),
        joints3d=joints[:, [JOINT[name] for name in HUMAN36M]].astype(np.float32),
        silhouette=silhouette.reshape(len(frames), height, width),
        materials=materials,
        captions=captions,
    )


def _occlude(labels, passage, times, forward, scales):
    """A thing between camera and path; the person passes behind it."""
    offset, width, tall = passage.occluder[:3]
    middle = np.mean(times)
    for frame, time, scale in zip(labels, times, scales, strict=True):
        x = labels.shape[2] / 2 + scale * (offset - passage.speed * (time - middle) * forward[0])
        top = int(labels.shape[1] - scale * tall)
        corners = (int(x - scale * width / 2), top), (int(x + scale * width / 2), labels.shape[1])
        cv2.rectangle(frame, *corners, MATERIAL["occluder"], -1)


def _shadow(background, centre, scale, camera):
    """A soft dark patch where everyone's feet are expected (the same for every person)."""
    _, height, width, _ = background.shape
    y, x = np.mgrid[0:height, 0:width] + 0.5
    foot_x, foot_y = centre[:, 0], centre[:, 1] + AIM * scale * np.cos(camera.elevation)
    flat = 0.12 + 0.35 * np.sin(camera.elevation)
    foot_x, foot_y, scale = (values[:, None, None] for values in (foot_x, foot_y, scale))
    distance = np.hypot((x - foot_x) / (0.42 * scale), (y - foot_y) / (flat * scale * 0.9))
    background *= (1 - 0.4 * np.clip(1.2 - distance, 0, 1))[..., None].astype(np.float32)


def _keypoints(pixels, depth, labels, aerial):
    """COCO keypoints with the confidence that the label map and the joints' depth imply."""
    index = [JOINT[name] for name in COCO]
    points, behind = pixels[:, index], depth[:, index]
    _, rows, columns = labels.shape
    x, y = np.moveaxis(np.floor(points * SUPERSAMPLING).astype(int), -1, 0)
    inside = (x >= 0) & (y >= 0) & (x < columns) & (y < rows)
    under = labels[np.arange(len(labels))[:, None], np.clip(y, 0, rows - 1), np.clip(x, 0, columns - 1)]
    visible = inside & ((under & MATERIAL_MASK) != MATERIAL["occluder"])
    # A joint well behind the body's axis is hidden unless a far limb is what shows there.
    hidden = (behind > 0.07) & (under < FAR)
    face = np.arange(len(COCO)) < 5
    head = depth[:, [JOINT["head"]]]
    hidden = np.where(face, behind > head + 0.02, hidden)
    if aerial:
        hidden = ~_SHOWS[np.arange(len(COCO)), under & MATERIAL_MASK]
    confidence = np.where(visible, np.where(hidden, 0.5, 1.0), 0.0)
    return np.concatenate([points, confidence[..., None]], -1).astype(np.float32)
