"""How large G2A-VReID is; importable without TFDS."""

from typing import Any

# Published of all splits together: every person has one tracklet from the ground and one from the air.
PEOPLE, TRACKLETS, FRAMES = 2788, 5576, 185907

# What a dry run plans with.
ORIGIN = "a size that is worked out: how many people there are is published, half of them are taken to train"
PUBLISHED: dict[str, dict[str, Any]] = {
    split: {
        "tracklets": {"rgb": PEOPLE // 2 * seen},
        "frames": {"rgb": FRAMES * seen // 4},
        "identities": PEOPLE // 2,
        "cameras": seen,
    }
    for split, seen in (("train", 2), ("query", 1), ("gallery", 1))
}
