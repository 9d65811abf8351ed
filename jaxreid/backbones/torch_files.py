"""PyTorch's own files (`.pt`, `.pth`, `.bin`) as NumPy arrays, without PyTorch and without running what is in them.

Such a file is a pickle, a small program that may call any function it names. The unpickler here resolves the few names
that describe tensors to records of its own and refuses every other, so that nothing from outside this module is ever
called. Unpickling yields records only; arrays are cut from the stored bytes afterwards, with every bound checked.

Three forms are read: the zip archives of `torch.save`, the files it wrote before PyTorch 1.6, and TorchScript archives
(`torch.jit.save`, the form of OpenAI's CLIP), of which the weights are read and the program is not.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

# Names under which a checkpoint that holds more than the weights keeps them, in order of preference.
WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher")

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

STORAGE_TYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class ForbiddenName(pickle.UnpicklingError):
    """A pickle names something that is no part of a tensor."""


class Damaged(ValueError):
    """The content contradicts itself or is cut off."""


def read_torch_file(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by their dotted key, in the types they are stored in.

    Of a checkpoint that holds a state dict under one of `WRAPPERS` that one is taken; what is no tensor is left out.
    Raises ForbiddenName, or Damaged on a file that is cut off, corrupt or of another kind.
    """
    with open(file, "rb") as stream:
        try:
            zipped = stream.read(4) == b"PK\x03\x04"
            stream.seek(0)
            content, raw = (_read_zip if zipped else _read_legacy)(stream)
            return {key: tensor.cut(raw) for key, tensor in _tensors(_unwrapped(content))}
        except (ForbiddenName, Damaged):
            raise
        except Exception as error:  # zipfile and pickle raise a dozen types on bytes that mean nothing
            raise Damaged(f"{type(error).__name__}: {error}") from error


# ------------------------------------------------------------------------------------------------------ records


@dataclasses.dataclass(frozen=True, slots=True)
class _Storage:
    """Where the elements of a tensor lie: `count` elements of storage `key`, from element `start` on."""

    dtype: np.dtype
    key: str
    count: int
    start: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    def cut(self, raw: Callable[[str], bytes]) -> np.ndarray:
        """The array, from the bytes of its storage; raises Damaged where it would reach outside them."""
        storage, numbers = self.storage, (self.offset, *self.shape, *self.strides)
        sound = len(self.shape) == len(self.strides) and all(type(n) is int and n >= 0 for n in numbers)
        if not sound or not isinstance(storage, _Storage):
            raise Damaged(f"it describes a tensor of shape {self.shape} and strides {self.strides}")
        if 0 in self.shape:
            return np.zeros(self.shape, storage.dtype)
        content = raw(storage.key)
        if (storage.start + storage.count) * storage.dtype.itemsize > len(content):
            raise Damaged(f"storage {storage.key} has {len(content):,} bytes, fewer than its tensors take")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if last >= storage.count:
            raise Damaged(f"a tensor of shape {self.shape} reaches outside its storage {storage.key}")
        start = (storage.start + self.offset) * storage.dtype.itemsize
        elements = np.frombuffer(content, storage.dtype, last - self.offset + 1, start)
        steps = [step * storage.dtype.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(elements, self.shape, steps)
        return np.ascontiguousarray(view).reshape(self.shape)  # ascontiguousarray makes a scalar a vector


class _Module(dict):
    """A scripted module: its attributes by name. Its class, and with it its program, stays unread."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.update(state)


@dataclasses.dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: np.dtype


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _first(value: Any, *_: Any) -> Any:
    return value


def _as_tuple(*values: Any) -> tuple[Any, ...]:
    return values


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch", "Size"): _first,
    ("torch", "device"): _as_tuple,
    **{("torch.jit._pickle", f"build_{kind}list"): _first for kind in ("int", "double", "bool", "tensor")},
    ("torch.jit._pickle", "restore_type_tag"): _first,
    **{(m, name): _StorageType(dtype) for name, dtype in STORAGE_TYPES.items() for m in ("torch", "torch.storage")},
}


class _Unpickler(pickle.Unpickler):
    """Unpickles to records; `find_class` is the only way in which a pickle reaches anything callable."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream, encoding="utf-8")
        self.dtypes: dict[str, np.dtype] = {}  # by storage key

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if (module, name) not in ALLOWED:
            raise ForbiddenName(f"{module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """("storage", type, key, device, count), in old files with a view (key, start, count) as sixth."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _StorageType):
            raise Damaged(f"a storage described by {pid!r}")
        _, kind, key, _, count, *view = pid
        start = 0
        if view and view[0] is not None:
            _, start, count = view[0]
        if not isinstance(key, str) or not all(type(n) is int and n >= 0 for n in (start, count)):
            raise Damaged(f"a storage described by {pid!r}")
        self.dtypes.setdefault(key, kind.dtype)
        return _Storage(kind.dtype, key, count, start)


def _unwrapped(content: Any) -> Any:
    """The state dict of a checkpoint; one that is not wrapped holds no mappings."""
    while isinstance(content, Mapping) and not isinstance(content, _Module):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    return content


def _tensors(content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, _Tensor]]:
    if not isinstance(content, Mapping):
        raise Damaged(f"it holds a {type(content).__name__} where a state dict is expected")
    if depth > 50:  # a mapping that holds itself
        raise Damaged("its mappings are nested without an end")
    for key, value in content.items():
        if isinstance(value, _Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.", depth + 1)


# -------------------------------------------------------------------------------------------------------- files


def _read_zip(stream: BinaryIO) -> tuple[Any, Callable[[str], bytes]]:
    """The object of a zip archive, and the bytes of a storage by key; the stream stays in use."""
    archive = zipfile.ZipFile(stream)
    names = set(archive.namelist())
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Damaged(f"it is a zip archive with {len(pickles)} members */data.pkl where PyTorch writes one")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder").strip() != b"little":
        raise Damaged("its numbers are big-endian")
    content = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load()
    return content, functools.cache(lambda key: archive.read(f"{root}data/{key}"))  # tensors may share a storage


def _read_legacy(stream: BinaryIO) -> tuple[Any, Callable[[str], bytes]]:
    """As `_read_zip`. The file is five pickles (magic number, version, sizes of types, the object, the keys of the
    storages) and then every storage: the number of its elements as i64, and the elements."""
    try:
        magic = _Unpickler(stream).load()
    except ForbiddenName:
        raise
    except Exception:
        magic = None
    if magic != LEGACY_MAGIC:
        raise Damaged("it is neither a zip archive nor a pickle as PyTorch writes them")
    _Unpickler(stream).load()
    if not _Unpickler(stream).load()["little_endian"]:
        raise Damaged("its numbers are big-endian")
    unpickler = _Unpickler(stream)
    content = unpickler.load()
    raw: dict[str, bytes] = {}
    for key in _Unpickler(stream).load():
        size = int.from_bytes(stream.read(8), "little") * unpickler.dtypes[key].itemsize
        raw[key] = stream.read(size)
        if len(raw[key]) != size:
            raise Damaged(f"it ends within storage {key}")
    return content, raw.__getitem__
