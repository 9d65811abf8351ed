"""MEVID; what a run needs at every start, without TFDS and without a look at the raw data."""

from __future__ import annotations

from jaxreid.data.building.variants import Variants

VERSION = "1.0.0"

VARIANTS = Variants("mevid", VERSION, ("standard",), max_frames=256)
locate, settings = VARIANTS.locate, VARIANTS.settings
