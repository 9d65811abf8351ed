"""The small CLIP of `walkers`: a text tower, and the joint space of the image tower, learned from captions.

Preset: walkers, on identities that no other configuration of `walkers` shows. The image tower's blocks are locked, so
that what starts from them does not change.
"""

import ml_collections

from jaxreid.config import HALF, base_config, unknown_preset

PRESETS = ("walkers",)


def get_config(preset: str = "walkers") -> ml_collections.ConfigDict:
    preset = preset or "walkers"
    if preset not in PRESETS:
        raise unknown_preset(preset, PRESETS)
    config = base_config(__file__, "language_image", preset)
    config.dataset.name, config.dataset.config = "walkers", "captioned"
    config.frames = ml_collections.ConfigDict({"height": 64, "width": 32, **HALF})
    config.loading.cache = True
    config.extraction_batch_size = 32
    config.backbone = ml_collections.ConfigDict(
        {"name": "walkers_vit_tiny", "checkpoint": "walkers_vit_tiny", "remat": False, "scan": False}
    )
    # pretrained: whether the text tower starts from backbone.checkpoint as well; wordings: of a caption; keep: the
    # probability that a part of it stays in all but the first of them.
    config.text = ml_collections.ConfigDict({"pretrained": False, "wordings": 8, "keep": 0.7})

    config.epochs = 24
    config.batch = ml_collections.ConfigDict({"batch_size": 128, "seq_len": 1})
    config.optimizer = ml_collections.ConfigDict(
        {"backbone_lr": 0.0, "head_lr": 1e-3, "text_lr": 1e-3, "weight_decay": 0.1, "clip_norm": 1.0}
    )
    config.schedule = ml_collections.ConfigDict({"name": "cosine", "warmup_epochs": 1.0})
    config.augment = ml_collections.ConfigDict(
        {"crop": 3, "flip": 0.5, "brightness": 0.2, "contrast": 0.3, "gamma": 0.3}
    )
    config.evaluation.update(
        {"clip_sampling": "packed", "seq_len": 6, "pool": "after", "flip": False, "distance": "cosine"}
    )
    return config
