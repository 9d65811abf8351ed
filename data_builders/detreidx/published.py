"""How large the VReID-XFD release of DetReIDX is; importable without TFDS."""

from typing import Any

IDENTITIES = 371  # over all splits
QUERIES = {1: 3204, 2: 89, 3: 2789}  # per case; worked out from published scores, so only a hint
TRACKLETS = 11_288  # over all splits

# What a dry run plans with: queries and gallery of the first case hold all of the test, 64 frames are kept of each.
ORIGIN = "a size that is worked out: how many are published of training and test together, and a hint of the queries"
PUBLISHED: dict[str, dict[str, Any]] = {
    split: {"tracklets": {"rgb": count}, "frames": {"rgb": 64 * count}, "identities": people, "cameras": cameras}
    for split, count, people, cameras in (
        ("train", TRACKLETS - QUERIES[1] - QUERIES[2], IDENTITIES - QUERIES[2], 3),
        ("query", QUERIES[1], QUERIES[2], 2),
        ("gallery", QUERIES[2], QUERIES[2], 1),
    )
}
