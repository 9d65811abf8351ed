"""Values that configs share: of towers, and of data sets. What a config is composed of is in `jaxreid.config.compose`.

A tower says how its frames look and how much of it fits; a data set where it is, and how its own code draws test clips.
"""

from __future__ import annotations

from typing import Any

IMAGENET = {"frames.mean": (0.485, 0.456, 0.406), "frames.std": (0.229, 0.224, 0.225)}
HALF = {"frames.mean": (0.5, 0.5, 0.5), "frames.std": (0.5, 0.5, 0.5)}


def _tower(
    name: str, checkpoint: str, size: tuple[int, int], normalization: dict[str, Any] = IMAGENET, small: bool = False
) -> dict[str, Any]:
    return {
        "backbone.name": name,
        "backbone.checkpoint": checkpoint,
        "frames.height": size[0],
        "frames.width": size[1],
        **normalization,
        "precision": "float32" if small else "bfloat16",
        "extraction_batch_size": 32 if small else 128,  # 32 clips of a small tower are what a CPU's caches hold
    }


# Frames of the published towers are as person re-identification crops them.
TOWERS: dict[str, dict[str, Any]] = {
    "walkers_clip": _tower("walkers_vit_tiny", "walkers_vit_tiny", (64, 32), HALF, small=True),
    "walkers_imagenet": _tower("imagenet:walkers_vit_tiny", "walkers_imagenet_tiny", (64, 32), HALF, small=True),
    "walkers_dinov2": _tower("dinov2:walkers_vit_tiny", "walkers_dinov2_tiny", (64, 32), HALF, small=True),
    "clip_vit_b16": _tower("ViT-B/16", "hf:openai/clip-vit-base-patch16", (256, 128)),
    "clip_vit_l14": _tower("ViT-L/14", "hf:openai/clip-vit-large-patch14", (224, 112)),
    "dinov2_vit_s14": _tower("dinov2:ViT-S/14", "dinov2/vits14", (252, 126)),
    "imagenet_vit_b16": _tower("imagenet:ViT-B/16", "timm/jx_vit_base_p16_224", (256, 128)),
    "no_tower": _tower("", "", (64, 32), HALF, small=True),  # of methods that see no pictures
    "resnet50": _tower("resnet50", "torchvision/resnet50-v1", (256, 128)),
    "resnet50_two_stem": _tower("resnet50_two_stem", "torchvision/resnet50-v1", (288, 144)),
}


def _drawn(config: str) -> dict[str, Any]:
    """A configuration of `walkers`: small enough to be kept in memory, and tested on all frames."""
    return {
        "dataset.name": "walkers",
        "dataset.config": config,
        "loading.cache": True,
        "evaluation.clip_sampling": "packed",
        "evaluation.seq_len": 6,
    }


def _published(name: str, clip_sampling: str, seq_len: int, **changes: Any) -> dict[str, Any]:
    """A published data set, with the test clips of its own code."""
    return {
        "dataset.name": name,
        "dataset.config": "",
        "loading.threads": 16,
        "evaluation.clip_sampling": clip_sampling,
        "evaluation.seq_len": seq_len,
        **{f"evaluation.{key}": value for key, value in changes.items()},
    }


DATASETS: dict[str, dict[str, Any]] = {
    "walkers": _drawn("vvi"),
    "walkers_visible": _drawn("visible"),
    "walkers_captioned": _drawn("captioned"),
    "walkers_teams": _drawn("teams"),
    "walkers_clothes": _drawn("clothes"),
    "folder": _drawn("") | {"dataset.name": "folder"},
    "mars": _published("mars", "chunk_first", 8),
    "ls_vid": _published("ls_vid", "chunk_first", 8),
    "ilids_vid": _published("ilids_vid", "chunk_first", 8),
    "prid2011": _published("prid2011", "chunk_first", 8),
    "hitsz_vcm": _published("hitsz_vcm", "chunk_first", 6),
    # Its own code re-ranks with other constants than the authors of re-ranking.
    "bupt_campus": _published("bupt_campus", "linspace", 10, rerank_k1=3, rerank_k2=1, rerank_lambda=0.7),
    "sports_vreid": _published("sports_vreid", "chunk_first", 8),
    "dance_vreid": _published("dance_vreid", "chunk_first", 8),
    "detreidx": _published("detreidx", "chunk_first", 8),
    "ag_vpreid": _published("ag_vpreid", "chunk_first", 8),
    "g2a_vreid": _published("g2a_vreid", "floor_first", 8),
    "biwi": _published("biwi", "chunk_first", 6),
    "ias_lab": _published("ias_lab", "chunk_first", 6),
    "ks20": _published("ks20", "chunk_first", 6),
    "mevid": _published("mevid", "recombine", 16, stride=4),
    "ccvid": _published("ccvid", "recombine", 16, stride=4),
}
