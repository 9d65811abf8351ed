"""HiTPro with true pairs in place of mined ones, which bounds what mining can bring: method and config in one file.

    PYTHONPATH=benchmarks jaxreid train --config=benchmarks/hitpro_true_pairs.py:both --config.dataset.config=vvi_dev

Presets: `within` (look-alikes and stage 1 are told, stage 2 mines on what that gives), `cross` (stage 2 is told),
`both`. All else is the preset `walkers` of configs/hitpro.py. Identity labels are used, and the run says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxreid.config import Preset, compose, config_module, find_config
from jaxreid.dataset_info import DatasetInfo
from jaxreid.memory.association import associate_cross, associate_within
from jaxreid.memory.prototypes import PrototypeMemory
from jaxreid.methods import hitpro
from jaxreid.values import some_of

LISTS = ("within", "cross")
MORE = 16  # entries of a list: a person's true matches in all cameras


class HiTProTruePairs(hitpro.HiTPro):
    """See the module's docstring."""

    uses_identity = True
    values: ClassVar[Mapping[str, Any]] = {**hitpro.VALUES, "true_pairs": some_of(LISTS)}

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        assert info.labels is not None
        person = np.full(len(self.slot_camera), -1)
        person[self.slot] = info.labels.pid
        same = (person[:, None] == person) & (person >= 0)[:, None] & ~np.eye(len(person), dtype=bool)
        camera, modality = self.slot_camera, self.camera_modality[self.slot_camera]
        one_camera, one_modality = camera[:, None] == camera, modality[:, None] == modality
        rules = {"look_alike": one_camera, "within": one_modality & ~one_camera, "cross": ~one_modality}
        self.true = {name: _lists(same & rule) for name, rule in rules.items()}

    def align(self, prototypes: PrototypeMemory, kappa: jax.Array) -> PrototypeMemory:
        told, config = self.config.true_pairs, self.association
        found = associate_within(prototypes, kappa, config)
        if "within" in told:
            found = self._told(self._told(found, "within"), "look_alike")
        found = associate_cross(found, kappa, config)
        return self._told(found, "cross") if "cross" in told else found

    def _told(self, prototypes: PrototypeMemory, name: str) -> PrototypeMemory:
        true = self.true[name]
        wide = getattr(prototypes, f"{name}_index")
        index = np.full(wide.shape, -1, np.int32)
        index[: len(true), : true.shape[1]] = true[:, : wide.shape[1]]
        changes: dict[str, Any] = {f"{name}_index": jnp.asarray(index)}
        if name in LISTS:
            known = index >= 0
            changes[f"{name}_weight"] = jnp.asarray(known / np.maximum(known.sum(1, keepdims=True), 1), jnp.float32)
            changes[f"{name}_floor"] = jnp.full_like(getattr(prototypes, f"{name}_floor"), 2.0)  # no doubt is left
        return prototypes.replace(**changes)


def _lists(pairs: np.ndarray) -> np.ndarray:
    """bool[K, K] → i32[K, P], the columns that are true, −1 behind them."""
    order = np.argsort(~pairs, axis=1, kind="stable")[:, : max(int(pairs.sum(1).max()), 1)]
    return np.where(np.take_along_axis(pairs, order, axis=1), order, -1).astype(np.int32)


METHOD = HiTProTruePairs

HITPRO = config_module(Path(find_config("hitpro")))
LONG = {f"association.{name}": MORE for name in ("within_positives", "cross_positives", "num_look_alikes")}
PRESETS = {
    name: Preset("walkers_clip", "walkers", {**HITPRO.WALKERS, **LONG, "true_pairs": told})
    for name, told in {"both": LISTS, "within": LISTS[:1], "cross": LISTS[1:]}.items()
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "hitpro_true_pairs", preset, {**HITPRO.VALUES, "true_pairs": LISTS}, PRESETS)
