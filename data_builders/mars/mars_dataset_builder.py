"""TFDS builder of MARS, from its own tables."""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds

from jaxreid.data.building.listed import Listing
from jaxreid.data.building.variant_builder import VariantBuilder, VariantConfig

from . import VERSION, settings
from .listing import EXPECTED, list_dataset


class Builder(VariantBuilder):
    """MARS: tracklets of 1,261 people before 6 cameras, with distractors.

    `query` holds the tracklets of query_IDX.mat, `gallery` the other test tracklets: of people, distractors (identity
    0) and junk (−1), which `is_distractor` and `is_junk` mark. Under `market`, 140 queries have no match there; under
    `mars_full`, as the authors score, the queries stand in the gallery, too.
    """

    VERSION = tfds.core.Version(VERSION)
    PROTOCOLS = ("market", "mars_full", "mars_full_std")
    SETTINGS = staticmethod(settings)
    LICENCE = "research use only, no redistribution"
    EXPECTED = EXPECTED
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
MARS is downloaded by hand: the project page at liangzheng.com.cn (project_mars) names the Google Drive and Baidu
folders (bbox_train.zip, bbox_test.zip); the lists are the folder info/ of github.com/liangzheng06/MARS-evaluation.
Licence: {LICENCE}.
Unpack all into a directory DIR; {EXPECTED}
and build it once with
  jaxreid build mars --source DIR          (--beam: through Apache Beam)"""

    def _list(self, source: Path, config: VariantConfig) -> Listing:
        return list_dataset(source)
