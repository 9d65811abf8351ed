"""Distances between a block of query features and a gallery, in fp32 whatever the features are stored as."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxreid.arrays import unit_rows
from jaxreid.errors import UserError
from jaxreid.shapes import AnyArray, Array, Float, Int, Shaped


class OwnDistance(NamedTuple):
    """A distance of one's own: pure, traced by JAX, row by row of both sides, so that blocks are split over devices as
    those of the named distances are."""

    function: Callable[[Any, Any], Array]  # features of some queries, of some gallery rows -> f32[queries, gallery]


# A key of DISTANCES, or (query rows, gallery) -> f32[rows, G]; the latter function knows its own devices.
Distance = str | OwnDistance | Callable[[Any, Any], AnyArray]

ROW_MULTIPLE = 64
CHUNK_BYTES = 1 << 26  # of gallery rows that go to the devices at a time
SMALLEST, LARGEST = 1e-12, 1e18  # entries whose squares, and sums of these, float32 holds

# Accelerators multiply fp32 matrices in a shorter format unless told otherwise, which reorders near neighbours.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _with_squares(
    features: Shaped[AnyArray, "*rows dim"],
) -> tuple[Float[Array, "*rows dim"], Float[Array, "*rows"]]:
    features = jnp.asarray(features, jnp.float32)
    return features, jnp.sum(features**2, axis=-1)


def _cosine(
    query: Float[Array, "queries dim"], gallery: Float[Array, "gallery dim"]
) -> Float[Array, "queries gallery"]:
    return 1.0 - _matmul(query, gallery.T)


def _euclidean(
    query: tuple[Float[Array, "queries dim"], Float[Array, " queries"]],
    gallery: tuple[Float[Array, "gallery dim"], Float[Array, " gallery"]],
) -> Float[Array, "queries gallery"]:
    squares = query[1][:, None] + gallery[1]
    return jnp.sqrt(jnp.maximum(squares - 2.0 * _matmul(query[0], gallery[0].T), 0.0))


class Parts(NamedTuple):
    """Features of body parts, and how visible each of them is, in [0, 1]."""

    features: Shaped[AnyArray, "rows parts dim"]
    visibility: Shaped[AnyArray, "rows parts"]


def _as_parts(x: Any) -> tuple[Float[Array, "rows parts dim"], Float[Array, "rows parts"]]:
    """Parts as two arrays in fp32; those that come without visibility are wholly visible."""
    if isinstance(x, Parts):
        return jnp.asarray(x.features, jnp.float32), jnp.asarray(x.visibility, jnp.float32)
    return jnp.asarray(x, jnp.float32), jnp.ones(x.shape[:2], jnp.float32)


def _visible(parts: Any) -> tuple[Float[Array, "rows weighted"], Float[Array, "rows parts"]]:
    features, visibility = _as_parts(parts)
    weighted = unit_rows(features) * visibility[..., None]
    return weighted.reshape(len(weighted), -1), visibility


def _parts(
    query: tuple[Float[Array, "queries weighted"], Float[Array, "queries parts"]],
    gallery: tuple[Float[Array, "gallery weighted"], Float[Array, "gallery parts"]],
) -> Float[Array, "queries gallery"]:
    # Σ vw(1 − cos) = Σ vw − Σ (v q)·(w g): two products for all parts together.
    shared = _matmul(query[1], gallery[1].T)
    return _per_visibility(jnp.maximum(shared - _matmul(query[0], gallery[0].T), 0.0), shared)


class _PartsApart(NamedTuple):
    """Parts, part by part: features f32[P, N, D], their squares f32[P, N], visibility f32[P, N]."""

    features: Array
    square: Array
    visibility: Array


def _apart(parts: Any) -> _PartsApart:
    features, visibility = _as_parts(parts)
    return _PartsApart(*_with_squares(jnp.swapaxes(features, 0, 1)), visibility.T)


def _parts_euclidean(query: _PartsApart, gallery: _PartsApart) -> Float[Array, "queries gallery"]:
    def add(total: Array, part: tuple[_PartsApart, _PartsApart]) -> tuple[Array, None]:  # no [Q, G, P] is ever there
        q, g = part
        return total + q.visibility[:, None] * g.visibility * _euclidean(q[:2], g[:2]), None

    shared = _matmul(query.visibility.T, gallery.visibility)
    total, _ = jax.lax.scan(add, jnp.zeros_like(shared), (query, gallery))
    return _per_visibility(total, shared)


def _per_visibility(total: Array, shared: Array) -> Array:
    return jnp.where(shared > 0, total / jnp.where(shared > 0, shared, 1.0), jnp.inf)


# What is made of the rows of either side once, and the distance of what was made.
_STEPS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Array]]] = {
    "cosine": (unit_rows, _cosine),
    "euclidean": (_with_squares, _euclidean),
    "parts": (_visible, _parts),
    "parts_euclidean": (_apart, _parts_euclidean),
}


def _steps(distance: str | OwnDistance) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Array]]:
    return _STEPS[distance] if isinstance(distance, str) else (lambda rows: rows, distance.function)


def cosine_distance(
    query: Shaped[AnyArray, "queries dim"], gallery: Shaped[AnyArray, "gallery dim"]
) -> Float[Array, "queries gallery"]:
    """1 − cosine similarity of query and gallery, in [0, 2]."""
    return _cosine(unit_rows(query), unit_rows(gallery))


def euclidean_distance(
    query: Shaped[AnyArray, "queries dim"], gallery: Shaped[AnyArray, "gallery dim"]
) -> Float[Array, "queries gallery"]:
    """Euclidean distance of query and gallery as they are, not normalized."""
    return _euclidean(_with_squares(query), _with_squares(gallery))


def part_distance(query: Any, gallery: Any) -> Float[Array, "queries gallery"]:
    """Mean cosine distance of the body parts, weighted by how visible each is in both.

    Σ v_p w_p (1 − cos_p) / Σ v_p w_p over the parts p, with v and w the visibilities of the query's and the gallery
    row's part (Sun et al. 2019, "Perceive Where to Focus", there of Euclidean distances); infinite where no part is
    visible in both. Either side is `Parts`, or f32[N, P, D] of parts that are all visible.
    """
    return _parts(_visible(query), _visible(gallery))


def part_euclidean_distance(query: Any, gallery: Any) -> Float[Array, "queries gallery"]:
    """As `part_distance`, of the Euclidean distances of the parts as they are, not normalized."""
    return _parts_euclidean(_apart(query), _apart(gallery))


DISTANCES: dict[str, Callable[[Any, Any], Array]] = {
    "cosine": jax.jit(cosine_distance),
    "euclidean": jax.jit(euclidean_distance),
    "parts": jax.jit(part_distance),
    "parts_euclidean": jax.jit(part_euclidean_distance),
}


OF_ROWS = ("cosine", "euclidean")  # of plain matrices of features
OF_PARTS = ("parts", "parts_euclidean")
OF_UNIT = ("cosine", "parts")  # for which the length of a feature means nothing


@functools.partial(jax.jit, static_argnums=0)
def _prepared(distance: str | OwnDistance, gallery: Any) -> Any:
    return _steps(distance)[0](gallery)


@functools.partial(jax.jit, static_argnums=0)
def _to_prepared(distance: str | OwnDistance, query: Any, chunks: list[Any]) -> Float[Array, "queries gallery"]:
    prepare, between = _steps(distance)
    prepared = prepare(query)
    return jnp.concatenate([between(prepared, chunk) for chunk in chunks], axis=1)


def resolve(distance: Distance) -> Callable[[Any, Any], AnyArray]:
    """The function that a distance's name stands for; a function is returned as it is.

    Raises:
      UserError: the name is not a key of `DISTANCES`.
    """
    if isinstance(distance, OwnDistance):
        return jax.jit(distance.function)
    if callable(distance):
        return distance
    if distance not in DISTANCES:
        raise UserError(f"unknown distance {distance!r}; known: {', '.join(DISTANCES)}, or a function")
    return DISTANCES[distance]


def num_rows(features: Any, what: str) -> int:
    """The row count that all arrays of a features pytree share.

    Raises:
      UserError: there is no row, or the arrays disagree.
    """
    counts = {leaf.shape[0] for leaf in jax.tree.leaves(features)}
    if len(counts) != 1 or 0 in counts:
        raise UserError(f"{what}: need one row count above zero, got {sorted(counts)}")
    return counts.pop()


def check_features(query: Any, gallery: Any, distance: Distance) -> None:
    """Refuses features that a named distance is not defined for; a function knows its own features.

    Raises:
      UserError: not matrices (parts: not `Parts` and not f32[N, P, D]), widths differ, a row is not finite, or
        (cosine) a row is zero; a visibility beyond [0, 1]; (cosine of parts) a visible part that is zero.
    """
    if not isinstance(distance, str):
        return
    resolve(distance)
    if distance in OF_PARTS:
        _check_parts(query, gallery, distance)
        return
    if getattr(query, "ndim", 0) != 2 or getattr(gallery, "ndim", 0) != 2 or query.shape[1] != gallery.shape[1]:
        shapes = [getattr(features, "shape", type(features).__name__) for features in (query, gallery)]
        raise UserError(
            f"query features {shapes[0]} and gallery features {shapes[1]} are not two matrices of one width"
        )
    check_rows(query, "query", distance)
    check_rows(gallery, "gallery", distance)


def check_rows(features: Shaped[AnyArray, "rows dim"], what: str, distance: str) -> None:
    """Refuses rows that are not finite, (cosine) zero, or whose squares float32 does not hold; the UserError names the
    first of them."""
    largest = np.asarray(_largest(features))
    broken = np.flatnonzero(~(largest <= LARGEST) | ((largest < SMALLEST) & (distance == "cosine")))
    if not len(broken):
        return
    first = largest[broken[0]]
    if not np.isfinite(first):
        kind = "NaN or infinite"
    elif first == 0:
        kind = "zero, which has no cosine"
    else:
        kind = f"at most {first:.1e}: scale the features, float32 does not hold the squares"
    raise UserError(f"{len(broken)} of {len(largest)} {what} features are bad; row {broken[0]} is {kind}")


def _check_parts(query: Any, gallery: Any, distance: str) -> None:
    def features(side: Any) -> Any:
        return side.features if isinstance(side, Parts) else side

    def is_whole(side: Any) -> bool:
        found = features(side)
        return np.ndim(found) == 3 and (side is found or side.visibility.shape == found.shape[:2])

    shapes = [
        tuple(map(np.shape, side)) if isinstance(side, Parts) else getattr(side, "shape", type(side).__name__)
        for side in (query, gallery)
    ]
    if not (is_whole(query) and is_whole(gallery) and features(query).shape[1:] == features(gallery).shape[1:]):
        raise UserError(
            f"distance {distance!r} needs features [N, P, D], or Parts of such features and of visibility [N, P], with "
            f"one P and D for both; got {shapes[0]} and {shapes[1]}"
        )
    for what, side in (("query", query), ("gallery", gallery)):
        found = np.asarray(features(side))
        visibility = np.asarray(side.visibility) if isinstance(side, Parts) else np.ones(found.shape[:2], np.float32)
        length = np.asarray(_largest(found.reshape(-1, found.shape[2]))).reshape(found.shape[:2])
        bad = ~((visibility >= 0) & (visibility <= 1)) | ~(length <= LARGEST)
        if distance in OF_UNIT:
            bad |= (length < SMALLEST) & (visibility > 0)
        if bad.any():
            row, part = np.argwhere(bad)[0]
            raise UserError(
                f"{bad.any(axis=1).sum()} of {len(bad)} {what} rows have bad parts; part {part} of row {row} has "
                f"visibility {visibility[row, part]} and a largest entry of {length[row, part]}: visibilities lie in "
                "[0, 1], features are finite"
                + (", and those of visible parts are not zero" if distance in OF_UNIT else "")
            )


def _largest(features: Shaped[AnyArray, "rows dim"]) -> Float[AnyArray, " rows"]:
    """Largest entry of each row; squares could overflow where the features do not."""
    # What is on the host stays there: nothing to compile for every number of rows.
    xp = np if isinstance(features, np.ndarray) else jnp
    features = features.astype(np.float32, copy=False)
    return xp.maximum(xp.max(features, axis=1, initial=0.0), -xp.min(features, axis=1, initial=0.0))


def block_rows(block: int | None, num_gallery: int) -> int:
    """Query rows per block: `block`, or as many as make about two million distances (8 MB) on a CPU, 16 million on an
    accelerator; a multiple of 32, which matrix products are fast with.
    """
    if block is None:
        wanted = 1 << (21 if jax.default_backend() == "cpu" else 24)
        return int(np.clip(wanted // num_gallery // 32 * 32, 32, 1024))
    if block < 1:
        raise UserError(f"block must be at least 1 query row, got {block}")
    return block


def pad_rows(features: Any, multiple: int = ROW_MULTIPLE) -> Any:
    """The last row repeated up to a multiple of rows, so that sets of similar size share one compilation."""
    count = num_rows(features, "features")
    rows = np.minimum(np.arange(-(-count // multiple) * multiple), count - 1)
    return features if len(rows) == count else jax.tree.map(lambda x: x[rows], features)


def distance_blocks(
    query: Any, gallery: Any, distance: Distance, block: int, mesh: Mesh | None = None, pad: bool = False
) -> Iterator[tuple[Int[np.ndarray, " some"], AnyArray]]:
    """The distance matrix, one block of query rows at a time: (row numbers i64[n], distances f32[block, G]).

    Every block has the same shape, so one compilation serves all: the last one repeats the last query, and its
    rows past the n row numbers mean nothing. Over a `mesh` a block is as many rows for each device, split over all
    before a named or an `OwnDistance` and after any other function, which knows no devices.

    Args:
      pad: whether the last gallery row is repeated as `pad_rows` does, so that G becomes a multiple of `ROW_MULTIPLE`.
    """
    count, function = num_rows(query, "query features"), resolve(distance)
    devices = 1 if mesh is None else mesh.size
    padded = -(-count // ROW_MULTIPLE) * ROW_MULTIPLE
    block = min(block, -(-padded // devices)) * devices
    traced = isinstance(distance, str | OwnDistance)
    split = mesh if traced else None
    # To the devices once, not with every block.
    if traced:
        gallery = [_prepared(distance, chunk) for chunk in _chunks(gallery, split, pad)]
        function = functools.partial(_to_prepared, distance)
    else:
        gallery = jax.tree.map(jnp.asarray, pad_rows(gallery) if pad else gallery)
    for start in range(0, count, block):
        rows = np.arange(start, start + block)
        some = jax.tree.map(operator.itemgetter(np.minimum(rows, count - 1)), query)
        yield rows[rows < count], function(some if split is None else split_rows(some, split), gallery)


def _chunks(gallery: Any, mesh: Mesh | None, pad: bool) -> Iterator[Any]:
    """A gallery on the devices, in pieces: what is made of one takes its place before the next comes."""
    leaves = jax.tree.leaves(gallery)
    count = num_rows(gallery, "gallery features")
    row_bytes = sum(leaf.nbytes for leaf in leaves) // count
    size = max(CHUNK_BYTES // max(row_bytes, 1) // ROW_MULTIPLE, 1) * ROW_MULTIPLE
    for start in range(0, count, size):
        chunk = gallery if size >= count else jax.tree.map(operator.itemgetter(slice(start, start + size)), gallery)
        chunk = pad_rows(chunk) if pad else chunk
        yield jax.tree.map(jnp.asarray, chunk) if mesh is None else jax.device_put(chunk, NamedSharding(mesh, P()))


def split_rows(tree: Any, mesh: Mesh) -> Any:
    """Arrays with their first axis split over all devices of a mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P(mesh.axis_names)))
