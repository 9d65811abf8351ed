"""KeyRe-ID's released files: a ViT in timm's names, its last block again as the global branch's, the local branch under
two names, seven necks."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxreid.backbones.layouts import NORM, QKV, STACKED_LINEAR, TIMM, TIMM_BLOCK, TIMM_MLP, Kind, part
from jaxreid.layers.keypoint_parts import PARTS
from jaxreid.methods.released import Released, Row, Shapes, Sizes, row, rows_of
from jaxreid.methods.released.clip import COUNTS, batch_norm, length

BASE, ALIAS = "base.", "b2.0."


def _tower(config: Any) -> list[Row]:
    """The tower's last block and norm are those of the global branch; its own are never called."""
    last = config.depth - 1
    block = {f"{BASE}blocks.{last}.": "b1.0.", f"{BASE}norm.": "b1.1."}
    found = []
    for each in rows_of(TIMM.entries(config, BASE), under="image_tower/"):
        (key,) = each.keys
        for own, branch in block.items():
            key = branch + key.removeprefix(own) if key.startswith(own) else key
        found.append(Row((key,), each.paths, each.read))
    return found


def _block(key: str, path: str) -> list[Row]:
    """A block under two names, which must hold the same."""
    found = []
    rows: tuple[tuple[str, Any, Kind], ...] = (*TIMM_BLOCK, *TIMM_MLP)
    assert rows[1][1:] == (QKV, STACKED_LINEAR)
    for name, paths, kind in rows:
        below = tuple(f"{path}/{each}" for each in ((paths,) if isinstance(paths, str) else paths))
        for entry in part(f"{key}.{name}", below, kind):
            keys = entry.key, ALIAS + entry.key.removeprefix(f"{key}.")

            def read(x: np.ndarray, alias: np.ndarray, entry: Any = entry) -> Any:
                if not np.array_equal(x, alias):
                    raise ValueError("two names of one tensor hold different numbers")
                return entry.arrangement.read(x, len(entry.paths))

            found.append(Row(keys, entry.paths, read))
    return found


def _neck(norm: str, classifier: str, name: str) -> list[Row]:
    return [
        *batch_norm(norm, f"necks/necks_{name}/norm"),
        Row((f"{classifier}.weight",), (f"necks/necks_{name}/classifier/kernel",), lambda x: [x.T]),
    ]


def _rows(method: Any) -> list[Row]:
    return [
        *_tower(method.tower),
        Row((f"{BASE}Cam",), ("camera_table",), lambda x: [x[:, 0]]),
        Row(("attention_conv.weight",), ("temporal/reduce/kernel",), lambda x: [x[:, :, 0, 0].T]),
        Row(("attention_conv.bias",), ("temporal/reduce/bias",), lambda x: [x]),
        Row(("attention_tconv.weight",), ("temporal/score/kernel",), lambda x: [x.transpose(2, 1, 0)]),
        Row(("attention_tconv.bias",), ("temporal/score/bias",), lambda x: [x]),
        *_neck("bottleneck", "classifier", "global"),
        *_block("block1", "local_branch/block"),
        *row("b2.1", "local_branch/norm", NORM),
        *(
            each
            for number, name in enumerate(PARTS[6], 1)
            for each in _neck(f"bottleneck_{number}", f"classifier_{number}", name)
        ),
    ]


def _settings(shapes: Shapes, config: Any) -> dict[str, Any]:
    """As published; how many frames a clip has is in the width of the local branch."""
    del config
    width = length(shapes, f"{BASE}cls_token", 2)
    frames = length(shapes, "block1.norm1.weight") // max(width, 1)
    local = {"local.layout": "released", "local.gate": "pre_norm", "local.parts": 6, "local.tcss": True}
    return {"branches": "both", **local, "batch.seq_len": frames, "evaluation.seq_len": frames}


RELEASED = Released(
    name="KeyRe-ID's released code",
    marks=("block1.norm1.weight", "bottleneck_6.weight", "attention_tconv.weight", "base.Cam"),
    sizes=lambda shapes, config: Sizes(length(shapes, "classifier.weight"), length(shapes, f"{BASE}Cam")),
    settings=_settings,
    rows=_rows,
    unused={
        **COUNTS,
        r"base\.(norm|fc)\..*": "a norm and a classifier of ImageNet that the released code never calls",
        r"base\.blocks\.\d+\..*": "the tower's last block, which the released code never calls",
    },
)
