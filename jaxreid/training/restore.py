"""A run's state from its checkpoints: to go on training, or to score."""

from __future__ import annotations

import warnings
from typing import Any

from jaxreid.devices import parallel, processes
from jaxreid.errors import UserError
from jaxreid.run.model import Model
from jaxreid.run.workdirs import holds_checkpoint
from jaxreid.training.checkpoints import Checkpoints, DamagedCheckpoint
from jaxreid.training.start import abstract_train_state, enter_stage, memory_for_tests
from jaxreid.training.steps import TrainState


def restore(
    run: Model, checkpoints: Checkpoints, number: int, mend: bool = False
) -> tuple[TrainState, Any, dict[str, Any]]:
    """(state, frozen parameters, where in the run they belong) of a checkpoint; with `mend` frozen parameters that
    had to be made again are written in place of the damaged ones."""
    meta = checkpoints.meta(number)
    stage = run.method.stages()[meta["stage"]]
    with processes.together():  # as enter_stage
        state, frozen = abstract_train_state(run, stage)
    state = checkpoints.restore(number, state, parallel.state_sharding(state, run.mesh))
    try:
        frozen = checkpoints.restore_frozen(stage.name, frozen, parallel.state_sharding(frozen, run.mesh))
    except DamagedCheckpoint as error:
        frozen = _frozen_again(run, checkpoints, meta["stage"], error)
        aside = f"; the damaged ones were moved to {checkpoints.replace_frozen(stage.name, frozen)}" if mend else ""
        warnings.warn(f"{error}\nthey were made again from what the stage began with{aside}", stacklevel=2)
    return state, frozen, meta


def _frozen_again(run: Model, checkpoints: Checkpoints, number: int, damage: DamagedCheckpoint) -> Any:
    """The frozen parameters of stage `number`, from where it began: the first from random and pretrained weights, any
    other from the last checkpoint of the stage before.

    Raises:
      UserError: that checkpoint is not there or damaged, or what was made is not what the digests say.
    """
    stages = run.method.stages()
    stage, before = stages[number], sum(stage.epochs for stage in stages[:number])
    path = checkpoints.frozen_path(stage.name)
    way_out = f"put a copy of {path} back, or delete {checkpoints.directory} to train from the start"
    state, frozen = None, None
    if number:
        try:
            state, frozen, _ = restore(run, checkpoints, before)
        except DamagedCheckpoint as error:
            cause = f"they hold what stage {stages[number - 1].name!r} trained; its last checkpoint is needed: {error}"
            raise UserError(f"{damage}\n{cause}\n{way_out}") from error
    _, frozen = enter_stage(run, stage, state, frozen)
    try:
        checkpoints.compare_frozen(stage.name, frozen)
    except DamagedCheckpoint as error:
        cause = f"they were made again, but are not known to be the same: {error}"
        raise UserError(f"{damage}\n{cause}\n{way_out}") from error
    return frozen


def restore_judged(run: Model) -> tuple[TrainState, Any, int, int]:
    """The state that is scored: of the newest checkpoint or, with `keep_best`, of that with the highest test score; its
    memory is as `embed` takes it.

    Returns:
      (state, frozen parameters, epochs until this state, epochs trained).

    Raises:
      UserError: there is none, or it is damaged; an older one is never taken for it.
    """
    if not holds_checkpoint(run.workdir):
        raise UserError(f"{run.workdir} holds no complete checkpoint: train first, or name the workdir of a run")
    checkpoints = Checkpoints(run.workdir)
    try:
        latest = checkpoints.latest()
        best = processes.of_main(checkpoints.best) if run.config.get("keep_best") else None
        number = best or latest
        if number is None or latest is None:
            raise UserError(f"{checkpoints.directory} holds no complete checkpoint: train first, or name a workdir")
        try:
            state, frozen, meta = restore(run, checkpoints, number)
        except DamagedCheckpoint as error:
            earlier = [other for other in checkpoints.numbers() if other < number]
            hint = (
                f"checkpoint {earlier[0]} is there: move the damaged one and {run.workdir / 'results.json'} away, and "
                "the same line trains on from it"
                if earlier
                else f"no earlier checkpoint is there: train again in another --workdir, or delete {run.workdir}"
            )
            raise UserError(f"{error}\n{hint}") from error
        memory = memory_for_tests(run, meta["stage"], state.memory)
        return state.replace(memory=memory), frozen, number, latest
    finally:
        checkpoints.close()
