"""Prototypes: unit features with their mined positives, in a fixed-capacity masked table.

A prototype stands for a tracklet, or for the tracklets of one recording in one camera; its row is its *slot*. A *camera
key* numbers (modality, camera) pairs: two modalities of one place are unrelated keys. −1 means empty everywhere.

docs/hitpro.md, sections 3.3 (prototypes) and 6 (update).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import ArrayLike

from jaxreid.arrays import unit_rows
from jaxreid.errors import UserError
from jaxreid.shapes import AnyArray, Array, Bool, Float, Int, Scalar


class PrototypeMemory(struct.PyTreeNode):
    """K prototypes over C camera keys and G modalities, with their look-alikes and positives.

    State, not parameters: it is saved in checkpoints and never differentiated.
    """

    feature: Array  # f32[K, D], unit rows; zero rows where not valid
    camera: Array  # i32[K], camera key
    modality: Array  # i32[K]
    valid: Array  # bool[K], slots that have a prototype
    count: Array  # f32[K], clips in the prototype
    concentration: Array  # f32[K], length of the mean before normalizing, in (0, 1]; small = clips that differ
    within_index: Array  # i32[K, P1], positives in other cameras of the same modality
    within_weight: Array  # f32[K, P1], rows sum to 1, or to 0 without a positive
    cross_index: Array  # i32[K, P2], positives in the other modality
    cross_weight: Array  # f32[K, P2]
    look_alike_index: Array  # i32[K, Q], neither positives nor negatives: near slots of the same camera
    within_threshold: Array  # f32[G], one for each modality
    cross_threshold: Array  # f32[]
    look_alike_threshold: Array  # f32[]
    within_floor: Array  # f32[K], min(threshold, best candidate), where the neutral band of the joint softmax ends
    cross_floor: Array  # f32[K]
    within_space: Array  # f32[K, D], what stage 1 compared: unit rows
    cross_space: Array  # f32[K, D], what stage 2 compared; of softmax codes [K, K]
    camera_modality: Array  # i32[C], modality of every camera key

    @property
    def capacity(self) -> int:
        return self.feature.shape[0]

    @property
    def num_cameras(self) -> int:
        return self.camera_modality.shape[0]

    @property
    def num_modalities(self) -> int:
        return self.within_threshold.shape[0]


def padded_capacity(num_slots: int, multiple: int = 1024) -> int:
    """The number of slots rounded up, so that a few more tracklets do not change compiled shapes."""
    return max(1, -(-num_slots // multiple)) * multiple


def empty_memory(
    slot_camera: ArrayLike,
    camera_modality: ArrayLike,
    dim: int,
    *,
    capacity: int | None = None,
    within_positives: int = 4,
    cross_positives: int = 6,
    look_alikes: int = 8,
    cross_dim: int | None = None,
) -> PrototypeMemory:
    """A memory whose slots have their camera and modality but no prototype yet.

    Args:
      slot_camera: i32[N], the camera key of every slot.
      camera_modality: i32[C], the modality of every camera key, numbered from 0.
      dim: feature width D.
      capacity: K ≥ N; by default N itself.
      within_positives, cross_positives, look_alikes: widths P1, P2 and Q of the lists.
      cross_dim: width of what stage 2 compares; by default D.

    Raises:
      UserError: a camera key outside 0…C−1, a negative modality, or more slots than the capacity.
    """
    slot_camera = np.asarray(slot_camera, np.int32)
    camera_modality = np.asarray(camera_modality, np.int32)
    slots = len(slot_camera)
    capacity = slots if capacity is None else capacity
    if slots > capacity:
        raise UserError(f"prototype memory: {slots} slots do not fit a capacity of {capacity}; raise the capacity")
    unknown = np.flatnonzero((slot_camera < 0) | (slot_camera >= len(camera_modality)))
    if unknown.size:
        raise UserError(
            f"prototype memory: slot {unknown[0]} has camera key {slot_camera[unknown[0]]}, but only "
            f"0…{len(camera_modality) - 1} are in camera_modality ({unknown.size} such slots)"
        )
    if camera_modality.size and camera_modality.min() < 0:
        raise UserError(f"prototype memory: camera_modality holds a negative modality: {camera_modality.tolist()}")

    camera = np.full(capacity, -1, np.int32)
    modality = np.full(capacity, -1, np.int32)
    camera[:slots] = slot_camera
    modality[:slots] = camera_modality[slot_camera]
    num_modalities = int(camera_modality.max(initial=0)) + 1

    def empty_list(width: int) -> np.ndarray:
        return np.full((capacity, width), -1, np.int32)

    # Made on the host: nothing is compiled for a table of zeros.
    empty: dict[str, np.ndarray] = dict(
        feature=np.zeros((capacity, dim), np.float32),
        camera=camera,
        modality=modality,
        valid=np.zeros(capacity, bool),
        count=np.zeros(capacity, np.float32),
        concentration=np.zeros(capacity, np.float32),
        within_index=empty_list(within_positives),
        within_weight=np.zeros((capacity, within_positives), np.float32),
        cross_index=empty_list(cross_positives),
        cross_weight=np.zeros((capacity, cross_positives), np.float32),
        look_alike_index=empty_list(look_alikes),
        within_threshold=np.zeros(num_modalities, np.float32),
        cross_threshold=np.zeros((), np.float32),
        look_alike_threshold=np.zeros((), np.float32),
        within_floor=np.zeros(capacity, np.float32),
        cross_floor=np.zeros(capacity, np.float32),
        within_space=np.zeros((capacity, dim), np.float32),
        cross_space=np.zeros((capacity, dim if cross_dim is None else cross_dim), np.float32),
        camera_modality=camera_modality,
    )
    return PrototypeMemory(**{name: jnp.asarray(values) for name, values in empty.items()})


def build_prototypes(
    features: Float[AnyArray, "clips dim"],
    slot: Int[AnyArray, " clips"],
    valid: Bool[AnyArray, " clips"],
    capacity: int,
) -> tuple[Float[Array, "{capacity} dim"], Float[Array, " {capacity}"], Float[Array, " {capacity}"]]:
    """Prototype of every slot: the normalized mean of the features of its clips (section 3.3).

    Args:
      features: one row for each clip (part of a tracklet), unit length.
      slot: the slot of every clip; −1 belongs to none.
      valid: false on rows that only fill the array.
      capacity: K.

    Returns:
      feature (zero rows where a slot has no clip), count, concentration.
    """
    used = valid & (slot >= 0)
    target = jnp.where(used, slot, capacity)
    features = jnp.where(used[:, None], features.astype(jnp.float32), 0.0)
    total = jax.ops.segment_sum(features, target, capacity + 1)[:capacity]
    count = jax.ops.segment_sum(used.astype(jnp.float32), target, capacity + 1)[:capacity]
    mean = total / jnp.maximum(count, 1.0)[:, None]
    return unit_rows(mean), count, jnp.linalg.norm(mean, axis=-1)


@jax.jit
def rebuild(
    memory: PrototypeMemory,
    features: Float[Array, "clips dim"],
    slot: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
) -> PrototypeMemory:
    """The memory with prototypes of a whole extraction pass; slots without a clip become invalid.

    Lists of positives are left as they are: `association.associate` renews them.
    """
    feature, count, concentration = build_prototypes(features, slot, valid, memory.capacity)
    known = (count > 0) & (memory.camera >= 0)
    return memory.replace(
        feature=jnp.where(known[:, None], feature, 0.0),
        valid=known,
        count=jnp.where(known, count, 0.0),
        concentration=jnp.where(known, concentration, 0.0),
    )


def update_prototypes(
    memory: PrototypeMemory,
    features: Float[Array, "clips dim"],
    slot: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
    momentum: Scalar,
) -> PrototypeMemory:
    """Moves the prototypes of a batch towards the batch's features (section 6).

    p ← normalize(momentum · p + (1 − momentum) · normalize(mean of the batch's features of the slot)).
    The result does not depend on the order of the clips; prototypes that are not in the batch do not change.

    Args:
      momentum: share of the old prototype, 0.5 by default; may be traced.
    """
    row = jnp.maximum(slot, 0)
    used = valid & (slot >= 0) & memory.valid[row]
    features = jnp.where(used[:, None], jax.lax.stop_gradient(features).astype(jnp.float32), 0.0)
    same_slot = (slot[:, None] == slot) & used[:, None] & used
    total = jnp.matmul(same_slot.astype(jnp.float32), features, precision=jax.lax.Precision.HIGHEST)
    mean = total / jnp.maximum(same_slot.sum(axis=1, keepdims=True), 1)
    moved = unit_rows(momentum * memory.feature[row] + (1.0 - momentum) * unit_rows(mean))
    # One clip writes for its slot: rows of one slot agree only up to rounding.
    writes = used & (jnp.argmax(same_slot, axis=1) == jnp.arange(slot.shape[0]))
    target = jnp.where(writes, slot, memory.capacity)
    return memory.replace(feature=memory.feature.at[target].set(moved, mode="drop"))
