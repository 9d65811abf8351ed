"""CLIP-ReID: class bank from learned prompts, the whole image tower trains. What all members of its family have.

Presets: `walkers` (default: the small tower, visible and infrared, minutes on two CPU cores); `mars`, `ls_vid`,
`ilids_vid`, `hitsz_vcm`, `bupt_campus` (CLIP ViT-B/16, the published recipe; on the two cross-modality sets with their
own clips and sampling). `vsla_clip.py`, `tf_clip.py` and `climb_bank.py` say what is theirs in tables of their own.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from jaxreid.config import Preset, compose
from jaxreid.overlays import HALF


def with_biases(*rows: tuple[str, float, float | None]) -> tuple[tuple[str, float, float | None], ...]:
    """Rows of `optimizer.groups`, and before each that of its biases: twice its lr, a weight decay of 1e-4."""
    return tuple(
        row
        for pattern, factor, decay in rows
        for row in ((rf"^(?=.*bias$)(?=.*?({pattern}))", 2.0 * factor, 1e-4), (pattern, factor, decay))
    )


# What all members have.
FAMILY: dict[str, Any] = {
    **HALF,
    "loading.interpolation": "bicubic",
    "pooling": "mean",  # of a clip's frames; or "attention", which starts as the mean
    "sie.columns": (),  # side information: "camera_index", "platform", "modality"
    "sie.strength": 1.0,
    "weights.identity": 0.25,
    "weights.triplet": 1.0,
    "weights.bank": 1.0,
    "triplet.metric": "euclidean",
    "triplet.margin": 0.3,
    "triplet.soft_margin": False,  # True: softplus instead of the margin
    "triplet.features": ("penultimate", "last", "projected"),
    "label_smoothing": 0.1,
    "batch.sampler": "groups",
    "batch.num_identities": 16,
    "batch.num_instances": 4,
    "batch.seq_len": 1,
    "batch.clip_sampling": "chunk",  # which frames make a training clip (jaxreid.data.clips.TRAINING_CLIPS)
    "batch.piece_len": 0,  # frames of the pieces that longer training tracklets are cut into, 0 = whole
    "epochs": 60,
    "optimizer.name": "adam",
    "optimizer.lr": 5e-6,
    "optimizer.weight_decay": 1e-4,
    "optimizer.groups": with_biases((".*", 1.0, None)),
    "schedule.name": "steps",
    "schedule.warmup_epochs": 10.0,
    "schedule.warmup_factor": 0.1,
    "schedule.milestones": (30.0, 50.0),
    "schedule.epoch_offset": 1.0,
    "augment.crop": 10,
    "augment.flip": 0.5,
    "augment.erase": 0.5,
    "augment.erase_area": 0.4,  # largest share of the frame
    "augment.per_frame": (),  # what frames draw for themselves: "crop", "flip", "channel", "erase"
    "augment.channel_exchange": 0.0,
    "augment.infrared_mix": False,
    "augment.contrast": 0.0,
    "augment.gamma": 0.0,
    "augment.negative": 0.0,
    # Test clips.
    "embedding": ("last", "projected"),
    "neck_feat": "before",  # or "after" the batch norms: a switch of the released code
}

# Stage 1: prompts, on features of the starting tower. Others learn words in the same way.
STAGE1: dict[str, Any] = {
    "stage1.epochs": 120,
    "stage1.clips_per_tracklet": 4,  # features per tracklet
    "stage1.seq_len": 1,  # frames that each is the mean of
    "stage1.augment": False,  # True: features of augmented frames, as VSLA-CLIP's release by mistake
    "stage1.batch_size": 64,
    "stage1.lr": 3.5e-4,
    "stage1.weight_decay": 1e-4,
    "stage1.schedule.name": "cosine",
    "stage1.schedule.warmup_epochs": 5.0,
    "stage1.schedule.warmup_factor": 1e-5 / 3.5e-4,
    "stage1.schedule.min_factor": 1e-6 / 3.5e-4,
    "stage1.schedule.cosine_includes_warmup": True,
    "stage1.schedule.epoch_offset": 1.0,
}

# A bank of sentences.
PROMPTS: dict[str, Any] = {
    "prompt.template": "A photo of a X X X X person.",
    "prompt.n_ctx": 4,
    "prompt.shared_ctx": (0, 0),
    "prompt.pad_to_multiple_of": 128,  # identities are encoded in a multiple of it, over which the devices share
    **STAGE1,
}

# A bank of image features.
IMAGES: dict[str, Any] = {
    "memory.seq_len": 8,  # frames of the clips that it is made of
    "memory.clip_sampling": "dense",  # which clips these are (jaxreid.data.clips.RULES)
}

VALUES: dict[str, Any] = {**FAMILY, **PROMPTS}

# The small tower, visible and infrared. Frames, necks, augmentation and the weight of the bank were chosen on
# `walkers/vvi_dev` (docs/clip_reid.md).
SMALL: dict[str, Any] = {
    "loading.interpolation": "bilinear",
    # A run with the published weights and a Euclidean margin stayed at the margin: on raw features of a small tower,
    # shrinking them to nothing satisfies it. And the less the bank weighs the better.
    "weights.identity": 1.0,
    "weights.triplet": 0.2,
    "weights.bank": 0.1,
    "triplet.metric": "cosine",
    "batch.sampler": "balanced",
    "batch.num_identities": 24,
    "batch.seq_len": 2,
    "epochs": 16,
    "optimizer.lr": 3e-4,
    # A small tower's heads start from nothing in a short run.
    "optimizer.groups": with_biases(("^(necks_|frame_norm|temporal|sequence)", 30.0, None), (".*", 1.0, None)),
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 1.0,
    "schedule.milestones": (),
    "schedule.epoch_offset": None,
    "augment.crop": 3,
    "augment.erase": 0.2,
    # As configs/hitpro.py: a fabric's brightness differs between visible and infrared light.
    "augment.channel_exchange": 0.7,
    "augment.infrared_mix": True,
    "augment.contrast": 0.2,
    "augment.gamma": 0.3,
    "augment.negative": 0.3,
    "neck_feat": "after",
}
SMALL_PROMPTS: dict[str, Any] = {
    "prompt.pad_to_multiple_of": 8,
    "stage1.epochs": 30,
    "stage1.clips_per_tracklet": 2,
    "stage1.lr": 3.5e-3,
    "stage1.schedule.warmup_epochs": 1.0,
}
# Two modalities: an identity's clips are drawn from both, and channels are exchanged as the sets' own codes do.
BOTH: dict[str, Any] = {
    "batch.sampler": "balanced",
    "augment.channel_exchange": 0.5,
    "augment.infrared_mix": True,
}

# Members of the family add their own changes to these.
DATA: dict[str, tuple[str, Mapping[str, Any]]] = {
    "walkers": ("walkers_clip", SMALL),
    "mars": ("clip_vit_b16", {}),
    "ls_vid": ("clip_vit_b16", {}),
    "ilids_vid": ("clip_vit_b16", {}),
    "g2a_vreid": ("clip_vit_b16", {}),
    "hitsz_vcm": ("clip_vit_b16", BOTH),
    "bupt_campus": ("clip_vit_b16", BOTH),
}
OF_PROMPTS: dict[str, Mapping[str, Any]] = {
    "walkers": SMALL_PROMPTS,
    "hitsz_vcm": {"stage1.clips_per_tracklet": 2},  # its tracklets have 24 frames
}


def family_presets(changes: Mapping[str, Mapping[str, Any]], prompts: bool = True) -> dict[str, Preset]:
    """Presets of a member of the family, by data set: what the data ask of all members and, where it has `PROMPTS`, of
    these; then the member's own."""
    return {
        name: Preset(DATA[name][0], name, {**DATA[name][1], **(OF_PROMPTS.get(name, {}) if prompts else {}), **own})
        for name, own in changes.items()
    }


PRESETS = family_presets({name: {} for name in ("walkers", "mars", "ls_vid", "ilids_vid", "hitsz_vcm", "bupt_campus")})


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "clip_reid", preset, VALUES, PRESETS)
