"""TFDS builder of LS-VID, from its own lists."""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds

from jaxreid.data.building.listed import Listing
from jaxreid.data.building.variant_builder import VariantBuilder, VariantConfig

from . import VERSION, settings
from .listing import EXPECTED, list_dataset


class Builder(VariantBuilder):
    """LS-VID: long tracklets of 3,772 people before 15 cameras.

    `query` holds the rows of the test list that the query list names, `gallery` the other test rows; under the protocol
    `market_full` other queries of a person count as matches, too. Tracklets are thinned to 128 frames; standard_max0
    keeps every frame.
    """

    VERSION = tfds.core.Version(VERSION)
    PROTOCOLS = ("market", "market_full")
    SETTINGS = staticmethod(settings)
    LICENCE = "research only, by a signed agreement; no redistribution"
    EXPECTED = EXPECTED
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
LS-VID is downloaded by hand: the page of PKU-VMC (Jianing Li) has the release agreement, which is signed and sent by
mail. Licence: {LICENCE}.
Unpack it into a directory DIR; {EXPECTED}
and build it once with
  jaxreid build ls_vid --source DIR
info_test.mat is HDF5 and needs h5py (pip install 'jaxreid[hdf5]'); query.npy does not."""

    def _list(self, source: Path, config: VariantConfig) -> Listing:
        return list_dataset(source, config.max_frames)
