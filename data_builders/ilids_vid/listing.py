"""Which tracklets iLIDS-VID has, and what its split file says; no frame is looked at."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jaxreid.data.building import listed
from jaxreid.data.building.listed import Listing
from jaxreid.data.building.matlab import read_matlab
from jaxreid.data.building.tree import Tree
from jaxreid.data.building.two_cameras import TwoCameras

from . import FOLDS, SWAPPED
from .published import COUNTS, LENGTHS

SPLITS = "train_test_splits_ilidsvid.mat"
EXPECTED = f"""expected:
  DIR/i-LIDS-VID/sequences/cam1/person001/cam1_person001_00317.png …  cam2/…   (or DIR/sequences/…)
  DIR/train-test people splits/{SPLITS}                         (or in DIR itself)"""
CAMERAS = ("cam1", "cam2")
_PERSON = re.compile(r"person\d{3}")


def list_dataset(source: Path, variant: str = "split_0") -> Listing:
    """The tracklets of a split, people in the order of the split file.

    Raises:
      DataSetError: files are missing, a folder or a frame is not named as expected, a folder is empty, or the split
        file does not deal out the people that are there; the message lists every place.
    """
    folders = ("train-test people splits", "i-LIDS-VID/train-test people splits", ".")
    path = listed.find_lists("ilids_vid", source, [SPLITS], folders, EXPECTED)[SPLITS]
    tree = Tree("ilids_vid", source)
    directory = "i-LIDS-VID/sequences" if (source / "i-LIDS-VID" / "sequences").is_dir() else "sequences"
    tree.require([f"{directory}/{camera}" for camera in CAMERAS], EXPECTED)
    people = _people(tree, directory)
    first, last = _halves(path, int(variant.split("_")[1]), people, tree.errors)
    train, test = (first, last) if variant.endswith(SWAPPED) else (last, first)
    splits = TwoCameras(directory, CAMERAS, r"{camera}_{person}_\d+\.png").splits(tree, train, test)
    listed.refuse("ilids_vid", source, tree.errors)
    return Listing(
        splits=splits,
        digest=f"{listed.digest([path])}-{tree.digest}",
        differences=listed.differences(COUNTS, splits),
        warnings=[*tree.warnings, *_length_remarks(splits)],
        faults=tree.faults,
    )


def _people(tree: Tree, directory: str) -> list[str]:
    """Folders of the people, sorted: the split file counts in that order, not by the number in the name."""
    seen = [{name for name in os.listdir(tree.source / directory / camera) if name[0] != "."} for camera in CAMERAS]
    strange = sorted(name for name in seen[0] | seen[1] if not _PERSON.fullmatch(name))
    tree.errors += [f"{tree.source / directory}: {name!r} is not named like person001" for name in strange]
    alone = sorted(seen[0] ^ seen[1])
    tree.errors += [f"{tree.source / directory}: {name!r} is before one camera only" for name in alone]
    return sorted(seen[0] & seen[1])


def _halves(path: Path, fold: int, people: list[str], errors: list[str]) -> tuple[list[str], list[str]]:
    """The people of the first and of the last half of a row of the split file, which counts from 1."""
    table = read_matlab("ilids_vid", path, "ls_set")
    if table.shape != (FOLDS, len(people)):
        rows, columns = table.shape
        errors.append(
            f"{path}: has {rows} rows of {columns} people; {FOLDS} rows of the {len(people)} people that are there "
            "are needed"
        )
        return [], []
    row = table[fold].tolist()
    if sorted(row) != list(range(1, len(people) + 1)):
        errors.append(f"{path}, row {fold + 1}: does not name each of the {len(people)} people once")
        return [], []
    chosen = [people[number - 1] for number in row]
    return chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]


def _length_remarks(splits: dict) -> list[str]:
    lengths = [len(tracklet.frames) for members in splits.values() for tracklet in members]
    if (min(lengths), max(lengths)) == LENGTHS:
        return []
    return [f"tracklets have {min(lengths)} to {max(lengths)} frames; {LENGTHS[0]} to {LENGTHS[1]} are known"]
