"""Cluster contrast, the clustering baseline without labels.

Presets: `walkers` (default: both modalities) and `walkers_visible` (the small tower, minutes on two CPU cores),
`hitsz_vcm` and `bupt_campus` (CLIP ViT-B/16, one GPU or TPU slice). Encoder, clips and test clips are those of
configs/hitpro.py; variants by `--config.memory.kind=camera` and `--config.cross_modality=adca|pgm`.
"""

from typing import Any

import ml_collections

from jaxreid.config import HALF, IMAGENET, preset_config

CLIP_B16 = "hf:openai/clip-vit-base-patch16"

# Every hyper-parameter of every preset. A list has one value for each of PRESETS, anything else holds for all.
PRESETS = ("walkers", "walkers_visible", "hitsz_vcm", "bupt_campus")
TABLE: dict[str, Any] = {
    "dataset.name": ["walkers", "walkers", "hitsz_vcm", "bupt_campus"],
    "dataset.config": ["vvi", "visible", "", ""],
    "precision": ["float32", "float32", "bfloat16", "bfloat16"],
    "loading.cache": [True, True, False, False],
    "loading.threads": [2, 2, 16, 16],
    "extraction_batch_size": [32, 32, 128, 128],
    "backbone.name": ["walkers_vit_tiny", "walkers_vit_tiny", "ViT-B/16", "ViT-B/16"],
    "backbone.checkpoint": ["walkers_vit_tiny", "walkers_vit_tiny", CLIP_B16, CLIP_B16],
    "backbone.remat": False,  # True: less memory, a quarter more work
    "backbone.scan": False,  # True: compiles one block for all, at the price of a copy of the weights
    "frames.height": [64, 64, 256, 256],
    "frames.width": [32, 32, 128, 128],
    "frames.mean": [HALF["mean"], HALF["mean"], IMAGENET["mean"], IMAGENET["mean"]],
    "frames.std": [HALF["std"], HALF["std"], IMAGENET["std"], IMAGENET["std"]],
    "temporal.pooling": "attention",
    # Sampling: clusters of each modality per step, clips of a cluster, frames of a clip, parts that a tracklet is cut
    # into; steps per epoch, whatever the number of clusters.
    "batch.num_clusters": [12, 24, 8, 8],
    "batch.num_instances": [4, 4, 4, 4],
    "batch.seq_len": [2, 2, 6, 6],
    "batch.parts": [2, 2, 2, 4],
    "batch.steps_per_epoch": [20, 20, 200, 200],
    # Optimization.
    "epochs": [6, 6, 50, 50],
    "optimizer.name": ["adamw", "adamw", "adam", "adam"],
    "optimizer.patch_lr": [3e-4, 3e-4, 0.0, 0.0],
    "optimizer.backbone_lr": [3e-4, 3e-4, 5e-6, 5e-6],
    "optimizer.head_lr": [9e-3, 9e-3, 3.5e-4, 3.5e-4],
    "optimizer.weight_decay": [1e-4, 1e-4, 5e-4, 5e-4],
    "optimizer.clip_norm": [5.0, 5.0, 0.0, 0.0],
    "schedule.name": ["cosine", "cosine", "steps", "steps"],
    "schedule.warmup_epochs": [1.0, 1.0, 0.0, 0.0],
    "schedule.milestones": [(), (), (20.0, 40.0), (20.0, 40.0)],
    # Augmentation, as in configs/hitpro.py.
    "augment.crop": [3, 3, 10, 10],
    "augment.flip": 0.5,
    "augment.erase": [0.2, 0.2, 0.5, 0.5],
    "augment.channel_exchange": [0.7, 0.0, 0.5, 0.5],
    "augment.infrared_mix": [True, False, True, True],
    "augment.brightness": 0.0,
    "augment.contrast": [0.2, 0.2, 0.0, 0.0],
    "augment.gamma": [0.3, 0.3, 0.0, 0.0],
    "augment.negative": [0.3, 0.0, 0.0, 0.0],
    # DBSCAN on the k-reciprocal Jaccard distance, in each modality. BUPTCampus has 3.3 tracklets per person and
    # modality, too few for 4. On 500 tracklets with 5 of a person, 30 neighbours join nearly all of them: the values of
    # `walkers` are those of the best adjusted Rand index of the starting features on `walkers/vvi_dev`.
    "cluster.visible_eps": [0.5, 0.5, 0.6, 0.6],
    "cluster.infrared_eps": [0.5, 0.5, 0.6, 0.6],
    "cluster.min_samples": [2, 2, 4, 2],
    "cluster.k1": [8, 8, 30, 30],
    "cluster.k2": [3, 3, 6, 6],
    "cluster.center_cameras": False,  # without the mean of each camera
    "cluster.max_neighbors": [256, 256, 512, 512],  # neighbours that are kept of a tracklet
    "cluster.max_encoding": 128,  # entries of an encoding before the expansion
    # Memory: "cluster", or "camera" with its cross-camera term.
    "memory.kind": "cluster",
    "memory.momentum": 0.1,  # weight of the old row
    "memory.temperature": 0.05,
    "memory.hard_negatives": 50,
    "memory.camera_weight": 0.5,
    "memory.camera_start_epoch": [3, 3, 5, 5],
    # "none", "adca" or "pgm", from an epoch on.
    "cross_modality": "none",
    "cross_start_epoch": [3, 3, 25, 25],
    "cross_weight": 0.25,
    "matched_clusters": [256, 256, 1024, 1024],
    # Test clips.
    "evaluation.clip_sampling": ["packed", "packed", "chunk_first", "linspace"],
    "evaluation.seq_len": [6, 6, 6, 10],
    "evaluation.pool": "after",
    "evaluation.flip": False,
    "evaluation.distance": "cosine",
    "evaluation.rerank_k1": [20, 20, 20, 3],
    "evaluation.rerank_k2": [6, 6, 6, 1],
    "evaluation.rerank_lambda": [0.3, 0.3, 0.3, 0.7],
}


def get_config(preset: str = "walkers") -> ml_collections.ConfigDict:
    return preset_config(__file__, "cluster_contrast", preset, PRESETS, TABLE)
