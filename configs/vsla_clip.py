"""VSLA-CLIP: CLIP-ReID on clips, with adapters in every block of a tower that stays as it is.

Presets: `walkers` (default), `mars`, `ls_vid`, `ilids_vid`, `g2a_vreid`, `hitsz_vcm`, `bupt_campus`; what differs from
`clip_reid.py`.
"""

from typing import Any

import ml_collections

from jaxreid.config import compose, sibling
from jaxreid.overlays import HALF, IMAGENET

CLIP_REID = sibling(__file__, "clip_reid")

VALUES: dict[str, Any] = {
    **CLIP_REID.VALUES,
    **IMAGENET,
    # Eight shared words, four of the identity's own, eight shared ones, and a full stop.
    "prompt.template": " ".join("X" * 20) + ".",
    "prompt.shared_ctx": (8, 8),
    "stage1.clips_per_tracklet": 1,
    "stage1.seq_len": 8,
    "adapters.width": 256,  # 0 = none
    "adapters.temporal": True,
    "adapters.zero_init": False,
    "platform_prompts.blocks": 0,
    "platform_prompts.length": 1,  # tokens in each block
    "platform_prompts.columns": ("camera_index",),
    "weights.image_to_text": 1.0,
    "weights.text_to_image": 1.0,
    "triplet.metric": "cosine",
    "batch.num_identities": 8,
    "batch.seq_len": 8,
    "batch.clip_sampling": "floor",
    "epochs": 120,
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 2.5e-4,
    "optimizer.groups": (
        *CLIP_REID.with_biases(("(beside_attention|beside_mlp|^platform_prompts|^necks_)", 1.0, None)),
        (".*", 0.0, None),
    ),
    "schedule.milestones": (60.0, 90.0),
    "augment.crop": 0,
    "evaluation.clip_sampling": "floor_first",
}

SMALL: dict[str, Any] = {
    **HALF,
    "stage1.seq_len": 2,
    "adapters.width": 32,
    "weights.bank": 1.0,
    "batch.clip_sampling": "chunk",
    "optimizer.lr": 3e-3,
    "optimizer.groups": VALUES["optimizer.groups"],
    "evaluation.clip_sampling": "packed",
}
# Clips as the cross-modality sets' own codes draw them.
SIX: dict[str, Any] = {
    "stage1.clips_per_tracklet": 1,
    "stage1.seq_len": 6,
    "batch.seq_len": 6,
    "batch.clip_sampling": "chunk",
}

PRESETS = CLIP_REID.family_presets(
    {
        "walkers": SMALL,
        "mars": {},
        "ls_vid": {"batch.piece_len": 48},  # long tracklets are cut, as released
        "ilids_vid": {},
        "g2a_vreid": {"platform_prompts.blocks": 9},  # two platforms, a camera of each
        "hitsz_vcm": SIX | {"evaluation.clip_sampling": "chunk_first"},
        "bupt_campus": SIX | {"evaluation.clip_sampling": "linspace"},
    }
)


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "vsla_clip", preset, VALUES, PRESETS)
