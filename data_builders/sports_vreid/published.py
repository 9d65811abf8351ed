"""A size to plan SportsVReID with: its authors published none, and tracklets are of one's own making."""

from typing import Any

ORIGIN = "a size that is assumed"
PUBLISHED: dict[str, dict[str, Any]] = {
    "train": {"tracklets": {"rgb": 2000}, "frames": {"rgb": 200000}, "identities": 500, "cameras": 2},
    "query": {"tracklets": {"rgb": 400}, "frames": {"rgb": 40000}, "identities": 400, "cameras": 2},
    "gallery": {"tracklets": {"rgb": 1600}, "frames": {"rgb": 160000}, "identities": 500, "cameras": 2},
}
