"""Contrastive losses between clips and a prototype memory, on HiTPro's three levels.

Every level classifies a clip among the prototypes of *one* camera: its own (intra), a matched camera of the same
modality (within), a matched camera of the other modality (cross). Inside one camera an accepted match excludes all
others, so a match that mining missed is never a negative.

docs/hitpro.md, section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.devices.parallel import constrain_columns
from jaxreid.shapes import Array, Bool, Float, Int, Scalar, Shaped

if TYPE_CHECKING:
    from jaxreid.memory.prototypes import PrototypeMemory

Scope = Literal["camera", "joint"]
MASKED = -1e9


def _listed(
    index: Int[Array, "clips list"], values: Shaped[Array, "clips list"], capacity: int
) -> Shaped[Array, "clips {capacity}"]:
    """Spreads values [N, P] over the slots that index [N, P] names: [N, capacity]; −1 goes nowhere."""

    def of_row(slots: Int[Array, " list"], entries: Shaped[Array, " list"]) -> Shaped[Array, " slots"]:
        # A negative index would wrap around to the last slot.
        target = jnp.where(slots >= 0, slots, capacity)
        return jnp.zeros(capacity, entries.dtype).at[target].set(entries, mode="drop")

    return jax.vmap(of_row)(index, values)


def camera_cross_entropy(
    logits: Float[Array, "clips slots"], anchor: Int[Array, "clips anchors"], memory: PrototypeMemory
) -> Float[Array, "clips anchors"]:
    """Cross entropy of the prototype `anchor` among those of its camera, without its look-alikes.

    Args:
      logits: f32[B, K], similarities of clips to all prototypes over the temperature.
      anchor: i32[B, A], valid slots, −1 = none.

    Returns:
      f32[B, A], 0 where there is no anchor. The work arrays are [B, A, K].
    """
    rows, anchors = anchor.shape
    slot = jnp.maximum(anchor, 0)
    neutral = memory.look_alike_index[slot].reshape(rows * anchors, -1)
    neutral = _listed(neutral, jnp.ones(neutral.shape, bool), memory.capacity).reshape(rows, anchors, -1)
    same_camera = (memory.camera[slot][..., None] == memory.camera) & memory.valid
    is_anchor = slot[..., None] == jnp.arange(memory.capacity)
    considered = (same_camera & ~neutral) | is_anchor
    normalizer = jax.nn.logsumexp(jnp.where(considered, logits[:, None], MASKED), axis=-1)
    return jnp.where(anchor >= 0, normalizer - jnp.take_along_axis(logits, slot, axis=1), 0.0)


def _joint_cross_entropy(
    logits: Float[Array, "clips slots"], target: Float[Array, "clips slots"], considered: Bool[Array, "clips slots"]
) -> tuple[Float[Array, " clips"], Float[Array, " clips"]]:
    """Cross entropy f32[B] of soft targets [B, K] among considered prototypes, and its excess over their entropy."""
    normalizer = jax.nn.logsumexp(jnp.where(considered, logits, MASKED), axis=-1)
    weight = target.sum(axis=-1)
    value = weight * normalizer - (target * logits).sum(axis=-1)
    entropy = -(target * jnp.log(jnp.where(target > 0, target, 1.0))).sum(axis=-1)
    return value, value - entropy


def hierarchical_losses(
    features: Float[Array, "clips dim"],
    slot: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
    memory: PrototypeMemory,
    temperature: Scalar = 0.07,
    scope: Scope = "camera",
    neutral_band: float = 0.1,
) -> dict[str, Shaped[Array, ""]]:
    """The three levels of HiTPro's loss, each the mean over the clips that count (section 4).

    A clip counts on level "intra" when its slot has a prototype, on "within" and "cross" when its slot has a
    positive there. No level has a gradient with respect to the prototypes.

    Args:
      features: unit rows; slot: −1 = none.
      memory: prototypes with their association.
      temperature: τ_c.
      scope: "camera", or the ablation "joint": levels two and three have one softmax over all prototypes of the own
        modality (target ½ own + ½ positives) or of the other (target: the positives), without those of other cameras
        that are too similar to be negatives and yet no positives.
      neutral_band: for the joint scope: how far below the mining threshold prototypes are still too similar, in what
        that stage compared.

    Returns:
      scalars "intra", "within", "cross"; "intra_count", "within_count", "cross_count"; for the joint scope
      "within_excess", "cross_excess": the losses minus the entropy of their targets, the part that can fall.
      Everything is finite, 0 where nothing counts.
    """
    if scope not in get_args(Scope):
        raise ValueError(f"hierarchical_losses: scope {scope!r} is not one of {', '.join(get_args(Scope))}")
    memory = jax.lax.stop_gradient(memory)
    row = jnp.maximum(slot, 0)
    known = valid & (slot >= 0) & memory.valid[row]
    own = jnp.where(known, slot, -1)
    within = jnp.where(known[:, None], memory.within_index[row], -1)
    cross = jnp.where(known[:, None], memory.cross_index[row], -1)
    within_weight, cross_weight = memory.within_weight[row], memory.cross_weight[row]
    counted = {"intra": known, "within": (within >= 0).any(axis=1), "cross": (cross >= 0).any(axis=1)}

    # Rows that only fill the batch may hold anything, also NaN.
    features = jnp.where(known[:, None], features.astype(jnp.float32), 0.0)
    logits = jnp.matmul(features, memory.feature.T, precision=jax.lax.Precision.HIGHEST) / temperature
    logits = constrain_columns(logits, memory.feature)

    if scope == "camera":
        anchor = jnp.concatenate([own[:, None], within, cross], axis=1)
        entropy = camera_cross_entropy(logits, anchor, memory)
        width = within.shape[1]
        values = {
            "intra": entropy[:, 0],
            "within": (within_weight * entropy[:, 1 : 1 + width]).sum(axis=1),
            "cross": (cross_weight * entropy[:, 1 + width :]).sum(axis=1),
        }
    else:
        values = {"intra": camera_cross_entropy(logits, own[:, None], memory)[:, 0]}
        is_own = own[:, None] == jnp.arange(memory.capacity)
        same_modality = memory.modality[row][:, None] == memory.modality
        same_camera = memory.camera[row][:, None] == memory.camera
        neutral = memory.look_alike_index[row]
        neutral = _listed(neutral, jnp.ones(neutral.shape, bool), memory.capacity)

        target = 0.5 * is_own + 0.5 * _listed(within, within_weight, memory.capacity)
        near = _near(memory.within_space, row, memory.within_floor, neutral_band) & ~same_camera
        considered = (memory.valid & same_modality & ~near & ~neutral) | (target > 0)
        values["within"], values["within_excess"] = _joint_cross_entropy(logits, target, considered)

        target = _listed(cross, cross_weight, memory.capacity)
        near = _near(memory.cross_space, row, memory.cross_floor, neutral_band)
        considered = (memory.valid & ~same_modality & ~near) | (target > 0)
        values["cross"], values["cross_excess"] = _joint_cross_entropy(logits, target, considered)

    losses = {name: masked_mean(value, counted[name.split("_")[0]]) for name, value in values.items()}
    return losses | {f"{name}_count": rows.sum() for name, rows in counted.items()}


def _near(
    features: Float[Array, "slots dim"], row: Int[Array, " clips"], floor: Float[Array, " slots"], band: float
) -> Bool[Array, "clips slots"]:
    """bool[B, K]: prototypes whose similarity to the clip's own is at least the floor of that one minus the band."""
    similarity = jnp.matmul(features[row], features.T, precision=jax.lax.Precision.HIGHEST)
    return similarity >= floor[row][:, None] - band
