"""The small CLIP of `walkers`: a text tower, and the joint space of the image tower, learned from captions.

Preset: walkers, on identities that no other configuration of `walkers` shows. The image tower's blocks are locked, so
that what starts from them does not change.
"""

from typing import Any

import ml_collections

from jaxreid.config import Preset, compose

VALUES: dict[str, Any] = {
    "text.pretrained": False,  # whether the text tower starts from backbone.checkpoint as well
    "text.wordings": 8,  # of a caption
    "text.keep": 0.7,  # probability that a part of it stays in all but the first of them
    "epochs": 24,
    "batch.batch_size": 128,
    "batch.seq_len": 1,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-3,
    "optimizer.weight_decay": 0.1,
    "optimizer.groups": (("^(image_tower/projection|logit_scale)", 1.0, 0.0), ("^image_tower/", 0.0, None)),
    "optimizer.clip_norm": 1.0,
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 1.0,
    "augment.crop": 3,
    "augment.flip": 0.5,
    "augment.brightness": 0.2,
    "augment.contrast": 0.3,
    "augment.gamma": 0.3,
}

PRESETS = {"walkers": Preset("walkers_clip", "walkers_captioned")}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "language_image", preset, VALUES, PRESETS)
