"""Who is looked for in a gallery, and what is found for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxreid.data.names import nfc
from jaxreid.errors import UserError
from jaxreid.retrieval.gallery import Gallery
from jaxreid.retrieval.search import search_gallery

OWN = "own"  # of cameras to leave out: the camera of the query itself


@dataclasses.dataclass(frozen=True)
class Query:
    """Somebody to look for: a feature f32[D] (of body parts f32[P, D]), pictures, and the gallery row that it is, where
    it is one; `pairs`, what it has for a score of pairs, [1, …] by name, where that is asked for."""

    name: str
    feature: np.ndarray
    pictures: tuple[bytes, ...]
    camera: str = ""
    row: int | None = None
    pairs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Hit:
    """A gallery row that was found: how alike the query it is (`search.Found`) and what is known of it."""

    row: int
    score: float
    known: dict[str, Any]


def named_queries(gallery: Gallery, name: str) -> list[Query]:
    """The tracklet of this name in the gallery.

    Raises:
      UserError: there is none, or several sources have one; SOURCE/NAME tells them apart.
    """
    pairs = zip(gallery.columns["source"], gallery.columns["tracklet"], strict=True)
    found = [
        row
        for row, (source, tracklet) in enumerate(pairs)
        if tracklet is not None and name in (tracklet, f"{source}/{tracklet}")
    ]
    if not found:
        raise UserError(
            f"{name} is no file, no folder and no tracklet of the gallery {gallery.directory} (the first is called "
            f"{gallery.metadata(0).get('tracklet')})"
        )
    if len(found) > 1:
        places = ", ".join("{source}/{tracklet}".format_map(gallery.metadata(row)) for row in found[:5])
        raise UserError(f"{len(found)} tracklets of the gallery are called {name}; say which: {places}")
    (row,) = found
    picture, camera = gallery.picture(row), gallery.columns["camera"][row]
    pairs = gallery.take_pairs(np.array([row]))
    return [Query(name, gallery[row : row + 1][0], (picture,) if picture else (), str(camera), row, pairs)]


@dataclasses.dataclass(frozen=True)
class Rescoring:
    """The `size` nearest of a query are put in the order of mix · (score of the pair) + (1 − mix) · cosine, ahead of
    the others, which keep their order. `score`: (number of the query, gallery rows i64[n]) → f32[n]."""

    score: Callable[[int, np.ndarray], np.ndarray]
    size: int
    mix: float

    def reordered(self, number: int, rows: np.ndarray, cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows with their scores, best first, of rows that are sorted by cosine."""
        near, rest = rows[: self.size], rows[self.size :]
        score = self.mix * self.score(number, near) + (1.0 - self.mix) * cosine[: self.size]
        order = np.lexsort((near, -score))  # equal ones in the order of the gallery
        return np.concatenate([near[order], rest]), np.concatenate([score[order], cosine[self.size :]])


def search(
    gallery: Gallery,
    queries: Sequence[Query],
    exclude: Sequence[str] = (),
    rescoring: Rescoring | None = None,
    k: int = 10,
    **options: Any,
) -> Iterator[list[Hit]]:
    """What is found for each query, nearest first; a query never finds itself.

    Args:
      exclude: cameras whose tracklets are left out; "own" is that of the query.
      rescoring: of the nearest by a score of pairs.
      k: tracklets that are found for a query.
      options: `function` (`search_gallery` or `search_index`) and its own.

    Raises:
      UserError: a camera that the gallery does not have.
    """
    function = options.pop("function", search_gallery)
    cameras = np.array([nfc(str(name)) for name in gallery.columns["camera"]], str)
    for number, query in enumerate(queries):
        if OWN in exclude and not query.camera:
            raise UserError(
                f"--exclude_camera {OWN}: it is not known which camera {query.name} is of; name those to leave out "
                f"({', '.join(np.unique(cameras)[:20])})"
            )
        names = [nfc(query.camera if name == OWN else name) for name in exclude]
        if wrong := [name for name in names if name not in cameras]:
            raise UserError(
                f"--exclude_camera: no tracklet of the gallery is of camera {', '.join(map(repr, wrong))}; it has "
                f"{', '.join(np.unique(cameras)[:20])}"
            )
        allowed = ~np.isin(cameras, names)
        if query.row is not None:
            allowed[query.row] = False
        wanted = max(k, rescoring.size) if rescoring and k > 0 else k
        found = function(query.feature[None], gallery, k=wanted, allowed=allowed, **options)
        rows, scores = (values[0][found.index[0] >= 0] for values in found)
        if rescoring and len(rows):
            rows, scores = rescoring.reordered(number, rows, scores)
        yield [
            Hit(int(row), float(score), gallery.metadata(int(row)))
            for row, score in zip(rows[:k], scores[:k], strict=True)
        ]
