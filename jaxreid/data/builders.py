"""Where data sets live, and the folders of their builders by name."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from jaxreid.errors import DataSetError, UserError
from jaxreid.files import expand

DATA_DIR_VARIABLE = "JAXREID_DATA_DIR"


def default_data_dir() -> Path:
    """`$JAXREID_DATA_DIR`, or `~/.cache/jaxreid/data`. Raises DataSetError where no home directory is known."""
    try:
        return expand(os.environ.get(DATA_DIR_VARIABLE) or "~/.cache/jaxreid/data")
    except UserError as error:
        raise DataSetError(
            f"no home directory is known to keep data sets in: choose a place with --data_dir or ${DATA_DIR_VARIABLE}"
        ) from error


def _builders() -> tuple[str, Path]:
    """The package that holds the builder folders, and its directory: packaged in a wheel, else beside `jaxreid`."""
    package = Path(__file__).resolve().parents[1]
    if (package / "data_builders").is_dir():
        return f"{package.name}.data_builders", package / "data_builders"
    return "data_builders", package.parent / "data_builders"


def builder_names() -> list[str]:
    """Names that `build` knows, sorted."""
    return sorted(path.parent.name for path in _builders()[1].glob("*/*_dataset_builder.py"))


def builder_package(name: str) -> ModuleType:
    """Imports the folder of a builder, but no module in it."""
    if name not in builder_names():
        raise DataSetError(
            f"no data set is called {name!r}; there are {', '.join(builder_names())} (in {_builders()[1]}). "
            "One's own pictures are built with the name 'folder' and --source DIR"
        )
    package, directory = _builders()
    root = str(directory.parent)
    if "." not in package and root not in sys.path:
        sys.path.append(root)
    module = importlib.import_module(f"{package}.{name}")
    found = Path(next(iter(module.__path__))).resolve()
    if found != directory / name:
        raise DataSetError(
            f"{package}.{name} was imported from {found}, not from {directory}: another package called "
            f"{package!r} comes first on sys.path; start from another directory"
        )
    return module


def builder_module(name: str, module: str) -> ModuleType:
    """A module of a builder's folder.

    Raises:
      DataSetError: no builder has this name; the message lists those that exist.
    """
    return importlib.import_module(f"{builder_package(name).__name__}.{module}")


def builder_class(name: str) -> type:
    """The TFDS builder class of a data set. Raises as `builder_module`."""
    return builder_module(name, f"{name}_dataset_builder").Builder
