"""How large iLIDS-VID is; importable without TFDS."""

from typing import Any

PEOPLE = 300
# Of every split; how many frames there are is not published.
COUNTS: dict[str, dict[str, Any]] = {
    "train": {"tracklets": 300, "identities": 150, "cameras": 2},
    "query": {"tracklets": 150, "identities": 150, "cameras": 2},
    "gallery": {"tracklets": 150, "identities": 150, "cameras": 2},
}
LENGTHS = (23, 192)  # least and most frames of a tracklet; from memory, so a difference is only a warning

# What a dry run plans with.
LENGTH = 73  # frames of a tracklet in the mean; from memory
ORIGIN = "the published size, with frames worked out from a mean length"
PUBLISHED: dict[str, dict[str, Any]] = {
    split: {**facts, "tracklets": {"rgb": facts["tracklets"]}, "frames": {"rgb": LENGTH * facts["tracklets"]}}
    for split, facts in COUNTS.items()
}
