"""TFDS builder of DetReIDX as released for VReID-XFD, from its folders."""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds

from jaxreid.data.building.listed import Listing
from jaxreid.data.building.variant_builder import VariantBuilder, VariantConfig

from . import VERSION, settings
from .listing import EXPECTED, list_dataset


class Builder(VariantBuilder):
    """DetReIDX / VReID-XFD: tracklets of 371 people on the ground and from drones at up to 120 m.

    `cases` holds aerial to ground, ground to aerial and aerial to aerial as `query_case1`, `gallery_case1`, …;
    `case1` to `case3` hold one as `query` and `gallery`; `dev` cuts all three from a fifth of the training people, for
    scores at home where the test folders hide who is who. Tracklets are thinned evenly to 64 frames.
    """

    VERSION = tfds.core.Version(VERSION)
    PROTOCOLS = ("xfd", "xfd_train")
    LICENCE = "research use under the agreement of the University of Beira Interior"
    EXPECTED = EXPECTED
    SETTINGS = staticmethod(settings)
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
DetReIDX is had on request: www.it.ubi.pt/DetReIDX (University of Beira Interior); the challenge's release is that of
the Kaggle competition detreidxv1. Licence: {LICENCE}.
Unpack it into a directory DIR; {EXPECTED}
and build it once with
  jaxreid build detreidx --source DIR"""

    def _list(self, source: Path, config: VariantConfig) -> Listing:
        return list_dataset(source, config.variant, config.max_frames)
