"""Files of weights as named NumPy arrays: safetensors, PyTorch's own formats, sharded ones, Hugging Face folders."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jaxreid.backbones import torch_files
from jaxreid.errors import MissingFileError, UserError

Tensors = dict[str, np.ndarray]

# File names that hold a whole model in a folder or repository of Hugging Face, in order of preference.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
# What such a folder says about the model.
FOLDER_CONFIGS = ("config.json", "open_clip_config.json")

SAFETENSORS = ".safetensors"
INDEX = ".index.json"
TORCH = (".bin", ".pt", ".pth", ".ckpt", ".pth.tar")


class CheckpointError(UserError):
    """A weights file that can't be read, or does not hold the network that was asked for."""


def read_tensors(path: str | os.PathLike) -> Tensors:
    """All tensors of a checkpoint by key, in the types they are stored in.

    `path` is a safetensors file, a file of PyTorch (`torch_files`), the index of a sharded model (`*.index.json`),
    or a folder as Hugging Face saves it. Raises FileNotFoundError, or CheckpointError on an unreadable file.
    """
    file = weights_file(Path(path))
    return _read_shards(file) if file.name.endswith(INDEX) else _read_file(file)


def weights_file(path: Path) -> Path:
    """The file that holds the weights of a folder, or the file itself; its name says that it can be read."""
    if not path.exists():
        raise MissingFileError(
            f"no weights at {path}: give a safetensors or PyTorch file or a Hugging Face folder on this machine"
        )
    if path.is_dir():
        for name in FOLDER_FILES:
            if (path / name).exists():
                return path / name
        found = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
        raise MissingFileError(f"{path} holds none of {', '.join(FOLDER_FILES)} (it holds: {found})")
    if path.name.endswith((SAFETENSORS, INDEX, *TORCH)):
        return path
    raise CheckpointError(f"{path}: a file of weights ends in one of {', '.join((SAFETENSORS, INDEX, *TORCH))}")


def read_metadata(file: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors; empty for any other file."""
    if not file.name.endswith(SAFETENSORS):
        return {}
    with _readable(file), safetensors.safe_open(file, "np") as opened:
        return opened.metadata() or {}


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a JSON {type(content).__name__} where an object is expected")
    return content


def listing(title: str, items: Iterable[str]) -> str:
    """Lines for an error: a title with the number of items, and every item; nothing where there is none."""
    items = sorted(items)
    return "".join([f"\n  {title} ({len(items)}):", *(f"\n    {item}" for item in items)]) if items else ""


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turns what an unreadable file raises into one error that names the file and what to do."""
    try:
        yield
    except torch_files.ForbiddenName as error:
        raise CheckpointError(
            f"{file} names {error}, which is no part of a tensor: nothing in it was run, and it is not read. If you "
            "trust its source, save the bare weights where PyTorch is installed: safetensors.torch.save_file("
            "model.state_dict(), path)"
        ) from error
    except (safetensors.SafetensorError, UnicodeDecodeError, torch_files.Damaged) as error:
        kind = "safetensors" if file.name.endswith(SAFETENSORS) else "PyTorch"
        raise CheckpointError(
            f"{file} ({file.stat().st_size:,} bytes) is not a readable {kind} file ({error}): it may be cut off "
            "or a Git LFS pointer; fetch it again and compare its size or checksum with the source"
        ) from error


def _read_file(file: Path) -> Tensors:
    with _readable(file):
        if file.name.endswith(SAFETENSORS):
            return safetensors.numpy.load_file(file)
        return torch_files.read_torch_file(file)


def _read_shards(index: Path) -> Tensors:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no weight_map: it is not the index of a sharded model")
    shards = sorted(set(weight_map.values()))
    absent = [name for name in shards if not (index.parent / name).exists()]
    if absent:
        raise MissingFileError(f"{index} names shards that are not in its folder: {', '.join(absent)}")
    tensors: Tensors = {}
    for name in shards:
        tensors |= _read_file(index.parent / name)
    if tensors.keys() != weight_map.keys():
        raise CheckpointError(
            f"the shards beside {index} do not hold what it lists:"
            + listing("listed but absent", weight_map.keys() - tensors.keys())
            + listing("present but not listed", tensors.keys() - weight_map.keys())
        )
    return tensors
