"""Which tracklets PRID2011 has, and who trains in a split; no frame is looked at."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from jaxreid.data.building import listed
from jaxreid.data.building.listed import Listing
from jaxreid.data.building.tree import Tree
from jaxreid.data.building.two_cameras import TwoCameras
from jaxreid.errors import UserError

from . import FOLDS
from .published import COUNTS, PEOPLE

SPLITS = "splits_prid2011.json"
EXPECTED = f"""expected:
  DIR/prid_2011/multi_shot/cam_a/person_0001/0001.png …  cam_b/…   (or DIR/multi_shot/…)
  DIR/{SPLITS}                               (or beside multi_shot)"""
CAMERAS = ("cam_a", "cam_b")
_PERSON = re.compile(r"person_\d{4}")


def list_dataset(source: Path, variant: str = "split_0") -> Listing:
    """The tracklets of a split, people in the order of the split file.

    Without that file the people of the video protocol are split anew, the same way every time; scores of such splits
    do not compare with published ones.

    Raises:
      DataSetError: folders are missing or empty, a frame is not named as expected, or the split file contradicts
        itself or names people who are not there; the message lists every place.
    """
    tree = Tree("prid2011", source)
    home = "prid_2011/" if (source / "prid_2011").is_dir() else ""
    directory = f"{home}multi_shot"
    tree.require([f"{directory}/{camera}" for camera in CAMERAS], EXPECTED)
    fold = int(variant.removeprefix("split_"))
    path = next((path for path in (source / SPLITS, source / home / SPLITS) if path.is_file()), None)
    if path:
        train, test = _read_splits(path, fold, tree.errors)
    else:
        train, test = _own_split(tree, directory, fold)
    splits = TwoCameras(directory, CAMERAS, r"\d{{4}}\.png").splits(tree, train, test)
    listed.refuse("prid2011", source, tree.errors)
    differences = listed.differences(COUNTS, splits)
    if not path:
        differences.append(f"{source / SPLITS} is missing: the people are split in an own way")
    elif set(train) | set(test) != set(PEOPLE):
        differences.append(f"{path}: names other people than the {len(PEOPLE)} of the video protocol")
    return Listing(
        splits=splits,
        digest=f"{listed.digest([path]) if path else 'own-split'}-{tree.digest}",
        differences=differences,
        warnings=tree.warnings,
        facts={"own_split": path is None},
        faults=tree.faults,
    )


def _read_splits(path: Path, fold: int, errors: list[str]) -> tuple[list[str], list[str]]:
    """The people of both halves of a split: a list of ten {"train": [person_0004, …], "test": […]}."""
    try:
        splits = json.loads(path.read_bytes())
        halves = [(split["train"], split["test"]) for split in splits]
        named = [name for train, test in halves for name in (*train, *test)]
        if not all(isinstance(name, str) and _PERSON.fullmatch(name) for name in named):
            raise UserError("it names somebody not like person_0001")
    except (ValueError, TypeError, KeyError) as error:
        errors.append(f"{path}: is not a JSON list of splits with 'train' and 'test' ({error!r})")
        return [], []
    if len(halves) != FOLDS:
        errors.append(f"{path}: has {len(halves)} splits, not {FOLDS}")
        return [], []
    train, test = halves[fold]
    both = sorted(set(train) & set(test))
    if both:
        errors.append(f"{path}, split {fold}: {len(both)} people are in train and in test, e.g. {both[0]}")
    if len({*train, *test}) < len(train) + len(test) - len(both):
        errors.append(f"{path}, split {fold}: names somebody twice")
    return train, test


def _own_split(tree: Tree, directory: str, fold: int) -> tuple[list[str], list[str]]:
    """Halves of the people of the video protocol who are there, in an order that a digest of their names gives."""
    there = [p for p in PEOPLE if all((tree.source / directory / camera / p).is_dir() for camera in CAMERAS)]
    there.sort(key=lambda person: hashlib.sha256(f"{fold} {person}".encode()).digest())
    return sorted(there[: len(there) // 2]), sorted(there[len(there) // 2 :])
