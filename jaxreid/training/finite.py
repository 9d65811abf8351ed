"""The watch for NaN and infinity: training ends a few steps after the first loss that is not finite, and no state that
holds such a number is saved.

Nothing here runs inside a step. Losses are looked at when they have long been computed, always those of the same step
on every process, so that all of several processes end alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.config import flatten
from jaxreid.devices import processes
from jaxreid.devices.parallel import to_host
from jaxreid.errors import UserError, some
from jaxreid.methods.method import Features, Stage
from jaxreid.training.steps import total_names

LAG = 4  # steps from a step to the look at its losses; so many are under way on the device meanwhile


class Watch:
    """Looks at what the steps of a stage compute.

    Args:
      config: the run's; messages name its keys.
      stage: the stage.
    """

    def __init__(self, config: Any, stage: Stage) -> None:
        self.config, self.stage, self.totals = config, stage, total_names(stage)

    def after_step(self, epoch: int, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Looks at the losses of the step `LAG` before the last; `metrics` are those of all steps of the epoch so far.

        Raises:
          UserError: one is not finite; the message names epoch, step and losses.
        """
        if len(metrics) > LAG:
            self._losses(epoch, len(metrics) - LAG, metrics[-1 - LAG])

    def after_epoch(self, epoch: int, metrics: Sequence[Mapping[str, Any]], state: Any) -> None:
        """Looks at the losses of the last steps, and at the state: the last updates may overflow without a trace in
        any loss.

        Raises:
          UserError: a number is not finite.
        """
        for number in range(max(len(metrics) - LAG, 0), len(metrics)):
            self._losses(epoch, number + 1, metrics[number])
        if broken := not_finite(state):
            where = f"epoch {epoch + 1} of stage {self.stage.name!r}, after its last step"
            raise UserError(f"{where}: not finite in the state are {some(broken)}. {self.remedy()}")

    def after_extraction(self, epoch: int, features: Features, names: Sequence[str]) -> None:
        """Looks at the features of the training split that an epoch begins with; `names` are those of its tracklets.

        Raises:
          UserError: one is not finite; the message names the tracklets.
        """
        if not not_finite(features.arrays):
            return
        arrays, tracklet, valid = to_host((features.arrays, features.tracklet, features.valid))
        bad = np.unique(np.concatenate([tracklet[valid & broken_rows(rows)] for rows in jax.tree.leaves(arrays)]))
        if len(bad):  # what only fills a batch does not count
            where = f"epoch {epoch + 1} of stage {self.stage.name!r}, before its first step"
            listed = some([names[int(row)] for row in bad])
            raise UserError(f"{where}: features of {len(bad)} tracklets are not finite: {listed}. {self.remedy()}")

    def _losses(self, epoch: int, number: int, found: Mapping[str, Any]) -> None:
        if np.isfinite([found[name] for name in self.totals]).all():
            return
        losses = [f"{name} is {float(value)}" for name, value in found.items() if not np.isfinite(value)]
        where = f"epoch {epoch + 1} of stage {self.stage.name!r}, step {number} of it"
        raise UserError(f"{where}: {', '.join(losses)}. {self.remedy()}")

    def remedy(self) -> str:
        """What to try, by the names of the config."""
        config = self.config.to_dict()
        used = {group.lr for update in self.stage.updates for group in update.optimizer.groups} - {0.0}
        keys = [f"config.{key}={value:g}" for key, value in flatten(config) if key.endswith(".lr") and value in used]
        tries = ["a lower " + (" or ".join(keys) or "learning rate")]
        if config["precision"] != "float32":
            tries.append(f"config.precision=float32 (it is {config['precision']})")
        weights = config.get("backbone", {}).get("checkpoint")
        return (
            f"Try {', or '.join(tries)}, in another --workdir; look at the frames "
            "(jaxreid show)"
            + (f" and at the starting weights (config.backbone.checkpoint={weights})" if weights else "")
            + ". Checkpoints of the epochs before stay"
        )


def broken_rows(x: np.ndarray) -> np.ndarray:
    """bool[N], the rows of [N, …] that hold NaN or infinity."""
    return np.logical_not(np.isfinite(x.reshape(len(x), -1)).all(axis=1))


def not_finite(tree: Any) -> list[str]:
    """Paths of the arrays that hold NaN or infinity. Every process looks at what it holds, and all find the same."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    leaves = [(path, leaf) for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    broken = map(any, zip(*processes.gather([_is_broken(leaf) for _, leaf in leaves]), strict=True))
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return [path for path, bad in zip(paths, broken, strict=True) if bad]


def _is_broken(x: jax.Array) -> bool:
    return not all(np.isfinite(shard.data).all() for shard in x.addressable_shards if not shard.replica_id)
