"""Training state on disk: written whole or not at all, restored onto any mesh."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxreid.parallel import barrier, with_shardings

STATE, META, SCORE = "state", "meta", "score"


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be read; the message names it and the reason."""


class Checkpoints:
    """Numbered checkpoints under a workdir; number n holds the state after n epochs of the whole run.

    Writing goes on in the background. Frozen weights are written once per stage beside them. Both are written under
    another name and renamed, so that what carries the final name is whole.

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
        arguments = {STATE: ocp.args.StandardSave(state), META: ocp.args.JsonSave(meta)}
        metrics = None if score is None else {SCORE: score}
        self._manager.save(number, args=ocp.args.Composite(**arguments), metrics=metrics)

    def meta(self, number: int) -> dict[str, Any]:
        """What `save` was told of a checkpoint. Raises DamagedCheckpoint."""
        return self._restore(number, META, ocp.args.JsonRestore())

    def restore(self, number: int, like: Any, shardings: Any) -> Any:
        """The state of a checkpoint, with the shapes of `like`, placed by `shardings`. Raises DamagedCheckpoint."""
        return self._restore(number, STATE, ocp.args.StandardRestore(with_shardings(like, shardings)))

    def _restore(self, number: int, item: str, arguments: Any) -> Any:
        try:
            return self._manager.restore(number, args=ocp.args.Composite(**{item: arguments}))[item]
        except Exception as error:  # orbax and tensorstore have no type for it
            raise DamagedCheckpoint(f"checkpoint {self.path(number)} cannot be read: {_first_line(error)}") from error

    def path(self, number: int) -> Path:
        return self.directory / "epochs" / str(number)

    def set_aside(self, number: int) -> Path:
        """Renames a checkpoint, so that it is no longer looked at and its number is free; returns its new path."""
        aside = self.directory / "damaged" / str(number)
        while aside.exists():
            aside = aside.with_name(aside.name + "_")
        if jax.process_index() == 0:
            aside.parent.mkdir(exist_ok=True)
            self.path(number).rename(aside)
        barrier(f"checkpoint {number} set aside")
        self._manager.reload()
        return aside

    def save_frozen(self, stage: str, tree: Any) -> None:
        """Weights that a stage does not train; written once."""
        path = self.directory / "frozen" / stage
        if jax.tree.leaves(tree) and not path.exists():
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(path, tree)

    def restore_frozen(self, stage: str, like: Any, shardings: Any) -> Any:
        """The frozen weights of a stage, as `restore`. Raises DamagedCheckpoint."""
        if not jax.tree.leaves(like):
            return like
        path = self.directory / "frozen" / stage
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(path, with_shardings(like, shardings))
        except Exception as error:  # see _restore
            raise DamagedCheckpoint(f"frozen weights {path} cannot be read: {_first_line(error)}") from error

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def newest_whole(checkpoints: Checkpoints, restore: Any) -> Any:
    """`restore(number)` of the newest checkpoint that can be read, None where there is none at all.

    Damaged ones that are newer are set aside with a warning: training the epochs between again gives the same state.

    Raises:
      ValueError: every checkpoint is damaged (nothing is moved then).
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
        raise ValueError(
            f"{damaged[0]}\nno earlier checkpoint is whole; delete {checkpoints.directory} to train from the start, "
            "or choose another --workdir"
        )
    return None


def _score(metrics: dict[str, float]) -> float:
    return metrics[SCORE]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
