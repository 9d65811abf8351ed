"""LSMRL, supervised visible-infrared video re-identification with language.

Presets: `walkers` (default: the small tower, minutes on two CPU cores), `hitsz_vcm`, `bupt_campus` (CLIP ViT-B/16;
both protocols of BUPTCampus are scored). The ablation's switches: stfl_split=(12,0,0), use_text, use_sd, use_cmi,
lambda_hct, lambda_mod, lambda_cons; other readings of the abstract: docs/lsmrl.md.
"""

from typing import Any

import ml_collections

from jaxreid.config import HALF, IMAGENET, preset_config

CLIP_B16 = "hf:openai/clip-vit-base-patch16"

# Every hyper-parameter of every preset. A list has one value for each of PRESETS, anything else holds for all.
PRESETS = ("walkers", "hitsz_vcm", "bupt_campus")
TABLE: dict[str, Any] = {
    "dataset.name": ["walkers", "hitsz_vcm", "bupt_campus"],
    "dataset.config": ["vvi", "", ""],
    "dataset.protocols": [(), (), ("bupt_full", "bupt_reduced64")],
    "precision": ["float32", "bfloat16", "bfloat16"],
    "loading.cache": [True, False, False],
    "loading.threads": [2, 16, 16],
    "extraction_batch_size": [32, 128, 128],
    "backbone.name": ["walkers_vit_tiny", "ViT-B/16", "ViT-B/16"],
    "backbone.checkpoint": ["walkers_vit_tiny", CLIP_B16, CLIP_B16],  # both towers and the vocabulary
    "backbone.remat": False,  # True: less memory, a quarter more work; of the text tower too
    "backbone.scan": False,  # True: compiles one block for all, at the price of a copy of the weights
    "backbone.stride": 0,  # pixels from patch to patch, 12 in CLIP-ReID's overlapping variant; 0 = the patch's size
    "frames.height": [64, 288, 288],
    "frames.width": [32, 144, 144],
    "frames.mean": [HALF["mean"], IMAGENET["mean"], IMAGENET["mean"]],
    "frames.std": [HALF["std"], IMAGENET["std"], IMAGENET["std"]],
    # STFL: blocks of the basic, the grouped and the patch shift encoder.
    "stfl_split": [(2, 1, 1), (8, 2, 2), (8, 2, 2)],
    "grouped_mode": "shift",  # or "tube"
    "tps_mode": "patch",  # or "channel": quarters of the channels instead of patches (X-ReID)
    # The language side and SD; without text there is no SD either.
    "prompt.template": "A X X X X person observed in both day and night conditions.",
    "prompt.n_ctx": 4,
    "prompt.pad_to_multiple_of": 8,  # the number of devices divides it
    "use_text": True,
    "v2t_norm": False,  # True: cosines with a learned scale instead of VLD's dot products
    "use_sd": True,
    "sd_mode": "attend",  # or "append": the sentences most like the frame stand beside its tokens (TF-CLIP)
    "sd_tokens": "cls",  # or "all"
    "sd_top": 8,  # sentences that are appended
    # CLIP-ReID's two stages instead of VLD's joint training: words first, on features of the starting tower.
    "two_stage": False,
    "stage1.epochs": [30, 120, 120],
    "stage1.clips_per_tracklet": 1,  # features per tracklet
    "stage1.seq_len": [4, 6, 6],  # that each is the mean of
    "stage1.augment": False,
    "stage1.batch_size": 64,
    "stage1.lr": [3.5e-3, 3.5e-4, 3.5e-4],
    "stage1.weight_decay": 1e-4,
    "stage1.schedule.name": "cosine",
    "stage1.schedule.warmup_epochs": [1.0, 5.0, 5.0],
    "stage1.schedule.warmup_factor": 1e-5 / 3.5e-4,
    "stage1.schedule.min_factor": 1e-6 / 3.5e-4,
    "stage1.schedule.cosine_includes_warmup": True,
    "stage1.schedule.epoch_offset": 1.0,
    # CMI; heads of 64 channels for SD and CMI.
    "use_cmi": True,
    "cmi_test": "solo",  # or "skip": test features are those that go into CMI
    "heads": [4, 8, 8],
    # Losses.
    "wrt_stable": True,  # False: the weighted triplet loss as released
    "lambda_text": 0.08,
    "lambda_cons": 1.0,
    "lambda_hct": 1.0,
    "hct_margin": 0.3,
    "lambda_mod": 0.1,
    "mod_disc": "hct",  # or "mma": a soft margin of mean distances (M³-ReID)
    "mod_gen": "uniform",  # or "third", "mmd"
    "mod_start_fraction": 0.25,  # share of the run after which the modality probe trains
    # Pairs of a visible and an infrared tracklet: identities per step, pairs of each.
    "batch.num_identities": [12, 4, 8],
    "batch.num_pairs": [2, 4, 2],
    "batch.seq_len": [4, 6, 6],
    "batch.clip_sampling": ["chunk", "chunk", "random"],  # which frames make a clip (jaxreid.data.clips.TRAINING_CLIPS)
    "batch.aligned": False,  # True: both of a pair show the same moment (BUPTCampus, where VLD draws so)
    "batch.steps_per_epoch": [0, 200, 200],  # per epoch; 0 = every tracklet once on average
    "epochs": [12, 24, 24],
    "optimizer.lr": [3e-4, 2.5e-5, 2.5e-5],
    "optimizer.weight_decay": 1e-4,
    "optimizer.bias_lr_factor": 1.0,
    "optimizer.bias_weight_decay": 1e-4,
    "optimizer.trainable": "^image_tower/",
    "optimizer.lr_factors": (("^(text|necks_|logit_scale)", 25.0), ("^(diffusion|interaction|modality)", 10.0)),
    "optimizer.clip_norm": [5.0, 0.0, 0.0],
    "schedule.name": "cosine",
    "schedule.warmup_epochs": [1.0, 3.0, 3.0],
    "schedule.warmup_factor": 0.0,
    "schedule.min_factor": 0.0,
    "schedule.cosine_includes_warmup": True,
    "schedule.epoch_offset": [None, 0.0, 0.0],
    "schedule.min_lr": 2.5e-7,
    # One draw per clip: patches of different frames must stay at the same place. VLD draws for every frame:
    # per_frame=("crop", "flip", "channel", "erase").
    "augment.per_frame": (),
    "augment.crop": [3, 10, 10],
    "augment.flip": 0.5,
    "augment.erase": [0.2, 0.5, 0.5],
    "augment.channel_exchange": 0.5,
    "augment.infrared_mix": True,
    # Test features before or after the batch norms of their necks.
    "neck_feat": ["after", "before", "before"],
    # Test clips: one of six frames; on `walkers` as many as show all frames.
    "evaluation.clip_sampling": ["dense", "chunk_first", "linspace"],
    "evaluation.seq_len": 6,
    "evaluation.pool": "after",
    "evaluation.flip": False,
    "evaluation.distance": "cosine",
}


def get_config(preset: str = "walkers") -> ml_collections.ConfigDict:
    return preset_config(__file__, "lsmrl", preset, PRESETS, TABLE)
