"""Records of listed tracklets: frames are read once, checked and written in order."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxreid.data import schema
from jaxreid.data.building import listed
from jaxreid.data.building.images import read_image
from jaxreid.data.building.listed import ExcludedFrames, Tracklet
from jaxreid.data.building.sixteen_bit import SixteenBit, eight_bits
from jaxreid.data.prepared import SCALE
from jaxreid.errors import DataSetError

FRAMES_PER_SHARD = 8192  # about 100 MB


ReadFrame = Callable[[Path], tuple[bytes, str | None]]  # the bytes of a file, and what is wrong with them


SeeFrames = Callable[[list[bytes]], Mapping[str, Any]]  # features of a record that only its frames tell


_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Makes the records of tracklets; pickles, so that other processes can."""

    name: str  # of the data set
    source: Path
    labels: Mapping[int, int]  # of the training identities
    description: str  # of the source, for the records
    strict: bool  # a tracklet without a whole frame is an error
    read_frame: ReadFrame = read_image
    see_frames: SeeFrames | None = None
    sixteen_bit: str = SCALE

    def records(
        self, split: str, tracklets: Iterable[Tracklet], excluded: ExcludedFrames, deep: SixteenBit
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Key and record of every tracklet that keeps a frame, in order.

        Unusable frames are added to `excluded`, those of 16 bits to `deep`.
        """
        with concurrent.futures.ThreadPoolExecutor() as pool:  # reading and decoding run outside Python's lock
            for key, tracklet in enumerate(tracklets):
                paths = tracklet.paths
                there = excluded.usable(paths)
                images = list(pool.map(self.read_frame, [self.source / paths[index] for index in there]))
                found = [(paths[index], fault) for index, (_, fault) in zip(there, images, strict=True) if fault]
                if found:
                    excluded.add(found)
                if not self.keeps_frames(tracklet, excluded):
                    continue
                kept = {index: data for index, (data, fault) in zip(there, images, strict=True) if not fault}
                frames = list(kept.values())
                named = {str(self.source / paths[index]): data for index, data in kept.items()}
                frames = eight_bits(frames, deep.measure(named, self.sixteen_bit))
                index_in_source = tracklet.frame_index or range(len(paths))
                values = dict(
                    frames=frames,
                    frame_names=[tracklet.frames[index] for index in kept],
                    frame_index=[index_in_source[index] for index in kept],
                    num_frames_source=tracklet.source_frames or len(paths),
                    tracklet_id=tracklet.tracklet_id,
                    pid=tracklet.pid,
                    label=self.labels.get(tracklet.pid, -1) if split == "train" else -1,
                    camid=tracklet.camera,
                    cam_name=tracklet.cam_name,
                    modality=tracklet.modality,
                    pair_id=tracklet.pair_id,
                    recording=tracklet.recording,
                    platform="ground",
                    role=schema.role_of(split),
                    source=self.description,
                )
                seen = self.see_frames(frames) if self.see_frames else {}
                yield key, schema.record(**{**values, **tracklet.features, **seen})

    def keeps_frames(self, tracklet: Tracklet, excluded: ExcludedFrames) -> bool:
        """Whether a tracklet keeps a frame.

        Raises:
          DataSetError: it keeps none, and the set is to be the published one.
        """
        if excluded.usable(tracklet.paths):
            return True
        if self.strict:
            faults = [f"{excluded.root / path}: {excluded.faults[path]}" for path in tracklet.paths]
            raise DataSetError(
                f"{self.name}: no frame of tracklet {tracklet.tracklet_id} can be used; without it this is not the "
                f"published data set:\n{listed.shorten(faults)}"
            )
        _LOG.warning("tracklet %s has no frame left and is left out", tracklet.tracklet_id)
        return False


def shards_of(tracklets: Iterable[Tracklet]) -> list[list[Tracklet]]:
    """The tracklets of each file."""
    shards: list[list[Tracklet]] = [[]]
    frames = 0
    for tracklet in tracklets:
        if shards[-1] and frames + len(tracklet.frames) > FRAMES_PER_SHARD:
            shards.append([])
            frames = 0
        shards[-1].append(tracklet)
        frames += len(tracklet.frames)
    return shards
