"""Files that other codes keep keypoints, 3-D joints and captions in: one JSON file per frame, or JSON lines.

`jaxreid import-sidecar` makes sidecars of them (docs/sidecars.md).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxreid.data.building import listed
from jaxreid.data.names import known, nfc
from jaxreid.errors import DataSetError, UserError


@dataclasses.dataclass(frozen=True)
class FrameFormat:
    """One JSON file per frame with an array of known shape.

    Attributes:
      suffix: what the file has in place of the image's.
      key: where the array stands in a JSON object; None: the file is the array.
      shape: of the array.
      meta: what the sidecar notes of it.
      pixels: whether its first two columns are pixels, 0 at the centre of the first: in sidecars that one is 0.5.
    """

    suffix: str
    key: str | None
    shape: tuple[int, ...]
    meta: Mapping[str, Any]
    pixels: bool = False

    def read(self, path: Path) -> np.ndarray:
        """The array of a frame, f32.

        Raises:
          OSError, ValueError: the file cannot be read or is of another form; says why.
        """
        content = json.loads(path.read_bytes())
        if self.key is not None:
            if not isinstance(content, dict) or self.key not in content:
                raise UserError(f"has no key {self.key!r}")
            content = content[self.key]
        try:
            values = np.asarray(content, np.float32)
        except TypeError as error:
            raise UserError(str(error)) from error
        if values.shape != self.shape:
            raise UserError(f"holds {list(values.shape)} numbers, not {list(self.shape)}")
        if not np.isfinite(values).all():
            raise UserError("holds numbers that are not finite")
        if self.pixels:
            values[values.any(axis=-1), :2] += 0.5  # 0, 0, 0 is a point that was not found
        return values


FRAME_FORMATS = {
    "joints3d": FrameFormat(
        ".json",
        "keypoints",
        (17, 3),
        {
            "model": "HMR2.0",
            "order": "Human3.6M-17",
            "units": "as the source gives them (HMR2.0: metres, camera frame)",
        },
    ),
    "keypoints": FrameFormat(
        ".pose",
        None,
        (17, 3),
        {
            "model": "OpenPifPaf",
            "order": "COCO-17",
            "columns": ["x", "y", "score"],
            "units": "pixels of the frame, the centre of the first pixel is 0.5; an undetected point is 0, 0, 0",
        },
        pixels=True,
    ),
}


class FrameFiles:
    """The files below `source` that belong to frames `a/b/c.jpg` of a data set.

    A folder `a/b` is looked for as `source`/a/b, without leading folders (`source`/b), and below one more folder
    (`source`/x/a/b, if only one x has it): data sets and sidecars name their frames from different levels of the tree.
    No two folders of the data set may be found in one. Names are compared in composed Unicode form.
    """

    def __init__(self, source: Path, suffix: str) -> None:
        self.source, self.suffix = source, suffix
        self._tops = sorted(entry.name for entry in os.scandir(source) if entry.is_dir())
        self._taken: dict[str, str] = {}
        self._find = functools.lru_cache(maxsize=256)(self._look_for)  # the frames of a folder come one after the other

    def path(self, frame: str) -> Path | None:
        """The file of a frame; None if there is none.

        Raises:
          DataSetError: there are several.
        """
        folder, _, name = frame.rpartition("/")
        directory, names = self._find(folder)
        file = names.get(nfc(f"{os.path.splitext(name)[0]}{self.suffix}"))
        return self.source / directory / file if file else None

    def _look_for(self, folder: str) -> tuple[str, dict[str, str]]:
        """The directory of a folder's files, and their names by composed form."""
        forms = dict.fromkeys([folder, nfc(folder), unicodedata.normalize("NFD", folder)])
        inner = [form.split("/", start)[start] for form in forms for start in range(folder.count("/") + 1)]
        outer = [f"{top}/{form}" for top in self._tops for form in forms]
        found = [directory for directory in inner if (self.source / directory).is_dir()][:1]
        found = found or [directory for directory in outer if (self.source / directory).is_dir()]
        if not found:
            return "", {}
        other = self._taken.setdefault(found[0], folder)
        problem = f"{found[0]} may be of {other} or of {folder}" if other != folder else ""
        if len(found) > 1:
            problem = f"frames of {folder} may be those of {' or '.join(found)}"
        if problem:
            raise DataSetError(f"{self.source}: {problem}; lay the files out as the frames of the data set are")
        return found[0], {nfc(name): name for name in os.listdir(self.source / found[0])}


_REFUSAL = re.compile(
    r"(i'?m|i am) (very )?(sorry|unable|not able)|sorry\b|i (can'?t|can ?not|won'?t)\b|unable to\b|"
    r"as an? (ai|language)\b|"
    r"(my )?apologies|i apologi[sz]e|there (is|are) no (person|people|one)\b|no (person|people) (is|are)\b"
)


