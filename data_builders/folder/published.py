"""A size to plan with: how many pictures one's own cameras make is not known before they are there."""

from typing import Any

ORIGIN = "a size that is assumed"
PUBLISHED: dict[str, dict[str, Any]] = {
    "train": {"tracklets": {"rgb": 1000}, "frames": {"rgb": 30000}, "identities": 250, "cameras": 4},
    "query": {"tracklets": {"rgb": 200}, "frames": {"rgb": 6000}, "identities": 100, "cameras": 4},
    "gallery": {"tracklets": {"rgb": 400}, "frames": {"rgb": 12000}, "identities": 100, "cameras": 4},
}
