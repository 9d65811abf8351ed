"""CLIMB-ReID's bank on CLIP-ReID's tower: two rows per identity that follow the features of training.

Presets: `walkers` (default), `mars`, `ls_vid`, `ilids_vid`; what differs from `clip_reid.py`.
"""

from typing import Any

import ml_collections

from jaxreid.config import compose, sibling

CLIP_REID = sibling(__file__, "clip_reid")

VALUES: dict[str, Any] = {
    **CLIP_REID.FAMILY,
    **CLIP_REID.IMAGES,
    "memory.momentum": 0.2,  # weight of the old row
    "memory.temperature": 0.05,
    "memory.per_sample": False,  # True: mean rows also move to every sample in turn, as released
    "batch.num_identities": 4,
    "batch.seq_len": 8,
}

PRESETS = CLIP_REID.family_presets({name: {} for name in ("walkers", "mars", "ls_vid", "ilids_vid")}, prompts=False)


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "climb_bank", preset, VALUES, PRESETS)
