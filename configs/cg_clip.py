"""CG-CLIP: captions refine the memory of TF-CLIP, and learned tokens look at all patches of a clip.

Presets: `walkers` (default: teams in one kit, the small CLIP with its text tower, minutes on two CPU cores); `mars`,
`ilids_vid`, `sports_vreid`, `dance_vreid` (CLIP ViT-B/16, one GPU). Captions come from the data set's sidecar
(`jaxreid import-sidecar captions`). What differs from `tf_clip.py`, whose recipe it is: of the paper's none could be
read.
"""

from typing import Any

import ml_collections

from jaxreid.config import Preset, compose, sibling
from jaxreid.overlays import HALF

CLIP_REID, TF_CLIP = sibling(__file__, "clip_reid"), sibling(__file__, "tf_clip")

# What CMR and TFE take the place of, and a bank of sentences.
OF_TF_CLIP = ("bank", "ssp.", "temporal.", "weights.frame_identity", "prompt.", "stage1.")
VALUES: dict[str, Any] = {
    **{key: value for key, value in TF_CLIP.VALUES.items() if not key.startswith(OF_TF_CLIP)},
    "captions.source": "file",  # "shuffled": those of other people; "template": one sentence for all; both as controls
    "captions.level": "token",  # all tokens of one caption per step; "sentence": the end tokens of all of them
    "captions.per_identity": 4,  # at most
    "captions.length": 77,  # tokens of a caption at most
    "captions.pad_to_multiple_of": 128,  # identities are refined in a multiple of it, over which the devices share
    "cmr.depth": 2,  # layers of the caption-guided memory refinement, 0 = off
    "cmr.alpha": 0.1,  # the learned factor on what it changes, at the start
    "cmr.context": "caption",  # "caption+video": TF-CLIP's sequence-specific prompt on top
    "tfe.layers": 1,  # of the token-based feature extraction, 0 = off
    "tfe.queries": 16,  # learned tokens
    "tfe.temporal_embed": True,  # False: the order of frames changes nothing
    "tfe.stop_grad": True,  # False: its losses reach the tower
    "memory.momentum": 1.0,  # below 1 the rows follow the batches
    "weights.caption_contrast": 0.0,  # of clips against captions, an option of ours
    # The new modules at ten times the tower's rate.
    "optimizer.groups": CLIP_REID.with_biases(
        ("^(necks_temporal/classifier|refinement|extraction)", 10.0, None), (".*", 1.0, None)
    ),
}

SMALL: dict[str, Any] = {
    **CLIP_REID.SMALL,
    **HALF,
    "captions.length": 48,
    "captions.pad_to_multiple_of": 8,
    # On `walkers/teams_dev` five points of mAP better than TF-CLIP's 0.1, with one seed (docs/cg_clip.md).
    "weights.bank": 0.02,
    "batch.seq_len": 4,
    "evaluation.seq_len": 4,
    "optimizer.groups": CLIP_REID.with_biases(
        ("^necks_", 30.0, None), ("^(refinement|extraction)", 3.0, None), (".*", 1.0, None)
    ),
    # Everybody is in visible light, and colours tell players apart.
    "augment.channel_exchange": 0.0,
    "augment.infrared_mix": False,
    "augment.contrast": 0.0,
    "augment.gamma": 0.0,
    "augment.negative": 0.0,
}
# A track of one match or stage: cameras have no numbers that stand for anything. `market` leaves the query's own window
# of time out (docs/datasets.md); where a set's tracklets of a person share one camera, "single_match" counts them all.
TRACKS: dict[str, Any] = {"sie.columns": (), "dataset.protocols": ("market",)}

PRESETS = {
    "walkers": Preset("walkers_clip", "walkers_teams", SMALL),
    "mars": Preset("clip_vit_b16", "mars"),
    "ilids_vid": Preset("clip_vit_b16", "ilids_vid"),
    "sports_vreid": Preset("clip_vit_b16", "sports_vreid", TRACKS),
    "dance_vreid": Preset("clip_vit_b16", "dance_vreid", TRACKS),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "cg_clip", preset, VALUES, PRESETS)
