"""Looks for somebody in a gallery that `jaxreid embed` filled; prints what it found and writes a page.

    jaxreid search --gallery people.gallery --query somebody.jpg
    jaxreid search --gallery people.gallery --query door/t00003 --exclude_camera own

A query is a picture, a folder of frames of one person, a folder <camera>/<tracklet>/*.jpg, a video (each person in it
is a query), or the name of a tracklet in the gallery. The page is one file with everything in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxreid
from jaxreid.data.names import nfc, printable
from jaxreid.data.schema import MODALITIES, SCALE, SIXTEEN_BIT
from jaxreid.devices.compiled import cache_compilations
from jaxreid.errors import UserError, command
from jaxreid.files import expand
from jaxreid.footage.sources import Source, file_source, folder_source, pictures_in
from jaxreid.report import page
from jaxreid.report.page import RankedList, TrackletPictures
from jaxreid.retrieval import Gallery, build_index, search_gallery, search_index
from jaxreid.retrieval.search import INDEX

COLUMNS = ("rank", "score", "source", "time", "camera", "tracklet")
OWN = "own"  # of --exclude_camera: the camera of the query itself
QUERY_PICTURES, QUERY_BATCH = 5, 8
CODES = 64  # bytes of a row in an index, at most


@dataclasses.dataclass(frozen=True)
class Query:
    """Somebody to look for: a feature f32[D], pictures, and the gallery row that it is, where it is one."""

    name: str
    feature: np.ndarray
    pictures: tuple[bytes, ...]
    camera: str = ""
    row: int | None = None


@dataclasses.dataclass(frozen=True)
class Hit:
    """A gallery row that was found: its cosine with the query and what is known of it."""

    row: int
    score: float
    known: dict[str, Any]

    def cells(self, rank: int) -> tuple[str, ...]:
        """The values of `COLUMNS`."""
        known = self.known
        values = (known["source"], clock(known["time"]), known["camera"], known.get("tracklet", f"row {self.row}"))
        return (str(rank), f"{self.score:.3f}", *map(str, values))


def clock(seconds: float | None) -> str:
    """Seconds as "1:02:03.4"; a dash where the time is not known."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(float(seconds) * 10), 600)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + f":{rest / 10:04.1f}"


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
    return [Query(name, gallery[row : row + 1][0], (picture,) if picture else (), str(camera), row)]


def file_queries(
    gallery: Gallery, path: Path, checkpoint: Path | None, modality: str, sixteen_bit: str = SCALE
) -> list[Query]:
    """Every tracklet of a picture, a folder or a video, embedded by the run that filled the gallery.

    Raises:
      UserError: another run than that; or the files cannot be read.
    """
    if gallery.model is None:
        raise UserError(f"the gallery {gallery.directory} does not say which run filled it: only its own tracklets "
                         "can be looked for")  # fmt: skip
    embedder = jaxreid.load(checkpoint or gallery.model["workdir"], batch_size=QUERY_BATCH)
    gallery.check_model(embedder.identity)
    with tempfile.TemporaryDirectory() as crops:
        source = _source(path, Path(crops), modality, sixteen_bit)
        features = embedder.embed_split(source.split, source.reader)
        return [
            Query(name, feature, source.pictures(row, QUERY_PICTURES), source.cameras[row])
            for row, (name, feature) in enumerate(zip(source.split.labels.names, features, strict=True))
        ]


def _source(path: Path, crops: Path, modality: str, sixteen_bit: str) -> Source:
    if path.is_dir() and not pictures_in(path):
        return folder_source(path, sixteen_bit=sixteen_bit)
    return file_source(path, crops, modality, sixteen_bit)


def search(
    gallery: Gallery, queries: Sequence[Query], exclude: Sequence[str] = (), **options: Any
) -> Iterator[list[Hit]]:
    """What is found for each query, nearest first; a query never finds itself.

    Args:
      exclude: cameras whose tracklets are left out; "own" is that of the query.
      options: `function` (`search_gallery` or `search_index`) and its own.

    Raises:
      UserError: a camera that the gallery does not have.
    """
    function = options.pop("function", search_gallery)
    cameras = np.array([nfc(str(name)) for name in gallery.columns["camera"]], str)
    for query in queries:
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
        found = function(query.feature[None], gallery, allowed=allowed, **options)
        yield [
            Hit(int(row), float(score), gallery.metadata(int(row)))
            for row, score in zip(found.index[0], found.similarity[0], strict=True)
            if row >= 0
        ]


