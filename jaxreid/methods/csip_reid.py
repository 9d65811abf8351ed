"""CSIP-ReID: skeletons take the place of text. They are needed in training alone.

Lin et al., "Skeletons Speak Louder than Text: A Motion-Aware Pretraining Paradigm for Video-Based Person
Re-Identification", AAAI 2026 (arXiv 2511.13150), on TF-CLIP; modules and recipe in the form of the released code. A
first stage brings a skeleton encoder to the features of CLIP's frozen image tower, without pixels. Then every identity
has a prototype of either modality; a clip's class bank is made of both (Prototype Fusion Updater, PFU), and a branch
over time is guided by skeletons while it learns (Skeleton Guided Temporal Modeling, SGTM). Without both, TF-CLIP's
memory of images is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import masked_mean, unit_rows
from jaxreid.augment import UNCHANGED
from jaxreid.backbones.clip import VISION_TOWERS
from jaxreid.backbones.skeleton_graph import SkeletonConfig, SkeletonGraph, clip_mean, tree_of
from jaxreid.data.batch import Batch
from jaxreid.data.extras import Extra
from jaxreid.data.samplers import ShuffleSampler
from jaxreid.data.split import Labels
from jaxreid.dataset_info import DatasetInfo
from jaxreid.errors import UserError, some
from jaxreid.layers.csip import Layout, PrototypeFusion, SkeletonGuidedTemporal, Skeletons
from jaxreid.layers.prompt_decoder import PromptDecoder
from jaxreid.losses.image_text import supervised_contrastive
from jaxreid.memory.class_bank import group_mean
from jaxreid.methods.class_banks import IMAGE_VALUES, Bank
from jaxreid.methods.clip_family import ClipFamily, ClipNetwork, family_values
from jaxreid.methods.method import (
    Backbone,
    Cached,
    Context,
    Extraction,
    Features,
    LossOutput,
    Phase,
    Stage,
    Update,
    Variables,
)
from jaxreid.optimizers import SCHEDULE_VALUES, Group, Optimizer, Schedule, make_optimizer
from jaxreid.values import defaulted, flag, free, non_negative, number, one_of, positive, row, series, under, whole

# Conditions of the keys of a skeleton encoder.
SKELETON_VALUES = {
    **under("skeleton", {"joints": whole(2), "edges": series(row(whole(0), whole(0))), "checkpoint": free}),
    **under("skeleton", dict.fromkeys(("width", "depth", "heads", "hidden", "eigenvectors"), whole(1))),
    **under("skeleton", {"dropout": number(0, below=1), "random_signs": flag, "shuffle": flag}),
}


def skeleton_config(options: Any, projection: int | None, dtype: Any = jnp.float32) -> SkeletonConfig:
    """The encoder of a config's section `skeleton`. Raises UserError where its edges are no tree."""
    names = ("width", "depth", "heads", "hidden", "dropout", "eigenvectors")
    tree = tree_of(options.joints, options.edges)
    return SkeletonConfig(tree=tree, projection=projection, dtype=dtype, **{name: options[name] for name in names})


def skeleton_faults(options: Any) -> Iterator[str]:
    if options.eigenvectors >= options.joints:
        yield f"config.skeleton.eigenvectors={options.eigenvectors}: {options.joints} joints have one fewer at most"
    if options.width % options.heads:
        yield f"config.skeleton.width={options.width} does not divide over config.skeleton.heads={options.heads}"
    try:
        tree_of(options.joints, options.edges)
    except UserError as error:
        yield f"config.skeleton.joints={options.joints}, edges: {error}"


def random_signs(options: Any, rng: jax.Array) -> jax.Array | None:
    """A sign for each eigenvector, where the config has them drawn in every step."""
    return jax.random.rademacher(rng, (options.eigenvectors,), jnp.float32) if options.random_signs else None


