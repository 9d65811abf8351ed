"""iLIDS-VID; what a run needs at every start, without TFDS and without a look at the raw data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jaxreid.data.building.listed import DEFAULT_MAX_EXCLUDED
from jaxreid.data.building.variants import choose_variant
from jaxreid.errors import DataSetError

VERSION = "1.0.0"
FOLDS = 10
WANG, SWAPPED = "wang", "swapped"  # which half of a split is the test: its first, or its last


def locate(
    config: str | None,
    source: Path | None,
    halves: str | None = None,
    max_frames: int | None = None,
    strict_counts: bool | None = None,
    max_excluded: float = DEFAULT_MAX_EXCLUDED,
) -> tuple[str, str]:
    """Configuration directory and version; a set that is there is found without its source.

    `max_excluded` decides whether a build succeeds, not what it holds.
    """
    return settings(config, max_frames, strict_counts, halves)["name"], VERSION


def settings(
    config: str | None,
    max_frames: int | None = None,
    strict_counts: bool | None = None,
    halves: str | None = None,
) -> dict[str, Any]:
    """What a configuration means: split_<K>[_swapped], see `choose_variant`; `halves` completes a name, too."""
    if halves not in (None, WANG, SWAPPED):
        raise DataSetError(f"ilids_vid: halves must be {WANG!r} or {SWAPPED!r}, got {halves!r}")
    if halves == WANG and config is not None and f"_{SWAPPED}" in config:
        raise DataSetError(f"ilids_vid: option halves={WANG} contradicts the configuration {config!r}")
    plain = [f"split_{fold}" for fold in range(FOLDS)]
    swapped = [f"{name}_{SWAPPED}" for name in plain]
    if halves == SWAPPED and config is not None:
        config = re.sub(rf"(split_\d)(?!_{SWAPPED})", rf"\1_{SWAPPED}", config)
    variants = [*swapped, *plain] if halves == SWAPPED else [*plain, *swapped]  # the first is the default
    return choose_variant("ilids_vid", config, variants, 0, max_frames, strict_counts)
