"""What a method makes of frames, to look at: for a few test tracklets of each modality, their frames and `Method.strip`
of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxreid.data.clips import ClipPlan, plan_tracklets
from jaxreid.data.split import Split, modality_name
from jaxreid.devices import parallel
from jaxreid.evaluation.extract import Extractor
from jaxreid.methods.method import Method
from jaxreid.run.model import Run

TRACKLETS = 2  # of each modality


@dataclasses.dataclass(frozen=True)
class Strip:
    """A clip of a test tracklet.

    Attributes:
      name, modality: of the tracklet.
      frames: T frames, encoded as the data set holds them.
      rows: name → pictures f32[T, h, w, 3] in 0…1, one of each frame.
    """

    name: str
    modality: str
    frames: tuple[bytes, ...]
    rows: dict[str, np.ndarray]


def method_strips(run: Run, variables: Any, memory: Any) -> tuple[Strip, ...]:
    """Strips of the run's method, none where it has none or where there are no pictures. Every process calls it."""
    method = run.method
    if type(method).strip is Method.strip or run.dataset.train.skeletons:
        return ()
    chosen = [(split, *plan) for split in run.dataset.test_splits for plan in _of_each_modality(run, split)]
    seen: dict[str, int] = {}
    size = -(-TRACKLETS // run.mesh.size) * run.mesh.size
    extractor = Extractor(method.strip, run.pixels, run.mesh, size)
    run.compiled["strip_step"] = extractor.step
    found: list[Strip] = []
    for split, modality, plan in chosen:
        plan = plan.first(TRACKLETS - seen.get(modality, 0))
        seen[modality] = seen.get(modality, 0) + len(plan)
        if not len(plan):
            continue
        reader, extras = run.reader(split), run.extras(split, "test")
        features = extractor(variables, memory, split, plan, run.loading.for_tests(), reader, extras)
        arrays = parallel.to_host(features.arrays)
        for clip, (row, frames) in enumerate(zip(plan.tracklet, plan.frames, strict=True)):
            encoded = reader.encoded(int(row))
            rows = {name: x[clip] for name, x in arrays.items()}
            found.append(Strip(split.labels.names[row], modality, tuple(encoded[i] for i in frames), rows))
    return tuple(strip for strip in found if strip.rows)


def _of_each_modality(run: Run, split: Split) -> list[tuple[str, ClipPlan]]:
    """Evenly spaced tracklets of every modality of a split, a clip of each."""
    plan = plan_tracklets(split.table.length, "chunk_first", run.method.evaluation().seq_len)
    found = []
    for code in np.unique(split.table.modality):
        rows = np.flatnonzero(split.table.modality == code)
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, TRACKLETS + 2).astype(int)[1:-1])]
        found.append((modality_name(int(code)), ClipPlan(*(column[rows] for column in vars(plan).values()))))
    return found
