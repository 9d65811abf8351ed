"""Identity and triplet loss with labels: the simplest method, and the supervised bound.

Presets: `walkers` (default: the small tower, minutes on two CPU cores), `folder` (one's own pictures, with identities),
and the data sets with pictures (CLIP ViT-B/16, one GPU or TPU slice).
"""

from typing import Any

import ml_collections

from jaxreid.config import Preset, compose

# For CLIP ViT-B/16: the recipe of CLIP-ReID's main stage (configs/clip_reid.py) without a bank, on clips of 8 frames.
VALUES: dict[str, Any] = {
    "epochs": 60,
    "batch.num_identities": 8,
    "batch.num_instances": 4,
    "batch.seq_len": 8,
    "batch.piece_len": 0,  # frames of the pieces that longer training tracklets are cut into, 0 = whole
    "label_smoothing": 0.1,
    "triplet.metric": "euclidean",
    "triplet.margin": 0.3,
    "triplet.soft_margin": False,  # True: softplus instead of the margin
    "triplet.weight": 1.0,
    "optimizer.name": "adam",
    "optimizer.lr": 5e-6,
    "optimizer.weight_decay": 1e-4,
    "schedule.name": "steps",
    "schedule.warmup_epochs": 10.0,
    "schedule.warmup_factor": 0.1,
    "schedule.milestones": (30.0, 50.0),
    "ema_decay": 0.0,
    "augment.crop": 10,
    "augment.flip": 0.5,
    "augment.erase": 0.5,
    "augment.channel_exchange": 0.0,
    "augment.infrared_mix": False,
    "augment.contrast": 0.0,
    "augment.gamma": 0.0,
    "augment.negative": 0.0,
}

SMALL: dict[str, Any] = {
    "epochs": 16,
    "batch.num_identities": 24,
    "batch.seq_len": 2,
    # On unit features: a soft margin on raw ones can be satisfied by shrinking them to nothing.
    "triplet.metric": "cosine",
    "triplet.weight": 0.2,
    "optimizer.name": "adamw",
    "optimizer.lr": 9e-3,  # of new layers; the tower learns at 3e-4
    "optimizer.groups": (("^encoder/", 1 / 30, None),),
    "optimizer.clip_norm": 5.0,
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 1.0,
    "schedule.warmup_factor": 0.01,
    "schedule.milestones": (),
    "augment.crop": 3,
    "augment.erase": 0.2,
    "augment.channel_exchange": 0.5,
    "augment.infrared_mix": True,
}
# Visible and infrared: clips of six frames as the sets' own codes draw them, and channels exchanged.
BOTH: dict[str, Any] = {"batch.seq_len": 6, "augment.channel_exchange": 0.5, "augment.infrared_mix": True}
PIECES: dict[str, Any] = {"batch.piece_len": 48}  # long tracklets are cut, as others do there (docs/datasets.md)

PRESETS = {
    "walkers": Preset("walkers_clip", "walkers", SMALL),
    "folder": Preset("walkers_clip", "folder", SMALL),
    **{
        name: Preset("clip_vit_b16", name)
        for name in ("mars", "ilids_vid", "prid2011", "sports_vreid", "dance_vreid", "detreidx", "ag_vpreid")
    },
    "g2a_vreid": Preset("clip_vit_b16", "g2a_vreid"),
    "ccvid": Preset("clip_vit_b16", "ccvid"),
    "ls_vid": Preset("clip_vit_b16", "ls_vid", PIECES),
    "mevid": Preset("clip_vit_b16", "mevid", PIECES),
    "hitsz_vcm": Preset("clip_vit_b16", "hitsz_vcm", BOTH),
    "bupt_campus": Preset("clip_vit_b16", "bupt_campus", BOTH),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "baseline", preset, VALUES, PRESETS)
