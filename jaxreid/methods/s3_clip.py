"""S3-CLIP: super-resolution in front of VSLA-CLIP, trained to give pictures in which the tower sees what it sees in
sharp ones.

Endrei and Cserey, "S3-CLIP: Video Super Resolution for Person-ReID", arXiv 2601.08807. Read were the abstract and a
review; networks are what these name, losses and stages are those of SR4IR (Kim et al., CVPR 2024), the public scheme
that fits them, and everything below that is a reconstruction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean, row_cosines
from jaxreid.augment import Augmentation
from jaxreid.backbones.swinir import VARIANTS, SwinIR, SwinIRConfig
from jaxreid.data.batch import Batch
from jaxreid.data.extras import SECOND, Extra
from jaxreid.data.samplers import PassSampler
from jaxreid.data.schema import PLATFORMS
from jaxreid.data.split import Labels
from jaxreid.dataset_info import DatasetInfo
from jaxreid.errors import UserError
from jaxreid.layers.band_attention import BandAttention
from jaxreid.layers.degradation import VALUES as DEGRADATION_VALUES
from jaxreid.layers.degradation import Degradation, cropped, resize, resizing
from jaxreid.layers.views import in_views, of_view
from jaxreid.losses.pictures import absolute_difference, psnr, ssim, step_difference
from jaxreid.methods.class_banks import BankMemory
from jaxreid.methods.method import (
    Backbone,
    Context,
    Examined,
    Extraction,
    Features,
    LossOutput,
    Phase,
    Stage,
    Update,
    Variables,
)
from jaxreid.methods.vsla_clip import VALUES as VSLA_VALUES
from jaxreid.methods.vsla_clip import VslaClip
from jaxreid.optimizers import Group, Optimizer, Schedule
from jaxreid.values import flag, fraction, free, non_negative, one_of, positive, series, under, whole

NAME = "super_resolution"  # of the network among the parameters, of its stage, and of its update
OURS = rf"^{NAME}/"
UAV = PLATFORMS.index("uav")
OUTPUTS = ("feature", "sr_off", "sr_all")  # of embed: aerial frames restored, none, all
VIEWS = ("restored", "plain", "mixed")  # of a frame in the losses of identity
LONGEST = 16  # frames of the clips in which the training split is looked through

VALUES = {
    **VSLA_VALUES,
    **under("sr", {"name": one_of(VARIANTS), "checkpoint": free, "temporal": one_of(("none", "band"))}),
    **under("sr", {"residual": flag}),
    **under("sr", {"height": whole(1), "width": whole(1), "remat": flag}),
    **under("sr", {"bypass_height": fraction, "below_height": fraction, "fewest_frames": whole(1)}),
    **under("sr", {"lr": positive, "min_lr": non_negative, "warmup_epochs": non_negative}),
    **under("sr", {"stale": flag, "joint": flag}),
    **under("degradation", DEGRADATION_VALUES),
    **under("pretrain", dict.fromkeys(("epochs", "clips", "seq_len"), whole(1))),
    **under("pretrain", {"steps": whole(0), "crop": series(whole(1), length=2), "flip": fraction}),
    **under("pretrain", {"lr": positive, "min_lr": non_negative}),
    **under("weights", dict.fromkeys(("pixel", "task_features", "temporal"), non_negative)),
    **under("views", dict.fromkeys(VIEWS, non_negative)),
    **under("cqmix", {"cells": series(whole(1), length=2), "per": one_of(("clip", "frame"))}),
}


class S3Memory(BankMemory):
    """sharp: i32[N], frames of each training tracklet that have as many rows as high-resolution pictures need; −1
    before they were counted. `draws`: whether tracklets without any are left out of the batches."""

    sharp: jax.Array
    draws: bool = flax.struct.field(pytree_node=False, default=True)


class S3Clip(VslaClip):
    """See the module's docstring."""

    values = VALUES

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        yield from super().contradictions(config)
        sr, full = config.sr, (config.frames.height, config.frames.width)
        canvas = sr.height, sr.width
        scale = full[0] // sr.height
        if tuple(scale * n for n in canvas) != full or scale < 2:
            yield (
                f"config.sr.height, width={canvas}: frames of {full} must be a whole number of times as large, the "
                "same in both directions"
            )
        elif VARIANTS[sr.name].head != "light" and scale not in (2, 4, 8):
            yield f"config.sr.name={sr.name!r} enlarges by 2, 4 or 8, not by {scale} (config.frames over config.sr)"
        if any(own > whole for own, whole in zip(config.pretrain.crop, canvas, strict=True)):
            yield f"config.pretrain.crop={tuple(config.pretrain.crop)} is larger than config.sr.height, width={canvas}"
        if any(n % cells for n, cells in zip(full, config.cqmix.cells, strict=True)):
            yield f"config.cqmix.cells={tuple(config.cqmix.cells)} do not divide frames of {full}"
        if not any(config.views.values()):
            yield "config.views: one of the weights must be above 0"
        if sr.residual and sr.checkpoint:
            yield "config.sr.checkpoint holds a network that makes whole pictures: config.sr.residual must be False"
        if sr.below_height > sr.bypass_height:
            yield "config.sr.below_height must not be above config.sr.bypass_height"
        if unknown := [name for name in config.evaluation.outputs if name not in (*OUTPUTS, "tower")]:
            yield f"config.evaluation.outputs: there is no {', '.join(unknown)}; there are {', '.join(OUTPUTS)}"
        for section, lr, least in (("sr", sr.lr, sr.min_lr), ("pretrain", config.pretrain.lr, config.pretrain.min_lr)):
            if least > lr:
                yield f"config.{section}.min_lr={least} is above config.{section}.lr={lr}"

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        sr = config.sr
        self.full, self.canvas = tuple(info.frame_size), (sr.height, sr.width)
        self.scale = self.full[0] // sr.height
        self.sr_config = self.swinir()
        over_frames = partial(BandAttention, dtype=self.image.dtype) if sr.temporal == "band" else None
        self.sr = SwinIR(self.sr_config, over_frames)
        self.degradation = Degradation(**config.degradation)

    def swinir(self) -> SwinIRConfig:
        variant = VARIANTS[self.config.sr.name]
        sr, dtype = self.config.sr, self.image.dtype
        return dataclasses.replace(
            variant, size=self.canvas, scale=self.scale, residual=sr.residual, dtype=dtype, remat=sr.remat
        )

    # --- 1: what comes in ----------------------------------------------------------------------------------------

    def extras(self, phase: Phase) -> Mapping[str, Extra]:
        """Frames in as many pixels as the network starts from, made of the stored picture, and how many rows that has:
        of a frame that was enlarged to the tower's size first, nothing would be left to do."""
        found = {"native_height": Extra()}
        return found if phase == "extract" else {**found, SECOND: Extra((*self.canvas, 3), "uint8")}

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        variables = super().init(rng, batch)
        own = self.sr.init(jax.random.fold_in(rng, 1), jnp.zeros((1, 1, *self.canvas, 3)))["params"]
        return {**variables, "params": {**variables["params"], NAME: own}}

    def backbones(self) -> tuple[Backbone, ...]:
        return (*super().backbones(), Backbone((NAME,), self.config.sr.checkpoint, self.sr_config))

    def unit(self, frames: jax.Array) -> jax.Array:
        """Frames as the tower sees them → values in 0…1."""
        return frames.astype(jnp.float32) * jnp.array(self.config.frames.std) + jnp.array(self.config.frames.mean)

    def normalized(self, frames: jax.Array) -> jax.Array:
        found = (frames - jnp.array(self.config.frames.mean)) / jnp.array(self.config.frames.std)
        return found.astype(self.image.dtype)

    def sharp(self, batch: Batch) -> jax.Array:
        """bool[B, T], frames of as many rows as a high-resolution picture needs; they are never restored in tests."""
        counted = batch.seen & batch.extras["native_height_mask"]
        return counted & (batch.extras["native_height"] >= self.config.sr.bypass_height * self.full[0])

    def chosen(self, batch: Batch) -> jax.Array:
        """bool[B, T], frames that are restored in tests: from the air, or small, and never sharp ones."""
        rows = batch.extras["native_height"]
        few = rows < self.config.sr.below_height * self.full[0]
        known = batch.extras["native_height_mask"] & ~self.sharp(batch)
        return known & (few | (batch.platform == UAV)[:, None])

    def low(self, batch: Batch, rng: jax.Array) -> jax.Array:
        """Small frames f32[B, T, h, w, 3] to train with: of sharp ones, degraded; of others, the stored pictures."""
        degraded = self.degradation(rng, self.unit(batch.frames), self.canvas)
        return jnp.where(_wide(self.sharp(batch)), degraded, self.unit(batch.extras[SECOND]))

    def restored(self, own: Any, low: jax.Array, mask: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """Small frames → f32[B, T, H, W, 3], not clipped, by these parameters; with a key as in training."""
        rngs = {} if rng is None else {"dropout": rng}
        return self.sr.apply({"params": own}, low, mask, rng is not None, rngs=rngs)  # pyright: ignore

    # --- 2: stages -----------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        """Super-resolution alone; words, on frames as they are; both networks in turn, in every step."""
        *before, main = super().stages()
        updates = Update(NAME, *self.restoring(self.config.sr)), main.updates[0]
        main = dataclasses.replace(main, updates=updates[::-1] if self.config.sr.stale else updates)
        if self.config.pretrain.steps:
            return self.pretraining(), *before, main
        return *before, dataclasses.replace(main, extraction=self.counting())

    def pretraining(self) -> Stage:
        options = self.config.pretrain
        return Stage(
            name=NAME,
            epochs=options.epochs,
            steps=options.steps,
            loss=self.pretraining_loss,
            sampler=PassSampler(options.clips, 1),
            seq_len=options.seq_len,
            augment=Augmentation(flip=options.flip),
            updates=(Update(NAME, *self.restoring(options)),),
            extraction=self.counting(),
        )

    def restoring(self, options: Any) -> tuple[Optimizer, Schedule]:
        """AdamW without weight decay, which is Adam, on a cosine."""
        groups = Group(OURS, options.lr), Group(".*", 0.0)
        return Optimizer(groups), Schedule("cosine", min_factor=options.min_lr / options.lr)

    def optimizer(self) -> Optimizer:
        """Of the second update, VSLA-CLIP's."""
        found = super().optimizer()
        return dataclasses.replace(found, groups=(Group(OURS, 0.0), *found.groups))

    # Which pictures are of high resolution, is counted once, over every frame of the training split.

    def counting(self) -> Extraction:
        return Extraction(0, 0, LONGEST, refresh=self.count, extract=self.look, clip_sampling="packed")

    def look(self, variables: Variables, memory: BankMemory, batch: Batch) -> dict[str, jax.Array]:
        return {"sharp": self.sharp(batch).sum(axis=1)}

    def count(self, variables: Variables, memory: S3Memory, features: Features, context: Context) -> S3Memory:
        found = jnp.where(features.valid, features.arrays["sharp"], 0.0).astype(jnp.int32)
        return memory.replace(sharp=jnp.zeros_like(memory.sharp).at[features.tracklet].add(found))

    def begin_stage(self, memory: Any, stage: Stage) -> Any:
        if not stage.extraction:
            return BankMemory(memory.bank)
        return S3Memory(memory.bank, jnp.full(len(self.info.table), -1, jnp.int32), draws=stage.name == NAME)

    def sampling_labels(self, memory: Any) -> jax.Array | None:
        """In pre-training, tracklets with high-resolution frames, each a group of its own.

        Raises:
          UserError: there are too few of these frames.
        """
        if not isinstance(memory, S3Memory):
            return None
        found, fewest = int(jnp.maximum(memory.sharp, 0).sum()), self.config.sr.fewest_frames
        counted = int(memory.sharp.max()) >= 0
        if counted and found < fewest:
            rows = self.config.sr.bypass_height * self.full[0]
            raise UserError(
                f"{found} training frames have {rows:g} rows or more: super-resolution has too little to learn from "
                f"(config.sr.fewest_frames={fewest}). Lower config.sr.bypass_height, or add sharper tracklets"
            )
        labels = jnp.where(memory.sharp != 0, jnp.arange(len(memory.sharp)), -1)
        return labels if memory.draws else None

    def diagnose(self, memory: Any, labels: Labels) -> dict[str, float]:
        sharp = memory.sharp
        counts = {"high_resolution_frames": sharp.sum(), "high_resolution_tracklets": (sharp > 0).sum()}
        return {f"{name}_count": float(count) for name, count in counts.items()}

    # --- 3: the first update, of super-resolution; the tower stays ------------------------------------------------

    def pretraining_loss(self, variables: Variables, memory: Any, batch: Batch, context: Context) -> LossOutput:
        """The mean difference of pixels alone, in a random part of every frame of high resolution."""
        keys = jax.random.split(context.rng, 3)
        low, high, sharp = self.low(batch, keys[0]), self.unit(batch.frames), self.sharp(batch)
        crop = tuple(self.config.pretrain.crop)
        if crop != self.canvas:
            low, high = cropped(keys[1], (low, high), (1, self.scale), self.canvas, crop)
        found = self.restored(variables["params"][NAME], low, batch.frame_mask, keys[2])
        losses = {"pixel": (1.0, absolute_difference(found, high, sharp))}
        return LossOutput.weighted(losses, variables["batch_stats"], memory)

    def restoring_loss(self, variables: Variables, memory: Any, batch: Batch, context: Context) -> LossOutput:
        """Pixels, what the tower sees, and what changes from frame to frame; of high-resolution frames. What the tower
        sees counts when the warm-up is over."""
        w, keys = self.config.weights, jax.random.split(context.rng)
        own, rest = self.parted(variables)
        sharp, high = self.sharp(batch), self.unit(batch.frames)
        found = self.restored(own, self.low(batch, keys[0]), batch.frame_mask, keys[1])
        losses = {
            "pixel": (w.pixel, absolute_difference(found, high, sharp)),
            "temporal": (w.temporal, step_difference(found, high, sharp)),
        }
        if w.task_features:
            due = context.progress.epoch >= self.config.sr.warmup_epochs
            seen = partial(self.task_difference, rest, batch, sharp)
            losses["task_features"] = w.task_features, jax.lax.cond(due, seen, lambda _: jnp.float32(0), found)
        if self.config.sr.joint:
            views = {"restored": (1.0, self.normalized(found))}
            of_task, _ = self.view_losses(rest, memory, batch, context, views)
            losses["joint"] = 1.0, sum(weight * value for weight, value in of_task.values())  # pyright: ignore
        return LossOutput.weighted(losses, variables["batch_stats"], memory)

    def parted(self, variables: Variables) -> tuple[Any, Variables]:
        """(parameters of super-resolution, all others as constants)."""
        rest = {name: tree for name, tree in variables["params"].items() if name != NAME}
        return variables["params"][NAME], jax.lax.stop_gradient({**variables, "params": rest})

    def task_difference(self, variables: Variables, batch: Batch, sharp: jax.Array, found: jax.Array) -> jax.Array:
        """L_tdp: half the mean difference of each task feature of frames found and as they are."""
        wanted = jax.lax.stop_gradient(self.task_features(variables, batch, batch.frames))
        seen = self.task_features(variables, batch, self.normalized(found))
        return sum(0.5 * absolute_difference(*pair, sharp) for pair in zip(seen, wanted, strict=True))  # pyright: ignore

    def task_features(self, variables: Variables, batch: Batch, frames: jax.Array) -> tuple[jax.Array, ...]:
        """What the tower makes of every frame, before its last block and after its last norm: f32[B, T, D] each."""

        def look(network: Any) -> Any:
            return network.tower(batch.replace(frames=frames), False)

        found: Any = self.network.apply(variables, method=look)
        return tuple(x.astype(jnp.float32) for x in (found.penultimate, found.last))

    # --- 4: the second update, of VSLA-CLIP; super-resolution stays ----------------------------------------------

    def loss(self, variables: Variables, memory: Any, batch: Batch, context: Context) -> LossOutput:
        """Of the main stage: of the update that asks."""
        of = self.restoring_loss if context.update == NAME else self.task_loss
        return of(variables, memory, batch, context)

    def task_loss(self, variables: Variables, memory: Any, batch: Batch, context: Context) -> LossOutput:
        """VSLA-CLIP's losses of restored frames, of frames as they are, and of both mixed (CQMix)."""
        weights, pictures = self.config.views, self.views(variables, batch, context.rng)
        views = {name: (weights[name], pictures[name]) for name in VIEWS if weights[name]}
        losses, batch_stats = self.view_losses(variables, memory, batch, context, views)
        return LossOutput.weighted(losses, batch_stats, memory)

    def views(self, variables: Variables, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        """The frames of each of `VIEWS`, as constants; small ones are those of the first update."""
        low = self.low(batch, jax.random.split(rng)[0])
        found = jax.lax.stop_gradient(self.restored(variables["params"][NAME], low, batch.frame_mask))
        restored = self.normalized(jnp.clip(found, 0.0, 1.0))
        mixed = jnp.where(self.mix(jax.random.fold_in(rng, 1), batch), restored, batch.frames)
        return dict(zip(VIEWS, (restored, batch.frames, mixed), strict=True))

    def mix(self, rng: jax.Array, batch: Batch) -> jax.Array:
        """bool[B, 1 or T, H, W, 1], where a mixed frame shows the restored one: cells, each with even chances."""
        cells = tuple(self.config.cqmix.cells)
        frames = batch.frames.shape[1] if self.config.cqmix.per == "frame" else 1
        found = jax.random.bernoulli(rng, 0.5, (len(batch.valid), frames, *cells))
        for axis in (0, 1):
            found = jnp.repeat(found, self.full[axis] // cells[axis], axis=2 + axis)
        return found[..., None]

    def view_losses(
        self, variables: Variables, memory: Any, batch: Batch, context: Context, views: Mapping[str, tuple[Any, Any]]
    ) -> tuple[dict[str, tuple[Any, jax.Array]], Any]:
        """({name: (weight, value)}, batch statistics) of the losses over the views {name: (weight, frames)} of each
        clip, which go through the network as one batch; a value is the weighted sum over views."""
        together = in_views(batch, [frames for _, frames in views.values()])
        found, batch_stats = self.forward(variables, memory, together, context)
        losses: dict[str, tuple[Any, jax.Array]] = {}
        for number, (share, _) in enumerate(views.values()):
            of_one = jax.tree.map(lambda x: of_view(x, number, len(views)), found)  # noqa: B023
            clips, logits, similar = of_one
            for name, (weight, value) in self.losses_of(clips, logits, similar, memory, batch)[0].items():
                before = losses[name][1] if name in losses else 0.0
                losses[name] = weight, before + share * value
        return losses, batch_stats

    # --- 5: tests ------------------------------------------------------------------------------------------------

    def pictures(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """The frames [B, T, H, W, 3] that each of `OUTPUTS` is made of; one that is not restored is the batch's own."""
        found = self.restored(variables["params"][NAME], self.unit(batch.extras[SECOND]), batch.frame_mask)
        restored = self.normalized(jnp.clip(found, 0.0, 1.0)).astype(batch.frames.dtype)
        chosen = jnp.where(_wide(self.chosen(batch)), restored, batch.frames)
        return dict(zip(OUTPUTS, (chosen, batch.frames, restored), strict=True))

    def embed(self, variables: Variables, memory: BankMemory, batch: Batch) -> dict[str, jax.Array]:
        """ "feature": with frames from the air and small ones restored; "sr_off": with none, "sr_all": with all.
        "tower": the class token of frames as they are."""
        pictures, look = self.pictures(variables, batch), partial(super().embed, variables, memory)

        def both(*names: str) -> dict[str, jax.Array]:
            found = look(in_views(batch, [pictures[name] for name in names]))
            of_names = {name: of_view(found["feature"], at, 2) for at, name in enumerate(names)}
            return {"tower": of_view(found["tower"], 0, 2), **of_names}

        if "sr_all" not in self.config.evaluation.outputs:
            return both("sr_off", "feature")
        found, chosen = both("sr_off", "sr_all"), self.chosen(batch)
        # Nearly every clip is restored as a whole or not at all, and known by now.
        whole = (chosen | ~batch.frame_mask).all(axis=1)
        parted = batch.valid & ~whole & (chosen & batch.frame_mask).any(axis=1)
        feature = jax.lax.cond(
            parted.any(),
            lambda: look(batch.replace(frames=pictures["feature"]))["feature"],
            lambda: jnp.where(whole[:, None], found["sr_all"], found["sr_off"]),
        )
        return {**found, "feature": feature}

    @property
    def examines(self) -> bool:
        return True

    def examine(self, variables: Variables, memory: Any, batch: Batch) -> Examined:
        """How near to a high-resolution frame its restored small form comes, beside the bicubic one: in pixels, and in
        what the tower sees of it."""
        mask, sharp = batch.frame_mask, self.sharp(batch)
        rng = jax.random.fold_in(jax.random.key(self.config.seed), batch.tracklet[0])
        high = self.unit(batch.frames)
        low = self.degradation(rng, high, self.canvas)
        large = [resizing(n, full) for n, full in zip(self.canvas, self.full, strict=True)]
        pictures = {
            "bicubic": jnp.clip(resize(low, *large), 0.0, 1.0),
            "restored": jnp.clip(self.restored(variables["params"][NAME], low, mask), 0.0, 1.0),
        }
        views = [batch.frames, *map(self.normalized, pictures.values())]
        seen = self.task_features(variables, in_views(batch, views), in_views(batch, views).frames)
        figures: dict[str, jax.Array] = {}
        for at, (name, picture) in enumerate(pictures.items()):
            pairs = [[of_view(x, number, len(views)) for number in (0, at + 1)] for x in seen]
            figures[f"PSNR {name}"] = psnr(picture, high)
            figures[f"SSIM {name}"] = ssim(picture, high)
            figures[f"cosine {name}"] = sum(map(row_cosines, *zip(*pairs, strict=True))) / len(seen)  # pyright: ignore
        gains = {f"{name} gained": figures[f"{name} restored"] - figures[f"{name} bicubic"] for name in MEASURES}
        figures = {name: masked_mean(x, sharp) for name, x in {**figures, **gains}.items()}
        first = jnp.argmax(sharp, axis=1)
        nearest = jnp.repeat(jnp.repeat(low, self.scale, axis=2), self.scale, axis=3)
        strip = {"low resolution": nearest, **pictures, "high resolution": high}
        shown = tuple(x[jnp.arange(len(first)), first] for x in strip.values())
        return Examined(figures, shown, sharp.any(axis=1), tuple(strip))


MEASURES = ("PSNR", "SSIM", "cosine")


def _wide(x: jax.Array) -> jax.Array:
    """[B, T] → [B, T, 1, 1, 1]"""
    return x[..., None, None, None]


METHOD = S3Clip
