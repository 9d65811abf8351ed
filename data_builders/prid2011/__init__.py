"""PRID2011; what a run needs at every start, without TFDS and without a look at the raw data."""

from __future__ import annotations

from jaxreid.data.building.variants import Variants

VERSION = "1.0.0"
FOLDS = 10

VARIANTS = Variants("prid2011", VERSION, [f"split_{fold}" for fold in range(FOLDS)])
locate, settings = VARIANTS.locate, VARIANTS.settings
