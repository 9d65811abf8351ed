"""HiTPro, unsupervised visible-infrared video re-identification.

Presets: `walkers` (default: the small tower, minutes on two CPU cores), `walkers_visible` (one modality),
`walkers_imagenet` (another small tower), `folder` (one's own pictures), `hitsz_vcm` and `bupt_campus` (CLIP ViT-B/16,
one GPU or TPU slice); `…_resnet50` starts from the unsupervised ancestors' encoder instead; `hitsz_vcm_camera_track`
also uses which tracklets were cut from one recording (another protocol: never in one table with the others).
"""

from typing import Any

import ml_collections

from jaxreid.config import Preset, compose

# For CLIP ViT-B/16 on the data sets of the paper. Its text was not at hand below the level of the abstract: the values
# are those of its ancestors (docs/hitpro.md).
VALUES: dict[str, Any] = {
    "require_both_modalities": True,
    # Temporal-aware feature encoder.
    "temporal.pooling": "attention",
    # Sampling: prototypes of each modality per step, clips of a prototype, frames of a clip.
    "batch.num_prototypes": 16,
    "batch.num_instances": 2,
    "batch.seq_len": 6,
    # Optimization: the tower learns at 5e-6, and its patch embedding stays.
    "epochs": 50,
    "optimizer.name": "adam",
    "optimizer.lr": 3.5e-4,
    "optimizer.weight_decay": 1e-4,
    "optimizer.groups": (
        ("^encoder/(patch_embedding|projection)", 0.0, None),
        ("^encoder/", 5e-6 / 3.5e-4, None),
    ),
    "schedule.name": "steps",
    "schedule.warmup_epochs": 10.0,
    "schedule.milestones": (20.0, 40.0),
    # Prototypes, mining and tests see the average of the weights over the steps, which tells people apart better where
    # cameras and people are new (docs/hitpro.md); the decay is that of mean teachers of re-identification (MMT).
    "ema_decay": 0.999,
    "augment.crop": 10,
    "augment.flip": 0.5,
    "augment.erase": 0.5,
    "augment.channel_exchange": 0.5,
    "augment.infrared_mix": True,
    "augment.brightness": 0.0,
    "augment.contrast": 0.0,
    "augment.gamma": 0.0,
    "augment.negative": 0.0,
    # Intra-camera tracklet prototyping: one prototype per tracklet uses no knowledge of who is who.
    "prototypes.unit": "tracklet",
    "prototypes.parts": 2,
    "prototypes.momentum": 0.5,
    "prototypes.pad_to_multiple_of": 1024,
    # Two-stage positive mining with its dynamic threshold (κ in the first and in the last epoch) and soft weights.
    "kappa": (0.0, -2.0),
    "association.candidates_per_camera": 1,
    "association.within_positives": 4,
    "association.cross_positives": 6,
    "association.delta": 0.1,
    "association.weight_temperature": 0.05,
    "association.threshold": "dynamic",
    "association.fixed_threshold": 0.5,
    "association.mutual": True,
    "association.weights": "soft",
    "association.aggregation": 0.5,
    # What each camera adds to every feature hides who is who: both stages look past it, and past the directions in
    # which mutual pairs differ: a matter of cameras, not of a tower (docs/hitpro.md).
    "association.stage1_space": "camera_centred",
    "association.stage2_space": "camera_centred",
    "association.metric_rounds": 2,
    "association.metric_floor": 0.3,
    "association.look_alikes": True,
    "association.look_alike_kappa": -2.0,
    "association.num_look_alikes": 8,
    "association.min_concentration": 0.0,
    # Three-level contrastive learning; `…_start_epoch`: when a level is switched on.
    "levels.intra_weight": 1.0,
    "levels.within_weight": 0.5,
    "levels.cross_weight": 0.5,
    "levels.within_start_epoch": 5,
    "levels.cross_start_epoch": 15,
    "levels.temperature": 0.07,
    "levels.scope": "camera",
}

