"""DinoGRL: gait from DINOv2's tokens beside appearance, visible-infrared.

Presets: `walkers` (default: both modalities, two small towers, minutes on two CPU cores), `hitsz_vcm`, `bupt_campus`
(DINOv2 ViT-S/14 and ResNet-50, one GPU; both protocols of BUPTCampus are scored). The augmentation is published per
frame; `--config.augment.per_frame="()"` draws once for a clip, so that frames of a gait are seen from one side.
"""

from typing import Any

import ml_collections

from jaxreid.config import Preset, compose, sibling

LSMRL = sibling(__file__, "lsmrl")

VALUES: dict[str, Any] = {
    "frames.height": 256,
    "frames.width": 128,
    "resnet.name": "resnet50_two_stem",
    "resnet.checkpoint": "torchvision/resnet50-v1",  # of both stems and of either trunk
    # SASGL.
    "streams": "both",  # or "appearance", "gait": trained and tested alone
    "dino_size": (448, 224),  # frames as DINOv2 sees them; twice its grid is that of the silhouettes
    "gait_input": "maps",  # or "silhouette": that alone, without the two branches
    "map_channels": 16,
    "map_drop": 0.2,  # share of clips of a batch that lose one of their maps
    "mask.checkpoint": "",  # BigGait's MaskBranch_vits14.pt; "" = from scratch, in a stage of its own
    "mask.dropout": 0.5,
    "mask.warmup_steps": 500,
    "mask.lr": 3.5e-4,
    "mask.cache": False,  # True: this stage learns from a frame of every tracklet, whose tokens are found once
    "mask_grad": False,  # True: identity losses reach the mask branch
    "mask_sobel_layout": "channels",  # "legacy": as published, channels and cells taken for one another
    "stem_relu": False,  # as published; True: ReLU before the pooling of the appearance stems
    "fast": True,  # False: first products of the two branches cell by cell; the same numbers
    "pyramid": (1, 2, 4, 8, 16),
    "part_width": 256,
    # PBMGE.
    "pbmge.granularities": (2, 4, 8, 16),  # () = without
    "pbmge.direction": "both",  # or the one stream that is enriched
    # Losses.
    "triplet.margin": 0.2,
    "scale": 16.0,
    "label_smoothing": 0.1,
    "lambda_mse": 1.0,
    "lambda_sob_mask": 0.02,
    "lambda_sob_parts": 0.01,
    "lambda_div": 5.0,
    "lambda_border": 0.0,  # ours: keeps the mask from the edges of a frame
    # Pairs of a visible and an infrared tracklet: identities per step, pairs of each.
    "batch.num_identities": 4,
    "batch.num_pairs": 4,
    "batch.seq_len": 6,
    "batch.clip_sampling": "chunk",
    "batch.aligned": False,
    "batch.steps_per_epoch": 200,
    "epochs": 120,  # the published files say 300, 200 and 119; the rate is 3.5e-6 from 70 on
    "optimizer.name": "adam",
    "optimizer.lr": 3.5e-4,
    "optimizer.weight_decay": 5e-4,
    "schedule.name": "steps",
    "schedule.warmup_epochs": 10.0,
    "schedule.warmup_factor": 0.01,
    "schedule.milestones": (40.0, 70.0),
    "schedule.epoch_offset": 0.0,
    "augment.crop": 10,
    "augment.flip": 0.5,
    "augment.erase": 0.5,
    "augment.erase_fill": "constant",
    "augment.erase_constant": (0.4914, 0.4822, 0.4465),  # after normalizing, as published
    "augment.channel_exchange": 0.5,
    "augment.infrared_mix": True,
    "augment.per_frame": ("crop", "flip", "channel", "erase"),
    "evaluation.seq_len": 6,
    "evaluation.pool": "before",
    "evaluation.normalize": False,
    "evaluation.distance": "parts_euclidean",
    "evaluation.outputs": ("feature", "appearance", "gait"),
}

SMALL: dict[str, Any] = {
    "frames.height": 64,
    "frames.width": 32,
    "resnet.name": "resnet_tiny_two_stem",
    "resnet.checkpoint": "walkers_resnet_tiny",
    "dino_size": (128, 64),
    "mask.cache": True,
    "mask.warmup_steps": 300,
    "mask.lr": 1e-2,
    # The strongest direction of a small tower's tokens is the place in the frame: without it, which half of a frame is
    # found instead of the person depends on the seed.
    "lambda_border": 1.0,
    "pyramid": (1, 2, 4),
    "part_width": 64,
    "pbmge.granularities": (2, 4),
    "batch.num_identities": 8,
    "batch.num_pairs": 2,
    "batch.seq_len": 2,
    "batch.steps_per_epoch": 20,
    "epochs": 7,
    # Few steps: new layers learn faster than the trunks, which have seen drawn people; and gait, whose maps are like
    # nothing that its trunk has seen, three times as fast as appearance.
    "optimizer.lr": 1e-3,
    "optimizer.groups": (
        ("^appearance_trunk/", 1 / 3, None),
        ("^(appearance_|gait_trunk/)", 1.0, None),
        (".*", 3.0, None),
    ),
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 1.0,
    "schedule.epoch_offset": None,
    "augment.crop": 3,
    "augment.erase": 0.2,
    "augment.per_frame": (),
    "evaluation.clip_sampling": "chunk_first",
    "evaluation.seq_len": 4,
}
PRESETS = {
    "walkers": Preset("walkers_dinov2", "walkers", SMALL),
    "hitsz_vcm": Preset("dinov2_vit_s14", "hitsz_vcm"),
    "bupt_campus": Preset("dinov2_vit_s14", "bupt_campus", LSMRL.BUPT_CAMPUS),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "dinogrl", preset, VALUES, PRESETS)
