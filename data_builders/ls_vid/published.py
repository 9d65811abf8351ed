"""How large LS-VID is; importable without TFDS."""

from typing import Any

# `test` is query and gallery together.
COUNTS: dict[str, dict[str, Any]] = {
    "train": {"tracklets": 2831, "identities": 842, "cameras": 15},
    "query": {"tracklets": 3504},
    "gallery": {"tracklets": 7829},
    "test": {"tracklets": 11333, "identities": 2730},
}
# Of all splits, and of the validation that not every copy has; from memory, so a difference is only a warning.
RECALLED: dict[str, dict[str, Any]] = {
    "all splits": {"tracklets": 14943, "identities": 3772},
    "val": {"identities": 200},
}
FRAMES = 2982685

# What a dry run plans with: tracklets of equal length, of all that there are.
ORIGIN = "the published size, with frames in equal shares"
PUBLISHED: dict[str, dict[str, Any]] = {
    split: {
        "tracklets": {"rgb": COUNTS[split]["tracklets"]},
        "frames": {"rgb": COUNTS[split]["tracklets"] * FRAMES // RECALLED["all splits"]["tracklets"]},
        "identities": COUNTS[of]["identities"],
        "cameras": COUNTS["train"]["cameras"],
    }
    for split, of in (("train", "train"), ("query", "test"), ("gallery", "test"))
}
