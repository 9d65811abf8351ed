"""How large MARS is; importable without TFDS."""

from typing import Any

# Of the published tables; the gallery is test without queries. Identity −1 is junk, 0 are distractors.
PUBLISHED: dict[str, dict[str, Any]] = {
    "train": {"tracklets": {"rgb": 8298}, "frames": {"rgb": 509914}, "identities": 625, "cameras": 6},
    "query": {"tracklets": {"rgb": 1980}, "frames": {"rgb": 114493}, "identities": 626, "cameras": 6},
    "gallery": {"tracklets": {"rgb": 10200}, "frames": {"rgb": 566596}, "identities": 622, "cameras": 6},
}

# Of parts of the test table.
LISTED: dict[str, dict[str, Any]] = {
    "test": {"tracklets": 12180, "frames": 681089, "identities": 636},
    "gallery without junk": {"tracklets": 9330, "identities": 621},
    "junk": {"tracklets": 870, "frames": 23380},
    "distractors": {"tracklets": 3248, "frames": 147743},
}

# Tracklets before cameras 1 to 6.
PER_CAMERA: dict[str, tuple[int, ...]] = {
    "train": (1816, 1957, 1321, 750, 1880, 574),
    "test": (2271, 3725, 1495, 1024, 2240, 1425),
    "query": (524, 456, 319, 191, 384, 106),
}
