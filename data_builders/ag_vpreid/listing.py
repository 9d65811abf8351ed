"""What the folders, frame names and attribute tables of AG-VPReID say; no frame is looked at."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from jaxreid.data.building import listed
from jaxreid.data.building.case_tree import (
    Splits,
    case_remarks,
    case_splits,
    mark_cases,
    pids,
    read_cases,
    with_features,
)
from jaxreid.data.building.listed import Listing, Tracklet
from jaxreid.data.building.tree import Tree
from jaxreid.data.names import known
from jaxreid.data.schema import ATTRIBUTE_NOT_PROVIDED, ATTRIBUTE_UNKNOWN, NUM_ATTRIBUTES

from . import CASES
from .published import COUNTS

EXPECTED = """expected:
  DIR/train/<identity>/<tracklet>/P0001T230811A1C2E1K1F001.jpg …
  DIR/case1_aerial_to_ground/query/<identity>/<tracklet>/…   DIR/case1_aerial_to_ground/gallery/…
  DIR/case2_ground_to_aerial/query/<identity>/<tracklet>/…   DIR/case2_ground_to_aerial/gallery/…
  DIR/attributes/**.csv                                      (optional)"""
PLATFORMS = {0: "cctv", 1: "cctv", 2: "wearable", 3: "wearable", 4: "uav", 5: "uav"}  # by camera
ALTITUDES = (15, 30, 80, 120)  # metres
ATTRIBUTES = (
    "gender", "age", "height", "body_volume", "ethnicity", "hair_color", "hairstyle", "beard", "moustache", "glasses",
    "head_accessories", "upper_body_clothing", "lower_body_clothing", "footwear", "accessories",
)  # fmt: skip
_NAME = re.compile(r"P(?P<person>\d+)T\d+A(?P<altitude>\d+)C(?P<camera>[0-5])E\d+K\d+F\d+\.jpg")


def list_dataset(source: Path, variant: str, max_frames: int = 0) -> Listing:
    """The tracklets of a variant's folders, by identity and tracklet name, thinned at once.

    Raises:
      DataSetError: a directory is missing, a folder is not named by an identity, or an attribute table is not one.
    """
    tree = Tree("ag_vpreid", source)
    attributes = _Attributes(source, tree)
    reader = _Reader(tree, attributes.by_identity)
    named = case_splits(variant, CASES)
    splits = read_cases(tree, variant, CASES, reader.describe, max_frames, EXPECTED)
    listed.refuse("ag_vpreid", source, tree.errors)
    for query, gallery in named.values():
        splits[gallery] = _mark_distractors(splits[query], splits[gallery])
    splits = mark_cases(splits, named)
    altitudes = sorted(reader.altitudes)
    warnings = [*tree.warnings, *attributes.warnings, *case_remarks(splits, named)]
    if not reader.altitudes <= set(ALTITUDES):
        warnings.append(f"altitudes are codes ({', '.join(map(str, altitudes))}), not metres, as printed in the names")
    if reader.renamed:
        count, first = len(reader.renamed), reader.renamed[0]
        warnings.append(f"{count} tracklet folders hold frames that name another person, e.g. {first}")
    return Listing(
        splits=splits,
        digest=f"{tree.digest}{attributes.digest}",
        differences=_differences(tree, reader, splits, named),
        warnings=warnings,
        facts={
            "attribute_names": ATTRIBUTES,
            "altitudes": altitudes,
            "cases": {f"case{number}": CASES[number].partition("_")[2] for number in named},
        },
        faults=tree.faults,
    )


class _Reader:
    """Describes tracklets by the names of their frames."""

    def __init__(self, tree: Tree, attributes: Mapping[int, list[int]]) -> None:
        self.tree, self.attributes = tree, attributes
        self.altitudes: set[int] = set()
        self.mixed: list[str] = []  # folders with frames of several people or cameras
        self.renamed: list[str] = []  # folders whose frames name another person

    def describe(self, pid: int, folder: str, names: list[str]) -> Tracklet | None:
        matches = {name: _NAME.fullmatch(name) for name in names}
        self.tree.faults += [
            (f"{folder}/{name}", "is not named like P0001T230811A1C2E1K1F001.jpg, camera 0 to 5")
            for name, match in matches.items()
            if match is None
        ]
        facts = [tuple(map(int, match.group("person", "camera", "altitude"))) for match in matches.values() if match]
        if not facts:
            self.tree.missing.append(f"{self.tree.source / folder}: holds no frame with a name that can be read")
            return None
        person, camera, altitude = facts[0]
        if len({fact[:2] for fact in facts}) > 1:
            self.mixed.append(folder)
        if person != pid:
            self.renamed.append(folder)
        platform = PLATFORMS[camera]
        if platform == "uav":
            self.altitudes.add(altitude)
        return Tracklet(
            tracklet_id=folder,
            pid=pid,
            camera=camera,
            cam_name=f"C{camera}",
            modality="rgb",
            frames=tuple(f"{folder}/{name}" for name, match in matches.items() if match),
            features={
                "platform": platform,
                "altitude": float(altitude) if platform == "uav" else float("nan"),
                "attributes": self.attributes.get(pid, [ATTRIBUTE_NOT_PROVIDED] * NUM_ATTRIBUTES),
            },
        )


class _Attributes:
    """The tables in `attributes`: a row per identity, by the names of their columns; codes are kept as they are."""

    def __init__(self, source: Path, tree: Tree) -> None:
        self.by_identity: dict[int, list[int]] = {}
        self.warnings: list[str] = []
        content = hashlib.sha256()
        tables = sorted((source / "attributes").rglob("*.csv"))
        for path in tables:
            content.update(path.read_bytes())
            rows = list(csv.DictReader(listed.read_lines(path)))
            lacking = [column for column in ("id", *ATTRIBUTES) if rows and column not in rows[0]]
            if lacking:
                tree.errors.append(f"{path}: lacks the columns {', '.join(lacking)}")
                continue
            for number, row in enumerate(rows, start=2):
                self._add(f"{path}, row {number}", row, tree.errors)
        if not tables:
            self.warnings.append(f"there are no attributes: {source / 'attributes'} holds no table")
        self.digest = content.hexdigest()[:4] if tables else ""

    def _add(self, where: str, row: Mapping[str, str | None], errors: list[str]) -> None:
        cells = {column: known(row[column]) for column in ("id", *ATTRIBUTES)}
        values = listed.integers(cell or str(ATTRIBUTE_UNKNOWN) for cell in cells.values())
        if values is None or not cells["id"]:
            errors.append(f"{where}: is not a row of whole numbers, an id first")
            return
        padded = values[1:] + [ATTRIBUTE_NOT_PROVIDED] * (NUM_ATTRIBUTES - len(ATTRIBUTES))
        if self.by_identity.setdefault(values[0], padded) != padded:
            self.warnings.append(f"{where}: other attributes of identity {values[0]} than in an earlier table")


def _mark_distractors(query: list[Tracklet], gallery: list[Tracklet]) -> list[Tracklet]:
    """People whom nobody looks for; where the identities of a test are hidden, there is nothing to tell."""
    asked = pids(query)
    if not asked & pids(gallery):
        return gallery
    return [with_features(tracklet, is_distractor=tracklet.pid not in asked) for tracklet in gallery]


def _differences(tree: Tree, reader: _Reader, splits: Splits, named: Mapping[int, tuple[str, str]]) -> list[str]:
    figures = {"train": COUNTS["train"]}
    for number, (query, gallery) in named.items():
        figures |= {query: COUNTS[f"query_case{number}"], gallery: COUNTS[f"gallery_case{number}"]}
    lines = tree.missing + listed.differences(figures, splits)
    if reader.mixed:
        count, first = len(reader.mixed), reader.mixed[0]
        lines.append(f"{count} tracklet folders hold frames of several people or cameras, e.g. {first}")
    tested = [tracklet for names in named.values() for name in names for tracklet in splits[name]]
    return lines + listed.shared_identities({"train": splits["train"], "gallery": tested})
