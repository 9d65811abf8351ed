"""Training state on disk: written whole or not at all, restored onto any mesh, and only as it was saved.

The file format notices most of what is missing, and next to nothing of what has changed: of 60 single bits flipped
anywhere in a small checkpoint, 57 gave another array without an error (benchmarks/checkpoint.py). So every array is
saved with a digest.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxreid.errors import UserError
from jaxreid.parallel import barrier, to_host, with_shardings

STATE, META, SCORE, DIGESTS = "state", "meta", "score", "digests"


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read; the message names it and the reason."""


def digests(tree: Any) -> dict[str, int]:
    """Path → a number that changes with any single bit of an array, and is the same on every mesh.

    Σ (2i + 1)·bits of element i, modulo 2³²: a bit adds or takes away an odd number times a power of two, never 0.
    Every process sums what it holds on the host, where nothing has to be compiled for the shapes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = np.array([_sum(jnp.asarray(leaf)) for _, leaf in leaves], np.uint32)
    if jax.process_count() > 1:
        sums = to_host(sums)
        sums = sums.reshape(jax.process_count(), -1).sum(axis=0, dtype=np.uint32)
    return {jax.tree_util.keystr(path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


def _sum(x: jax.Array) -> int:
    """The sum for the parts of an array that are on this process, each of them once."""
    total = 0
    for shard in x.addressable_shards:
        if shard.replica_id:
            continue
        part = np.asarray(shard.data)
        bits = part.view(f"uint{8 * part.dtype.itemsize}")
        total += int(bits.sum(dtype=np.uint32))
        # i is the sum of every axis' coordinate times its stride, so sums over the other axes are enough.
        for axis, place in enumerate(shard.index):
            others = tuple(other for other in range(x.ndim) if other != axis)
            coordinate = np.arange(bits.shape[axis], dtype=np.uint32) + np.uint32(place.start or 0)
            along = bits.sum(axis=others, dtype=np.uint32)
            total += 2 * math.prod(x.shape[axis + 1 :]) * int(np.sum(coordinate * along, dtype=np.uint32))
    return total % 2**32


class Checkpoints:
    """Numbered checkpoints under a workdir; number n holds the state after n epochs of the whole run.

    Writing goes on in the background. Frozen weights are written once per stage beside them. Both are written under
    another name and renamed, so that what carries the final name is whole. What is restored is compared with the
    digests of what was saved.

    Args:
      workdir: the run's directory.
      keep: how many of the newest to keep.
      keep_best: also keep the one with the highest score.
    """

    def __init__(self, workdir: Path, keep: int = 2, keep_best: bool = False) -> None:
        self.directory = Path(workdir).absolute() / "checkpoints"
        kept: list[Any] = [preservation_policy.LatestN(keep)]
        if keep_best:
            kept.append(preservation_policy.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(kept),
            best_fn=_score if keep_best else None,  # without it scores are not written
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self.directory / "epochs", options=options)

    def numbers(self) -> list[int]:
        """The complete checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def latest(self) -> int | None:
        """The newest complete checkpoint's number, None where there is none."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The complete checkpoint with the highest score, the newest of several; None where none has a score."""
        scores = {number: _score(metrics) for number in self.numbers() if (metrics := self._manager.metrics(number))}
        return max(scores, key=lambda number: scores[number], default=None)

    def save(self, number: int, state: Any, meta: dict[str, Any], score: float | None = None) -> None:
        """Starts writing; `meta` (JSON) says where in the run the state belongs, `score` how good it is."""
        arguments = {STATE: ocp.args.StandardSave(state), META: ocp.args.JsonSave(meta | {DIGESTS: digests(state)})}
        metrics = None if score is None else {SCORE: score}
        self._manager.save(number, args=ocp.args.Composite(**arguments), metrics=metrics)

    def meta(self, number: int) -> dict[str, Any]:
        """What `save` was told of a checkpoint. Raises DamagedCheckpoint."""
        return self._restore(number, META, ocp.args.JsonRestore())

    def restore(self, number: int, like: Any, shardings: Any) -> Any:
        """The state of a checkpoint, with the shapes of `like`, placed by `shardings`. Raises DamagedCheckpoint."""
        state = self._restore(number, STATE, ocp.args.StandardRestore(with_shardings(like, shardings)))
        saved = self.meta(number).get(DIGESTS)
        if saved is None:
            raise DamagedCheckpoint(f"checkpoint {self.path(number)} has no digests: an earlier version wrote it")
        _compare(state, saved, f"checkpoint {self.path(number)}")
        return state

    def _restore(self, number: int, item: str, arguments: Any) -> Any:
        try:
            return self._manager.restore(number, args=ocp.args.Composite(**{item: arguments}))[item]
        except Exception as error:  # orbax and tensorstore have no type for it
            raise DamagedCheckpoint(f"checkpoint {self.path(number)} cannot be read: {_first_line(error)}") from error

    def path(self, number: int) -> Path:
        return self.directory / "epochs" / str(number)

    def set_aside(self, number: int) -> Path:
        """Renames a checkpoint, so that it is no longer looked at and its number is free; returns its new path."""
        aside = self._move_aside(self.path(number), str(number))
        self._manager.reload()
        return aside

    def _move_aside(self, path: Path, name: str) -> Path:
        aside = self.directory / "damaged" / name
        while aside.exists():
            aside = aside.with_name(aside.name + "_")
        barrier(f"a name for {path}")
        if jax.process_index() == 0 and path.exists():
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)
        barrier(f"{path} set aside")
        return aside

    def frozen_path(self, stage: str) -> Path:
        return self.directory / "frozen" / stage

    def save_frozen(self, stage: str, tree: Any) -> None:
        """Weights that a stage does not train; written once."""
        path = self.frozen_path(stage)
        if not jax.tree.leaves(tree) or path.exists():
            return
        found = digests(tree)
        if jax.process_index() == 0:  # first, so that weights that are there have their digests beside them
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".json.part")
            part.write_text(json.dumps(found), encoding="utf-8")
            os.replace(part, path.with_suffix(".json"))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, tree)

    def restore_frozen(self, stage: str, like: Any, shardings: Any) -> Any:
        """The frozen weights of a stage, as `restore`. Raises DamagedCheckpoint."""
        if not jax.tree.leaves(like):
            return like
        what = f"frozen weights {self.frozen_path(stage)}"
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                found = checkpointer.restore(self.frozen_path(stage), with_shardings(like, shardings))
        except Exception as error:  # see _restore
            raise DamagedCheckpoint(f"{what} cannot be read: {_first_line(error)}") from error
        self.compare_frozen(stage, found)
        return found

    def compare_frozen(self, stage: str, tree: Any) -> None:
        """Raises DamagedCheckpoint where these are not the weights that `save_frozen` was given for a stage."""
        path = self.frozen_path(stage).with_suffix(".json")
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DamagedCheckpoint(f"digests {path} cannot be read: {_first_line(error)}") from error
        _compare(tree, saved, f"frozen weights {self.frozen_path(stage)}")

    def replace_frozen(self, stage: str, tree: Any) -> Path:
        """Moves damaged weights of a stage away and writes these; returns where the damaged ones are."""
        aside = self._move_aside(self.frozen_path(stage), f"frozen-{stage}")
        self.save_frozen(stage, tree)
        return aside

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def newest_whole(checkpoints: Checkpoints, restore: Any) -> Any:
    """`restore(number)` of the newest checkpoint that can be read, None where there is none at all.

    Damaged ones that are newer are set aside with a warning: training the epochs between again gives the same state.

    Raises:
      UserError: every checkpoint is damaged (nothing is moved then).
    """
    damaged: list[DamagedCheckpoint] = []
    numbers = checkpoints.numbers()
    for number in numbers:
        try:
            restored = restore(number)
        except DamagedCheckpoint as error:
            damaged.append(error)
            continue
        for error, newer in zip(damaged, numbers, strict=False):
            aside = checkpoints.set_aside(newer)
            warnings.warn(f"{error}\ngoing on from checkpoint {number}; it was moved to {aside}", stacklevel=2)
        return restored
    if damaged:
        raise UserError(
            f"{damaged[0]}\nno earlier checkpoint is whole; delete {checkpoints.directory} to train from the start, "
            "or choose another --workdir"
        )
    return None


def _compare(tree: Any, saved: dict[str, int], what: str) -> None:
    found = digests(tree)
    changed = sorted(path for path in found.keys() | saved.keys() if found.get(path) != saved.get(path))
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise DamagedCheckpoint(f"{what}: {changed[0]}{more} is not what was saved; bits have changed")


def _score(metrics: dict[str, float]) -> float:
    return metrics[SCORE]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
