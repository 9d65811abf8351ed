"""VSLA-CLIP's released files: CLIP-ReID's, with two adapters in every block and shared words; and with prompts of the
platforms where it was trained on several."""

from __future__ import annotations

from typing import Any

from jaxreid.backbones.layouts import LINEAR, STACKED_ATTENTION, blocks
from jaxreid.methods.released import Released, Row, Shapes, Sizes, clip, clip_reid, rows_of

OVER_FRAMES = (
    ("dat_cross.down", "beside_attention/down", LINEAR),
    (
        "dat_cross.temporal_block.temporal_attn.in_proj",
        ("beside_attention/query", "beside_attention/key", "beside_attention/value"),
        STACKED_ATTENTION,
    ),
    ("dat_cross.temporal_block.temporal_attn.out_proj", "beside_attention/out", LINEAR),
    ("dat_cross.up", "beside_attention/up", LINEAR),
)
OF_TOKENS = (("dat.down", "beside_mlp/down", LINEAR), ("dat.up", "beside_mlp/up", LINEAR))
FIRST = f"{clip.BLOCKS}.0"


def rows(method: Any) -> list[Row]:
    adapters = method.config.adapters
    added = (*(OVER_FRAMES if adapters.temporal else ()), *OF_TOKENS) if adapters.width else ()
    prompts = Row(("cv_embed",), ("platform_prompts/table",), lambda table: [table.transpose(0, 2, 1, 3)])
    deep = method.config.platform_prompts.blocks
    return [
        *clip_reid.rows(method),
        *rows_of(blocks(method.image, clip.BLOCKS, added), under="image_tower/"),
        *([prompts] if deep else clip.side_table(method.config.sie.columns)),
    ]


def sizes(shapes: Shapes, config: Any) -> Sizes:
    deep = config.platform_prompts
    columns, axis = (deep.columns, 2) if deep.blocks else (config.sie.columns, 0)
    return Sizes(clip.length(shapes, "classifier.weight"), clip.cameras(columns, shapes, axis))


def settings(shapes: Shapes, config: Any) -> dict[str, Any]:
    """The tensor `cv_embed` is of prompts [blocks, length, cameras, width], or of side information [cameras, width]."""
    table = shapes.get("cv_embed", ())
    if len(table) == 4:
        added = {"platform_prompts.blocks": table[0], "platform_prompts.length": table[1], "sie.columns": ()}
    else:
        added = {"platform_prompts.blocks": 0, **clip.side_settings(shapes, config)}
    return {
        **clip.tower_settings(shapes, config),
        "adapters.width": clip.length(shapes, f"{FIRST}.dat.down.weight"),
        "adapters.temporal": f"{FIRST}.dat_cross.down.weight" in shapes,
        **added,
        **clip.prompt_settings(shapes),
    }


RELEASED = Released(
    name="VSLA-CLIP's released code",
    marks=(*clip_reid.RELEASED.marks, f"{FIRST}.dat.down.weight"),
    sizes=sizes,
    settings=settings,
    rows=rows,
    unused=clip.COUNTS,
)