def table(hits: Sequence[Hit]) -> str:
    """What was found, for the terminal."""
    rows = [COLUMNS, *(hit.cells(rank) for rank, hit in enumerate(hits, start=1))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows)


def _tracklet(gallery: Gallery, hit: Hit) -> TrackletPictures:
    *_, time, camera, name = hit.cells(0)
    facts = [camera, name.removeprefix(f"{camera}/"), *([] if hit.known["time"] is None else [time])]
    picture = gallery.picture(hit.row)
    return TrackletPictures(name, (picture,) if picture else (), tuple(facts), score=hit.score)


def render(
    gallery: Gallery, title: str, queries: Sequence[Query], found: Sequence[Sequence[Hit]], exclude: Sequence[str]
) -> str:
    """The page: every query with what was found for it."""
    lists = []
    for query, hits in zip(queries, found, strict=True):
        shown = [_tracklet(gallery, hit) for hit in hits]
        lists.append(RankedList("", TrackletPictures(query.name, query.pictures, (query.name,)), tuple(shown)))
    return page.render_template(
        "search.html",
        title=title,
        gallery=str(gallery.directory),
        count=len(gallery),
        left_out=[f"camera {name}" if name != OWN else "the query's own camera" for name in exclude],
        lists=lists,
        columns=COLUMNS,
        tables=[[hit.cells(rank) for rank, hit in enumerate(hits, start=1)] for hits in found],
    )


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    parser = argparse.ArgumentParser(prog="jaxreid search", description="Look for somebody in a gallery.")
    add = parser.add_argument
    add("--gallery", type=expand, required=True, metavar="DIR", help="filled by jaxreid embed")
    add(
        "--query",
        required=True,
        help="a picture, a folder of frames, a video, or the name of a tracklet in the gallery",
    )
    add("--top", type=int, default=10, metavar="K", help="results of a query (default %(default)s)")
    add("--exclude_camera", action="append", default=[], metavar="CAMERA",
        help="leave out its tracklets (may be repeated); 'own' is the query's own camera")  # fmt: skip
    add("--checkpoint", type=expand, metavar="WORKDIR", help="of the run that filled the gallery, if it was moved")
    add("--modality", default="rgb", choices=MODALITIES[:2], help="of the query's pictures (default %(default)s)")
    add("--sixteen_bit", choices=SIXTEEN_BIT, default=SCALE,
        help="16-bit pictures: to 8 bits by the range of their tracklet, or none (default %(default)s)")  # fmt: skip
    add("--approximate", action="store_true", help="faster on a TPU, recall 0.95 or more; exact elsewhere")
    add("--index", action="store_true", help="through a FAISS index, for galleries larger than memory; made if missing")
    add("--probes", type=int, default=16, help="of the index: cells that are looked at (default %(default)s)")
    add("--candidates", type=int, default=8, help="of the index: proposals, times K (default %(default)s)")
    add("--out", type=expand, help="the page; runs/search/QUERY.html where not given")
    options = parser.parse_args(arguments)
    cache_compilations()
    gallery, path = Gallery(options.gallery), expand(options.query)
    if path.exists():
        queries = file_queries(gallery, path, options.checkpoint, options.modality, options.sixteen_bit)
    else:
        queries = named_queries(gallery, options.query)
    how: dict[str, Any] = {"k": options.top, "approximate": options.approximate}
    if options.index:
        if not (gallery.directory / INDEX).exists():
            build_index(gallery, codes=math.gcd(CODES, gallery.width))
        how = {
            "k": options.top,
            "probes": options.probes,
            "candidates": options.candidates,
            "function": search_index,
        }
    found = []
    for query, hits in zip(queries, search(gallery, queries, options.exclude_camera, **how), strict=True):
        print(f"{query.name}\n{table(hits)}\n")
        found.append(hits)
    name = printable(path.resolve().name) if path.exists() else options.query
    out = options.out or Path("runs/search") / (re.sub(r"[^\w.-]+", "-", name).strip("-.") + ".html")
    out.parent.mkdir(parents=True, exist_ok=True)
    print(page.write_page(out, render(gallery, name, queries, found, options.exclude_camera)))
    return 0
