"""Sidecars: what is known of a tracklet's frames beside the pixels (keypoints, 3-D joints, captions, …).

They live beside the built set and are added without rebuilding it; one folder per kind, keyed by `tracklet_id` and
`frame_index`. Layout of `PREPARED/sidecars/KIND/`:

    meta.json         format, kind, layout, dtype, shape of one frame's value, counts, the command that made it, and
                      what its maker noted (model, joint order, units, …)
    tracklets.txt     one tracklet_id per line, in the order of the entries
    offsets.npy       i64[N + 1]   entry n owns the rows offsets[n] … offsets[n + 1] − 1
    frame_index.npy   i32[F]       index of each row's frame inside the source tracklet, ascending in an entry
    values.npy        [F, *shape]  one value per frame, memory-mapped
    mask.npy          bool[F]      false where the maker found nothing in the frame (its value is zero)

Coordinates in pixels count from the edge of the stored frame: the centre of the first pixel is 0.5.

A text kind (captions) has `texts.jsonl` instead of the four arrays: line n is the list of texts of entry n. A folder
is written under another name and renamed when it is whole. Nothing is pickled.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shlex
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from jaxreid.data.names import printable
from jaxreid.errors import UserError
from jaxreid.files import read_json

FORMAT = 1


class MissingSidecar(UserError, LookupError):
    """A sidecar, or an entry of one, that is needed and not there; says which, and the command that makes it."""


def sidecar_dir(prepared_dir: str | os.PathLike[str], kind: str) -> Path:
    """Where the sidecar of a kind lives, beside a prepared set."""
    return Path(prepared_dir) / "sidecars" / kind


def sidecar_kinds(prepared_dir: str | os.PathLike[str]) -> list[str]:
    """The kinds that a prepared set has, sorted."""
    return sorted(meta.parent.name for meta in Path(prepared_dir).glob("sidecars/*/meta.json"))


def free_place(prepared_dir: str | os.PathLike[str], kind: str, overwrite: bool) -> Path:
    """Where a sidecar of a kind is to be written. Raises UserError: there is one already and `overwrite` is false."""
    place = sidecar_dir(prepared_dir, kind)
    if place.exists() and not overwrite:
        raise UserError(f"{place} exists; overwrite=True (--overwrite) makes the {kind} anew")
    return place


class SidecarWriter:
    """Writes one sidecar, entry by entry, in constant memory; as a context manager it commits on a clean exit.

    Args:
      prepared_dir: the prepared set.
      kind: "keypoints", "joints3d", "captions", …
      meta: JSON values to keep (model, order of joints, units); `command`, if given, is named to whoever misses an
        entry.
      overwrite: replace a sidecar of this kind; without it an existing one is an error.

    Raises:
      UserError: there is one already and `overwrite` is false.
    """

    def __init__(
        self,
        prepared_dir: str | os.PathLike[str],
        kind: str,
        meta: dict[str, Any] | None = None,
        overwrite: bool = False,
    ):
        self.kind = kind
        self._final = free_place(prepared_dir, kind, overwrite)
        self._meta = dict(meta or {})
        self._meta.setdefault("command", making(kind, prepared_dir))
        self._part = self._final.with_name(f"{kind}.incomplete-{uuid.uuid4().hex[:8]}")
        self._part.mkdir(parents=True)
        self._tracklets: list[str] = []
        self._seen: set[str] = set()
        self._offsets = [0]
        self._text: BinaryIO | None = None
        self._arrays: dict[str, _GrowingArray] = {}

    def add(
        self,
        tracklet_id: str,
        values: np.ndarray,
        frame_index: Sequence[int] | np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> None:
        """Adds a tracklet's values [T, *shape], their frame indices i32[T] (default 0…T−1) and mask bool[T].

        All entries share dtype and shape of a frame's value; rows that `mask` excludes are stored as zeros.

        Raises:
          UserError: the tracklet was added before, or lengths, shape or dtype do not agree.
        """
        if self._text is not None:
            raise UserError(f"sidecar {self.kind}: {tracklet_id} has values, earlier entries have texts")
        values = np.asarray(values)
        count = len(values)
        index = np.arange(count, dtype=np.int32) if frame_index is None else np.asarray(frame_index, np.int32)
        mask = np.ones(count, bool) if mask is None else np.asarray(mask, bool)
        if index.shape != (count,) or mask.shape != (count,) or np.any(np.diff(index) <= 0):
            raise UserError(
                f"sidecar {self.kind}: {tracklet_id} has {count} values, frame_index {index.shape} (must ascend) "
                f"and mask {mask.shape}"
            )
        if not self._arrays:
            self._arrays = {
                "values": _GrowingArray(self._part / "values.npy", values.dtype, values.shape[1:]),
                "frame_index": _GrowingArray(self._part / "frame_index.npy", np.dtype(np.int32), ()),
                "mask": _GrowingArray(self._part / "mask.npy", np.dtype(bool), ()),
            }
        stored = self._arrays["values"]
        if values.dtype != stored.dtype or values.shape[1:] != stored.shape:
            raise UserError(
                f"sidecar {self.kind}: {tracklet_id} has {values.dtype}{list(values.shape[1:])} per frame, "
                f"earlier entries {stored.dtype}{list(stored.shape)}"
            )
        self._name(tracklet_id)
        stored.append(np.where(mask.reshape((count,) + (1,) * (values.ndim - 1)), values, np.zeros((), values.dtype)))
        self._arrays["frame_index"].append(index)
        self._arrays["mask"].append(mask)
        self._offsets.append(self._offsets[-1] + count)

    def add_text(self, tracklet_id: str, texts: str | Sequence[str]) -> None:
        """Adds a tracklet's text or texts.

        Raises:
          UserError: the tracklet was added before, or earlier entries have values.
        """
        if self._arrays:
            raise UserError(f"sidecar {self.kind}: {tracklet_id} has texts, earlier entries have values")
        self._name(tracklet_id)
        if self._text is None:
            self._text = (self._part / "texts.jsonl").open("wb")
        listed = [texts] if isinstance(texts, str) else list(texts)
        self._text.write(json.dumps(listed, ensure_ascii=False).encode() + b"\n")

    def note(self, **meta: Any) -> None:
        """Adds to what `meta.json` will hold, such as counts that are known at the end."""
        self._meta.update(meta)

    def _name(self, tracklet_id: str) -> None:
        if tracklet_id in self._seen or not tracklet_id or "\n" in tracklet_id:
            problem = "was added before" if tracklet_id in self._seen else "is empty or has a line break"
            raise UserError(f"sidecar {self.kind}: tracklet id {tracklet_id!r} {problem}")
        self._seen.add(tracklet_id)
        self._tracklets.append(tracklet_id)

    def close(self) -> Path:
        """Completes the files and gives the folder its name; returns it."""
        self._release()
        values = self._arrays.get("values")
        meta = {
            **self._meta,
            "format": FORMAT,
            "kind": self.kind,
            "layout": "frames" if values is not None else "texts",
            "tracklets": len(self._tracklets),
        }
        if values is not None:
            meta |= {"dtype": str(values.dtype), "shape": list(values.shape), "frames": self._offsets[-1]}
            np.save(self._part / "offsets.npy", np.asarray(self._offsets, np.int64))
        elif self._text is None:
            (self._part / "texts.jsonl").touch()
        (self._part / "tracklets.txt").write_text("".join(f"{name}\n" for name in self._tracklets), encoding="utf-8")
        (self._part / "meta.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")
        old = self._final.with_name(f"{self.kind}.replaced-{uuid.uuid4().hex[:8]}")
        if self._final.exists():
            self._final.rename(old)
        self._part.rename(self._final)
        shutil.rmtree(old, ignore_errors=True)
        return self._final

    def discard(self) -> None:
        """Removes what was written so far."""
        self._release()
        shutil.rmtree(self._part, ignore_errors=True)

    def _release(self) -> None:
        for file in (self._text, *self._arrays.values()):
            if file is not None:
                file.close()

    def __enter__(self) -> SidecarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def write_sidecar(
    prepared_dir: str | os.PathLike[str],
    kind: str,
    entries: Iterable[tuple],
    meta: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a sidecar from a stream of entries and returns its folder.

    Args:
      prepared_dir: the prepared set.
      kind: "keypoints", "joints3d", "captions", …
      entries: `(tracklet_id, values[, frame_index[, mask]])`, see `SidecarWriter.add`; or `(tracklet_id, text)` or
        `(tracklet_id, [text, …])`.
      meta: see `SidecarWriter`.
      overwrite: see `SidecarWriter`.
    """
    with SidecarWriter(prepared_dir, kind, meta, overwrite) as writer:
        for tracklet_id, *what in entries:
            if isinstance(what[0], np.ndarray):
                writer.add(tracklet_id, *what)
            else:
                writer.add_text(tracklet_id, *what)
    return sidecar_dir(prepared_dir, kind)


