"""Pretrained weights in, one variable tree out; and back to Hugging Face names.

    name ──hub.located──▶ file or folder ──tensors.read_tensors──▶ {key: array} ──to_variables──▶ {"params": tree, …}
                                                                                ◀──to_tensors───

The network is named by its configuration: an image tower (`ViTConfig`), CLIP's text tower (`TextConfig`) or a ResNet
(`ResNetConfig`). The format is recognised by its keys (`layouts`), and every key must be accounted for: one that is
missing, left over, or of another shape is an error that names it.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxreid.backbones import hub
from jaxreid.backbones.layouts import (
    HUGGING_FACE_DINOV2,
    HUGGING_FACE_IMAGE,
    HUGGING_FACE_TEXT,
    LAYOUTS,
    TIMM,
    Entry,
    Layout,
)
from jaxreid.backbones.positions import Interpolation, resize_positions
from jaxreid.backbones.resnet import ResNet, ResNetConfig
from jaxreid.backbones.tensors import (
    FOLDER_CONFIGS,
    FOLDER_FILES,
    CheckpointError,
    Tensors,
    listing,
    read_json,
    read_metadata,
    read_tensors,
    weights_file,
)
from jaxreid.backbones.text import TextConfig, TextTower
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.errors import some

log = logging.getLogger(__name__)

Config = ViTConfig | TextConfig | ResNetConfig
Variables = dict[str, Any]

# What DataParallel and torch.compile put in front of every key.
WRAPPERS = ("module.", "_orig_mod.")


# --------------------------------------------------------------------------------------------------------- load


def load(name_or_path: str | os.PathLike, config: Config, *, source_grid: tuple[int, int] | None = None) -> Any:
    """The parameters of a network without batch statistics: `load_variables(…)["params"]`."""
    if isinstance(config, ResNetConfig):
        raise TypeError("load: a ResNet has batch statistics beside its parameters; use load_variables")
    return load_variables(name_or_path, config, source_grid=source_grid)["params"]


def load_variables(
    name_or_path: str | os.PathLike, config: Config, *, source_grid: tuple[int, int] | None = None
) -> Variables:
    """The variables of the network that `config` describes, from a name of `jaxreid.backbones.hub`, for example
    "hf:openai/clip-vit-base-patch16", or a path of `read_tensors`.

    {"params": tree} and, of a ResNet, "batch_stats"; float32 NumPy arrays. What the file says about itself must agree
    with `config` (`read_description`). Raises FileNotFoundError or CheckpointError.
    """
    with hub.located(name_or_path) as path:
        description = read_description(path, config)
        differing = [
            f"{name} is {description[name]!r} there and {getattr(config, name)!r} in the config"
            for name in SILENT_FIELDS
            if name in description and description[name] != getattr(config, name)
        ]
        if differing:
            raise CheckpointError(
                f"{path} says that its {_kind(config).name} differs in a way that no shape shows: "
                f"{'; '.join(differing)}. Change the {type(config).__name__}, or the weights."
            )
        if source_grid is None and "grid" in description:
            rows, columns = description["grid"]
            source_grid = (rows, columns)
        return to_variables(read_tensors(path), config, source_grid=source_grid, source=str(path))


# -------------------------------------------------------------------------------- what a file says of its network

# Fields of a configuration that change what the weights compute but leave no trace in any shape.
SILENT_FIELDS = ("heads", "activation", "eps")
METADATA_KEYS = {"text": "jaxreid_text", "image": "jaxreid_vit"}

# By their names in a config.json, and what they are where it doesn't name them.
HUGGING_FACE_FIELDS = {"num_attention_heads": "heads", "hidden_act": "activation", "layer_norm_eps": "eps"}
CLIP_DEFAULTS = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
HUGGING_FACE_DEFAULTS = {
    "clip_vision_model": CLIP_DEFAULTS | {"num_attention_heads": 12},
    "clip_text_model": CLIP_DEFAULTS | {"num_attention_heads": 8},
    "dinov2": {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 12},
    "dinov2_with_registers": {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 12},
}


def read_description(path: str | os.PathLike, config: Config) -> dict[str, Any]:
    """What is written beside the weights about the network they belong to, by the names of its configuration.

    Any of `heads`, `activation`, `eps` and `grid`, from the metadata that `save_params` writes or from the config of
    a Hugging Face or OpenCLIP folder; empty where nothing is known. `config` only says which half of a CLIP is meant.
    A wrong activation or number of heads costs accuracy without any other sign, so `load` compares them.
    """
    file = weights_file(Path(path))
    description = json.loads(read_metadata(file).get(_metadata_key(config), "{}"))
    if file.name in FOLDER_FILES:  # by which the config beside it is known to be its own
        hugging_face, open_clip = (file.parent / name for name in FOLDER_CONFIGS)
        if hugging_face.exists():
            description |= _hugging_face_description(read_json(hugging_face), config, file)
        if open_clip.exists():
            description |= _open_clip_description(read_json(open_clip).get("model_cfg", {}), config)
    return description


def _metadata_key(config: Config) -> str:
    return METADATA_KEYS["text" if isinstance(config, TextConfig) else "image"]


def _hugging_face_description(stored: dict[str, Any], config: Config, path: Path) -> dict[str, Any]:
    kind = stored.get("model_type")
    if kind == "clip":
        kind = "clip_text_model" if isinstance(config, TextConfig) else "clip_vision_model"
        stored = stored.get("text_config" if isinstance(config, TextConfig) else "vision_config") or {}
    if kind == "resnet" and stored.get("downsample_in_bottleneck"):
        raise CheckpointError(f"{path} has the stride in the first convolution of a bottleneck; here the second has it")
    if kind not in HUGGING_FACE_DEFAULTS:
        return {}
    stored = HUGGING_FACE_DEFAULTS[kind] | stored
    if stored.get("use_swiglu_ffn"):  # which does not use the activation that it names
        stored["hidden_act"] = "silu"
    return {ours: stored[theirs] for theirs, ours in HUGGING_FACE_FIELDS.items()}


def _open_clip_description(model: dict[str, Any], config: Config) -> dict[str, Any]:
    description: dict[str, Any] = {"activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    image, text = model.get("vision_cfg") or {}, model.get("text_cfg") or {}
    if isinstance(config, TextConfig) and "heads" in text:
        description["heads"] = text["heads"]
    elif isinstance(config, ViTConfig) and "width" in image:
        description["heads"] = image["width"] // image.get("head_width", 64)
    return description


# ------------------------------------------------------------------------------------------ tensors → variables


def to_variables(
    tensors: Mapping[str, np.ndarray],
    config: Config,
    *,
    source_grid: tuple[int, int] | None = None,
    source: str = "checkpoint",
    layout: Layout | None = None,
) -> Variables:
    """The variables of `config`'s network from the tensors of `read_tensors`, float32 NumPy arrays.

    A whole CLIP may be given: the keys of its other tower, and heads of classifiers, are ignored on purpose and
    logged. An image tower's position table is resized to `config.grid` (`resize_positions`, by the rule of the format)
    from `source_grid` (rows, columns); None takes the grid from the number of rows: square as in all published
    towers, or that of `config`. `source` names the checkpoint in errors; `layout` is its format where it is known.
    Raises CheckpointError with every missing, unused and misshapen key.
    """
    layout, prefix, tensors = _recognise(tensors, config, source, layout)
    entries = layout.entries(config, prefix)
    keys = {entry.key for entry in entries}
    ignored = {key for key in tensors.keys() - keys if layout.ignores(key)}
    if ignored:
        log.info("%s: %d keys are not of the %s: %s", source, len(ignored), _kind(config).name, sorted(ignored))

    shapes = _shapes(config)
    expected = {path: shape for collection in shapes.values() for path, shape in collection.items()}
    found: dict[str, np.ndarray] = {}
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
        arrays = _read(entry, stored)
        if arrays and layout.interpolation and entry.paths == ("position_embedding",):
            assert isinstance(config, ViTConfig)
            where = f"{source}: {entry.key}"
            arrays = [_fit_positions(arrays[0], config, source_grid, layout.interpolation(config), where)]
        if arrays is None or any(a.shape != expected.get(p) for p, a in zip(entry.paths, arrays, strict=True)):
            holds = " + ".join(f"{path} {expected.get(path)}" for path in entry.paths) or "nothing but zeros"
            misshapen.append(f"{entry.key} {stored.shape}, to hold {holds}")
            continue
        for path, array in zip(entry.paths, arrays, strict=True):
            found[path] = np.ascontiguousarray(array, dtype=np.float32)

    needed = {entry.key for entry in entries if entry.paths}
    held = {path for entry in entries for path in entry.paths}
    problems = (
        listing("missing keys", needed - tensors.keys())
        + listing("unused keys", tensors.keys() - keys - ignored)
        + listing("other shapes", misshapen)
        + listing("unusable values", invalid)
        + listing("parameters that this format has no key for", expected.keys() - held)
        + listing("parameters that this network does not have", held - expected.keys())
    )
    if problems:
        raise CheckpointError(
            f"{source} ({layout.name} layout) does not fit {_summary(config)}:{problems}\n"
            f"Give the checkpoint of this network, or the {type(config).__name__} of this checkpoint."
        )
    return {
        collection: unflatten_dict({path: found[path] for path in paths}, sep="/")
        for collection, paths in shapes.items()
    }


def _recognise(
    tensors: Mapping[str, np.ndarray], config: Config, source: str, known: Layout | None
) -> tuple[Layout, str, Mapping[str, np.ndarray]]:
    """The format, the prefix of its keys, and the tensors under the format's names."""
    for wrapper in WRAPPERS:
        if tensors and all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): tensor for key, tensor in tensors.items()}
    kind = _kind(config)
    layouts = (known,) if known else kind.layouts
    for layout in layouts:
        canonical = layout.canonical(tensors)
        prefix = layout.find_prefix(canonical)
        if prefix is not None:
            return layout, prefix, canonical
    markers = ", ".join(f"{p}{layout.markers[0]} ({layout.name})" for layout in layouts for p in layout.prefixes)
    raise CheckpointError(
        f"{source} holds no {kind.name} that is known here: none of its {len(tensors)} keys is {markers}; "
        f"its first keys are {sorted(tensors)[:5]}"
    )


