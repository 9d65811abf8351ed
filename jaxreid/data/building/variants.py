"""Names of configurations: which part of a data set, how its tracklets are thinned and whether it is checked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxreid.data.building.listed import DEFAULT_MAX_EXCLUDED, UNCHECKED, choose
from jaxreid.errors import DataSetError


@dataclasses.dataclass(frozen=True)
class Variants:
    """The configurations of a data set, of which the first of `names` is the default.

    A builder's folder offers `locate` of one, so that a set is found without TFDS, and its builder uses `settings`.
    """

    dataset: str
    version: str
    names: Sequence[str]
    max_frames: int = 0  # of the data set's own; 0 is all

    def settings(
        self, config: str | None = None, max_frames: int | None = None, strict_counts: bool | None = None
    ) -> dict[str, Any]:
        """What a configuration means; see `choose_variant`."""
        return choose_variant(self.dataset, config, self.names, self.max_frames, max_frames, strict_counts)

    def locate(
        self,
        config: str | None,
        source: Path | None,
        max_frames: int | None = None,
        strict_counts: bool | None = None,
        max_excluded: float = DEFAULT_MAX_EXCLUDED,
    ) -> tuple[str, str]:
        """Configuration directory and version; a set that is there is found without its source.

        `max_excluded` decides whether a build succeeds, not what it holds.
        """
        return self.settings(config, max_frames, strict_counts)["name"], self.version


def choose_variant(
    name: str,
    config: str | None,
    variants: Sequence[str],
    default_frames: int,
    max_frames: int | None = None,
    strict_counts: bool | None = None,
) -> dict[str, Any]:
    """`name`, `variant`, `max_frames` and `strict_counts` of a configuration, given by its name or by options.

    Names are VARIANT[_max<N>][_unchecked]. Without _max<N>, tracklets are thinned to `default_frames` frames; 0 means
    never.

    Args:
      name: the data set, for messages.
      config: the configuration's name; None is the first variant.
      variants: which there are.
      default_frames: the data set's own number of frames.
      max_frames: option; None is not given.
      strict_counts: option; None is not given.

    Raises:
      DataSetError: there is no such configuration, or an option contradicts its name.
    """
    variant, named = variants[0], {}
    if config is not None:
        match = re.fullmatch(rf"({'|'.join(variants)})(?:_max(0|[1-9]\d*))?({UNCHECKED})?", config)
        if match is None:
            raise DataSetError(
                f"{name}: no configuration {config!r}; there are {', '.join(variants)}, each also as <name>_max<N> "
                f"with at most N frames per tracklet (default {default_frames}; 0 = all), and <name>{UNCHECKED} for "
                "data that are not as published"
            )
        variant, frames, unchecked = match.groups()
        named = {"max_frames": int(frames or default_frames), "strict_counts": unchecked is None}
    chosen = choose(
        name,
        config,
        named,
        given={"max_frames": max_frames, "strict_counts": strict_counts},
        defaults={"max_frames": default_frames, "strict_counts": True},
    )
    if chosen["max_frames"] < 0:
        raise DataSetError(f"{name}: max_frames must not be negative, got {chosen['max_frames']}")
    thinned = "" if chosen["max_frames"] == default_frames else f"_max{chosen['max_frames']}"
    return {"name": f"{variant}{thinned}{'' if chosen['strict_counts'] else UNCHECKED}", "variant": variant, **chosen}
