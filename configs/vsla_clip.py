"""VSLA-CLIP: CLIP-ReID on clips, with adapters in every block of a tower that stays as it is.

Presets: `walkers` (default), `mars`, `hitsz_vcm`, `bupt_campus`; what differs from `clip_reid.py`.
"""

from typing import Any

import ml_collections

from jaxreid.config import HALF, IMAGENET, sibling

CLIP_REID = sibling(__file__, "clip_reid")

PRESETS = CLIP_REID.PRESETS
TABLE: dict[str, Any] = {
    "frames.mean": [HALF["mean"], *[IMAGENET["mean"]] * 3],
    "frames.std": [HALF["std"], *[IMAGENET["std"]] * 3],
    # Eight shared words, four of the identity's own, eight shared ones, and a full stop.
    "prompt.template": " ".join("X" * 20) + ".",
    "prompt.shared_ctx": (8, 8),
    "stage1.clips_per_tracklet": [2, 1, 1, 1],
    "stage1.seq_len": [2, 8, 6, 6],
    "adapters.width": [32, 256, 256, 256],
    "weights.bank": 1.0,
    "weights.image_to_text": 1.0,
    "weights.text_to_image": 1.0,
    "triplet.metric": "cosine",
    "batch.num_identities": [24, 8, 8, 8],
    "batch.seq_len": [2, 8, 6, 6],
    "batch.clip_sampling": ["chunk", "floor", "chunk", "chunk"],
    "epochs": [16, 120, 120, 120],
    "optimizer.lr": [3e-3, 1e-4, 1e-4, 1e-4],
    "optimizer.weight_decay": 2.5e-4,
    "optimizer.trainable": "(beside_attention|beside_mlp|^platform_prompts|^necks_)",
    "optimizer.lr_factors": (),
    "schedule.milestones": [(), (60.0, 90.0), (60.0, 90.0), (60.0, 90.0)],
    "augment.crop": [3, 0, 0, 0],
    "evaluation.clip_sampling": ["packed", "floor_first", "chunk_first", "linspace"],
}


def get_config(preset: str = "walkers") -> ml_collections.ConfigDict:
    return CLIP_REID.family_config(__file__, preset, TABLE)
