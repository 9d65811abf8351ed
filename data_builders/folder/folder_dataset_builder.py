"""TFDS builder of one's own pictures: `DIR/<camera>/<tracklet>/*.jpg`, optionally described by `DIR/tracklets.csv`."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import tensorflow_datasets as tfds

from jaxreid.data import schema
from jaxreid.data.building.images import read_image
from jaxreid.data.building.listed import DEFAULT_MAX_EXCLUDED, ExcludedFrames
from jaxreid.data.building.progress import progress
from jaxreid.data.building.sixteen_bit import SixteenBit, Span, eight_bits
from jaxreid.data.pictures import is_sixteen_bit
from jaxreid.data.prepared import SCALE
from jaxreid.errors import DataSetError

from . import VERSION
from .listing import TABLE, Folder, Tracklet, list_folder

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class FolderConfig(tfds.core.BuilderConfig):
    """Which folder, and the largest share of its frames that may be unreadable."""

    folder: Folder = dataclasses.field(repr=False)  # as long as the folder is large
    max_excluded: float = DEFAULT_MAX_EXCLUDED


class Builder(tfds.core.GeneratorBasedBuilder):
    """Tracklets of a folder; bytes are kept as they are, but of 16-bit pictures, after each frame was seen to be whole.

    Without identities in the table (or without a table) every tracklet is in `train`, and again in `query` and
    `gallery`, for a report of nearest tracklets that nobody scores (protocol "none").
    """

    VERSION = tfds.core.Version(VERSION)
    sixteen_bit: str = SCALE  # what is done with 16-bit pictures; `jaxreid.data.build.build` sets it
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the pictures under MANUAL_DIR as <camera>/<tracklet>/*.jpg."

    @classmethod
    def make_config(
        cls, config: str | None, source: Path | None, max_excluded: float = DEFAULT_MAX_EXCLUDED
    ) -> FolderConfig:
        """The configuration of a source folder; see `list_folder` for what is refused."""
        folder = list_folder(config, source)
        return FolderConfig(name=folder.name, folder=folder, max_excluded=max_excluded)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tracklets from a folder of one's own.",
            features=schema.features(),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        if isinstance(self.builder_config, FolderConfig):
            folder, limit = self.builder_config.folder, self.builder_config.max_excluded
        else:  # `tfds build --manual_dir=DIR` knows no configuration
            folder, limit = list_folder(None, Path(dl_manager.manual_dir)), DEFAULT_MAX_EXCLUDED
        for warning in folder.warnings:
            _LOG.warning("%s", warning)
        tracklets, excluded, deep, spans = _check_frames(folder, limit, self.sixteen_bit)
        splits = _splits(tracklets)
        numbers = {camera: number for number, camera in enumerate(sorted({t.camera for t in tracklets}), start=1)}
        identities = _identity_numbers({t.identity for t in tracklets if t.identity})
        train_pids = sorted({identities[t.identity] for t in splits.get("train", ()) if t.identity})
        protocol, remarks = _protocol(splits)
        per_camera = Counter(tracklet.camera for tracklet in folder.tracklets)
        remarks += [f"camera {camera} has one tracklet only" for camera, count in per_camera.items() if count == 1]
        remarks += deep.remarks()
        for remark in remarks:
            _LOG.warning("%s", remark)
        cast(dict, self.info.metadata).update(
            protocols=[protocol],
            cameras=[
                {"number": number, "name": camera, "modality": "+".join(sorted(_modalities(tracklets, camera)))}
                for camera, number in numbers.items()
            ],
            train_pids=train_pids,
            identity_names={str(pid): name for name, pid in identities.items()},
            counts={name: _counts(members, excluded) for name, members in splits.items()},
            excluded_frames=excluded.metadata(),
            warnings=[*folder.warnings, *remarks],
            licence="as the pictures' owner says",
            source=str(folder.path),
            **deep.metadata(),
        )
        if folder.has_table:  # kept for its further columns, such as times
            shutil.copyfile(folder.path / TABLE, self.data_path / TABLE)
        return {
            name: self._generate_examples(name, members, folder, excluded, spans, numbers, identities, train_pids)
            for name, members in splits.items()
        }

    def _generate_examples(
        self,
        split: str,
        tracklets: list[Tracklet],
        folder: Folder,
        excluded: ExcludedFrames,
        spans: dict[str, Span],
        numbers: dict[str, int],
        identities: dict[str, int],
        train_pids: list[int],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        labels = {pid: label for label, pid in enumerate(train_pids)} if split == "train" else {}
        for key, tracklet in enumerate(progress(tracklets, split)):
            paths = tracklet.paths
            kept = excluded.usable(paths)
            frames = [(folder.path / paths[index]).read_bytes() for index in kept]
            pid = identities.get(tracklet.identity, -1)
            yield (
                key,
                schema.record(
                    frames=eight_bits(frames, spans.get(tracklet.tracklet_id)),
                    frame_names=[paths[index] for index in kept],
                    frame_index=kept,
                    num_frames_source=len(paths),
                    tracklet_id=tracklet.tracklet_id,
                    pid=pid,
                    label=labels.get(pid, -1),
                    camid=numbers[tracklet.camera],
                    cam_name=tracklet.camera,
                    modality=tracklet.modality,
                    recording=tracklet.recording,
                    role=split,
                    source=f"folder {folder.name} {VERSION}",
                ),
            )


def _check_frames(
    folder: Folder, limit: float, sixteen_bit: str
) -> tuple[list[Tracklet], ExcludedFrames, SixteenBit, dict[str, Span]]:
    """The tracklets that keep a frame, the unreadable frames, and those of 16 bits with their ranges by tracklet.

    Raises:
      DataSetError: more than `limit` of all frames are unreadable, or all frames of all tracklets of a split.
      UserError: there are 16-bit pictures, and `sixteen_bit` refuses them.
    """
    paths = [path for tracklet in folder.tracklets for path in tracklet.paths]
    excluded = ExcludedFrames("folder", folder.path, len(paths) + len(folder.faults), limit)

    def look(path: str) -> tuple[str | None, bool]:
        data, fault = read_image(folder.path / path)
        return fault, is_sixteen_bit(data)

    with concurrent.futures.ThreadPoolExecutor() as pool:  # reading and decoding run outside Python's lock
        found = list(progress(pool.map(look, paths), "checking frames", len(paths), "frames"))
    unusable = [(path, fault) for path, (fault, _) in zip(paths, found, strict=True) if fault]
    excluded.add([*folder.faults, *unusable])
    excluded.warn()
    many_bits = {path for path, (fault, is_deep) in zip(paths, found, strict=True) if is_deep and not fault}
    deep, spans = SixteenBit(), {}
    for tracklet in folder.tracklets if many_bits else ():
        mine = [folder.path / path for path in tracklet.paths if path in many_bits]
        if span := deep.measure({str(path): path.read_bytes() for path in mine}, sixteen_bit):
            spans[tracklet.tracklet_id] = span
    kept = []
    for tracklet in folder.tracklets:
        if excluded.usable(tracklet.paths):
            kept.append(tracklet)
        else:
            _LOG.warning("tracklet %s has no frame left and is left out", tracklet.tracklet_id)
    lost = {tracklet.split for tracklet in folder.tracklets} - {tracklet.split for tracklet in kept}
    if lost:
        where = f"the splits {sorted(lost)}" if lost != {""} else "the folder"
        raise DataSetError(f"folder: no readable frame is left in {where} of {folder.path}:\n{excluded.named()}")
    return kept, excluded, deep, spans


def _splits(tracklets: list[Tracklet]) -> dict[str, list[Tracklet]]:
    if not any(tracklet.split for tracklet in tracklets):
        return {name: tracklets for name in ("train", "query", "gallery")}
    return {
        name: members
        for name in schema.ROLES
        if (members := [tracklet for tracklet in tracklets if tracklet.split == name])
    }


def _identity_numbers(names: set[str]) -> dict[str, int]:
    """The dataset's own numbers where all identities are numbers that a record can hold, else their rank."""
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = {int(name) for name in names}
        if len(numbers) == len(names) and max(numbers, default=0) <= schema.LARGEST_NUMBER:
            return {name: int(name) for name in sorted(names, key=int)}
    return {name: rank for rank, name in enumerate(sorted(names), start=1)}


