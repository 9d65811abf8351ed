"""Arrays on disk that are filled block by block: what was computed before a process died is not computed again.

    FOLDER/
      header.json       {"made_of": digest, "blocks": n, "arrays": {NAME: {"shape": [N, …], "dtype": "bfloat16"}}}
      blocks-done.npy   u8[n], 1 for each block whose rows are in the arrays
      rows-NAME.npy     [N, …], memory-mapped; of types that NumPy does not know as the whole numbers of their bits

The header comes last, once all files are there, so a folder without one is nothing. A block is marked after its rows
are on the disk: a process may be killed at any moment, and the machine may lose its power.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxreid.errors import writing
from jaxreid.files import read_json, write_json

HEADER, DONE = "header.json", "blocks-done.npy"


class BlockStore:
    """The store in a folder; an empty one where there was none, or one that was made of something else.

    Args:
      folder: where it lives.
      made_of: a digest of all that the arrays follow from: nothing is kept that followed from anything else.
      arrays: name → shape [N, …] and type (arrays, or `jax.ShapeDtypeStruct`).
      blocks: how many there are.
    """

    def __init__(self, folder: Path, made_of: str, arrays: Mapping[str, Any], blocks: int) -> None:
        self.folder, self.blocks = folder, blocks
        self.shapes = {name: tuple(x.shape) for name, x in arrays.items()}
        self.types = {name: jnp.dtype(x.dtype) for name, x in arrays.items()}
        facts = {name: {"shape": list(self.shapes[name]), "dtype": str(self.types[name])} for name in arrays}
        header = {"made_of": made_of, "blocks": blocks, "arrays": facts}
        path = folder / HEADER
        if not path.exists() or read_json(path, f"delete {folder}") != header:
            with writing(folder):
                remove(folder)
                folder.mkdir(parents=True)
                for name in arrays:
                    _make(self._path(name), self.shapes[name], stored(self.types[name]))
                _make(folder / DONE, (blocks,), np.dtype(np.uint8))
                write_json(path, header)

    def __len__(self) -> int:
        return next(iter(self.shapes.values()))[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(math.prod(shape) * self.types[name].itemsize for name, shape in self.shapes.items())

    def missing(self) -> list[int]:
        """The blocks that are not there yet, in their order."""
        return np.flatnonzero(np.load(self.folder / DONE) == 0).tolist()

    def put(self, block: int, start: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the rows of a block, which follow each other from row `start` on, and then that they are there."""
        with writing(self.folder):
            for name, rows in arrays.items():
                assert rows.dtype == self.types[name] and rows.shape[1:] == self.shapes[name][1:], name
                _write(self._path(name), start, np.ascontiguousarray(rows).view(stored(self.types[name])))
            self.mark(block)

    def mark(self, block: int) -> None:
        """Writes that the rows of a block are on the disk."""
        _write(self.folder / DONE, block, np.ones(1, np.uint8))

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers, of every array."""
        return {name: np.asarray(x[rows]).view(self.types[name]) for name, x in self._mapped.items()}

    @functools.cached_property
    def _mapped(self) -> dict[str, np.ndarray]:
        return {name: np.load(self._path(name), mmap_mode="r") for name in self.shapes}

    def _path(self, name: str) -> Path:
        return self.folder / f"rows-{name}.npy"


def remove(folder: Path) -> None:
    """Deletes a store, whole or not, where there is one."""
    shutil.rmtree(folder, ignore_errors=True)


def stored(dtype: np.dtype) -> np.dtype:
    """The type that a file has: NumPy's own, or whole numbers of as many bits."""
    return dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")


def _make(path: Path, shape: Iterable[int], dtype: np.dtype) -> None:
    """A file of zeros, which take no room on the disk until they are written over."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=tuple(shape))


def _write(path: Path, start: int, rows: np.ndarray) -> None:
    """Writes over the rows from `start` on. Not through a memory map, which ends the process where a disk is full."""
    offset = np.load(path, mmap_mode="r").offset  # pyright: ignore[reportAttributeAccessIssue]
    with path.open("rb+") as file:
        file.seek(offset + start * rows[:1].nbytes)
        file.write(rows.data)
        file.flush()
        os.fsync(file.fileno())
