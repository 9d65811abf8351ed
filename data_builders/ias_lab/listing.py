"""Which sequences IAS-Lab RGBD-ID has; no frame is opened."""

from __future__ import annotations

from pathlib import Path

from jaxreid.data.building.skeletons import SkeletonSequence, person_folders

EXPECTED = """expected:
  DIR/Training/000/*skel.txt …  DIR/TestingA/000/*skel.txt …  DIR/TestingB/000/*skel.txt …  (or all of it in DIR/IAS)"""
# Folder: split, session, frames cut from start and end (as all published results do).
RECORDINGS = {
    "Training": ("train", 0, (10, 0)),
    "TestingA": ("query", 1, (10, 10)),
    "TestingB": ("gallery", 2, (10, 10)),
}
FOLDERS = tuple(RECORDINGS)


def list_sequences(root: Path, errors: list[str]) -> list[SkeletonSequence]:
    """A sequence per innermost folder, of the person whose number the folder bears; adds what is wrong to `errors`."""
    return [
        SkeletonSequence(name, split, pid, files, session=session, trim=trim)
        for folder, (split, session, trim) in RECORDINGS.items()
        for name, pid, files in person_folders(root, folder, errors)
    ]
