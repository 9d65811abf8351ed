"""Clusters of tracklets as a fixed-capacity memory: numbered anew every epoch, without a change of shape.

A row (its number: *slot*) stands for a cluster or, camera-aware, for the tracklets of a cluster in one camera. −1 means
empty, or noise, everywhere.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxreid.arrays import unit_rows
from jaxreid.memory.prototypes import build_prototypes
from jaxreid.retrieval.clustering import inverse, linear_assignment
from jaxreid.retrieval.neighbours import block_of, map_rows
from jaxreid.shapes import AnyArray, Array, Bool, Float, Int


class ClusterMemory(struct.PyTreeNode):
    """K rows and what they stand for; state, never differentiated."""

    feature: Array  # f32[K, D], unit rows; zero rows where not valid
    valid: Array  # bool[K]
    modality: Array  # i32[K], modality group
    camera: Array  # i32[K], camera key; of a cluster with several cameras any of them
    cluster: Array  # i32[K]
    partner: Array  # i32[K], the slot of the other modality that a slot is matched with
    label: Array  # i32[N], the slot of every training tracklet
    neighbours_left_out: Array  # i32[], the most neighbours of a tracklet that its list had no room for
    entries_left_out: Array  # i32[], the same of the encoding: 0 means that distances were exact

    @property
    def capacity(self) -> int:
        return self.feature.shape[0]


def empty_memory(tracklets: int, dim: int) -> ClusterMemory:
    """N slots without a feature; every tracklet is its own slot until the first clustering."""

    def nothing() -> Int[Array, " tracklets"]:
        return jnp.full(tracklets, -1, jnp.int32)

    return ClusterMemory(
        feature=jnp.zeros((tracklets, dim), jnp.float32),
        valid=jnp.zeros(tracklets, bool),
        modality=nothing(),
        camera=nothing(),
        cluster=nothing(),
        partner=nothing(),
        label=jnp.arange(tracklets, dtype=jnp.int32),
        neighbours_left_out=jnp.int32(0),
        entries_left_out=jnp.int32(0),
    )


def consecutive(code: Int[Array, " rows"]) -> Int[Array, " rows"]:
    """Codes numbered 0, 1, … in ascending order, equal codes alike; −1 stays −1."""
    order = jnp.argsort(code)
    ordered = code[order]
    is_new = (ordered >= 0) & (ordered != jnp.concatenate([jnp.full(1, -1, code.dtype), ordered[:-1]]))
    number = jnp.where(ordered >= 0, jnp.cumsum(is_new) - 1, -1)
    return jnp.zeros_like(code).at[order].set(number.astype(code.dtype))


def fill(
    memory: ClusterMemory,
    features: Float[AnyArray, "clips dim"],
    tracklet: Int[AnyArray, " clips"],
    valid: Bool[AnyArray, " clips"],
    label: Int[AnyArray, " tracklets"],
    cluster: Int[AnyArray, " tracklets"],
    camera: Int[AnyArray, " tracklets"],
    modality: Int[AnyArray, " tracklets"],
) -> ClusterMemory:
    """The memory of new labels: a slot's feature is the normalized mean of its clips.

    Args:
      features: unit rows of clips; tracklet: theirs.
      label, cluster, camera, modality: of every tracklet: its slot and what the slot stands for.
    """
    clip_slot = jnp.where(valid, label[jnp.maximum(tracklet, 0)], -1)
    feature, count, _ = build_prototypes(features, clip_slot, valid, memory.capacity)
    target = jnp.where(label >= 0, label, memory.capacity)

    def of_slot(values: Int[AnyArray, " tracklets"]) -> Int[Array, " slots"]:
        return jnp.full(memory.capacity, -1, jnp.int32).at[target].set(values, mode="drop")

    return memory.replace(
        feature=feature,
        valid=count > 0,
        modality=of_slot(modality),
        camera=of_slot(camera),
        cluster=of_slot(cluster),
        partner=jnp.full(memory.capacity, -1, jnp.int32),
        label=label,
    )


def pair_counts(
    visible: Float[Array, "visible dim"],
    infrared: Float[Array, "infrared dim"],
    visible_label: Int[Array, " visible"],
    infrared_label: Int[Array, " infrared"],
    clusters: int,
    threshold: float,
) -> Float[Array, "{clusters} {clusters}"]:
    """How many (visible, infrared) tracklet pairs with cosine ≥ threshold every pair of clusters has.

    Args:
      visible, infrared: unit rows; labels outside 0…C−1 count nowhere.
    """
    member = jax.nn.one_hot(infrared_label, clusters, dtype=jnp.float32)

    def of_block(rows: Int[Array, " block"]) -> Float[Array, "block clusters"]:
        similarity = jnp.matmul(visible[rows], infrared.T, precision=jax.lax.Precision.HIGHEST)
        return (similarity >= threshold).astype(jnp.float32) @ member

    found = map_rows(of_block, visible.shape[0], block_of(visible.shape[0], infrared.shape[0]))
    inside = (visible_label >= 0) & (visible_label < clusters)
    return jax.ops.segment_sum(found, jnp.where(inside, visible_label, clusters), clusters + 1)[:clusters]


def greedy_matching(value: Float[Array, "rows columns"]) -> Int[Array, " rows"]:
    """One-to-one pairs of rows and columns, the largest positive value first; −1 without a partner.

    Of equal values the lower row, then the lower column comes first. All pairs that are the best of both their
    row and their column are taken at once: the greedy order would come to each of them.
    """
    rows, columns = value.shape
    numbers = jnp.arange(rows)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        value, partner, _ = state
        best, wanted = value.argmax(axis=1), value.argmax(axis=0)
        accepted = (wanted[best] == numbers) & (value.max(axis=1) > 0)
        partner = jnp.where(accepted, best, partner)
        taken = jnp.zeros(columns, bool).at[jnp.where(accepted, best, columns)].set(True, mode="drop")
        return jnp.where(accepted[:, None] | taken, 0.0, value), partner, accepted.any()

    start = (value, jnp.full(rows, -1, jnp.int32), jnp.bool_(True))
    return jax.lax.while_loop(lambda state: state[2], step, start)[1].astype(jnp.int32)


def bipartite_matching(
    one: Float[Array, "rows dim"],
    one_valid: Bool[Array, " rows"],
    other: Float[Array, "columns dim"],
    other_valid: Bool[Array, " columns"],
) -> tuple[Int[Array, " rows"], Int[Array, " columns"]]:
    """Partners of either side by the least total exp(−cosine), those left over matched in a second round.

    Wu and Ye (2023), "Unsupervised Visible-Infrared Person Re-Identification via Progressive Graph Matching and
    Alternate Learning": in the first round as many pairs as the smaller side has rows; what the larger side has left
    over is then matched to all of the smaller side once more. −1 for what has no partner.

    Args:
      one, other: unit rows, zero where not valid.
    """
    cost = jnp.exp(-jnp.matmul(one, other.T, precision=jax.lax.Precision.HIGHEST))

    def match(
        rows: Bool[Array, " rows"], columns: Bool[Array, " columns"]
    ) -> tuple[Int[Array, " rows"], Int[Array, " columns"]]:
        forward = linear_assignment(cost, rows, columns)
        return forward, inverse(forward, len(columns))

    first = match(one_valid, other_valid)
    left = one_valid & (first[0] < 0), other_valid & (first[1] < 0)  # of one side at most

    def rematch() -> tuple[Int[Array, " rows"], Int[Array, " columns"]]:
        return match(jnp.where(left[0].any(), left[0], one_valid), jnp.where(left[1].any(), left[1], other_valid))

    second = jax.lax.cond(left[0].any() | left[1].any(), rematch, lambda: first)
    return jnp.where(left[0], second[0], first[0]), jnp.where(left[1], second[1], first[1])


def pull_together(memory: ClusterMemory, weight: float, group: int) -> ClusterMemory:
    """Matched rows of one modality group moved to their partners: m ← normalize(weight·m + (1 − weight)·partner)."""
    moved = unit_rows(weight * memory.feature + (1.0 - weight) * memory.feature[jnp.maximum(memory.partner, 0)])
    chosen = (memory.partner >= 0) & (memory.modality == group)
    return memory.replace(feature=jnp.where(chosen[:, None], moved, memory.feature))
