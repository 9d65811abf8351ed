"""Clip features become tracklet features, while the clips arrive: no clip is kept."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import unit_rows
from jaxreid.devices import parallel
from jaxreid.errors import UserError, some
from jaxreid.methods.method import POOLS, Features
from jaxreid.retrieval.distances import Parts


class TrackletPool:
    """The mean of each tracklet's clips, for every named feature, on the host.

    An array [B, …] keeps its axes past the first; with `normalize` its last one becomes a unit vector. Of `Parts` the
    features count as much as they are visible, and visibilities are averaged. Any other pytree is for a distance of a
    method's own: its arrays are averaged as they are.

    Args:
      wanted: i64[N], sorted rows of the split; no other comes.
      names: of these tracklets.
      pool: one of `POOLS`: "after" averages the clips' normalized features, "before" those as they are.
      normalize: whether the mean is normalized.
    """

    def __init__(self, wanted: np.ndarray, names: Sequence[str], pool: str = "after", normalize: bool = True) -> None:
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r} is not one of {', '.join(POOLS)}")
        self.wanted, self.names = wanted, names
        self.clips_too, self.normalize = normalize and pool == "after", normalize
        self.count = np.zeros(len(wanted), np.int64)
        self.total: dict[str, Any] = {}
        self.broken: dict[str, set[int]] = {}

    def add(self, features: Features) -> None:
        """Takes the features of some clips; every process of a run calls it alike."""
        weighed = _weighed(features.arrays, self.clips_too)
        (clips, bad), tracklet, valid = parallel.to_host((weighed, features.tracklet, features.valid))
        rows = np.flatnonzero(valid)
        place = np.searchsorted(self.wanted, tracklet[rows])
        np.add.at(self.count, place, 1)
        for name, found in clips.items():
            leaves = [leaf[rows] for leaf in jax.tree.leaves(found)]
            self.broken.setdefault(name, set()).update(place[bad[name][rows]].tolist())
            if name not in self.total:
                self.total[name] = jax.tree.map(self._zeros, found)
            for total, clip in zip(jax.tree.leaves(self.total[name]), leaves, strict=True):
                for at, values in zip(place, clip, strict=True):
                    total[at] += values

    def _zeros(self, clips: np.ndarray) -> np.ndarray:
        return np.zeros((len(self.wanted), *clips.shape[1:]), np.float32)

    def finish(self) -> dict[str, Any]:
        """Features by name, arrays f32[N, …].

        Raises:
          UserError: one is not finite, or zero where it must have a direction; the message names the tracklets.
        """
        return {name: self._finished(name, self.total.pop(name)) for name in tuple(self.total)}

    def _finished(self, name: str, total: Any) -> Any:
        self._refuse(name, "not finite", sorted(self.broken[name]))
        clips = np.maximum(self.count, 1).astype(np.float32)
        if isinstance(total, Parts):
            seen = np.where(total.visibility > 0, total.visibility, 1.0)[..., None]
            features = np.asarray(unit_rows(total.features)) if self.normalize else total.features / seen
            return Parts(features, total.visibility / clips[:, None])
        if self.normalize and isinstance(total, np.ndarray):
            nothing = ~total.any(axis=tuple(range(1, total.ndim)))
            self._refuse(name, "zero, which has no direction", np.flatnonzero(nothing).tolist())
            return np.asarray(unit_rows(total))
        for leaf in jax.tree.leaves(total):  # in place: there is no room for each twice
            leaf /= clips.reshape(-1, *(1,) * (leaf.ndim - 1))
        return total

    def _refuse(self, feature: str, what: str, rows: list[int]) -> None:
        if rows:
            listed = some([self.names[row] for row in rows])
            raise UserError(
                f"{feature!r} of {len(rows)} of {len(self.names)} tracklets is {what}: {listed}. Look at their frames "
                "(jaxreid show); where they are many, the weights are broken: train again with a "
                "lower learning rate or config.precision=float32"
            )


@functools.partial(jax.jit, static_argnums=1)
def _weighed(features: dict[str, Any], unit: bool) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """What is summed over the clips of a tracklet; and which clips are not finite bool[B], by name."""

    def of(found: Any) -> Any:
        if isinstance(found, Parts):
            parts = unit_rows(found.features) if unit else found.features
            return Parts(parts * found.visibility[..., None], found.visibility)
        return unit_rows(found) if unit and isinstance(found, jax.Array) else found

    def broken(found: Any) -> jax.Array:  # before a norm, which may hide it
        leaves = [jnp.isfinite(leaf.reshape(len(leaf), -1)).all(axis=1) for leaf in jax.tree.leaves(found)]
        return ~jnp.stack(leaves).all(axis=0)

    return {name: of(x) for name, x in features.items()}, {name: broken(x) for name, x in features.items()}
