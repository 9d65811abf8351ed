"""TFDS builder of G2A-VReID, from its own tables."""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds

from jaxreid.data.building.listed import Listing
from jaxreid.data.building.variant_builder import VariantBuilder, VariantConfig

from . import VERSION, settings
from .listing import EXPECTED, list_dataset


class Builder(VariantBuilder):
    """G2A-VReID: a tracklet from the ground and one from the air of each of 2,788 people (v2: 5,605).

    `query` holds the tracklets of query_IDX.mat, which are of one platform, `gallery` the other test tracklets.
    """

    VERSION = tfds.core.Version(VERSION)
    PROTOCOLS = ("market",)
    SETTINGS = staticmethod(settings)
    LICENCE = "non-profit academic research only, by agreement; no redistribution"
    EXPECTED = EXPECTED
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
G2A-VReID is downloaded by hand: github.com/FHR-L/G2A-VReID names the Google Drive files of both releases and the
agreement. Licence: {LICENCE}.
Unpack one release into a directory DIR; {EXPECTED}
and build it once with
  jaxreid build g2a_vreid --source DIR          (or g2a_vreid/v2)"""

    def _list(self, source: Path, config: VariantConfig) -> Listing:
        return list_dataset(source, config.variant)
