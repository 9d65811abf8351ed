"""Checkpoints that authors released for a method: how one is recognized, what it says about a config, and which of its
tensors holds which parameters.

A method with such files has a `Released` in its attribute `released`, made of rows (tensors → parameters); those of the
packaged methods are the modules beside this one. `jaxreid.training.importing` reads the files.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxreid.backbones.layouts import Entry, Kind, part

Shapes = Mapping[str, tuple[int, ...]]  # of the tensors of a file, by name


def _no_doubt(*tensors: np.ndarray) -> str:
    del tensors
    return ""


@dataclasses.dataclass(frozen=True)
class Row:
    """Tensors of a file and the parameters or batch statistics that they hold together.

    Attributes:
      keys: names of the tensors.
      paths: of the parameters, joined by /.
      read: the tensors → an array for each path; raises ValueError where they cannot hold them.
      doubt: a sentence where the tensors are not as the row supposes and it goes on all the same, else "".
    """

    keys: tuple[str, ...]
    paths: tuple[str, ...]
    read: Callable[..., Iterable[np.ndarray]]
    doubt: Callable[..., str] = _no_doubt


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a file was trained on; None where it does not tell."""

    identities: int | None = None
    cameras: int | None = None


@dataclasses.dataclass(frozen=True)
class Released:
    """Released checkpoints of a method.

    Attributes:
      name: whose they are, for messages.
      marks: patterns of names; a file that has all of them is of this method. Of several methods, the one with most.
      sizes: (shapes, config) → what the file was trained on.
      settings: (shapes, config) → values of config keys that the file was trained with, where shapes tell.
      rows: (the method for these sizes) → where the tensors go.
      unused: pattern of names → why they have no use here.
      drawn: pattern of parameters' paths that no tensor holds → what they are; they stay as they are drawn.
      renamed: (pattern, replacement) for names that have more than one form.
    """

    name: str
    marks: tuple[str, ...]
    sizes: Callable[[Shapes, Any], Sizes]
    settings: Callable[[Shapes, Any], Mapping[str, Any]]
    rows: Callable[[Any], Sequence[Row]]
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    drawn: Mapping[str, str] = dataclasses.field(default_factory=dict)
    renamed: tuple[tuple[str, str], ...] = ()

    def canonical(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors, or whatever else there is of each, under the names that `rows` uses."""

        def rename(key: str) -> str:
            for pattern, replacement in self.renamed:
                key = re.sub(pattern, replacement, key)
            return key

        return {rename(key): value for key, value in tensors.items()}

    def marked(self, names: Iterable[str]) -> bool:
        names = list(names)
        return all(any(re.fullmatch(mark, name) for name in names) for mark in self.marks)


def rows_of(entries: Iterable[Entry], under: str = "") -> list[Row]:
    """The rows of a layout's entries, whose parameters are below the path `under`."""

    def made(entry: Entry) -> Row:
        paths = tuple(under + path for path in entry.paths)
        return Row((entry.key,), paths, lambda x: entry.arrangement.read(x, len(paths)))

    return [made(entry) for entry in entries]


def row(key: str, paths: str | tuple[str, ...], kind: Kind) -> list[Row]:
    """The rows of a layer; see `jaxreid.backbones.layouts.part`."""
    return rows_of(part(key, paths, kind))


def reason_for(name: str, reasons: Mapping[str, str]) -> str | None:
    """What a table of patterns says of a name."""
    return next((reason for pattern, reason in reasons.items() if re.fullmatch(pattern, name)), None)


def released_methods() -> Iterator[tuple[str, Released]]:
    """(name, `released`) of the packaged methods that have such checkpoints."""
    package = importlib.import_module("jaxreid.methods")
    for module in pkgutil.iter_modules(package.__path__):
        method = getattr(importlib.import_module(f"jaxreid.methods.{module.name}"), "METHOD", None)
        if released := getattr(method, "released", None):
            yield module.name, released
