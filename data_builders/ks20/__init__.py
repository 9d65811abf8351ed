"""KS20; what a run needs at every start, without TFDS and without a look at the raw data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxreid.data.building import skeletons
from jaxreid.data.building.listed import DEFAULT_MAX_EXCLUDED

VERSION = "1.0.0"


def locate(
    config: str | None,
    source: Path | None,
    clip_frames: int | None = None,
    strict_counts: bool | None = None,
    seed: int | None = None,
    max_excluded: float = DEFAULT_MAX_EXCLUDED,
) -> tuple[str, str]:
    """Configuration directory and version; a set that is there is found without its source.

    `max_excluded` decides whether a build succeeds, not what it holds.
    """
    return settings(config, clip_frames, strict_counts, seed)["name"], VERSION


def settings(
    config: str | None, clip_frames: int | None = None, strict_counts: bool | None = None, seed: int | None = None
) -> dict[str, Any]:
    """`name`, `clip_frames`, `seed` and `strict_counts` of a configuration: `skeletons.settings`."""
    return skeletons.settings("ks20", config, clip_frames, strict_counts, seed=seed)
