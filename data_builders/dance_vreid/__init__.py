"""DanceVReID; what a run needs at every start, without TFDS and without a look at the raw data."""

from __future__ import annotations

from pathlib import Path

from jaxreid.data.building.captioned_folders import config_name
from jaxreid.data.building.listed import DEFAULT_MAX_EXCLUDED

VERSION = "1.0.0"


def locate(config: str | None, source: Path | None, max_excluded: float = DEFAULT_MAX_EXCLUDED) -> tuple[str, str]:
    """Configuration directory and version; a set that is there is found without its source.

    `max_excluded` decides whether a build succeeds, not what it holds.
    """
    return settings(config)["name"], VERSION


def settings(config: str | None) -> dict[str, str]:
    """The only configuration there is."""
    return {"name": config_name("dance_vreid", config)}
