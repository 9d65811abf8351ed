"""How large MEVID is; importable without TFDS."""

from typing import Any

# `outfits` are (identity, outfit) pairs; `cameras` of `train` is the data set's number, none per split is published.
COUNTS: dict[str, dict[str, Any]] = {
    "train": {"tracklets": 6338, "identities": 104, "outfits": 485, "cameras": 33},
    "query": {"tracklets": 316, "identities": 52, "outfits": 100},
    "gallery": {"tracklets": 1438, "identities": 54, "outfits": 113},
    "test": {"outfits": 113},
}

# Counted on the distance file that the authors released.
QUERY_CAMERAS = (329, 336, 340, 436, 505, 507, 508, 509, 639)
GALLERY_CAMERAS = (301, 329, 330, 336, 340, 436, 505, 507, 508, 509, 639)

# What a dry run plans with: tracklets of the mean length that the authors give.
LENGTH = 590
ORIGIN = "the published size, with frames worked out from the published mean length"
PUBLISHED: dict[str, dict[str, Any]] = {
    split: {
        "tracklets": {"rgb": COUNTS[split]["tracklets"]},
        "frames": {"rgb": LENGTH * COUNTS[split]["tracklets"]},
        "identities": COUNTS[split]["identities"],
        "cameras": cameras,
    }
    for split, cameras in (("train", 33), ("query", len(QUERY_CAMERAS)), ("gallery", len(GALLERY_CAMERAS)))
}