def joints_of(batch: Batch, shuffled: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """(joints f32[B, T, J, 3] in metres, which frames have a skeleton bool[B, T]).

    Args:
      shuffled: a key, to give every clip the skeletons of another.
    """
    joints, valid = jnp.asarray(batch.extras["joints3d"]), jnp.asarray(batch.valid)[:, None]
    seen = batch.extras["joints3d_mask"] & batch.frame_mask & valid
    if shuffled is None:
        return joints, seen
    order = jax.random.permutation(shuffled, len(joints))
    return joints[order], seen[order] & batch.frame_mask & valid


# --- The network ------------------------------------------------------------------------------------------------------


class CSIPNetwork(ClipNetwork):
    """The family's network with a skeleton encoder, PFU and SGTM.

    Attributes:
      encoder: of skeletons, None = no skeletons.
      fusion: PFU, None = none.
      guided: SGTM, None = none; `frames` says so, too.
    """

    encoder: SkeletonConfig | None = None
    fusion: Callable[[], PrototypeFusion] | None = None
    guided: Callable[[], SkeletonGuidedTemporal] | None = None

    def setup(self):
        super().setup()
        if self.encoder:
            self.skeleton = SkeletonGraph(self.encoder)
        if self.fusion:
            self.pfu = self.fusion()
        if self.guided:
            self.temporal = self.guided()

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Everything once, which makes the parameters."""
        skeletons = self.skeletons(*joints_of(batch), train=False) if self.encoder else None
        found = self.encode(batch, False, skeletons, all_tokens=True)
        self.logits(found, batch, False)
        if self.fusion:
            self.similar(found, Prototypes.none(self.num_classes, found["projected"].shape[-1]), batch, False)
        return found

    # 1: skeletons, in CLIP's joint space

    def skeletons(self, joints: jax.Array, seen: jax.Array, train: bool, signs: jax.Array | None = None) -> Skeletons:
        return Skeletons(self.skeleton(joints, train, signs), seen)

    # 2: clips

    def encode(
        self, batch: Batch, train: bool, skeletons: Skeletons | None = None, all_tokens: bool = False
    ) -> dict[str, Any]:
        """Clip features by name; also "tokens" [B, T, L, D], "skeletons" as given and, of SGTM, "frames" f32[B, T, D].

        Args:
          skeletons: of training; without, features are those of tests.
        """
        frames = self.tower(batch, train, all_tokens=all_tokens or self.guided is not None)
        found = self.clips(frames, batch) | {"tokens": frames.tokens, "skeletons": skeletons}
        if self.guided:
            assert frames.tokens is not None
            found["temporal"], found["frames"] = self.temporal(frames.tokens, batch.frame_mask, skeletons, train)
        return found

    def similar(self, found: Mapping[str, Any], bank: Any, batch: Batch, train: bool) -> jax.Array:
        """v·(p + Δ)ᵀ: dot products with the fused prototypes as they are for each clip, f32[B, C]; without PFU with
        those of images."""
        if not self.fusion:
            return super().similar(found, bank.images, batch, train)
        prototypes = self.pfu.fused(bank.skeletons, bank.images, bank.seen > 0)
        logits = super().similar(found, prototypes, batch, train)
        tokens = self.tower.project(masked_mean(found["tokens"], batch.frame_mask))
        change = self.pfu(prototypes, tokens, found["skeletons"], batch.frame_mask, train)
        return logits + jnp.einsum("be,bce->bc", found["projected"], change, precision=jax.lax.Precision.HIGHEST)


# --- Prototypes -------------------------------------------------------------------------------------------------------


class Prototypes(flax.struct.PyTreeNode):
    """Mean features of identities before the main stage, not normalized; constant from there on."""

    skeletons: jax.Array  # f32[C, E]
    images: jax.Array  # f32[C, E]
    count: jax.Array  # i32[C], tracklets that they are made of
    seen: jax.Array  # i32[C], those of them with a skeleton

    @classmethod
    def none(cls, classes: int, width: int) -> Prototypes:
        """Zeros, of no tracklet."""
        rows, counts = (classes, width), (classes,)
        return cls(jnp.zeros(rows), jnp.zeros(rows), jnp.zeros(counts, jnp.int32), jnp.zeros(counts, jnp.int32))


@dataclasses.dataclass(frozen=True)
class PrototypeBank(Bank):
    """A prototype of either modality for each identity, made once, by networks in evaluation mode.

    Attributes:
      pretraining: the stages before.
    """

    pretraining: tuple[Stage, ...] = ()

    def stages(self, main: Stage) -> tuple[Stage, ...]:
        options = self.config.memory
        extraction = Extraction(
            0, 0, options.seq_len, refresh=self.refresh, extract=self.find, clip_sampling=options.clip_sampling
        )
        return (*self.pretraining, dataclasses.replace(main, extraction=extraction))

    def init(self) -> Any:
        return Prototypes.none(self.info.num_classes, self.width)

    def refresh(self, variables: Variables, memory: Prototypes, features: Features, context: Context) -> Prototypes:
        """Means of an identity's tracklets, each the mean of its clips."""
        assert self.info.labels is not None
        identity, classes = jnp.asarray(self.info.labels.identity), self.info.num_classes

        def made(name: str, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Rows f32[C, E], and of how many tracklets each is the mean, i32[C]."""
            of_tracklet = jnp.where(valid, features.tracklet, -1)
            means, there = group_mean(features.arrays[name], of_tracklet, len(identity))
            own = jnp.where(there, identity, -1)
            return group_mean(means, own, classes)[0], jnp.bincount(own + 1, length=classes + 1)[1:]

        images, count = made("projected", features.valid)
        if "skeleton" not in features.arrays:
            return memory.replace(images=images, count=count)
        skeletons, seen = made("skeleton", features.valid & (features.arrays["seen"] > 0))
        return Prototypes(skeletons, images, count, seen)


# --- The method -------------------------------------------------------------------------------------------------------


VALUES = {
    **family_values("temporal"),
    **IMAGE_VALUES,
    **SKELETON_VALUES,
    **under("skeleton", {"finetune": flag}),
    **under("stage1", dict.fromkeys(("epochs", "batch_size"), whole(1))),
    **under("stage1", {"lr": positive, "weight_decay": non_negative, "temperature": positive, "normalize": flag}),
    **under("stage1.schedule", defaulted(SCHEDULE_VALUES)),
    **under("pfu", {"use": flag, "depth": whole(1), "heads": whole(1), "dropout": number(0, below=1)}),
    **under(
        "sgtm", {"use": flag, "heads": whole(1), "dropout": number(0, below=1), "layout": one_of(get_args(Layout))}
    ),
    **under("sgtm", {"drop": number(0, 1), "time_embedding": flag}),
    "weights.frame_identity": non_negative,
}


class CSIPReID(ClipFamily):
    """See the module's docstring."""

    values = VALUES

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        yield from super().contradictions(config)
        yield from skeleton_faults(config.skeleton)
        for key, names in (("triplet.features", config.triplet.features), ("embedding", config.embedding)):
            if "temporal" in names and not config.sgtm.use:
                yield f"config.{key} has 'temporal', the feature of the branch that config.sgtm.use=True adds"
        tower = VISION_TOWERS[config.backbone.name]
        for key, heads, width in (
            ("pfu", config.pfu.heads, tower.projection),
            ("sgtm", config.sgtm.heads, tower.width),
        ):
            if width and width % heads:
                yield f"config.{key}.heads={heads} does not divide the {width} channels of {config.backbone.name}"
        if config.sgtm.time_embedding and config.evaluation.seq_len > config.batch.seq_len:
            yield (
                f"config.sgtm.time_embedding=True learns {config.batch.seq_len} places (config.batch.seq_len), too few "
                f"for config.evaluation.seq_len={config.evaluation.seq_len}"
            )

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        if info.labels is not None:
            clips = np.bincount(np.maximum(info.labels.identity, 0), info.labels.identity >= 0, info.num_classes)
            if (missing := np.flatnonzero(clips == 0)).size:
                raise UserError(
                    f"{info.name}: {len(missing)} of {info.num_classes} training identities have no clip, and so no "
                    f"prototype: {some([f'label {label}' for label in missing])}; number labels without gaps"
                )

    @property
    def uses_skeletons(self) -> bool:
        return self.config.pfu.use or self.config.sgtm.use

    def make_network(self) -> CSIPNetwork:
        config, pfu, sgtm = self.config, self.config.pfu, self.config.sgtm
        decoder = partial(PromptDecoder, pfu.depth, pfu.heads, self_attention=True, dropout=pfu.dropout)
        places = config.batch.seq_len if sgtm.time_embedding else 0
        return CSIPNetwork(
            **self.shared(),
            classified=("last", "projected", *(("temporal",) if sgtm.use else ())),
            encoder=self.skeleton if self.uses_skeletons else None,
            fusion=partial(PrototypeFusion, self.joint_width, decoder) if pfu.use else None,
            guided=partial(SkeletonGuidedTemporal, sgtm.heads, sgtm.dropout, sgtm.layout, places) if sgtm.use else None,
            frames=sgtm.use,
        )

    @property
    def skeleton(self) -> SkeletonConfig:
        return skeleton_config(self.config.skeleton, self.joint_width, self.image.dtype)

    def backbones(self) -> tuple[Backbone, ...]:
        weights = self.config.skeleton.checkpoint
        own = (Backbone(("skeleton",), weights, self.skeleton),) if self.uses_skeletons else ()
        return (*super().backbones(), *own)

    def extras(self, phase: Phase) -> Mapping[str, Extra]:
        """Skeletons where anything is learned from them, never at test time."""
        if phase == "test" or not self.uses_skeletons:
            return {}
        found = {"joints3d": Extra((self.config.skeleton.joints, 3), missing="mask")}
        return found | ({"frame_place": Extra(dtype="int32")} if phase == "train" else {})

    # --- 1: contrastive skeleton-image pretraining ----------------------------------------------------------------

    def pretraining(self) -> tuple[Stage, ...]:
        """Skeletons against what the tower as it was finds in single frames, once; no picture is read again."""
        batch, options = self.config.batch, self.config.stage1
        if not self.uses_skeletons:
            return ()
        groups = (Group(r"^skeleton/", options.lr, options.weight_decay), Group(r".*", 0.0))
        return (
            Stage(
                name="skeletons",
                epochs=options.epochs,
                loss=self.pretraining_loss,
                sampler=ShuffleSampler(options.batch_size),
                seq_len=batch.seq_len,
                piece_len=batch.piece_len,
                clip_sampling=batch.clip_sampling,
                augment=UNCHANGED,
                updates=(Update("skeletons", Optimizer(groups), Schedule(**options.schedule)),),
                cached=Cached(self.plain_features),
                pictures=False,
            ),
        )

    def pretraining_loss(self, variables: Variables, memory: Any, batch: Batch, context: Context) -> LossOutput:
        """L_v2s + L_s2v: supervised contrast of a clip's mean image feature and its mean joint token."""
        options, (dropout, signs, order) = self.config, jax.random.split(context.rng, 3)
        joints, seen = joints_of(batch, order if options.skeleton.shuffle else None)
        skeletons: Any = self.network.apply(
            variables,
            joints,
            seen,
            True,
            random_signs(options.skeleton, signs),
            method="skeletons",
            rngs={"dropout": dropout},
        )
        v, s = masked_mean(batch.extras["projected"], batch.frame_mask), clip_mean(*skeletons)
        if options.stage1.normalize:
            v, s = unit_rows(v), unit_rows(s)
        s = s / options.stage1.temperature
        y, valid = batch.identity, batch.valid & seen.any(axis=1)
        losses = {
            "image_to_skeleton": (1.0, supervised_contrastive(v, s, y, valid)),
            "skeleton_to_image": (1.0, supervised_contrastive(s, v, y, valid)),
        }
        return LossOutput.weighted(losses, variables["batch_stats"], memory)

    # --- 2: prototypes, once -----------------------------------------------------------------------------------------

    def make_bank(self) -> Bank:
        return PrototypeBank(self.config, self.info, self.joint_width, self.find_prototypes, self.pretraining())

    def find_prototypes(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, Any]:
        """ "projected" f32[B, E] of the starting tower, "skeleton" f32[B, E], and whether a clip has any, f32[B]."""
        found = self.plain_features(variables, memory, batch)
        if not self.uses_skeletons:
            return found
        order = jax.random.fold_in(jax.random.PRNGKey(self.config.seed), batch.tracklet[0])
        joints, seen = joints_of(batch, order if self.config.skeleton.shuffle else None)
        skeletons: Any = self.network.apply(variables, joints, seen, False, method="skeletons")
        return found | {"skeleton": clip_mean(*skeletons), "seen": seen.any(axis=1).astype(jnp.float32)}

    def rows(self, network: Any, memory: Prototypes, context: Context) -> Any:
        return memory

    def diagnose(self, memory: Prototypes, labels: Labels) -> dict[str, float]:
        """How many identities have a skeleton at all, in per cent: the others' prototypes are those of images."""
        return (
            {"skeletons_coverage": 100.0 * float(np.mean(np.asarray(memory.seen) > 0))} if self.uses_skeletons else {}
        )

    # --- 3: the main stage -------------------------------------------------------------------------------------------

    def optimizer(self) -> Optimizer:
        """Of the main stage, in which the skeleton encoder stays as it is, unless `skeleton.finetune`."""
        frozen = self.uses_skeletons and not self.config.skeleton.finetune
        return make_optimizer(self.config.optimizer, frozen=r"^skeleton/" if frozen else None)

    def encode(self, network: Any, batch: Batch, context: Context) -> dict[str, Any]:
        """Clip features of training, with the skeletons that guide them; of some clips the temporal feature is made
        without any, as in tests."""
        options, skeletons, guides = self.config.skeleton, None, None
        if self.uses_skeletons:
            signs, order = jax.random.split(jax.random.fold_in(context.rng, 1))
            joints, seen = joints_of(batch, order if options.shuffle else None)
            skeletons = network.skeletons(joints, seen, options.finetune, random_signs(options, signs))
            if not options.finetune:
                skeletons = jax.lax.stop_gradient(skeletons)
            kept = jax.random.bernoulli(jax.random.fold_in(context.rng, 2), 1 - self.config.sgtm.drop, (len(seen), 1))
            guides = skeletons._replace(seen=seen & kept)
        found = network.encode(batch, True, guides, all_tokens=self.config.pfu.use)
        return {**found, "skeletons": skeletons}


METHOD = CSIPReID
