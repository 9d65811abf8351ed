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

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import masked_mean
from jaxreid.augment import Augmentation
from jaxreid.backbones.dinov2 import dinov2_config
from jaxreid.backbones.frame_encoder import RESNETS, encoder_config
from jaxreid.backbones.mask_branch import MaskBranch, MaskBranchConfig
from jaxreid.backbones.resnet import ResNet, ResNetConfig, gem
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.data.batch import Batch
from jaxreid.data.samplers import PairSampler
from jaxreid.data.schema import INFRARED, VISIBLE
from jaxreid.dataset_info import DatasetInfo
from jaxreid.errors import UserError
from jaxreid.layers.gait_maps import AttentionFusion, CellBranch, GaitStem
from jaxreid.layers.pbmge import Exchange
from jaxreid.layers.pyramid import PartNecks, SeparateFC, pyramid_pool
from jaxreid.layers.silhouettes import (
    SobelLayout,
    cleaned,
    diversity_loss,
    kept_maps,
    mask_sobel_loss,
    person,
    resized,
    sobel_loss,
)
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.triplet import batch_all_triplet
from jaxreid.methods.method import Backbone, Cached, Context, Evaluation, LossOutput, Method, Stage, Update, Variables
from jaxreid.methods.released import dinogrl
from jaxreid.optimizers import Group, Optimizer, Schedule, make_optimizer
from jaxreid.retrieval.distances import OF_PARTS
from jaxreid.values import flag, fraction, free, non_negative, number, one_of, positive, series, under, whole

STREAMS = ("appearance", "gait")
FINER = 2  # cells of the silhouette for a token, each way