def _read(entry: Entry, stored: np.ndarray) -> list[np.ndarray] | None:
    """The parameters in a stored tensor, or None where it can't hold them."""
    try:
        return list(entry.arrangement.read(stored, len(entry.paths)))
    except ValueError:  # wrong number of axes, or rows that do not split
        return None


def _fit_positions(
    table: np.ndarray,
    config: ViTConfig,
    source_grid: tuple[int, int] | None,
    interpolation: Interpolation,
    where: str,
) -> np.ndarray:
    if table.ndim != 2 or table.shape[1] != config.width:
        return table  # which is then reported as misshapen
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
    return resize_positions(table, source_grid, config.grid, interpolation)


# ---------------------------------------------------------------------------------------------------- the networks


class Kind(NamedTuple):
    """A sort of network: its name in messages, its formats, and its abstract variables by configuration."""

    name: str
    layouts: tuple[Layout, ...]
    init: Callable[[Any], Any]


def _kind(config: Config) -> Kind:
    return next(kind for of, kind in KINDS.items() if isinstance(config, of))


def _abstract_vit(c: ViTConfig) -> Any:
    return ViT(c).init(jax.random.key(0), jnp.zeros((1, *c.image_size, 3)))


def _abstract_text(c: TextConfig) -> Any:
    return TextTower(c).init(jax.random.key(0), jnp.zeros((1, c.context), jnp.int32))


