"""Class banks of the CLIP-ReID family: where the rows come from that image features are classified against, one for
each training identity, in CLIP's joint space.

PromptBank   sentences with learned words, which a stage of their own learns (Li et al., "CLIP-ReID: Exploiting
             Vision-Language Model for Image Re-Identification without Concrete Text Labels", AAAI 2023)
ImageBank    mean image features of the starting tower (Yu et al., "TF-CLIP: Learning Text-free CLIP for Video-based
             Person Re-Identification", AAAI 2024)
MovingBank   two rows per identity that follow the features of training (Yu et al., "CLIMB-ReID: A Hybrid CLIP-Mamba
             Framework for Person Re-Identification", AAAI 2025)

A bank brings its stages, its memory with the functions that refresh it, and its loss. A method gives it the functions
that find features and sentences; everything is pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxreid.arrays import unit_rows
from jaxreid.augment import UNCHANGED, Augmentation
from jaxreid.data.batch import Batch
from jaxreid.data.clips import RULES
from jaxreid.data.samplers import PassSampler
from jaxreid.dataset_info import DatasetInfo
from jaxreid.devices.parallel import constrain
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.image_text import proxy_contrast, supervised_contrastive
from jaxreid.memory.class_bank import build_proxies, image_memory, move_proxies
from jaxreid.methods.method import (
    Cached,
    Context,
    Extract,
    Extraction,
    Features,
    LossOutput,
    Stage,
    Update,
    Variables,
)
from jaxreid.optimizers import SCHEDULE_VALUES, Group, Optimizer, Schedule
from jaxreid.values import defaulted, flag, non_negative, number, one_of, positive, series, under, whole, word


class BankMemory(flax.struct.PyTreeNode):
    bank: jax.Array  # f32[C, E], a row per identity; of a MovingBank f32[2C, E], mean and hard proxies


@dataclasses.dataclass(frozen=True)
class Bank:
    """A bank whose rows stay as they are in the main stage.

    Attributes:
      config, info: the run's.
      width: E, of the joint space.
      find: features "projected" of clips, for the rows; of the tower as it was, or for a MovingBank as it is.
    """

    config: Any
    info: DatasetInfo
    width: int
    find: Extract

    def stages(self, main: Stage) -> tuple[Stage, ...]:
        """The stages of a method whose last is `main`."""
        raise NotImplementedError

    def init(self) -> BankMemory:
        return BankMemory(jnp.zeros((self.info.num_classes, self.width)))

    def loss(
        self, projected: jax.Array, similar: jax.Array, memory: BankMemory, batch: Batch
    ) -> tuple[jax.Array, BankMemory]:
        """(the loss of features f32[B, E] with the similarities f32[B, C] to the rows, memory after the batch)."""
        del projected
        return cross_entropy(similar, batch.identity, batch.valid, self.config.label_smoothing), memory


# ----------------------------------------------------------------------------------------------------------------
# Sentences
# ----------------------------------------------------------------------------------------------------------------

PROMPT_VALUES = {
    **under("prompt", {"template": word, "n_ctx": whole(1), "pad_to_multiple_of": whole(1)}),
    **under("stage1", dict.fromkeys(("epochs", "clips_per_tracklet", "seq_len", "batch_size"), whole(1))),
    **under("stage1", {"augment": flag, "lr": positive, "weight_decay": non_negative}),
    **under("stage1.schedule", defaulted(SCHEDULE_VALUES)),
}
SENTENCE_VALUES = PROMPT_VALUES | {"prompt.shared_ctx": series(whole(0), length=2)}  # of `PromptTemplate`


@dataclasses.dataclass(frozen=True)
class PromptBank(Bank):
    """The text tower on learned words. Before the stage "prompts" the training split goes through the starting tower
    once; every step compares some of its features with the sentences of their identities: no frame is read again, and
    only the words learn.

    Attributes:
      sentences: (variables, identities i32[B]) → their sentences f32[B, E].
      rows: (variables) → the sentences of all identities f32[C, E].
    """

    sentences: Callable[[Variables, jax.Array], jax.Array]
    rows: Callable[[Variables], jax.Array]

    def stages(self, main: Stage) -> tuple[Stage, ...]:
        return self.prompt_stage(main.augment), main

    def prompt_stage(self, augment: Augmentation) -> Stage:
        """An epoch is a pass over all features. They are those of frames without augmentation or, with
        `stage1.augment`, with that of the main stage (VSLA-CLIP as released)."""
        options = self.config.stage1
        groups = (Group(r"^text/(own|before|after)$", options.lr, options.weight_decay), Group(r".*", 0.0))
        return Stage(
            name="prompts",
            epochs=options.epochs,
            loss=self.prompt_loss,
            sampler=PassSampler(options.batch_size, options.clips_per_tracklet),
            seq_len=0,
            augment=UNCHANGED,
            updates=(Update("prompts", Optimizer(groups), Schedule(**options.schedule)),),
            cached=Cached(
                self.find,
                options.clips_per_tracklet,
                options.seq_len,
                augment=augment if options.augment else UNCHANGED,
            ),
            refresh_after=self.fill,
        )

    def fill(self, variables: Variables, memory: BankMemory, context: Context) -> BankMemory:
        """The bank of the words as they are now."""
        return memory.replace(bank=self.rows(variables))

    def prompt_loss(self, variables: Variables, memory: BankMemory, batch: Batch, context: Context) -> LossOutput:
        """L_i2t + L_t2i between features and the sentences of their identities."""
        y, valid, v = batch.identity, batch.valid, batch.extras["projected"]
        t = self.sentences(variables, jnp.maximum(y, 0))
        losses = {
            "image_to_text": (1.0, supervised_contrastive(v, t, y, valid)),
            "text_to_image": (1.0, supervised_contrastive(t, v, y, valid)),
        }
        return LossOutput.weighted(losses, variables["batch_stats"], memory)


# ----------------------------------------------------------------------------------------------------------------
# Image features
# ----------------------------------------------------------------------------------------------------------------

IMAGE_VALUES = under("memory", {"seq_len": whole(1), "clip_sampling": one_of(RULES)})
MOVING_VALUES = {
    **IMAGE_VALUES,
    **under("memory", {"momentum": number(0, below=1), "temperature": positive, "per_sample": flag}),
}


@dataclasses.dataclass(frozen=True)
class ImageBank(Bank):
    """The mean of an identity's tracklets as the starting tower sees them, made once."""

    every = 0  # epochs between two extractions

    def stages(self, main: Stage) -> tuple[Stage, ...]:
        options = self.config.memory
        extraction = Extraction(
            self.every,
            0,
            options.seq_len,
            refresh=self.refresh,
            extract=self.find,
            clip_sampling=options.clip_sampling,
        )
        return (dataclasses.replace(main, extraction=extraction),)

    def refresh(self, variables: Variables, memory: BankMemory, features: Features, context: Context) -> BankMemory:
        assert self.info.labels is not None
        identity, x = jnp.asarray(self.info.labels.identity), features.arrays["projected"]
        return memory.replace(bank=self.made(x, features.tracklet, features.valid, identity, self.info.num_classes))

    made = staticmethod(image_memory)


@dataclasses.dataclass(frozen=True)
class MovingBank(ImageBank):
    """A mean and a hard proxy per identity: made anew before every epoch, and moved by every batch."""

    every = 1

    def init(self) -> BankMemory:
        return BankMemory(jnp.zeros((2 * self.info.num_classes, self.width)))

    made = staticmethod(build_proxies)

    def loss(
        self, projected: jax.Array, similar: jax.Array, memory: BankMemory, batch: Batch
    ) -> tuple[jax.Array, BankMemory]:
        y, valid, options = batch.identity, batch.valid, self.config.memory
        x = constrain(unit_rows(projected), "replicated")
        value = proxy_contrast(x, memory.bank, y, valid, options.temperature)
        moved = move_proxies(memory.bank, x, y, valid, options.momentum, options.per_sample)
        return value, memory.replace(bank=jax.lax.stop_gradient(moved))
