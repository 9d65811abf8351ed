"""CLIP-ReID's released files: CLIP's towers, learned words, two necks and, with side information, a camera table."""

from __future__ import annotations

from typing import Any

from jaxreid.methods.released import Released, Row, Shapes, Sizes, clip


def rows(method: Any) -> list[Row]:
    """What VSLA-CLIP's files have as well."""
    shift = method.network.neck_shift
    return [
        *clip.image_tower(method.image),
        *clip.text_tower(*method.network.text),
        *clip.neck("bottleneck", "classifier", "last", shift),
        *clip.neck("bottleneck_proj", "classifier_proj", "projected", shift),
    ]


def _sizes(shapes: Shapes, config: Any) -> Sizes:
    return Sizes(clip.length(shapes, "classifier.weight"), clip.cameras(config.sie.columns, shapes))


def _settings(shapes: Shapes, config: Any) -> dict[str, Any]:
    return {**clip.tower_settings(shapes, config), **clip.side_settings(shapes, config), **clip.prompt_settings(shapes)}


RELEASED = Released(
    name="CLIP-ReID's released code",
    marks=("bottleneck_proj.weight", "prompt_learner.cls_ctx"),
    sizes=_sizes,
    settings=_settings,
    rows=lambda method: [*rows(method), *clip.side_table(method.config.sie.columns)],
    unused=clip.COUNTS,
)
