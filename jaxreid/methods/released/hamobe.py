"""HAMoBE's released head, and OpenAI's file of the CLIP that it was trained on, whose tower is not in it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from jaxreid.backbones.layouts import BATCH_NORM, LINEAR, NORM, OPENAI_IMAGE, PROJECTION, TABLE, TENSOR
from jaxreid.methods.released import Released, Row, Shapes, Sizes, row, rows_of
from jaxreid.methods.released.clip import COUNTS, length

EXPERTS = {"canonical": "moe_canonical", "appearance": "moe_appearance", "gait": "moe_pose"}
LOW = r"moe_first\.experts\.(\d+)\.0\.weight"


def _decoder(blocks: int) -> list[Row]:
    found = row("decoder.decoder_layers", "decoder/join", LINEAR)
    for i in range(blocks):
        conv, tables, path = f"decoder.temporal_conv.{i}", f"decoder.cross_attention.{i}", f"decoder/layer_{i}"
        found += [
            Row((f"{conv}.weight",), (f"{path}/conv_kernel",), lambda x: [x[:, 0].T]),
            Row((f"{conv}.bias",), (f"{path}/conv_bias",), lambda x: [x]),
            *row(f"decoder.temporal_pos_embed.{i}", f"{path}/position", TENSOR),
            *row(f"{tables}.w1", f"{path}/previous", TENSOR),
            *row(f"{tables}.w2", f"{path}/next", TENSOR),
        ]
    return found


def _low_experts(count: int) -> list[Row]:
    """All of them in one array; each is the transpose of theirs."""

    def keys(layer: str) -> tuple[str, ...]:
        return tuple(f"moe_first.experts.{k}.{layer}" for k in range(count))

    return [
        Row(keys("0.weight"), ("low_experts/first/kernel",), lambda *x: [np.concatenate(x).T]),
        Row(keys("0.bias"), ("low_experts/first/bias",), lambda *x: [np.concatenate(x)]),
        Row(keys("2.weight"), ("low_experts/kernel",), lambda *x: [np.stack(x).swapaxes(1, 2)]),
        Row(keys("2.bias"), ("low_experts/bias",), lambda *x: [np.stack(x)]),
    ]


def _gate(key: str, path: str, before: str, after: str) -> list[Row]:
    attention = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out": "out"}
    found = [*row(f"{key}.{before}.0", f"{path}/before", LINEAR), *row(f"{key}.{after}", f"{path}/after", LINEAR)]
    found += row(f"{key}.pos_embed.emb", f"{path}/places", TABLE)
    for theirs, ours in attention.items():
        found += row(f"{key}.attn.{theirs}", f"{path}/{ours}", PROJECTION)
    return found


def _two(key: str, path: str) -> list[Row]:
    """Two linear layers with something between."""
    return [*row(f"{key}.0", f"{path}/first", LINEAR), *row(f"{key}.2", f"{path}/second", LINEAR)]


def _gait(key: str) -> list[Row]:
    names = {
        **{"attn.q_proj": "query", "attn.k_proj": "key", "attn.v_proj": "value", "attn.out_proj": "out"},
        **{"mlp.fc1": "up", "mlp.fc2": "down"},
    }
    found = row(f"{key}.cls_token", "gait/query", TENSOR)
    for theirs, ours in names.items():
        found += row(f"{key}.pose_agg.{theirs}", f"gait/decoder/{ours}", LINEAR)
    for theirs, ours in {"norm1": "norm_query", "norm2": "decoder/norm", "norm3": "norm_tokens"}.items():
        found += row(f"{key}.pose_agg.{theirs}", f"gait/{ours}", NORM)
    return found


def _rows(method: Any) -> list[Row]:
    c = method.network_config
    found = [
        *rows_of(OPENAI_IMAGE.entries(c.tower, "visual."), under="image_tower/"),
        *_decoder(c.blocks),
        *_low_experts(c.count),
        *_gate("moe_first.gating", "gate1", "fc_pre", "fc_post"),
        *(each for name, key in EXPERTS.items() for each in _two(f"{key}.layer", f"{name}/mlp")),
        *(each for name in ("canonical", "appearance") for each in _two(f"{EXPERTS[name]}.patch_agg", f"{name}/pool")),
        *_gait(EXPERTS["gait"]),
        *_gate("gating_second", "gate2", "fc1_pre", "fc1_post"),
        *_two("gating_second.patch_agg", "gate2_tokens"),
        *row("gating_second.fc2.0", "gate2_frames_0", LINEAR),
        *row("gating_second.fc2.2", "gate2_frames_1", LINEAR),
        *row("fc", "fc", LINEAR),
        *row("bn", "norm", BATCH_NORM),
    ]
    return found


def _settings(shapes: Shapes, config: Any) -> dict[str, Any]:
    """All modules; how many blocks, frames and low-level experts there are, the tensors say."""
    del config
    frames = length(shapes, "decoder.temporal_pos_embed.0")
    return {
        "decoder.blocks": sum(bool(re.fullmatch(r"decoder\.temporal_pos_embed\.\d+", name)) for name in shapes),
        **dict.fromkeys(("decoder.conv", "decoder.position", "decoder.bias"), True),
        "experts.count": sum(bool(re.fullmatch(LOW, name)) for name in shapes),
        "experts.used": tuple(EXPERTS),
        "experts.shared": False,
        **dict.fromkeys(("gates.first", "gates.second"), "learned"),
        "batch.seq_len": frames,
        "evaluation.seq_len": frames,
    }


RELEASED = Released(
    name="HAMoBE's released code",
    marks=(r"decoder\.cross_attention\.0\.w1", r"moe_first\.gating\.fc_post\.weight", r"moe_pose\.cls_token"),
    sizes=lambda shapes, config: Sizes(),
    settings=_settings,
    rows=_rows,
    unused={
        **COUNTS,
        r"(transformer|token_embedding|ln_final)\..*|positional_embedding|text_projection": "CLIP's text tower",
        r"logit_scale|input_resolution|context_length|vocab_size": "numbers of the whole CLIP",
    },
    drawn={
        "classifier/kernel": "the classifier of identities, which tests do not need",
        "clothes_classifier/kernel": "the classifier of clothes, which tests do not need",
        "pair_threshold": "the threshold of the pair loss, which is not of the released code",
    },
)
