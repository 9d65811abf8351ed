"""The part that TFDS builders with configurations of the form VARIANT[_max<N>][_unchecked] have in common."""

from __future__ import annotations

import dataclasses

from jaxreid.data.building.listed_builder import ListedBuilder, ListedConfig


@dataclasses.dataclass(kw_only=True)
class VariantConfig(ListedConfig):
    """Which part of the data set."""

    variant: str


class VariantBuilder(ListedBuilder, skip_registration=True):
    """A `ListedBuilder` whose configurations `jaxreid.data.building.variants.choose_variant` names."""

    CONFIG = VariantConfig
