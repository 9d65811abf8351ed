"""TFDS builder of KS20, from its skeleton files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxreid.data.building.skeleton_builder import SkeletonBuilder, SkeletonConfig
from jaxreid.data.building.skeletons import SkeletonRows, SkeletonSequence

from . import VERSION, settings
from .listing import EXPECTED, VIEWS, list_sequences
from .published import ASSERTED, SEQUENCES


@dataclasses.dataclass(kw_only=True)
class Ks20Config(SkeletonConfig):
    """What probe and gallery are drawn with."""

    seed: int = 0


class Builder(SkeletonBuilder):
    """KS20: 3-D skeletons (Kinect v2, 25 joints) of 20 people from 5 views.

    One recording of each person is `query` and one `gallery`, in all views; the rest is `train`. Which ones is drawn
    with `seed` and noted in the metadata. Every clip of 6 frames is ranked.
    """

    VERSION = tfds.core.Version(VERSION)
    LICENCE = "by signed agreement with VisLab"
    EXPECTED = EXPECTED
    SETTINGS = staticmethod(settings)
    CONFIG = Ks20Config
    FOLDERS = VIEWS
    INNER = "KS20"
    ROWS = SkeletonRows(joints=25, exact=False, tracked=False)
    JOINT_ORDER = "kinect25"
    ASSERTED = ASSERTED
    RECALLED_SEQUENCES = SEQUENCES
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
KS20 is obtained from VisLab (IST Lisbon). Licence: {LICENCE}.
It comes as MATLAB files; the skeleton codes read it converted to text. Put it into a directory DIR; {EXPECTED}
and build it once with
  jaxreid build ks20 --source DIR"""

    def _sequences(
        self, root: Path, config: Ks20Config, errors: list[str]
    ) -> tuple[Sequence[SkeletonSequence], dict[str, Any]]:
        return list_sequences(root, config.seed, errors)
