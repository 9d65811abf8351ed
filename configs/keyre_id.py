"""KeyRe-ID: parts of the body, weighted by key points, beside the whole clip.

Presets: `walkers` (default: visible clips, the small tower, minutes on two CPU cores), `mars`, `ilids_vid`, `prid2011`
(ImageNet ViT-B/16, one GPU), `folder` (one's own pictures with identities). Key points come from the data set's sidecar
(`jaxreid make-sidecars`, `jaxreid import-sidecar`); frames without any score 0.
"""

from typing import Any

import ml_collections

from jaxreid.config import Preset, compose
from jaxreid.overlays import HALF

VALUES: dict[str, Any] = {
    **HALF,
    "branches": "both",  # or "global", "local"
    "camera_scale": 3.0,
    "drop_path": 0.1,
    "keypoints.use": True,  # False: all patches of every part weigh the same
    "keypoints.threshold": 0.1,  # scores up to here show nothing; what they mean depends on what found the points
    "keypoints.noise": 0.0,  # standard deviation of a shift of every point, in widths of the frame
    "keypoints.shuffle": False,  # which point is which, another order for every tracklet
    "local.parts": 6,  # or 4 (arms and legs without sides), 3 (head, torso and arms, legs): ours
    "local.layout": "paper",  # "released": as published, weights beside their patches
    "local.gate": "pre_norm",  # "post_norm": a soft mask, which is ours
    "local.tcss": True,
    "local.fast": True,  # False: the block runs for every part; the same numbers
    "global_share": 0.75,
    "label_smoothing": 0.1,
    "triplet.margin": 0.3,  # of no soft margin
    "triplet.soft_margin": True,
    "triplet.metric": "euclidean",
    "center.weight": 5e-4,
    "center.lr": 0.5,
    "center.local": True,  # False: as published, where the parts' centres stay where they were drawn
    "attention_weight": 1.0,
    "epochs": 120,
    "batch.num_identities": 4,
    "batch.num_instances": 4,
    "batch.seq_len": 4,
    "batch.piece_len": 0,
    "batch.clip_sampling": "floor",
    "optimizer.name": "sgd",
    "optimizer.lr": 8e-3,
    "optimizer.weight_decay": 1e-4,
    "optimizer.groups": (("bias", 2.0, None),),
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 5.0,
    "schedule.warmup_lr": 8e-5,
    "schedule.min_lr": 1.6e-5,
    "schedule.min_factor": 0.0,
    "schedule.cosine_includes_warmup": True,
    "schedule.epoch_offset": 1.0,
    "augment.flip": 0.5,
    "augment.crop": 10,
    "augment.erase": 0.5,
    "augment.erase_area": 0.4,
    "augment.erase_fill": "constant",
    "augment.erase_constant": (0.485, 0.456, 0.406),  # after normalizing, as published
    "augment.per_frame": ("crop", "flip", "erase"),
    "loading.interpolation": "bicubic",
    "loading.test_interpolation": "bilinear",
    "evaluation.clip_sampling": "dense",
    "evaluation.seq_len": 4,
    "evaluation.pool": "before",
    "evaluation.normalize": False,
    "evaluation.distance": "euclidean",
    "evaluation.outputs": ("feature", "global", "local"),
}

SMALL: dict[str, Any] = {
    "epochs": 12,
    "batch.num_identities": 16,
    # A few hundred steps: published SGD has hardly begun by then (docs/keyre_id.md).
    "optimizer.name": "adamw",
    "optimizer.lr": 3e-3,  # of new layers; the tower learns at 3e-4
    "optimizer.groups": (("^image_tower/", 0.1, None),),
    "optimizer.clip_norm": 5.0,
    "schedule.warmup_epochs": 1.0,
    "schedule.warmup_lr": None,
    "schedule.min_lr": 0.0,
    "schedule.min_factor": 0.05,
    "schedule.epoch_offset": None,
    # On unit features: a soft margin on raw ones can be satisfied by shrinking them to nothing.
    "triplet.metric": "cosine",
    "triplet.soft_margin": False,
    "augment.crop": 3,
}

PRESETS = {
    "walkers": Preset("walkers_imagenet", "walkers_visible", SMALL),
    "mars": Preset("imagenet_vit_b16", "mars"),
    "ilids_vid": Preset("imagenet_vit_b16", "ilids_vid"),
    "prid2011": Preset("imagenet_vit_b16", "prid2011"),
    "folder": Preset("walkers_imagenet", "folder", SMALL),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "keyre_id", preset, VALUES, PRESETS)
