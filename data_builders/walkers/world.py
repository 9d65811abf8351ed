"""A whole data set as one value: who walks past which cameras, and every tracklet drawable on its own."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

from jaxreid.errors import UserError

from .camera import CAPTURE_POINTS, Camera, draw_aerial_camera, draw_camera
from .caption import WORDINGS, describe
from .person import (
    COLOURS,
    KINDS,
    Person,
    Wardrobe,
    average,
    draw_outfit,
    draw_person,
    in_kit,
    in_other_clothes,
    resembling,
)
from .render import WALKING_SPEED, DrawnTracklet, draw_passage, render, spoil
from .scene import COURTS, GROUNDS, PLACES, Scene, draw_ground, draw_scene

# Every random stream has its own number, so that one can change without moving the others.
_PERSON, _CAMERA, _SCENE, _PLAN, _RECORDING, _CROP, _KIT, _OUTFIT, _SPOILED, _WORDING, _HABIT = range(11)

RUNNING_SPEED = 3.6  # m/s, of players


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
      team: players of a team, who run over a sports ground in clothes that are alike; 0: people walk in their own.
      sessions: days on which everyone comes by.
      outfits: clothes of a person, taken in turn from session to session.
      habit: probability, for each of KINDS, that a person's other outfits have the same kind in other colours.
      aerial_presence: probability that a person is seen from a capture point of a drone in a session; 0: no drone.
        Cameras on the ground then look in the first session only.
      occlusion: probability that a thing covers a part of the person in some frames of a tracklet.
      misalignment: how far crops are off (1 strong), see `render.spoil`.
      alike: how near bodies and gaits are to the average (1 there; below 0 they differ more). Above 0, hats and sleeves
        of players are their own, as hair and shoes are: captions name them.
      wordings: captions of a tracklet, which say the same in other words; the first is a random one of them.
      more_identities: people who are seen in training besides, numbered after the test identities: whom the test
        split shows, and how, stays the same.
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
    team: int = 0
    sessions: int = 1
    outfits: int = 1
    habit: float = 0.0
    aerial_presence: float = 0.0
    occlusion: float = 0.0
    misalignment: float = 0.0
    alike: float = 0.0
    wordings: int = 1
    more_identities: int = 0


# A team's kit tells nobody from a team-mate.
_KITS = Wardrobe(
    colours=("red", "blue", "green", "white", "yellow", "navy", "orange", "purple"),
    reflectances=(0.32, 0.78),
    accessory_colours=("white", "black", "red", "yellow"),
)
_EVERYDAY = Wardrobe(
    colours=tuple(COLOURS),
    accessory_colours=("black", "white", "brown", "red"),
    skin=("light", "medium", "tan", "dark"),
    hair=("dark", "brown", "fair", "grey"),
)
_VISIBLE = WorldConfig(
    "visible", visible_cameras=4, infrared_cameras=0, occlusion=0.4, misalignment=0.4, wordings=3
)  # fmt: skip
_TEAMS = WorldConfig(
    "teams", seed=11, team=8, visible_cameras=4, infrared_cameras=0, tracklets_per_camera=(1, 2), frames=(8, 12),
    wardrobe=_KITS, alike=0.7, wordings=3,
)  # fmt: skip
_AERIAL = WorldConfig(
    "aerial", seed=12, train_identities=112, test_identities=48, visible_cameras=2, infrared_cameras=0,
    tracklets_per_camera=(1, 2), frames=(6, 10), sessions=2, outfits=2, aerial_presence=0.25, wardrobe=_EVERYDAY,
    nuisance=0.25, alike=-0.6, wordings=3,
)  # fmt: skip
_CLOTHES = WorldConfig(
    "clothes", seed=13, visible_cameras=4, infrared_cameras=0, presence=0.6, tracklets_per_camera=(1, 2),
    sessions=2, outfits=2, habit=0.85, wardrobe=_EVERYDAY, nuisance=0.25, alike=-0.6, wordings=3,
)  # fmt: skip
_REPORTED = (_VISIBLE, _TEAMS, _AERIAL, _CLOTHES)
_SETTINGS = tuple(
    dataclasses.replace(world, name=f"{world.name}_dev", seed=21 + n) for n, world in enumerate(_REPORTED)
)


def _more(world: WorldConfig) -> int:
    """People whom `<world>_many` adds; who wears other clothes on another day takes more of them to learn."""
    return 1440 if world.outfits > 1 and not world.aerial_presence else 480


# A few people of another configuration, with cameras that all of them pass: for tests.
_FEW: dict[str, Any] = {"train_identities": 6, "test_identities": 4, "presence": 1.0, "frames": (4, 6)}

CONFIGS = {
    config.name: config
    for config in (
        WorldConfig("vvi"),
        # Other people, cameras and places: settings are chosen here, so that `vvi` only reports.
        WorldConfig("vvi_dev", seed=1),
        # Of the same kind, and looked at by nobody yet.
        WorldConfig("vvi_dev2", seed=25),
        WorldConfig("vvi_2", seed=26),
        # Many people with their captions, for the small CLIP: none of them is in another configuration.
        WorldConfig(
            "captioned", seed=7_000_002, train_identities=1500, test_identities=100, visible_cameras=12,
            infrared_cameras=0, presence=0.2, tracklets_per_camera=(1, 2), frames=(3, 4), flash=0.3,
        ),
        WorldConfig(
            "tiny", train_identities=6, test_identities=4, visible_cameras=2, infrared_cameras=2, presence=1.0,
            tracklets_per_camera=(1, 2), frames=(4, 6),
        ),
        # Poor crops; teams in one kit; people from the ground and from the air; people in several outfits. Each with
        # another world to choose settings on.
        *_REPORTED,
        *_SETTINGS,
        # The same with many more people to learn from.
        *(dataclasses.replace(w, name=f"{w.name}_many", more_identities=_more(w)) for w in (*_REPORTED, *_SETTINGS)),
        WorldConfig("large", seed=14, train_identities=800, test_identities=200),
        dataclasses.replace(_VISIBLE, name="tiny_visible", visible_cameras=2, **_FEW),
        dataclasses.replace(_TEAMS, name="tiny_teams", team=2, visible_cameras=2, **_FEW),
        dataclasses.replace(_AERIAL, name="tiny_aerial", aerial_presence=0.15, **_FEW),
        dataclasses.replace(_CLOTHES, name="tiny_clothes", visible_cameras=2, tracklets_per_camera=(2, 2), **_FEW),
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
    session: int = 1
    outfit: int = 0


class World:
    """Persons, cameras and tracklets of a configuration; everything follows from `config.seed`."""

    def __init__(self, config: WorldConfig):
        if min(len(set(config.wardrobe.colours)), len(set(config.wardrobe.reflectances))) < 2:
            raise UserError(f"world {config.name!r}: the wardrobe needs two colours and two reflectances of clothes")
        if not 1 <= config.wordings <= len(WORDINGS):
            raise UserError(f"world {config.name!r}: wordings is {config.wordings}, not 1 to {len(WORDINGS)}")
        self.config = config

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, *stream))

    @functools.cached_property
    def cameras(self) -> tuple[Camera, ...]:
        """Visible cameras first, then infrared, then every capture point in every session; numbers from 1."""
        config = self.config
        modalities = ["rgb"] * config.visible_cameras + ["ir"] * config.infrared_cameras
        # Players are watched from farther off.
        place: Any = {"height": (3.0, 6.0), "distance": (12.0, 18.0)} if config.team else {}
        cameras = [
            draw_camera(self._rng(_CAMERA, number), number, modality, config.camera_strength, **place)
            for number, modality in enumerate(modalities, 1)
        ]
        if config.aerial_presence:
            looks = itertools.product(range(1, config.sessions + 1), range(1, len(CAPTURE_POINTS) + 1))
            for number, (session, point) in enumerate(looks, len(cameras) + 1):
                rng = self._rng(_CAMERA, number)
                cameras.append(draw_aerial_camera(rng, number, session, point, config.camera_strength))
        return tuple(cameras)

    @functools.cached_property
    def scenes(self) -> dict[int, Scene]:
        """The scene of every camera, by camera number; kinds of places repeat only when they run out."""
        kinds = list(COURTS if self.config.team else PLACES)
        order = self._rng(_SCENE).permutation(len(kinds))
        scenes = {}
        for camera in self.cameras:
            rng = self._rng(_SCENE, camera.number)
            if camera.aerial:
                scenes[camera.number] = draw_ground(rng, list(GROUNDS)[camera.number % len(GROUNDS)], camera.elevation)
            else:
                kind = kinds[order[(camera.number - 1) % len(kinds)]]
                scenes[camera.number] = draw_scene(rng, kind, camera.elevation, camera.infrared)
        return scenes

    @functools.cached_property
    def persons(self) -> dict[int, Person]:
        """By pid: 1 to train_identities, then the test identities; each in the first of the outfits."""
        config, gait = self.config, "running" if self.config.team else "walking"
        persons = {
            pid: draw_person(pid, self._rng(_PERSON, pid), config.wardrobe, gait)
            for pid in (*self.pids("train"), *self.pids("test"))
        }
        if config.team:
            for pid, person in persons.items():
                team = (pid - 1) // config.team
                persons[pid] = in_kit(person, draw_outfit(self._rng(_KIT, team), config.wardrobe), config.alike > 0)
        if config.alike:
            persons = {pid: resembling(person, *average(gait), config.alike) for pid, person in persons.items()}
        return persons

    def person(self, spec: TrackletSpec) -> Person:
        """Who is seen, in the clothes of that session."""
        person = self.persons[spec.pid]
        if not spec.outfit:
            return person
        outfit = draw_outfit(self._rng(_OUTFIT, spec.pid, spec.outfit), self.config.wardrobe)
        kept = self._rng(_HABIT, spec.pid, spec.outfit).random(len(KINDS)) < self.config.habit
        return in_other_clothes(person, outfit, [kind for kind, keep in zip(KINDS, kept, strict=True) if keep])

    def pids(self, split: str) -> list[int]:
        first = self.config.train_identities + 1
        end = first + self.config.test_identities
        more = range(end, end + self.config.more_identities)
        ranges = {"train": [*range(1, first), *more], "test": [*range(first, end)]}
        if split not in ranges:
            raise UserError(f"world {self.config.name!r} has splits {sorted(ranges)}, not {split!r}")
        return ranges[split]

    def specs(self, split: str) -> list[TrackletSpec]:
        """Every tracklet of a split ("train" | "test"), by person, camera and time."""
        return [spec for pid in self.pids(split) for camera in self.cameras for spec in self._specs(split, pid, camera)]

    def _specs(self, split, pid, camera):
        if camera.aerial:
            sessions = range(camera.session, camera.session + 1)
        else:
            sessions = range(1, 2 if self.config.aerial_presence else self.config.sessions + 1)
        number = 0
        for session in sessions:
            for spec in self._specs_of(split, pid, camera, session, number):
                number += 1
                yield spec

    def _specs_of(self, split, pid, camera, session, number):
        """Of one session, after `number` tracklets before it."""
        config = self.config
        later = () if session == 1 else (session,)
        rng = self._rng(_PLAN, pid, camera.number, *later)
        if rng.random() >= (config.aerial_presence if camera.aerial else config.presence):
            return
        fewest, most = (1, 1) if camera.aerial else config.tracklets_per_camera
        lengths = rng.integers(config.frames[0], config.frames[1] + 1, rng.integers(fewest, most + 1))
        cut = len(lengths)
        if len(lengths) > 1 and rng.random() < config.second_passage:
            cut = int(rng.integers(1, len(lengths)))
        day = f"S{session}" if config.sessions > 1 else ""
        for passage, pieces in enumerate((lengths[:cut], lengths[cut:]), 1):
            first = 0
            for length in pieces:
                number += 1
                yield TrackletSpec(
                    tracklet_id=f"{pid:04d}C{camera.number}T{number:02d}",
                    pid=pid,
                    camera=camera.number,
                    modality=camera.modality,
                    recording=f"{pid:04d}C{camera.number}{day}R{passage}",
                    split=split,
                    first_frame=first,
                    frames=int(length),
                    recorded=int(pieces.sum()),
                    recording_seed=(config.seed, _RECORDING, pid, camera.number, passage, *later),
                    crop_seed=(config.seed, _CROP, pid, camera.number, number, *later),
                    session=session,
                    outfit=(session - 1) % config.outfits,
                )
                first += int(length)

    def draw(self, spec: TrackletSpec, person: Person | None = None) -> DrawnTracklet:
        """Renders a tracklet; another `person` may walk the same passage (background and nuisance stay)."""
        config = self.config
        person = person or self.person(spec)
        camera, scene = self.cameras[spec.camera - 1], self.scenes[spec.camera]
        passage = draw_passage(
            np.random.default_rng(spec.recording_seed),
            np.random.default_rng(spec.crop_seed),
            config.nuisance,
            spec.first_frame,
            spec.frames,
            spec.recorded,
            config.flash,
            RUNNING_SPEED if config.team else WALKING_SPEED,
        )
        _, _, *place = spec.crop_seed
        if config.occlusion or config.misalignment:
            rng = self._rng(_SPOILED, *place)
            passage = spoil(passage, rng, config.occlusion, config.misalignment)
        if camera.aerial:
            passage = dataclasses.replace(passage, occluder=None)
        first = int(self._rng(_WORDING, *place).integers(config.wordings))
        order = [(first + n) % config.wordings for n in range(config.wordings)]
        captions = tuple(describe(person, camera.infrared, wording=wording) for wording in order)
        return render(person, camera, scene, passage, captions, (config.height, config.width))
