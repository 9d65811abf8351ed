"""One's own pictures, `DIR/<camera>/<tracklet>/*.jpg`; what a run needs at every start, without TFDS."""

from __future__ import annotations

from pathlib import Path

from jaxreid.data.building.listed import DEFAULT_MAX_EXCLUDED

from .listing import list_folder

VERSION = "1.0.0"


def locate(config: str | None, source: Path | None, max_excluded: float = DEFAULT_MAX_EXCLUDED) -> tuple[str, str]:
    """Configuration directory and version: they name the folder and its contents, so a changed one is built anew.

    `max_excluded` decides whether a build succeeds, not what it holds.
    """
    return list_folder(config, source).name, VERSION
