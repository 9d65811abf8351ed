"""TFDS builder of CCVID, from its own lists."""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds

from jaxreid.data.building.listed import Listing
from jaxreid.data.building.variant_builder import VariantBuilder, VariantConfig

from . import VERSION, settings
from .listing import EXPECTED, list_dataset


class Builder(VariantBuilder):
    """CCVID: tracklets of 226 people who change clothes between and within three sessions.

    A camera is the walk's number in its session, 1 to 12, and 13 to 24 in session 3: a convention, not a place. The
    settings of the benchmark (general, same clothes, other clothes) are protocols on the same records.
    """

    VERSION = tfds.core.Version(VERSION)
    PROTOCOLS = ("market", "clothes_sc", "clothes_cc")
    LICENCE = "CC BY-NC-SA 4.0; faces in figures are to be mosaicked"
    EXPECTED = EXPECTED
    SETTINGS = staticmethod(settings)
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
CCVID is downloaded by hand: github.com/guxinqian/Simple-CCReID gives the Google Drive and Baidu links and the password.
Licence: {LICENCE}.
Unpack it into a directory DIR; {EXPECTED}
and build it once with
  jaxreid build ccvid --source DIR"""

    def _list(self, source: Path, config: VariantConfig) -> Listing:
        return list_dataset(source)
