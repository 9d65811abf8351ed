"""What a method finds in test clips beside their features (`Method.examine`): figures over a sample of tracklets, and
pictures of a few."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxreid.devices import parallel
from jaxreid.evaluation.extract import make_extractor
from jaxreid.methods.method import Examined
from jaxreid.retrieval.breakdown import REPLICATES, SEED, interval
from jaxreid.run.model import Run

TRACKLETS, STRIPS = 128, 4  # at most: of a split that are looked at; of a modality and platform that are shown


@dataclasses.dataclass(frozen=True)
class Strip:
    """Pictures u8[h, w, 3] by name, of one frame of a tracklet."""

    name: str
    pictures: dict[str, np.ndarray]


def examination(
    run: Run, wanted: Sequence[np.ndarray], variables: Any, memory: Any
) -> tuple[list[dict[str, Any]], tuple[Strip, ...]]:
    """(a record for each figure: its mean over tracklets, with the interval over persons, and strips of pictures of
    different persons), of the first clip of tracklets that the method finds something in, among these rows of each
    test split i64[N]."""
    options, extractor = run.method.evaluation(), None
    figures: list[dict[str, np.ndarray]] = []
    persons: list[np.ndarray] = []
    strips: dict[int, Strip] = {}
    kinds: Counter[tuple[int, int]] = Counter()  # strips of them
    for split, tracklets in zip(run.dataset.test_splits, wanted, strict=True):
        if not len(tracklets):
            continue
        plan = options.plan(split.table.length)
        first = np.flatnonzero(np.diff(plan.tracklet, prepend=-1))[tracklets]
        chosen = np.unique(np.linspace(0, len(first) - 1, TRACKLETS).round().astype(int))
        plan = plan.rows(first[chosen])
        extractor = extractor or make_extractor(run, "examine_step", _examining(run))
        arguments = run.loading.for_tests(), run.reader(split), run.extras(split, "test")
        for clips in extractor.each(variables, memory, split, plan, *arguments):
            found = parallel.to_host(clips)
            examined: Examined = found.arrays["examined"]
            rows = np.flatnonzero(found.valid & (examined.valid > 0))
            modality, platform = split.table.modality[found.tracklet], split.table.platform[found.tracklet]
            pid = split.labels.pid[found.tracklet[rows]]
            figures.append({name: x[rows] for name, x in examined.figures.items()})
            persons.append(pid)
            for row, person in zip(rows, pid.tolist(), strict=True):
                kind = modality[row], platform[row]
                if examined.captions and person not in strips and kinds[kind] < STRIPS:
                    kinds[kind] += 1
                    pictures = {c: _bytes(x[row]) for c, x in zip(examined.captions, examined.pictures, strict=True)}
                    strips[person] = Strip(split.labels.names[found.tracklet[row]], pictures)
    if not sum(map(len, persons)):
        return [], ()
    together = {name: np.concatenate([each[name] for each in figures]) for name in figures[0]}
    person = np.concatenate(persons)
    records = [{"name": name, **mean_over(x, person), "tracklets": len(x)} for name, x in together.items()]
    return records, tuple(strips.values())


def _examining(run: Run) -> Any:
    return lambda variables, memory, batch: {"examined": run.method.examine(variables, memory, batch)}


def _bytes(picture: np.ndarray) -> np.ndarray:
    return np.round(255.0 * np.clip(picture, 0.0, 1.0)).astype(np.uint8)


def mean_over(x: np.ndarray, person: np.ndarray) -> dict[str, Any]:
    """Mean of f32[n], and the interval of the bootstrap over persons, each drawn with all that is of them."""
    _, code = np.unique(person, return_inverse=True)
    total, count = np.bincount(code, x), np.bincount(code)
    drawn = np.random.default_rng(SEED).integers(0, len(total), (REPLICATES, len(total)))
    low, high = interval(total[drawn].sum(1) / count[drawn].sum(1))
    return {"mean": float(x.mean()), "interval": [float(low), float(high)]}
