"""Which sequences BIWI RGBD-ID has; no frame is opened."""

from __future__ import annotations

from pathlib import Path

from jaxreid.data.building.skeletons import SkeletonSequence, person_folders

EXPECTED = """expected:
  DIR/Training/000/*skel.txt …  DIR/Testing/Walking/000/*skel.txt …  DIR/Testing/Still/000/*skel.txt …
                                                                                   (or all of it in DIR/BIWI)"""
SPLITS = {"Training": "train", "Testing/Walking": "query", "Testing/Still": "gallery"}
FOLDERS = tuple(SPLITS)
TRIM = (10, 10)  # people walk in and out


def list_sequences(root: Path, errors: list[str]) -> list[SkeletonSequence]:
    """A sequence per innermost folder, of the person whose number the folder bears; adds what is wrong to `errors`."""
    return [
        SkeletonSequence(name, split, pid, files, trim=TRIM)
        for folder, split in SPLITS.items()
        for name, pid, files in person_folders(root, folder, errors)
    ]