def _protocol(splits: dict[str, list[Tracklet]]) -> tuple[str, list[str]]:
    """The protocol's key, and what should be known about scoring by it."""
    tested = [*splits.get("query", ()), *splits.get("gallery", ())]
    if not any(tracklet.identity for tracklet in tested):
        return "none", []
    remarks = []
    trained = {tracklet.identity for tracklet in splits.get("train", ()) if tracklet.identity}
    both = sorted(trained & {tracklet.identity for tracklet in tested})
    if both:
        remarks.append(f"{len(both)} identities are in train and in the test splits, e.g. {', '.join(both[:3])}")
    if len(_modalities(tested)) == 1:
        return "market", remarks
    if _modalities(splits["query"]) & _modalities(splits["gallery"]):
        remarks.append(
            "query and gallery share a modality; under cross_modal_cam the query split should be of one modality and "
            "the gallery of the other"
        )
    return "cross_modal_cam", remarks


def _modalities(tracklets: list[Tracklet], camera: str | None = None) -> set[str]:
    return {tracklet.modality for tracklet in tracklets if camera in (None, tracklet.camera)}


def _counts(tracklets: list[Tracklet], excluded: ExcludedFrames) -> dict[str, int]:
    return {
        "tracklets": len(tracklets),
        "frames": sum(len(excluded.usable(tracklet.paths)) for tracklet in tracklets),
        "identities": len({tracklet.identity for tracklet in tracklets if tracklet.identity}),
        "cameras": len({tracklet.camera for tracklet in tracklets}),
    }
