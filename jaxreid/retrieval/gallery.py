"""A gallery of embeddings on disk; `search` looks for somebody in it.

    gallery/
      gallery.json      {"format": 1, "width": D, "parts": [{"name": "000000", "rows": n}, …], "model": {…}}, with
                        "distance" where that is not cosine, "shape" of a row that has several axes, and "pairs",
                        {NAME: {"shape": […], "dtype": "bfloat16"}}, where rows have features for a score of pairs
      000000.npy        f32[n, D], unit rows (of cosine), memory-mapped
      000000.jsonl      a line for each row: source video, time, camera, and whatever else the caller knows
      000000.pictures   one picture after the other, where the caller gave some; the lines say where each lies
      000000.NAME.npy   [n, …], features for pairs, memory-mapped; see retrieval.blocks for types

A part never changes once it is there, and only parts that gallery.json names exist: both are written aside and
renamed, so that a reader sees the gallery before or after an addition, never half of one.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.errors import MissingFileError, UserError
from jaxreid.files import held, read_json, written_aside
from jaxreid.retrieval.blocks import stored
from jaxreid.retrieval.distances import OF_PARTS, OF_UNIT
from jaxreid.shapes import AnyArray, Float, Int

MANIFEST, FORMAT = "gallery.json", 1
REMEDY = "bring the file back from a copy, or fill a new gallery from the same sources"
PICTURE = "picture"  # key of a row's place in the file of pictures


def checked_rows(features: AnyArray, what: str, distance: str = "cosine", first: int = 0) -> np.ndarray:
    """Rows as a distance compares them: [rows, width] or, of body parts, [rows, P, D], of unit length where that
    distance means it; messages number them from `first`.

    Raises:
      UserError: another number of axes, or a row is not finite or, where it needs a direction, zero.
    """
    features = np.asarray(features, np.float32)
    axes = ("rows", "parts", "width") if distance in OF_PARTS else ("rows", "width")
    if features.ndim != len(axes):
        raise UserError(f"{what} must be [{', '.join(axes)}] for distance {distance!r}, got {features.shape}")
    unit = distance in OF_UNIT
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    fine = np.isfinite(length) & ((length > 0) | (not unit))
    broken = np.flatnonzero(~fine.all(axis=tuple(range(1, fine.ndim))))
    if len(broken):
        row, kind = first + broken[0], "zero or not finite" if unit else "not finite"
        raise UserError(f"{len(broken)} rows of the {what} are {kind}, the first of them row {row}")
    return features / length if unit else features


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What goes wrong with reading a file of a gallery names it, with what to do."""
    try:
        yield
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}): {REMEDY}") from error


