"""How large BUPTCampus is; importable without TFDS."""

from typing import Any

# From the released lists; `cameras` is the data set's number, none per split is published.
PUBLISHED: dict[str, dict[str, Any]] = {
    "train": {
        "tracklets": {"ir": 3574, "rgb": 3574},
        "frames": {"ir": 398069, "rgb": 398069},
        "identities": 1074,
        "cameras": 6,
    },
    "train_aux": {
        "tracklets": {"ir": 930, "rgb": 930},
        "frames": {"ir": 104575, "rgb": 104575},
        "identities": 930,
        "cameras": 6,
    },
    "query": {
        "tracklets": {"ir": 536, "rgb": 540},
        "frames": {"ir": 53417, "rgb": 48521},
        "identities": 1076,
        "cameras": 6,
    },
    "gallery": {
        "tracklets": {"ir": 2422, "rgb": 2422},
        "frames": {"ir": 298771, "rgb": 298771},
        "identities": 1076,
        "cameras": 6,
    },
}
