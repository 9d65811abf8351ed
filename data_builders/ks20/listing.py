"""Which sequences KS20 has, and which of them are probe and gallery; no frame is opened."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from jaxreid.data.building.listed import natural_key, shorten
from jaxreid.data.building.skeletons import SkeletonSequence

VIEWS = ("frontal", "left_diagonal", "left_lateral", "right_diagonal", "right_lateral")
EXPECTED = f"""expected:
  DIR/VIEW/gc1_body12_TIMESTAMP_….txt …   with VIEW {", ".join(VIEWS)};
  one frame per file, 25 lines `joint, x, y, z`                            (or all of it in DIR/KS20)"""
_NAME = re.compile(r"gc(\d+)_body(\d+)_(\d+)(?:_.*)?\.txt")


def list_sequences(root: Path, seed: int, errors: list[str]) -> tuple[list[SkeletonSequence], dict[str, Any]]:
    """A sequence per view, person and recording (gc1, gc2, gc3), and the drawn recordings of each person as `drawn`.

    Of each person one recording is gallery and one is probe, the same in all views; the rest is training. They are
    drawn by a hash of seed, person and recording, which no library version changes.
    """
    found: dict[tuple[str, int, int], list[str]] = {}
    for view in VIEWS:
        for file in sorted((name for name in os.listdir(root / view) if name.endswith(".txt")), key=_time):
            match = _NAME.fullmatch(file)
            if match is None:
                errors.append(f"{root / view / file}: is not a name like gc1_body12_TIMESTAMP_….txt")
            else:
                found.setdefault((view, int(match[2]), int(match[1])), []).append(f"{view}/{file}")
    recordings: dict[int, set[int]] = {}
    for _, body, recording in found:
        recordings.setdefault(body, set()).add(recording)
    few = [f"body{body} has {len(has)} recordings, 3 are needed" for body, has in recordings.items() if len(has) < 3]
    if few:
        errors.append(f"{root}: a person needs a recording for each of training, probe and gallery:\n{shorten(few)}")
    drawn = {body: _draw(seed, body, has) for body, has in sorted(recordings.items()) if len(has) >= 3}
    sequences = []
    for (view, body, recording), files in sorted(found.items()):
        gallery, probe = drawn.get(body, (-1, -1))
        sequences.append(
            SkeletonSequence(
                f"{view}/body{body:02d}/gc{recording}",
                "gallery" if recording == gallery else "query" if recording == probe else "train",
                body,
                tuple(files),
                camera=VIEWS.index(view) + 1,
                cam_name=view,
            )
        )
    return sequences, {
        "seed": seed,
        "drawn": {
            str(body): {"gallery": f"gc{first}", "query": f"gc{second}"} for body, (first, second) in drawn.items()
        },
    }


def _draw(seed: int, body: int, recordings: set[int]) -> tuple[int, int]:
    """The recordings of a person that are gallery and probe."""

    def rank(recording: int) -> str:
        return hashlib.sha256(f"{seed} {body} {recording}".encode()).hexdigest()

    first, second = sorted(recordings, key=rank)[:2]
    return first, second


def _time(file: str) -> tuple:
    match = _NAME.fullmatch(file)
    return (int(match[3]) if match else -1, natural_key(file))
