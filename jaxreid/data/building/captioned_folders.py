"""Tracklets in folders `<split>/<pid>/<pid>_c<cam>_s<seq>_t<track>` with captions beside them; no frame is looked at.

`jaxreid mot-tracklets` makes such a tree from the annotations of tracking data sets.
"""

from __future__ import annotations

import re
from pathlib import Path

from jaxreid.data.building import listed
from jaxreid.data.building.listed import Listing, Tracklet
from jaxreid.data.building.tree import Tree
from jaxreid.errors import DataSetError

CONFIG = "own"  # shows in the names of runs: nobody else has this selection
SPLITS = ("train", "query", "gallery")
CAPTIONS = "captions.jsonl"
EXPECTED = f"""expected:
  DIR/train/0017/0017_c1_s3_t0002/000001.jpg …   (<split>/<pid>/<pid>_c<cam>_s<seq>_t<track>/<frame>, .jpg or .png)
  DIR/query/…  DIR/gallery/…                     people of train are not in query and gallery
  DIR/{CAPTIONS}                            optional: {{"tracklet": "0017_c1_s3_t0002", "pid": 17, "caption": "…"}}"""
_NAME = re.compile(r"(\d+)_c(\d+)_s(\d+)_t(\d+)")


def config_name(name: str, config: str | None) -> str:
    """The only configuration there is.

    Raises:
      DataSetError: another was asked for.
    """
    if config not in (None, CONFIG):
        raise DataSetError(f"{name}: no configuration {config!r}; there is {CONFIG}")
    return CONFIG


def tracklet_name(pid: int, camera: int, sequence: int, track: int) -> str:
    """How a tracklet's folder is called."""
    return f"{pid:04d}_c{camera}_s{sequence}_t{track:04d}"


def list_folders(name: str, source: Path) -> Listing:
    """The tracklets of the three splits, by identity and name.

    Raises:
      DataSetError: a split is missing, a folder is empty or of another name, a tracklet is there twice, people are in
        train and in the test splits; the message lists every place.
    """
    tree = Tree(name, source)
    tree.require(SPLITS, EXPECTED)
    splits: dict[str, list[Tracklet]] = {split: [] for split in SPLITS}
    for split, members in splits.items():
        for pid, folder, frames in tree.tracklets(split):
            tracklet = folder.rpartition("/")[2]
            match = _NAME.fullmatch(tracklet)
            if match is None or int(match[1]) != pid:
                tree.errors.append(f"{source / folder}: is not called {pid:04d}_c<cam>_s<seq>_t<track>")
                continue
            camera, sequence = int(match[2]), int(match[3])
            members.append(
                Tracklet(
                    tracklet_id=tracklet,
                    pid=pid,
                    camera=camera,
                    cam_name=f"C{camera}",
                    modality="rgb",
                    frames=tuple(f"{folder}/{frame}" for frame in frames),
                    recording=f"{pid:04d}_c{camera}_s{sequence}",
                    features={"session": sequence},
                )
            )
    again = listed.repeated(tracklet for members in splits.values() for tracklet in members)
    if again:
        tree.errors.append(f"{source}: {len(again)} tracklets are there more than once, e.g. {again[0]}")
    listed.refuse(name, source, [*tree.errors, *tree.missing, *listed.shared_identities(splits)])
    return Listing(
        splits=splits,
        digest=tree.digest,
        differences=[],
        warnings=tree.warnings,
        facts={"construction": "own construction: nothing is published of the data set but its name"},
        faults=tree.faults,
    )
