"""LS-VID; what a run needs at every start, without TFDS and without a look at the raw data."""

from __future__ import annotations

from jaxreid.data.building.variants import Variants

VERSION = "1.0.0"
MAX_FRAMES = 128  # of about 200 on average, up to thousands

VARIANTS = Variants("ls_vid", VERSION, ("standard",), max_frames=MAX_FRAMES)
locate, settings = VARIANTS.locate, VARIANTS.settings
