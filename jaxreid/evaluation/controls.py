"""Free controls: what the features that training starts from score, as they are and after changes without training.

Whoever reports a gain has to be above each of them. Centring uses the statistics of test tracklets, per camera also
which camera saw them: what knows nothing of them is compared with such a control as with a bound, and the trained
features are scored centred, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import unit_rows
from jaxreid.data.batch import Batch
from jaxreid.data.split import Split
from jaxreid.evaluation.extract import Extractor, make_extractor
from jaxreid.methods.method import Evaluation
from jaxreid.retrieval.distances import OF_ROWS, Distance
from jaxreid.run.model import Run
from jaxreid.shapes import Array, Float

TOWER = "tower"  # what `Method.embed` calls its frames' mean in front of all that is new
# The ellipse in which a person stands, as parts of the crop's height and width, and how soft its edge is.
ELLIPSE = (1.0, 0.7)
EDGE = 0.15


@dataclasses.dataclass(frozen=True)
class Control:
    """Features to score: split name → f32[N, …]; `distance` where it is not the run's."""

    name: str
    features: dict[str, Any]
    distance: Distance | None = None


def of_output(features: Mapping[str, Mapping[str, Any]], output: str) -> dict[str, Any]:
    """Split name → one of the features."""
    return {split: arrays[output] for split, arrays in features.items()}


def free_controls(
    run: Run, options: Evaluation, features_by: Callable[[Extractor | None], Any], across: bool
) -> Iterator[Control]:
    """The tower's own feature, and the same with the crop's margins masked; the headline's (where it has a neck, its
    statistics were calibrated on training clips) and the method's others; between modalities the tower's without
    margins and the headline's also centred per modality and per camera of the test set.

    Args:
      features_by: split name → feature name → features of test tracklets, by an extractor, None = by `Method.embed`.
      across: whether a query is compared with the other modality.
    """
    features = features_by(None)
    calibrates = run.method.stages()[0].calibrate
    names = {TOWER: "untouched tower", options.headline: "batch-norm calibrated" if calibrates else "untrained feature"}
    known: list[str] = list(next(iter(features.values())))
    masked: dict[str, Any] = {}
    # What is no output is a plain vector, which the distance of outputs may not be made for.
    of_vectors = None if options.distance in OF_ROWS else "cosine"
    for name in sorted(known, key=lambda name: list(names).index(name) if name in names else len(names)):
        distance = None if name in options.outputs else of_vectors
        yield Control(names.get(name, name), of_output(features, name), distance)
        if name == TOWER and run.method.sees_pictures:
            masked = of_output(features_by(_masking(run, options)), TOWER)
            yield Control("untouched tower, margins masked", masked, of_vectors)
    if across:
        word = "calibrated" if calibrates else "untrained"
        splits = run.dataset.test_splits
        yield from centred_controls(of_output(features, options.headline), splits, word, options.normalize)
        yield from centred_controls(masked, splits, "margins masked", options.normalize, of_vectors)


def centred_controls(
    features: dict[str, Any],
    splits: Sequence[Split],
    word: str,
    normalize: bool,
    distance: Distance | None = None,
) -> Iterator[Control]:
    """Features without the mean of each modality, and of each camera, of the test set; of arrays alone."""
    if features and all(isinstance(x, np.ndarray) for x in features.values()):
        for column in ("modality", "camera"):
            group = {split.name: getattr(split.table, column) for split in splits}
            centred = _centred(features, group)
            if normalize:
                centred = {name: np.asarray(unit_rows(rows)) for name, rows in centred.items()}
            yield Control(f"{word}, centred per {column}", centred, distance)


def _centred(features: dict[str, np.ndarray], group: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Features with the mean of all test tracklets of the same group taken out."""
    centred = {name: rows.copy() for name, rows in features.items()}
    for code in np.unique(np.concatenate(list(group.values()))):
        rows = np.concatenate([features[name][group[name] == code] for name in features])
        for name in features if len(rows) > 1 else ():  # one alone would become zero
            centred[name][group[name] == code] -= rows.mean(0)
    return centred


def _masking(run: Run, options: Evaluation) -> Extractor:
    """Of the tower's features of frames whose margins are masked."""
    method = run.method

    def embed(variables: Any, memory: Any, batch: Batch) -> dict[str, Any]:
        found = method.embed(variables, memory, batch.replace(frames=without_margins(batch.frames)))
        return {TOWER: found[TOWER]}

    return make_extractor(run, "margins_step", embed, options.flip)


def without_margins(frames: Float[Array, "*clip height width 3"]) -> Float[Array, "*clip height width 3"]:
    """Normalized frames, of which only what lies in a soft ellipse is left, as its distance from the mean colour around
    it: a person stands in the middle of a crop, and around it is the place."""
    height, width = frames.shape[-3:-1]
    y = (jnp.arange(height) + 0.5) / height * 2 - 1
    x = (jnp.arange(width) + 0.5) / width * 2 - 1
    radius = jnp.hypot(y[:, None] / ELLIPSE[0], x / ELLIPSE[1])
    inside = jax.nn.sigmoid((1 - radius) / EDGE)[..., None]
    pixels = frames.astype(jnp.float32)
    colour = (pixels * (1 - inside)).sum((-3, -2), keepdims=True) / (1 - inside).sum()
    return ((pixels - colour) * inside).astype(frames.dtype)
