"""G2A-VReID; what a run needs at every start, without TFDS and without a look at the raw data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxreid.data.listed import DEFAULT_MAX_EXCLUDED
from jaxreid.data.variants import choose_variant

VERSION = "1.0.0"
RELEASES = ("v1", "v2")


def locate(
    config: str | None,
    source: Path | None,
    max_frames: int | None = None,
    strict_counts: bool | None = None,
    max_excluded: float = DEFAULT_MAX_EXCLUDED,
) -> tuple[str, str]:
    """Configuration directory and version; a set that is there is found without its source.

    `max_excluded` decides whether a build succeeds, not what it holds.
    """
    return settings(config, max_frames, strict_counts)["name"], VERSION


def settings(config: str | None, max_frames: int | None, strict_counts: bool | None) -> dict[str, Any]:
    """What a configuration means; see `choose_variant`."""
    return choose_variant("g2a_vreid", config, RELEASES, 0, max_frames, strict_counts)
