"""HiTPro, unsupervised visible-infrared video re-identification.

Presets: `walkers` (default: the small tower, minutes on two CPU cores), `folder` (one's own pictures), `hitsz_vcm` and
`bupt_campus` (CLIP ViT-B/16, one GPU or TPU slice); `…_resnet50` starts from the unsupervised ancestors' encoder
instead; `hitsz_vcm_camera_track` also uses which tracklets were cut from one recording (another protocol: never in one
table with the others).
"""

from typing import Any

import ml_collections

from jaxreid.config import HALF, IMAGENET, base_config, fill, unknown_preset

CLIP_B16 = "hf:openai/clip-vit-base-patch16"

# Every hyper-parameter. A list has one value for each of COLUMNS, anything else holds for all.
COLUMNS = ("walkers", "folder", "hitsz_vcm", "bupt_campus")
TABLE: dict[str, Any] = {
    "dataset.name": ["walkers", "folder", "hitsz_vcm", "bupt_campus"],
    "dataset.config": ["vvi", "", "", ""],
    "require_both_modalities": [True, False, True, True],
    "precision": ["float32", "float32", "bfloat16", "bfloat16"],
    "loading.cache": [True, True, False, False],
    "loading.threads": [2, 2, 16, 16],
    "extraction_batch_size": [32, 32, 128, 128],  # what a CPU's caches hold; the wide towers run on accelerators
    # Temporal-aware feature encoder.
    "backbone.name": ["walkers_vit_tiny", "walkers_vit_tiny", "ViT-B/16", "ViT-B/16"],
    "backbone.checkpoint": ["walkers_vit_tiny", "walkers_vit_tiny", CLIP_B16, CLIP_B16],
    "backbone.remat": False,  # True: less memory, a quarter more work
    "backbone.scan": False,  # True: compiles one block for all, at the price of a copy of the weights
    "frames.height": [64, 64, 256, 256],
    "frames.width": [32, 32, 128, 128],
    "frames.mean": [HALF["mean"], HALF["mean"], IMAGENET["mean"], IMAGENET["mean"]],
    "frames.std": [HALF["std"], HALF["std"], IMAGENET["std"], IMAGENET["std"]],
    "temporal.pooling": "attention",
    # Sampling: prototypes of each modality per step, clips of a prototype, frames of a clip.
    "batch.num_prototypes": [24, 24, 16, 16],
    "batch.num_instances": 2,
    "batch.seq_len": [2, 2, 6, 6],
    # Optimization. Few tracklets make short epochs, hence more of them in `folder`.
    "epochs": [6, 20, 50, 50],
    "optimizer.name": ["adamw", "adamw", "adam", "adam"],
    "optimizer.patch_lr": [3e-4, 3e-4, 0.0, 0.0],
    "optimizer.backbone_lr": [3e-4, 3e-4, 5e-6, 5e-6],
    "optimizer.head_lr": [9e-3, 9e-3, 3.5e-4, 3.5e-4],
    "optimizer.weight_decay": 1e-4,
    "optimizer.clip_norm": [5.0, 5.0, 0.0, 0.0],
    "schedule.name": ["cosine", "cosine", "steps", "steps"],
    "schedule.warmup_epochs": [1.0, 1.0, 10.0, 10.0],
    "schedule.milestones": [(), (), (20.0, 40.0), (20.0, 40.0)],
    # Augmentation. A fabric's brightness differs between visible and infrared light: features of drawn people must
    # not lean on it.
    "augment.crop": [3, 3, 10, 10],
    "augment.flip": 0.5,
    "augment.erase": [0.2, 0.2, 0.5, 0.5],
    "augment.channel_exchange": [0.7, 0.7, 0.5, 0.5],
    "augment.infrared_mix": True,
    "augment.brightness": 0.0,
    "augment.contrast": [0.2, 0.2, 0.0, 0.0],
    "augment.gamma": [0.3, 0.3, 0.0, 0.0],
    "augment.negative": [0.3, 0.3, 0.0, 0.0],
    # Intra-camera tracklet prototyping: one prototype per tracklet uses no knowledge of who is who.
    "prototypes.unit": ["tracklet", "tracklet", "tracklet", "tracklet"],
    "prototypes.parts": [2, 2, 2, 4],
    "prototypes.momentum": 0.5,
    "prototypes.pad_to_multiple_of": [256, 256, 1024, 1024],
    # Two-stage positive mining with its dynamic threshold (κ in the first and in the last epoch) and soft weights.
    "kappa": [(0.5, -0.5), (0.5, -0.5), (0.0, -2.0), (0.0, -2.0)],
    "association.candidates_per_camera": 1,
    "association.within_positives": 4,
    "association.cross_positives": [4, 4, 6, 6],
    "association.delta": 0.1,
    "association.weight_temperature": 0.05,
    "association.threshold": "dynamic",
    "association.fixed_threshold": 0.5,
    "association.mutual": True,
    "association.weights": "soft",
    "association.aggregation": 0.5,
    "association.stage2_space": "centred",
    "association.look_alikes": [True, True, True, True],
    "association.look_alike_kappa": -2.0,
    "association.num_look_alikes": 8,
    "association.min_concentration": 0.0,
    # Three-level contrastive learning; `…_start_epoch`: when a level is switched on.
    "levels.intra_weight": [0.5, 0.5, 1.0, 1.0],
    "levels.within_weight": [1.0, 1.0, 0.5, 0.5],
    "levels.cross_weight": [1.0, 1.0, 0.5, 0.5],
    "levels.within_start_epoch": [0, 0, 5, 5],
    "levels.cross_start_epoch": [1, 1, 15, 15],
    "levels.temperature": 0.07,
    # On drawn people the joint softmax is better (docs/hitpro.md); in its toy study it was worse.
    "levels.scope": ["joint", "camera", "camera", "camera"],
    # Test clips. HITSZ-VCM and BUPTCampus as their own codes draw them.
    "evaluation.clip_sampling": ["packed", "packed", "chunk_first", "linspace"],
    "evaluation.seq_len": [6, 6, 6, 10],
    "evaluation.pool": "after",
    "evaluation.flip": False,
    "evaluation.distance": "cosine",
    # Only where evaluation.reranking asks for it. BUPTCampus as its own code re-ranks.
    "evaluation.rerank_k1": [20, 20, 20, 3],
    "evaluation.rerank_k2": [6, 6, 6, 1],
    "evaluation.rerank_lambda": [0.3, 0.3, 0.3, 0.7],
}


_RESNET50 = {
    "backbone.name": "resnet50_two_stem",
    "backbone.checkpoint": "torchvision/resnet50-v1",
    "frames.height": 288,
    "frames.width": 144,
    "optimizer.patch_lr": 3.5e-4,
    "optimizer.backbone_lr": 3.5e-4,
    "optimizer.weight_decay": 5e-4,
}
# Presets that differ from one of the above in these values only.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "hitsz_vcm_resnet50": ("hitsz_vcm", _RESNET50),
    "bupt_campus_resnet50": ("bupt_campus", _RESNET50),
    "hitsz_vcm_camera_track": ("hitsz_vcm", {"prototypes.unit": "camera_track", "association.look_alikes": False}),
}
PRESETS = (*COLUMNS, *VARIANTS)


def get_config(preset: str = "walkers") -> ml_collections.ConfigDict:
    preset = preset or "walkers"
    if preset not in PRESETS:
        raise unknown_preset(preset, PRESETS)
    base, changes = VARIANTS.get(preset, (preset, {}))
    return fill(base_config(__file__, "hitpro", preset), TABLE | changes, COLUMNS.index(base))
