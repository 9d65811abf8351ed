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
    lr: float  # 0 = frozen
    weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """`adam` couples the weight decay as an L2 term in the gradient, `adamw` decouples it; `clip_norm` 0 = off."""

    name: str
    groups: tuple[Group, ...]
    clip_norm: float = 0.0
    b1: float = 0.9
    b2: float = 0.999


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Factor on the learning rate as a function of the epoch and the stage's length.

    Linear warm-up from `warmup_factor` over `warmup_epochs`, then `steps` (×0.1 at each of `milestones`) or `cosine`
    down to `min_factor`; the cosine's half period is what warm-up leaves of the stage or, with
    `cosine_includes_warmup`, the stage. The epoch is fractional or, where `epoch_offset` is given, the number of whole
    epochs done plus this offset (recipes that set the rate once per epoch count epochs from 1, or step after the
    epoch: 1 or 0). `min_lr` is absolute and the same for all groups: lr = min_lr + (group's lr − min_lr) · factor.
    """

    name: str = "cosine"
    warmup_epochs: float = 0.0
    warmup_factor: float = 0.01
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


def find_group(path: str, groups: tuple[Group, ...]) -> Group:
    """The first group whose pattern is found in the path.

    Raises:
      UserError: none matches.
    """
    for group in groups:
        if re.search(group.pattern, path):
            return group
    raise UserError(f"no optimizer group matches parameter {path!r}; the last group is usually '.*'")


def encoder_groups(options: Any) -> tuple[Group, ...]:
    """Learning rates of a method whose tower is "encoder": of its patch embedding, the rest of it, and what is new.
    The joint space with text, which nothing reads, stays."""
    return (
        Group(r"^encoder/patch_embedding", options.patch_lr, options.weight_decay),
        Group(r"^encoder/projection", 0.0),
        Group(r"^encoder/", options.backbone_lr, options.weight_decay),
        Group(r".*", options.head_lr, options.weight_decay),
    )


def parameter_groups(options: Any, frozen: str) -> tuple[Group, ...]:
    """Learning rates by path: `frozen` has none; then those of `options.lr_factors` ((pattern, factor), first match
    counts), then `options.trainable` at `options.lr`; biases have a factor and a weight decay of their own. All else is
    frozen too."""
    groups = [Group(frozen, 0.0)]
    for path, factor in (*options.lr_factors, (options.trainable, 1.0)):
        lr = options.lr * factor
        bias = rf"^(?=.*bias$)(?=.*?(?:{path}))"
        groups.append(Group(bias, lr * options.bias_lr_factor, options.bias_weight_decay))
        groups.append(Group(path, lr, options.weight_decay))
    return (*groups, Group(r".*", 0.0))


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


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two nested dicts with different leaves as one."""
    merged = dict(first)
    for key, value in second.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return merged


def _steps(schedule: Schedule, epochs: int, epoch: jax.Array) -> jax.Array:
    return jnp.prod(jnp.where(epoch >= jnp.array(schedule.milestones), 0.1, 1.0))


def _cosine(schedule: Schedule, epochs: int, epoch: jax.Array) -> jax.Array:
    start = 0.0 if schedule.cosine_includes_warmup else schedule.warmup_epochs
    done = jnp.clip((epoch - start) / max(epochs - start, 1e-6), 0.0, 1.0)
    return schedule.min_factor + (1 - schedule.min_factor) * 0.5 * (1 + jnp.cos(jnp.pi * done))


def _constant(schedule: Schedule, epochs: int, epoch: jax.Array) -> jax.Array:
    return jnp.float32(1.0)


SCHEDULES = {"steps": _steps, "cosine": _cosine, "constant": _constant}  # after the warm-up

SCHEDULE_VALUES = {
    "name": one_of(SCHEDULES),
    "warmup_epochs": non_negative,
    "warmup_factor": fraction,
    "milestones": series(non_negative, ascending=True),
    "min_factor": fraction,
    "cosine_includes_warmup": flag,
    "epoch_offset": optional(non_negative),
    "min_lr": non_negative,
}


def schedule_factor(schedule: Schedule, epochs: int, progress: Progress) -> jax.Array:
    """f32[], what the learning rates are multiplied with at `progress`."""
    warmup = schedule.warmup_epochs
    epoch = progress.epoch if schedule.epoch_offset is None else jnp.floor(progress.epoch) + schedule.epoch_offset
    factor = SCHEDULES[schedule.name](schedule, epochs, epoch)
    ramp = schedule.warmup_factor + (1 - schedule.warmup_factor) * epoch / max(warmup, 1e-6)
    return jnp.where(epoch < warmup, ramp, factor).astype(jnp.float32)


OPTIMIZERS = {"adam": ("decay", "adapt"), "adamw": ("adapt", "decay")}  # what happens to gradients, in order

# Learning rates of a method are added by their names.
OPTIMIZER_VALUES = {
    "name": one_of(OPTIMIZERS),
    "weight_decay": non_negative,
    "clip_norm": non_negative,
    **dict.fromkeys(("bias_lr_factor", "bias_weight_decay"), non_negative),  # from here on of `parameter_groups`
    "lr": positive,
    "trainable": pattern,
    "lr_factors": series(pair(pattern, non_negative)),
    **dict.fromkeys(("patch_lr", "backbone_lr", "head_lr"), non_negative),  # of `encoder_groups`
}


def transformation(optimizer: Optimizer) -> optax.GradientTransformation:
    """Gradient → direction, without the learning rate."""
    groups = optimizer.groups

    def decay(gradients: Any, params: Any) -> Any:
        rates = _by_path(params, lambda group: group.weight_decay, groups)
        return jax.tree.map(lambda g, p, rate: g + rate * p if rate else g, gradients, params, rates)

    steps = {"decay": optax.stateless(decay), "adapt": optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2)}
    clip = optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity()
    return optax.chain(clip, *(steps[name] for name in OPTIMIZERS[optimizer.name]))


def descend(params: Any, directions: Any, optimizer: Optimizer, factor: jax.Array, min_lr: float = 0.0) -> Any:
    """params − lr × direction, where lr = min_lr + (lr of the group − min_lr) × factor."""
    rates = _by_path(params, lambda group: group.lr - min_lr, optimizer.groups)
    return jax.tree.map(lambda p, d, rate: p - (min_lr + rate * factor) * d, params, directions, rates)


def _by_path(params: Any, value: Any, groups: tuple[Group, ...]) -> Any:
    structure = jax.tree.structure(params)
    return jax.tree.unflatten(structure, [value(find_group(path, groups)) for path, _ in flatten_paths(params)])
