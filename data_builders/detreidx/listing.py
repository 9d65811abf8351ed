"""What the folders and frame names of DetReIDX say; no frame is looked at."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path

from jaxreid.data.building import listed
from jaxreid.data.building.answers import ANSWERS, COLUMNS, ROLES, read_answers
from jaxreid.data.building.case_tree import (
    ALL_CASES,
    Splits,
    case_remarks,
    case_splits,
    mark_cases,
    read_cases,
    read_tracklets,
    with_features,
)
from jaxreid.data.building.listed import Listing, Tracklet
from jaxreid.data.building.tree import Tree
from jaxreid.data.names import nfc

from . import CASES, HELD_OUT
from .names import ATTRIBUTES, UNKNOWN, View, parse
from .published import IDENTITIES, QUERIES

EXPECTED = f"""expected:
  DIR/train/0004/0004_17/0004_23_10_2024_09_18_5.8_10_30_…_S1.jpg …
  DIR/case1_aerial_to_ground/query/0024/0024_5453/*.jpg   DIR/case1_aerial_to_ground/gallery/…
  DIR/case2_ground_to_aerial/…   DIR/case3_aerial_to_aerial/…
  DIR/{ANSWERS}   (optional: {",".join(COLUMNS)} of test tracklets whose folders hide them)"""


def list_dataset(source: Path, variant: str, max_frames: int = 0) -> Listing:
    """The tracklets of a variant's folders, by identity and tracklet name, thinned at once.

    Raises:
      DataSetError: a directory is missing, a folder is not named by an identity, or `gt.csv` does not fit.
    """
    tree = Tree("detreidx", source)
    reader = _Reader(tree)
    named = case_splits(ALL_CASES if variant == HELD_OUT else variant, CASES)
    if variant == HELD_OUT:
        tree.require(["train"], EXPECTED)
        splits = _hold_out(read_tracklets(tree, "train", reader.describe, max_frames), named)
        answers = ""
    else:
        splits = read_cases(tree, variant, CASES, reader.describe, max_frames, EXPECTED)
        splits, answers = _answer(tree, splits, named)
    listed.refuse("detreidx", source, tree.errors)
    splits = mark_cases(splits, named)
    warnings = [*tree.warnings, *reader.warnings(), *case_remarks(splits, named)]
    if variant != HELD_OUT:
        warnings += [
            f"case {number}: expected {QUERIES[number]} queries, found {len(splits[query])}"
            for number, (query, _) in named.items()
            if len(splits[query]) != QUERIES[number]
        ]
    return Listing(
        splits=splits,
        digest=f"{tree.digest}{answers}",
        differences=[*tree.missing, *_differences(tree)],
        warnings=warnings,
        facts={
            "attribute_names": ATTRIBUTES,
            "cases": {f"case{number}": CASES[number].partition("_")[2] for number in named},
        },
        faults=tree.faults,
    )


class _Reader:
    """Describes tracklets by the names of their frames, and counts what these do not tell."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.doubts: dict[str, list[str]] = {}  # tracklets by what is doubtful about them

    def describe(self, pid: int, folder: str, names: list[str]) -> Tracklet:
        view = parse(names[0])
        # Frames of one tracklet differ in their attributes at most; the last one tells of a mixture.
        if _place(view) != _place(parse(names[-1])):
            self._doubt("hold frames of several views (the first one's is taken)", folder)
        if view.platform == "unknown":
            self._doubt("have names that tell neither ground nor view (kept as unknown)", names[0])
        elif view.camera == UNKNOWN:
            self._doubt("are of an unknown session, so of no known camera", names[0])
        elif view.platform == "uav" and view.point == UNKNOWN:
            self._doubt("are of none of the 18 capture points", names[0])
        *_, person, tracklet = folder.split("/")
        return Tracklet(
            tracklet_id=tracklet if tracklet.startswith(f"{person}_") else f"{person}_{tracklet}",
            pid=pid,
            camera=view.camera,
            cam_name=view.cam_name,
            modality="rgb",
            frames=tuple(f"{folder}/{name}" for name in names),
            features={
                "platform": view.platform,
                "altitude": view.altitude,
                "distance": view.distance,
                "angle": view.angle,
                "slant_range": view.slant_range,
                "point_id": view.point,
                "session": view.session,
                "attributes": list(view.attributes),
            },
        )

    def _doubt(self, what: str, where: str) -> None:
        self.doubts.setdefault(what, []).append(where)

    def warnings(self) -> list[str]:
        return [f"{len(where)} tracklets {what}, e.g. {where[0]}" for what, where in self.doubts.items()]


def _place(view: View) -> str:
    return repr(dataclasses.replace(view, attributes=()))  # NaN equals itself in print


def _hold_out(tracklets: list[Tracklet], named: Mapping[int, tuple[str, str]]) -> Splits:
    """A fifth of the training people, chosen by their numbers, as queries and galleries of the three cases.

    In the third, every aerial tracklet is looked for among all of them: the protocol leaves out the tracklet itself.
    """
    kept = [tracklet for tracklet in tracklets if zlib.crc32(b"%d" % tracklet.pid) % 5]
    held = [tracklet for tracklet in tracklets if not zlib.crc32(b"%d" % tracklet.pid) % 5]
    aerial = [tracklet for tracklet in held if tracklet.features["platform"] == "uav"]
    ground = [tracklet for tracklet in held if tracklet.features["platform"] == "ground"]
    splits = {"train": kept}
    for (query, gallery), members in zip(
        named.values(), ((aerial, ground), (ground, aerial), (aerial, aerial)), strict=True
    ):
        splits |= {query: members[0], gallery: members[1]}
    return splits


def _answer(tree: Tree, splits: Splits, named: Mapping[int, tuple[str, str]]) -> tuple[Splits, str]:
    """The splits with the identities and sessions that `gt.csv` gives, and a digest of it; as they are without it."""
    path = tree.source / ANSWERS
    if not path.is_file():
        return splits, ""
    answers, errors = read_answers(path)
    tree.errors += errors
    if errors and not answers:
        return splits, ""
    answered = dict(splits)
    for case, names in named.items():
        for role, split in zip(ROLES, names, strict=True):
            keys = [(str(case), role, nfc(t.tracklet_id)) for t in splits[split]]
            lacking = [key[-1] for key in keys if key not in answers]
            if lacking:
                tree.errors.append(f"{path}: has no row for {len(lacking)} of case {case}, {role}, e.g. {lacking[0]}")
                continue
            answered[split] = [_told(t, *answers[key]) for t, key in zip(splits[split], keys, strict=True)]
    return answered, listed.digest([path])[:4]


def _told(tracklet: Tracklet, pid: int, session: int) -> Tracklet:
    """A tracklet with its true identity and, where it is told, session."""
    if tracklet.features["platform"] != "uav" or session == UNKNOWN:
        return dataclasses.replace(tracklet, pid=pid)
    view = View("uav", session=session)
    moved = dataclasses.replace(tracklet, pid=pid, camera=view.camera, cam_name=view.cam_name)
    return with_features(moved, session=session)


def _differences(tree: Tree) -> list[str]:
    """Whether the people are as many as published; they can be counted where all folders are there."""
    folders = ["train", *(f"{case}/{role}" for case in CASES.values() for role in ("query", "gallery"))]
    if not all((tree.source / folder).is_dir() for folder in folders):
        return []
    everything = Tree(tree.name, tree.source)  # of folders that are not of the variant nothing else is asked
    people = {pid for folder in folders for pid, _ in everything.identities(folder)}
    return [f"all folders: expected {IDENTITIES} identities, found {len(people)}"] * (len(people) != IDENTITIES)
