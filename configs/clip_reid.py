"""CLIP-ReID: class bank from learned prompts, the whole image tower trains. The family's contract, key by key.

Presets: `walkers` (default: the small tower, visible and infrared, minutes on two CPU cores), `mars`, `hitsz_vcm`,
`bupt_campus` (CLIP ViT-B/16, the published recipe; on the two cross-modality sets with their own clips and sampling).
`vsla_clip.py` and `tf_clip.py` change what stands in their own tables.
"""

from typing import Any

import ml_collections

from jaxreid.config import HALF, preset_config

CLIP_B16 = "hf:openai/clip-vit-base-patch16"

# Every hyper-parameter of every preset. A list has one value for each of PRESETS, anything else holds for all.
PRESETS = ("walkers", "mars", "hitsz_vcm", "bupt_campus")
TABLE: dict[str, Any] = {
    "dataset.name": ["walkers", "mars", "hitsz_vcm", "bupt_campus"],
    "dataset.config": ["vvi", "", "", ""],
    "precision": ["float32", "bfloat16", "bfloat16", "bfloat16"],
    "loading.cache": [True, False, False, False],
    "loading.threads": [2, 16, 16, 16],
    "loading.interpolation": ["bilinear", "bicubic", "bicubic", "bicubic"],
    "extraction_batch_size": [32, 128, 128, 128],
    "evaluate_every": 0,
    "backbone.name": ["walkers_vit_tiny", "ViT-B/16", "ViT-B/16", "ViT-B/16"],
    "backbone.checkpoint": ["walkers_vit_tiny", CLIP_B16, CLIP_B16, CLIP_B16],  # both towers and the vocabulary
    "backbone.remat": False,  # True: less memory, a quarter more work
    "backbone.scan": False,  # True: compiles one block for all, at the price of a copy of the weights
    "backbone.stride": 0,  # pixels from patch to patch, 12 in CLIP-ReID's overlapping variant; 0 = the patch's size
    "frames.height": [64, 256, 256, 256],
    "frames.width": [32, 128, 128, 128],
    "frames.mean": [HALF["mean"]] * 4,
    "frames.std": [HALF["std"]] * 4,
    # The class bank: "prompt", "image_memory", or "ema_memory" (CLIMB-ReID's: made anew before every epoch, two rows
    # per identity that follow the batches).
    "bank": "prompt",
    # `pad_to_multiple_of`: identities are encoded in a multiple of it, over which the devices share.
    "prompt.template": "A photo of a X X X X person.",
    "prompt.n_ctx": 4,
    "prompt.shared_ctx": (0, 0),
    "prompt.pad_to_multiple_of": [8, 128, 128, 128],
    "memory.seq_len": 8,  # of the clips that an image memory is made of
    "memory.clip_sampling": "dense",  # which clips these are (jaxreid.data.clips.RULES)
    "memory.momentum": 0.2,  # weight of the old row, for "ema_memory"
    "memory.temperature": 0.05,
    "memory.per_sample": False,  # True: mean rows also move to every sample in turn, as released
    "ssp.depth": 0,  # layers of TF-CLIP's sequence-specific prompt, 0 = off
    "ssp.self_attention": False,
    # Stage 1: prompts, on features of the starting tower.
    "stage1.epochs": [30, 120, 120, 120],
    "stage1.clips_per_tracklet": [2, 4, 2, 4],  # features per tracklet
    "stage1.seq_len": 1,  # that each is the mean of
    "stage1.augment": False,  # True: features of augmented frames, as VSLA-CLIP's release by mistake
    "stage1.batch_size": 64,
    "stage1.lr": [3.5e-3, 3.5e-4, 3.5e-4, 3.5e-4],
    "stage1.weight_decay": 1e-4,
    "stage1.schedule.name": "cosine",
    "stage1.schedule.warmup_epochs": [1.0, 5.0, 5.0, 5.0],
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
    # On `walkers`, a run with the published weights and a Euclidean margin stayed at the margin, and the less the bank
    # weighs the better (docs/clip_reid.md).
    "weights.identity": [1.0, 0.25, 0.25, 0.25],
    "weights.triplet": [0.2, 1.0, 1.0, 1.0],
    "weights.bank": [0.1, 1.0, 1.0, 1.0],
    "weights.image_to_text": 0.0,
    "weights.text_to_image": 0.0,
    "weights.frame_identity": 0.0,
    # On raw features of a small tower, shrinking them to nothing satisfies the other one.
    "triplet.metric": ["cosine", "euclidean", "euclidean", "euclidean"],
    "triplet.margin": 0.3,
    "triplet.soft_margin": False,  # True: softplus instead of the margin
    "triplet.features": ("penultimate", "last", "projected"),
    "label_smoothing": 0.1,
    "batch.sampler": ["balanced", "groups", "balanced", "balanced"],
    "batch.num_identities": [24, 16, 16, 16],
    "batch.num_instances": 4,
    "batch.seq_len": [2, 1, 1, 1],
    "batch.clip_sampling": "chunk",  # which frames make a training clip (jaxreid.data.clips.TRAINING_CLIPS)
    "batch.piece_len": 0,  # frames of the pieces that longer training tracklets are cut into (LS-VID: 48), 0 = whole
    "epochs": [16, 60, 60, 60],
    "optimizer.name": "adam",
    "optimizer.lr": [3e-4, 5e-6, 5e-6, 5e-6],
    "optimizer.weight_decay": 1e-4,
    "optimizer.bias_lr_factor": 2.0,
    "optimizer.bias_weight_decay": 1e-4,
    "optimizer.trainable": ".*",
    # (pattern, factor on `lr`), first match counts. A small tower's heads start from nothing in a short run.
    "optimizer.lr_factors": [(("^(necks_|frame_norm|temporal|sequence)", 30.0),), (), (), ()],
    "schedule.name": ["cosine", "steps", "steps", "steps"],
    "schedule.warmup_epochs": [1.0, 10.0, 10.0, 10.0],
    "schedule.warmup_factor": 0.1,
    "schedule.milestones": [(), (30.0, 50.0), (30.0, 50.0), (30.0, 50.0)],
    "schedule.epoch_offset": [None, 1.0, 1.0, 1.0],
    "augment.crop": [3, 10, 10, 10],
    "augment.flip": 0.5,
    "augment.erase": [0.2, 0.5, 0.5, 0.5],
    "augment.erase_area": 0.4,  # largest share of the frame
    "augment.per_frame": (),  # what frames draw for themselves: "crop", "flip", "channel", "erase"
    "augment.channel_exchange": [0.7, 0.0, 0.5, 0.5],
    "augment.infrared_mix": [True, False, True, True],
    # On `walkers` as configs/hitpro.py: a fabric's brightness differs between visible and infrared light.
    "augment.contrast": [0.2, 0.0, 0.0, 0.0],
    "augment.gamma": [0.3, 0.0, 0.0, 0.0],
    "augment.negative": [0.3, 0.0, 0.0, 0.0],
    # Test clips.
    "embedding": ("last", "projected"),
    "neck_feat": ["after", "before", "before", "before"],  # the batch norms: a switch of the released code
    "evaluation.clip_sampling": ["packed", "chunk_first", "chunk_first", "linspace"],
    "evaluation.seq_len": [6, 8, 6, 10],
    "evaluation.pool": "after",
    "evaluation.flip": False,
    "evaluation.distance": "cosine",
}


def family_config(file: str, preset: str, changes: dict[str, Any]) -> ml_collections.ConfigDict:
    """The config of a member of the family, whose file this is: this table with the member's changes."""
    return preset_config(file, "clip_reid", preset, PRESETS, TABLE | changes)


def get_config(preset: str = "walkers") -> ml_collections.ConfigDict:
    return family_config(__file__, preset, {})
