"""How large CCVID is; importable without TFDS."""

from typing import Any

# Counted on the release. `outfits` are (identity, outfit) pairs, "test" is both test splits; `cameras` is the data
# set's number, none per split is published.
PUBLISHED: dict[str, dict[str, Any]] = {
    "train": {"tracklets": {"rgb": 948}, "frames": {"rgb": 118613}, "identities": 75, "outfits": 159, "cameras": 24},
    "query": {"tracklets": {"rgb": 834}, "frames": {"rgb": 116799}, "identities": 151, "cameras": 24},
    "gallery": {"tracklets": {"rgb": 1074}, "frames": {"rgb": 112421}, "identities": 151, "cameras": 24},
    "test": {"outfits": 321},
}

SESSIONS = {1: 1764, 2: 948, 3: 144}  # tracklets
