"""LSMRL, supervised visible-infrared video re-identification with language.

Presets: `walkers` (default: the small tower, minutes on two CPU cores), `hitsz_vcm`, `bupt_campus` (CLIP ViT-B/16;
both protocols of BUPTCampus are scored). The ablation's switches: stfl_split=(12,0,0), use_text, use_sd, use_cmi,
lambda_hct, lambda_mod, lambda_cons; other readings of the abstract: docs/lsmrl.md.
"""

from typing import Any

import ml_collections

from jaxreid.config import Preset, compose, sibling

CLIP_REID = sibling(__file__, "clip_reid")

# For CLIP ViT-B/16, with the recipe of VLD.
VALUES: dict[str, Any] = {
    "frames.height": 288,
    "frames.width": 144,
    # STFL: blocks of the basic, the grouped and the patch shift encoder.
    "stfl_split": (8, 2, 2),
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
    **CLIP_REID.STAGE1,
    "stage1.clips_per_tracklet": 1,
    "stage1.seq_len": 6,
    # CMI; heads of 64 channels for SD and CMI.
    "use_cmi": True,
    "cmi_test": "solo",  # or "skip": test features are those that go into CMI
    "heads": 8,
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
    "batch.num_identities": 4,
    "batch.num_pairs": 4,
    "batch.seq_len": 6,
    "batch.clip_sampling": "chunk",  # which frames make a clip (jaxreid.data.clips.TRAINING_CLIPS)
    "batch.aligned": False,  # True: both of a pair show the same moment (BUPTCampus, where VLD draws so)
    "batch.steps_per_epoch": 200,  # 0 = every tracklet once on average
    "epochs": 24,
    "optimizer.name": "adamw",
    "optimizer.lr": 2.5e-5,
    "optimizer.weight_decay": 1e-4,
    "optimizer.groups": (
        ("^(text|necks_|logit_scale)", 25.0, None),
        ("^(diffusion|interaction|modality)", 10.0, None),
        ("^image_tower/", 1.0, None),
        (".*", 0.0, None),
    ),
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 3.0,
    "schedule.warmup_factor": 0.0,
    "schedule.min_factor": 0.0,
    "schedule.cosine_includes_warmup": True,
    "schedule.epoch_offset": 0.0,
    "schedule.min_lr": 2.5e-7,
    # One draw per clip: patches of different frames must stay at the same place. VLD draws for every frame:
    # per_frame=("crop", "flip", "channel", "erase").
    "augment.per_frame": (),
    "augment.crop": 10,
    "augment.flip": 0.5,
    "augment.erase": 0.5,
    "augment.channel_exchange": 0.5,
    "augment.infrared_mix": True,
    "neck_feat": "before",  # test features before or after the batch norms of their necks
    "evaluation.seq_len": 6,
}

SMALL: dict[str, Any] = {
    "frames.height": 64,
    "frames.width": 32,
    "stfl_split": (2, 1, 1),
    "stage1.epochs": 30,
    "stage1.seq_len": 4,
    "stage1.lr": 3.5e-3,
    "stage1.schedule.warmup_epochs": 1.0,
    "heads": 4,
    "batch.num_identities": 12,
    "batch.num_pairs": 2,
    "batch.seq_len": 4,
    "batch.steps_per_epoch": 0,
    "epochs": 12,
    "optimizer.lr": 3e-4,
    "optimizer.clip_norm": 5.0,
    "schedule.warmup_epochs": 1.0,
    "schedule.epoch_offset": None,
    "augment.crop": 3,
    "augment.erase": 0.2,
    "neck_feat": "after",  # better on `walkers/vvi_dev` (docs/lsmrl.md)
    "evaluation.clip_sampling": "dense",  # all frames, and no clip that is not full: this tower mixes a clip's frames
}
BUPT_CAMPUS: dict[str, Any] = {
    "dataset.protocols": ("bupt_full", "bupt_reduced64"),
    # As VLD draws there.
    "batch.num_identities": 8,
    "batch.num_pairs": 2,
    "batch.clip_sampling": "random",
}

PRESETS = {
    "walkers": Preset("walkers_clip", "walkers", SMALL),
    "hitsz_vcm": Preset("clip_vit_b16", "hitsz_vcm"),
    "bupt_campus": Preset("clip_vit_b16", "bupt_campus", BUPT_CAMPUS),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "lsmrl", preset, VALUES, PRESETS)