def refuses_to_tell(text: str) -> bool:
    """Whether a model said that it does not describe anybody, in place of a caption."""
    return _REFUSAL.match(text.lower().replace("\u2019", "'")) is not None


@dataclasses.dataclass(frozen=True)
class Captions:
    """The captions of a file that are of a data set's tracklets."""

    texts: dict[str, list[str]]  # by tracklet id, in the order of the tracklets
    models: list[str]
    digest: str  # of the file
    missing: list[str]  # tracklets that have none
    remarks: list[str]  # what was left out

    @property
    def meta(self) -> dict[str, Any]:
        """What the sidecar notes of them."""
        model = ", ".join(self.models) or "unknown"
        return {"model": model, "file": self.digest, "missing_tracklets": len(self.missing)}


def read_captions(path: Path, dataset: str, tracklets: Sequence[tuple[str, int]]) -> Captions:
    """Captions from JSON lines, `{"tracklet": …, "caption": …}` with `pid`, `dataset`, `model` where they are known.

    A line without a tracklet is of every tracklet of its `pid`. White space is collapsed and Unicode composed (NFC); a
    `pid` of null, NaN or −1 is not known. Answers of a model that describes nobody ("I'm sorry, but …") are left out.

    Args:
      path: the file.
      dataset: name of the data set; lines that name another are refused.
      tracklets: id and pid of each tracklet of the data set.

    Raises:
      DataSetError: the file cannot be read, a line is of another form, or contradicts the data set; the message lists
        every place.
    """
    pids = dict(tracklets)
    of_person: dict[int, list[str]] = {}
    for tracklet, pid in tracklets:
        of_person.setdefault(pid, []).append(tracklet)
    forms = {nfc(tracklet): tracklet for tracklet in pids}
    found: dict[str, list[str]] = {}
    models: set[str] = set()
    errors: list[str] = []
    unknown: list[str] = []
    empty = refused = repeated = 0
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataSetError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = _entry(line, forms)
            problem = _problem(entry, dataset, pids)
        except ValueError as error:
            problem = f"is no JSON in UTF-8 ({error})"
        if problem:
            errors.append(f"{path}, line {number}: {problem}")
            continue
        named = entry["tracklet"]
        holders = of_person.get(entry["pid"], []) if named is None else [named] if named in pids else []
        if not holders:
            unknown.append(f"{named or entry['pid']} (line {number})")
        text = nfc(" ".join(entry["caption"].split()))
        empty += not text
        refusal = refuses_to_tell(text)
        refused += refusal
        models |= {str(entry["model"])} if entry.get("model") else set()
        for tracklet in holders if text and not refusal else []:
            texts = found.setdefault(tracklet, [])
            repeated += text in texts
            texts += [text] if text not in texts else []
    if errors:
        raise DataSetError(f"{path} cannot be used:\n{listed.shorten(errors)}")
    remarks = [
        f"{count} captions are {what} and are left out"
        for count, what in ((empty, "empty"), (refused, "refusals"), (repeated, "there already"))
        if count
    ]
    if unknown:
        remarks.append(
            f"{len(unknown)} captions are of tracklets that the set does not have, e.g. {', '.join(unknown[:3])}"
        )
    texts = {tracklet: found[tracklet] for tracklet in pids if tracklet in found}
    missing = [tracklet for tracklet in pids if tracklet not in found]
    return Captions(texts, sorted(models), listed.digest([path]), missing, remarks)


def _entry(line: bytes, forms: Mapping[str, str]) -> Any:
    """What a line holds, its tracklet as the data set writes it, without a pid that is not known."""
    entry = json.loads(line)
    if isinstance(entry, dict):
        tracklet = entry.get("tracklet")
        entry["tracklet"] = forms.get(nfc(tracklet), tracklet) if isinstance(tracklet, str) else tracklet
        entry["pid"] = entry.get("pid") if known(str(entry.get("pid"))) else None
    return entry


def _problem(entry: Any, dataset: str, pids: Mapping[str, int]) -> str | None:
    """What is wrong with a line of captions."""
    if not isinstance(entry, dict) or not isinstance(entry.get("caption"), str):
        return "is no object with a caption"
    tracklet, pid = entry["tracklet"], entry["pid"]
    if not isinstance(tracklet, str) and not (tracklet is None and isinstance(pid, int)):
        return "names neither a tracklet nor a pid"
    if entry.get("dataset", dataset) != dataset:
        return f"is of the data set {entry['dataset']!r}, not of {dataset!r}"
    shown = pids.get(tracklet or "")
    if None not in (pid, shown) and pid != shown:
        return f"says that {tracklet} shows identity {pid}, the data set says {shown}"
    return None
