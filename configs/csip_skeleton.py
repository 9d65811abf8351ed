"""Skeletons alone, with CSIP-ReID's encoder; no picture is read.

Presets: `walkers` (default: the exact 3-D joints of drawn people, minutes on two CPU cores); `biwi`, `ias_lab`, `ks20`
(an encoder as large as the released one, their own joints and protocol; the reverse direction is
`--config.dataset.query=gallery --config.dataset.gallery=query`); `folder` (one's own pictures with identities and a
sidecar `joints3d`). `skeleton.checkpoint` takes what `jaxreid export` writes of a run of `csip_reid.py`, or of this
config with another number of joints: nothing in an encoder's weights depends on that.
"""

from typing import Any

import ml_collections

from jaxreid.config import Preset, compose, sibling

CSIP_REID = sibling(__file__, "csip_reid")

VALUES: dict[str, Any] = {
    **CSIP_REID.SKELETON,
    "skeleton.projection": 512,
    "contrast.clip_temperature": 0.1,  # of cosines
    "contrast.frame_temperature": 10.0,  # of dot products
    "weights.contrast": 0.5,  # the rest is what is predicted
    "weights.clip": 0.5,  # of the contrast; the rest is frames'
    "weights.structure": 0.5,  # of what is predicted; the rest is trajectories
    "prediction.joints": 10,  # of a frame, from which all are predicted
    "prediction.frames": 4,  # of a clip, from which a joint's path is predicted
    "epochs": 100,
    "batch.batch_size": 256,
    "batch.seq_len": 6,
    "batch.clip_sampling": "consecutive",
    "optimizer.lr": 3.5e-4,
    "optimizer.weight_decay": 0.0,
    "schedule.name": "constant",
    "evaluation.clip_sampling": "chunk_first",
    "evaluation.seq_len": 6,
    "evaluation.normalize": False,
    "evaluation.pool": "before",
    "evaluation.distance": "euclidean",
}

SMALL: dict[str, Any] = {
    **CSIP_REID.SMALL_SKELETON,
    "skeleton.projection": 64,
    "extraction_batch_size": 256,
    "epochs": 60,
    "batch.batch_size": 64,
    "optimizer.lr": 2e-3,
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 2.0,
    "evaluation.clip_sampling": "packed",
}
KINECT = {"skeleton.joints": 20, "prediction.joints": 12}  # as large a share of them

PRESETS = {
    "walkers": Preset("no_tower", "walkers_visible", SMALL),
    "biwi": Preset("no_tower", "biwi", KINECT),
    "ias_lab": Preset("no_tower", "ias_lab", KINECT),
    "ks20": Preset("no_tower", "ks20", {"skeleton.joints": 25, "prediction.joints": 15}),
    "folder": Preset("no_tower", "folder", {**SMALL, "batch.batch_size": 32}),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    return compose(__file__, "csip_skeleton", preset, VALUES, PRESETS)
