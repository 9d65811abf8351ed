"""Training state on disk: written whole or not at all, restored onto any mesh, and only as it was saved.

The file format notices most of what is missing, and next to nothing of what has changed: of 60 single bits flipped
anywhere in a small checkpoint, 57 gave another array without an error (benchmarks/checkpoint.py). So every array is
saved with a digest.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxreid.devices import processes
from jaxreid.devices.digests import digests
from jaxreid.devices.parallel import with_shardings
from jaxreid.errors import UserError, writing
from jaxreid.files import write_json
from jaxreid.run.workdirs import CHECKPOINTS, damaged_folder, epochs_folder

STATE, META, SCORE, DIGESTS = "state", "meta", "score", "digests"


@functools.cache
def tell_failures_once() -> None:
    """A save that fails is raised, and that is all that is said of it. Orbax would log it once more for every thread
    and array, and what is still being written when it gives up finds its event loop closed."""
    orbax_log, loop_log, show = logging.getLogger("absl"), logging.getLogger("asyncio"), sys.unraisablehook
    orbax_log.addFilter(lambda record: not (record.exc_info and "orbax" in Path(record.pathname).parts))
    loop_log.addFilter(lambda record: "exception was never retrieved" not in record.getMessage())

    def hook(found: Any) -> None:
        if not (isinstance(found.exc_value, RuntimeError) and "loop is closed" in str(found.exc_value)):
            show(found)

    sys.unraisablehook = hook


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read; the message names it and the reason."""


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
        tell_failures_once()
        self.directory = Path(workdir).absolute() / CHECKPOINTS
        self._damaged, self._epochs = damaged_folder(self.directory.parent), epochs_folder(self.directory.parent)
        kept: list[Any] = [preservation_policy.LatestN(keep)]
        if keep_best:
            kept.append(preservation_policy.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(kept),
            best_fn=_score if keep_best else None,  # without it scores are not written
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self._epochs, options=options)
        processes.same("list of checkpoints", {str(self.directory): str(self.numbers())})

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
        with writing(self.directory):
            self._manager.save(number, args=ocp.args.Composite(**arguments), metrics=metrics)

    def meta(self, number: int) -> dict[str, Any]:
        """The `meta` that a checkpoint was saved with. Raises DamagedCheckpoint."""
        path = self.path(number)
        return _read(path / META, ocp.JsonCheckpointHandler(), ocp.args.JsonRestore(), f"checkpoint {path}")

    def restore(self, number: int, like: Any, shardings: Any) -> Any:
        """The state of a checkpoint, with the shapes of `like`, placed by `shardings`. Raises DamagedCheckpoint."""
        path, arguments = self.path(number), ocp.args.StandardRestore(with_shardings(like, shardings))
        state = _read(path / STATE, ocp.StandardCheckpointHandler(), arguments, f"checkpoint {path}")
        saved = self.meta(number).get(DIGESTS)
        if saved is None:
            raise DamagedCheckpoint(f"checkpoint {path} has no digests: an earlier version wrote it")
        _compare(state, saved, f"checkpoint {path}")
        return state

    def path(self, number: int) -> Path:
        return self._epochs / str(number)

    def set_aside(self, number: int) -> Path:
        """Renames a checkpoint, so that it is no longer looked at and its number is free; returns its new path."""
        aside = self._move_aside(self.path(number), str(number))
        self._manager.reload()
        return aside

    def _move_aside(self, path: Path, name: str) -> Path:
        aside = self._damaged / name
        while aside.exists():
            aside = aside.with_name(aside.name + "_")
        aside = Path(processes.gather(str(aside))[0])  # each may have looked at another time
        with processes.together():
            if jax.process_index() == 0 and path.exists():
                aside.parent.mkdir(exist_ok=True)
                path.rename(aside)
        return aside

    def frozen_path(self, stage: str) -> Path:
        return self.directory / "frozen" / stage

    def save_frozen(self, stage: str, tree: Any) -> None:
        """Weights that a stage does not train; written once."""
        path = self.frozen_path(stage)
        if not jax.tree.leaves(tree) or processes.of_main(path.exists):
            return
        found = digests(tree)
        with processes.together():
            if jax.process_index() == 0:  # first, so that weights that are there have their digests beside them
                with writing(self.directory):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_json(path.with_suffix(".json"), found)
        with writing(self.directory), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, tree)

    def restore_frozen(self, stage: str, like: Any, shardings: Any) -> Any:
        """The frozen weights of a stage, as `restore`. Raises DamagedCheckpoint."""
        if not jax.tree.leaves(like):
            return like
        what = f"frozen weights {self.frozen_path(stage)}"
        arguments = ocp.args.StandardRestore(with_shardings(like, shardings))
        found = _read(self.frozen_path(stage), ocp.StandardCheckpointHandler(), arguments, what)
        self.compare_frozen(stage, found)
        return found

    def compare_frozen(self, stage: str, tree: Any) -> None:
        """Raises DamagedCheckpoint where these are not the weights that `save_frozen` was given for a stage."""
        path = self.frozen_path(stage).with_suffix(".json")
        with processes.together(DamagedCheckpoint):
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
        with writing(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        with writing(self.directory):
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


def _read(path: Path, handler: Any, arguments: Any, what: str) -> Any:
    """What was saved at a path; damaged for all processes where it is for one of them, which may be the only one to
    read a part. Without orbax's manager, which lets the others wait for it."""
    with processes.together(DamagedCheckpoint):
        try:
            return handler.restore(path, args=arguments)
        except Exception as error:  # orbax and tensorstore have no type for it
            raise DamagedCheckpoint(f"{what} cannot be read: {_first_line(error)}") from error


def _compare(tree: Any, saved: dict[str, int], what: str) -> None:
    found = digests(tree)
    changed = sorted(path for path in found.keys() | saved.keys() if found.get(path) != saved.get(path))
    with processes.together(DamagedCheckpoint):
        if changed:
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise DamagedCheckpoint(f"{what}: {changed[0]}{more} is not what was saved; bits have changed")


def _score(metrics: dict[str, float]) -> float:
    return metrics[SCORE]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
