"""Cluster contrast, the clustering baseline without labels.

Presets: `walkers` (default: both modalities) and `walkers_visible` (the small tower, minutes on two CPU cores),
`hitsz_vcm` and `bupt_campus` (CLIP ViT-B/16, one GPU or TPU slice). Encoder, clips and test clips are those of
configs/hitpro.py; variants by `--config.memory.kind=camera` and `--config.cross_modality=adca|pgm`.
"""

from typing import Any

import ml_collections

from jaxreid.config import Preset, compose

# For CLIP ViT-B/16, with the settings of ADCA and PGM.
VALUES: dict[str, Any] = {
    "temporal.pooling": "attention",
    # Sampling: clusters of each modality per step, clips of a cluster, frames of a clip, parts that a tracklet is cut
    # into; steps per epoch, whatever the number of clusters.
    "batch.num_clusters": 8,
    "batch.num_instances": 4,
    "batch.seq_len": 6,
    "batch.parts": 2,
    "batch.steps_per_epoch": 200,
    # Optimization, as in configs/hitpro.py.
    "epochs": 50,
    "optimizer.name": "adam",
    "optimizer.lr": 3.5e-4,
    "optimizer.weight_decay": 5e-4,
    "optimizer.groups": (
        ("^encoder/(patch_embedding|projection)", 0.0, None),
        ("^encoder/", 5e-6 / 3.5e-4, None),
    ),
    "schedule.name": "steps",
    "schedule.warmup_epochs": 0.0,
    "schedule.milestones": (20.0, 40.0),
    "ema_decay": 0.0,
    "augment.crop": 10,
    "augment.flip": 0.5,
    "augment.erase": 0.5,
    "augment.channel_exchange": 0.5,
    "augment.infrared_mix": True,
    "augment.brightness": 0.0,
    "augment.contrast": 0.0,
    "augment.gamma": 0.0,
    "augment.negative": 0.0,
    # DBSCAN on the k-reciprocal Jaccard distance, in each modality.
    "cluster.visible_eps": 0.6,
    "cluster.infrared_eps": 0.6,
    "cluster.min_samples": 4,
    "cluster.k1": 30,
    "cluster.k2": 6,
    "cluster.center_cameras": False,  # True: without the mean of each camera
    "cluster.max_neighbors": 512,  # that are kept of a tracklet
    "cluster.max_encoding": 128,  # entries of an encoding before the expansion
    # Memory: "cluster", or "camera" with its cross-camera term.
    "memory.kind": "cluster",
    "memory.momentum": 0.1,  # weight of the old row
    "memory.temperature": 0.05,
    "memory.hard_negatives": 50,
    "memory.camera_weight": 0.5,
    "memory.camera_start_epoch": 5,
    # "none", "adca" or "pgm", from an epoch on.
    "cross_modality": "none",
    "cross_start_epoch": 25,
    "cross_weight": 0.25,
    "matched_clusters": 1024,
}

# The small tower, as in configs/hitpro.py, with HiTPro's work per epoch.
SMALL: dict[str, Any] = {
    "batch.num_clusters": 12,
    "batch.seq_len": 2,
    "batch.steps_per_epoch": 20,
    "epochs": 6,
    "optimizer.name": "adamw",
    "optimizer.lr": 9e-3,
    "optimizer.weight_decay": 1e-4,
    "optimizer.groups": (("^encoder/projection", 0.0, None), ("^encoder/", 1 / 30, None)),
    "optimizer.clip_norm": 5.0,
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 1.0,
    "schedule.milestones": (),
    "augment.crop": 3,
    "augment.erase": 0.2,
    "augment.channel_exchange": 0.7,
    "augment.contrast": 0.2,
    "augment.gamma": 0.3,
    "augment.negative": 0.3,
    # On 500 tracklets with 5 of a person, 30 neighbours join nearly all of them: these values are those of the best
    # adjusted Rand index of the starting features on `walkers/vvi_dev`.
    "cluster.visible_eps": 0.5,
    "cluster.infrared_eps": 0.5,
    "cluster.min_samples": 2,
    "cluster.k1": 8,
    "cluster.k2": 3,
    "cluster.max_neighbors": 256,
    "memory.camera_start_epoch": 3,
    "cross_start_epoch": 3,
    "matched_clusters": 256,
}
# One modality: as many clusters of it as of two, and nothing to make the modalities alike.
VISIBLE: dict[str, Any] = {
    "batch.num_clusters": 24,
    "augment.channel_exchange": 0.0,
    "augment.infrared_mix": False,
    "augment.negative": 0.0,
}

PRESETS = {
    "walkers": Preset("walkers_clip", "walkers", SMALL),
    "walkers_visible": Preset("walkers_clip", "walkers_visible", SMALL | VISIBLE),
    "hitsz_vcm": Preset("clip_vit_b16", "hitsz_vcm"),
    # 3.3 tracklets per person and modality are too few for clusters of 4.
    "bupt_campus": Preset("clip_vit_b16", "bupt_campus", {"batch.parts": 4, "cluster.min_samples": 2}),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "cluster_contrast", preset, VALUES, PRESETS)
