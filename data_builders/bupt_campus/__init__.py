"""BUPTCampus; what a run needs at every start, without TFDS and without a look at the raw data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxreid.data.building.listed import DEFAULT_MAX_EXCLUDED, UNCHECKED, choose
from jaxreid.errors import DataSetError

VERSION = "1.0.0"
DEFAULT_CONFIG, FAKE_IR_CONFIG = "rgb_ir", "fake_ir"


def locate(
    config: str | None,
    source: Path | None,
    fake_ir: bool | None = None,
    strict_counts: bool | None = None,
    max_excluded: float = DEFAULT_MAX_EXCLUDED,
) -> tuple[str, str]:
    """Configuration directory and version; a set that is there is found without its source.

    `max_excluded` decides whether a build succeeds, not what it holds.
    """
    return settings(config, fake_ir, strict_counts)["name"], VERSION


def settings(config: str | None, fake_ir: bool | None = None, strict_counts: bool | None = None) -> dict[str, Any]:
    """`name`, `fake_ir` and `strict_counts` of a configuration, given by its name or by options.

    Raises:
      DataSetError: there is no such configuration.
    """
    known = {
        base + end: {"fake_ir": base == FAKE_IR_CONFIG, "strict_counts": not end}
        for end in ("", UNCHECKED)
        for base in (DEFAULT_CONFIG, FAKE_IR_CONFIG)
    }
    if config is not None and config not in known:
        raise DataSetError(f"bupt_campus: no configuration {config!r}; there are {', '.join(known)}")
    chosen = choose(
        "bupt_campus",
        config,
        known[config] if config else {},
        given={"fake_ir": fake_ir, "strict_counts": strict_counts},
        defaults=known[DEFAULT_CONFIG],
    )
    return {"name": next(name for name, means in known.items() if means == chosen), **chosen}
