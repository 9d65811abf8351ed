"""From an `Update` to a gradient transformation: parameter groups by path, schedules by progress."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxreid.devices.parallel import flatten_paths
from jaxreid.errors import UserError
from jaxreid.values import flag, fraction, non_negative, one_of, optional, pair, pattern, positive, series


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters whose path matches `pattern` (regular expression, first match counts) and how they are updated."""

    pattern: str
    learning_rate: float  # 0 = frozen
    weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """`adam` couples the weight decay as an L2 term in the gradient, `adamw` decouples it; `clip_norm` 0 = off."""

    kind: str
    groups: tuple[Group, ...]
    clip_norm: float = 0.0
    b1: float = 0.9
    b2: float = 0.999


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Factor on the learning rate as a function of the epoch and the stage's length.

    Linear warm-up from `warmup_start` over `warmup_epochs`, then `steps` (×0.1 at each of `milestones`) or `cosine`
    down to `floor`; the cosine's half period is what warm-up leaves of the stage or, with `whole_period`, the stage.
    The epoch is fractional or, where `offset` is given, the number of whole epochs done plus `offset` (recipes that
    set the rate once per epoch count epochs from 1, or step after the epoch: 1 or 0). `least_rate` is absolute and the
    same for all groups: rate = least_rate + (group's rate − least_rate) · factor.
    """

    kind: str = "cosine"
    warmup_epochs: float = 0.0
    warmup_start: float = 0.01
    milestones: tuple[float, ...] = ()
    floor: float = 0.05
    whole_period: bool = False
    offset: float | None = None
    least_rate: float = 0.0


class Progress(flax.struct.PyTreeNode):
    """Where training stands in its stage; traced, so that schedules never cause a new compile."""

    step: Any  # i32, in the stage
    epoch: Any  # f32, whole epochs done in the stage plus the fraction of the present one
    fraction: Any  # f32, epoch / epochs of the stage


def find_group(path: str, groups: tuple[Group, ...]) -> Group:
    """The first group whose pattern is found in the path.

    Raises:
      UserError: none matches.
    """
    for group in groups:
        if re.search(group.pattern, path):
            return group
    raise UserError(f"no optimiser group matches parameter {path!r}; the last group is usually '.*'")


def encoder_groups(options: Any) -> tuple[Group, ...]:
    """Learning rates of a method whose tower is "encoder": of its patch embedding, the rest of it, and what is new.
    The joint space with text, which nothing reads, stays."""
    return (
        Group(r"^encoder/patch_embedding", options.patch_rate, options.weight_decay),
        Group(r"^encoder/projection", 0.0),
        Group(r"^encoder/", options.tower_rate, options.weight_decay),
        Group(r".*", options.head_rate, options.weight_decay),
    )


def parameter_groups(options: Any, frozen: str) -> tuple[Group, ...]:
    """Learning rates by path: `frozen` has none; then those of `options.multipliers` ((pattern, factor), first match
    counts), then `options.train` at `options.rate`; biases have a factor and a weight decay of their own. All else is
    frozen too."""
    groups = [Group(frozen, 0.0)]
    for path, factor in (*options.multipliers, (options.train, 1.0)):
        rate = options.rate * factor
        bias = rf"^(?=.*bias$)(?=.*?(?:{path}))"
        groups.append(Group(bias, rate * options.bias_factor, options.bias_decay))
        groups.append(Group(path, rate, options.weight_decay))
    return (*groups, Group(r".*", 0.0))


def is_trained(path: str, optimisers: tuple[Optimiser, ...]) -> bool:
    """Whether any of the optimisers has a learning rate for the parameter."""
    return any(find_group(path, optimiser.groups).learning_rate for optimiser in optimisers)


def split_trained(params: dict[str, Any], *optimisers: Optimiser) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained, frozen): the leaves that any of the optimisers trains, and the others; `merge` joins them again."""
    trained: dict[str, Any] = {}
    frozen: dict[str, Any] = {}
    for path, leaf in flatten_paths(params):
        tree = trained if is_trained(path, optimisers) else frozen
        *parents, name = path.split("/")
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[name] = leaf
    return trained, frozen


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two nested dicts with different leaves as one."""
    merged = dict(first)
    for key, value in second.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return merged


def _steps(schedule: Schedule, epochs: int, epoch: jax.Array) -> jax.Array:
    return jnp.prod(jnp.where(epoch >= jnp.array(schedule.milestones), 0.1, 1.0))


def _cosine(schedule: Schedule, epochs: int, epoch: jax.Array) -> jax.Array:
    start = 0.0 if schedule.whole_period else schedule.warmup_epochs
    done = jnp.clip((epoch - start) / max(epochs - start, 1e-6), 0.0, 1.0)
    return schedule.floor + (1 - schedule.floor) * 0.5 * (1 + jnp.cos(jnp.pi * done))


def _constant(schedule: Schedule, epochs: int, epoch: jax.Array) -> jax.Array:
    return jnp.float32(1.0)


SCHEDULES = {"steps": _steps, "cosine": _cosine, "constant": _constant}  # after the warm-up

SCHEDULE_VALUES = {
    "kind": one_of(SCHEDULES),
    "warmup_epochs": non_negative,
    "warmup_start": fraction,
    "milestones": series(non_negative, ascending=True),
    "floor": fraction,
    "whole_period": flag,
    "offset": optional(non_negative),
    "least_rate": non_negative,
}


def schedule_factor(schedule: Schedule, epochs: int, progress: Progress) -> jax.Array:
    """f32[], what the learning rates are multiplied with at `progress`."""
    warmup = schedule.warmup_epochs
    epoch = progress.epoch if schedule.offset is None else jnp.floor(progress.epoch) + schedule.offset
    factor = SCHEDULES[schedule.kind](schedule, epochs, epoch)
    ramp = schedule.warmup_start + (1 - schedule.warmup_start) * epoch / max(warmup, 1e-6)
    return jnp.where(epoch < warmup, ramp, factor).astype(jnp.float32)


KINDS = {"adam": ("decay", "adapt"), "adamw": ("adapt", "decay")}  # what happens to gradients, in order

# Learning rates of a method are added by their names.
OPTIMISER_VALUES = {
    "kind": one_of(KINDS),
    "weight_decay": non_negative,
    "clip_norm": non_negative,
    **dict.fromkeys(("bias_factor", "bias_decay"), non_negative),  # from here on of `parameter_groups`
    "rate": positive,
    "train": pattern,
    "multipliers": series(pair(pattern, non_negative)),
    **dict.fromkeys(("patch_rate", "tower_rate", "head_rate"), non_negative),  # of `encoder_groups`
}


def transformation(optimiser: Optimiser) -> optax.GradientTransformation:
    """Gradient → direction, without the learning rate."""
    groups = optimiser.groups

    def decay(gradients: Any, params: Any) -> Any:
        rates = _by_path(params, lambda group: group.weight_decay, groups)
        return jax.tree.map(lambda g, p, rate: g + rate * p if rate else g, gradients, params, rates)

    steps = {"decay": optax.stateless(decay), "adapt": optax.scale_by_adam(b1=optimiser.b1, b2=optimiser.b2)}
    clip = optax.clip_by_global_norm(optimiser.clip_norm) if optimiser.clip_norm else optax.identity()
    return optax.chain(clip, *(steps[name] for name in KINDS[optimiser.kind]))


def descend(params: Any, directions: Any, optimiser: Optimiser, factor: jax.Array, least_rate: float = 0.0) -> Any:
    """params − rate × direction, where rate = least_rate + (learning rate of the group − least_rate) × factor."""
    rates = _by_path(params, lambda group: group.learning_rate - least_rate, optimiser.groups)
    return jax.tree.map(lambda p, d, rate: p - (least_rate + rate * factor) * d, params, directions, rates)


def _by_path(params: Any, value: Any, groups: tuple[Group, ...]) -> Any:
    structure = jax.tree.structure(params)
    return jax.tree.unflatten(structure, [value(find_group(path, groups)) for path, _ in flatten_paths(params)])
