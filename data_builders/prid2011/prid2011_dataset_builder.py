"""TFDS builder of PRID2011 (multi-shot), a split at a time."""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds

from jaxreid.data.building.listed import Listing
from jaxreid.data.building.variant_builder import VariantBuilder, VariantConfig

from . import VERSION, settings
from .listing import EXPECTED, SPLITS, list_dataset


class Builder(VariantBuilder):
    """PRID2011: 178 people, each once before each of two cameras, as its video protocol chooses them.

    Configurations split_0 … split_9 are those of the split file; scores are the mean over them.
    """

    VERSION = tfds.core.Version(VERSION)
    PROTOCOLS = ("single_match",)
    SETTINGS = staticmethod(settings)
    LICENCE = "research only, no redistribution"
    EXPECTED = EXPECTED
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
PRID2011 is downloaded by hand: prid_2011.zip from the page of TU Graz, ICG (Person Re-ID Dataset 2011); the splits
are {SPLITS}, which torchreid's page on data sets and github.com/AsuradaYuci/CNN-RNN2016 offer.
Licence: {LICENCE}.
Unpack it into a directory DIR; {EXPECTED}
and build each of split_0 … split_9 once with
  jaxreid build prid2011/split_0 --source DIR
Without the split file (--option strict_counts=False) the same people are split in an own way."""

    def _list(self, source: Path, config: VariantConfig) -> Listing:
        return list_dataset(source, config.variant)
