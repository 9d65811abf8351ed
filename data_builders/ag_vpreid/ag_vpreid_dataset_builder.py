"""TFDS builder of AG-VPReID, from its folders."""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds

from jaxreid.data.building.listed import Listing
from jaxreid.data.building.variant_builder import VariantBuilder, VariantConfig

from . import VERSION, settings
from .listing import EXPECTED, list_dataset


class Builder(VariantBuilder):
    """AG-VPReID: tracklets of people before CCTV, wearable and drone cameras, searched for between air and ground.

    `cases` holds both directions as `query_case1`, `gallery_case1`, …; `case1` and `case2` hold one as `query` and
    `gallery`. Identities are those of the folders in every split. Tracklets are thinned evenly to 64 frames.
    """

    VERSION = tfds.core.Version(VERSION)
    PROTOCOLS = ("market",)
    LICENCE = "academic use; the terms of the Kaggle competition agvpreid25"
    EXPECTED = EXPECTED
    SETTINGS = staticmethod(settings)
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
AG-VPReID is downloaded by hand: github.com/agvpreid25/AG-VPReID names the Kaggle competition agvpreid25 (identities of
the test are hidden) and the Google Drive folder (with all identities). Licence: {LICENCE}.
Unpack it into a directory DIR; {EXPECTED}
and build it once with
  jaxreid build ag_vpreid --source DIR"""

    def _list(self, source: Path, config: VariantConfig) -> Listing:
        return list_dataset(source, config.variant, config.max_frames)
