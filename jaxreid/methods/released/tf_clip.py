"""TF-CLIP's released files, of two architectures: the published code's (MARS) and an older one with a simpler SSP
(LS-VID, iLIDS-VID), whose SSP and TMD had the names that the published optimizer still looks for."""

from __future__ import annotations

from typing import Any

from jaxreid.backbones.layouts import LINEAR, NORM, OPENAI_BLOCK, PROJECTION, STACKED_ATTENTION, Kind
from jaxreid.methods.released import Released, Row, Shapes, Sizes, clip, row

# SSP: around its layers, and an attention of a layer.
AROUND: dict[str, tuple[str, Kind]] = {
    "memory_proj.0": ("tokens_in", NORM),
    "memory_proj.1": ("tokens", LINEAR),
    "memory_proj.2": ("tokens_out", NORM),
    "text_proj.0": ("bank_in", NORM),
    "text_proj.1": ("bank", LINEAR),
    "out_proj.0": ("change_in", NORM),
    "out_proj.1": ("change", LINEAR),
}
SIMPLE: dict[str, tuple[str, Kind]] = {"norm": ("tokens_in", NORM)}
ATTENTION: dict[str, tuple[str, Kind]] = {
    "q_proj": ("query", PROJECTION),
    "k_proj": ("key", PROJECTION),
    "v_proj": ("value", PROJECTION),
    "proj": ("out", LINEAR),
}
TMD = (
    ("message_fc", "summarise", LINEAR),
    ("message_ln", "norm_frames", NORM),
    ("message_attn.in_proj", ("over_frames/query", "over_frames/key", "over_frames/value"), STACKED_ATTENTION),
    ("message_attn.out_proj", "over_frames/out", LINEAR),
)


def _below(path: str, paths: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{path}/{each}" for each in ((paths,) if isinstance(paths, str) else paths))


def _ssp(depth: int, simple: bool) -> list[Row]:
    layers: dict[str, tuple[str, Kind]] = {}
    attentions = ("cross",) if simple else ("self", "cross")
    norms = {"norm1": "cross", "norm3": "mlp"} if simple else {"norm1": "self", "norm2": "cross", "norm3": "mlp"}
    for layer in range(depth):
        key = f"decoder.{layer}"
        for name in attentions:
            layers |= {
                f"{key}.{name}_attn.{k}": (f"{name}_{layer}/{path}", kind) for k, (path, kind) in ATTENTION.items()
            }
        layers |= {f"{key}.{norm}": (f"norm_{path}_{layer}", NORM) for norm, path in norms.items()}
        layers |= {f"{key}.mlp.0": (f"up_{layer}", LINEAR), f"{key}.mlp.3": (f"down_{layer}", LINEAR)}
    parts = {**(SIMPLE if simple else AROUND), **layers}
    return [each for key, (path, kind) in parts.items() for each in row(f"SSP.{key}", f"sequence/{path}", kind)]


def _tmd() -> list[Row]:
    """The third neck is `temp2`'s norm and `temp`'s classifier, which frames share; their norm is `temp`'s."""
    parts = [(key, _below("temporal", paths), kind) for key, paths, kind in TMD]
    parts += [(key, _below("temporal/diffuse", paths), kind) for key, paths, kind in OPENAI_BLOCK]
    return [
        *(each for key, paths, kind in parts for each in row(f"TMD.resblocks.0.{key}", paths, kind)),
        *clip.neck("bottleneck_proj_temp2", "classifier_proj_temp", "temporal"),
        *clip.batch_norm("bottleneck_proj_temp", "frame_norm"),
    ]


def _rows(method: Any) -> list[Row]:
    config = method.config
    return [
        *clip.image_tower(method.image),
        *clip.neck("bottleneck", "classifier2", "last"),
        *clip.neck("bottleneck_proj", "classifier_proj", "projected"),
        *clip.side_table(config.sie.columns),
        *_ssp(config.ssp.depth, config.ssp.form == "simple"),
        *_tmd(),
    ]


def _sizes(shapes: Shapes, config: Any) -> Sizes:
    return Sizes(clip.length(shapes, "classifier2.weight"), clip.cameras(config.sie.columns, shapes))


def _settings(shapes: Shapes, config: Any) -> dict[str, Any]:
    full = "SSP.memory_proj.1.weight" in shapes
    return {
        **clip.tower_settings(shapes, config),
        **clip.side_settings(shapes, config),
        "bank": "image",
        "temporal.diffusion": True,
        "ssp.form": "full" if full else "simple",
        "ssp.self_attention": full,
        "ssp.depth": sum(name.startswith("SSP.decoder.") and name.endswith(".norm1.weight") for name in shapes),
    }


RELEASED = Released(
    name="TF-CLIP's released code",
    marks=("classifier_proj_temp.weight", "SSP.norm.weight", "TMD.resblocks.0.message_fc.weight"),
    sizes=_sizes,
    settings=_settings,
    rows=_rows,
    unused={
        **clip.COUNTS,
        r"classifier_proj_temp2\.weight": "a classifier that the released code never calls",
        r"SSP\.(alpha|norm\..*)": "a factor and a norm that the released code never calls",
    },
    renamed=((r"^prompts_generator\.", "SSP."), (r"^SAT\.", "TMD.")),
)
