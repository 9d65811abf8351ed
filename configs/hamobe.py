"""HAMoBE: experts on the last blocks of a frozen CLIP, and gates that look at both videos of a pair.

Presets: `walkers` (default: people who change clothes, the small CLIP, minutes on two CPU cores), `mevid`, `ccvid`,
`mars`, `ls_vid` (CLIP ViT-L/14 on squares of 224 pixels, one GPU), `folder`. Frames are padded with black to squares.
Values are those of the released code (`mevid` its default, `ccvid` its other config), or ours where a comment says so.
"""

from typing import Any

import ml_collections

from jaxreid.config import Preset, compose

VALUES: dict[str, Any] = {
    "frames.height": 224,
    "frames.width": 224,
    "frames.mean": (0.48145466, 0.4578275, 0.40821073),  # CLIP's own
    "frames.std": (0.26862954, 0.26130258, 0.27577711),
    "loading.resize": "pad",
    "loading.interpolation": "bicubic",
    "evaluate_every": 5,
    "decoder.blocks": 4,  # of the tower's last ones, how many are looked at
    "decoder.conv": True,  # over time
    "decoder.position": True,  # a place for every frame
    "decoder.bias": True,  # what patches find in the frames before and after
    "experts.count": 8,  # low-level ones
    "experts.used": ("canonical", "appearance", "gait"),
    "experts.shared": False,  # True: one stream of tokens for all three
    "experts.normalize": False,  # True: in the embedding each counts by its direction alone; ours
    "experts.dropout": 0.5,  # inside of the gait expert
    "experts.gait_heads": 12,
    "gates.first": "learned",  # "uniform": each low-level expert has the same share
    "gates.second": "learned",  # "uniform": each expert has the same weight
    "gates.heads": 8,
    "scale": 16.0,  # of cosines to class vectors
    "weights.intra_canonical": 1.0,  # frames of a clip agree about the canonical feature,
    "weights.inter": 1.0,  # and clips of a person
    "weights.intra_appearance": 1.0,  # frames of a clip agree about appearance
    "weights.gait": 1.0,  # clips of a person agree about gait
    "weights.clothes": 0.0,  # above 0: appearance also tells outfits apart, where the data set knows them
    "weights.triplet": 0.0,
    "triplet.margin": 0.3,
    # Ours: the release never trains a gate with two videos.
    "pair.probability": 0.5,  # of a step in which clips meet in pairs, 0 = never
    "pair.weight": 0.5,  # of the loss that pairs have
    "pair.mode": "pair_gate2",  # in re-scoring: the second gate sees both; "pair_full": both gates do
    "epochs": 200,
    "batch.num_identities": 12,  # 48 clips; of `mevid` 24 for each of two processes
    "batch.num_instances": 4,
    "batch.seq_len": 8,
    "batch.piece_len": 64,
    "batch.clip_sampling": "segments",
    "optimizer.name": "adam",
    "optimizer.lr": 3.5e-4,
    "optimizer.weight_decay": 5e-4,
    "schedule.name": "steps",
    "schedule.milestones": (70.0, 140.0),
    "schedule.epoch_offset": 0.0,
    "augment.flip": 0.5,
    "evaluation.clip_sampling": "recombine",
    "evaluation.seq_len": 8,
    "evaluation.stride": 4,
    "evaluation.pool": "before",
    "evaluation.rescore_size": 50,  # ours: so many of the nearest are scored in pairs, from a clip of each tracklet
}

MEVID: dict[str, Any] = {"batch.seq_len": 16, "evaluation.seq_len": 16, "evaluation.stride": 2}

SMALL: dict[str, Any] = {
    "frames.height": 64,
    "frames.width": 64,
    "frames.mean": (0.5, 0.5, 0.5),
    "frames.std": (0.5, 0.5, 0.5),
    "loading.interpolation": "bilinear",
    "evaluate_every": 0,
    # The gait expert's feature grows ten times as long as the others' and drowns them (docs/hamobe.md).
    "experts.normalize": True,
    "experts.gait_heads": 3,  # of 32 channels, as the tower's
    "gates.heads": 2,
    "batch.num_identities": 8,
    "batch.seq_len": 4,
    "batch.piece_len": 0,
    "evaluation.clip_sampling": "linspace",
    "evaluation.seq_len": 4,
    "evaluation.outputs": ("feature", "canonical", "appearance", "gait"),
    "epochs": 8,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-3,
    "optimizer.clip_norm": 5.0,
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 1.0,
    "schedule.epoch_offset": None,
}

PRESETS = {
    "walkers": Preset("walkers_clip", "walkers_clothes", SMALL),
    "mevid": Preset("clip_vit_l14", "mevid", MEVID),
    "ccvid": Preset("clip_vit_l14", "ccvid"),
    "mars": Preset("clip_vit_l14", "mars"),
    "ls_vid": Preset("clip_vit_l14", "ls_vid"),
    "folder": Preset("walkers_clip", "folder", SMALL),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "hamobe", preset, VALUES, PRESETS)
