"""How large AG-VPReID's challenge release is; importable without TFDS."""

from typing import Any

# Counted on its attribute tables; tracklets and frames are published in rounded numbers only.
COUNTS: dict[str, dict[str, Any]] = {
    "train": {"identities": 689, "cameras": 6},
    "query_case1": {"identities": 645},
    "gallery_case1": {"identities": 645},
    "query_case2": {"identities": 645},
    "gallery_case2": {"identities": 1309},
}

# What a dry run plans with: the rounded numbers of the whole release, dealt out by people; those of training are seen
# from the air and from the ground, queries and gallery each from one of them.
TRACKLETS, FRAMES = 13_500, 3_700_000
ORIGIN = "a size that is worked out: about 13,500 tracklets and 3.7 million frames in all, by people"
SHARES = {"train": 2 * 689, "query": 645, "gallery": 1309}
PUBLISHED: dict[str, dict[str, Any]] = {
    split: {
        "tracklets": {"rgb": TRACKLETS * share // sum(SHARES.values())},
        "frames": {"rgb": FRAMES * share // sum(SHARES.values())},
        "identities": people,
        "cameras": cameras,
    }
    for (split, share), people, cameras in zip(SHARES.items(), (689, 645, 1309), (6, 2, 4), strict=True)
}
