"""DinoGRL's released files, read together: the appearance model, PBMGE, and the gait model with its DINOv2."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxreid.backbones.layouts import BATCH_NORM, BOTTLENECK, CONVOLUTION, DINOV2, LINEAR, PLAIN_BATCH_NORM, TENSOR
from jaxreid.backbones.layouts import TORCHVISION_BOTTLENECK as THEIR_BOTTLENECK
from jaxreid.backbones.positions import bicubic_offset, resize_positions
from jaxreid.backbones.resnet import STEMS, ResNetConfig
from jaxreid.backbones.vit import ViTConfig
from jaxreid.methods.released import Released, Row, Shapes, Sizes, row, rows_of
from jaxreid.methods.released.clip import COUNTS, length

DINO, GAIT = "dinov2.dinov2.", "dinov2.gait_net."
CLASSES = "BNNecks.fc_bin"


def _tower(config: ViTConfig) -> list[Row]:
    """DINOv2, its position table brought to the grid as BigGait does when it runs."""

    def positions(table: np.ndarray) -> list[np.ndarray]:
        side = round((table.shape[1] - 1) ** 0.5)
        return [resize_positions(table[0], (side, side), config.grid, bicubic_offset)]

    return [
        Row(each.keys, each.paths, positions) if each.paths == ("dinov2/position_embedding",) else each
        for each in rows_of(DINOV2.entries(config, DINO), under="dinov2/")
    ]


def _bottlenecks(config: ResNetConfig, key: str, path: str) -> list[Row]:
    found = []
    for i, depth in enumerate(config.depths):
        for j in range(depth):
            pairs = list(zip(THEIR_BOTTLENECK, BOTTLENECK, strict=True))
            for (conv, norm), (own_conv, own_norm) in pairs if j == 0 else pairs[:-1]:
                theirs, ours = f"{key}.{i}.{j}", f"{path}/layer{i + 1}_{j}"
                found += row(f"{theirs}.{conv}", f"{ours}/{own_conv}", CONVOLUTION)
                found += row(f"{theirs}.{norm}", f"{ours}/{own_norm}", BATCH_NORM)
    return found


def _conv_norm(conv: str, norm: str, path: str) -> list[Row]:
    return [*row(conv, f"{path}/conv", CONVOLUTION), *row(norm, f"{path}/norm", BATCH_NORM)]


def _stem(key: str, path: str) -> list[Row]:
    block = f"{key}.forward_block"
    return [
        *_conv_norm(f"{block}.conv1.conv", f"{block}.bn1", f"{path}/first"),
        *_conv_norm(f"{block}.layer1.0.conv1", f"{block}.layer1.0.bn1", f"{path}/block_1"),
        *_conv_norm(f"{block}.layer1.0.conv2", f"{block}.layer1.0.bn2", f"{path}/block_2"),
    ]


def _heads(key: str, path: str, parts: int) -> list[Row]:
    """Matrices and necks of the parts; the norm's numbers are sorted by channel there, by part here."""

    def sorted_by_part(x: np.ndarray) -> list[np.ndarray]:
        return [x.reshape(-1, parts).T.reshape(-1)]

    norms = [
        Row(each.keys, each.paths, sorted_by_part)
        for each in row(f"{key}BNNecks.bn1d", f"{path}_necks/norm", BATCH_NORM)
    ]
    return [
        *row(f"{key}FCs.fc_bin", f"{path}_parts/kernel", TENSOR),
        *row(f"{key}{CLASSES}", f"{path}_necks/kernel", TENSOR),
        *norms,
    ]


def _exchange(key: str, path: str) -> list[Row]:
    def flat(x: np.ndarray) -> list[np.ndarray]:
        return [x.reshape(-1)]

    lifts = {"theta": "query", "phi": "context", "g.0": "value"}
    names = {f"{key}.{theirs}.weight": f"{ours}_kernel" for theirs, ours in lifts.items()}
    names |= {f"{key}.{theirs}.bias": f"{ours}_bias" for theirs, ours in lifts.items()}
    for theirs, ours in {"W1": "shared", "W2": "specific"}.items():
        names |= {f"{key}.{theirs}.0.weight": f"{ours}_kernel", f"{key}.{theirs}.0.bias": f"{ours}_bias"}
        names |= {f"{key}.{theirs}.1.weight": f"{ours}_norm_scale", f"{key}.{theirs}.1.bias": f"{ours}_norm_bias"}
        names |= {f"{key}.{theirs}.1.running_{name}": f"{ours}/{name}" for name in ("mean", "var")}
    return [Row((theirs,), (f"{path}/{ours}",), flat) for theirs, ours in names.items()]


