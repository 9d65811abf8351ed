"""From an `Update` to a gradient transformation of optax: parameter groups by path, learning rates by progress."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxreid.devices.parallel import flatten_paths
from jaxreid.errors import UserError
from jaxreid.values import (
    flag,
    fraction,
    non_negative,
    number,
    one_of,
    optional,
    pattern,
    positive,
    row,
    series,
)

# ----------------------------------------------------------------------------------------------------------------
# What a stage says
# ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters whose path matches `pattern` (regular expression, first match counts) and how they are updated."""

    pattern: str
    lr: float  # 0 = frozen
    weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """One of `OPTIMIZERS` with its constants; `clip_norm` bounds the norm of the whole gradient, 0 = off."""

    groups: tuple[Group, ...]
    name: str = "adam"
    clip_norm: float = 0.0
    b1: float = 0.9  # of Adam, with b2 and eps
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.9  # of SGD, with nesterov
    nesterov: bool = False


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the epoch and the stage's length, for a group with the learning rate `lr`.

    Linear warm-up over `warmup_epochs`, from `warmup_lr` or, where that is None, from `warmup_factor` · lr; then
    "steps" (×0.1 at each of `milestones`), "cosine" down to `min_factor` · lr, or "constant". The cosine's half period
    is what warm-up leaves of the stage or, with `cosine_includes_warmup`, the stage. The epoch is fractional or, where
    `epoch_offset` is given, the number of whole epochs done plus this offset (recipes that set the rate once per epoch
    count epochs from 1, or step after the epoch: 1 or 0). `min_lr` is absolute and the same for all groups: what is
    said above of lr holds for lr − min_lr, and min_lr is added.
    """

    name: str = "cosine"
    warmup_epochs: float = 0.0
    warmup_factor: float = 0.01
    warmup_lr: float | None = None
    milestones: tuple[float, ...] = ()
    min_factor: float = 0.05
    cosine_includes_warmup: bool = False
    epoch_offset: float | None = None
    min_lr: float = 0.0


class Progress(flax.struct.PyTreeNode):
    """Where training stands in its stage; traced, so that schedules never cause a new compile."""

    step: Any  # i32, in the stage
    epoch: Any  # f32, whole epochs done in the stage plus the fraction of the present one
    fraction: Any  # f32, epoch / epochs of the stage


# ----------------------------------------------------------------------------------------------------------------
# Groups
# ----------------------------------------------------------------------------------------------------------------


def make_optimizer(options: Any, frozen: str | None = None) -> Optimizer:
    """The optimizer of a config's section `optimizer`.

    A row of `options.groups` is (pattern, factor on `options.lr`, weight decay or None for `options.weight_decay`): the
    first that is found in a parameter's path counts; what none matches has `options.lr`. A factor of 0 freezes.

    Args:
      frozen: a pattern of what never trains, whatever the config says.
    """
    fields = dict(options.items())
    lr, weight_decay, rows = (fields.pop(key) for key in ("lr", "weight_decay", "groups"))
    groups = [Group(frozen, 0.0)] if frozen else []
    for path, factor, decay in (*rows, (".*", 1.0, None)):
        groups.append(Group(path, factor * lr, weight_decay if decay is None else decay))
    return Optimizer(tuple(groups), **fields)


def find_group(path: str, groups: tuple[Group, ...]) -> Group:
    """The first group whose pattern is found in the path.

    Raises:
      UserError: none matches.
    """
    for group in groups:
        if re.search(group.pattern, path):
            return group
    raise UserError(f"no optimizer group matches parameter {path!r}; the last group is usually '.*'")


def is_trained(path: str, optimizers: tuple[Optimizer, ...]) -> bool:
    """Whether any of the optimizers has a learning rate for the parameter."""
    return any(find_group(path, optimizer.groups).lr for optimizer in optimizers)


def split_trained(params: dict[str, Any], *optimizers: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained, frozen): the leaves that any of the optimizers trains, and the others; `merge` joins them again."""
    trained: dict[str, Any] = {}
    frozen: dict[str, Any] = {}
    for path, leaf in flatten_paths(params):
        tree = trained if is_trained(path, optimizers) else frozen
        *parents, name = path.split("/")
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[name] = leaf
    return trained, frozen


