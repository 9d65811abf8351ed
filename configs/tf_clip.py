"""TF-CLIP: the class bank is made of image features of the starting tower and changed for each clip; no text.

Presets: `walkers` (default), `mars`, `ls_vid`, `ilids_vid`, `hitsz_vcm`, `bupt_campus`; what differs from
`clip_reid.py`. A row ("^(sequence|temporal)", 10.0, None) in `optimizer.groups` is what the released name filters meant
to do.
"""

from typing import Any

import ml_collections

from jaxreid.config import compose, sibling
from jaxreid.overlays import HALF, IMAGENET

CLIP_REID = sibling(__file__, "clip_reid")

VALUES: dict[str, Any] = {
    **CLIP_REID.VALUES,
    **IMAGENET,
    "loading.interpolation": "bilinear",
    **CLIP_REID.IMAGES,
    "bank": "image",  # or "prompt": CLIP-ReID's, with its first stage
    "ssp.form": "full",  # or "simple": that of the weights released for LS-VID and iLIDS-VID
    "ssp.depth": 2,  # layers of the sequence-specific prompt, 0 = off
    "ssp.self_attention": False,
    "temporal.diffusion": True,
    "sie.columns": ("camera_index",),
    "weights.frame_identity": 1.0,
    "triplet.features": ("last", "projected", "temporal"),
    "batch.num_identities": 4,
    "batch.seq_len": 8,
    "epochs": 80,
    "optimizer.groups": CLIP_REID.with_biases(("^necks_temporal/classifier", 10.0, None), (".*", 1.0, None)),
    "schedule.milestones": (30.0, 50.0, 70.0),
    "schedule.epoch_offset": 0.0,
    "augment.crop": 0,
    "augment.erase_area": 0.2,
    "augment.per_frame": ("erase",),
    "embedding": ("last", "projected", "temporal"),
}

SMALL: dict[str, Any] = {
    **HALF,
    "ssp.depth": 1,
    # The new modules at a tenth of the necks' rate.
    "optimizer.groups": CLIP_REID.with_biases(
        ("^necks_", 30.0, None), ("^(temporal|sequence|frame_norm)", 3.0, None), (".*", 1.0, None)
    ),
    "augment.erase_area": 0.4,
    "augment.per_frame": (),
}
SIX = {"batch.seq_len": 6}  # frames of a clip, as the cross-modality sets' own codes draw them

PRESETS = CLIP_REID.family_presets(
    {"walkers": SMALL, "mars": {}, "ls_vid": {}, "ilids_vid": {}, "hitsz_vcm": SIX, "bupt_campus": SIX}
)


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "tf_clip", preset, VALUES, PRESETS)
