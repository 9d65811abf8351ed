"""The published weight files of SwinIR: which tensor holds what."""

from __future__ import annotations

from jaxreid.backbones.layouts import CONVOLUTION_BIAS, LINEAR, NORM, QKV, STACKED_LINEAR, TENSOR, Entry, Layout, part
from jaxreid.backbones.swinir import SwinIRConfig

BLOCK = (
    ("norm1", "norm_1", NORM),
    ("attn.relative_position_bias_table", "attention/position_bias", TENSOR),
    ("attn.qkv", QKV, STACKED_LINEAR),
    ("attn.proj", "attention/out", LINEAR),
    ("norm2", "norm_2", NORM),
    ("mlp.fc1", "mlp/up", LINEAR),
    ("mlp.fc2", "mlp/down", LINEAR),
)


def _head(c: SwinIRConfig) -> dict[str, str]:
    """Their convolutions → ours."""
    steps = range(c.doublings)
    if c.head == "light":
        return {"upsample.0": "last"}
    if c.head == "classical":  # between the convolutions of `upsample` pixels are shuffled
        ups = {f"upsample.{2 * i}": f"up_{i}" for i in steps}
    else:
        ups = {f"conv_up{i + 1}": f"up_{i}" for i in steps} | {"conv_hr": "high"}
    return {"conv_before_upsample.0": "before", **ups, "conv_last": "last"}


def _entries(c: SwinIRConfig, prefix: str) -> list[Entry]:
    convolutions = {"conv_first": "first", "conv_after_body": "after_body", **_head(c)}
    convolutions |= {f"layers.{i}.conv": f"group_{i:02d}/conv" for i in range(c.groups)}
    entries = [e for theirs, ours in convolutions.items() for e in part(prefix + theirs, ours, CONVOLUTION_BIAS)]
    entries += part(f"{prefix}patch_embed.norm", "patch_norm", NORM) + part(f"{prefix}norm", "norm", NORM)
    for i in range(c.groups):
        for j in range(c.depth):
            key, path = f"{prefix}layers.{i}.residual_group.blocks.{j}", f"group_{i:02d}/block_{j:02d}"
            for theirs, ours, kind in BLOCK:
                paths = tuple(f"{path}/{o}" for o in ((ours,) if isinstance(ours, str) else ours))
                entries += part(f"{key}.{theirs}", paths, kind)
    return entries


SWINIR = Layout(
    name="SwinIR",
    prefixes=("params_ema.", "params.", ""),
    markers=("conv_first.weight", "layers.0.residual_group.blocks.0.attn.relative_position_bias_table"),
    entries=_entries,
    # Numbers that follow from the windows' layout; beside averaged weights the ones that were averaged.
    ignored=(r".*\.(relative_position_index|attn_mask)", r"params\..*"),
)