def freezing_nothing(params: dict[str, Any], optimizer: Optimizer) -> list[str]:
    """Patterns of frozen groups that are found in no parameter's path: most likely misspelt."""
    paths = [path for path, _ in flatten_paths(params)]
    patterns = [group.pattern for group in optimizer.groups if not group.lr]
    return [pattern for pattern in patterns if not any(re.search(pattern, path) for path in paths)]


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two nested dicts with different leaves as one."""
    merged = dict(first)
    for key, value in second.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return merged


# ----------------------------------------------------------------------------------------------------------------
# Schedules
# ----------------------------------------------------------------------------------------------------------------


def _steps(schedule: Schedule, epochs: int) -> optax.Schedule:
    milestones: Any = dict.fromkeys(schedule.milestones, 0.1)
    return optax.piecewise_constant_schedule(1.0, milestones)


def _cosine(schedule: Schedule, epochs: int) -> optax.Schedule:
    start = 0.0 if schedule.cosine_includes_warmup else schedule.warmup_epochs
    length: Any = max(epochs - start, 1e-6)
    cosine = optax.cosine_decay_schedule(1.0, length, schedule.min_factor)
    return lambda epoch: cosine(epoch - start)


def _constant(schedule: Schedule, epochs: int) -> optax.Schedule:
    return optax.constant_schedule(1.0)


SCHEDULES = {"steps": _steps, "cosine": _cosine, "constant": _constant}  # factors after the warm-up, by epoch


def learning_rate(schedule: Schedule, epochs: int, lr: float) -> Callable[[Progress], jax.Array]:
    """Progress → the learning rate f32[] of a group whose own is `lr`, in a stage of so many epochs."""
    warmup: Any = schedule.warmup_epochs
    above = lr - schedule.min_lr
    main = SCHEDULES[schedule.name](schedule, epochs)
    first = schedule.warmup_factor * above if schedule.warmup_lr is None else schedule.warmup_lr - schedule.min_lr

    def rate(progress: Progress) -> jax.Array:
        epoch = progress.epoch
        if schedule.epoch_offset is not None:
            epoch = jnp.floor(epoch) + schedule.epoch_offset
        found = above * main(epoch)
        if warmup:
            found = jnp.where(epoch < warmup, optax.linear_schedule(first, above, warmup)(epoch), found)
        return jnp.asarray(schedule.min_lr + found, jnp.float32)

    return rate


SCHEDULE_VALUES = {
    "name": one_of(SCHEDULES),
    "warmup_epochs": non_negative,
    "warmup_factor": fraction,
    "warmup_lr": optional(non_negative),
    "milestones": series(non_negative, ascending=True),
    "min_factor": fraction,
    "cosine_includes_warmup": flag,
    "epoch_offset": optional(non_negative),
    "min_lr": non_negative,
}

# ----------------------------------------------------------------------------------------------------------------
# Transformations
# ----------------------------------------------------------------------------------------------------------------


def _adam(o: Optimizer, weight_decay: float) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(1.0, o.b1, o.b2, o.eps))


def _adamw(o: Optimizer, weight_decay: float) -> optax.GradientTransformation:
    return optax.adamw(1.0, o.b1, o.b2, o.eps, weight_decay=weight_decay)


def _sgd(o: Optimizer, weight_decay: float) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(1.0, o.momentum or None, o.nesterov))


# Steps of learning rate 1. "adam" and "sgd" couple the weight decay as an L2 term in the gradient, as PyTorch's do.
OPTIMIZERS = {"adam": _adam, "adamw": _adamw, "sgd": _sgd}

OPTIMIZER_VALUES = {
    "name": one_of(OPTIMIZERS),
    "lr": positive,
    "weight_decay": non_negative,
    "groups": series(row(pattern, non_negative, optional(non_negative))),
    "clip_norm": non_negative,
    **dict.fromkeys(("b1", "b2", "momentum"), number(0, below=1)),
    "eps": positive,
    "nesterov": flag,
}


def transformation(optimizer: Optimizer, schedule: Schedule, epochs: int) -> optax.GradientTransformationExtraArgs:
    """Gradient → change of the parameters that `optimizer` trains; `update` also takes the keyword `progress`."""
    groups = tuple(group for group in optimizer.groups if group.lr)

    def label(params: Any) -> Any:
        found = [groups.index(find_group(path, optimizer.groups)) for path, _ in flatten_paths(params)]
        return jax.tree.unflatten(jax.tree.structure(params), found)

    own: dict[Any, Any] = {
        index: optax.chain(
            OPTIMIZERS[optimizer.name](optimizer, group.weight_decay),
            _scaled(learning_rate(schedule, epochs, group.lr)),
        )
        for index, group in enumerate(groups)
    }
    clip = optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity()
    return optax.chain(clip, optax.partition(own, label))


def _scaled(rate: Callable[[Progress], jax.Array]) -> optax.GradientTransformationExtraArgs:
    """Updates times a learning rate, which depends on the keyword `progress`."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda u: rate(extra["progress"]) * u, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
