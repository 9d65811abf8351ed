"""Reads tables of numbers out of MATLAB files, of the older formats and of version 7.3, which is HDF5."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxreid.errors import DataSetError

_HDF5 = b"\x89HDF\r\n\x1a\n"  # at the beginning, or after the header that MATLAB puts there


def read_matlab(name: str, path: Path, key: str) -> np.ndarray:
    """A table of whole numbers i64[rows, columns], as MATLAB shows it.

    Args:
      name: the data set, for messages.
      path: the file.
      key: the variable in it.

    Raises:
      DataSetError: the file is none of MATLAB's, lacks the variable, or that is something else.
    """
    with path.open("rb") as file:
        beginning = file.read(512 + len(_HDF5))
    read = _read_hdf5 if beginning.startswith(_HDF5) or beginning[512:] == _HDF5 else _read_older
    try:
        table = read(path, key)
    except DataSetError as error:
        raise DataSetError(f"{name}: {path}: {error}") from error
    except Exception as error:  # a damaged file breaks the readers in many ways
        raise DataSetError(f"{name}: {path} cannot be read as a MATLAB file ({error})") from error
    if table is None:
        raise DataSetError(f"{name}: {path} has no variable {key!r}")
    table = np.asarray(table)
    if table.ndim != 2 or table.dtype.kind not in "iuf" or not np.array_equal(table, np.round(table)):
        raise DataSetError(f"{name}: {path}: {key} is not a table of whole numbers")
    return table.astype(np.int64)


def _read_older(path: Path, key: str) -> np.ndarray | None:
    from scipy.io import loadmat

    return loadmat(path, variable_names=[key]).get(key)


def _read_hdf5(path: Path, key: str) -> np.ndarray | None:
    try:
        import h5py
    except ImportError as error:
        raise DataSetError("this MATLAB file is HDF5; reading it needs h5py: pip install 'jaxreid[hdf5]'") from error
    with h5py.File(path, "r") as file:
        return np.asarray(file[key]).T if key in file else None  # MATLAB stores columns first
