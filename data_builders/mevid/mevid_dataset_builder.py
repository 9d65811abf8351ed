"""TFDS builder of MEVID, from its own lists."""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds

from jaxreid.data.building.listed import Listing
from jaxreid.data.building.variant_builder import VariantBuilder, VariantConfig

from . import VERSION, settings
from .listing import EXPECTED, list_dataset, scale_class


class Builder(VariantBuilder):
    """MEVID: tracklets of 158 people in 598 outfits before 33 cameras, indoors and outdoors.

    Tracklets are thinned evenly to 256 frames (they have about 590 on average); `standard_max0` keeps all. The
    settings of the benchmark (same or other clothes, location, scale) are protocols on the same records.
    """

    VERSION = tfds.core.Version(VERSION)
    PROTOCOLS = (
        "market", "clothes_sc", "clothes_cc", "location_sl", "location_dl", "scale_ss", "scale_ds",
    )  # fmt: skip
    LICENCE = "CC BY 4.0 (that of the MEVA data; see mevadata.org)"
    EXPECTED = EXPECTED
    SETTINGS = staticmethod(settings)
    SEE_FRAMES = staticmethod(scale_class)
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
MEVID is downloaded by hand: mevadata.org and github.com/Kitware/MEVID link mevid-v1-bbox-train.tgz (30.5 GB),
mevid-v1-bbox-test.tgz (13 GB) and mevid-v1-annotation-data.zip. Licence: {LICENCE}.
Unpack them into a directory DIR; {EXPECTED}
and build it once with
  jaxreid build mevid --source DIR"""

    def _list(self, source: Path, config: VariantConfig) -> Listing:
        return list_dataset(source, config.max_frames)
