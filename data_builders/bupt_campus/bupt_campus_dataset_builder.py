"""TFDS builder of BUPTCampus, from its own lists."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tensorflow_datasets as tfds

from jaxreid.data.listed import DEFAULT_MAX_EXCLUDED, Listing
from jaxreid.data.listed_builder import ListedBuilder, ListedConfig

from . import DEFAULT_CONFIG, VERSION, settings
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
    DEFAULT = BuptCampusConfig(name=DEFAULT_CONFIG)
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
BUPTCampus is downloaded by hand: github.com/dyhBUPT/BUPTCampus gives the Baidu link and its password. Licence:
{LICENCE}.
Unpack it into a directory DIR; {EXPECTED}
and build it once with
  python -m jaxreid.data.build bupt_campus --source DIR"""

    @classmethod
    def make_config(
        cls,
        config: str | None,
        source: Path | None,
        fake_ir: bool | None = None,
        strict_counts: bool | None = None,
        max_excluded: float = DEFAULT_MAX_EXCLUDED,
    ) -> BuptCampusConfig:
        """The configuration of a name or of options; see `settings`."""
        chosen = settings(config, fake_ir, strict_counts)
        cls.check_source(source, max_excluded)
        return BuptCampusConfig(**chosen, source=source, max_excluded=max_excluded)

    def _list(self, source: Path, config: BuptCampusConfig) -> Listing:
        return list_dataset(source, config.fake_ir)
