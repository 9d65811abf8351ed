"""DinoGRL: gait without a silhouette label, from a frozen DINOv2, beside appearance, for visible-infrared video.

Yang et al. (2025), "DINOv2 Driven Gait Representation Learning for Video-Based Visible-Infrared Person
Re-Identification", arXiv 2511.04281, on BigGait (CVPR 2024). The mask branch finds who is the person among DINOv2's
tokens; inside of that, two maps are learned which a ResNet sees as gait (SASGL); another ResNet, with a stem for each
modality, sees the frames; the global part of either stream is enriched by the strips of the other (PBMGE). Parts stay
parts: tracklets are compared part by part. Of the paper the abstract could be read, of its code nearly all
(docs/dinogrl.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.augment import Augmentation
from jaxreid.backbones.dinov2 import dinov2_config
from jaxreid.backbones.frame_encoder import RESNETS, encoder_config
from jaxreid.data.batch import Batch
from jaxreid.data.samplers import PairSampler
from jaxreid.data.schema import INFRARED, VISIBLE
from jaxreid.dataset_info import DatasetInfo
from jaxreid.errors import UserError
from jaxreid.layers.dinogrl import STREAMS, DinoGRLConfig, DinoGRLNetwork, flat
from jaxreid.layers.silhouettes import SobelLayout, border_loss, diversity_loss, mask_sobel_loss, sobel_loss
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.triplet import batch_all_triplet
from jaxreid.methods.method import (
    Backbone,
    Cached,
    Context,
    Evaluation,
    Examined,
    LossOutput,
    Method,
    Stage,
    Update,
    Variables,
)
from jaxreid.methods.released import dinogrl
from jaxreid.optimizers import Group, Optimizer, Schedule, make_optimizer
from jaxreid.retrieval.distances import OF_PARTS
from jaxreid.values import flag, fraction, non_negative, number, one_of, positive, series, text, under, whole

# --- The method -------------------------------------------------------------------------------------------------------

VALUES = {
    "streams": one_of(("both", *STREAMS)),
    "gait_input": one_of(("maps", "silhouette")),
    "dino_size": series(whole(1), length=2),
    "resnet.name": one_of(lambda: [name for name, config in RESNETS.items() if config.stems == 2]),
    "resnet.checkpoint": text,
    "map_channels": whole(2),
    "map_drop": fraction,
    "stem_relu": flag,
    "mask_grad": flag,
    "mask_sobel_layout": one_of(get_args(SobelLayout)),
    "fast": flag,
    **under("mask", {"checkpoint": text, "warmup_steps": whole(1), "lr": positive, "cache": flag}),
    **under("mask", {"dropout": number(0, below=1)}),
    "pyramid": series(whole(1), ascending=True, least=1),
    "part_width": whole(1),
    **under("pbmge", {"granularities": series(whole(2), ascending=True), "direction": one_of(("both", *STREAMS))}),
    **under("triplet", {"margin": non_negative}),
    "scale": positive,
    "label_smoothing": number(0, below=1),
    **dict.fromkeys((f"lambda_{term}" for term in ("mse", "sob_mask", "sob_parts", "div", "border")), non_negative),
}


class DinoGRL(Method):
    """See the module's docstring."""

    uses_identity = True
    values = VALUES
    released = dinogrl.RELEASED

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        family = config.backbone.name.partition(":")[0]
        if family != "dinov2":
            yield f"config.backbone.name={config.backbone.name!r} is no DINOv2, whose tokens silhouettes are made of"
        if missing := sorted({1, *config.pbmge.granularities} - {*config.pyramid}):
            yield f"config.pyramid={tuple(config.pyramid)} lacks {missing}: the whole, and what PBMGE takes strips of"
        if config.evaluation.distance not in OF_PARTS:
            yield (
                f"config.evaluation.distance={config.evaluation.distance!r}: features are parts, compared part by "
                f"part: one of {', '.join(OF_PARTS)}"
            )

    @classmethod
    def tower_size(cls, config: Any) -> tuple[int, int]:
        height, width = config.dino_size
        return height, width

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        if {VISIBLE, INFRARED} - set(np.unique(info.table.modality).tolist()):
            raise UserError(f"{info.name}: training needs visible and infrared tracklets of the same people")
        precision: Any = jnp.dtype(config.precision)
        remat = config.backbone.remat
        name = config.backbone.name.partition(":")[2]
        dino = dinov2_config(name, self.tower_size(config), dtype=precision, remat=remat, scan=config.backbone.scan)
        resnet: Any = encoder_config(config.resnet.name, info.frame_size, config.precision, remat)
        both = ("both",)
        self.network_config = DinoGRLConfig(
            dino=dino,
            resnet=dataclasses.replace(resnet, stem_relu=config.stem_relu),
            num_classes=info.num_classes,
            streams=STREAMS if config.streams in both else (config.streams,),
            gait_input=config.gait_input,
            channels=config.map_channels,
            bins=tuple(config.pyramid),
            width=config.part_width,
            granularities=tuple(config.pbmge.granularities),
            enriched=STREAMS if config.pbmge.direction in both else (config.pbmge.direction,),
            map_drop=config.map_drop,
            dropout=config.mask.dropout,
            mask_grad=config.mask_grad,
            fast=config.fast,
        )
        self.network = DinoGRLNetwork(self.network_config)
        self._check_pyramid()

    def _check_pyramid(self) -> None:
        """Raises UserError where a map cannot be cut into the strips of the pyramid."""
        c, frame = self.network_config, self.info.frame_size
        stages = len(c.resnet.depths)
        halved = 2 ** (stages - 2 + (c.resnet.last_stride == 2))
        rows = {"gait": c.grid[0] // halved, "appearance": frame[0] // 4 // halved}
        for name in c.streams:
            if wrong := [count for count in c.bins if rows[name] % count]:
                raise UserError(
                    f"config.pyramid={c.bins}: the map of the {name} stream has {rows[name]} rows, which are not "
                    f"{wrong[0]} strips of equal height"
                )

    @property
    def has_gait(self) -> bool:
        return "gait" in self.network_config.streams

    def stages(self) -> tuple[Stage, ...]:
        config, batch = self.config, self.config.batch
        sampler = PairSampler(batch.num_identities, batch.num_pairs, batch.steps_per_epoch, aligned=batch.aligned)
        frozen = "^dinov2/" if self.has_gait else None
        main = Stage(
            name="dinogrl",
            epochs=config.epochs,
            loss=self.loss,
            sampler=sampler,
            seq_len=batch.seq_len,
            clip_sampling=batch.clip_sampling,
            augment=Augmentation(**config.augment),
            updates=(Update("all", make_optimizer(config.optimizer, frozen), Schedule(**config.schedule)),),
        )
        if not self.has_gait or config.mask.checkpoint:
            return (main,)
        own = Optimizer((Group("^mask_branch/", config.mask.lr), Group(".*", 0.0)))
        cached = Cached(extract=self.last_tokens, parts=1) if config.mask.cache else None
        warmup = dataclasses.replace(
            main,
            name="mask",
            epochs=1,
            steps=config.mask.warmup_steps,
            loss=self.mask_loss,
            seq_len=1 if cached else batch.seq_len,
            cached=cached,
            pictures=cached is None,
            updates=(Update("mask", own, Schedule(name="constant")),),
        )
        return warmup, main

    def evaluation(self) -> Evaluation:
        """Of the outputs that the config names, those that the streams give."""
        rule = super().evaluation()
        missing = set(STREAMS) - {*self.network_config.streams}
        return dataclasses.replace(rule, outputs=tuple(name for name in rule.outputs if name not in missing))

    def backbones(self) -> tuple[Backbone, ...]:
        config, c = self.config, self.network_config
        found: list[Backbone] = []
        if self.has_gait:
            found += [
                Backbone(("dinov2",), config.backbone.checkpoint, c.dino),
                Backbone(("mask_branch",), config.mask.checkpoint, c.mask_branch),
                Backbone(("gait_trunk",), config.resnet.checkpoint, c.trunk),
            ]
        if "appearance" in c.streams:
            found.append(Backbone(("appearance_trunk",), config.resnet.checkpoint, c.resnet))
        return tuple(found)

    # --- jitted -------------------------------------------------------------------------------------------------

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        keys: dict[str, jax.Array] = dict(zip(("params", "dropout", "maps"), jax.random.split(rng, 3), strict=True))
        return self.network.init(keys, batch, method="train_outputs")

    def last_tokens(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, jax.Array]:
        """What the mask branch learns from, "tokens" [B, T, a, b, D], of frames as they are."""
        tokens: Any = self.network.apply(variables, flat(batch.frames), False, method="tokens")
        return {"tokens": tokens[0].reshape(*batch.frames.shape[:2], *tokens[0].shape[1:])}

    def mask_loss(self, variables: Variables, memory: Any, batch: Batch, context: Context) -> LossOutput:
        """λ L_mse + λ L_sob (and λ L_border, ours) alone, before anything else learns."""
        if "tokens" in batch.extras:
            last = flat(jnp.asarray(batch.extras["tokens"])).astype(self.network_config.dino.dtype)
        else:
            tokens: Any = self.network.apply(variables, flat(batch.frames), False, method="tokens")
            last = tokens[0]
        mask = flat(batch.seen)
        (shares, found), changed = self.network.apply(
            variables, last, mask, True, method="shares", mutable=["batch_stats"], rngs={"dropout": context.rng}
        )
        return LossOutput.weighted(self._mask_terms(shares, found, mask), changed["batch_stats"], memory)

    def _mask_terms(self, shares: jax.Array, found: Mapping[str, jax.Array], mask: jax.Array) -> dict[str, Any]:
        config = self.config
        rough = mask_sobel_loss(shares, mask, config.mask_sobel_layout)
        terms = {"mse": (config.lambda_mse, found["mse"]), "sob_mask": (config.lambda_sob_mask, rough)}
        if config.lambda_border:
            terms["border"] = (config.lambda_border, border_loss(shares, mask))
        return terms

    def loss(self, variables: Variables, memory: Any, batch: Batch, context: Context) -> LossOutput:
        """L_id + L_tri of each stream, and 1 · L_mse + 0.02 · L_sob(mask) + 0.01 · L_sob(parts) + 5 · L_div."""
        config, label, valid, mask = self.config, batch.identity, batch.valid, flat(batch.seen)
        keys: dict[str, jax.Array] = dict(zip(("dropout", "maps"), jax.random.split(context.rng), strict=True))
        (found, cosines), changed = self.network.apply(
            variables, batch, method="train_outputs", mutable=["batch_stats"], rngs=keys
        )

        def identity(logits: jax.Array) -> jax.Array:
            each = jax.vmap(lambda x: cross_entropy(x, label, valid, config.label_smoothing), in_axes=1)
            return each(config.scale * logits).mean()

        losses: dict[str, Any] = {}
        for name in self.network_config.streams:
            losses[f"id_{name}"] = (1.0, identity(cosines[name]))
            losses[f"tri_{name}"] = (1.0, batch_all_triplet(found[name], label, valid, config.triplet.margin))
        if self.has_gait:
            losses |= self._mask_terms(found["shares"], found, mask)
        if self.has_gait and config.gait_input == "maps":
            losses["sob_parts"] = (config.lambda_sob_parts, sobel_loss(found["parts"][..., :-1], mask))
            losses["div"] = (config.lambda_div, diversity_loss(found["parts"], mask))
        return LossOutput.weighted(losses, changed["batch_stats"], memory)

    def embed(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, jax.Array]:
        """Parts f32[B, P, width] before their necks: of a stream by its name, of all streams "feature". "tower": the
        first map of the appearance stream (gait: of that), pooled."""
        found: Any = self.network.apply(variables, batch, False)
        streams = {name: found[name] for name in self.network_config.streams}
        return {"tower": found["tower"], "feature": jnp.concatenate(list(streams.values()), axis=1), **streams}

    def silhouettes(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, jax.Array]:
        """What the mask branch finds of every frame: "silhouette" f32[B, T, h, w]; and "parts" f32[B, T, h, w, ·]."""

        def look(network: DinoGRLNetwork) -> tuple[jax.Array, jax.Array]:
            mask = flat(batch.seen)
            last, four = network.tokens(flat(batch.frames), network.config.gait_input == "maps")
            shares, _ = network.shares(last, mask, False)
            silhouette, parts, _ = network.gait_maps(four, shares, mask, False)
            return silhouette, parts

        found: Any = self.network.apply(variables, method=look)
        lead = batch.frames.shape[:2]
        return {name: x.reshape(*lead, *x.shape[1:]) for name, x in zip(("silhouette", "parts"), found, strict=True)}

    @property
    def examines(self) -> bool:
        return self.has_gait

    def examine(self, variables: Variables, memory: Any, batch: Batch) -> Examined:
        """A frame from the middle of a clip, its silhouette, and the part that every cell is most of, a colour for
        each."""
        found = self.silhouettes(variables, memory, batch)
        colours = jnp.asarray(_colours(found["parts"].shape[-1]))
        clips = jnp.arange(len(batch.valid))
        middle = jnp.asarray(batch.frame_mask).sum(axis=1) // 2
        frame, silhouette, parts = (x[clips, middle] for x in (batch.frames, found["silhouette"], found["parts"]))
        mean, std = jnp.array(self.config.frames.mean), jnp.array(self.config.frames.std)
        shown = jnp.where((silhouette > 0)[..., None], colours[parts.argmax(-1)], 0.0)
        pictures = frame.astype(jnp.float32) * std + mean, jnp.repeat(silhouette[..., None], 3, -1), shown
        return Examined({}, pictures, batch.valid, ("frame", "silhouette", "parts"))


def _colours(count: int) -> np.ndarray:
    """So many colours that are told apart, f32[count, 3]."""
    import colorsys

    hues: Sequence[float] = [i * 0.618 % 1 for i in range(count)]
    return np.array([colorsys.hsv_to_rgb(hue, 0.75, 0.65 + 0.35 * (i % 2)) for i, hue in enumerate(hues)], np.float32)


METHOD = DinoGRL
