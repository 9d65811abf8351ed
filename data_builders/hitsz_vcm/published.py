"""How large HITSZ-VCM is; importable without TFDS."""

from typing import Any

# After tracklets of fewer than 12 frames are dropped, as in all published results (the released reader of MITML).
# `identities` are those of the lists, before that; `cameras` is the data set's number, none per split is published.
PUBLISHED: dict[str, dict[str, Any]] = {
    "train": {
        "tracklets": {"ir": 4291, "rgb": 5460},
        "frames": {"ir": 98214, "rgb": 126543},
        "identities": 500,
        "cameras": 12,
    },
    "query": {"tracklets": {"ir": 4584}, "frames": {"ir": 105979}, "identities": 427, "cameras": 12},
    "gallery": {"tracklets": {"rgb": 5099}, "frames": {"rgb": 118137}, "identities": 427, "cameras": 12},
}

# The lists as they are; `test` is query and gallery together.
LISTED: dict[str, dict[str, Any]] = {
    "train": {"tracklets": 11061, "frames": 232496, "identities": 500, "cameras": 12},
    "test": {"tracklets": 10802, "frames": 230763, "identities": 427},
    "query": {"tracklets": {"ir": 5159}, "identities": 427},
    "gallery": {"tracklets": {"rgb": 5643}, "identities": 427},
}
