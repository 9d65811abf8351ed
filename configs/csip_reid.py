"""CSIP-ReID: skeletons in place of text, in training alone; the whole image tower trains.

Presets: `walkers` (default: visible clips and their exact 3-D joints, the small CLIP, minutes on two CPU cores);
`mars`, `ls_vid`, `ilids_vid` (CLIP ViT-B/16, the released recipe, one GPU; ten splits of iLIDS-VID are averaged by
`jaxreid folds`), `folder` (one's own pictures with identities). Joints come from the data set's sidecar `joints3d`
(`jaxreid import-sidecar`, `jaxreid make-sidecars --kind joints3d`).
"""

from typing import Any

import ml_collections

from jaxreid.config import Preset, compose, sibling
from jaxreid.overlays import HALF, IMAGENET

CLIP_REID = sibling(__file__, "clip_reid")

# A skeleton encoder, as large as the released one.
SKELETON: dict[str, Any] = {
    "skeleton.joints": 17,
    "skeleton.edges": (),  # pairs of joints that a bone connects; () = those known of 17, 20 or 25 joints
    "skeleton.checkpoint": "",  # weights of `jaxreid export`; "" = random numbers
    "skeleton.width": 512,
    "skeleton.depth": 10,
    "skeleton.heads": 8,
    "skeleton.hidden": 1024,
    "skeleton.dropout": 0.3,
    "skeleton.eigenvectors": 10,  # of the tree's Laplacian, that tell joints apart
    "skeleton.random_signs": False,  # True: as released, the signs of these are drawn in every step
    "skeleton.shuffle": False,  # True: every clip is given the skeletons of another, as a control
}

SMALL_SKELETON: dict[str, Any] = {
    "skeleton.width": 64,
    "skeleton.depth": 2,
    "skeleton.heads": 4,
    "skeleton.hidden": 128,
    "skeleton.dropout": 0.1,
}

# Stage 1, whose schedule is CLIP-ReID's.
OF_PROMPTS = ("stage1.clips_per_tracklet", "stage1.seq_len", "stage1.augment")
PRETRAINING: dict[str, Any] = {
    **{key: value for key, value in CLIP_REID.STAGE1.items() if key not in OF_PROMPTS},
    "stage1.temperature": 1.0,
    "stage1.normalize": False,  # True: of unit features
}

VALUES: dict[str, Any] = {
    **CLIP_REID.FAMILY,
    **IMAGENET,
    "loading.interpolation": "bilinear",
    **CLIP_REID.IMAGES,
    "memory.clip_sampling": "chunk_first",  # one clip of a tracklet, as released
    **SKELETON,
    "skeleton.finetune": False,  # True: as released, the encoder also trains in the main stage
    **PRETRAINING,
    "pfu.use": True,  # False: the bank is the prototypes of images, as they are
    "pfu.depth": 2,
    "pfu.heads": 8,
    "pfu.dropout": 0.1,
    "sgtm.use": True,
    "sgtm.heads": 8,
    "sgtm.dropout": 0.1,
    "sgtm.drop": 0.0,  # share of clips that SGTM is given no skeleton of, in training; ours
    "sgtm.layout": "paper",  # "released": beside a frame's tokens stand joints of other frames and clips
    "sgtm.time_embedding": False,  # True: places of frames are told apart; ours
    "sie.columns": ("camera_index",),
    "weights.frame_identity": 1.3,
    "triplet.features": ("last", "projected", "temporal"),
    "batch.num_identities": 4,
    "batch.seq_len": 8,
    "epochs": 80,
    "schedule.milestones": (30.0, 50.0, 70.0),
    "augment.crop": 0,
    "augment.erase_area": 0.2,
    "augment.per_frame": ("erase",),
    "embedding": ("last", "projected", "temporal"),
}

# The released configuration of MARS alone: modules beside the tower learn ten times as fast.
FASTER: dict[str, Any] = {
    "optimizer.groups": CLIP_REID.with_biases(
        ("^(necks_temporal/classifier|pfu|temporal)", 10.0, None), (".*", 1.0, None)
    ),
}

SMALL: dict[str, Any] = {
    **CLIP_REID.SMALL,
    **HALF,
    **SMALL_SKELETON,
    "memory.seq_len": 6,
    "stage1.epochs": 40,
    "stage1.lr": 2e-3,
    # Chosen on `visible_dev`: smaller batches, and so twice as many steps, and a bank that hardly weighs.
    "weights.bank": 0.02,
    "batch.num_identities": 12,
    "batch.seq_len": 4,
    "epochs": 8,
    "pfu.depth": 1,
    # Exact skeletons tell so much that a temporal feature which always has them is of little use without, as in tests.
    "sgtm.drop": 0.5,
    "optimizer.groups": CLIP_REID.with_biases(
        ("^necks_", 30.0, None), ("^(temporal|pfu|frame_norm)", 3.0, None), (".*", 1.0, None)
    ),
    "augment.erase_area": 0.4,
    "augment.per_frame": (),
    # Everybody is in visible light.
    "augment.channel_exchange": 0.0,
    "augment.infrared_mix": False,
    "augment.contrast": 0.0,
    "augment.gamma": 0.0,
    "augment.negative": 0.0,
}

PRESETS = {
    "walkers": Preset("walkers_clip", "walkers_visible", SMALL),
    "mars": Preset("clip_vit_b16", "mars", FASTER),
    "ls_vid": Preset("clip_vit_b16", "ls_vid", {"batch.piece_len": 48}),
    "ilids_vid": Preset("clip_vit_b16", "ilids_vid", {"epochs": 60, "schedule.milestones": (30.0, 50.0)}),
    "folder": Preset("walkers_clip", "folder", {**SMALL, "stage1.batch_size": 32}),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "csip_reid", preset, VALUES, PRESETS)