class Gallery:
    """A gallery as it was when it was opened; rows are numbered in the order in which they were added.

    Args:
      directory: where it lives.

    Attributes:
      width: D of the rows.
      distance: by which they are compared, a key of `DISTANCES`.
      shape: of a row, (D,) or, of body parts, (P, D / P).
      model: what made the rows, None where that was not said; its `digest` tells one from another.
      pairs: name → shape and type of what rows have for a score of pairs; empty where they have nothing.

    Raises:
      MissingFileError: there is no gallery.
      UserError: a file is damaged, or not what gallery.json says.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        path = self.directory / MANIFEST
        if not path.exists():
            raise MissingFileError(f"{self.directory} holds no gallery ({MANIFEST} is missing)")
        manifest = read_json(path, REMEDY)
        if not isinstance(manifest, dict) or not {"format", "width", "parts"} <= set(manifest):
            raise UserError(f"{path} is damaged (format, width or parts are missing): {REMEDY}")
        if manifest["format"] != FORMAT:
            raise UserError(f"{path}: format {manifest['format']!r}, this version reads {FORMAT}")
        self.manifest = manifest
        self.width: int = manifest["width"]
        self.distance: str = manifest.get("distance", "cosine")
        self.shape: tuple[int, ...] = tuple(manifest.get("shape", (self.width,)))
        self.model: dict[str, Any] | None = manifest.get("model")
        self.pairs = {
            name: jax.ShapeDtypeStruct(known["shape"], jnp.dtype(known["dtype"]))
            for name, known in manifest.get("pairs", {}).items()
        }
        self.parts = [self._open(part["name"], part["rows"]) for part in manifest["parts"]]
        self.names = [part["name"] for part in manifest["parts"]]
        self.starts = np.cumsum([0] + [len(part) for part in self.parts])

    def _open(self, name: str, rows: int) -> np.ndarray:
        path = self.directory / f"{name}.npy"
        with _damage(path):
            part = np.load(path, mmap_mode="r")
            if part.shape != (rows, self.width):
                raise ValueError(f"it is {part.shape}, {MANIFEST} says {(rows, self.width)}")
            return part

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: slice) -> Float[np.ndarray, "rows {self.width}"]:
        """Rows start…stop − 1; a view of the file where they lie in one part."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise UserError("a gallery is read by slices of consecutive rows")
        pieces = [
            part[max(start - first, 0) : max(stop - first, 0)]
            for part, first in zip(self.parts, self.starts[:-1], strict=True)
            if first < stop and first + len(part) > start
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros((0, self.width), np.float32), *pieces])

    def take(self, rows: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows {self.width}"]:
        """The rows of these numbers."""
        found = np.empty((len(rows), self.width), np.float32)
        place = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(place):
            chosen = place == number
            found[chosen] = self.parts[number][rows[chosen] - self.starts[number]]
        return found

    @functools.cached_property
    def _pair_files(self) -> dict[str, list[np.ndarray]]:
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.pairs}
        for name, known in self.pairs.items():
            for part, rows in zip(self.names, self.parts, strict=True):
                path = self.directory / f"{part}.{name}.npy"
                with _damage(path):
                    found[name].append(np.load(path, mmap_mode="r"))
                    if found[name][-1].shape != (len(rows), *known.shape):
                        raise ValueError(f"it is {found[name][-1].shape}, not {(len(rows), *known.shape)}")
        return found

    def take_pairs(self, rows: Int[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        """What the rows of these numbers have for a score of pairs, [rows, …] by name."""
        place = np.searchsorted(self.starts, rows, side="right") - 1
        taken = {}
        for name, known in self.pairs.items():
            files = self._pair_files[name]
            each = [files[part][row - self.starts[part]] for part, row in zip(place, rows, strict=True)]
            taken[name] = np.stack(each).view(known.dtype)
        return taken

    @functools.cached_property
    def _lines(self) -> list[list[bytes]]:
        lines = []
        for name, part in zip(self.names, self.parts, strict=True):
            path = self.directory / f"{name}.jsonl"
            with _damage(path):
                # At line feeds only: JSON leaves other separators of lines inside of texts.
                *found, rest = path.read_bytes().split(b"\n")
                if rest or len(found) != len(part):
                    raise ValueError(f"{len(found)} whole lines for {len(part)} rows")
                lines.append(found)
        return lines

    def _line(self, row: int) -> tuple[str, dict[str, Any]]:
        """(name of the row's part, what its line says)."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        (known,) = self._parsed(number, slice(row - int(self.starts[number]), row - int(self.starts[number]) + 1))
        return self.names[number], known

    def _parsed(self, number: int, lines: slice) -> list[dict[str, Any]]:
        """What some lines of a part say."""
        with _damage(self.directory / f"{self.names[number]}.jsonl"):
            known = json.loads(b"[" + b",".join(self._lines[number][lines]) + b"]")
            if not all(isinstance(row, dict) for row in known):
                raise ValueError("a line is no object")
            return known

    @functools.cached_property
    def columns(self) -> dict[str, list[Any]]:
        """`source`, `camera` and `tracklet` of all rows (None where a row has none), read in one go."""
        found: dict[str, list[Any]] = {"source": [], "camera": [], "tracklet": []}
        for number in range(len(self.parts)):
            known = self._parsed(number, slice(None))
            for key, column in found.items():
                column.extend([row.get(key) for row in known])
        return found

    def metadata(self, row: int) -> dict[str, Any]:
        """What is known of a row: `source`, `time` (seconds), `camera`, and what else was given."""
        _, known = self._line(row)
        known.pop(PICTURE, None)
        return known

    def picture(self, row: int) -> bytes | None:
        """The encoded picture that was given with a row."""
        name, known = self._line(row)
        if PICTURE not in known:
            return None
        start, stop = known[PICTURE]
        path = self.directory / f"{name}.pictures"
        with _damage(path), path.open("rb") as file:
            file.seek(start)
            found = file.read(stop - start)
            if len(found) != stop - start:
                raise ValueError(f"it ends before byte {stop}")
            return found

    def check_model(self, model: Mapping[str, Any]) -> None:
        """Refuses features that another model makes.

        Raises:
          UserError: the gallery is another model's, or does not say whose; the message names both.
        """
        if self.model is None:
            raise UserError(f"the gallery {self.directory} does not say which model filled it")
        if self.model["digest"] != model["digest"]:
            here, there = (
                ", ".join(f"{key} {str(value)[:200]}" for key, value in known.items()) for known in (model, self.model)
            )
            raise UserError(
                f"the gallery {self.directory} was filled by another model, and features of two are not comparable:\n"
                f"  gallery: {there}\n  now:     {here}"
            )


def add_to_gallery(
    directory: str | Path,
    features: AnyArray,
    metadata: Sequence[Mapping[str, Any]],
    pictures: Sequence[bytes] | None = None,
    model: Mapping[str, Any] | None = None,
    distance: str = "cosine",
    pairs: Mapping[str, np.ndarray] | None = None,
) -> Gallery:
    """Adds embeddings to a gallery, which is made where there is none; safe beside readers and other writers.

    Args:
      features: [n, D], n ≥ 1, or [n, P, D] of body parts; stored as unit rows where the distance means it.
      metadata: for each row a JSON-ready dict with `source`, `time` (seconds) and `camera`.
      pictures: for each row an encoded picture to show.
      model: what made the features, a JSON-ready dict; a gallery takes rows of equal `digest` only.
      distance: by which they are compared, a key of `DISTANCES`.
      pairs: what rows have for a score of pairs, [n, …] by name; all rows of a gallery have the same.

    Returns:
      The gallery with the new rows at its end.

    Raises:
      UserError: a row is zero or not finite, has another width, distance, model or features for pairs than the
        gallery's, or metadata or pictures do not fit.
    """
    features = checked_rows(features, "features", distance)
    shape, features = features.shape[1:], features.reshape(len(features), -1)
    if not len(features) or len(metadata) != len(features):
        raise UserError(f"{len(features)} features and {len(metadata)} metadata; one for each, and at least one")
    for row, known in enumerate(metadata):
        if missing := {"source", "time", "camera"} - set(known):
            raise UserError(f"metadata of row {row} lack {', '.join(sorted(missing))}")
    if pictures is not None:
        if len(pictures) != len(features):
            raise UserError(f"{len(features)} features and {len(pictures)} pictures; one for each, or none at all")
        bounds = np.cumsum([0, *map(len, pictures)]).tolist()
        metadata = [
            {**known, PICTURE: place} for known, place in zip(metadata, itertools.pairwise(bounds), strict=True)
        ]
    # In ASCII: whatever a name holds, no reader takes it for the end of a line.
    lines = "".join(json.dumps(dict(known)) + "\n" for known in metadata)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with held(directory / ".lock", wait=-1):
        path = directory / MANIFEST
        manifest = {"format": FORMAT, "width": features.shape[1], "parts": []}
        manifest |= {} if distance == "cosine" else {"distance": distance}
        manifest |= {} if len(shape) == 1 else {"shape": list(shape)}
        manifest |= {} if model is None else {"model": dict(model)}
        pairs = pairs or {}
        facts = {name: {"shape": list(x.shape[1:]), "dtype": str(x.dtype)} for name, x in pairs.items()}
        manifest |= {"pairs": facts} if pairs else {}
        if path.exists():
            existing = Gallery(directory)  # nothing is added to what cannot be read
            if model is not None:
                existing.check_model(model)
            manifest = existing.manifest
            if existing.shape != shape or existing.distance != distance:
                raise UserError(
                    f"features are {wide(shape)}, compared by {distance}, the gallery {directory} is "
                    f"{wide(existing.shape)}, compared by {existing.distance}"
                )
            if manifest.get("pairs", {}) != facts:
                known = ", ".join(manifest.get("pairs", {})) or "none"
                raise UserError(
                    f"the gallery {directory} has these features for pairs: {known}; the new rows: "
                    f"{', '.join(facts) or 'none'}. Fill a new gallery"
                )
        name = f"{len(manifest['parts']):06d}"
        with written_aside(directory / f"{name}.npy", synced=True) as aside, aside.open("wb") as file:
            np.save(file, features)
        for feature, rows in pairs.items():
            with written_aside(directory / f"{name}.{feature}.npy", synced=True) as aside, aside.open("wb") as file:
                np.save(file, np.ascontiguousarray(rows).view(stored(rows.dtype)))
        with written_aside(directory / f"{name}.jsonl", synced=True) as aside, aside.open("wb") as file:
            file.write(lines.encode())
        if pictures is not None:
            with written_aside(directory / f"{name}.pictures", synced=True) as aside, aside.open("wb") as file:
                file.writelines(pictures)
        manifest["parts"].append({"name": name, "rows": len(features)})
        with written_aside(path, synced=True) as aside, aside.open("wb") as file:
            file.write(json.dumps(manifest, indent=1).encode())
    return Gallery(directory)


def wide(shape: tuple[int, ...]) -> str:
    """The shape of a row in words."""
    return " × ".join(map(str, shape)) + " wide"
