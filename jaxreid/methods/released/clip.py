"""Tensors that the released codes of the CLIP-ReID family have in common: CLIP's towers, learned words, necks, camera
tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxreid.backbones.clip import VISION_TOWERS
from jaxreid.backbones.layouts import (
    BATCH_NORM,
    BATCHED_TENSOR,
    OPENAI_IMAGE,
    OPENAI_TEXT,
    PROJECTION,
    TENSOR,
)
from jaxreid.backbones.text import TextConfig
from jaxreid.backbones.vit import ViTConfig
from jaxreid.layers.prompts import PromptTemplate
from jaxreid.methods.released import Row, Shapes, row, rows_of

COUNTS = {r".*\.num_batches_tracked": "how many batches the running statistics saw"}
FIXED_SHIFT = "the shift of a batch norm that was kept at 0"
BLOCKS = "image_encoder.transformer.resblocks"


def image_tower(config: ViTConfig) -> list[Row]:
    return rows_of(OPENAI_IMAGE.entries(config, "image_encoder."), under="image_tower/")


def text_tower(config: TextConfig, template: PromptTemplate) -> list[Row]:
    """The text tower without its table of tokens, of which only those of the sentence are there, and the words that
    were learned for each identity."""
    entries = [entry for entry in OPENAI_TEXT.entries(config, "text_encoder.") if "token_embedding" not in entry.paths]
    return [
        *rows_of(entries, under="text/tower/"),
        *row("prompt_learner.cls_ctx", "text/own", TENSOR),
        *(row("prompt_learner.prefix_prompt", "text/before", BATCHED_TENSOR) if template.before else ()),
        *(row("prompt_learner.suffix_prompt", "text/after", BATCHED_TENSOR) if template.after else ()),
        _sentence(config, template),
    ]


def _sentence(config: TextConfig, template: PromptTemplate) -> Row:
    """The table of tokens, in which all but those of the sentence are 0: nothing else is ever looked up."""
    stop = template.start + template.before + template.own + template.after
    places = [place for place in range(len(template.ids)) if not template.start <= place < stop]

    def words(prefix: np.ndarray, suffix: np.ndarray) -> np.ndarray:
        """[places, width]"""
        if prefix.shape[:2] != (1, template.start) or suffix.shape[1] < len(template.ids) - stop:
            raise ValueError
        return np.concatenate([prefix[0], suffix[0, : len(template.ids) - stop]])

    def read(prefix: np.ndarray, suffix: np.ndarray) -> list[np.ndarray]:
        table = np.zeros((config.vocabulary, config.width), np.float32)
        for place, word in zip(places, words(prefix, suffix), strict=True):
            table[template.ids[place]] = word
        return [table]

    def doubt(prefix: np.ndarray, suffix: np.ndarray) -> str:
        first: dict[int, np.ndarray] = {}
        same = (
            np.array_equal(first.setdefault(template.ids[place], word), word)
            for place, word in zip(places, words(prefix, suffix), strict=True)
        )
        return "" if all(same) else "a token that the sentence has twice is not the same at both places"

    keys = "prompt_learner.token_prefix", "prompt_learner.token_suffix"
    return Row(keys, ("text/tower/token_embedding",), read, doubt)


def neck(norm: str, classifier: str, feature: str, shift: bool = False) -> list[Row]:
    """A batch norm and the classifier behind it → the neck of a feature; `shift`: whether the norm's is trained."""
    return [
        *batch_norm(norm, f"necks_{feature}/norm", shift),
        *row(classifier, f"necks_{feature}/classifier", PROJECTION),
    ]


def batch_norm(key: str, path: str, shift: bool = False) -> list[Row]:
    """A batch norm; a shift that is not trained has no place here, and should be 0."""

    def doubt(bias: np.ndarray) -> str:
        return f"not 0: {FIXED_SHIFT}, and features behind it are not moved by it here" if bias.any() else ""

    fixed = Row((f"{key}.bias",), (), lambda bias: (), doubt)
    kept = row(key, path, BATCH_NORM)
    return kept if shift else [each if each.paths != (f"{path}/bias",) else fixed for each in kept]


def side_table(columns: Sequence[str]) -> list[Row]:
    """Side information, a row for every camera."""
    return row("cv_embed", "side_table", TENSOR) if columns else []


def length(shapes: Shapes, key: str, axis: int = 0) -> int:
    """An axis of a tensor, 0 where there is no such tensor or axis."""
    return dict(enumerate(shapes.get(key, ()))).get(axis, 0)


def cameras(columns: Sequence[str], shapes: Shapes, axis: int = 0) -> int | None:
    """How many cameras a table has rows for, None where its rows are not those of cameras alone."""
    return length(shapes, "cv_embed", axis) if tuple(columns) == ("camera_index",) else None


def tower_settings(shapes: Shapes, config: Any) -> dict[str, Any]:
    """The name of the image tower, where the sizes of its tensors are those of a known one."""
    patches = shapes.get("image_encoder.conv1.weight", ())
    depth = len({name.split(".")[3] for name in shapes if name.startswith(f"{BLOCKS}.")})
    fitting = [
        name
        for name, tower in VISION_TOWERS.items()
        if (tower.width, 3, tower.patch, tower.patch, tower.depth) == (*patches, depth)
    ]
    return {"backbone.name": fitting[0]} if fitting and config.backbone.name not in fitting else {}


def side_settings(shapes: Shapes, config: Any) -> dict[str, Any]:
    """Whether there is side information; of what it is, no shape says."""
    if "cv_embed" not in shapes:
        return {"sie.columns": ()}
    return {} if config.sie.columns else {"sie.columns": ("camera_index",)}


def prompt_settings(shapes: Shapes) -> dict[str, Any]:
    """How many words were learned."""
    learner = "prompt_learner"
    shared = tuple(length(shapes, f"{learner}.{side}_prompt", 1) for side in ("prefix", "suffix"))
    return {"prompt.n_ctx": length(shapes, f"{learner}.cls_ctx", 1), "prompt.shared_ctx": shared}
