"""HiTPro, unsupervised visible-infrared video re-identification. Presets: walkers (default), folder."""

from typing import Any

import ml_collections

from jaxreid.config import HALF, base_config, unknown_preset

PRESETS = ("walkers", "folder")


def get_config(preset: str = "walkers") -> ml_collections.ConfigDict:
    preset = preset or "walkers"
    if preset not in PRESETS:
        raise unknown_preset(preset, PRESETS)
    config = base_config("hitpro", preset)
    _small(config)
    if preset == "folder":
        config.dataset.name = "folder"
        config.dataset.config = ""
        config.require_both_modalities = False
        config.epochs = 20  # few tracklets make short epochs
    return config


def _small(config: Any) -> None:
    """The small tower at 64×32 pixels: minutes on two CPU cores."""
    config.dataset.name, config.dataset.config = "walkers", "vvi"
    config.require_both_modalities = True
    config.frames = ml_collections.ConfigDict({"height": 64, "width": 32, **HALF})
    config.loading.cache = True
    config.backbone = ml_collections.ConfigDict({"name": "walkers_vit_tiny", "checkpoint": "walkers_vit_tiny"})
    config.temporal = "attention"

    config.epochs = 6
    config.calibrate_batches = 30
    config.batch = ml_collections.ConfigDict({"slots": 24, "clips": 2, "frames": 2})
    config.optimiser = ml_collections.ConfigDict(
        {
            "kind": "adamw",
            "patch_rate": 3e-4,
            "tower_rate": 3e-4,
            "head_rate": 9e-3,
            "weight_decay": 1e-4,
            "clip_norm": 5.0,
        }
    )
    config.schedule = ml_collections.ConfigDict({"kind": "cosine", "warmup_epochs": 1.0})
    config.augment = ml_collections.ConfigDict(
        {
            "crop": 3,
            "flip": 0.5,
            "erase": 0.2,
            # A fabric's brightness differs between visible and infrared light: features must not lean on it.
            "channel_exchange": 0.7,
            "infrared_mix": True,
            "brightness": 0.0,
            "contrast": 0.2,
            "gamma": 0.3,
            "negative": 0.3,
        }
    )

    # Intra-camera tracklet prototyping: one prototype per tracklet, which uses no knowledge of who is who.
    config.prototypes = ml_collections.ConfigDict(
        {"unit": "tracklet", "parts": 2, "momentum": 0.5, "capacity_multiple": 256}
    )
    # Two-stage positive mining with its dynamic threshold (κ falls over the run) and soft weights.
    config.kappa = (0.5, -0.5)
    config.association = ml_collections.ConfigDict(
        {
            "candidates_per_camera": 1,
            "within_positives": 4,
            "cross_positives": 4,
            "delta": 0.1,
            "weight_temperature": 0.05,
            "threshold": "dynamic",
            "fixed_threshold": 0.5,
            "mutual": True,
            "weights": "soft",
            "aggregation": 0.5,
            "stage2_space": "centred",
            "look_alikes": True,
            "look_alike_kappa": -2.0,
            "num_look_alikes": 8,
            "min_concentration": 0.0,
        }
    )
    # Three-level contrastive learning; `…_from` are the epochs at which a level is switched on.
    config.levels = ml_collections.ConfigDict(
        {
            "intra_weight": 0.5,
            "within_weight": 1.0,
            "cross_weight": 1.0,
            "within_from": 0,
            "cross_from": 1,
            "temperature": 0.07,
            "scope": "camera",
        }
    )
    config.evaluation = ml_collections.ConfigDict(
        {"rule": "packed", "frames": 6, "pool": "after", "flip": False, "distance": "cosine"}
    )
