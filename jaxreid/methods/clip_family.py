"""What the members of the CLIP-ReID family share: image features classified against a bank in CLIP's joint space,
beside identity and triplet losses.

A member is a file that puts these parts together, and says what is its own:

    ClipTower (jaxreid.layers.clip_tower)     the image tower with side information, prompts and adapters
    POOLINGS (jaxreid.layers.temporal)        features of frames → of clips
    Necks (jaxreid.layers.neck)               a batch norm and a classifier for each feature
    banks (jaxreid.methods.class_banks)       where the rows come from that features are compared with
    family_losses                             identity and triplet losses of the features

A clip's features are "penultimate" (class token before the last block), "last" (after the last norm), "projected" (in
the joint space), and what a member adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.augment import Augmentation
from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.backbones.frame_encoder import clip_configs
from jaxreid.backbones.text import TEXT_TOWERS, TextConfig
from jaxreid.backbones.transformer import Adapters
from jaxreid.backbones.vit import ViTConfig
from jaxreid.data.batch import Batch
from jaxreid.data.samplers import IdentitySampler, RandomIdentitySampler
from jaxreid.dataset_info import DatasetInfo
from jaxreid.layers.clip_tower import FEATURES, ClipTower, FrameFeatures, PlatformPrompts, SideInformation
from jaxreid.layers.conditions import COLUMNS
from jaxreid.layers.neck import NECKS, Necks
from jaxreid.layers.prompts import PromptedText, PromptTemplate, template_faults
from jaxreid.layers.temporal import POOLINGS, MeanPooling
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.triplet import Metric, batch_hard_triplet
from jaxreid.methods.class_banks import Bank, BankMemory, PromptBank
from jaxreid.methods.method import Backbone, Context, LossOutput, Method, Stage, Update, Variables
from jaxreid.optimizers import Optimizer, Schedule, make_optimizer
from jaxreid.values import flag, non_negative, number, one_of, some_of, under

SAMPLERS = {"groups": RandomIdentitySampler, "balanced": IdentitySampler}


def family_values(*features: str) -> dict[str, Any]:
    """Conditions of the keys that every member has, whose features are `FEATURES` and those of its own."""
    named = some_of((*FEATURES, *features), least=1)
    return {
        "label_smoothing": number(0, below=1),
        "backbone.name": one_of(TEXT_TOWERS),
        "batch.sampler": one_of(SAMPLERS),
        "pooling": one_of(POOLINGS),
        **under("sie", {"columns": some_of(COLUMNS), "strength": non_negative}),
        **under("triplet", {"features": named, "metric": one_of(get_args(Metric)), "margin": non_negative}),
        "triplet.soft_margin": flag,
        **under("weights", dict.fromkeys(("identity", "triplet", "bank"), non_negative)),
        "embedding": named,
        "neck_feat": one_of(NECKS),
    }


class ClipNetwork(nn.Module):
    """Tower, pooling and necks; and the text tower where a bank is made of sentences.

    Attributes:
      image: the image tower; adapters, side, prompts: what is added to it.
      num_classes: C, training identities.
      pooling: of frames, one of `POOLINGS`; made once for the tower's own space and once for the joint one.
      classified: features that have a neck and a classifier.
      frames: whether "temporal" also has features of frames, which share its classifier behind a norm of their own.
      neck_shift: whether the batch norms of the necks have a trained shift.
      text: text tower and template, None = no sentences.
    """

    image: ViTConfig
    num_classes: int
    adapters: Adapters = Adapters()
    side: SideInformation | None = None
    prompts: PlatformPrompts | None = None
    pooling: Callable[[], nn.Module] = MeanPooling
    classified: tuple[str, ...] = ("last", "projected")
    frames: bool = False
    neck_shift: bool = False
    text: tuple[TextConfig, PromptTemplate] | None = None

    def setup(self):
        # Parts share the network's scope: parameters are named as if they were its own.
        self.tower = ClipTower(self.image, self.adapters, self.side, self.prompts)
        nn.share_scope(self, self.tower)
        self.heads = Necks(self.num_classes, self.classified, self.neck_shift)
        nn.share_scope(self, self.heads)
        self.pool, self.pool_joint = self.pooling(), self.pooling()
        if self.frames:
            self.frame_norm = MaskedBatchNorm(use_bias=False)
        if self.text:
            self.prompted_text = PromptedText(*self.text, self.num_classes, name="text")

    def __call__(self, batch: Batch) -> dict[str, jax.Array]:
        """Everything once, which makes the parameters."""
        found = self.encode(batch, train=False)
        self.logits(found, batch, train=False)
        self.similar(found, jnp.zeros((self.num_classes, found["projected"].shape[-1])), batch, train=False)
        if self.text:
            self.prompted_text(jnp.zeros(1, jnp.int32))
        return found

    def encode(self, batch: Batch, train: bool) -> dict[str, Any]:
        """frames [B, T, H, W, 3] → clip features by name f32[B, ·], and what other parts need of the frames."""
        return self.clips(self.tower(batch, train), batch)

    def clips(self, frames: FrameFeatures, batch: Batch) -> dict[str, Any]:
        return frames.pooled(self.pool, self.pool_joint, batch.frame_mask)

    def plain(self, batch: Batch) -> jax.Array:
        """ "projected" f32[B, E] of CLIP's tower as it was, the mean over frames."""
        return masked_mean(self.tower(batch, False, plain=True).projected, batch.frame_mask)

    def logits(self, found: Mapping[str, Any], batch: Batch, train: bool) -> dict[str, jax.Array]:
        """Clip features → identity logits f32[B, C] by name; of "frames" f32[B·T, C]."""
        logits = self.heads(found, batch.valid, train)
        if self.frames:
            seen = batch.seen.reshape(-1)
            frames = found["frames"].reshape(len(seen), -1)
            frames = self.frame_norm(frames, seen, use_running_average=not train)
            logits["frames"] = self.heads.neck("temporal").classifier(frames)
        return logits

    def normed(self, found: Mapping[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """Clip features by name as the batch norms of the necks leave them, with their running statistics."""
        return self.heads.normed(found, batch.valid)

    def similar(self, found: Mapping[str, Any], bank: jax.Array, batch: Batch, train: bool) -> jax.Array:
        """Dot products of "projected" with the rows of the bank [C, E], f32[B, C]; neither is normalized."""
        return jnp.matmul(found["projected"], bank.T, precision=jax.lax.Precision.HIGHEST)

    def texts(self, identity: jax.Array) -> jax.Array:
        return self.prompted_text(identity)

    def text_bank(self, multiple: int) -> jax.Array:
        return self.prompted_text.bank(multiple)


def prompted(config: Any, info: DatasetInfo, text: TextConfig) -> tuple[TextConfig, PromptTemplate]:
    """The text side of a network whose bank is made of sentences."""
    assert info.tokenize is not None
    prompt = config.prompt
    return text, PromptTemplate.of_text(prompt.template, info.tokenize, prompt.n_ctx, prompt.shared_ctx)


def prompt_faults(config: Any) -> Iterator[str]:
    yield from template_faults(config.prompt.template, config.prompt.n_ctx + sum(config.prompt.shared_ctx))


def family_losses(
    config: Any, found: Mapping[str, Any], logits: Mapping[str, jax.Array], classified: tuple[str, ...], batch: Batch
) -> dict[str, tuple[Any, jax.Array]]:
    """{name: (weight, value)}: label-smoothed identity losses behind the necks of the `classified` features, batch-hard
    triplet losses of `config.triplet.features` before them."""
    w, y, valid, triplet = config.weights, batch.identity, batch.valid, config.triplet
    of_identity = [cross_entropy(logits[name], y, valid, config.label_smoothing) for name in classified]
    of_triplets = [
        batch_hard_triplet(found[name], y, valid, triplet.margin, triplet.metric, triplet.soft_margin)
        for name in triplet.features
    ]
    return {"identity": (w.identity, sum(of_identity)), "triplet": (w.triplet, sum(of_triplets))}  # pyright: ignore


def frame_loss(config: Any, logits: Mapping[str, jax.Array], batch: Batch) -> dict[str, tuple[Any, jax.Array]]:
    """The identity loss of the logits of frames, 1/T of its weight; nothing where there are none."""
    if "frames" not in logits:
        return {}
    frames = batch.frame_mask.shape[1]
    seen = batch.seen.reshape(-1)
    y = jnp.repeat(batch.identity, frames)
    of_frames = cross_entropy(logits["frames"], y, seen, config.label_smoothing)
    return {"frame_identity": (config.weights.frame_identity / frames, of_frames)}


class ClipFamily(Method):
    """A member with the default parts: `make_network` and `make_bank` say what is its own, and `more_losses` what it
    minimizes besides.

    Attributes:
      compared: the feature that moves the bank.
    """

    uses_identity = True
    compared = "projected"

    @property
    def told(self) -> tuple[str, ...]:
        """Whose logits identity is told by."""
        return self.network.classified

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        if config.neck_feat == "after" and "penultimate" in config.embedding:
            yield "config.embedding has 'penultimate', which has no neck: take config.neck_feat='before'"

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        self.image, self.text = clip_configs(config.backbone, info.frame_size, config.precision)
        self.network = self.make_network()
        self.bank = self.make_bank()

    def make_network(self) -> ClipNetwork:
        raise NotImplementedError

    def make_bank(self) -> Bank:
        raise NotImplementedError

    # --- parts ----------------------------------------------------------------------------------------------------

    @property
    def side(self) -> SideInformation | None:
        columns = tuple(self.config.sie.columns)
        return SideInformation(columns, len(self.info.cameras), self.config.sie.strength) if columns else None

    @property
    def has_text_tower(self) -> bool:
        """Whether the network has a text tower, at "text/tower"; the main stage trains nothing below "text"."""
        return self.network.text is not None

    @property
    def joint_width(self) -> int:
        assert self.image.projection is not None  # `clip_configs` refuses a tower without a joint space
        return self.image.projection

    def shared(self) -> dict[str, Any]:
        """The attributes of the network that every member takes from the config."""
        return {
            "image": self.image,
            "num_classes": self.info.num_classes,
            "side": self.side,
            "pooling": POOLINGS[self.config.pooling],
        }

    def prompt_bank(self) -> PromptBank:
        network, multiple = self.network, self.config.prompt.pad_to_multiple_of
        return PromptBank(
            self.config,
            self.info,
            self.joint_width,
            self.plain_features,
            sentences=lambda variables, identity: network.apply(variables, identity, method="texts"),  # pyright: ignore
            rows=lambda variables: network.apply(variables, multiple, method="text_bank"),  # pyright: ignore
        )

    def plain_features(self, variables: Variables, memory: BankMemory, batch: Batch) -> dict[str, Any]:
        """ "projected" of the starting tower."""
        return {"projected": self.network.apply(variables, batch, method="plain")}

    # --- the run ------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        config, batch = self.config, self.config.batch
        main = Stage(
            name="main",
            epochs=config.epochs,
            loss=self.loss,
            sampler=SAMPLERS[batch.sampler](batch.num_identities, batch.num_instances),
            seq_len=batch.seq_len,
            clip_sampling=batch.clip_sampling,
            piece_len=batch.piece_len,
            augment=Augmentation(**config.augment),
            updates=(Update("all", self.optimizer(), Schedule(**config.schedule)),),
        )
        return self.bank.stages(main)

    def optimizer(self) -> Optimizer:
        """Of the main stage, in which sentences never change."""
        return make_optimizer(self.config.optimizer, frozen=r"^text/" if self.has_text_tower else None)

    def backbones(self) -> tuple[Backbone, ...]:
        weights = self.config.backbone.checkpoint
        image = Backbone(("image_tower",), weights, self.image)
        return (image, Backbone(("text", "tower"), weights, self.text)) if self.has_text_tower else (image,)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        return self.network.init(rng, batch)

    def init_memory(self) -> BankMemory:
        return self.bank.init()

    # --- the losses of the main stage ----------------------------------------------------------------------------

    def loss(self, variables: Variables, memory: BankMemory, batch: Batch, context: Context) -> LossOutput:
        (found, logits, similar), batch_stats = self.forward(variables, memory, batch, context)
        losses, moved = self.losses_of(found, logits, similar, memory, batch)
        return LossOutput.weighted(losses, batch_stats, moved)

    def forward(
        self, variables: Variables, memory: BankMemory, batch: Batch, context: Context
    ) -> tuple[tuple[dict[str, Any], dict[str, jax.Array], jax.Array], Any]:
        """((clip features by name, logits by name, similarities to the rows), batch statistics) in training."""

        def forward(network: ClipNetwork) -> tuple[dict[str, Any], dict[str, jax.Array], jax.Array]:
            found = self.encode(network, batch, context)
            rows = self.rows(network, memory, context)
            return found, network.logits(found, batch, True), network.similar(found, rows, batch, True)

        found, changed = self.network.apply(
            variables, method=forward, mutable=["batch_stats"], rngs={"dropout": context.rng}
        )
        return found, changed["batch_stats"]

    def losses_of(
        self,
        found: Mapping[str, Any],
        logits: Mapping[str, jax.Array],
        similar: jax.Array,
        memory: BankMemory,
        batch: Batch,
    ) -> tuple[dict[str, tuple[Any, jax.Array]], Any]:
        """({name: (weight, value)} of what `forward` found, memory after the batch)."""
        losses = family_losses(self.config, found, logits, self.told, batch)
        of_bank, moved = self.bank.loss(found[self.compared], similar, memory, batch)
        losses["bank"] = (self.config.weights.bank, of_bank)
        return losses | self.more_losses(found, logits, memory, batch), moved

    def encode(self, network: Any, batch: Batch, context: Context) -> dict[str, Any]:
        """Clip features by name, in training, by the bound network."""
        del context
        return network.encode(batch, train=True)

    def rows(self, network: Any, memory: Any, context: Context) -> jax.Array:
        """The rows f32[C, E] that features are compared with, in training, by the bound network."""
        del network, context
        return memory.bank

    def more_losses(
        self, found: Mapping[str, Any], logits: Mapping[str, jax.Array], memory: Any, batch: Batch
    ) -> dict[str, tuple[Any, jax.Array]]:
        """{name: (weight, value)} of what a member adds: where its features of frames are classified, their loss."""
        del found, memory
        return frame_loss(self.config, logits, batch)

    def embed(self, variables: Variables, memory: BankMemory, batch: Batch) -> dict[str, jax.Array]:
        """ "feature": the parts of `config.embedding` side by side, before or after their batch norms as
        `config.neck_feat` says; the longer part weighs more. "tower": the class token alone."""
        found: Any = self.network.apply(variables, batch, False, method="encode")
        of: Any = found
        if self.config.neck_feat == "after":
            of = self.network.apply(variables, found, batch, method="normed")
        parts = [of[name] for name in self.config.embedding]
        return {"tower": found["last"], "feature": jnp.concatenate(parts, axis=-1)}
