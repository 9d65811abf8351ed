"""BIWI RGBD-ID; what a run needs at every start, without TFDS and without a look at the raw data."""

from __future__ import annotations

from jaxreid.data.building.skeletons import Configurations

VERSION = "1.0.0"

CONFIGURATIONS = Configurations("biwi", VERSION)
locate, settings = CONFIGURATIONS.locate, CONFIGURATIONS.settings
