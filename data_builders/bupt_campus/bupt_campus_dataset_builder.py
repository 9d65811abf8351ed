"""TFDS builder of BUPTCampus, from its own lists."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tensorflow_datasets as tfds

from jaxreid.data.building.listed import Listing
from jaxreid.data.building.listed_builder import ListedBuilder, ListedConfig

from . import VERSION, settings
from .listing import EXPECTED, list_dataset


@dataclasses.dataclass(kw_only=True)
class BuptCampusConfig(ListedConfig):
    """Whether the generated infrared frames are written, too."""

    fake_ir: bool = False


class Builder(ListedBuilder):
    """BUPTCampus: visible and infrared tracklets, pixel-aligned in pairs, 3,080 people, 6 cameras.

    In `train` and `train_aux` the two tracklets of a pair follow each other, visible first, and share a `pair_id`.
    `query` and `gallery` hold both modalities in the order of their lists.
    """

    VERSION = tfds.core.Version(VERSION)
    PROTOCOLS = ("bupt_full", "bupt_reduced64")
    LICENCE = "academic use only, no redistribution"
    EXPECTED = EXPECTED
    SETTINGS = staticmethod(settings)
    CONFIG = BuptCampusConfig
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
BUPTCampus is downloaded by hand: github.com/dyhBUPT/BUPTCampus gives the Baidu link and its password. Licence:
{LICENCE}.
Unpack it into a directory DIR; {EXPECTED}
and build it once with
  jaxreid build bupt_campus --source DIR"""

    def _list(self, source: Path, config: BuptCampusConfig) -> Listing:
        return list_dataset(source, config.fake_ir)
