"""Free controls: what the features that training starts from score, as they are and after changes without training.

Whoever reports a gain has to be above each of them. Centring uses the statistics of test tracklets, per camera also
which camera saw them: what knows nothing of them is compared with such a control as with a bound, and the trained
features are scored centred, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import unit_rows
from jaxreid.data.batch import Batch
from jaxreid.evaluation.extract import make_extractor
from jaxreid.retrieval.distances import OF_ROWS, Distance
from jaxreid.shapes import Array, Float

if TYPE_CHECKING:
    from jaxreid.evaluation.evaluator import Evaluator

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


def free_controls(evaluator: Evaluator, variables: Any, memory: Any) -> Iterator[Control]:
    """The tower's own feature, and the same with the crop's margins masked; the headline's (where it has a neck, its
    statistics were calibrated on training clips) and the method's others; between modalities the tower's without
    margins and the headline's also centred per modality and per camera of the test set."""
    run, options = evaluator.run, evaluator.options
    features = evaluator.features(variables, memory)
    calibrated = "calibrated" if run.method.stages()[0].calibrate else "untrained"
    headline = "batch-norm calibrated" if calibrated == "calibrated" else "untrained feature"
    names = {TOWER: "untouched tower", options.headline: headline}
    known = next(iter(features.values()))
    masked: dict[str, Any] | None = None
    for name in sorted(known, key=lambda name: list(names).index(name) if name in names else len(names)):
        # What is no output is a plain vector, which the distance of outputs may not be made for.
        other = None if name in options.outputs or options.distance in OF_ROWS else "cosine"
        yield Control(names.get(name, name), of_output(features, name), other)
        if name == TOWER and run.method.sees_pictures:
            masked = of_output(_without_margins(evaluator, variables, memory), TOWER)
            yield Control("untouched tower, margins masked", masked, other)
    yield from centred_controls(evaluator, of_output(features, options.headline), calibrated)
    yield from centred_controls(evaluator, masked or {}, "margins masked")


def centred_controls(evaluator: Evaluator, features: dict[str, Any], word: str) -> Iterator[Control]:
    """Features without the mean of each modality, and of each camera, of the test set; between modalities alone."""
    plain = bool(features) and all(isinstance(x, np.ndarray) for x in features.values())
    if plain and evaluator.cases[0].protocol.other_modality:
        for column in ("modality", "camera"):
            yield Control(f"{word}, centred per {column}", _centred(evaluator, features, column))


def _centred(evaluator: Evaluator, features: dict[str, np.ndarray], column: str) -> dict[str, np.ndarray]:
    """Features with the mean of all test tracklets of the same modality (or camera) taken out."""
    group = {split.name: getattr(split.table, column) for split in evaluator.run.dataset.test_splits}
    centred = {name: rows.copy() for name, rows in features.items()}
    for code in np.unique(np.concatenate(list(group.values()))):
        rows = np.concatenate([features[name][group[name] == code] for name in features])
        for name in features if len(rows) > 1 else ():  # one alone would become zero
            centred[name][group[name] == code] -= rows.mean(0)
    normalize = evaluator.options.normalize
    return {name: np.asarray(unit_rows(rows)) if normalize else rows for name, rows in centred.items()}


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


def _without_margins(evaluator: Evaluator, variables: Any, memory: Any) -> dict[str, dict[str, Any]]:
    """The tower's features of test tracklets whose frames have no margins."""
    method = evaluator.run.method

    def embed(variables: Any, memory: Any, batch: Batch) -> dict[str, Any]:
        found = method.embed(variables, memory, batch.replace(frames=without_margins(batch.frames)))
        return {TOWER: found[TOWER]}

    extractor = make_extractor(evaluator.run, "margins_step", embed, evaluator.options.flip)
    return evaluator.features(variables, memory, extractor)
