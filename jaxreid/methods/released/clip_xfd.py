"""The released files of "Scale-Aware Vision-Language Adaptation", of its earlier form on ViT-B/16: VSLA-CLIP's with a
platform's prompts, and the scores of two attention poolings."""

from __future__ import annotations

from typing import Any

from jaxreid.backbones.layouts import PROJECTION
from jaxreid.methods.released import Released, Row, Shapes, clip, row, vsla_clip

POOLINGS = {"temporal_attn": "pool", "temporal_attn_proj": "pool_joint"}


def _rows(method: Any) -> list[Row]:
    scores = (each for key, path in POOLINGS.items() for each in row(f"{key}.fc", f"{path}/score", PROJECTION))
    return [*vsla_clip.rows(method), *scores]


def _settings(shapes: Shapes, config: Any) -> dict[str, Any]:
    return {**vsla_clip.settings(shapes, config), "adapters.tokens": True, "pooling": "attention", "released": True}


RELEASED = Released(
    name="the released code of Scale-Aware Vision-Language Adaptation",
    marks=(*vsla_clip.RELEASED.marks, *(f"{key}.fc.weight" for key in POOLINGS)),
    sizes=vsla_clip.sizes,
    settings=_settings,
    rows=_rows,
    unused={
        **clip.COUNTS,
        r"temporal_attn(_proj)?\.fc\.bias": "a shift of all frames' scores, which a softmax ignores",
    },
)
