"""TFDS builder of BIWI RGBD-ID, from its skeleton files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxreid.data.building.skeleton_builder import SkeletonBuilder, SkeletonConfig
from jaxreid.data.building.skeletons import SkeletonRows, SkeletonSequence

from . import VERSION, settings
from .listing import EXPECTED, FOLDERS, list_sequences
from .published import ASSERTED, RECALLED


class Builder(SkeletonBuilder):
    """BIWI RGBD-ID: 3-D skeletons (Kinect v1, 20 joints) of 50 people, 28 of them recorded again on another day.

    `query` holds Testing/Walking, `gallery` Testing/Still; the reverse swaps them. Every clip of 6 frames is ranked.
    """

    VERSION = tfds.core.Version(VERSION)
    LICENCE = "free for research (CC BY-NC-SA 3.0)"
    EXPECTED = EXPECTED
    SETTINGS = staticmethod(settings)
    FOLDERS = FOLDERS
    INNER = "BIWI"
    ROWS = SkeletonRows(joints=20, exact=False, tracked=True)
    JOINT_ORDER = "kinect20"
    ASSERTED = ASSERTED
    RECALLED = RECALLED
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
BIWI RGBD-ID is downloaded by hand from robotics.dei.unipd.it/reid (University of Padova).
Licence: {LICENCE}. Only the skeleton files (*skel.txt) are needed.
Unpack it into a directory DIR; {EXPECTED}
and build it once with
  jaxreid build biwi --source DIR"""

    def _sequences(
        self, root: Path, config: SkeletonConfig, errors: list[str]
    ) -> tuple[Sequence[SkeletonSequence], dict[str, Any]]:
        return list_sequences(root, errors), {}
