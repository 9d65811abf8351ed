"""Re-identification by skeletons alone, with CSIP-ReID's encoder: no picture is read, in training or at test time.

The paper evaluates its encoder on skeleton sets, and neither says nor released how. This is the fine-tuning path of its
code, which is that of TranSG (Rao and Miao, CVPR 2023), with weights as they stand there: features of clips and of
frames are compared with a prototype of every identity, and from some joints (some frames) all others are predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean, unit_rows
from jaxreid.augment import Augmentation
from jaxreid.backbones.skeleton_graph import SkeletonConfig, SkeletonGraph, clip_mean, torch_dense
from jaxreid.data.batch import Batch
from jaxreid.data.extras import Extra
from jaxreid.data.samplers import ShuffleSampler
from jaxreid.dataset_info import DatasetInfo
from jaxreid.losses.identity import cross_entropy
from jaxreid.memory.class_bank import image_memory
from jaxreid.methods.csip_reid import SKELETON_VALUES, joints_of, random_signs, skeleton_config, skeleton_faults
from jaxreid.methods.method import (
    Backbone,
    Context,
    Extraction,
    Features,
    LossOutput,
    Method,
    Phase,
    Stage,
    Update,
    Variables,
)
from jaxreid.optimizers import Schedule, make_optimizer
from jaxreid.values import fraction, one_of, positive, under, whole


class SkeletonNetwork(nn.Module):
    """The encoder, and what predicts joints from its tokens: of a frame's, and of a joint's over time."""

    encoder: SkeletonConfig
    seq_len: int

    def setup(self):
        c = self.encoder
        self.skeleton = SkeletonGraph(c)
        width = c.projection or c.width
        self.structure = nn.Sequential([torch_dense(width, width), nn.relu, torch_dense(width, 3 * c.joints)])
        self.trajectory = nn.Sequential([torch_dense(width, width), nn.relu, torch_dense(width, 3 * self.seq_len)])

    def __call__(self, joints: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Everything once, which makes the parameters."""
        tokens = self.tokens(joints, False)
        return tokens, self.structure(tokens), self.trajectory(tokens)

    def tokens(self, joints: jax.Array, train: bool, signs: jax.Array | None = None) -> jax.Array:
        return self.skeleton(joints, train, signs)

    def predicted(self, tokens: jax.Array, seen: jax.Array, kept: tuple[int, int], rng: jax.Array) -> Any:
        """Joints f32[B, T, J, 3] that are predicted from the mean of `kept[0]` random joints of each frame, and from
        that of each joint in `kept[1]` random frames, of which only those that are `seen` count."""
        clips, frames, joints, _ = tokens.shape
        some, others = jax.random.split(rng)
        of_frame = masked_mean(tokens, chosen(some, (clips, frames, joints), kept[0]))
        when = chosen(others, (clips, joints, frames), kept[1]) & seen[:, None]
        of_joint = masked_mean(tokens.swapaxes(1, 2), when)
        structure = self.structure(of_frame).reshape(clips, frames, joints, 3)
        trajectory = self.trajectory(of_joint).reshape(clips, joints, self.seq_len, 3).swapaxes(1, 2)
        return structure, trajectory


def chosen(rng: jax.Array, shape: tuple[int, ...], count: int) -> jax.Array:
    """bool of `shape`, true at `count` random places along the last axis."""
    draws = jax.random.uniform(rng, shape)
    return jnp.argsort(jnp.argsort(draws, axis=-1), axis=-1) < count


def contrast(
    tokens: jax.Array, seen: jax.Array, prototypes: jax.Array, label: jax.Array, valid: jax.Array, options: Any
) -> tuple[jax.Array, jax.Array]:
    """(L_seq of clips, by cosines; L_ske of frames, by dot products): cross entropies over prototypes f32[C, P]."""

    def similar(x: jax.Array, rows: jax.Array, temperature: float) -> jax.Array:
        return jnp.matmul(x, rows.T, precision=jax.lax.Precision.HIGHEST) / temperature

    clips = similar(unit_rows(clip_mean(tokens, seen)), unit_rows(prototypes), options.clip_temperature)
    of_frames = tokens.mean(axis=2).reshape(-1, tokens.shape[-1])
    frames = similar(of_frames, prototypes, options.frame_temperature)
    y = jnp.repeat(label, seen.shape[1])
    return cross_entropy(clips, label, valid), cross_entropy(frames, y, seen.reshape(-1))


VALUES = {
    **SKELETON_VALUES,
    "skeleton.projection": whole(1),
    "backbone.name": one_of(("",)),
    "batch.batch_size": whole(1),
    **under("contrast", dict.fromkeys(("clip_temperature", "frame_temperature"), positive)),
    **under("weights", dict.fromkeys(("contrast", "clip", "structure"), fraction)),
    **under("prediction", dict.fromkeys(("joints", "frames"), whole(1))),
}


