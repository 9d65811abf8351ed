"""Vision transformers trained on ImageNet, by name, as KeyRe-ID (after TransReID) takes them from timm."""

from __future__ import annotations

from typing import Any

from jaxreid.backbones.vit import ViTConfig, named_config

TOWERS: dict[str, ViTConfig] = {
    "ViT-B/16": ViTConfig(
        width=768,
        depth=12,
        heads=12,
        patch=16,
        image_size=(224, 224),
        conv_bias=True,
        pre_norm_embeddings=False,
        activation="gelu",
        eps=1e-6,
    ),
    # The packaged stand-in for `walkers`, made by `jaxreid make-tower`.
    "walkers_vit_tiny": ViTConfig(
        width=128,
        depth=4,
        heads=4,
        patch=8,
        image_size=(64, 32),
        conv_bias=True,
        pre_norm_embeddings=False,
        activation="gelu",
        eps=1e-6,
    ),
}


def imagenet_config(
    name: str, image_size: tuple[int, int] | None = None, stride: int | None = None, **changes: Any
) -> ViTConfig:
    """The configuration of a tower of `TOWERS`, with the arguments of `clip.vision_config`."""
    return named_config(TOWERS, "ImageNet tower", name, image_size, stride, **changes)
