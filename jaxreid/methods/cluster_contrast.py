"""Cluster contrast: the clustering baseline of unsupervised person re-identification, on clips.

Dai et al. (2022), "Cluster Contrast for Unsupervised Person Re-Identification", ACCV. Before every epoch the
tracklets of each modality are clustered by DBSCAN on the k-reciprocal Jaccard distance; a clip is then contrasted with
the clusters of its modality. Variants:

    memory.kind="camera"    Wang et al. (2021), CAP: a prototype per cluster and camera; clips are contrasted with those
                            of their own camera, later also with the hardest ones of other clusters in all cameras.
    cross_modality="adca"   Yang et al. (2022), ADCA: clusters matched by counting near pairs; the visible prototype
                            moves to its infrared partner.
    cross_modality="pgm"    Wu and Ye (2023), PGM: clusters matched by least cost; clips are also contrasted with the
                            other modality's prototypes, the direction alternating from epoch to epoch.

No identity label is used. The encoder is HiTPro's, so that the two methods differ in what they learn from only.
Clustering runs inside `refresh`, as a pure function of features with static capacities: labels are state as any other,
a resumed run finds the same ones, and nothing compiles again. What did not fit the capacities is logged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import unit_rows
from jaxreid.augment import Augmentation
from jaxreid.backbones.frame_encoder import backbone_config, feature_width
from jaxreid.data.batch import Batch
from jaxreid.data.samplers import LabelSampler
from jaxreid.data.split import Labels, modality_name
from jaxreid.dataset_info import DatasetInfo
from jaxreid.devices.parallel import constrain
from jaxreid.errors import UserError
from jaxreid.losses.cluster import hard_negative_contrast, slot_contrast
from jaxreid.memory import clusters
from jaxreid.memory.clusters import ClusterMemory
from jaxreid.memory.prototypes import build_prototypes, update_prototypes
from jaxreid.methods.hitpro import TEMPORAL, TemporalAwareFeatureEncoder, camera_keys
from jaxreid.methods.method import (
    Backbone,
    Context,
    Extraction,
    Features,
    LossOutput,
    Method,
    Stage,
    Update,
    Variables,
)
from jaxreid.optimizers import Schedule, make_optimizer
from jaxreid.retrieval.clustering import cluster_quality, dbscan, jaccard_graph
from jaxreid.values import flag, non_negative, number, one_of, positive, under, whole

MEMORIES, CROSS_MODALITY = ("cluster", "camera"), ("none", "adca", "pgm")


VALUES = {
    "temporal.pooling": one_of(TEMPORAL),
    "ema_decay": number(0, below=1),
    "memory.kind": one_of(MEMORIES),
    "cross_modality": one_of(CROSS_MODALITY),
    **under("memory", {"momentum": number(0, below=1), "temperature": positive, "camera_weight": non_negative}),
    **under("memory", {"camera_start_epoch": whole(0), "hard_negatives": whole(1)}),
    "cross_weight": non_negative,
    "cross_start_epoch": whole(0),
    "matched_clusters": whole(1),
    **under("cluster", dict.fromkeys(("visible_eps", "infrared_eps"), number(above=0, below=1))),
    **under("cluster", dict.fromkeys(("min_samples", "k1", "k2", "max_neighbors", "max_encoding"), whole(1))),
    "cluster.center_cameras": flag,
}


class ClusterContrast(Method):
    """See the module's docstring."""

    values = VALUES

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        if config.cross_modality != "none" and config.memory.kind != "cluster":
            yield (
                f"config.cross_modality={config.cross_modality!r} matches clusters, so it needs "
                f"config.memory.kind='cluster', not {config.memory.kind!r}"
            )

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        self.tower = backbone_config(config.backbone, info.frame_size, config.precision)
        self.encoder = TemporalAwareFeatureEncoder(self.tower, config.temporal.pooling)
        self.camera, camera_group, _ = camera_keys(info)
        self.group = camera_group[self.camera]  # the modality group of every tracklet
        self.modalities = tuple(int(code) for code in np.unique(info.table.modality))
        if config.cross_modality != "none" and len(self.modalities) != 2:
            raise UserError(
                f"config.cross_modality={config.cross_modality!r} matches clusters of two modalities, but {info.name} "
                f"has {', '.join(map(modality_name, self.modalities))} training tracklets only"
            )

    # --- the run ------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        config, batch = self.config, self.config.batch
        return (
            Stage(
                name="cluster_contrast",
                epochs=config.epochs,
                loss=self.loss,
                sampler=LabelSampler(batch.num_clusters, batch.num_instances, batch.parts, steps=batch.steps_per_epoch),
                seq_len=batch.seq_len,
                augment=Augmentation(**config.augment),
                updates=(Update("all", make_optimizer(config.optimizer), Schedule(**config.schedule)),),
                extraction=Extraction(1, batch.parts, batch.seq_len, refresh=self.refresh),
                calibrate=True,
                ema_decay=config.ema_decay,
            ),
        )

    def backbones(self) -> tuple[Backbone, ...]:
        return (Backbone(("encoder",), self.config.backbone.checkpoint, self.tower),)

    def notes(self) -> tuple[str, ...]:
        variant = f"memory {self.config.memory.kind}, across modalities {self.config.cross_modality}"
        return (*super().notes(), f"Pseudo-labels by DBSCAN every epoch; {variant}.")

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        return self.encoder.init(rng, batch, train=False)

    # --- clusters -----------------------------------------------------------------------------------------------

    def init_memory(self) -> ClusterMemory:
        return clusters.empty_memory(len(self.group), feature_width(self.tower))

    def refresh(
        self, variables: Variables, memory: ClusterMemory, features: Features, context: Context
    ) -> ClusterMemory:
        """Clusters of every modality, their prototypes and, from `cross_start_epoch` on, partners across modalities."""
        count = len(self.group)
        z = constrain(unit_rows(features.arrays["feature"]), "replicated")
        x, _, _ = build_prototypes(z, features.tracklet, features.valid, count)
        cluster, lost, left_out = self._clusters(self._centred(x) if self.config.cluster.center_cameras else x)
        if self.config.memory.kind == "camera":
            cameras = int(self.camera.max()) + 1
            label = clusters.consecutive(jnp.where(cluster >= 0, cluster * cameras + self.camera, -1))
        else:
            label = cluster
        camera, modality = jnp.asarray(self.camera), jnp.asarray(self.group)
        memory = clusters.fill(memory, z, features.tracklet, features.valid, label, cluster, camera, modality).replace(
            entries_left_out=lost, neighbours_left_out=left_out
        )
        if self.config.cross_modality == "none":
            return memory
        begun = jnp.floor(context.progress.epoch) >= self.config.cross_start_epoch
        return jax.lax.cond(begun, lambda: self._across(memory, x), lambda: memory)

    def _rows(self) -> list[np.ndarray]:
        return [np.flatnonzero(self.group == code) for code in range(len(self.modalities))]

    def _centred(self, x: jax.Array) -> jax.Array:
        """Features without the mean of their camera, so that tracklets do not gather by place."""
        cameras = int(self.camera.max()) + 1
        total = jax.ops.segment_sum(x, self.camera, cameras)
        count = np.bincount(self.camera, minlength=cameras)
        return unit_rows(x - (total / count[:, None])[self.camera])

    def _clusters(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(cluster of every tracklet, what the encoding and the neighbour lists left out).

        The clusters of a modality are numbered from the count of tracklets before it: never more clusters than
        tracklets.
        """
        config = self.config.cluster
        found, lost, left_out, start = jnp.full(len(x), -1, jnp.int32), jnp.int32(0), jnp.int32(0), 0
        for rows, code in zip(self._rows(), self.modalities, strict=True):
            eps = config[f"{modality_name(code)}_eps"]
            graph = jaccard_graph(x[rows], eps, config.k1, config.k2, config.max_neighbors, config.max_encoding)
            label = dbscan(graph, config.min_samples)
            found = found.at[rows].set(jnp.where(label >= 0, label + start, -1))
            lost = jnp.maximum(lost, graph.lost)
            left_out = jnp.maximum(left_out, graph.count.max() - graph.index.shape[1])
            start += len(rows)
        return found, lost, jnp.maximum(left_out, 0)

    def _across(self, memory: ClusterMemory, x: jax.Array) -> ClusterMemory:
        """Partners of the first `matched_clusters` clusters of each modality."""
        visible, infrared = self._rows()
        size, start = min(self.config.matched_clusters, len(visible), len(infrared)), len(visible)
        if self.config.cross_modality == "adca":
            counts = clusters.pair_counts(
                x[visible], x[infrared], memory.label[visible], memory.label[infrared] - start, size, 0.5
            )
            partner = clusters.greedy_matching(counts)
            backward = clusters.inverse(partner, size)
        else:
            slots = [slice(0, size), slice(start, start + size)]
            sides = [side for rows in slots for side in (memory.feature[rows], memory.valid[rows])]
            partner, backward = clusters.bipartite_matching(*constrain(sides, "replicated"))
        both = memory.partner.at[:size].set(jnp.where(partner >= 0, partner + start, -1))
        memory = memory.replace(partner=both.at[start : start + size].set(backward))
        return clusters.pull_together(memory, 0.1, 0) if self.config.cross_modality == "adca" else memory

    def sampling_labels(self, memory: ClusterMemory) -> jax.Array:
        return memory.label

    # --- loss ---------------------------------------------------------------------------------------------------

    def loss(self, variables: Variables, memory: ClusterMemory, batch: Batch, context: Context) -> LossOutput:
        """Contrast with the clusters, its cross-camera or cross-modality term, and the memory moved to the batch."""
        config = self.config
        found, changed = self.encoder.apply(
            variables, batch, train=True, mutable=["batch_stats"], rngs={"dropout": context.rng}
        )
        z = constrain(unit_rows(found["feature"]), "replicated")
        slot = jnp.where(batch.valid, memory.label[jnp.maximum(batch.tracklet, 0)], -1)
        row = jnp.maximum(slot, 0)
        slot = jnp.where(memory.valid[row], slot, -1)
        z = jnp.where((slot >= 0)[:, None], z, 0.0)
        bank = jax.lax.stop_gradient(memory)
        logits = jnp.matmul(z, bank.feature.T, precision=jax.lax.Precision.HIGHEST) / config.memory.temperature
        same_modality = bank.valid & (bank.modality[row][:, None] == bank.modality)

        epoch = jnp.floor(context.progress.epoch)
        if config.memory.kind == "camera":
            same_camera = bank.valid & (bank.camera[row][:, None] == bank.camera)
            metrics = {"loss_camera": slot_contrast(logits, slot, same_camera)}
            same_cluster = same_modality & (bank.cluster[row][:, None] == bank.cluster) & (slot >= 0)[:, None]
            metrics["loss_cluster"] = hard_negative_contrast(
                logits, same_cluster, same_modality & ~same_cluster, config.memory.hard_negatives
            )
            total = metrics["loss_camera"]
            total += config.memory.camera_weight * (epoch >= config.memory.camera_start_epoch) * metrics["loss_cluster"]
        else:
            groups = [jnp.where(bank.modality[row] == code, slot, -1) for code in range(len(self.modalities))]
            total = jnp.stack([slot_contrast(logits, group, same_modality) for group in groups]).sum()
            metrics = {"loss_cluster": total}
            if config.cross_modality == "pgm":
                turn = bank.modality[row] == epoch.astype(jnp.int32) % 2
                target = jnp.where((slot >= 0) & turn, bank.partner[row], -1)
                metrics["loss_cross"] = slot_contrast(logits, target, bank.valid & ~same_modality)
                total = total + config.cross_weight * metrics["loss_cross"]

        moved: Any = update_prototypes(memory, z, slot, batch.valid, config.memory.momentum)  # pyright: ignore[reportArgumentType]
        return LossOutput(total, metrics, changed["batch_stats"], moved)

    def embed(self, variables: Variables, memory: ClusterMemory, batch: Batch) -> dict[str, jax.Array]:
        """As HiTPro's: "feature" is the neck's output before normalizing, "tower" what goes into the neck."""
        return self.encoder.apply(variables, batch, train=False)  # pyright: ignore[reportReturnType]

    # --- for the log only ---------------------------------------------------------------------------------------

    def diagnose(self, memory: ClusterMemory, labels: Labels) -> dict[str, float]:
        """Agreement of each modality's clusters with the labels, and of matched clusters' most frequent persons; rows
        without a label count for coverage only."""
        found = {
            "neighbours_left_out": float(memory.neighbours_left_out),
            "entries_left_out": float(memory.entries_left_out),
        }
        label = np.asarray(memory.label)
        cluster = np.where(label >= 0, np.asarray(memory.cluster)[label], -1)
        for rows, code in zip(self._rows(), self.modalities, strict=True):
            name, quality = modality_name(code), cluster_quality(cluster[rows], labels.pid[rows])
            found[f"{name}_coverage"] = 100.0 * quality["covered"]
            found[f"{name}_clusters"] = quality["clusters"]
            labelled = rows[labels.pid[rows] >= 0]
            if len(labelled):
                quality = cluster_quality(cluster[labelled], labels.pid[labelled])
                found |= {f"{name}_{key}": 100.0 * quality[key] for key in ("precision", "recall", "ari", "nmi")}
        partner = np.asarray(memory.partner)
        slots, paired = np.flatnonzero(memory.valid), np.flatnonzero(partner >= 0)
        if len(paired):
            found["cross_coverage"] = 100.0 * len(paired) / len(slots)
            person = {slot: _most_frequent(labels.pid[label == slot]) for slot in slots}
            pairs = [(person[slot], person[partner[slot]]) for slot in paired]
            judged = [one == other for one, other in pairs if one >= 0 and other >= 0]
            if judged:
                found["cross_precision"] = float(100.0 * sum(judged) / len(judged))
        return found


def _most_frequent(pids: np.ndarray) -> int:
    """Of the known ones, the smallest of several; −1 where none is known."""
    values, counts = np.unique(pids[pids >= 0], return_counts=True)
    return int(values[counts.argmax()]) if len(values) else -1


METHOD = ClusterContrast
