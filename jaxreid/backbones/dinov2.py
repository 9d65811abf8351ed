"""DINOv2's towers by name.

Towers with registers have four more tokens, without positions, between class token and patches; `patch_tokens` leaves
them out. The mask token of the checkpoints belongs to their training and is no parameter here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxreid.backbones.vit import ViTConfig, named_config
from jaxreid.errors import UserError


def _tower(width: int, depth: int, registers: int, activation: str, gated_mlp: bool) -> ViTConfig:
    return ViTConfig(
        width=width,
        depth=depth,
        heads=width // 64,
        patch=14,
        image_size=(518, 518),
        conv_bias=True,
        pre_norm_embeddings=False,
        layer_scale=1.0,
        register_tokens=registers,
        eps=1e-6,
        activation=activation,
        gated_mlp=gated_mlp,
    )


# At the size of pre-training: 37 × 37 patches. "_reg4" towers have registers.
TOWERS: dict[str, ViTConfig] = {
    f"ViT-{size}/14{suffix}": _tower(width, depth, registers, activation, gated)
    for suffix, registers in (("", 0), ("_reg4", 4))
    for size, width, depth, activation, gated in (
        ("S", 384, 12, "gelu", False),
        ("B", 768, 12, "gelu", False),
        ("L", 1024, 24, "gelu", False),
        ("g", 1536, 40, "silu", True),
    )
}
# The packaged stand-in for `walkers`, made by `jaxreid make-tower`.
SMALL = {
    "walkers_vit_tiny": dataclasses.replace(_tower(128, 4, 0, "gelu", False), heads=4, patch=8, image_size=(64, 32))
}


def dinov2_config(name: str, image_size: tuple[int, int] | None = None, **changes: Any) -> ViTConfig:
    """The configuration of a tower of `TOWERS` or `SMALL`.

    `image_size` (height, width) in pixels, None for that of pre-training; `changes` are any other fields of
    `ViTConfig`. Raises UserError on an unknown name, and on sides that are no multiples of a patch: DINOv2 takes none.
    """
    config = named_config(TOWERS | SMALL, "DINOv2 tower", name, image_size, **changes)
    if any(side % config.patch for side in config.image_size):
        raise UserError(f"DINOv2 {name}: image_size {config.image_size} is not in multiples of {config.patch}")
    return config