class Sidecar:
    """Reads one sidecar; memory-mapped, cheap to pickle into the loader's worker processes.

    Attributes:
      kind: its name.
      meta: what `meta.json` holds.
      tracklets: the tracklet ids that have an entry, in the order of writing.
    """

    def __init__(self, directory: Path, meta: dict[str, Any]):
        self.directory, self.meta, self.kind = directory, meta, str(meta["kind"])
        self.tracklets = (directory / "tracklets.txt").read_text(encoding="utf-8").split("\n")[:-1]
        self._row = {tracklet: row for row, tracklet in enumerate(self.tracklets)}
        self.is_text = meta["layout"] == "texts"
        if self.is_text:
            self._texts = (directory / "texts.jsonl").read_bytes().splitlines()
            lengths = {"texts.jsonl": len(self._texts), "tracklets.txt": len(self.tracklets)}
        elif self.tracklets:
            self._offsets = _array(directory / "offsets.npy")
            self._frame_index, self._values, self._mask = (
                _array(directory / f"{name}.npy", mmap_mode="r") for name in ("frame_index", "values", "mask")
            )
            lengths = {
                "frame_index.npy": len(self._frame_index),
                "values.npy": len(self._values),
                "mask.npy": len(self._mask),
                "offsets.npy": int(self._offsets[-1]),
            }
        else:
            lengths = {}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{directory}: files disagree on the number of rows: {lengths}; make the sidecar anew")

    @classmethod
    def open(cls, prepared_dir: str | os.PathLike[str], kind: str) -> Sidecar:
        """Opens the sidecar of a kind beside a prepared set.

        Raises:
          MissingSidecar: there is none.
          UserError: its files are of another format or disagree.
        """
        directory = sidecar_dir(prepared_dir, kind)
        if not (directory / "meta.json").is_file():
            have = ", ".join(sidecar_kinds(prepared_dir)) or "none"
            raise MissingSidecar(
                f"no {kind} sidecar at {directory} (sidecars there: {have}); make it with: {making(kind, prepared_dir)}"
            )
        return cls._read(directory)

    @classmethod
    def _read(cls, directory: Path) -> Sidecar:
        meta = read_json(directory / "meta.json", "make the sidecar anew")
        if meta.get("format") != FORMAT:
            raise UserError(f"{directory}: sidecar format {meta.get('format')}, this library reads {FORMAT}")
        return cls(directory, meta)

    def __reduce__(self) -> tuple:
        return Sidecar._read, (self.directory,)

    @functools.cached_property
    def source(self) -> str:
        """Who made it, a model or a command, and sixteen hex digits that change with any byte of it."""
        found = hashlib.sha256()
        for path in sorted(self.directory.iterdir()):
            with path.open("rb") as file:
                found.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return f"{self.meta.get('model', self.meta['command'])}, {found.hexdigest()[:16]}"

    def __contains__(self, tracklet_id: str) -> bool:
        return tracklet_id in self._row

    def __len__(self) -> int:
        return len(self.tracklets)

    def missing(self, tracklet_ids: Iterable[str]) -> list[str]:
        """Those of the given tracklets that have no entry, in the given order."""
        return [tracklet for tracklet in tracklet_ids if tracklet not in self._row]

    def read(self, tracklet_id: str, frame_index: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values [T, *shape] and mask bool[T] of the frames `frame_index` i32[T] (any order, repeats allowed).

        Raises:
          MissingSidecar: the tracklet, or one of the frames, has no entry.
          UserError: the kind is one of texts.
        """
        rows, found = self._rows(tracklet_id, frame_index)
        if not found.all():
            raise MissingSidecar(
                f"the {self.kind} sidecar {self.directory} has no frames "
                f"{np.asarray(frame_index)[~found][:10].tolist()} of tracklet {tracklet_id!r}; make it anew with: "
                f"{self.meta['command']}"
            )
        return np.asarray(self._values[rows]), np.asarray(self._mask[rows])

    def read_known(self, tracklet_id: str, frame_index: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `read`; a tracklet or frame without an entry has value 0 and mask false."""
        shape = (len(frame_index), *self.meta.get("shape", ()))
        values, mask = np.zeros(shape, self.meta.get("dtype", np.float32)), np.zeros(len(frame_index), bool)
        if tracklet_id in self:
            rows, found = self._rows(tracklet_id, frame_index)
            values[found], mask[found] = self._values[rows[found]], self._mask[rows[found]]
        return values, mask

    def _rows(self, tracklet_id: str, frame_index: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the frames of a tracklet stand, i64[T], and whether they do, bool[T]."""
        row = self._find(tracklet_id)
        if self.is_text:
            raise UserError(f"the {self.kind} sidecar {self.directory} holds texts, not arrays: use texts()")
        start, stop = int(self._offsets[row]), int(self._offsets[row + 1])
        known, wanted = self._frame_index[start:stop], np.asarray(frame_index, np.int64)
        position = np.searchsorted(known, wanted)
        found = position < len(known)
        found[found] = known[position[found]] == wanted[found]
        return start + np.minimum(position, max(len(known) - 1, 0)), found

    def texts(self, tracklet_id: str) -> list[str]:
        """The texts of a tracklet, of a text kind.

        Raises:
          MissingSidecar: the tracklet has no entry.
        """
        row = self._find(tracklet_id)
        if not self.is_text:
            raise UserError(f"the {self.kind} sidecar {self.directory} holds arrays, not texts: use read()")
        return json.loads(self._texts[row])

    def _find(self, tracklet_id: str) -> int:
        row = self._row.get(tracklet_id)
        if row is None:
            raise MissingSidecar(
                f"the {self.kind} sidecar {self.directory} has no tracklet {tracklet_id!r} ({len(self)} others); "
                f"make it anew with: {self.meta['command']}"
            )
        return row


def _array(path: Path, mmap_mode: Any = None) -> np.ndarray:
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is empty or damaged ({error}): make the sidecar anew") from error


class _GrowingArray:
    """An .npy file that rows are appended to; its header is rewritten at the end, when the length is known."""

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, ...]):
        if dtype.hasobject:
            raise UserError(f"{path.stem}: arrays of Python objects cannot be stored in a sidecar")
        self.dtype, self.shape, self._rows = dtype, shape, 0
        self._file = path.open("wb")
        self._write_header()
        self._start = self._file.tell()

    def _write_header(self) -> None:
        # NumPy pads this header so that the first axis can grow to any length without moving the data.
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self._rows, *self.shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
        self._rows += len(rows)

    def close(self) -> None:
        if self._file.closed:
            return
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._start:
            raise RuntimeError("the .npy header changed its length while the array grew")
        self._file.close()


def making(kind: str, dataset: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None) -> str:
    """The commands that make a sidecar of a kind, for messages; `dataset` as they take it."""
    place = shlex.quote(printable(dataset))
    where = f" --data_dir={shlex.quote(printable(data_dir))}" if data_dir is not None else ""
    makes = f"jaxreid make-sidecars {place} --kind={kind} --backend=…{where}, or with: "
    made = makes if kind in ("keypoints", "joints3d") else ""
    return (
        f"{made}jaxreid import-sidecar {kind} --dataset={place} --source=FILES{where} "
        "(docs/sidecars.md says how to make others)"
    )
