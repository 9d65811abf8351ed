"""A method for tests that uses everything a batch can hold: key points at training and test, joints at training only, a
second stream, native heights, cached features of frames, and two updates."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.data.extras import Extra
from jaxreid.methods.baseline import VALUES, Baseline
from jaxreid.methods.method import Cached, LossOutput, Update
from jaxreid.optimizers import Group, Optimizer, Schedule


class Both(nn.Module):
    classifier: nn.Module

    @nn.compact
    def __call__(self, batch, train):
        found = self.classifier(batch, train)
        extras = batch.extras
        seen = batch.frame_mask & extras["keypoints_mask"]
        small = extras["second_frames"].astype(jnp.float32).mean((2, 3))
        lying = jnp.concatenate([extras["keypoints"].reshape(*seen.shape, -1), small], axis=-1)
        body = nn.Dense(8, name="body")(masked_mean(lying, seen))
        height = masked_mean(extras["native_height"], batch.frame_mask)[:, None]
        return found | {"body": body, "feature": jnp.concatenate([found["feature"], body, height / 64.0], axis=-1)}


class UsesExtras(Baseline):
    values = VALUES

    def __init__(self, config, info):
        super().__init__(config, info)
        self.network = Both(self.network)

    def extras(self, phase):
        found = {"keypoints": Extra((17, 3)), "second_frames": Extra((16, 8, 3), "uint8"), "native_height": Extra()}
        own = {"joints3d": Extra((17, 3)), "erased": Extra(dtype="bool"), "frame_place": Extra(dtype="int32")}
        return found if phase != "train" else found | own

    def backbones(self):
        return (dataclasses.replace(super().backbones()[0], path=("classifier", "encoder")),)

    def stages(self):
        (stage,) = super().stages()
        body = Optimizer((Group("^body/", 1e-2), Group(".*", 0.0)))
        others = dataclasses.replace(
            stage.updates[0].optimizer, groups=(Group("^body/", 0.0), *stage.updates[0].optimizer.groups)
        )
        updates = (Update("others", others, stage.updates[0].schedule), Update("body", body, Schedule("constant")))
        cached = Cached(self.frame_features)
        return (dataclasses.replace(stage, updates=updates, extraction=None, calibrate=False, cached=cached),)

    def frame_features(self, variables, memory, batch):
        """Of a clip of one frame: where its nose is."""
        return {"nose": batch.extras["keypoints"][:, 0, 0]}

    def loss(self, variables, memory, batch, context):
        if context.update == "others":
            out = super().loss(variables, memory, batch, context)
            joints = jnp.abs(batch.extras["joints3d"]).sum((1, 2, 3)) * batch.valid
            nose = batch.extras["keypoints"][:, :, 0]
            seen = batch.extras["keypoints_mask"] & batch.frame_mask & batch.valid[:, None]
            apart = jnp.where(seen[..., None], nose - batch.extras["nose"], 0.0)
            counts = {"joints": joints.mean(), "erased": batch.extras["erased"].mean(), "apart": jnp.abs(apart).max()}
            return out.replace(metrics=out.metrics | counts)
        found = self.network.apply(variables, batch, train=False)
        y = jnp.where(batch.valid, batch.identity, 0)
        apart = jnp.abs(found["body"] - jnp.cos(y)[:, None]).mean(-1)
        value = masked_mean(apart, batch.valid)
        return LossOutput(value, {"loss_of_bodies": value}, variables["batch_stats"], memory)


METHOD = UsesExtras
