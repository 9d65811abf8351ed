"""TFDS builder of IAS-Lab RGBD-ID, from its skeleton files."""

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
    """IAS-Lab RGBD-ID: 3-D skeletons (20 joints) of 11 people in three recordings.

    `query` holds TestingA (IAS-A: other clothes than in training), `gallery` TestingB (IAS-B: another room); the
    reverse swaps them. Every clip of 6 frames is ranked.
    """

    VERSION = tfds.core.Version(VERSION)
    LICENCE = "free for research"
    EXPECTED = EXPECTED
    SETTINGS = staticmethod(settings)
    FOLDERS = FOLDERS
    INNER = "IAS"
    ROWS = SkeletonRows(joints=20, exact=True, tracked=True)
    JOINT_ORDER = "kinect20"
    ASSERTED = ASSERTED
    RECALLED = RECALLED
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
IAS-Lab RGBD-ID is downloaded by hand from robotics.dei.unipd.it/reid (University of Padova).
Licence: {LICENCE}. Only the skeleton files (*skel.txt) are needed.
Unpack it into a directory DIR; {EXPECTED}
and build it once with
  jaxreid build ias_lab --source DIR"""

    def _sequences(
        self, root: Path, config: SkeletonConfig, errors: list[str]
    ) -> tuple[Sequence[SkeletonSequence], dict[str, Any]]:
        return list_sequences(root, errors), {}
