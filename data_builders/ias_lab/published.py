"""How large IAS-Lab RGBD-ID is; importable without TFDS."""

from typing import Any

ASSERTED: dict[str, dict[str, Any]] = {split: {"identities": 11} for split in ("train", "query", "gallery")}
RECALLED: dict[str, dict[str, Any]] = {}

# How many clips of six frames there are, nobody published.
ORIGIN = "a size that is assumed"
PUBLISHED: dict[str, dict[str, Any]] = {
    "train": {"tracklets": {"skeleton": 8_000}, "frames": {"skeleton": 48_000}, "identities": 11, "cameras": 1},
    "query": {"tracklets": {"skeleton": 1_200}, "frames": {"skeleton": 7_200}, "identities": 11, "cameras": 1},
    "gallery": {"tracklets": {"skeleton": 1_200}, "frames": {"skeleton": 7_200}, "identities": 11, "cameras": 1},
}
