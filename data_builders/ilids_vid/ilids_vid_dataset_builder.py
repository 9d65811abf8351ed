"""TFDS builder of iLIDS-VID, a split of its split file at a time."""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds

from jaxreid.data.listed import DEFAULT_MAX_EXCLUDED, Listing
from jaxreid.data.variant_builder import VariantBuilder, VariantConfig

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
    DEFAULT = VariantConfig(name="split_0", variant="split_0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
iLIDS-VID is downloaded by hand: iLIDS-VID.tar from the page of Queen Mary University of London
(xiatian-zhu.github.io/downloads_qmul_iLIDS-VID_ReID_dataset.html). Licence: {LICENCE}.
Unpack it into a directory DIR; {EXPECTED}
and build each of split_0 … split_9 once with
  python -m jaxreid.data.build ilids_vid/split_0 --source DIR          (or with --option halves=swapped)"""

    @classmethod
    def make_config(
        cls,
        config: str | None,
        source: Path | None,
        max_frames: int | None = None,
        strict_counts: bool | None = None,
        max_excluded: float = DEFAULT_MAX_EXCLUDED,
        halves: str | None = None,
    ) -> VariantConfig:
        """The configuration of a name or of options; see `settings`."""
        name = settings(config, max_frames, strict_counts, halves)["name"]
        return super().make_config(name, source, max_excluded=max_excluded)

    def _list(self, source: Path, config: VariantConfig) -> Listing:
        return list_dataset(source, config.variant)
