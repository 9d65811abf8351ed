"""Pretrained weights in, one variable tree out (and back: saving.py).

    name ──hub.located──▶ file or folder ──tensors.read_tensors──▶ {key: array} ──to_variables──▶ {"params": tree, …}
                                                                                ◀──to_tensors───

The network is named by its configuration: an image tower (`ViTConfig`), CLIP's text tower (`TextConfig`) or a ResNet
(`ResNetConfig`). The format is recognised by its keys (`layouts`), and every key must be accounted for: one that is
missing, left over, or of another shape is an error that names it.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxreid.backbones import hub
from jaxreid.backbones.descriptions import SILENT_FIELDS, read_description
from jaxreid.backbones.kinds import Config, kind_of, shapes_of, summary
from jaxreid.backbones.layouts import (
    Entry,
    Layout,
)
from jaxreid.backbones.positions import Interpolation, resize_positions
from jaxreid.backbones.resnet import ResNetConfig
from jaxreid.backbones.tensors import (
    CheckpointError,
    listing,
    read_tensors,
)
from jaxreid.backbones.vit import ViTConfig

log = logging.getLogger(__name__)

Variables = dict[str, Any]

WRAPPERS = ("module.", "_orig_mod.")


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
                f"{path} says that its {kind_of(config).name} differs in a way that no shape shows: "
                f"{'; '.join(differing)}. Change the {type(config).__name__}, or the weights."
            )
        if source_grid is None and "grid" in description:
            rows, columns = description["grid"]
            source_grid = (rows, columns)
        return to_variables(read_tensors(path), config, source_grid=source_grid, source=str(path))


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
        log.info("%s: %d keys are not of the %s: %s", source, len(ignored), kind_of(config).name, sorted(ignored))

    shapes = shapes_of(config)
    expected = {path: shape for collection in shapes.values() for path, shape in collection.items()}
    found: dict[str, np.ndarray] = {}
    misshapen, invalid = [], []
    for entry in entries:
        if entry.key not in tensors:
            continue
        stored = np.asarray(tensors[entry.key])
        if problem := unusable(stored):
            invalid.append(f"{entry.key} ({problem})")
            continue
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
            f"{source} ({layout.name} layout) does not fit {summary(config)}:{problems}\n"
            f"Give the checkpoint of this network, or the {type(config).__name__} of this checkpoint."
        )
    return {
        collection: unflatten_dict({path: found[path] for path in paths}, sep="/")
        for collection, paths in shapes.items()
    }


def unwrapped(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors without what DataParallel and torch.compile put in front of every key."""
    for wrapper in WRAPPERS:
        if all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): tensor for key, tensor in tensors.items()}
    return dict(tensors)


def unusable(tensor: np.ndarray) -> str:
    """Why a stored tensor cannot be a parameter, "" where it can."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return f"{tensor.dtype} where floating point is expected"
    return "" if np.isfinite(tensor.astype(np.float32)).all() else "not finite"


def _recognise(
    tensors: Mapping[str, np.ndarray], config: Config, source: str, known: Layout | None
) -> tuple[Layout, str, Mapping[str, np.ndarray]]:
    """The format, the prefix of its keys, and the tensors under the format's names."""
    tensors = unwrapped(tensors)
    kind = kind_of(config)
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
