"""How large BIWI RGBD-ID is; importable without TFDS."""

from typing import Any

ASSERTED: dict[str, dict[str, Any]] = {"train": {"identities": 50}}
# Not read in the data set's own code or lists: a difference is only a warning.
RECALLED: dict[str, dict[str, Any]] = {"query": {"identities": 28}, "gallery": {"identities": 28}}

# How many clips of six frames there are, nobody published.
ORIGIN = "a size that is assumed"
PUBLISHED: dict[str, dict[str, Any]] = {
    "train": {"tracklets": {"skeleton": 12_000}, "frames": {"skeleton": 72_000}, "identities": 50, "cameras": 1},
    "query": {"tracklets": {"skeleton": 2_000}, "frames": {"skeleton": 12_000}, "identities": 28, "cameras": 1},
    "gallery": {"tracklets": {"skeleton": 1_500}, "frames": {"skeleton": 9_000}, "identities": 28, "cameras": 1},
}
