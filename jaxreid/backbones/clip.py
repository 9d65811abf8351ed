"""CLIP's image towers by name: the published ones and the one of this package."""

from __future__ import annotations

from typing import Any

from jaxreid.backbones.vit import ViTConfig, named_config

# Towers at their native size. OpenAI's weights need quick-GELU; towers of the same shape that were
# trained on LAION use the exact GELU: vision_config(name, activation="gelu").
VISION_TOWERS: dict[str, ViTConfig] = {
    "ViT-B/32": ViTConfig(width=768, depth=12, heads=12, patch=32, image_size=(224, 224), projection=512),
    "ViT-B/16": ViTConfig(width=768, depth=12, heads=12, patch=16, image_size=(224, 224), projection=512),
    "ViT-L/14": ViTConfig(width=1024, depth=24, heads=16, patch=14, image_size=(224, 224), projection=768),
    "ViT-L/14@336": ViTConfig(width=1024, depth=24, heads=16, patch=14, image_size=(336, 336), projection=768),
    # The packaged starting tower for `walkers`, made by `jaxreid make-tower`.
    "walkers_vit_tiny": ViTConfig(width=128, depth=4, heads=4, patch=8, image_size=(64, 32), projection=64),
}


def vision_config(
    name: str, image_size: tuple[int, int] | None = None, stride: int | None = None, **changes: Any
) -> ViTConfig:
    """The configuration of a CLIP image tower of `VISION_TOWERS`.

    `image_size` (height, width) in pixels, None for the native size; `stride` in pixels, None for the patch
    size (12 is CLIP-ReID's overlapping variant of ViT-B/16); `changes` are any other fields of `ViTConfig`.
    Raises UserError on an unknown name.
    """
    return named_config(VISION_TOWERS, "CLIP image tower", name, image_size, stride, **changes)
