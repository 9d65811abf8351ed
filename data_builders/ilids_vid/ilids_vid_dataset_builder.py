"""TFDS builder of iLIDS-VID, a split of its split file at a time."""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds

from jaxreid.data.building.listed import Listing
from jaxreid.data.building.variant_builder import VariantBuilder, VariantConfig

from . import VERSION, settings
from .listing import EXPECTED, list_dataset


class Builder(VariantBuilder):
    """iLIDS-VID: 300 people, each once before each of two cameras.

    Configurations split_0 … split_9 are the rows of the split file; scores are the mean over them. Their first half is
    the test, as Wang et al. published; in split_0_swapped … it is the training, as some released codes have it.
    """

    VERSION = tfds.core.Version(VERSION)
    PROTOCOLS = ("single_match",)
    SETTINGS = staticmethod(settings)
    LICENCE = "free for research, no redistribution"
    EXPECTED = EXPECTED
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
iLIDS-VID is downloaded by hand: iLIDS-VID.tar from the page of Queen Mary University of London
(xiatian-zhu.github.io/downloads_qmul_iLIDS-VID_ReID_dataset.html). Licence: {LICENCE}.
Unpack it into a directory DIR; {EXPECTED}
and build each of split_0 … split_9 once with
  jaxreid build ilids_vid/split_0 --source DIR          (or with --option halves=swapped)"""

    def _list(self, source: Path, config: VariantConfig) -> Listing:
        return list_dataset(source, config.variant)
