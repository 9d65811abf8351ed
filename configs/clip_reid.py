"""CLIP-ReID: class bank from learned prompts, the whole image tower trains. The family's contract, key by key.

Presets: `walkers` (default: the small tower, visible and infrared, minutes on two CPU cores); `mars`, `ls_vid`,
`ilids_vid`, `hitsz_vcm`, `bupt_campus` (CLIP ViT-B/16, the published recipe; on the two cross-modality sets with their
own clips and sampling). `vsla_clip.py` and `tf_clip.py` change what stands in their own tables.
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


VALUES: dict[str, Any] = {
    **HALF,
    "loading.interpolation": "bicubic",
    # The class bank: "prompt", "image_memory", or "ema_memory" (CLIMB-ReID's: made anew before every epoch, two rows
    # per identity that follow the batches).
    "bank": "prompt",
    "prompt.template": "A photo of a X X X X person.",
    "prompt.n_ctx": 4,
    "prompt.shared_ctx": (0, 0),
    "prompt.pad_to_multiple_of": 128,  # identities are encoded in a multiple of it, over which the devices share
    "memory.seq_len": 8,  # of the clips that an image memory is made of
    "memory.clip_sampling": "dense",  # which clips these are (jaxreid.data.clips.RULES)
    "memory.momentum": 0.2,  # weight of the old row, for "ema_memory"
    "memory.temperature": 0.05,
    "memory.per_sample": False,  # True: mean rows also move to every sample in turn, as released
    "ssp.depth": 0,  # layers of TF-CLIP's sequence-specific prompt, 0 = off
    "ssp.self_attention": False,
    # Stage 1: prompts, on features of the starting tower.
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
    # Stage 2.
    "temporal.diffusion": False,  # TF-CLIP's branch
    "adapters.width": 0,  # VSLA-CLIP's, 0 = none
    "adapters.temporal": True,
    "adapters.zero_init": False,
    "sie.columns": (),  # "camera_index", "platform", "modality"
    "sie.strength": 1.0,
    "platform_prompts.blocks": 0,
    "platform_prompts.columns": ("camera_index",),
    "weights.identity": 0.25,
    "weights.triplet": 1.0,
    "weights.bank": 1.0,
    "weights.image_to_text": 0.0,
    "weights.text_to_image": 0.0,
    "weights.frame_identity": 0.0,
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

# The small tower, visible and infrared. Frames, necks, augmentation and the weight of the bank were chosen on
# `walkers/vvi_dev` (docs/clip_reid.md).
SMALL: dict[str, Any] = {
    "loading.interpolation": "bilinear",
    "prompt.pad_to_multiple_of": 8,
    "stage1.epochs": 30,
    "stage1.clips_per_tracklet": 2,
    "stage1.lr": 3.5e-3,
    "stage1.schedule.warmup_epochs": 1.0,
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
# Two modalities: an identity's clips are drawn from both, and channels are exchanged as the sets' own codes do.
BOTH: dict[str, Any] = {
    "batch.sampler": "balanced",
    "augment.channel_exchange": 0.5,
    "augment.infrared_mix": True,
}
HITSZ_VCM: dict[str, Any] = BOTH | {"stage1.clips_per_tracklet": 2}  # its tracklets have 24 frames

# Members of the family add their own changes to these.
DATA: dict[str, tuple[str, Mapping[str, Any]]] = {
    "walkers": ("walkers_clip", SMALL),
    "mars": ("clip_vit_b16", {}),
    "ls_vid": ("clip_vit_b16", {}),
    "ilids_vid": ("clip_vit_b16", {}),
    "g2a_vreid": ("clip_vit_b16", {}),
    "hitsz_vcm": ("clip_vit_b16", HITSZ_VCM),
    "bupt_campus": ("clip_vit_b16", BOTH),
}


def family_presets(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Preset]:
    """Presets of a member of the family, by data set: what the data ask of all members, then the member's own."""
    return {name: Preset(DATA[name][0], name, {**DATA[name][1], **own}) for name, own in changes.items()}


PRESETS = family_presets({name: {} for name in ("walkers", "mars", "ls_vid", "ilids_vid", "hitsz_vcm", "bupt_campus")})


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "clip_reid", preset, VALUES, PRESETS)
