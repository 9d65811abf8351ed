"""Pretrained weights in, one parameter tree out; and back to Hugging Face names.

    name ──hub.located──▶ file or folder ──tensors.read_tensors──▶ {key: array} ──to_vision_params──▶ tree of `vit.ViT`
                                                                                ◀─from_vision_params──

A checkpoint format is one `Layout`: how to recognise its keys, and for every parameter of the tower the key that
holds it and how its axes are arranged there. Every key must be accounted for: one that
is missing, left over, or of another shape is an error that names it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxreid.backbones import hub
from jaxreid.backbones.tensors import (
    CheckpointError,
    Tensors,
    listing,
    read_json,
    read_metadata,
    read_tensors,
    weights_file,
)
from jaxreid.backbones.vit import ViT, ViTConfig

log = logging.getLogger(__name__)

# --------------------------------------------------------------------------------- what a file says of its tower

# Fields of ViTConfig that change what the weights compute but leave no trace in any shape.
SILENT_FIELDS = ("heads", "activation", "eps")
METADATA_KEY = "jaxreid_vit"


def read_description(path: str | os.PathLike) -> dict[str, Any]:
    """What is written beside the weights about the tower they belong to, by the names of `ViTConfig`.

    Any of `heads`, `activation`, `eps` and `grid`, from the metadata that `save_vision_params` writes or from the
    config of a Hugging Face CLIP or OpenCLIP folder; empty where nothing is known. A wrong activation or number
    of heads costs accuracy without any other sign, so `load` compares them.
    """
    path = Path(path)
    description = json.loads(read_metadata(weights_file(path)).get(METADATA_KEY, "{}"))
    if path.is_dir() and (path / "config.json").exists():
        description |= _hugging_face_description(read_json(path / "config.json"))
    if path.is_dir() and (path / "open_clip_config.json").exists():
        model = read_json(path / "open_clip_config.json").get("model_cfg", {})
        description["activation"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return description


def _hugging_face_description(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("model_type") == "clip":
        config = config.get("vision_config") or {}
    elif config.get("model_type") != "clip_vision_model":
        return {}
    names = {"num_attention_heads": "heads", "hidden_act": "activation", "layer_norm_eps": "eps"}
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


# ------------------------------------------------------------------------------------------------------ layouts


class Arrangement(NamedTuple):
    """How the axes of a stored tensor map to one or more parameters, and back."""

    read: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    write: Callable[..., np.ndarray]


SAME = Arrangement(lambda x: (x,), lambda x: x)
TRANSPOSED = Arrangement(lambda x: (x.T,), lambda x: x.T)
CONVOLUTION = Arrangement(lambda x: (x.transpose(2, 3, 1, 0),), lambda x: x.transpose(3, 2, 0, 1))  # OIHW ↔ HWIO
STACKED_ROWS = Arrangement(  # query, key and value of width D in one [3·D, …] tensor
    lambda x: tuple(part.T for part in np.split(x, 3)), lambda *parts: np.concatenate([p.T for p in parts])
)


class Entry(NamedTuple):
    """One tensor of a checkpoint: its key, the parameters it holds (paths joined by /), and its arrangement."""

    key: str
    paths: tuple[str, ...]
    arrangement: Arrangement


@dataclasses.dataclass(frozen=True)
class Layout:
    """A checkpoint format: the keys of `ViTConfig`'s parameters in it.

    `entries(config, prefix)` lists them; `patch_key` ends the key of the patch convolution, by which the format
    and the prefix in front of all keys are recognised (one of `prefixes`); `ignored` are patterns of keys that
    belong to the whole model but not to this tower.
    """

    name: str
    prefixes: tuple[str, ...]
    patch_key: str
    entries: Callable[[ViTConfig, str], list[Entry]]
    ignored: tuple[str, ...]

    def find_prefix(self, keys: Iterable[str]) -> str | None:
        return next((prefix for prefix in self.prefixes if prefix + self.patch_key in keys), None)


def _norm(key: str, path: str) -> list[Entry]:
    return [Entry(f"{key}.weight", (f"{path}/scale",), SAME), Entry(f"{key}.bias", (f"{path}/bias",), SAME)]


def _linear(key: str, path: str) -> list[Entry]:
    return [
        Entry(f"{key}.weight", (f"{path}/kernel",), TRANSPOSED),
        Entry(f"{key}.bias", (f"{path}/bias",), SAME),
    ]


def _hugging_face_entries(config: ViTConfig, prefix: str) -> list[Entry]:
    entries = [
        Entry(f"{prefix}embeddings.patch_embedding.weight", ("patch_embedding/kernel",), CONVOLUTION),
        Entry(f"{prefix}embeddings.class_embedding", ("class_token",), SAME),
        Entry(f"{prefix}embeddings.position_embedding.weight", ("position_embedding",), SAME),
        *_norm(f"{prefix}pre_layrnorm", "norm_pre"),  # spelt so
        *_norm(f"{prefix}post_layernorm", "norm_post"),
    ]
    for i in range(config.depth):
        key, path = f"{prefix}encoder.layers.{i}", f"block_{i:02d}"
        entries += _norm(f"{key}.layer_norm1", f"{path}/norm_1") + _norm(f"{key}.layer_norm2", f"{path}/norm_2")
        for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out")):
            entries += _linear(f"{key}.self_attn.{theirs}", f"{path}/attention/{ours}")
        entries += _linear(f"{key}.mlp.fc1", f"{path}/mlp/up") + _linear(f"{key}.mlp.fc2", f"{path}/mlp/down")
    if config.projection is not None:
        entries.append(Entry("visual_projection.weight", ("projection/kernel",), TRANSPOSED))
    return entries


def _openai_entries(config: ViTConfig, prefix: str) -> list[Entry]:
    entries = [
        Entry(f"{prefix}conv1.weight", ("patch_embedding/kernel",), CONVOLUTION),
        Entry(f"{prefix}class_embedding", ("class_token",), SAME),
        Entry(f"{prefix}positional_embedding", ("position_embedding",), SAME),
        *_norm(f"{prefix}ln_pre", "norm_pre"),
        *_norm(f"{prefix}ln_post", "norm_post"),
    ]
    for i in range(config.depth):
        key, path = f"{prefix}transformer.resblocks.{i}", f"block_{i:02d}"
        qkv = [f"{path}/attention/{name}" for name in ("query", "key", "value")]
        entries += [
            Entry(f"{key}.attn.in_proj_weight", tuple(f"{p}/kernel" for p in qkv), STACKED_ROWS),
            Entry(f"{key}.attn.in_proj_bias", tuple(f"{p}/bias" for p in qkv), STACKED_ROWS),
            *_linear(f"{key}.attn.out_proj", f"{path}/attention/out"),
            *_norm(f"{key}.ln_1", f"{path}/norm_1"),
            *_norm(f"{key}.ln_2", f"{path}/norm_2"),
            *_linear(f"{key}.mlp.c_fc", f"{path}/mlp/up"),
            *_linear(f"{key}.mlp.c_proj", f"{path}/mlp/down"),
        ]
        if config.layer_scale is not None:  # some OpenCLIP models
            entries += [Entry(f"{key}.ls_{j}.gamma", (f"{path}/layer_scale_{j}",), SAME) for j in (1, 2)]
    if config.projection is not None:
        entries.append(Entry(f"{prefix}proj", ("projection/kernel",), SAME))
    return entries


HUGGING_FACE_CLIP = Layout(
    name="Hugging Face CLIP",
    prefixes=("vision_model.", ""),
    patch_key="embeddings.patch_embedding.weight",
    entries=_hugging_face_entries,
    ignored=(r"text_model\..*", r"text_projection\.weight", r"logit_scale", r"(.*\.)?embeddings\.position_ids"),
)
OPENAI_CLIP = Layout(
    name="OpenAI / OpenCLIP",
    prefixes=("visual.",),
    patch_key="conv1.weight",
    entries=_openai_entries,
    ignored=(
        r"(text\.)?(transformer|token_embedding|ln_final)\..*",
        r"(text\.)?(positional_embedding|text_projection|attn_mask)",
        r"logit_scale|input_resolution|context_length|vocab_size",
    ),
)
LAYOUTS = (HUGGING_FACE_CLIP, OPENAI_CLIP)


# --------------------------------------------------------------------------------------------- tensors → params


def to_vision_params(
    tensors: Mapping[str, np.ndarray],
    config: ViTConfig,
    *,
    source_grid: tuple[int, int] | None = None,
    source: str = "checkpoint",
) -> dict[str, Any]:
    """The parameter tree of `ViT(config)` (the content of `variables["params"]`), float32 NumPy arrays.

    `tensors` are those of `read_tensors`; the layout is recognised by its keys. A whole CLIP may be given: the
    keys of its text tower are ignored on purpose and logged. The position table is resized to `config.grid`
    (`resize_positions`) from `source_grid` (rows, columns); None takes the grid from the number of rows: square
    as in all published towers, or that of `config`. `source` names the checkpoint in errors. Raises
    CheckpointError with every missing, unused and misshapen key.
    """
    layout, prefix = _recognise(tensors, source)
    ignored = {key for key in tensors if any(re.fullmatch(pattern, key) for pattern in layout.ignored)}
    if ignored:
        log.info("%s: %d keys are not of the image tower and ignored: %s", source, len(ignored), sorted(ignored))

    entries = layout.entries(config, prefix)
    expected = _parameter_shapes(config)
    params: dict[str, np.ndarray] = {}
    misshapen, invalid = [], []
    for entry in entries:
        if entry.key not in tensors:
            continue
        stored = np.asarray(tensors[entry.key])
        if not jnp.issubdtype(stored.dtype, jnp.floating):
            invalid.append(f"{entry.key} ({stored.dtype} where floating point is expected)")
            continue
        if not np.isfinite(stored.astype(np.float32)).all():
            invalid.append(f"{entry.key} (not finite)")
        shapes = [expected[path] for path in entry.paths]
        arrays = _arrange(entry, stored)
        if entry.paths == ("position_embedding",) and stored.ndim == 2 and stored.shape[1] == config.width:
            arrays = (_fit_positions(stored, config, source_grid, f"{source}: {entry.key}"),)
        if arrays is None or [a.shape for a in arrays] != shapes:
            holds = " + ".join(f"{path} {shape}" for path, shape in zip(entry.paths, shapes, strict=True))
            misshapen.append(f"{entry.key} {stored.shape}, to hold {holds}")
            continue
        for path, array in zip(entry.paths, arrays, strict=True):
            params[path] = np.ascontiguousarray(array, dtype=np.float32)

    keys = {entry.key for entry in entries}
    held = {path for entry in entries for path in entry.paths}
    problems = (
        listing("missing keys", keys - tensors.keys())
        + listing("unused keys", tensors.keys() - keys - ignored)
        + listing("other shapes", misshapen)
        + listing("unusable values", invalid)
        + listing("parameters that this format has no key for", expected.keys() - held)
        + listing("parameters that this tower does not have", held - expected.keys())
    )
    if problems:
        raise CheckpointError(
            f"{source} ({layout.name} layout) does not fit {_summary(config)}:{problems}\n"
            "Give the checkpoint of this tower, or the ViTConfig of this checkpoint."
        )
    return unflatten_dict(params, sep="/")


def _recognise(tensors: Mapping[str, np.ndarray], source: str) -> tuple[Layout, str]:
    for layout in LAYOUTS:
        prefix = layout.find_prefix(tensors)
        if prefix is not None:
            return layout, prefix
    markers = ", ".join(f"{p}{layout.patch_key} ({layout.name})" for layout in LAYOUTS for p in layout.prefixes)
    raise CheckpointError(
        f"{source} holds no image tower that is known here: none of its {len(tensors)} keys is {markers}; "
        f"its first keys are {sorted(tensors)[:5]}"
    )


def _parameter_shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    frame = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
    params = jax.eval_shape(ViT(config).init, jax.random.key(0), frame)["params"]
    leaves: dict[str, Any] = flatten_dict(params, sep="/")
    return {path: leaf.shape for path, leaf in leaves.items()}


def _arrange(entry: Entry, stored: np.ndarray) -> tuple[np.ndarray, ...] | None:
    """The parameters in a stored tensor, or None where it has not the axes for them."""
    try:
        return entry.arrangement.read(stored)
    except ValueError:  # wrong number of axes, or rows that do not split
        return None


def _summary(config: ViTConfig) -> str:
    return (
        f"a tower of {config.depth} blocks, width {config.width}, patch {config.patch}, "
        f"grid {config.grid[0]}×{config.grid[1]}, projection {config.projection}"
    )


# ----------------------------------------------------------------------------------------------------- positions


def resize_positions(table: np.ndarray, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """Position table [1 + h·w, D] of a source grid (h, w) → float32 [1 + h'·w', D] of the target grid.

    The rule of CLIP-ReID and its forks (§4): the class row is kept, the patches, row-major, are interpolated
    bilinearly with half-pixel centres and no antialiasing. Equal grids return the table itself.
    """
    table = np.asarray(table, dtype=np.float32)
    if source == target:
        return table
    rows, columns = (_bilinear(s, t) for s, t in zip(source, target, strict=True))
    patches = table[1:].reshape(*source, -1)
    resized = np.einsum("yh,xw,hwd->yxd", rows, columns, patches, optimize=True)
    return np.concatenate([table[:1], resized.reshape(target[0] * target[1], -1)]).astype(np.float32)


def _bilinear(source: int, target: int) -> np.ndarray:
    """Interpolation matrix [target, source] along one axis; samples outside take the value at the border."""
    centre = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    return np.maximum(0.0, 1.0 - np.abs(centre[:, None] - np.arange(source)))


def _fit_positions(table: np.ndarray, config: ViTConfig, source_grid: tuple[int, int] | None, where: str) -> np.ndarray:
    patches = table.shape[0] - 1
    if source_grid is None:
        side = math.isqrt(patches)
        square = side * side == patches
        if square and patches == config.patches and config.grid != (side, side):
            raise CheckpointError(
                f"{where} has {patches} patch rows: a square grid {side}×{side} or already {config.grid[0]}×"
                f"{config.grid[1]}; say which with source_grid=(rows, columns)"
            )
        if not square and patches != config.patches:
            raise CheckpointError(
                f"{where} has {patches} patch rows: neither a square grid nor {config.grid[0]}×{config.grid[1]}; "
                "say what it is with source_grid=(rows, columns)"
            )
        source_grid = (side, side) if square else config.grid
    if source_grid[0] * source_grid[1] != patches:
        raise CheckpointError(f"{where} has {patches} patch rows, which is not source_grid {source_grid}")
    return resize_positions(table, source_grid, config.grid)


# --------------------------------------------------------------------------------------------- params → tensors


def from_vision_params(params: Mapping[str, Any], config: ViTConfig) -> Tensors:
    """The inverse of `to_vision_params`: tensors under Hugging Face CLIP names, bit for bit the same numbers.

    Raises CheckpointError for a tower that this format can't hold (LayerScale, registers, no ln_pre, a bias on
    the patch convolution) or a tree that is not that of `ViT(config)`.
    """
    arrays = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    expected = _parameter_shapes(config)
    entries = HUGGING_FACE_CLIP.entries(config, "vision_model.")
    held = {path for entry in entries for path in entry.paths}
    wrong = [
        f"{p} {arrays[p].shape} instead of {expected[p]}"
        for p in arrays.keys() & expected.keys()
        if arrays[p].shape != expected[p]
    ]
    problems = (
        listing("missing parameters", expected.keys() - arrays.keys())
        + listing("parameters that this tower does not have", arrays.keys() - expected.keys())
        + listing("other shapes", wrong)
        + listing("parameters that Hugging Face CLIP has no key for", expected.keys() - held)
        + listing("parameters that Hugging Face CLIP needs", held - expected.keys())
    )
    if problems:
        raise CheckpointError(f"the tree can't be written as {_summary(config)}:{problems}")
    return {
        entry.key: np.ascontiguousarray(entry.arrangement.write(*(arrays[path] for path in entry.paths)))
        for entry in entries
    }


def save_vision_params(path: str | os.PathLike, params: Mapping[str, Any], config: ViTConfig) -> None:
    """Writes `from_vision_params` to a safetensors file (aside, then renamed), with what `read_description` reads."""
    path = Path(path)
    description = {name: getattr(config, name) for name in (*SILENT_FIELDS, "grid")}
    aside = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        safetensors.numpy.save_file(
            from_vision_params(params, config), aside, metadata={"format": "pt", METADATA_KEY: json.dumps(description)}
        )
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------------- load


def load(
    name_or_path: str | os.PathLike, config: ViTConfig, *, source_grid: tuple[int, int] | None = None
) -> dict[str, Any]:
    """The parameters of `ViT(config)` from a path of `read_tensors` or a name of `jaxreid.backbones.hub`, for
    example "hf:openai/clip-vit-base-patch16".

    What the file says about itself must agree with `config` (`read_description`). Raises FileNotFoundError or
    CheckpointError.
    """
    with hub.located(name_or_path) as path:
        return _load(path, config, source_grid)


def _load(path: Path, config: ViTConfig, source_grid: tuple[int, int] | None) -> dict[str, Any]:
    description = read_description(path)
    differing = [
        f"{name} is {description[name]!r} there and {getattr(config, name)!r} in the config"
        for name in SILENT_FIELDS
        if name in description and description[name] != getattr(config, name)
    ]
    if differing:
        raise CheckpointError(
            f"{path} says that its tower differs in a way that no shape shows: {'; '.join(differing)}. "
            "Change the ViTConfig, or the weights."
        )
    if source_grid is None and "grid" in description:
        rows, columns = description["grid"]
        source_grid = (rows, columns)
    return to_vision_params(read_tensors(path), config, source_grid=source_grid, source=str(path))