class CSIPSkeleton(Method):
    """See the module's docstring."""

    uses_identity = True
    sees_pictures = False
    values = VALUES

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        yield from skeleton_faults(config.skeleton)
        kept = config.prediction
        for name, most, of in (
            ("joints", config.skeleton.joints, "skeleton.joints"),
            ("frames", config.batch.seq_len, "batch.seq_len"),
        ):
            if kept[name] > most:
                yield f"config.prediction.{name}={kept[name]} are kept of config.{of}={most}"

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        self.encoder = skeleton_config(config.skeleton, config.skeleton.projection)
        self.network = SkeletonNetwork(self.encoder, config.batch.seq_len)

    def stages(self) -> tuple[Stage, ...]:
        config, batch = self.config, self.config.batch
        return (
            Stage(
                name="skeletons",
                epochs=config.epochs,
                loss=self.loss,
                sampler=ShuffleSampler(batch.batch_size),
                seq_len=batch.seq_len,
                clip_sampling=batch.clip_sampling,
                augment=Augmentation(**config.augment),
                updates=(Update("all", make_optimizer(config.optimizer), Schedule(**config.schedule)),),
                extraction=Extraction(
                    1, 0, config.evaluation.seq_len, self.refresh, self.find, config.evaluation.clip_sampling
                ),
                pictures=False,
            ),
        )

    def backbones(self) -> tuple[Backbone, ...]:
        return (Backbone(("skeleton",), self.config.skeleton.checkpoint, self.encoder),)

    def extras(self, phase: Phase) -> Mapping[str, Extra]:
        return {"joints3d": Extra((self.config.skeleton.joints, 3), missing="mask")}

    # --- jitted -------------------------------------------------------------------------------------------------

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        return self.network.init(rng, batch.extras["joints3d"])

    def init_memory(self) -> Any:
        return {"prototypes": jnp.zeros((self.info.num_classes, self.encoder.projection or self.encoder.width))}

    def find(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, Any]:
        """Mean joint tokens of clips, and whether there is a skeleton."""
        joints, seen = joints_of(batch)
        tokens: Any = self.network.apply(variables, joints, False, method="tokens")
        return {"feature": clip_mean(tokens, seen), "seen": seen.any(axis=1).astype(jnp.float32)}

    def refresh(self, variables: Variables, memory: Any, features: Features, context: Context) -> Any:
        """The prototypes of the coming epoch: means of an identity's tracklets."""
        assert self.info.labels is not None
        found, identity = features.arrays, jnp.asarray(self.info.labels.identity)
        valid = features.valid & (found["seen"] > 0)
        rows = image_memory(found["feature"], features.tracklet, valid, identity, self.info.num_classes)
        return {"prototypes": rows}

    def loss(self, variables: Variables, memory: Any, batch: Batch, context: Context) -> LossOutput:
        """λ[(1 − α) L_ske + α L_seq] + (1 − λ)[β L_struct + (1 − β) L_traj]."""
        config, (dropout, signs, order, prediction) = self.config, jax.random.split(context.rng, 4)
        joints, seen = joints_of(batch, order if config.skeleton.shuffle else None)
        kept = config.prediction.joints, config.prediction.frames

        def forward(network: SkeletonNetwork) -> Any:
            tokens = network.tokens(joints, True, random_signs(config.skeleton, signs))
            return tokens, network.predicted(tokens, seen, kept, prediction)

        found: Any = self.network.apply(variables, method=forward, rngs={"dropout": dropout})
        tokens, predicted = found
        valid = batch.valid & seen.any(axis=1)
        of_clips, of_frames = contrast(tokens, seen, memory["prototypes"], batch.identity, valid, config.contrast)
        target = joints - joints[:, :, :1]
        structure, trajectory = (masked_mean(jnp.abs(x - target).mean(axis=(2, 3)), seen, axis=None) for x in predicted)
        w = config.weights
        losses = {
            "clips": (w.contrast * w.clip, of_clips),
            "frames": (w.contrast * (1 - w.clip), of_frames),
            "structure": ((1 - w.contrast) * w.structure, structure),
            "trajectory": ((1 - w.contrast) * (1 - w.structure), trajectory),
        }
        return LossOutput.weighted(losses, variables["batch_stats"], memory)

    def embed(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, jax.Array]:
        """ "feature" f32[B, P]: the mean joint token; 0 of a clip without skeletons."""
        return {"feature": self.find(variables, memory, batch)["feature"]}


METHOD = CSIPSkeleton
