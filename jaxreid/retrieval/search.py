"""A gallery of embeddings on disk, and exact or approximate search in it.

    gallery/
      gallery.json      {"format": 1, "width": D, "parts": [{"name": "000000", "rows": n}, …], "model": {…}}
      000000.npy        f32[n, D], unit rows, memory-mapped
      000000.jsonl      a line for each row: source video, time, camera, and whatever else the caller knows
      000000.pictures   one picture after the other, where the caller gave some; the lines say where each lies

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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxreid.errors import MissingFileError, MissingPackageError, UserError
from jaxreid.files import held, read_json, written_aside
from jaxreid.retrieval.neighbours import block_of, map_rows, top_k
from jaxreid.shapes import AnyArray, Array, Bool, Float, Int

MANIFEST, INDEX, FORMAT = "gallery.json", "index.faiss", 1
REMEDY = "bring the file back from a copy, or fill a new gallery from the same sources"
PICTURE = "picture"  # key of a row's place in the file of pictures
CHUNK_BYTES = 1 << 25  # of gallery rows on each CPU device at a time; accelerators take 16 times as many


class Found(NamedTuple):
    """The nearest gallery rows of queries, nearest first: `index`, −1 where the gallery has fewer rows, and cosine
    `similarity`, −infinity there."""

    index: Int[np.ndarray, "queries neighbours"]
    similarity: Float[np.ndarray, "queries neighbours"]


def checked_unit_rows(features: AnyArray, what: str, first: int = 0) -> Float[np.ndarray, "rows dim"]:
    """Rows of length one; messages number them from `first`.

    Raises:
      UserError: not a matrix, or a row is zero or not finite.
    """
    features = np.asarray(features, np.float32)
    if features.ndim != 2:
        raise UserError(f"{what} must be [rows, width], got {features.shape}")
    length = np.linalg.norm(features, axis=1, keepdims=True)
    broken = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if len(broken):
        row = first + broken[0]
        raise UserError(f"{len(broken)} rows of the {what} are zero or not finite, the first of them row {row}")
    return features / length


# ---------------------------------------------------------------------------------------------------- on disk


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
      model: what made the rows, None where that was not said; its `digest` tells one from another.

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
        self.model: dict[str, Any] | None = manifest.get("model")
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
) -> Gallery:
    """Adds embeddings to a gallery, which is made where there is none; safe beside readers and other writers.

    Args:
      features: [n, D], n ≥ 1; stored as unit rows.
      metadata: for each row a JSON-ready dict with `source`, `time` (seconds) and `camera`.
      pictures: for each row an encoded picture to show.
      model: what made the features, a JSON-ready dict; a gallery takes rows of equal `digest` only.

    Returns:
      The gallery with the new rows at its end.

    Raises:
      UserError: a row is zero or not finite, has another width or model than the gallery's, or metadata or pictures
        do not fit.
    """
    features = checked_unit_rows(features, "features")
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
        manifest |= {} if model is None else {"model": dict(model)}
        if path.exists():
            existing = Gallery(directory)  # nothing is added to what cannot be read
            if model is not None:
                existing.check_model(model)
            manifest = existing.manifest
        if manifest["width"] != features.shape[1]:
            raise UserError(f"features are {features.shape[1]} wide, the gallery {directory} {manifest['width']}")
        name = f"{len(manifest['parts']):06d}"
        with written_aside(directory / f"{name}.npy", synced=True) as aside, aside.open("wb") as file:
            np.save(file, features)
        with written_aside(directory / f"{name}.jsonl", synced=True) as aside, aside.open("wb") as file:
            file.write(lines.encode())
        if pictures is not None:
            with written_aside(directory / f"{name}.pictures", synced=True) as aside, aside.open("wb") as file:
                file.writelines(pictures)
        manifest["parts"].append({"name": name, "rows": len(features)})
        with written_aside(path, synced=True) as aside, aside.open("wb") as file:
            file.write(json.dumps(manifest, indent=1).encode())
    return Gallery(directory)


# ------------------------------------------------------------------------------------------------------ exact


def search_gallery(
    queries: AnyArray,
    gallery: Gallery | AnyArray,
    k: int = 10,
    chunk: int | None = None,
    approximate: bool = False,
    devices: Sequence[Any] | None = None,
    allowed: np.ndarray | None = None,
) -> Found:
    """The k nearest gallery rows of each query by cosine, equal ones in the order of the gallery.

    Gallery rows pass through the devices in chunks, each device ranking its share; no distance is kept.

    Args:
      queries: [Q, D], made unit rows.
      gallery: a `Gallery`, or rows [G, D] (of a memory map as well), made unit rows.
      k: neighbours of a query.
      chunk: gallery rows at a time, over all devices.
      approximate: with `jax.lax.approx_max_k`: faster on a TPU, recall 0.95 or more; exact elsewhere.
      devices: that take part; all by default.
      allowed: bool[G], gallery rows that may be found; all where not given.

    Raises:
      UserError: an empty gallery, another width, rows that are zero or not finite, `allowed` of another length, or k
        below 1.
    """
    if isinstance(gallery, Gallery):
        width = gallery.width
    else:
        gallery = gallery if isinstance(gallery, (np.ndarray, jax.Array)) else np.asarray(gallery)
        if gallery.ndim != 2:
            raise UserError(f"a gallery must be [rows, width], got {gallery.shape}")
        width = gallery.shape[1]
    count = len(gallery)
    queries, allowed = _checked(queries, width, count, k), _allowed(allowed, count)
    mesh = Mesh(np.array(devices if devices is not None else jax.devices()), ("rows",))
    fits = CHUNK_BYTES * (1 if mesh.devices.flat[0].platform == "cpu" else 16) // (4 * width) * mesh.size
    size = -(-min(chunk or fits, count) // mesh.size) * mesh.size
    query = jax.device_put(queries, NamedSharding(mesh, P()))
    best = jax.device_put(_nothing(len(queries), k), NamedSharding(mesh, P()))
    step = _step(mesh, k, approximate)
    for start in range(0, count, size):
        rows = gallery[start : start + size]
        rows = rows if isinstance(gallery, Gallery) else checked_unit_rows(rows, "gallery", start)
        if len(rows) < size:
            rows = np.concatenate([rows, np.zeros((size - len(rows), width), np.float32)])
        may = np.pad(allowed[start : start + size], (0, size - len(allowed[start : start + size])))
        rows, may = jax.device_put((rows, may), NamedSharding(mesh, P("rows")))
        best = step(query, rows, may, best, np.int32(start))
    similarity, index = jax.device_get(best)
    return Found(index.astype(np.int64), similarity)


def _checked(queries: AnyArray, width: int, count: int, k: int) -> Float[np.ndarray, "queries {width}"]:
    """Unit rows of queries that a gallery of `count` rows can be searched for."""
    queries = checked_unit_rows(queries, "queries")
    if not count or not len(queries):
        raise UserError(f"{len(queries)} queries and {count} gallery rows; both are needed")
    if width != queries.shape[1]:
        raise UserError(f"queries are {queries.shape[1]} wide, the gallery {width}")
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    return queries


def _allowed(allowed: np.ndarray | None, count: int) -> Bool[np.ndarray, " {count}"]:
    allowed = np.ones(count, bool) if allowed is None else np.asarray(allowed, bool)
    if allowed.shape != (count,):
        raise UserError(f"allowed is {allowed.shape}, the gallery has {count} rows")
    return allowed


def _nothing(queries: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1, np.int32)


@functools.lru_cache(maxsize=16)
def _step(mesh: Mesh, k: int, approximate: bool) -> Any:
    """(queries, chunk, which of its rows may be found, best so far, first row of the chunk) → best."""

    def local(query: Array, rows: Array, may: Array, best: Any, first: Array) -> tuple[Array, Array]:
        size = rows.shape[0]
        column = first + jax.lax.axis_index("rows") * size + jnp.arange(size, dtype=jnp.int32)

        def of_block(numbers: Array) -> tuple[Array, Array]:
            similarity = jnp.matmul(query[numbers], rows.T, precision=jax.lax.Precision.HIGHEST)
            similarity = jnp.where(may, similarity, -jnp.inf)
            largest = jax.lax.approx_max_k if approximate else top_k
            value, place = largest(similarity, min(k, size))
            return value, jnp.where(jnp.isneginf(value), -1, column[place])

        mine = map_rows(of_block, query.shape[0], block_of(query.shape[0], size))
        every = jax.lax.all_gather(mine, "rows", axis=1, tiled=True)  # in the order of the gallery
        value, place = top_k(jnp.concatenate([best[0], every[0]], axis=1), k)
        return value, jnp.take_along_axis(jnp.concatenate([best[1], every[1]], axis=1), place, axis=1)

    whole, split = P(), P("rows")
    return jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=(whole, split, split, whole, whole), out_specs=whole, check_vma=False)
    )


# ------------------------------------------------------------------------------------------------------ FAISS


def _faiss() -> Any:
    try:
        import faiss  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackageError("an index needs FAISS: pip install 'jaxreid[search]'") from error
    return faiss


def build_index(gallery: Gallery, lists: int | None = None, codes: int = 64, training: int = 100_000) -> Path:
    """An IVF-PQ index of the gallery beside it, for galleries that are larger than memory.

    Jégou et al. (2011), "Product Quantization for Nearest Neighbor Search". It takes an earlier one's place once it
    is whole. Rows that are added later are searched exactly until it is built again.

    Args:
      lists: cells of the coarse quantiser; about 4·√rows where not given.
      codes: bytes of a row; must divide the width.
      training: rows, evenly spread, that the quantisers are trained on.

    Raises:
      MissingPackageError: FAISS is not installed.
      UserError: the gallery is empty, `codes` does not divide its width, or `lists` or `training` is below 1.
    """
    faiss = _faiss()
    if not len(gallery) or codes < 1 or gallery.width % codes:
        raise UserError(f"an index needs rows ({len(gallery)}) and codes={codes} that divide the width {gallery.width}")
    if training < 1 or (lists is not None and lists < 1):
        raise UserError(f"an index needs at least 1 list and 1 row to train on, got lists={lists}, training={training}")
    lists = lists or max(1, min(int(4 * np.sqrt(len(gallery))), len(gallery) // 39))
    bits = int(np.clip(np.log2(max(len(gallery) // 39, 2)), 1, 8))  # FAISS asks for 39 rows of a centroid
    quantiser = faiss.IndexFlatIP(gallery.width)
    index = faiss.IndexIVFPQ(quantiser, gallery.width, lists, codes, bits, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # small galleries need no warning
    index.train(gallery.take(np.unique(np.linspace(0, len(gallery) - 1, min(training, len(gallery))).astype(int))))
    step = max(CHUNK_BYTES // (4 * gallery.width), 1)
    for start in range(0, len(gallery), step):
        index.add(np.ascontiguousarray(gallery[start : start + step]))
    path = gallery.directory / INDEX
    with written_aside(path, synced=True) as aside, aside.open("wb") as file:
        file.write(faiss.serialize_index(index).tobytes())
    return path


def search_index(
    queries: AnyArray,
    gallery: Gallery,
    k: int = 10,
    probes: int = 16,
    candidates: int = 8,
    allowed: np.ndarray | None = None,
) -> Found:
    """The k nearest rows by the index of `build_index`, ranked by their exact cosine; not all of them need be found.

    Args:
      queries: [Q, D], made unit rows.
      probes: cells that are looked at.
      candidates: times k, how many rows the index proposes.
      allowed: bool[G], as for `search_gallery`; others take up proposals.

    Raises:
      MissingPackageError: FAISS is not installed. MissingFileError: there is no index.
      UserError: see `search_gallery`; `probes` or `candidates` below 1; the index is damaged or another gallery's.
    """
    faiss = _faiss()
    path = gallery.directory / INDEX
    if not path.exists():
        raise MissingFileError(f"{path} is missing: make it with build_index")
    queries = _checked(queries, gallery.width, len(gallery), k)
    if probes < 1 or candidates < 1:
        raise UserError(f"probes={probes} and candidates={candidates} must be at least 1")
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise UserError(f"{path} is damaged ({str(error)[:200]}): delete it, and build_index makes it again") from error
    if index.d != gallery.width:
        raise UserError(f"{path} is of rows {index.d} wide, the gallery's are {gallery.width}: delete it")
    index.nprobe = probes
    _, proposed = index.search(queries, min(k * candidates, index.ntotal))
    allowed = _allowed(allowed, len(gallery))
    exists = (proposed >= 0) & (proposed < len(gallery))
    exists &= allowed[np.where(exists, proposed, 0)]
    known = gallery.take(np.where(exists, proposed, 0).reshape(-1)).reshape(*proposed.shape, -1)
    similarity = np.where(exists, np.einsum("qd,qcd->qc", queries, known), -np.inf).astype(np.float32)
    if index.ntotal < len(gallery):
        later = search_gallery(queries, gallery[index.ntotal : len(gallery)], k, allowed=allowed[index.ntotal :])
        proposed = np.concatenate([proposed, np.where(later.index < 0, -1, later.index + index.ntotal)], axis=1)
        similarity = np.concatenate([similarity, later.similarity], axis=1)
    padding = ((0, 0), (0, k))
    proposed = np.pad(proposed, padding, constant_values=-1)
    similarity = np.pad(similarity, padding, constant_values=-np.inf)
    order = np.lexsort((proposed, -similarity), axis=1)[:, :k]
    similarity = np.take_along_axis(similarity, order, axis=1)
    return Found(np.where(np.isneginf(similarity), -1, np.take_along_axis(proposed, order, axis=1)), similarity)
