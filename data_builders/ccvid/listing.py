"""What CCVID's lists say, and the names of the frames in the folders that they name; no frame is looked at."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxreid.data.building import listed
from jaxreid.data.building.listed import Listing, Tracklet
from jaxreid.data.building.outfits import number_outfits, outfit_differences
from jaxreid.data.building.tree import Tree

from .published import PUBLISHED, SESSIONS

EXPECTED = """expected:
  DIR/train.txt query.txt gallery.txt
  DIR/session1/001_01/00001.jpg …  DIR/session2/…  DIR/session3/…"""
LISTS = {"train": "train.txt", "query": "query.txt", "gallery": "gallery.txt"}
ANGLES = 12  # per session; those of the third are counted on
_FOLDER = re.compile(r"session([123])/\d+_(\d+)")


def list_dataset(source: Path) -> Listing:
    """The tracklets of the lists, in their order; `clothes_id` is of the pair of identity and label.

    A folder that is missing or empty is left out and counted among the differences from the published set.

    Raises:
      DataSetError: a list is missing, or a line is not of the expected form; the message lists every place.
    """
    paths = listed.find_lists("ccvid", source, list(LISTS.values()), (".",), EXPECTED)
    tree = Tree("ccvid", source)
    splits = {split: _read(tree, paths[file]) for split, file in LISTS.items()}
    listed.refuse("ccvid", source, tree.errors)
    splits, outfits = number_outfits(splits)
    return Listing(
        splits=splits,
        digest=listed.digest(paths.values()),
        differences=_differences(tree, splits),
        warnings=tree.warnings,
        facts={"clothes": outfits},
        faults=tree.faults,
    )


def _read(tree: Tree, path: Path) -> list[Tracklet]:
    """The tracklets of one list, each line "folder identity label", by tabs."""
    tracklets = []
    for number, line in enumerate(listed.read_lines(path), start=1):
        where = f"{path}, row {number} ({line.strip()})"
        cells = line.split()
        folder = _FOLDER.fullmatch(cells[0]) if cells else None
        if len(cells) != 3 or folder is None or not cells[1].isdecimal():
            tree.errors.append(f"{where}: is not 'folder identity clothes' like 'session1/001_01 001 u0_l0_s0_c0_a0'")
            continue
        session, angle = map(int, folder.groups())
        if not 1 <= angle <= ANGLES:
            tree.errors.append(f"{where}: the folder's second number is its camera, from 1 to {ANGLES}")
            continue
        camera = angle + ANGLES * (session == 3)
        frames = tree.frames(cells[0])
        if frames:
            tracklets.append(
                Tracklet(
                    tracklet_id=cells[0],
                    pid=int(cells[1]),
                    camera=camera,
                    cam_name=f"C{camera}",
                    modality="rgb",
                    frames=tuple(f"{cells[0]}/{frame}" for frame in frames),
                    features={"outfit": cells[2], "session": session},
                )
            )
    again = listed.repeated(tracklets)
    if again:
        tree.errors.append(f"{path}: {len(again)} tracklets are in several rows, e.g. {again[0]}")
    return tracklets


def _differences(tree: Tree, splits: Mapping[str, Sequence[Tracklet]]) -> list[str]:
    figures = {split: of for split, of in PUBLISHED.items() if split != "test"}
    every = [tracklet for members in splits.values() for tracklet in members]
    sessions = Counter(tracklet.features["session"] for tracklet in every)
    lines = tree.missing + listed.differences(figures, splits) + outfit_differences(PUBLISHED, splits)
    lines += [
        f"session {session}: expected {count} tracklets, found {sessions[session]}"
        for session, count in SESSIONS.items()
        if sessions[session] != count
    ]
    again = listed.repeated(every)
    if again:
        lines.append(f"{len(again)} tracklets are in several lists, e.g. {again[0]}")
    return lines + listed.shared_identities(splits)
