"""Any image tower as an encoder of frames: by name, one feature per frame.

ViT-B/16, …, walkers_vit_tiny      CLIP's form (jaxreid.backbones.clip)
dinov2:ViT-S/14, …                 DINOv2 (jaxreid.backbones.dinov2)
imagenet:ViT-B/16                  ImageNet (jaxreid.backbones.imagenet)
resnet50, resnet50_two_stem        ResNet-50 with last stride 1; a stem for each modality (jaxreid.backbones.resnet)
resnet_tiny, resnet_tiny_two_stem  four narrow bottlenecks for `walkers`, whose weights are walkers_resnet_tiny
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.backbones import dinov2, imagenet
from jaxreid.backbones.clip import VISION_TOWERS, vision_config
from jaxreid.backbones.dinov2 import dinov2_config
from jaxreid.backbones.imagenet import imagenet_config
from jaxreid.backbones.resnet import ResNet, ResNetConfig
from jaxreid.backbones.text import TextConfig, text_config
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.errors import UserError

EncoderConfig = ViTConfig | ResNetConfig

RESNETS = {
    "resnet50": ResNetConfig(),
    "resnet50_two_stem": ResNetConfig(stems=2),
    "resnet_tiny": ResNetConfig(depths=(1, 1, 1, 1), width=16),
    "resnet_tiny_two_stem": ResNetConfig(depths=(1, 1, 1, 1), width=16, stems=2),
}
FAMILIES = {"": vision_config, "dinov2": dinov2_config, "imagenet": imagenet_config}
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}  # compute types


def known_encoders() -> list[str]:
    """The names of `encoder_config`."""
    towers = {"dinov2": {**dinov2.TOWERS, **dinov2.SMALL}, "imagenet": imagenet.TOWERS}
    prefixed = [f"{family}:{name}" for family, names in towers.items() for name in names]
    return [*VISION_TOWERS, *prefixed, *RESNETS]


def encoder_config(
    name: str, image_size: tuple[int, int], precision: str, remat: bool = False, scan: bool = False, stride: int = 0
) -> EncoderConfig:
    """The network of a name, for frames of `image_size` (height, width).

    With `remat` it computes its blocks again in the backward pass, with `scan` it compiles one block for a run of equal
    ones; neither changes parameters or results. `stride`: pixels from one patch of a transformer to the next, 0 =
    patches do not overlap.

    Raises:
      UserError: an unknown name, a size that the tower does not take, or `scan` or a stride for a ResNet.
    """
    dtype: Any = jnp.dtype(precision)
    if name in RESNETS:
        if scan:
            raise UserError(f"backbone.scan: {name} has no equal blocks to loop over; set --config.backbone.scan=False")
        if stride:
            raise UserError(f"backbone.stride={stride}, but {name!r} has no patches; set it to 0")
        return dataclasses.replace(RESNETS[name], dtype=dtype, remat=remat)
    family, tower = name.split(":", 1) if ":" in name else ("", name)
    if family not in FAMILIES:
        raise UserError(
            f"backbone.name {name!r}: unknown family {family!r}; known: {', '.join(filter(None, FAMILIES))}"
        )
    return FAMILIES[family](tower, image_size, stride=stride or None, dtype=dtype, remat=remat, scan=scan)


def backbone_config(options: Any, image_size: tuple[int, int], precision: str) -> EncoderConfig:
    """The network of a config's section `backbone` (name, remat, scan, stride); see `encoder_config`."""
    return encoder_config(options.name, image_size, precision, options.remat, options.scan, options.stride)


def clip_configs(options: Any, image_size: tuple[int, int], precision: str) -> tuple[ViTConfig, TextConfig]:
    """As `backbone_config`, for methods that need a CLIP: its image tower, and the text tower that belongs to it.

    Raises:
      UserError: the network has no joint space with text.
    """
    image = backbone_config(options, image_size, precision)
    if not isinstance(image, ViTConfig) or image.projection is None:
        raise UserError(f"backbone.name={options.name!r} has no joint space with a text tower; take a CLIP")
    return image, text_config(options.name, dtype=image.dtype, remat=options.remat, scan=options.scan)


def feature_width(config: EncoderConfig) -> int:
    """Length of a frame's feature."""
    return config.channels if isinstance(config, ResNetConfig) else config.width


def encode_frames(
    config: EncoderConfig, frames: jax.Array, mask: jax.Array, modality: jax.Array, train: bool, name: str
) -> jax.Array:
    """Clips of normalized frames → frame features; called inside a compact module, whose submodule `name` it makes.

    The class token after the last norm, or the generalised mean of the last map.

    Args:
      frames: [B, T, H, W, 3]; mask: bool[B, T], frames that count; modality: i32[B].

    Returns:
      f32[B, T, D].
    """
    clips, length = frames.shape[:2]
    flat = frames.reshape(clips * length, *frames.shape[2:])
    if isinstance(config, ResNetConfig):
        module: nn.Module = ResNet(config, name=name)
        found = module(flat, mask.reshape(-1), jnp.repeat(modality, length), train=train)["pooled"]
    else:
        found = ViT(config, name=name)(flat, train=train, class_token_only=True)["class_token"]
    return found.reshape(clips, length, -1)
