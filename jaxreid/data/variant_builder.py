"""The part that TFDS builders with configurations of the form VARIANT[_max<N>][_unchecked] have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from jaxreid.data.listed import DEFAULT_MAX_EXCLUDED
from jaxreid.data.listed_builder import ListedBuilder, ListedConfig


@dataclasses.dataclass(kw_only=True)
class VariantConfig(ListedConfig):
    """Which part of the data set."""

    variant: str


class VariantBuilder(ListedBuilder, skip_registration=True):
    """A `ListedBuilder` whose configurations `jaxreid.data.variants.choose_variant` names."""

    SETTINGS: ClassVar[Callable[..., dict[str, Any]]]  # (config, max_frames, strict_counts) -> fields of the config

    @classmethod
    def make_config(
        cls,
        config: str | None,
        source: Path | None,
        max_frames: int | None = None,
        strict_counts: bool | None = None,
        max_excluded: float = DEFAULT_MAX_EXCLUDED,
    ) -> VariantConfig:
        """The configuration of a name or of options."""
        chosen = cls.SETTINGS(config, max_frames, strict_counts)
        cls.check_source(source, max_excluded)
        return VariantConfig(**chosen, source=source, max_excluded=max_excluded)
