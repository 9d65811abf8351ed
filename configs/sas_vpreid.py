"""SAS-VPReID: two proxies per identity, Mamba over three granularities of time, a stream of body shape.

Presets: `walkers` (default: the drawn world `aerial`, minutes on two CPU cores), `detreidx` (CLIP ViT-L/14, the winner
of VReID-XFD-25) and `detreidx_b16` (ViT-B/16). Values are those of the released code, or ours where a comment says so.
"""

from typing import Any

import ml_collections

from jaxreid.config import Preset, compose, sibling
from jaxreid.overlays import HALF, IMAGENET

CLIP_REID = sibling(__file__, "clip_reid")

STEM = r"^image_tower/(patch_embedding|class_token|position_embedding|norm_pre)"
FEATURES = ("last", "projected", "temporal", "shape")
# What is without MGTM and PRSD: of an ablation.
WITHOUT: dict[str, Any] = {
    "mgtm.enabled": False,
    "prsd.enabled": False,
    "triplet.features": FEATURES[:2],
    "embedding": FEATURES[:2],
}

VALUES: dict[str, Any] = {
    **CLIP_REID.FAMILY,
    **IMAGENET,
    "sie.columns": ("camera_index",),  # the release has a table of 38 rows, of which three are used
    "memory.momentum": 0.1,  # weight of the old row
    "memory.temperature": 0.05,
    "memory.per_sample": False,  # True: mean rows also move to every sample in turn, as released
    "memory.seq_len": 16,  # ours, as in tests: a clip of each tracklet
    "memory.clip_sampling": "floor_first",
    "module_rates": True,  # False: one learning rate, `optimizer.lr`, for all that trains
    "mgtm.enabled": True,
    "mgtm.state": 16,
    "mgtm.expand": 2,
    "mgtm.kernel": 4,
    "mgtm.mlp_ratio": 4,
    "mgtm.chunk": 0,  # tokens that are scanned side by side, 0 = those of a frame; changes no number but by rounding
    "prsd.enabled": True,
    "prsd.train": True,  # False: encoder and regressor stay as they are, for weights that were trained elsewhere
    "prsd.width": 2048,
    "prsd.hidden": 1024,
    "prsd.depth": 4,
    "prsd.heads": 8,
    "prsd.iterations": 3,
    "released": False,  # True: as the released weights were trained, mistakes and all (docs/sas_vpreid.md)
    "weights.frame_identity": 1.0,
    "weights.shape_identity": 1.0,
    "weights.prior": 0.5,
    "triplet.features": FEATURES,
    "embedding": FEATURES,
    "neck_feat": "after",
    "batch.num_identities": 4,
    "batch.num_instances": 4,
    "batch.seq_len": 8,
    "batch.clip_sampling": "floor",
    "epochs": 40,
    # 5e-6 for the tower but for its stem, which stays; 3.5e-4 for the rest; biases, and the classifier of MGTM, at
    # twice the rate.
    "optimizer.groups": (
        (STEM, 0.0, None),
        *CLIP_REID.with_biases(("^image_tower/", 1.0, None)),
        ("^necks_temporal/classifier", 140.0, None),
        *CLIP_REID.with_biases((".*", 70.0, None)),
    ),
    "schedule.milestones": (10.0, 20.0, 30.0),
    "schedule.epoch_offset": 0.0,
    "augment.crop": 0,
    "augment.erase": 0.5,
    "augment.per_frame": ("erase_size",),  # of colours nothing: a clip's change as one; "jitter": of every frame
    "augment.erase_fill": "constant",
    "augment.erase_constant": (0.4914, 0.4822, 0.4465),  # after normalizing, as released
    "augment.hue": 0.3,
    "augment.jitter": 0.5,
    # The release shuffles the frames of a clip, in tests too: Mamba and the shape stream know their order.
}

# Published runs; the release computes in float32.
DETREIDX: dict[str, Any] = {
    "precision": "float32",
    "extraction_batch_size": 16,  # ours: Mamba's channels of all tokens of a clip are many
    "dataset.config": "cases",
    "evaluation.clip_sampling": "floor_first",
    "evaluation.seq_len": 16,
    # Of re-ranked scores, which the paper does not report: the organisers' constants.
    "evaluation.rerank_k1": 50,
    "evaluation.rerank_k2": 15,
}
LARGE: dict[str, Any] = {**DETREIDX, "frames.height": 252, "frames.width": 126, "backbone.remat": True}  # remat: ours

# The small tower; ours. Clips of four frames, of eight in tests. Batches, epochs, and channels and states of Mamba and
# the shape stream are as many as two cores can do in minutes; the rate and the memory's weight were chosen on
# `aerial_dev` (docs/sas_vpreid.md).
WALKERS: dict[str, Any] = {
    **CLIP_REID.SMALL,
    **HALF,
    "dataset.config": "aerial",
    "memory.seq_len": 4,
    "memory.clip_sampling": "linspace",
    "mgtm.state": 4,
    "mgtm.expand": 1,
    "mgtm.mlp_ratio": 2,
    "mgtm.chunk": 1,  # on CPUs nothing lies side by side
    "prsd.width": 128,
    "prsd.hidden": 64,
    "prsd.depth": 1,
    "prsd.heads": 4,
    "weights.bank": 0.1,
    "batch.num_identities": 8,
    "batch.num_instances": 4,
    "batch.seq_len": 4,
    "epochs": 5,
    "optimizer.lr": 1e-3,
    "optimizer.groups": (
        (STEM, 0.0, None),
        *CLIP_REID.with_biases(("^image_tower/", 1.0, None), ("^(temporal|shape)/", 3.0, None), (".*", 30.0, None)),
    ),
    "augment.crop": 0,
    "augment.channel_exchange": 0.0,
    "augment.infrared_mix": False,
    "augment.negative": 0.0,
    "augment.contrast": 0.0,
    "augment.gamma": 0.0,
    "augment.erase": 0.5,
    "evaluation.clip_sampling": "linspace",
    "evaluation.seq_len": 8,
}

PRESETS = {
    "walkers": Preset("walkers_clip", "walkers", WALKERS),
    "detreidx": Preset("clip_vit_l14", "detreidx", LARGE),
    "detreidx_b16": Preset("clip_vit_b16", "detreidx", DETREIDX),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "sas_vpreid", preset, VALUES, PRESETS)
