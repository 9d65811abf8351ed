"""HITSZ-VCM; what a run needs at every start, without TFDS and without a look at the raw data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jaxreid.data.building.listed import DEFAULT_MAX_EXCLUDED, UNCHECKED, choose
from jaxreid.errors import DataSetError

VERSION = "1.0.0"
MIN_FRAMES = 12  # as in all published results


def locate(
    config: str | None,
    source: Path | None,
    min_frames: int | None = None,
    strict_counts: bool | None = None,
    max_excluded: float = DEFAULT_MAX_EXCLUDED,
) -> tuple[str, str]:
    """Configuration directory and version; a set that is there is found without its source.

    `max_excluded` decides whether a build succeeds, not what it holds.
    """
    return settings(config, min_frames, strict_counts)["name"], VERSION


def settings(config: str | None, min_frames: int | None = None, strict_counts: bool | None = None) -> dict[str, Any]:
    """`name`, `min_frames` and `strict_counts` of a configuration, given by its name or by options.

    Raises:
      DataSetError: there is no such configuration.
    """
    named = {}
    if config is not None:
        match = re.fullmatch(rf"min([1-9]\d*)({UNCHECKED})?", config)
        if match is None:
            raise DataSetError(
                f"hitsz_vcm: no configuration {config!r}; there are min{MIN_FRAMES} (default), min<N> with another "
                f"least number of frames, and min<N>{UNCHECKED} for lists that are not the published ones"
            )
        named = {"min_frames": int(match[1]), "strict_counts": match[2] is None}
    chosen = choose(
        "hitsz_vcm",
        config,
        named,
        given={"min_frames": min_frames, "strict_counts": strict_counts},
        defaults={"min_frames": MIN_FRAMES, "strict_counts": True},
    )
    if chosen["min_frames"] < 1:
        raise DataSetError(f"hitsz_vcm: min_frames must be at least 1, got {chosen['min_frames']}")
    return {"name": f"min{chosen['min_frames']}" + ("" if chosen["strict_counts"] else UNCHECKED), **chosen}
