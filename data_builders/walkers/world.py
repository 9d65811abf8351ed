"""A whole data set as one value: who walks past which cameras, and every tracklet drawable on its own."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from .camera import Camera, draw_camera
from .caption import describe
from .person import Person, Wardrobe, draw_person
from .render import DrawnTracklet, draw_passage, render
from .scene import PLACES, Scene, draw_scene

# Every random stream has its own number, so that one can change without moving the others.
_PERSON, _CAMERA, _SCENE, _PLAN, _RECORDING, _CROP = range(6)


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """A data set in numbers; difficulty is data.

    Attributes:
      presence: probability that a person is seen by a camera.
      tracklets_per_camera: fewest and most tracklets of a person in a camera that sees them.
      second_passage: probability that the tracklets of a person in a camera come from two recordings, not one.
      frames: fewest and most frames of a tracklet.
      wardrobe: the colours and near-infrared reflectances that people wear, independent of each other.
      flash: probability that a passage is by night, with a dark scene behind a person in flash light.
      camera_strength: how far cameras are from neutral (1 strong).
      nuisance: how much passages of one person differ (1 strong).
    """

    name: str
    seed: int = 0
    train_identities: int = 96
    test_identities: int = 64
    visible_cameras: int = 3
    infrared_cameras: int = 3
    presence: float = 0.9
    tracklets_per_camera: tuple[int, int] = (1, 3)
    second_passage: float = 0.3
    frames: tuple[int, int] = (10, 16)
    height: int = 64
    width: int = 32
    wardrobe: Wardrobe = dataclasses.field(default_factory=Wardrobe)
    flash: float = 0.0
    camera_strength: float = 0.6
    nuisance: float = 0.4


CONFIGS = {
    config.name: config
    for config in (
        WorldConfig("vvi"),
        # Other people, cameras and places: settings are chosen here, so that `vvi` only reports.
        WorldConfig("vvi_dev", seed=1),
        WorldConfig("visible", visible_cameras=4, infrared_cameras=0),
        # Many people with their captions, for the small CLIP: none of them is in another configuration.
        WorldConfig(
            "captioned", seed=7_000_002, train_identities=1500, test_identities=100, visible_cameras=12,
            infrared_cameras=0, presence=0.2, tracklets_per_camera=(1, 2), frames=(3, 4), flash=0.3,
        ),
        WorldConfig(
            "tiny", train_identities=6, test_identities=4, visible_cameras=2, infrared_cameras=2, presence=1.0,
            tracklets_per_camera=(1, 2), frames=(4, 6),
        ),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrackletSpec:
    """What is to be drawn. Tracklets of one `recording` are consecutive pieces of it, `first_frame` on."""

    tracklet_id: str
    pid: int
    camera: int
    modality: str
    recording: str
    split: str
    first_frame: int
    frames: int
    recorded: int  # frames of the whole recording
    recording_seed: tuple[int, ...]
    crop_seed: tuple[int, ...]


class World:
    """Persons, cameras and tracklets of a configuration; everything follows from `config.seed`."""

    def __init__(self, config: WorldConfig):
        if min(len(set(config.wardrobe.colours)), len(set(config.wardrobe.reflectances))) < 2:
            raise ValueError(f"world {config.name!r}: the wardrobe needs two colours and two reflectances of clothes")
        self.config = config

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, *stream))

    @functools.cached_property
    def cameras(self) -> tuple[Camera, ...]:
        """Visible cameras first; numbers from 1."""
        config = self.config
        modalities = ["rgb"] * config.visible_cameras + ["ir"] * config.infrared_cameras
        return tuple(
            draw_camera(self._rng(_CAMERA, number), number, modality, config.camera_strength)
            for number, modality in enumerate(modalities, 1)
        )

    @functools.cached_property
    def scenes(self) -> dict[int, Scene]:
        """The scene of every camera, by camera number; kinds of places repeat only when they run out."""
        kinds = list(PLACES)
        order = self._rng(_SCENE).permutation(len(kinds))
        return {
            camera.number: draw_scene(
                self._rng(_SCENE, camera.number),
                kinds[order[(camera.number - 1) % len(kinds)]],
                camera.elevation,
                camera.infrared,
            )
            for camera in self.cameras
        }

    @functools.cached_property
    def persons(self) -> dict[int, Person]:
        """By pid: 1 to train_identities, then the test identities."""
        config = self.config
        return {
            pid: draw_person(pid, self._rng(_PERSON, pid), config.wardrobe)
            for pid in range(1, config.train_identities + config.test_identities + 1)
        }

    def pids(self, split: str) -> range:
        first = self.config.train_identities + 1
        ranges = {"train": range(1, first), "test": range(first, first + self.config.test_identities)}
        if split not in ranges:
            raise ValueError(f"world {self.config.name!r} has splits {sorted(ranges)}, not {split!r}")
        return ranges[split]

    def specs(self, split: str) -> list[TrackletSpec]:
        """Every tracklet of a split ("train" | "test"), by person, camera and time."""
        return [spec for pid in self.pids(split) for camera in self.cameras for spec in self._specs(split, pid, camera)]

    def _specs(self, split, pid, camera):
        config = self.config
        rng = self._rng(_PLAN, pid, camera.number)
        if rng.random() >= config.presence:
            return
        fewest, most = config.tracklets_per_camera
        lengths = rng.integers(config.frames[0], config.frames[1] + 1, rng.integers(fewest, most + 1))
        cut = len(lengths)
        if len(lengths) > 1 and rng.random() < config.second_passage:
            cut = int(rng.integers(1, len(lengths)))
        number = 0
        for passage, pieces in enumerate((lengths[:cut], lengths[cut:]), 1):
            first = 0
            for length in pieces:
                number += 1
                yield TrackletSpec(
                    tracklet_id=f"{pid:04d}C{camera.number}T{number:02d}",
                    pid=pid,
                    camera=camera.number,
                    modality=camera.modality,
                    recording=f"{pid:04d}C{camera.number}R{passage}",
                    split=split,
                    first_frame=first,
                    frames=int(length),
                    recorded=int(pieces.sum()),
                    recording_seed=(config.seed, _RECORDING, pid, camera.number, passage),
                    crop_seed=(config.seed, _CROP, pid, camera.number, number),
                )
                first += int(length)

    def draw(self, spec: TrackletSpec, person: Person | None = None) -> DrawnTracklet:
        """Renders a tracklet; another `person` may walk the same passage (background and nuisance stay)."""
        config = self.config
        person = person or self.persons[spec.pid]
        camera, scene = self.cameras[spec.camera - 1], self.scenes[spec.camera]
        passage = draw_passage(
            np.random.default_rng(spec.recording_seed),
            np.random.default_rng(spec.crop_seed),
            config.nuisance,
            spec.first_frame,
            spec.frames,
            spec.recorded,
            config.flash,
        )
        caption = describe(person, camera.infrared)
        return render(person, camera, scene, passage, caption, (config.height, config.width))
