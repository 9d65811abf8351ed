"""VLD's released files, as LSMRL takes them: CLIP's towers, learned words and the necks of two features. Its own
modules, which look over time, have no counterpart."""

from __future__ import annotations

from typing import Any

from jaxreid.methods.released import Released, Row, Shapes, Sizes, clip


def _rows(method: Any) -> list[Row]:
    return [
        *clip.image_tower(method.image),
        *clip.text_tower(*method.network.text),
        *clip.neck("classifier.BN", "classifier.classifier", "last", shift=True),
        *clip.neck("classifier_proj.BN", "classifier_proj.classifier", "projected", shift=True),
    ]


def _sizes(shapes: Shapes, config: Any) -> Sizes:
    del config
    return Sizes(clip.length(shapes, "classifier.classifier.weight"))


def _settings(shapes: Shapes, config: Any) -> dict[str, Any]:
    words = {key: value for key, value in clip.prompt_settings(shapes).items() if key == "prompt.n_ctx"}
    return {**clip.tower_settings(shapes, config), **words}


RELEASED = Released(
    name="VLD's released code",
    marks=("classifier_proj_STP.BN.weight", "prompt_learner.cls_ctx", "ln_post2.weight"),
    sizes=_sizes,
    settings=_settings,
    rows=_rows,
    unused={
        **clip.COUNTS,
        r"prompt_embedding|attn\..*": "its module that looks over time",
        r"classifier(_proj)?_STP\..*": "the necks of that module's features",
        r"ln_post2\..*|logit_scale": "a norm and a scale that the released code never calls",
    },
    drawn={
        r"(diffusion|interaction)/.*": "LSMRL's modules, which VLD does not have; they start as changing nothing",
        r"necks_sequence/.*": "the neck of their feature",
        r"modality_(kernel|bias)": "LSMRL's modality probe",
        r"logit_scale": "the scale of cosines, which VLD does not use",
    },
)
