"""How large MEVID is; importable without TFDS."""

from typing import Any

# `outfits` are (identity, outfit) pairs; `cameras` of `train` is the data set's number, none per split is published.
PUBLISHED: dict[str, dict[str, Any]] = {
    "train": {"tracklets": 6338, "identities": 104, "outfits": 485, "cameras": 33},
    "query": {"tracklets": 316, "identities": 52, "outfits": 100},
    "gallery": {"tracklets": 1438, "identities": 54, "outfits": 113},
    "test": {"outfits": 113},
}

# Counted on the distance file that the authors released.
QUERY_CAMERAS = (329, 336, 340, 436, 505, 507, 508, 509, 639)
GALLERY_CAMERAS = (301, 329, 330, 336, 340, 436, 505, 507, 508, 509, 639)
