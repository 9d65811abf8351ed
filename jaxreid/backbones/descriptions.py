"""What a file of weights says of its network: facts that no shape shows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jaxreid.backbones.kinds import Config
from jaxreid.backbones.skeleton_graph import SkeletonConfig
from jaxreid.backbones.tensors import (
    FOLDER_CONFIGS,
    FOLDER_FILES,
    CheckpointError,
    read_json,
    read_metadata,
    weights_file,
)
from jaxreid.backbones.text import TextConfig
from jaxreid.backbones.vit import ViTConfig

# Fields of a configuration that change what the weights compute but leave no trace in any shape.
SILENT_FIELDS = ("heads", "activation", "eps")


METADATA_KEYS = {"text": "jaxreid_text", "skeleton": "jaxreid_skeleton", "image": "jaxreid_vit"}


# By their names in a config.json, and what they are where it doesn't name them.
HUGGING_FACE_FIELDS = {"num_attention_heads": "heads", "hidden_act": "activation", "layer_norm_eps": "eps"}


CLIP_DEFAULTS = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}


HUGGING_FACE_DEFAULTS = {
    "clip_vision_model": CLIP_DEFAULTS | {"num_attention_heads": 12},
    "clip_text_model": CLIP_DEFAULTS | {"num_attention_heads": 8},
    "dinov2": {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 12},
    "dinov2_with_registers": {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 12},
}


def read_description(path: str | os.PathLike, config: Config) -> dict[str, Any]:
    """What is written beside the weights about the network they belong to, by the names of its configuration.

    Any of `heads`, `activation`, `eps` and `grid`, from the metadata that `save_params` writes or from the config of
    a Hugging Face or OpenCLIP folder; empty where nothing is known. `config` only says which half of a CLIP is meant.
    A wrong activation or number of heads costs accuracy without any other sign, so `load` compares them.
    """
    file = weights_file(Path(path))
    description = json.loads(read_metadata(file).get(metadata_key(config), "{}"))
    if file.name in FOLDER_FILES:  # by which the config beside it is known to be its own
        hugging_face, open_clip = (file.parent / name for name in FOLDER_CONFIGS)
        if hugging_face.exists():
            description |= _hugging_face_description(read_json(hugging_face), config, file)
        if open_clip.exists():
            description |= _open_clip_description(read_json(open_clip).get("model_cfg", {}), config)
    return description


def metadata_key(config: Config) -> str:
    kinds = {TextConfig: "text", SkeletonConfig: "skeleton"}
    return METADATA_KEYS[kinds.get(type(config), "image")]


def _hugging_face_description(stored: dict[str, Any], config: Config, path: Path) -> dict[str, Any]:
    kind = stored.get("model_type")
    if kind == "clip":
        kind = "clip_text_model" if isinstance(config, TextConfig) else "clip_vision_model"
        stored = stored.get("text_config" if isinstance(config, TextConfig) else "vision_config") or {}
    if kind == "resnet" and stored.get("downsample_in_bottleneck"):
        raise CheckpointError(f"{path} has the stride in the first convolution of a bottleneck; here the second has it")
    if kind not in HUGGING_FACE_DEFAULTS:
        return {}
    stored = HUGGING_FACE_DEFAULTS[kind] | stored
    if stored.get("use_swiglu_ffn"):  # which does not use the activation that it names
        stored["hidden_act"] = "silu"
    return {ours: stored[theirs] for theirs, ours in HUGGING_FACE_FIELDS.items()}


def _open_clip_description(model: dict[str, Any], config: Config) -> dict[str, Any]:
    description: dict[str, Any] = {"activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    image, text = model.get("vision_cfg") or {}, model.get("text_cfg") or {}
    if isinstance(config, TextConfig) and "heads" in text:
        description["heads"] = text["heads"]
    elif isinstance(config, ViTConfig) and "width" in image:
        description["heads"] = image["width"] // image.get("head_width", 64)
    return description
