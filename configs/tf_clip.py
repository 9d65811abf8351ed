"""TF-CLIP: the class bank is made of image features of the starting tower and changed for each clip; no text.

Presets: `walkers` (default), `mars`, `hitsz_vcm`, `bupt_campus`; what differs from `clip_reid.py`.
`--config.optimizer.lr_factors` for "^(sequence|temporal)" at 10 is what the released name filters meant to do.
"""

from typing import Any

import ml_collections

from jaxreid.config import HALF, IMAGENET, sibling

CLIP_REID = sibling(__file__, "clip_reid")

PRESETS = CLIP_REID.PRESETS
TABLE: dict[str, Any] = {
    "loading.interpolation": "bilinear",
    "frames.mean": [HALF["mean"], *[IMAGENET["mean"]] * 3],
    "frames.std": [HALF["std"], *[IMAGENET["std"]] * 3],
    "bank": "image_memory",
    "ssp.depth": [1, 2, 2, 2],
    "temporal.diffusion": True,
    "sie.columns": ("camera_index",),
    "triplet.features": ("last", "projected", "temporal"),
    "weights.frame_identity": 1.0,
    "batch.num_identities": [24, 4, 4, 4],
    "batch.seq_len": [2, 8, 6, 6],
    "epochs": [16, 80, 80, 80],
    "optimizer.lr_factors": [
        (("^necks_", 30.0), ("^(temporal|sequence|frame_norm)", 3.0)),
        *[(("^necks_temporal/classifier", 10.0),)] * 3,
    ],
    "schedule.milestones": [(), *[(30.0, 50.0, 70.0)] * 3],
    "schedule.epoch_offset": [None, 0.0, 0.0, 0.0],
    "augment.crop": [3, 0, 0, 0],
    "augment.erase_area": [0.4, 0.2, 0.2, 0.2],
    "augment.per_frame": [(), ("erase",), ("erase",), ("erase",)],
    "embedding": ("last", "projected", "temporal"),
    "evaluation.clip_sampling": ["packed", "chunk_first", "chunk_first", "linspace"],
}


def get_config(preset: str = "walkers") -> ml_collections.ConfigDict:
    return CLIP_REID.family_config(__file__, preset, TABLE)