# The small tower, a few hundred tracklets and minutes: chosen on `walkers/vvi_dev` (docs/hitpro.md).
SMALL: dict[str, Any] = {
    "batch.num_prototypes": 24,
    "batch.seq_len": 2,
    "optimizer.name": "adamw",
    "optimizer.lr": 9e-3,  # of new layers; the tower learns at 3e-4, the joint space with text stays
    "optimizer.groups": (("^encoder/projection", 0.0, None), ("^encoder/", 1 / 30, None)),
    "optimizer.clip_norm": 5.0,
    "ema_decay": 0.0,  # a few tracklets make too few steps for it
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 1.0,
    "schedule.milestones": (),
    "augment.crop": 3,
    "augment.erase": 0.2,
    # A fabric's brightness differs between visible and infrared light: features of drawn people must not lean on it.
    "augment.channel_exchange": 0.7,
    "augment.contrast": 0.2,
    "augment.gamma": 0.3,
    "augment.negative": 0.3,
    "prototypes.pad_to_multiple_of": 256,
    "kappa": (0.5, -0.5),
    "association.cross_positives": 4,
    # Level 1 counts half, and a dozen epochs leave no time to wait for the others.
    "levels.intra_weight": 0.5,
    "levels.within_weight": 0.25,
    "levels.cross_weight": 1.0,
    "levels.within_start_epoch": 0,
    "levels.cross_start_epoch": 1,
    "levels.temperature": 0.1,
}
# The encoder of unsupervised ancestors (ADCA, PGM) with their optimizer: everything trains at one rate.
RESNET50: dict[str, Any] = {"optimizer.groups": (), "optimizer.weight_decay": 5e-4}
BUPT_CAMPUS: dict[str, Any] = {"prototypes.parts": 4}  # its tracklets are five times as long

WALKERS: dict[str, Any] = SMALL | {
    # The average needs more steps than the newest weights, and evens out a higher rate.
    "epochs": 12,
    "optimizer.lr": 1.5e-2,  # of new layers; 5e-4 of the tower
    "ema_decay": 0.99,
    # More of the prototypes with a right partner count for more than fewer with a wrong one (docs/hitpro.md).
    "kappa": (-0.5, -2.5),
    # On drawn people the joint softmax is better, in a study of vectors worse.
    "levels.scope": "joint",
}

# A start that retrieves nearly as well as labels can teach it to: the average keeps more of it, the rate is lower.
GENTLE: dict[str, Any] = {"optimizer.lr": 5e-3, "ema_decay": 0.995}

# One modality: as many prototypes of it as of two, nothing to make modalities alike, and level 2 is all that joins
# cameras.
VISIBLE: dict[str, Any] = {
    "require_both_modalities": False,
    "batch.num_prototypes": 48,
    "augment.channel_exchange": 0.0,
    "augment.infrared_mix": False,
    "augment.negative": 0.0,
    "levels.within_weight": 1.0,
}

PRESETS = {
    "walkers": Preset("walkers_clip", "walkers", WALKERS),
    "walkers_visible": Preset("walkers_clip", "walkers_visible", WALKERS | VISIBLE),
    "walkers_imagenet": Preset("walkers_imagenet", "walkers", WALKERS | GENTLE),
    # Few tracklets make short epochs, hence more of them; one camera may see in one modality only.
    "folder": Preset("walkers_clip", "folder", SMALL | {"epochs": 20, "require_both_modalities": False}),
    "hitsz_vcm": Preset("clip_vit_b16", "hitsz_vcm"),
    "bupt_campus": Preset("clip_vit_b16", "bupt_campus", BUPT_CAMPUS),
    "hitsz_vcm_resnet50": Preset("resnet50_two_stem", "hitsz_vcm", RESNET50),
    "bupt_campus_resnet50": Preset("resnet50_two_stem", "bupt_campus", RESNET50 | BUPT_CAMPUS),
    # Also told which tracklets were cut from one recording.
    "hitsz_vcm_camera_track": Preset(
        "clip_vit_b16", "hitsz_vcm", {"prototypes.unit": "camera_track", "association.look_alikes": False}
    ),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "hitpro", preset, VALUES, PRESETS)
