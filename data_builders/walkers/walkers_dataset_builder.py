"""TFDS builder of the drawn pedestrians: every tracklet of a world, with exact sidecars from the rig."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds

from jaxreid.data import schema
from jaxreid.data.building.progress import progress
from jaxreid.data.sidecars import SidecarWriter
from jaxreid.errors import DataSetError

from . import DEFAULT_CONFIG, VERSION, fingerprint
from .camera import CAPTURE_POINTS, Camera
from .caption import ATTRIBUTES, attribute_codes
from .render import DrawnTracklet
from .workers import draw_all
from .world import CONFIGS, TrackletSpec, World, WorldConfig

LICENCE = "drawn by this builder; Apache-2.0 like the code"
SIDECARS: dict[str, dict[str, Any]] = {
    "keypoints": {
        "order": "COCO-17",
        "columns": ["x", "y", "score"],
        "units": "pixels of the frame, the centre of the first pixel is 0.5; score 1, 0.5 (hidden by the body) or 0",
    },
    "joints3d": {"order": "Human3.6M-17", "units": "metres, camera coordinates: x right, y down, z forward"},
    "silhouettes": {"units": "coverage by the visible person, 255 full, on one grid whatever the size of a frame"},
    "captions": {"language": "en"},
}
# What is searched among what, where people are seen from the ground and from the air; bit n − 1 of `case_mask`.
CASES = {"case1": "aerial_to_ground", "case2": "ground_to_aerial", "case3": "aerial_to_aerial"}
NO_SILHOUETTES = ("vvi_dev", "captioned")
_COLOURS = np.array([name.endswith("_colour") for name in ATTRIBUTES])


@dataclasses.dataclass(kw_only=True)
class WalkersConfig(tfds.core.BuilderConfig):
    """A world, how its test split is scored, and which sidecars are written."""

    world: WorldConfig
    sidecars: tuple[str, ...] = ("keypoints", "joints3d", "captions")

    @property
    def protocols(self) -> tuple[str, ...]:
        """Keys of jaxreid.retrieval.PROTOCOLS, headline first."""
        world = self.world
        if world.aerial_presence:
            return "xfd", "xfd_train"
        if world.visible_cameras and world.infrared_cameras:
            return ("cross_modal_cam",)
        return ("market", "clothes_cc", "clothes_sc") if world.outfits > 1 else ("market",)

    @property
    def protocol(self) -> str:
        return self.protocols[0]


class Builder(tfds.core.GeneratorBasedBuilder):
    """Walking people, drawn: train and test identities are disjoint, everything follows from the world's seed.

    With both modalities, `query` holds the infrared and `gallery` the visible test tracklets (protocol
    `cross_modal_cam`; the other direction swaps them). With one, `query` holds the first tracklet of each person
    in each outfit and camera that has more than one, `gallery` the rest (protocol `market`), so that a person whom two
    cameras saw always has a match. With drones there are three cases of splits of their own (protocol `xfd`), see
    `aerial_cases`.
    """

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS reads a list)
        WalkersConfig(
            name=name,
            world=world,
            sidecars=WalkersConfig.sidecars if name in NO_SILHOUETTES else tuple(SIDECARS),
        )
        for name, world in CONFIGS.items()
    ]
    DEFAULT_BUILDER_CONFIG_NAME = DEFAULT_CONFIG

    @classmethod
    def make_config(cls, config: str | None, source: Path | None) -> WalkersConfig:
        """The configuration of a name.

        Raises:
          DataSetError: there is none of this name, or a source was given.
        """
        known = cls.builder_configs
        config = config or DEFAULT_CONFIG
        if config not in known:
            raise DataSetError(f"walkers: no configuration {config!r}; there are {', '.join(known)}")
        if source is not None:
            raise DataSetError(f"walkers: is drawn and reads no source, got {source}")
        return cast(WalkersConfig, known[config])

    @property
    def _config(self) -> WalkersConfig:
        return cast(WalkersConfig, self.builder_config)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self._config
        return tfds.core.DatasetInfo(
            builder=self,
            description="Drawn pedestrians before several visible and infrared cameras.",
            features=schema.features(),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                protocols=list(config.protocols),
                licence=LICENCE,
                fingerprint=fingerprint(),
                world=dataclasses.asdict(config.world),
                attribute_names=list(ATTRIBUTES),
                attribute_values={name: list(values) for name, values in ATTRIBUTES.items()},
                sidecars=list(config.sidecars),
            ),
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        # The data directory is still the unfinished one here, so sidecars and records appear together.
        with contextlib.ExitStack() as stack:
            command = f"jaxreid build walkers/{self._config.name}"
            self._writers = {
                kind: stack.enter_context(
                    SidecarWriter(self.data_path, kind, {**SIDECARS[kind], "made_by": "walkers", "command": command})
                )
                for kind in self._config.sidecars
            }
            self._annotated: set[str] = set()
            super()._download_and_prepare(dl_manager=dl_manager, download_config=download_config)
        del self._writers, self._annotated  # builders are pickled

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        world = World(self._config.world)
        train, test = world.specs("train"), world.specs("test")
        splits = {"train": train, **divide(test, world, self._config.protocol)}
        if world.config.aerial_presence:
            cast(dict, self.info.metadata).update(cases=CASES)
        cameras = {camera_in_records(camera, world): camera.modality for camera in world.cameras}
        cast(dict, self.info.metadata).update(
            cameras=[
                {"number": number, "name": name, "modality": modality}
                for (number, name), modality in sorted(cameras.items())
            ],
            train_pids=sorted({spec.pid for spec in splits["train"]}),
            counts={split: _counts(specs, world) for split, specs in splits.items()},
        )
        # One set of workers for all splits, which TFDS asks for in this order.
        drawn = draw_all(world.config, [spec for specs in splits.values() for spec in specs])
        return {split: self._generate_examples(split, specs, world, drawn) for split, specs in splits.items()}

    def _generate_examples(
        self, split: str, specs: list[TrackletSpec], world: World, drawn_in_order: Iterator[Any]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        pids = sorted({spec.pid for spec in specs}) if split == "train" else []
        labels = {pid: label for label, pid in enumerate(pids)}
        clothes = clothes_numbers(world, "train" if split == "train" else "test")
        cases = case_masks(world) if world.config.aerial_presence and split != "train" else {}
        for key, expected in enumerate(progress(specs, split)):
            spec, (frames, drawn) = next(drawn_in_order)
            if spec != expected:
                raise RuntimeError(f"walkers: split {split} was asked for out of turn, got {spec.tracklet_id}")
            self._write_sidecars(spec.tracklet_id, drawn)
            attributes = np.full(schema.NUM_ATTRIBUTES, schema.ATTRIBUTE_NOT_PROVIDED, np.int32)
            codes = attribute_codes(world.person(spec))
            if spec.modality == "ir":  # no annotator could tell colours here
                codes = np.where(_COLOURS, schema.ATTRIBUTE_UNKNOWN, codes)
            attributes[: len(codes)] = codes
            camera = world.cameras[spec.camera - 1]
            camid, cam_name = camera_in_records(camera, world)
            facts: dict[str, Any] = {}
            if world.config.sessions > 1:
                facts |= {
                    "session": spec.session,
                    "outfit": f"o{spec.outfit}",
                    "clothes_id": clothes[spec.pid, spec.outfit],
                }
            if camera.aerial:
                altitude, distance, angle = CAPTURE_POINTS[camera.point - 1]
                facts |= {
                    "altitude": altitude,
                    "distance": distance,
                    "angle": angle,
                    "slant_range": camera.range,
                    "point_id": camera.point,
                }
            yield (
                key,
                schema.record(
                    frames=frames,
                    frame_names=[f"{spec.tracklet_id}/{frame:03d}.jpg" for frame in range(len(frames))],
                    tracklet_id=spec.tracklet_id,
                    pid=spec.pid,
                    label=labels.get(spec.pid, -1),
                    camid=camid,
                    cam_name=cam_name,
                    modality=spec.modality,
                    recording=spec.recording,
                    platform="uav" if camera.aerial else "ground",
                    attributes=attributes,
                    role=schema.role_of(split),
                    case_mask=cases.get(spec.tracklet_id, 0),
                    source=f"walkers/{self._config.name} {VERSION} {fingerprint()}",
                    **facts,
                ),
            )

    def _write_sidecars(self, tracklet_id: str, drawn: DrawnTracklet) -> None:
        if tracklet_id in self._annotated:  # it stands in several splits
            return
        self._annotated.add(tracklet_id)
        arrays = {"keypoints": drawn.keypoints, "joints3d": drawn.joints3d, "silhouettes": drawn.silhouette}
        for kind, writer in self._writers.items():
            if kind == "captions":
                writer.add_text(tracklet_id, drawn.captions)
            else:
                writer.add(tracklet_id, arrays[kind])


def query_and_gallery(specs: list[TrackletSpec], protocol: str) -> tuple[list[TrackletSpec], list[TrackletSpec]]:
    """Divides the test tracklets as a protocol needs it; see `Builder`."""
    if protocol == "cross_modal_cam":
        return [s for s in specs if s.modality == "ir"], [s for s in specs if s.modality == "rgb"]
    seen_by = Counter((spec.pid, spec.outfit, spec.camera) for spec in specs)
    query, gallery = [], []
    started: set[tuple[int, int, int]] = set()
    for spec in specs:
        sight = (spec.pid, spec.outfit, spec.camera)
        first = seen_by[sight] > 1 and sight not in started
        started.add(sight)
        (query if first else gallery).append(spec)
    return query, gallery


def camera_in_records(camera: Camera, world: World) -> tuple[int, str]:
    """Number and name of a camera. Sets with drones call the ground 0 and the air by its session."""
    if not world.config.aerial_presence:
        return camera.number, camera.name
    return (camera.session, f"uav{camera.session}") if camera.aerial else (0, "ground")


def aerial_cases(specs: list[TrackletSpec], world: World) -> dict[str, list[TrackletSpec]]:
    """The test splits of the three cases of CASES, by name.

    Queries from the air are all aerial tracklets; among their own kind every third, searched among all, so that the
    query stands in its gallery. Queries from the ground are the first ground tracklet of each person.
    """
    aerial = [spec for spec in specs if world.cameras[spec.camera - 1].aerial]
    ground = [spec for spec in specs if not world.cameras[spec.camera - 1].aerial]
    first = {spec.pid: spec for spec in reversed(ground)}
    pairs = (aerial, ground), ([spec for spec in ground if first[spec.pid] is spec], aerial), (aerial[::3], aerial)
    return {
        f"{role}_{case}": members
        for case, pair in zip(CASES, pairs, strict=True)
        for role, members in zip(("query", "gallery"), pair, strict=True)
    }


def divide(specs: list[TrackletSpec], world: World, protocol: str) -> dict[str, list[TrackletSpec]]:
    """The test tracklets by split."""
    if world.config.aerial_presence:
        return aerial_cases(specs, world)
    return dict(zip(("query", "gallery"), query_and_gallery(specs, protocol), strict=True))


def case_masks(world: World) -> dict[str, int]:
    """Tracklet id → the cases that a test tracklet takes part in, bit n − 1 for case n."""
    masks: dict[str, int] = {}
    for split, members in aerial_cases(world.specs("test"), world).items():
        bit = 1 << list(CASES).index(split.split("_")[1])
        for spec in members:
            masks[spec.tracklet_id] = masks.get(spec.tracklet_id, 0) | bit
    return masks


def clothes_numbers(world: World, split: str) -> dict[tuple[int, int], int]:
    """(pid, outfit) → number, over all that are worn in a split."""
    worn = sorted({(spec.pid, spec.outfit) for spec in world.specs(split)})
    return {pair: number for number, pair in enumerate(worn)}


def _counts(specs: list[TrackletSpec], world: World) -> dict[str, int]:
    return {
        "tracklets": len(specs),
        "frames": sum(spec.frames for spec in specs),
        "identities": len({spec.pid for spec in specs}),
        "cameras": len({camera_in_records(world.cameras[spec.camera - 1], world) for spec in specs}),
    }
