"""Identity and triplet loss with labels: the simplest method, and the supervised bound. Preset: walkers."""

import ml_collections

from jaxreid.config import HALF, base_config, unknown_preset

PRESETS = ("walkers",)


def get_config(preset: str = "walkers") -> ml_collections.ConfigDict:
    preset = preset or "walkers"
    if preset not in PRESETS:
        raise unknown_preset(preset, PRESETS)
    config = base_config(__file__, "baseline", preset)
    config.dataset.name, config.dataset.config = "walkers", "vvi"
    config.frames = ml_collections.ConfigDict({"height": 64, "width": 32, **HALF})
    config.loading.cache = True
    config.backbone = ml_collections.ConfigDict(
        {"name": "walkers_vit_tiny", "checkpoint": "walkers_vit_tiny", "remat": False, "scan": False}
    )

    config.epochs = 16
    config.batch = ml_collections.ConfigDict({"num_identities": 24, "num_instances": 4, "seq_len": 2, "piece_len": 0})
    config.label_smoothing = 0.1
    # On unit features: a soft margin on raw ones can be satisfied by shrinking them to nothing.
    config.triplet = ml_collections.ConfigDict({"margin": 0.3, "soft_margin": False, "metric": "cosine", "weight": 0.2})
    config.optimizer = ml_collections.ConfigDict(
        {"name": "adamw", "backbone_lr": 3e-4, "head_lr": 9e-3, "weight_decay": 1e-4, "clip_norm": 5.0}
    )
    config.schedule = ml_collections.ConfigDict({"name": "cosine", "warmup_epochs": 1.0})
    config.augment = ml_collections.ConfigDict(
        {"crop": 3, "flip": 0.5, "erase": 0.2, "channel_exchange": 0.5, "infrared_mix": True}
        | {"contrast": 0.0, "gamma": 0.0, "negative": 0.0}
    )
    config.evaluation.update(
        {"clip_sampling": "packed", "seq_len": 6, "pool": "after", "flip": False, "distance": "cosine"}
    )
    return config
