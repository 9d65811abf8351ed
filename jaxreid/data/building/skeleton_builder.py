"""The part that TFDS builders of skeleton-only sets have in common: their records hold joints and no pictures."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from jaxreid.data.building import listed, skeletons
from jaxreid.data.building.listed import Listing
from jaxreid.data.building.listed_builder import ListedBuilder, ListedConfig
from jaxreid.data.building.skeletons import SkeletonRows, SkeletonSequence


@dataclasses.dataclass(kw_only=True)
class SkeletonConfig(ListedConfig):
    """How sequences are cut into records; 0 leaves them whole."""

    clip_frames: int = skeletons.CLIP_FRAMES


def _no_picture(path: Path) -> tuple[bytes, None]:
    return b"", None  # the file was read when the clips were cut


class SkeletonBuilder(ListedBuilder, skip_registration=True):
    """Writes a record per clip: `frames` is empty, `joints3d` f32[T, J, 3] holds metres as recorded, not root-centred.

    A builder of such a set says which sequences there are (`_sequences`).
    """

    PROTOCOLS = ("skeleton",)
    CLOSED_SET = True
    READ_FRAME = staticmethod(_no_picture)
    CONFIG = SkeletonConfig
    FOLDERS: ClassVar[tuple[str, ...]]  # that the raw data must have
    INNER: ClassVar[str]  # what the published archive calls the folder around them
    ROWS: ClassVar[SkeletonRows]
    JOINT_ORDER: ClassVar[str]
    ASSERTED: ClassVar[Mapping[str, Mapping[str, Any]]]
    RECALLED: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # counts that nobody verified
    RECALLED_SEQUENCES: ClassVar[int | None] = None

    @abc.abstractmethod
    def _sequences(
        self, root: Path, config: Any, errors: list[str]
    ) -> tuple[Sequence[SkeletonSequence], dict[str, Any]]:
        """The sequences below `root`, files relative to it, and further metadata; adds what is wrong to `errors`."""

    def _list(self, source: Path, config: SkeletonConfig) -> Listing:
        directory = skeletons.find_directory(self.name, source, self.FOLDERS, self.INNER, self.EXPECTED)
        errors: list[str] = []
        sequences, facts = self._sequences(source / directory, config, errors)
        listed.refuse(self.name, source, errors)
        return skeletons.list_clips(
            self.name,
            source,
            directory,
            sequences,
            self.ROWS,
            clip_frames=config.clip_frames,
            max_excluded=config.max_excluded,
            published=self.ASSERTED,
            recalled=self.RECALLED,
            recalled_sequences=self.RECALLED_SEQUENCES,
            facts={"joint_order": self.JOINT_ORDER, **facts},
        )