def _abstract_resnet(c: ResNetConfig) -> Any:
    if c.stems == 0:
        return ResNet(c).init(jax.random.key(0), jnp.zeros((1, 8, 8, c.width)), method="run_layers")
    return ResNet(c).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), modality=jnp.zeros(1, jnp.int32))


KINDS = {
    ViTConfig: Kind("image tower", LAYOUTS[ViTConfig], _abstract_vit),
    TextConfig: Kind("text tower", LAYOUTS[TextConfig], _abstract_text),
    ResNetConfig: Kind("ResNet", LAYOUTS[ResNetConfig], _abstract_resnet),
}


def _shapes(config: Config) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shape of every variable by collection and path; a path occurs in one collection only."""
    variables = jax.eval_shape(lambda: _kind(config).init(config))
    leaves: dict[str, dict[str, Any]] = {name: flatten_dict(tree, sep="/") for name, tree in variables.items()}
    return {name: {path: leaf.shape for path, leaf in tree.items()} for name, tree in leaves.items()}


def _summary(config: Config) -> str:
    if isinstance(config, ResNetConfig):
        return f"a ResNet of {config.depths} bottlenecks, width {config.width}, {config.stems} stems"
    rest = (
        f"patch {config.patch}, grid {config.grid[0]}×{config.grid[1]}"
        if isinstance(config, ViTConfig)
        else f"vocabulary {config.vocabulary}, context {config.context}"
    )
    kind = "tower" if isinstance(config, ViTConfig) else "text tower"
    return f"a {kind} of {config.depth} blocks, width {config.width}, {rest}, projection {config.projection}"


# ------------------------------------------------------------------------------------------- variables → tensors


def to_tensors(params: Mapping[str, Any], config: ViTConfig | TextConfig, layout: Layout | None = None) -> Tensors:
    """The inverse of `to_variables`: tensors under Hugging Face names, or in the format `layout`, bit for bit the same
    numbers.

    Those of CLIP or, for an image tower without CLIP's first norm, of DINOv2. The two towers of a CLIP have different
    keys: `to_tensors(…) | to_tensors(…)` is a whole one but for its logit_scale. Raises CheckpointError for a tower
    that the format can't hold, or a tree that is not that of `config`.
    """
    layout, prefix = _hugging_face_layout(config) if layout is None else (layout, layout.prefixes[0])
    arrays = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    expected = _shapes(config)["params"]
    entries = layout.entries(config, prefix)
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
        + listing(f"parameters that {layout.name} has no key for", expected.keys() - held)
        + listing(f"parameters that {layout.name} needs", held - expected.keys())
    )
    if problems:
        raise CheckpointError(f"the tree can't be written as {_summary(config)}:{problems}")
    return {
        entry.key: np.ascontiguousarray(entry.arrangement.write(*(arrays[path] for path in entry.paths)))
        for entry in entries
    }


def _hugging_face_layout(config: ViTConfig | TextConfig) -> tuple[Layout, str]:
    if isinstance(config, TextConfig):
        return HUGGING_FACE_TEXT, "text_model."
    return (HUGGING_FACE_IMAGE, "vision_model.") if config.pre_norm_embeddings else (HUGGING_FACE_DINOV2, "")


def save_params(
    path: str | os.PathLike, *towers: tuple[Mapping[str, Any], ViTConfig | TextConfig], logit_scale: float | None = None
) -> None:
    """Writes towers to a safetensors file (aside, then renamed), with what `read_description` reads.

    `towers` are (params, config) pairs: one tower, or CLIP's two, which have the `logit_scale` beside them.
    """
    tensors: Tensors = {}
    metadata = {}
    for params, config in towers:
        # ImageNet's vision transformers have names in timm only.
        plain = isinstance(config, ViTConfig) and not config.pre_norm_embeddings and config.layer_scale is None
        tensors |= to_tensors(params, config, TIMM if plain else None)
        description = {name: getattr(config, name) for name in SILENT_FIELDS}
        if isinstance(config, ViTConfig):
            description["grid"] = config.grid
        metadata[_metadata_key(config)] = json.dumps(description)
    if logit_scale is not None:
        tensors["logit_scale"] = np.asarray(logit_scale, np.float32)
    _write(Path(path), tensors, metadata)


def save_folder(
    folder: str | os.PathLike,
    *towers: tuple[Mapping[str, Any], ViTConfig | TextConfig],
    logit_scale: float = math.log(1 / 0.07),
) -> None:
    """Writes a folder that `transformers` loads: model.safetensors and config.json.

    `towers` are (params, config) pairs: one image tower, of CLIP or DINOv2, one text tower, or CLIP's two, which have
    the `logit_scale` beside them. Raises CheckpointError as `to_tensors` does, and for what its config can't say: an
    overlapping stride, a grid that is not square.
    """
    tensors: Tensors = {}
    configs: dict[str, dict[str, Any]] = {}
    for params, config in towers:
        tensors |= to_tensors(params, config)
        described = _hugging_face_config(config)
        configs[described["model_type"]] = described
    if configs.keys() == {"clip_vision_model", "clip_text_model"}:
        tensors["logit_scale"] = np.asarray(logit_scale, np.float32)
        image, text = configs["clip_vision_model"], configs["clip_text_model"]
        if image.get("projection_dim") != text["projection_dim"]:
            raise CheckpointError(f"a CLIP of joint dimensions {towers[0][1].projection} and {towers[1][1].projection}")
        whole = {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": text["projection_dim"]}
        content = whole | {"vision_config": image, "text_config": text}
    elif len(towers) == len(configs) == 1:
        (content,) = configs.values()
    else:
        raise CheckpointError(f"no model of transformers has the towers {', '.join(configs)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "model.safetensors", tensors, {})
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _hugging_face_config(config: ViTConfig | TextConfig) -> dict[str, Any]:
    common: dict[str, Any] = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "hidden_act": config.activation,
        "layer_norm_eps": config.eps,
    }
    if isinstance(config, TextConfig):
        return common | {
            "model_type": "clip_text_model",
            "architectures": ["CLIPTextModelWithProjection"],
            "intermediate_size": config.hidden,
            "projection_dim": config.projection,
            "vocab_size": config.vocabulary,
            "max_position_embeddings": config.context,
            "bos_token_id": config.vocabulary - 2,
            "eos_token_id": config.vocabulary - 1,
        }
    rows, columns = config.grid
    if rows != columns or config.patch_stride != config.patch:
        raise CheckpointError(
            f"Hugging Face's config describes square grids of patches that do not overlap, not {rows}×{columns} with "
            f"patches of {config.patch} every {config.patch_stride} pixels; save_params keeps it"
        )
    common |= {"image_size": rows * config.patch, "patch_size": config.patch}
    if config.pre_norm_embeddings:
        return common | {
            "model_type": "clip_vision_model",
            "architectures": ["CLIPVisionModelWithProjection" if config.projection else "CLIPVisionModel"],
            "intermediate_size": config.hidden,
            **({"projection_dim": config.projection} if config.projection else {}),
        }
    ratio = int(config.mlp_ratio) if config.mlp_ratio == int(config.mlp_ratio) else config.mlp_ratio
    common |= {"mlp_ratio": ratio, "use_swiglu_ffn": config.gated_mlp}
    if config.gated_mlp:
        common["hidden_act"] = "gelu"  # named and not used
    if config.register_tokens:
        return common | {
            "model_type": "dinov2_with_registers",
            "architectures": ["Dinov2WithRegistersModel"],
            "num_register_tokens": config.register_tokens,
        }
    return common | {"model_type": "dinov2", "architectures": ["Dinov2Model"]}


def _write(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    broken = sorted(name for name, x in tensors.items() if not np.isfinite(np.asarray(x, np.float32)).all())
    if broken:  # which `to_variables` would refuse
        raise CheckpointError(f"{path} is not written: not finite are {some(broken)}; take an earlier checkpoint")
    aside = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        safetensors.numpy.save_file(tensors, aside, metadata={"format": "pt"} | metadata)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