def _rows(method: Any) -> list[Row]:
    c = method.network_config
    parts = sum(c.bins) + len(c.granularities)
    branch, fusion = "dinov2.{}_Branch", f"{GAIT}fusion.conv.forward_block"
    mask, denoising, texture = map(branch.format, ("Mask", "Denoising", "Appearance"))
    found = [
        *_bottlenecks(c.resnet, "share_encoder.resnet_conv", "appearance_trunk"),
        *_heads("", "appearance", parts),
        *_tower(c.dino),
        *row(f"{mask}.bn_s", "mask_branch/norm", PLAIN_BATCH_NORM),
        *row(f"{mask}.down_sampling", "mask_branch/down", LINEAR),
        *row(f"{mask}.up_sampling", "mask_branch/up", LINEAR),
        *row(f"{denoising}.bn_s", "part_branch/norm_tokens", PLAIN_BATCH_NORM),
        *row(f"{denoising}.down_sampling.0", "part_branch/first", LINEAR),
        *row(f"{denoising}.down_sampling.1", "part_branch/norm_hidden", PLAIN_BATCH_NORM),
        *row(f"{denoising}.down_sampling.3", "part_branch/second", LINEAR),
        *row(f"{texture}.bn_s", "texture_branch/norm_tokens", PLAIN_BATCH_NORM),
        *row(f"{texture}.down_sampling", "texture_branch/first", LINEAR),
        *row(f"{texture}.bn_t", "texture_branch/norm_hidden", PLAIN_BATCH_NORM),
        *_stem(f"{GAIT}pre_part", "part_stem"),
        *_stem(f"{GAIT}pre_rgb", "texture_stem"),
        *_conv_norm(f"{fusion}.0", f"{fusion}.1", "fusion/squeeze"),
        *_conv_norm(f"{fusion}.3", f"{fusion}.4", "fusion/mix"),
        *row(f"{fusion}.6", "fusion/score", CONVOLUTION),
        *_bottlenecks(c.resnet, f"{GAIT}post_backbone.resnet_conv", "gait_trunk"),
        *_heads(GAIT, "gait", parts),
        *_exchange("enhance_app_net_3", "appearance_exchange"),
        *_exchange("enhance_shape_net_3", "gait_exchange"),
    ]
    for number, stem in enumerate(STEMS, 1):
        key = f"image_encoder{number}.resnet_conv"
        found += _conv_norm(f"{key}.0", f"{key}.1", f"appearance_trunk/{stem}")
    return found


def _settings(shapes: Shapes, config: Any) -> dict[str, Any]:
    """As published; which strips PBMGE took, the number of parts with a neck tells only as far as it fits."""
    del config
    return {
        "streams": "both",
        "gait_input": "maps",
        "pbmge.direction": "both",
        "stem_relu": False,
        "map_channels": length(shapes, "dinov2.Denoising_Branch.down_sampling.3.weight"),
        "part_width": length(shapes, "FCs.fc_bin", 2),
    }


RELEASED = Released(
    name="DinoGRL's released code",
    marks=("share_encoder.resnet_conv.0.0.conv1.weight", r"enhance_app_net_3.theta.weight", f"{GAIT}FCs.fc_bin"),
    sizes=lambda shapes, config: Sizes(length(shapes, CLASSES, 2)),
    settings=_settings,
    rows=_rows,
    unused={
        **COUNTS,
        r"dinov2\.dinov2\.mask_token": "what DINOv2 put in place of patches in its own training",
        r"dinov2\.(Mask|Denoising)_Branch\.bn_t\..*": "a norm of the branch that the released code never calls",
    },
)
