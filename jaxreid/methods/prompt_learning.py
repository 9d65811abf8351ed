"""Prompt learning, the first stage of methods whose class bank is made of learned words.

Li et al., "CLIP-ReID: Exploiting Vision-Language Model for Image Re-Identification without Concrete Text Labels", AAAI
2023, stage 1. The training split goes through the starting tower once; its features stay in memory, and every step
compares some of them with the sentences of their identities. No frame is read again, and only the words learn.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxreid.augment import UNCHANGED, Augmentation
from jaxreid.data.batch import Batch
from jaxreid.data.samplers import PassSampler
from jaxreid.losses.image_text import supervised_contrastive
from jaxreid.methods.method import Extraction, Features, Stage, Update
from jaxreid.optimizers import SCHEDULE_VALUES, Group, Optimizer, Schedule
from jaxreid.values import flag, non_negative, positive, under, whole, word

VALUES = {
    **under("prompt", {"template": word, "n_ctx": whole(1), "pad_to_multiple_of": whole(1)}),
    **under("stage1", dict.fromkeys(("epochs", "clips_per_tracklet", "seq_len", "batch_size"), whole(1))),
    **under("stage1", {"augment": flag, "lr": positive, "weight_decay": non_negative}),
    **under("stage1.schedule", SCHEDULE_VALUES),
}


def prompt_stage(options: Any, augment: Augmentation) -> Stage:
    """The stage "prompts" of a config's `stage1`: an epoch is a pass over all features; only the learned words train.

    Features are those of frames without augmentation or, with `options.augment`, with that of the main stage (VSLA-CLIP
    as released).
    """
    groups = (Group(r"^text/(own|before|after)$", options.lr, options.weight_decay), Group(r".*", 0.0))
    return Stage(
        name="prompts",
        epochs=options.epochs,
        sampler=PassSampler(options.batch_size, options.clips_per_tracklet),
        seq_len=0,  # learns from the features that the extraction finds
        augment=UNCHANGED,
        updates=(Update("prompts", Optimizer(groups), Schedule(**options.schedule)),),
        extraction=Extraction(
            0, options.clips_per_tracklet, options.seq_len, augment=augment if options.augment else UNCHANGED
        ),
        refresh_after=True,
    )


def feature_rows(batch: Batch | Features, parts: int) -> jax.Array:
    """Where the features of (tracklet, part) are kept, i32[B]."""
    return jnp.maximum(batch.tracklet, 0) * parts + batch.part


def kept_features(features: Features, like: jax.Array, parts: int) -> jax.Array:
    """Features "projected" of all (tracklet, part) in the rows of `feature_rows`, f32[N·parts, E] as `like`."""
    rows = jnp.where(features.valid, feature_rows(features, parts), len(like))  # padding goes nowhere
    return jnp.zeros_like(like).at[rows].set(features.arrays["projected"], mode="drop")


def prompt_losses(features: jax.Array, sentences: jax.Array, batch: Batch) -> dict[str, tuple[float, jax.Array]]:
    """L_i2t and L_t2i between features [B, E] and the sentences of their identities [B, E]: {name: (weight, value)}."""
    y, valid = batch.identity, batch.valid
    return {
        "image_to_text": (1.0, supervised_contrastive(features, sentences, y, valid)),
        "text_to_image": (1.0, supervised_contrastive(sentences, features, y, valid)),
    }
