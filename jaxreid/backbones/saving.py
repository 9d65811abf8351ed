"""Towers of this library out: under the names of Hugging Face, as one file or as a folder of `transformers`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from jaxreid.backbones.descriptions import SILENT_FIELDS, metadata_key
from jaxreid.backbones.kinds import Config, shapes_of, summary
from jaxreid.backbones.layouts import (
    BIG_GAIT,
    HUGGING_FACE_DINOV2,
    HUGGING_FACE_IMAGE,
    HUGGING_FACE_TEXT,
    SKELETON,
    TIMM,
    TORCHVISION_RESNET,
    Layout,
)
from jaxreid.backbones.mask_branch import MaskBranchConfig
from jaxreid.backbones.resnet import ResNetConfig
from jaxreid.backbones.skeleton_graph import SkeletonConfig
from jaxreid.backbones.swinir import SwinIRConfig
from jaxreid.backbones.swinir_layout import SWINIR
from jaxreid.backbones.tensors import CheckpointError, Tensors, listing
from jaxreid.backbones.text import TextConfig
from jaxreid.backbones.vit import ViTConfig
from jaxreid.errors import some
from jaxreid.files import write_json, written_aside


def to_tensors(params: Mapping[str, Any], config: Config, layout: Layout | None = None) -> Tensors:
    """The inverse of `to_variables`: tensors under Hugging Face names, or in the format `layout`, bit for bit the same
    numbers.

    Those of CLIP or, for an image tower without CLIP's first norm, of DINOv2. The two towers of a CLIP have different
    keys: `to_tensors(…) | to_tensors(…)` is a whole one but for its logit_scale. Of a ResNet, `params` are its
    variables, {"params": …, "batch_stats": …}, and the names torchvision's. Raises CheckpointError for a tower that the
    format can't hold, or a tree that is not that of `config`.
    """
    if isinstance(config, ResNetConfig) and config.stems > 1:
        raise CheckpointError(f"{summary(config)} can't be written: no format has a stem for each modality")
    layout, prefix = _usual_layout(config) if layout is None else (layout, layout.prefixes[0])
    shapes = shapes_of(config)
    trees = [params[name] for name in shapes] if isinstance(config, ResNetConfig) else [params]
    leaves = {path: leaf for tree in trees for path, leaf in flatten_dict(tree, sep="/").items()}
    arrays = {path: np.asarray(leaf, np.float32) for path, leaf in leaves.items()}
    expected = {path: shape for collection in shapes.values() for path, shape in collection.items()}
    entries = layout.entries(config, prefix)
    held = {path for entry in entries for path in entry.paths}
    wrong = [
        f"{p} {arrays[p].shape} instead of {expected[p]}"
        for p in arrays.keys() & expected.keys()
        if arrays[p].shape != expected[p]
    ]
    problems = (
        listing("missing parameters", expected.keys() - arrays.keys())
        + listing("parameters that this tower does not have", arrays.keys() - expected.keys())
        + listing("other shapes", wrong)
        + listing(f"parameters that {layout.name} has no key for", expected.keys() - held)
        + listing(f"parameters that {layout.name} needs", held - expected.keys())
    )
    if problems:
        raise CheckpointError(f"the tree can't be written as {summary(config)}:{problems}")
    return {
        entry.key: np.ascontiguousarray(entry.arrangement.write(*(arrays[path] for path in entry.paths)))
        for entry in entries
    }


def _usual_layout(config: Config) -> tuple[Layout, str]:
    if isinstance(config, ResNetConfig):
        return TORCHVISION_RESNET, ""
    if isinstance(config, SwinIRConfig):
        return SWINIR, "params."
    if isinstance(config, SkeletonConfig):
        return SKELETON, SKELETON.prefixes[0]
    if isinstance(config, MaskBranchConfig):
        return BIG_GAIT, "Mask_Branch."
    if isinstance(config, TextConfig):
        return HUGGING_FACE_TEXT, "text_model."
    return (HUGGING_FACE_IMAGE, "vision_model.") if config.pre_norm_embeddings else (HUGGING_FACE_DINOV2, "")


def save_params(
    path: str | os.PathLike, *towers: tuple[Mapping[str, Any], Config], logit_scale: float | None = None
) -> None:
    """Writes towers to a safetensors file (aside, then renamed), with what `read_description` reads.

    `towers` are (params, config) pairs: one tower (of a ResNet its variables), or CLIP's two, which have the
    `logit_scale` beside them.
    """
    tensors: Tensors = {}
    metadata = {}
    for params, config in towers:
        # ImageNet's vision transformers have names in timm only.
        plain = isinstance(config, ViTConfig) and not config.pre_norm_embeddings and config.layer_scale is None
        tensors |= to_tensors(params, config, TIMM if plain else None)
        if isinstance(config, ResNetConfig):
            continue
        description = {name: getattr(config, name) for name in SILENT_FIELDS}
        if isinstance(config, ViTConfig):
            description["grid"] = config.grid
        metadata[metadata_key(config)] = json.dumps(description)
    if logit_scale is not None:
        tensors["logit_scale"] = np.asarray(logit_scale, np.float32)
    _write(Path(path), tensors, metadata)


def save_folder(
    folder: str | os.PathLike,
    *towers: tuple[Mapping[str, Any], ViTConfig | TextConfig],
    logit_scale: float = math.log(1 / 0.07),
) -> None:
    """Writes a folder that `transformers` loads: model.safetensors and config.json.

    `towers` are (params, config) pairs: one image tower, of CLIP or DINOv2, one text tower, or CLIP's two, which have
    the `logit_scale` beside them. Raises CheckpointError as `to_tensors` does, and for what its config can't say: an
    overlapping stride, a grid that is not square.
    """
    tensors: Tensors = {}
    configs: dict[str, dict[str, Any]] = {}
    for params, config in towers:
        tensors |= to_tensors(params, config)
        described = _hugging_face_config(config)
        configs[described["model_type"]] = described
    if configs.keys() == {"clip_vision_model", "clip_text_model"}:
        tensors["logit_scale"] = np.asarray(logit_scale, np.float32)
        image, text = configs["clip_vision_model"], configs["clip_text_model"]
        if image.get("projection_dim") != text["projection_dim"]:
            raise CheckpointError(f"a CLIP of joint dimensions {towers[0][1].projection} and {towers[1][1].projection}")
        whole = {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": text["projection_dim"]}
        content = whole | {"vision_config": image, "text_config": text}
    elif len(towers) == len(configs) == 1:
        (content,) = configs.values()
    else:
        raise CheckpointError(f"no model of transformers has the towers {', '.join(configs)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "model.safetensors", tensors, {})
    write_json(folder / "config.json", content)


def _hugging_face_config(config: ViTConfig | TextConfig) -> dict[str, Any]:
    common: dict[str, Any] = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "hidden_act": config.activation,
        "layer_norm_eps": config.eps,
    }
    if isinstance(config, TextConfig):
        return common | {
            "model_type": "clip_text_model",
            "architectures": ["CLIPTextModelWithProjection"],
            "intermediate_size": config.hidden,
            "projection_dim": config.projection,
            "vocab_size": config.vocabulary,
            "max_position_embeddings": config.context,
            "bos_token_id": config.vocabulary - 2,
            "eos_token_id": config.vocabulary - 1,
        }
    rows, columns = config.grid
    if rows != columns or config.patch_stride != config.patch:
        raise CheckpointError(
            f"Hugging Face's config describes square grids of patches that do not overlap, not {rows}×{columns} with "
            f"patches of {config.patch} every {config.patch_stride} pixels; save_params keeps it"
        )
    common |= {"image_size": rows * config.patch, "patch_size": config.patch}
    if config.pre_norm_embeddings:
        return common | {
            "model_type": "clip_vision_model",
            "architectures": ["CLIPVisionModelWithProjection" if config.projection else "CLIPVisionModel"],
            "intermediate_size": config.hidden,
            **({"projection_dim": config.projection} if config.projection else {}),
        }
    ratio = int(config.mlp_ratio) if config.mlp_ratio == int(config.mlp_ratio) else config.mlp_ratio
    common |= {"mlp_ratio": ratio, "use_swiglu_ffn": config.gated_mlp}
    if config.gated_mlp:
        common["hidden_act"] = "gelu"  # named and not used
    if config.register_tokens:
        return common | {
            "model_type": "dinov2_with_registers",
            "architectures": ["Dinov2WithRegistersModel"],
            "num_register_tokens": config.register_tokens,
        }
    return common | {"model_type": "dinov2", "architectures": ["Dinov2Model"]}


def _write(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    broken = sorted(name for name, x in tensors.items() if not np.isfinite(np.asarray(x, np.float32)).all())
    if broken:  # which `to_variables` would refuse
        raise CheckpointError(f"{path} is not written: not finite are {some(broken)}; take an earlier checkpoint")
    with written_aside(path) as aside:
        safetensors.numpy.save_file(tensors, aside, metadata={"format": "pt"} | metadata)
