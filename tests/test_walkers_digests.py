"""Worlds that results were published on are drawn byte for byte as they always were.

`references/walkers_digests.json` has a SHA-256 for the frames (JPEG bytes) of each split and for each sidecar, over
every n-th tracklet (by default; each takes about a second) and over all (`--extended`). It is written by
`python tests/test_walkers_digests.py`: only for a world that may change.
"""

import hashlib
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_builders.walkers.walkers_dataset_builder import WalkersConfig, divide
from data_builders.walkers.workers import draw_all
from data_builders.walkers.world import CONFIGS, World

PATH = Path(__file__).parent / "references" / "walkers_digests.json"
FIXED = {"tiny": 1, "vvi": 40, "vvi_dev": 40, "captioned": 100}  # every n-th tracklet of the default run
VERSIONS = {"cv2": cv2.__version__, "numpy": np.__version__}


def digests(name, every):
    """Hex digests by "frames of <split>" and sidecar, each over tracklet ids and bytes."""
    config = CONFIGS[name]
    world = World(config)
    splits = {
        "train": world.specs("train"),
        **divide(world.specs("test"), world, WalkersConfig(name=name, world=config).protocol),
    }
    found = {}

    def add(part, *values):
        digest = found.setdefault(part, hashlib.sha256())
        for value in values:
            digest.update(value)

    drawn = draw_all(config, [spec for specs in splits.values() for spec in specs[::every]])
    for split, specs in splits.items():
        for spec in specs[::every]:
            _, (frames, tracklet) = next(drawn)
            identity = f"{spec.tracklet_id} {len(frames)} ".encode()
            add(f"frames of {split}", identity, *frames)
            add("captions", identity, "\n".join(tracklet.captions).encode())
            for kind, values in (
                ("keypoints", tracklet.keypoints),
                ("joints3d", tracklet.joints3d),
                ("silhouettes", tracklet.silhouette),
            ):
                add(kind, identity, np.ascontiguousarray(values).tobytes())
    return {part: digest.hexdigest() for part, digest in found.items()}


def compare(name, every):
    reference = json.loads(PATH.read_text())
    if reference["versions"] != VERSIONS:
        pytest.skip(f"drawn with {reference['versions']}: another OpenCV may round differently")
    assert digests(name, every) == reference[name][f"every {every}"]


@pytest.mark.parametrize("name", FIXED)
def test_a_sample_is_drawn_as_it_was(name):
    compare(name, FIXED[name])


@pytest.mark.extended
@pytest.mark.parametrize("name", [name for name, every in FIXED.items() if every > 1])
def test_a_world_is_drawn_as_it_was(name):
    compare(name, 1)


if __name__ == "__main__":
    changed = sys.argv[1:] or list(FIXED)
    known = json.loads(PATH.read_text()) if PATH.exists() else {}
    for world_name in changed:
        known[world_name] = {f"every {n}": digests(world_name, n) for n in sorted({1, FIXED[world_name]})}
    PATH.write_text(json.dumps(known | {"versions": VERSIONS}, indent=1) + "\n")
