"""The training step: state in, state out, one compiled program for a stage. Imports no data set and no reader."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxreid import optimizers
from jaxreid.augment import Pixels
from jaxreid.data.batch import Batch
from jaxreid.devices import parallel
from jaxreid.devices.compiled import Compiled
from jaxreid.errors import UserError
from jaxreid.methods.method import Context, LossOutput, Method, Stage, Update, Variables
from jaxreid.optimizers import Progress
from jaxreid.training.cached import Cache, with_cached

AVERAGE = "ema_of_weights"  # of params and batch_stats over the steps


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes."""

    step: jax.Array  # i32, over the whole run
    params: Any  # what the stage trains
    batch_stats: Any
    opt_state: dict[str, Any]  # by update, and `AVERAGE` where the stage has an `ema_decay`
    memory: Any
    rng: jax.Array  # u32[2]


def init_train_state(stage: Stage, variables: Variables, memory: Any, step: Any, rng: Any) -> tuple[TrainState, Any]:
    """(state, frozen parameters) at the start of a stage; a restored run takes its shapes from here too."""
    trained, frozen = optimizers.split_trained(variables["params"], *(update.optimizer for update in stage.updates))
    for update in stage.updates:
        for pattern in optimizers.freezing_nothing(variables["params"], update.optimizer):
            warnings.warn(
                f"stage {stage.name!r}: {pattern!r} freezes nothing: no parameter's path has it", stacklevel=2
            )
    opt_state = {}
    for update in stage.updates:
        own, _ = optimizers.split_trained(trained, update.optimizer)
        opt_state[update.name] = jax.jit(_transformation(stage, update).init)(own)
    batch_stats = variables.get("batch_stats", {})
    if stage.ema_decay:
        opt_state[AVERAGE] = _copy({"params": trained, "batch_stats": batch_stats})
    return TrainState(step, trained, batch_stats, opt_state, memory, rng), frozen


def _transformation(stage: Stage, update: Update) -> optax.GradientTransformationExtraArgs:
    return optimizers.transformation(update.optimizer, update.schedule, stage.epochs)


def variables_of(state: TrainState, frozen: Any) -> Variables:
    """What extractions, tests and the next stage see: the average over the steps, where the stage keeps one."""
    newest = {"params": state.params, "batch_stats": state.batch_stats}
    seen = state.opt_state.get(AVERAGE, newest)
    return seen | {"params": optimizers.merge(seen["params"], frozen)}


def with_batch_stats(state: TrainState, batch_stats: Any) -> TrainState:
    """A state in which these statistics are all there is of them."""
    opt_state = dict(state.opt_state)
    if AVERAGE in opt_state:
        opt_state[AVERAGE] = opt_state[AVERAGE] | {"batch_stats": _copy(batch_stats)}
    return state.replace(batch_stats=batch_stats, opt_state=opt_state)


def _copy(tree: Any) -> Any:
    """Arrays of its own: a state is donated, and no array may be twice in it."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def groups(state: TrainState, frozen: Any) -> dict[str, Any]:
    """What a stage holds on the devices, by kind."""
    return {
        "parameters": state.params,
        "moments": {name: tree for name, tree in state.opt_state.items() if name != AVERAGE},
        "average": state.opt_state.get(AVERAGE),
        "statistics": state.batch_stats,
        "memory": state.memory,
        "frozen": frozen,
    }


def total_names(stage: Stage) -> tuple[str, ...]:
    """What the metrics of a step call the losses that its updates minimise."""
    return ("loss",) if len(stage.updates) == 1 else tuple(f"loss_{update.name}" for update in stage.updates)


def loss_of(
    stage: Stage,
    update: Update,
    others: Any,
    frozen: Any,
    batch_stats: Any,
    memory: Any,
    batch: Batch,
    rng: jax.Array,
    progress: Progress,
) -> Callable[[Any], tuple[jax.Array, LossOutput]]:
    """What an update differentiates: the parameters that are its own → (total, all that the loss gives).

    Args:
      others: parameters that other updates train; frozen ones nobody does.
    """

    def loss(own: Any) -> tuple[jax.Array, LossOutput]:
        params = optimizers.merge(optimizers.merge(own, others), frozen)
        context = Context(rng, progress, update.name)
        out = stage.loss({"params": params, "batch_stats": batch_stats}, memory, batch, context)
        return out.total, out

    return loss


def make_train_step(method: Method, stage: Stage, pixels: Pixels, mesh: Mesh, state_sharding: Any) -> Compiled:
    """(state, frozen, batch of bytes, progress, cache) → (state, metrics) of a stage; the state is donated."""

    def prepare(state: TrainState, batch: Batch) -> tuple[Batch, jax.Array]:
        augment_rng, loss_rng = jax.random.split(jax.random.fold_in(state.rng, state.step))
        batch = batch if method.uses_identity else batch.without_identity()
        return pixels(batch, augment_rng, stage.augment), loss_rng

    def train_step(
        state: TrainState, frozen: Any, batch: Batch, progress: Progress, cache: Cache | None = None
    ) -> tuple[TrainState, Any]:
        batch, rng = prepare(state, batch)
        batch = with_cached(stage.cached, cache, batch)
        params, batch_stats, memory = state.params, state.batch_stats, state.memory
        opt_state, metrics = dict(state.opt_state), {}
        for update, total in zip(stage.updates, total_names(stage), strict=True):
            own, others = optimizers.split_trained(params, update.optimizer)

            loss = loss_of(stage, update, others, frozen, batch_stats, memory, batch, rng, progress)
            gradients, out = jax.grad(loss, has_aux=True)(own)
            batch_stats, memory = out.batch_stats, out.memory
            if jax.tree.structure(memory) != jax.tree.structure(state.memory):
                raise UserError(
                    f"stage {stage.name!r}: its loss returns memory of another structure than it was given; "
                    "`begin_stage` is where that may change"
                )
            changes, opt_state[update.name] = _transformation(stage, update).update(
                gradients, opt_state[update.name], own, progress=progress
            )
            changed: Any = optax.apply_updates(own, changes)
            params = optimizers.merge(changed, others)
            metrics |= {**out.metrics, total: out.total}
        if AVERAGE in opt_state:
            newest = {"params": params, "batch_stats": batch_stats}
            opt_state[AVERAGE] = optax.incremental_update(newest, opt_state[AVERAGE], 1.0 - stage.ema_decay)
        state = state.replace(
            step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, memory=memory
        )
        return state, metrics

    return Compiled(train_step, donate_argnums=0, out_shardings=(state_sharding, parallel.replicated(mesh)))


def progress_at(stage: Stage, epoch: int, step: int, steps: int) -> Progress:
    done = epoch + step / steps
    return Progress(
        step=np.int32(epoch * steps + step), epoch=np.float32(done), fraction=np.float32(done / max(stage.epochs, 1))
    )
