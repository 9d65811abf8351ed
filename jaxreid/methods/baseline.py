"""The supervised baseline: frame features averaged over time, identity and triplet loss.

The bag of tricks of Luo et al. (2019), "Bag of Tricks and a Strong Baseline for Deep Person Re-identification",
on clips: triplet loss before the batch-norm neck, label-smoothed identity loss behind it, retrieval with the neck's
output. It uses identity labels, so it is the bound that unsupervised methods are held against.
"""

from __future__ import annotations

from typing import Any, get_args

import flax.linen as nn
import jax

from jaxreid.arrays import masked_mean
from jaxreid.augment import Augmentation
from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.backbones.frame_encoder import EncoderConfig, backbone_config, encode_frames
from jaxreid.data.batch import Batch
from jaxreid.data.samplers import IdentitySampler
from jaxreid.dataset_info import DatasetInfo
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.triplet import Metric, batch_hard_triplet
from jaxreid.methods.method import Backbone, Context, Extraction, LossOutput, Method, Stage, Update, Variables
from jaxreid.optimizers import Schedule, make_optimizer
from jaxreid.values import flag, non_negative, number, one_of, under


class ClipClassifier(nn.Module):
    """Frame encoder, mean over frames, batch-norm neck without shift, bias-free classifier."""

    tower: EncoderConfig
    num_classes: int

    @nn.compact
    def __call__(self, batch: Batch, train: bool) -> dict[str, jax.Array]:
        """frames [B, T, H, W, 3] → "tower" f32[B, D], "feature" f32[B, D], "logits" f32[B, C]."""
        f = encode_frames(self.tower, batch.frames, batch.seen, batch.modality, train, name="encoder")
        v = masked_mean(f, batch.frame_mask)
        neck = MaskedBatchNorm(use_bias=False, name="neck")
        z = neck(v, batch.valid, use_running_average=not train)
        classifier = nn.Dense(
            self.num_classes, use_bias=False, kernel_init=nn.initializers.normal(0.001), name="classifier"
        )
        return {"tower": v, "feature": z, "logits": classifier(z)}


VALUES = {
    "ema_decay": number(0, below=1),
    "label_smoothing": number(0, below=1),
    **under(
        "triplet",
        {"margin": non_negative, "soft_margin": flag, "weight": non_negative, "metric": one_of(get_args(Metric))},
    ),
}


class Baseline(Method):
    """See the module's docstring."""

    uses_identity = True
    values = VALUES

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        self.tower = backbone_config(config.backbone, info.frame_size, config.precision)
        self.network = ClipClassifier(self.tower, info.num_classes)

    def stages(self) -> tuple[Stage, ...]:
        config, batch = self.config, self.config.batch
        return (
            Stage(
                name="baseline",
                epochs=config.epochs,
                loss=self.loss,
                sampler=IdentitySampler(batch.num_identities, batch.num_instances),
                seq_len=batch.seq_len,
                piece_len=batch.piece_len,
                augment=Augmentation(**config.augment),
                updates=(Update("all", make_optimizer(config.optimizer), Schedule(**config.schedule)),),
                extraction=Extraction(every=0, parts=1, seq_len=batch.seq_len),
                calibrate=True,
                ema_decay=config.ema_decay,
            ),
        )

    def backbones(self) -> tuple[Backbone, ...]:
        return (Backbone(("encoder",), self.config.backbone.checkpoint, self.tower),)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        return self.network.init(rng, batch, train=False)

    def loss(self, variables: Variables, memory: Any, batch: Batch, context: Context) -> LossOutput:
        found, changed = self.network.apply(
            variables, batch, train=True, mutable=["batch_stats"], rngs={"dropout": context.rng}
        )
        identity = cross_entropy(found["logits"], batch.identity, batch.valid, self.config.label_smoothing)
        options = self.config.triplet
        triplet = batch_hard_triplet(
            found["tower"], batch.identity, batch.valid, options.margin, options.metric, options.soft_margin
        )
        total = identity + options.weight * triplet
        metrics = {"loss_identity": identity, "loss_triplet": triplet}
        return LossOutput(total, metrics, changed["batch_stats"], memory)

    def embed(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, jax.Array]:
        """ "feature" is the neck's output; "tower" the mean of the frames before it."""
        found: Any = self.network.apply(variables, batch, train=False)
        return {name: found[name] for name in ("tower", "feature")}


METHOD = Baseline
