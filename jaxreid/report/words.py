"""Names of the code as people write them."""

from __future__ import annotations


def spoken(direction: str) -> str:
    """A direction's name as people write it: 'visible_to_infrared/mAP' is 'visible to infrared, mAP'."""
    return direction.replace("_to_", " to ").replace("/", ", ")
