"""S3-CLIP: super-resolution in front of VSLA-CLIP, trained in turn with it.

Presets: `walkers` (default: the drawn world `aerial`, minutes on two CPU cores), `detreidx`, `g2a_vreid`, `ag_vpreid`.
Of the paper the abstract and a review could be read: values of VSLA-CLIP are its release's, those of SwinIR and SR4IR
their authors', and where a comment says so, ours.
"""

from typing import Any

import ml_collections

from jaxreid.config import Preset, compose, sibling

VREID_XFD = sibling(__file__, "vreid_xfd")

VALUES: dict[str, Any] = {
    **VREID_XFD.VALUES,
    "sr.name": "swinir_light",  # or swinir_m, swinir_real: six times as deep and wide
    "sr.checkpoint": "",  # a published file of SwinIR; "" = random numbers
    "sr.temporal": "band",  # attention over the nearest five frames, ours; "none" = every frame by itself
    "sr.residual": False,  # True: what it makes is added to the bicubic picture; ours, for networks trained shortly
    # Ours: the network starts from 64 × 32, about the size of a crop from 10 to 40 m, and enlarges four times.
    "sr.height": 64,
    "sr.width": 32,
    "sr.remat": False,
    # Ours, as shares of a frame's rows: from the first on a stored picture is of high resolution, below the second it
    # is restored in tests even if it was taken on the ground.
    "sr.bypass_height": 0.75,
    "sr.below_height": 0.375,
    "sr.fewest_frames": 200,
    "sr.lr": 1e-4,  # with the rest of the cosine SR4IR's
    "sr.min_lr": 1e-6,
    "sr.warmup_epochs": 5.0,  # without what the tower sees; SR4IR a tenth of all
    "sr.stale": False,  # True: losses of identity see pictures of the network of the step before
    "sr.joint": False,  # True: the losses of identity train super-resolution too; ours
    # Ours; SR4IR makes its small pictures bicubic alone.
    "degradation.blur": (0.2, 2.0),
    "degradation.rows": (0.1875, 1.0),  # 12 to 64 of 64: from 120 m
    "degradation.noise": 0.02,
    "degradation.quantize": True,
    # Super-resolution alone, ours: 64 parts of 32 × 16 in a step.
    "pretrain.steps": 100_000,  # 0 = none
    "pretrain.epochs": 100,
    "pretrain.clips": 8,
    "pretrain.seq_len": 8,
    "pretrain.crop": (32, 16),
    "pretrain.flip": 0.5,
    "pretrain.lr": 2e-4,
    "pretrain.min_lr": 1e-6,
    "weights.pixel": 1.0,
    "weights.task_features": 1.0,
    "weights.temporal": 0.1,  # ours
    # SR4IR's thirds (its release: 0.34 each).
    "views.restored": 1 / 3,
    "views.plain": 1 / 3,
    "views.mixed": 1 / 3,
    "cqmix.cells": (8, 4),
    "cqmix.per": "clip",  # ours; SR4IR, which has single images: "frame"
    "batch.seq_len": 8,  # ours, with the number of epochs; the learning rate falls at the same shares of them
    "epochs": 60,
    "schedule.milestones": (30.0, 45.0),
}

SCORED: dict[str, Any] = {"evaluation.outputs": ("feature", "sr_off", "sr_all")}

# The small tower: a third of VSLA-CLIP's clips, each of which goes through it five times in a step.
WALKERS: dict[str, Any] = {
    **VREID_XFD.WALKERS,
    **SCORED,
    "evaluate_start": False,  # three features more to score; a run of `vreid_xfd` has the scores of the tower as it was
    "stage1.epochs": 10,
    "sr.name": "swinir_tiny",
    "sr.residual": True,
    "sr.height": 16,
    "sr.width": 8,
    "sr.lr": 5e-4,
    "sr.warmup_epochs": 1.0,
    "pretrain.steps": 150,
    "pretrain.epochs": 2,
    "pretrain.clips": 16,
    "pretrain.seq_len": 4,
    "pretrain.crop": (16, 8),
    "pretrain.lr": 2e-3,
    "pretrain.min_lr": 1e-5,
    "weights.task_features": 0.1,  # at 1 they lay a pattern over the pictures, and rank no better
    "batch.num_instances": 4,
    "batch.seq_len": 2,
    "epochs": 3,
    "schedule.milestones": (),
}

PRESETS = {
    "walkers": Preset("walkers_clip", "walkers", WALKERS),
    "detreidx": Preset("clip_vit_b16", "detreidx", VREID_XFD.DETREIDX | SCORED),
    "g2a_vreid": Preset("clip_vit_b16", "g2a_vreid", VREID_XFD.TESTS | SCORED),
    "ag_vpreid": Preset("clip_vit_b16", "ag_vpreid", VREID_XFD.TESTS | SCORED),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "s3_clip", preset, VALUES, PRESETS)
