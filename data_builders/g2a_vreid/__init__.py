"""G2A-VReID; what a run needs at every start, without TFDS and without a look at the raw data."""

from __future__ import annotations

from jaxreid.data.building.variants import Variants

VERSION = "1.0.0"
RELEASES = ("v1", "v2")

VARIANTS = Variants("g2a_vreid", VERSION, RELEASES)
locate, settings = VARIANTS.locate, VARIANTS.settings
