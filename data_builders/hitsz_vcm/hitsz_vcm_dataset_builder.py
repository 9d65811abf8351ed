"""TFDS builder of HITSZ-VCM, from its own lists."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tensorflow_datasets as tfds

from jaxreid.data.building.listed import Listing
from jaxreid.data.building.listed_builder import ListedBuilder, ListedConfig

from . import MIN_FRAMES, VERSION, settings
from .listing import EXPECTED, list_dataset


@dataclasses.dataclass(kw_only=True)
class HitszVcmConfig(ListedConfig):
    """Which tracklets are long enough."""

    min_frames: int = MIN_FRAMES


class Builder(ListedBuilder):
    """HITSZ-VCM: visible and infrared tracklets of up to 24 frames, 927 people, 12 cameras.

    `query` holds the infrared test tracklets of query_IDX.txt, `gallery` the other test tracklets; visible → infrared
    swaps them. Tracklets of fewer than 12 listed frames are dropped from every split, as in all published results.
    """

    VERSION = tfds.core.Version(VERSION)
    PROTOCOLS = ("cross_modal_cam",)
    LICENCE = "academic use only, no redistribution; models for non-commercial use"
    EXPECTED = EXPECTED
    SETTINGS = staticmethod(settings)
    CONFIG = HitszVcmConfig
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
HITSZ-VCM is downloaded by hand: github.com/VCM-project233/HITSZ-VCM-data names the Google Drive and Baidu folders
(train, test, info). Licence: {LICENCE}.
Unpack it into a directory DIR; {EXPECTED}
and build it once with
  jaxreid build hitsz_vcm --source DIR"""

    def _list(self, source: Path, config: HitszVcmConfig) -> Listing:
        return list_dataset(source, config.min_frames)
