"""How large KS20 is; importable without TFDS."""

from typing import Any

ASSERTED: dict[str, dict[str, Any]] = {
    split: {"identities": 20, "cameras": 5} for split in ("train", "query", "gallery")
}
SEQUENCES = 300  # not read in the data set's own code or lists: another number is only a warning

# How many clips of six frames there are, nobody published.
ORIGIN = "a size that is assumed"
PUBLISHED: dict[str, dict[str, Any]] = {
    "train": {"tracklets": {"skeleton": 12_000}, "frames": {"skeleton": 72_000}, "identities": 20, "cameras": 5},
    "query": {"tracklets": {"skeleton": 1_500}, "frames": {"skeleton": 9_000}, "identities": 20, "cameras": 5},
    "gallery": {"tracklets": {"skeleton": 1_500}, "frames": {"skeleton": 9_000}, "identities": 20, "cameras": 5},
}
