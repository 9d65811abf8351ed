"""HiTPro: hierarchical temporal prototyping for unsupervised video visible-infrared person re-identification.

"Temporal Prototyping and Hierarchical Alignment for Unsupervised Video-based Visible-Infrared Person
Re-Identification", arXiv 2604.21324 (2026).

Of the paper only the abstract could be read. Modules, their order and what goes in and out of them follow it:
Temporal-aware Feature Encoder, Intra-Camera Tracklet Prototyping, Hierarchical Cross-Prototype Alignment (two-stage
positive mining, Dynamic Threshold Strategy, Soft Weight Assignment) and Hierarchical Contrastive Learning. Every
formula below that level is a design of this library after released ancestors (CAP, O2CAP, DAL, GUR, ADCA), so
results of this module are not a reproduction of the paper's figures. Sections below are those of docs/hitpro.md.

No identity label is used: a tracklet, its camera and its modality are all that training sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, get_args

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import masked_mean, unit_rows
from jaxreid.augment import Augmentation
from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.backbones.frame_encoder import EncoderConfig, backbone_config, encode_frames, feature_width
from jaxreid.data.batch import Batch
from jaxreid.data.samplers import LabelSampler
from jaxreid.data.split import Labels, modality_name
from jaxreid.dataset_info import DatasetInfo
from jaxreid.devices.parallel import constrain
from jaxreid.errors import UserError
from jaxreid.layers.temporal import TemporalAggregation
from jaxreid.losses.contrastive import Scope, hierarchical_losses
from jaxreid.memory.association import VALUES as ASSOCIATION_VALUES
from jaxreid.memory.association import AssociationConfig, associate
from jaxreid.memory.prototypes import PrototypeMemory, empty_memory, padded_capacity, rebuild, update_prototypes
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
from jaxreid.optimizers import Progress, Schedule, make_optimizer
from jaxreid.values import flag, non_negative, number, one_of, positive, series, under, whole

TEMPORAL = ("attention", "mean")  # aggregations over time, the second as the ablation without parameters
UNITS = ("tracklet", "camera_track")  # what one prototype stands for


class TemporalAwareFeatureEncoder(nn.Module):
    """Frames to one feature per clip: frame features first, then aggregation over time, then a batch-norm neck.

    Attributes:
      tower: the frame encoder.
      temporal: one of `TEMPORAL`.
    """

    tower: EncoderConfig
    temporal: str

    @nn.compact
    def __call__(self, batch: Batch, train: bool) -> dict[str, jax.Array]:
        """frames [B, T, H, W, 3] → "tower" f32[B, D], the aggregated frames, and "feature" f32[B, D], normalized by
        the neck."""
        mask = batch.frame_mask
        f = encode_frames(self.tower, batch.frames, batch.seen, batch.modality, train, name="encoder")
        v = TemporalAggregation(name="temporal")(f, mask) if self.temporal == "attention" else masked_mean(f, mask)
        neck = MaskedBatchNorm(use_bias=False, name="neck")
        return {"tower": v, "feature": neck(v, batch.valid, use_running_average=not train)}


class HiTProMemory(flax.struct.PyTreeNode):
    prototypes: PrototypeMemory
    slot: jax.Array  # i32[N], the slot of every training tracklet


VALUES = {
    "require_both_modalities": flag,
    "temporal.pooling": one_of(TEMPORAL),
    "ema_decay": number(0, below=1),
    "kappa": series(number(), length=2),
    "prototypes.unit": one_of(UNITS),
    "prototypes.momentum": number(0, below=1),
    **under("prototypes", dict.fromkeys(("parts", "pad_to_multiple_of"), whole(1))),
    **under("association", ASSOCIATION_VALUES),
    **under("levels", dict.fromkeys(("intra_weight", "within_weight", "cross_weight"), non_negative)),
    **under("levels", dict.fromkeys(("within_start_epoch", "cross_start_epoch"), whole(0))),
    **under("levels", {"temperature": positive, "scope": one_of(get_args(Scope))}),
}


class HiTPro(Method):
    """See the module's docstring."""

    values = VALUES
    assumes: ClassVar[Mapping[str, str]] = {"prototype unit": "prototypes.unit"}

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        self.tower = backbone_config(config.backbone, info.frame_size, config.precision)
        self.encoder = TemporalAwareFeatureEncoder(self.tower, config.temporal.pooling)
        self.association = AssociationConfig(**config.association)
        self.camera, self.camera_modality, self.camera_names = camera_keys(info)
        self.slot, self.slot_camera = self._slots()
        self.modalities = tuple(int(code) for code in np.unique(info.table.modality))
        # Levels beyond the first that can run: within a modality that two cameras see, and across two modalities.
        can_run = {"within": np.bincount(self.camera_modality).max() > 1, "cross": len(self.modalities) > 1}
        self.mined = tuple(name for name, can in can_run.items() if can)
        if config.levels.cross_weight and len(self.modalities) == 1 and config.require_both_modalities:
            seen = modality_name(self.modalities[0])
            other = "infrared" if seen == "visible" else "visible"
            raise UserError(
                f"{info.name}: every training tracklet is {seen}, and this run is cross-modality. Add {other} "
                "tracklets, or set --config.require_both_modalities=False to train the within-modality levels only"
            )

    def _slots(self) -> tuple[np.ndarray, np.ndarray]:
        """What each prototype stands for: (slot of every tracklet i32[N], camera key of every slot)."""
        unit, table = self.config.prototypes.unit, self.info.table
        if unit == "tracklet":
            return np.arange(len(table), dtype=np.int32), self.camera
        if unit == "camera_track":
            unknown = int(np.sum(table.recording < 0))
            if unknown:
                raise UserError(
                    f"prototypes.unit='camera_track' joins the pieces of one recording, but {unknown} tracklets of "
                    f"{self.info.name} name no recording; use prototypes.unit='tracklet'"
                )
            keys = np.stack([self.camera, table.recording], 1)
            groups, slot = np.unique(keys, axis=0, return_inverse=True)
            return slot.reshape(-1).astype(np.int32), groups[:, 0].astype(np.int32)
        raise ValueError(f"prototypes.unit={unit!r} is not one of {', '.join(UNITS)}")

    # --- the run ------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        config, batch = self.config, self.config.batch
        return (
            Stage(
                name="hitpro",
                epochs=config.epochs,
                loss=self.loss,
                sampler=LabelSampler(batch.num_prototypes, batch.num_instances, config.prototypes.parts),
                seq_len=batch.seq_len,
                augment=Augmentation(**config.augment),
                updates=(Update("all", make_optimizer(config.optimizer), Schedule(**config.schedule)),),
                extraction=Extraction(1, config.prototypes.parts, batch.seq_len, refresh=self.refresh),
                calibrate=True,
                ema_decay=config.ema_decay,
            ),
        )

    def backbones(self) -> tuple[Backbone, ...]:
        return (Backbone(("encoder",), self.config.backbone.checkpoint, self.tower),)

    def notes(self) -> tuple[str, ...]:
        unit = self.config.prototypes.unit
        knows = {"tracklet": "", "camera_track": " (uses which recording a tracklet was cut from)"}
        notes = [
            *super().notes(),
            f"Prototype unit: {unit}{knows[unit]}.",
            "Below the level of the paper's abstract the method is this library's design (docs/hitpro.md).",
        ]
        if len(self.modalities) == 1:
            seen = modality_name(self.modalities[0])
            notes.append(f"All training tracklets are {seen}: levels 1 and 2 ran, the cross-modality level could not.")
        sizes = np.bincount(self.slot_camera, minlength=len(self.camera_modality))
        for key in np.flatnonzero(sizes == 1):
            notes.append(f"Camera {self.camera_names[key]} has one slot: it adds nothing to the intra-camera level.")
        return tuple(notes)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        return self.encoder.init(rng, batch, train=False)

    # --- Intra-Camera Tracklet Prototyping, Hierarchical Cross-Prototype Alignment ----------------------------------

    def init_memory(self) -> HiTProMemory:
        width = feature_width(self.tower)
        capacity = padded_capacity(len(self.slot_camera), self.config.prototypes.pad_to_multiple_of)
        prototypes = empty_memory(
            self.slot_camera,
            self.camera_modality,
            width,
            capacity=capacity,
            within_positives=self.association.within_positives,
            cross_positives=self.association.cross_positives,
            look_alikes=self.association.num_look_alikes,
            cross_dim=capacity if self.association.stage2_space == "softmax_code" else width,
        )
        return HiTProMemory(prototypes, jnp.asarray(self.slot))

    def refresh(self, variables: Variables, memory: HiTProMemory, features: Features, context: Context) -> HiTProMemory:
        """Prototypes of all sub-tracklets (section 3.3), then two-stage positive mining at κ(e) (section 3.4)."""
        z = unit_rows(features.arrays["feature"])
        slot = jnp.where(features.valid, memory.slot[jnp.maximum(features.tracklet, 0)], -1)
        prototypes = rebuild(memory.prototypes, z, slot, features.valid)
        prototypes = constrain(prototypes, "replicated")
        return memory.replace(prototypes=self.align(prototypes, self.kappa(context.progress)))

    def align(self, prototypes: PrototypeMemory, kappa: jax.Array) -> PrototypeMemory:
        """Look-alikes and positives of all prototypes."""
        return associate(prototypes, kappa, self.association)

    def kappa(self, progress: Progress) -> jax.Array:
        """κ(e), linear from its value in the first epoch to that in the last."""
        start, end = self.config.kappa
        return start + (end - start) * jnp.floor(progress.epoch) / max(self.config.epochs - 1, 1)

    def sampling_labels(self, memory: HiTProMemory) -> jax.Array:
        return memory.slot

    # --- Hierarchical Contrastive Learning ----------------------------------------------------------------------

    def loss(self, variables: Variables, memory: HiTProMemory, batch: Batch, context: Context) -> LossOutput:
        """L = L1 + λ2·1[e ≥ E1]·L2 + λ3·1[e ≥ E2]·L3 (section 4), and the prototypes moved towards the batch (6)."""
        found, changed = self.encoder.apply(
            variables, batch, train=True, mutable=["batch_stats"], rngs={"dropout": context.rng}
        )
        # Every device needs all of the batch to move its copy of the prototypes; the rows are few.
        z = constrain(unit_rows(found["feature"]), "replicated")
        slot = jnp.where(batch.valid, memory.slot[jnp.maximum(batch.tracklet, 0)], -1)

        levels, prototypes = self.config.levels, memory.prototypes
        losses = hierarchical_losses(z, slot, batch.valid, prototypes, levels.temperature, levels.scope)
        epoch = jnp.floor(context.progress.epoch)
        intra_weight = levels.intra_weight
        within_weight = levels.within_weight * (epoch >= levels.within_start_epoch)
        cross_weight = levels.cross_weight * (epoch >= levels.cross_start_epoch)
        total = intra_weight * losses["intra"] + within_weight * losses["within"] + cross_weight * losses["cross"]

        prototypes = update_prototypes(prototypes, z, slot, batch.valid, self.config.prototypes.momentum)
        metrics = {f"loss_{name}": losses[name] for name in ("intra", *self.mined)}
        return LossOutput(total, metrics, changed["batch_stats"], memory.replace(prototypes=prototypes))

    def embed(self, variables: Variables, memory: HiTProMemory, batch: Batch) -> dict[str, jax.Array]:
        """ "feature" is the neck's output z before normalizing; "tower" the aggregated frames before the neck."""
        return self.encoder.apply(variables, batch, train=False)  # pyright: ignore[reportReturnType]

    # --- for the log only ---------------------------------------------------------------------------------------

    def diagnose(self, memory: HiTProMemory, labels: Labels) -> dict[str, float]:
        """In percent, of each list that can be mined: precision (pairs of one person, among those whose persons are
        known) and coverage (prototypes that have a pair)."""
        prototypes = memory.prototypes
        found: dict[str, float] = {}
        labelled = labels.pid >= 0
        person = np.full(prototypes.feature.shape[0], -1)
        person[self.slot[labelled]] = labels.pid[labelled]
        lists = {name: getattr(prototypes, f"{name}_index") for name in (*self.mined, "look_alike")}
        slots = max(int(prototypes.valid.sum()), 1)
        for name, index in lists.items():
            pairs = index >= 0
            other = person[np.maximum(index, 0)]
            judged = pairs & (other >= 0) & (person >= 0)[:, None]
            right = judged & (other == person[:, None])
            if labelled.any():
                found[f"{name}_precision"] = float(100.0 * right.sum() / max(judged.sum(), 1))
            found[f"{name}_coverage"] = float(100.0 * pairs.any(1).sum() / slots)
        if "within" in self.mined:
            for code, threshold in zip(self.modalities, prototypes.within_threshold, strict=True):
                found[f"within_threshold_{modality_name(code)}"] = float(threshold)
        if "cross" in self.mined:
            found["cross_threshold"] = float(prototypes.cross_threshold)
        found["concentration"] = float(prototypes.concentration.sum() / slots)
        return found


def camera_keys(info: DatasetInfo) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(camera key of every tracklet i32[N], modality group of every key, names for people).

    A key is a (modality, camera) pair, visible ones first: a place that is seen in both modalities has two unrelated
    keys, because using that they belong together would give the cross-modality answer away (section 1).
    """
    table = info.table
    pairs = np.stack([table.modality, table.camera_index], 1)
    keys, camera = np.unique(pairs, axis=0, return_inverse=True)
    _, modality = np.unique(keys[:, 0], return_inverse=True)
    names = tuple(f"{info.cameras[index]} ({modality_name(code)})" for code, index in keys)
    return camera.reshape(-1).astype(np.int32), modality.astype(np.int32), names


METHOD = HiTPro