# --- The network ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DinoGRLConfig:
    """What the network is made of.

    Attributes:
      dino: the frozen tower, of the size in pixels that frames are brought to for it.
      resnet: of the appearance stream, with two stems; without them, of the gait stream.
      streams: of `STREAMS`.
      gait_input: what the gait stream sees, the two "maps", or the "silhouette" alone.
      channels: of either map.
      bins: of the pyramid; width: of a part.
      map_drop, dropout: shares of clips that lose a map, and of entries of tokens that the mask branch does not see.
      granularities: of PBMGE, () = without; enriched: the streams whose global part it enriches.
      mask_grad: whether identity losses reach the mask branch.
      fast: whether products of cells are taken of tokens.
    """

    dino: ViTConfig
    resnet: ResNetConfig
    num_classes: int
    streams: tuple[str, ...] = STREAMS
    gait_input: str = "maps"
    channels: int = 16
    bins: tuple[int, ...] = (1, 2, 4, 8, 16)
    width: int = 256
    granularities: tuple[int, ...] = (2, 4, 8, 16)
    enriched: tuple[str, ...] = STREAMS
    map_drop: float = 0.2
    dropout: float = 0.5
    mask_grad: bool = False
    fast: bool = True

    @property
    def taps(self) -> tuple[int, ...]:
        """The blocks behind each quarter of the tower."""
        return tuple(self.dino.depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.dino.grid
        return FINER * rows, FINER * columns

    @property
    def mask_branch(self) -> MaskBranchConfig:
        return MaskBranchConfig(self.dino.width, self.dropout)

    @property
    def trunk(self) -> ResNetConfig:
        """The ResNet of the gait stream."""
        return dataclasses.replace(self.resnet, stems=0)


class DinoGRLNetwork(nn.Module):
    """Both streams up to the parts of a clip, and a neck for each."""

    config: DinoGRLConfig

    def setup(self):
        c = self.config
        if "gait" in c.streams:
            dtype = c.resnet.dtype
            self.dinov2 = ViT(c.dino)
            self.mask_branch = MaskBranch(c.mask_branch)
            if c.gait_input == "maps":
                self.part_branch = CellBranch("parts", c.channels, c.dino.dtype, c.fast)
                self.texture_branch = CellBranch("texture", c.channels, c.dino.dtype, c.fast)
            self.part_stem, self.texture_stem = (GaitStem(c.resnet.width, dtype) for _ in range(2))
            self.fusion = AttentionFusion(dtype)
            self.gait_trunk = ResNet(c.trunk)
        if "appearance" in c.streams:
            self.appearance_trunk = ResNet(c.resnet)
        self.parts = {name: SeparateFC(c.width, c.resnet.dtype, name=f"{name}_parts") for name in c.streams}
        self.necks = {name: PartNecks(c.num_classes, name=f"{name}_necks") for name in c.streams}
        exchanges = c.enriched if c.granularities and len(c.streams) == 2 else ()
        self.exchanges = {name: Exchange(c.bins, c.granularities, name=f"{name}_exchange") for name in exchanges}

    # SASGL: the gait stream

    def tokens(self, frames: jax.Array, all_blocks: bool = True) -> tuple[jax.Array, jax.Array]:
        """Frames [N, H, W, 3] → on the tower's grid, the last block's tokens behind its norm [N, a, b, D], and those of
        four blocks, normed together [N, a, b, 4·D]. No gradient."""
        c = self.config
        taps = c.taps if all_blocks else c.taps[-1:]
        found = self.dinov2(resized(frames, c.dino.image_size), taps=taps)
        patches = slice(1 + c.dino.register_tokens, None)
        blocks = jnp.concatenate([tap.tokens[:, patches] for tap in found["taps"]], axis=-1).astype(jnp.float32)
        centred = blocks - blocks.mean(-1, keepdims=True)
        blocks = centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-6)
        maps = (x.astype(c.dino.dtype).reshape(-1, *c.dino.grid, x.shape[-1]) for x in (found["patch_tokens"], blocks))
        last, four = map(jax.lax.stop_gradient, maps)
        return last, four

    def shares(self, last: jax.Array, mask: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Tokens of the last block → the mask branch's shares f32[N, h, w, 2]; and its reconstruction loss and how far
        it is from smooth, for training."""
        cells = resized(jnp.where(mask[:, None, None, None], last, 0), self.config.grid)
        shares, rebuilt = self.mask_branch(cells, mask, train)
        error = jnp.mean((rebuilt - cells.astype(jnp.float32)) ** 2, axis=(1, 2, 3))
        return shares, {"mse": masked_mean(error, mask)}

    def gait_maps(
        self, four: jax.Array, shares: jax.Array, mask: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(silhouette f32[N, h, w], and the two maps f32[N, h, w, ·] inside of it)."""
        own = person(shares)
        silhouette = cleaned(jax.lax.stop_gradient(own)) * mask[:, None, None]
        active = silhouette > 0
        if self.config.gait_input == "silhouette":
            parts = texture = silhouette[..., None]
        else:
            four = jnp.where(mask[:, None, None, None], four, 0)
            parts, texture = (branch(four, active, train) for branch in (self.part_branch, self.texture_branch))
        if self.config.mask_grad:  # the same values; where a cell is active, its share has a slope
            passed = (1 + own - jax.lax.stop_gradient(own))[..., None]
            parts, texture = parts * passed, texture * passed
        return silhouette, parts, texture

    def gait(self, batch: Batch, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(map [N, h, w, C] of every frame; "mse", and what the losses of maps are made of)."""
        mask = _frame_mask(batch)
        last, four = self.tokens(_flat(batch.frames), self.config.gait_input == "maps")
        shares, found = self.shares(last, mask, train)
        silhouette, parts, texture = self.gait_maps(four, shares, mask, train)
        found |= {"shares": shares, "parts": parts, "silhouette": silhouette}
        maps = parts, texture
        if train and self.config.map_drop:
            kept = kept_maps(self.make_rng("maps"), batch.valid, self.config.map_drop)
            kept = jnp.repeat(kept, batch.frames.shape[1], axis=0)
            maps = (x * kept[:, i, None, None, None] for i, x in enumerate(maps))
        first, second = (
            stem(x, mask, train) for stem, x in zip((self.part_stem, self.texture_stem), maps, strict=True)
        )
        return self.gait_trunk.run_layers(self.fusion(first, second, mask, train), mask, train), found

    # Both streams

    def __call__(self, batch: Batch, train: bool) -> dict[str, Any]:
        """frames [B, T, H, W, 3] → parts of the streams f32[B, P, width] by name; "tower" f32[B, C], what a stream
        begins with; in a gait stream also what `gait` finds."""
        clips, length = batch.frames.shape[:2]
        maps, found = {}, {}
        if "gait" in self.config.streams:
            maps["gait"], found = self.gait(batch, train)
        if "appearance" in self.config.streams:
            modality = jnp.repeat(batch.modality, length)
            maps["appearance"] = self.appearance_trunk(_flat(batch.frames), _frame_mask(batch), modality, train)["map"]
        first = maps["appearance" if "appearance" in maps else "gait"]
        found["tower"] = masked_mean(gem(first).reshape(clips, length, -1), batch.frame_mask)
        for name, x in maps.items():  # maps are not negative, and 0 where a frame does not count
            over_time = x.reshape(clips, length, *x.shape[1:]).max(axis=1)
            found[name] = self.parts[name](pyramid_pool(over_time, self.config.bins))
        plain = {name: found[name] for name in self.config.streams}
        for name, exchange in self.exchanges.items():
            (other,) = set(STREAMS) - {name}
            more = exchange(plain[name], plain[other], batch.valid, train)
            found[name] = jnp.concatenate([plain[name], more], axis=1)
        return found

    def train_outputs(self, batch: Batch) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """(features, cosines [B, P, classes] of each stream), in training."""
        found = self(batch, train=True)
        return found, {name: self.necks[name](found[name], batch.valid, True) for name in self.config.streams}


def _flat(frames: jax.Array) -> jax.Array:
    return frames.reshape(-1, *frames.shape[2:])


def _frame_mask(batch: Batch) -> jax.Array:
    return (batch.frame_mask & batch.valid[:, None]).reshape(-1)


# --- The method -------------------------------------------------------------------------------------------------------

VALUES = {
    "streams": one_of(("both", *STREAMS)),
    "gait_input": one_of(("maps", "silhouette")),
    "dino_size": series(whole(1), length=2),
    "resnet.name": one_of(lambda: [name for name, config in RESNETS.items() if config.stems == 2]),
    "resnet.checkpoint": free,
    "map_channels": whole(2),
    "map_drop": fraction,
    "stem_relu": flag,
    "mask_grad": flag,
    "mask_sobel_layout": one_of(get_args(SobelLayout)),
    "fast": flag,
    **under("mask", {"checkpoint": free, "warmup_steps": whole(1), "lr": positive, "cache": flag}),
    **under("mask", {"dropout": number(0, below=1)}),
    "pyramid": series(whole(1), ascending=True, least=1),
    "part_width": whole(1),
    **under("pbmge", {"granularities": series(whole(2), ascending=True), "direction": one_of(("both", *STREAMS))}),
    **under("triplet", {"margin": non_negative}),
    "scale": positive,
    "label_smoothing": number(0, below=1),
    **dict.fromkeys(("lambda_mse", "lambda_sob_mask", "lambda_sob_parts", "lambda_div"), non_negative),
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

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        if {VISIBLE, INFRARED} - set(np.unique(info.table.modality).tolist()):
            raise UserError(f"{info.name}: training needs visible and infrared tracklets of the same people")
        precision: Any = jnp.dtype(config.precision)
        remat = config.backbone.remat
        name = config.backbone.name.partition(":")[2]
        dino = dinov2_config(name, tuple(config.dino_size), dtype=precision, remat=remat, scan=config.backbone.scan)
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
        keys = dict(zip(("params", "dropout", "maps"), jax.random.split(rng, 3), strict=True))
        return self.network.init(keys, batch, method="train_outputs")

    def last_tokens(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, jax.Array]:
        """What the mask branch learns from, "tokens" [B, T, a, b, D], of frames as they are."""
        tokens: Any = self.network.apply(variables, _flat(batch.frames), False, method="tokens")
        return {"tokens": tokens[0].reshape(*batch.frames.shape[:2], *tokens[0].shape[1:])}

    def mask_loss(self, variables: Variables, memory: Any, batch: Batch, context: Context) -> LossOutput:
        """λ L_mse + λ L_sob alone, before anything else learns."""
        if "tokens" in batch.extras:
            last = _flat(jnp.asarray(batch.extras["tokens"])).astype(self.network_config.dino.dtype)
        else:
            tokens: Any = self.network.apply(variables, _flat(batch.frames), False, method="tokens")
            last = tokens[0]
        mask = _frame_mask(batch)
        (shares, found), changed = self.network.apply(
            variables, last, mask, True, method="shares", mutable=["batch_stats"], rngs={"dropout": context.rng}
        )
        return LossOutput.weighted(self._mask_terms(shares, found, mask), changed["batch_stats"], memory)

    def _mask_terms(self, shares: jax.Array, found: Mapping[str, jax.Array], mask: jax.Array) -> dict[str, Any]:
        config = self.config
        rough = mask_sobel_loss(shares, mask, config.mask_sobel_layout)
        return {"mse": (config.lambda_mse, found["mse"]), "sob_mask": (config.lambda_sob_mask, rough)}

    def loss(self, variables: Variables, memory: Any, batch: Batch, context: Context) -> LossOutput:
        """L_id + L_tri of each stream, and 1 · L_mse + 0.02 · L_sob(mask) + 0.01 · L_sob(parts) + 5 · L_div."""
        config, label, valid, mask = self.config, batch.identity, batch.valid, _frame_mask(batch)
        keys = dict(zip(("dropout", "maps"), jax.random.split(context.rng), strict=True))
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
            mask = _frame_mask(batch)
            last, four = network.tokens(_flat(batch.frames), network.config.gait_input == "maps")
            shares, _ = network.shares(last, mask, False)
            silhouette, parts, _ = network.gait_maps(four, shares, mask, False)
            return silhouette, parts

        found: Any = self.network.apply(variables, method=look)
        lead = batch.frames.shape[:2]
        return {name: x.reshape(*lead, *x.shape[1:]) for name, x in zip(("silhouette", "parts"), found, strict=True)}

    def strip(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, jax.Array]:
        """The silhouette, and the part that every cell is most of, a colour for each."""
        if not self.has_gait:
            return {}
        found = self.silhouettes(variables, memory, batch)
        silhouette, parts = found["silhouette"], found["parts"]
        colours = jnp.asarray(_colours(parts.shape[-1]))
        shown = jnp.where((silhouette > 0)[..., None], colours[parts.argmax(-1)], 0.0)
        return {"silhouette": jnp.repeat(silhouette[..., None], 3, -1), "parts": shown}


def _colours(count: int) -> np.ndarray:
    """So many colours that are told apart, f32[count, 3]."""
    import colorsys

    hues: Sequence[float] = [i * 0.618 % 1 for i in range(count)]
    return np.array([colorsys.hsv_to_rgb(hue, 0.75, 0.65 + 0.35 * (i % 2)) for i, hue in enumerate(hues)], np.float32)


METHOD = DinoGRL
