"""Exact or approximate search in a gallery of embeddings."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxreid.errors import MissingFileError, MissingPackageError, UserError
from jaxreid.files import written_aside
from jaxreid.retrieval.distances import DISTANCES
from jaxreid.retrieval.gallery import Gallery, checked_rows, wide
from jaxreid.retrieval.neighbours import block_of, map_rows, top_k
from jaxreid.shapes import AnyArray, Array, Bool, Float, Int

INDEX = "index.faiss"
CHUNK_BYTES = 1 << 25  # of gallery rows on each CPU device at a time; accelerators take 16 times as many


class Found(NamedTuple):
    """The nearest gallery rows of queries, nearest first: `index`, −1 where the gallery has fewer rows, and their
    `similarity`, −infinity there: the cosine, or the distance with a minus."""

    index: Int[np.ndarray, "queries neighbours"]
    similarity: Float[np.ndarray, "queries neighbours"]


# ------------------------------------------------------------------------------------------------------ exact


def search_gallery(
    queries: AnyArray,
    gallery: Gallery | AnyArray,
    k: int = 10,
    chunk: int | None = None,
    approximate: bool = False,
    devices: Sequence[Any] | None = None,
    allowed: np.ndarray | None = None,
    distance: str = "cosine",
) -> Found:
    """The k nearest gallery rows of each query, equal ones in the order of the gallery.

    Gallery rows pass through the devices in chunks, each device ranking its share; no distance is kept.

    Args:
      queries: [Q, D] or, of body parts, [Q, P, D].
      gallery: a `Gallery`, or such rows [G, …] (of a memory map as well).
      k: neighbours of a query.
      chunk: gallery rows at a time, over all devices.
      approximate: with `jax.lax.approx_max_k`: faster on a TPU, recall 0.95 or more; exact elsewhere.
      devices: that take part; all by default.
      allowed: bool[G], gallery rows that may be found; all where not given.
      distance: of rows that are no `Gallery`, which knows its own; a key of `DISTANCES`.

    Raises:
      UserError: an empty gallery, another width, rows that are zero or not finite, `allowed` of another length, or k
        below 1.
    """
    if isinstance(gallery, Gallery):
        shape, distance = gallery.shape, gallery.distance
    else:
        gallery = gallery if isinstance(gallery, (np.ndarray, jax.Array)) else np.asarray(gallery)
        checked_rows(gallery[:0], "gallery", distance)
        shape = gallery.shape[1:]
    count, width = len(gallery), math.prod(shape)
    queries, allowed = _checked(queries, shape, distance, count, k), _allowed(allowed, count)
    mesh = Mesh(np.array(devices if devices is not None else jax.devices()), ("rows",))
    fits = CHUNK_BYTES * (1 if mesh.devices.flat[0].platform == "cpu" else 16) // (4 * width) * mesh.size
    size = -(-min(chunk or fits, count) // mesh.size) * mesh.size
    query = jax.device_put(queries, NamedSharding(mesh, P()))
    best = jax.device_put(_nothing(len(queries), k), NamedSharding(mesh, P()))
    step = _step(mesh, k, approximate, distance, shape)
    for start in range(0, count, size):
        rows = gallery[start : start + size]
        if not isinstance(gallery, Gallery):
            rows = checked_rows(rows, "gallery", distance, start).reshape(-1, width)
        if len(rows) < size:
            rows = np.concatenate([rows, np.zeros((size - len(rows), width), np.float32)])
        may = np.pad(allowed[start : start + size], (0, size - len(allowed[start : start + size])))
        rows, may = jax.device_put((rows, may), NamedSharding(mesh, P("rows")))
        best = step(query, rows, may, best, np.int32(start))
    similarity, index = jax.device_get(best)
    return Found(index.astype(np.int64), similarity)


def _checked(
    queries: AnyArray, shape: tuple[int, ...], distance: str, count: int, k: int
) -> Float[np.ndarray, "queries width"]:
    """Rows of queries that a gallery of `count` rows can be searched for; a gallery's own come without their axes."""
    queries = np.asarray(queries, np.float32)
    if queries.ndim == 2 and queries.shape[1] == math.prod(shape):
        queries = queries.reshape(-1, *shape)
    queries = checked_rows(queries, "queries", distance)
    if not count or not len(queries):
        raise UserError(f"{len(queries)} queries and {count} gallery rows; both are needed")
    if shape != queries.shape[1:]:
        raise UserError(f"queries are {wide(queries.shape[1:])}, the gallery {wide(shape)}")
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    return queries.reshape(len(queries), -1)


def _allowed(allowed: np.ndarray | None, count: int) -> Bool[np.ndarray, " {count}"]:
    allowed = np.ones(count, bool) if allowed is None else np.asarray(allowed, bool)
    if allowed.shape != (count,):
        raise UserError(f"allowed is {allowed.shape}, the gallery has {count} rows")
    return allowed


def _nothing(queries: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1, np.int32)


@functools.lru_cache(maxsize=16)
def _step(mesh: Mesh, k: int, approximate: bool, distance: str, shape: tuple[int, ...]) -> Any:
    """(queries, chunk, which of its rows may be found, best so far, first row of the chunk) → best."""

    def local(query: Array, rows: Array, may: Array, best: Any, first: Array) -> tuple[Array, Array]:
        size = rows.shape[0]
        column = first + jax.lax.axis_index("rows") * size + jnp.arange(size, dtype=jnp.int32)

        def of_block(numbers: Array) -> tuple[Array, Array]:
            if distance == "cosine":
                similarity = jnp.matmul(query[numbers], rows.T, precision=jax.lax.Precision.HIGHEST)
            else:
                similarity = -DISTANCES[distance](query[numbers].reshape(-1, *shape), rows.reshape(-1, *shape))
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
    if gallery.distance != "cosine":
        raise UserError(f"{gallery.directory} is compared by {gallery.distance}, and an index knows cosine alone")
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
    queries = _checked(queries, gallery.shape, gallery.distance, len(gallery), k)
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
