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
from jaxreid.data.build import DataSetError, progress
from jaxreid.data.sidecars import SidecarWriter

from . import DEFAULT_CONFIG, VERSION, fingerprint
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
    "silhouettes": {"units": "coverage of the pixel by the visible person, 255 full"},
    "captions": {"language": "en"},
}
_COLOURS = np.array([name.endswith("_colour") for name in ATTRIBUTES])


@dataclasses.dataclass(kw_only=True)
class WalkersConfig(tfds.core.BuilderConfig):
    """A world, how its test split is scored, and which sidecars are written."""

    world: WorldConfig
    sidecars: tuple[str, ...] = ("keypoints", "joints3d", "captions")

    @property
    def protocol(self) -> str:
        both = self.world.visible_cameras and self.world.infrared_cameras
        return "cross_modal_cam" if both else "market"


class Builder(tfds.core.GeneratorBasedBuilder):
    """Walking people, drawn: train and test identities are disjoint, everything follows from the world's seed.

    With both modalities, `query` holds the infrared and `gallery` the visible test tracklets (protocol
    `cross_modal_cam`; the other direction swaps them). With one, `query` holds the first tracklet of each person
    and camera that has more than one, `gallery` the rest (protocol `market`), so that a person whom two cameras saw
    always has a match.
    """

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS reads a list)
        WalkersConfig(
            name=name,
            world=world,
            sidecars=tuple(SIDECARS) if name == "tiny" else WalkersConfig.sidecars,
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
                protocols=[config.protocol],
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
            command = f"python -m jaxreid.data.build walkers/{self._config.name}"
            self._writers = {
                kind: stack.enter_context(
                    SidecarWriter(self.data_path, kind, {**SIDECARS[kind], "made_by": "walkers", "command": command})
                )
                for kind in self._config.sidecars
            }
            super()._download_and_prepare(dl_manager=dl_manager, download_config=download_config)
        del self._writers  # builders are pickled

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        world = World(self._config.world)
        query, gallery = query_and_gallery(world.specs("test"), self._config.protocol)
        splits = {"train": world.specs("train"), "query": query, "gallery": gallery}
        cast(dict, self.info.metadata).update(
            cameras=[
                {"number": camera.number, "name": camera.name, "modality": camera.modality} for camera in world.cameras
            ],
            train_pids=sorted({spec.pid for spec in splits["train"]}),
            counts={split: _counts(specs) for split, specs in splits.items()},
        )
        # One set of workers for all splits, which TFDS asks for in this order.
        drawn = draw_all(world.config, [spec for specs in splits.values() for spec in specs])
        return {split: self._generate_examples(split, specs, world, drawn) for split, specs in splits.items()}

    def _generate_examples(
        self, split: str, specs: list[TrackletSpec], world: World, drawn_in_order: Iterator[Any]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        pids = sorted({spec.pid for spec in specs}) if split == "train" else []
        labels = {pid: label for label, pid in enumerate(pids)}
        for key, expected in enumerate(progress(specs, split)):
            spec, (frames, drawn) = next(drawn_in_order)
            if spec != expected:
                raise RuntimeError(f"walkers: split {split} was asked for out of turn, got {spec.tracklet_id}")
            self._write_sidecars(spec.tracklet_id, drawn)
            attributes = np.full(schema.NUM_ATTRIBUTES, schema.ATTRIBUTE_NOT_PROVIDED, np.int32)
            codes = attribute_codes(world.persons[spec.pid])
            if spec.modality == "ir":  # no annotator could tell colours here
                codes = np.where(_COLOURS, schema.ATTRIBUTE_UNKNOWN, codes)
            attributes[: len(codes)] = codes
            yield (
                key,
                schema.record(
                    frames=frames,
                    frame_names=[f"{spec.tracklet_id}/{frame:03d}.jpg" for frame in range(len(frames))],
                    tracklet_id=spec.tracklet_id,
                    pid=spec.pid,
                    label=labels.get(spec.pid, -1),
                    camid=spec.camera,
                    cam_name=world.cameras[spec.camera - 1].name,
                    modality=spec.modality,
                    recording=spec.recording,
                    platform="ground",
                    attributes=attributes,
                    role=split,
                    source=f"walkers/{self._config.name} {VERSION} {fingerprint()}",
                ),
            )

    def _write_sidecars(self, tracklet_id: str, drawn: DrawnTracklet) -> None:
        arrays = {"keypoints": drawn.keypoints, "joints3d": drawn.joints3d, "silhouettes": drawn.silhouette}
        for kind, writer in self._writers.items():
            if kind == "captions":
                writer.add_text(tracklet_id, drawn.caption)
            else:
                writer.add(tracklet_id, arrays[kind])


def query_and_gallery(specs: list[TrackletSpec], protocol: str) -> tuple[list[TrackletSpec], list[TrackletSpec]]:
    """Divides the test tracklets as a protocol needs it; see `Builder`."""
    if protocol == "cross_modal_cam":
        return [s for s in specs if s.modality == "ir"], [s for s in specs if s.modality == "rgb"]
    seen_by = Counter((spec.pid, spec.camera) for spec in specs)
    query, gallery = [], []
    started: set[tuple[int, int]] = set()
    for spec in specs:
        person_and_camera = (spec.pid, spec.camera)
        first = seen_by[person_and_camera] > 1 and person_and_camera not in started
        started.add(person_and_camera)
        (query if first else gallery).append(spec)
    return query, gallery


def _counts(specs: list[TrackletSpec]) -> dict[str, int]:
    return {
        "tracklets": len(specs),
        "frames": sum(spec.frames for spec in specs),
        "identities": len({spec.pid for spec in specs}),
        "cameras": len({spec.camera for spec in specs}),
    }
