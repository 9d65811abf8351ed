"""A progress bar for builders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def progress(
    items: Iterable[Any], description: str, total: int | None = None, unit: str = "tracklets"
) -> Iterable[Any]:
    """Iterates with a progress bar on stderr that shows the rate and the time left; for builders."""
    from tqdm import tqdm

    return tqdm(items, desc=description, total=total, unit=f" {unit}", mininterval=0.5, leave=False)
