"""Sets of two cameras that saw everybody once: some people train, the others are looked for across the cameras."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from jaxreid.data.building.listed import Tracklet
from jaxreid.data.building.tree import Tree


@dataclasses.dataclass(frozen=True)
class TwoCameras:
    """How frames are named: <directory>/<camera>/<person>/<frame>, queries before the first camera."""

    directory: str
    cameras: tuple[str, str]
    frame: str  # pattern of a frame's name, with {camera} and {person} for what the folders are called

    def splits(self, tree: Tree, train: Sequence[str], test: Sequence[str]) -> dict[str, list[Tracklet]]:
        """The tracklets of people by the names of their folders, in that order; what is wrong goes to the tree."""
        first, second = self.cameras
        found = {
            "train": [self._tracklet(tree, camera, person) for person in train for camera in self.cameras],
            "query": [self._tracklet(tree, first, person) for person in test],
            "gallery": [self._tracklet(tree, second, person) for person in test],
        }
        tree.errors += tree.missing
        return {split: [tracklet for tracklet in members if tracklet] for split, members in found.items()}

    def _tracklet(self, tree: Tree, camera: str, person: str) -> Tracklet | None:
        folder = f"{self.directory}/{camera}/{person}"
        frames = tree.frames(folder)
        pattern = re.compile(self.frame.format(camera=camera, person=person))
        strange = [name for name in frames if not pattern.fullmatch(name)]
        if strange:
            tree.errors.append(f"{tree.source / folder}: {strange[0]!r} is not named as the frames of this folder are")
        if strange or not frames:
            return None
        return Tracklet(
            tracklet_id=f"{camera}_{person}",
            pid=int(person.rpartition("_")[2].removeprefix("person")),
            camera=self.cameras.index(camera) + 1,
            cam_name=camera,
            modality="rgb",
            frames=tuple(f"{camera}/{person}/{name}" for name in frames),
            directory=self.directory,
        )
