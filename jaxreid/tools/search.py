"""Looks for somebody in a gallery that `jaxreid embed` filled; prints what it found and writes a page.

    jaxreid search --gallery people.gallery --query somebody.jpg
    jaxreid search --gallery people.gallery --query door/t00003 --exclude_camera own

A query is a picture, a folder of frames of one person, a folder <camera>/<tracklet>/*.jpg, a video (each person in it
is a query), or the name of a tracklet in the gallery. The page is one file with everything in it.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxreid.data.names import printable
from jaxreid.data.prepared import SCALE, SIXTEEN_BIT
from jaxreid.data.schema import MODALITIES
from jaxreid.devices.compiled import cache_compilations
from jaxreid.errors import UserError, command
from jaxreid.files import expand
from jaxreid.footage.queries import file_queries, open_run, pair_rescoring
from jaxreid.footage.sources import RESCORE, SourceOptions
from jaxreid.report.page import write_page
from jaxreid.report.search_page import render, table
from jaxreid.retrieval import Gallery, build_index, search_index
from jaxreid.retrieval.queries import Rescoring, named_queries, search
from jaxreid.retrieval.search import INDEX

if TYPE_CHECKING:
    from jaxreid.embedder import Embedder

CODES = 64  # bytes of a row in an index, at most


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
    add("--data_dir", type=expand, help="where built data sets live, whose sidecars a folder of tracklets has")
    add("--modality", default="rgb", choices=MODALITIES[:2], help="of the query's pictures (default %(default)s)")
    add("--sixteen_bit", choices=SIXTEEN_BIT, default=SCALE,
        help="16-bit pictures: to 8 bits by the range of their tracklet, or none (default %(default)s)")  # fmt: skip
    add(
        "--rescore",
        choices=[*RESCORE],
        default="auto",
        help="whether to put the nearest in the order of the run's score of pairs; auto: where the gallery was filled "
        "for it",
    )
    add("--approximate", action="store_true", help="faster on a TPU, recall 0.95 or more; exact elsewhere")
    add("--index", action="store_true", help="through a FAISS index, for galleries larger than memory; made if missing")
    add("--probes", type=int, default=16, help="of the index: cells that are looked at (default %(default)s)")
    add("--candidates", type=int, default=8, help="of the index: proposals, times K (default %(default)s)")
    add("--out", type=expand, help="the page; runs/search/QUERY.html where not given")
    options = parser.parse_args(arguments)
    cache_compilations()
    gallery, path = Gallery(options.gallery), expand(options.query)
    asked, run = RESCORE[options.rescore], None
    rescores = bool(gallery.pairs) if asked is None else asked
    if rescores and not gallery.pairs:
        raise UserError(
            f"{gallery.directory} has nothing for a score of pairs: fill it anew with jaxreid embed --rescore=always"
        )
    if path.exists() or rescores:
        run = open_run(gallery, options.checkpoint, options.data_dir)
    if run and path.exists():
        reading = SourceOptions(modality=options.modality, sixteen_bit=options.sixteen_bit, data_dir=options.data_dir)
        queries = file_queries(path, run, reading, rescores)
    else:
        queries = named_queries(gallery, options.query)
    rescoring = pair_rescoring(gallery, queries, run) if run and rescores else None
    remark = _remark(rescoring, run)
    if remark:
        print(remark)
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
    for query, hits in zip(queries, search(gallery, queries, options.exclude_camera, rescoring, **how), strict=True):
        print(f"{query.name}\n{table(hits)}\n")
        found.append(hits)
    name = printable(path.resolve().name) if path.exists() else options.query
    out = options.out or Path("runs/search") / (re.sub(r"[^\w.-]+", "-", name).strip("-.") + ".html")
    out.parent.mkdir(parents=True, exist_ok=True)
    print(write_page(out, render(gallery, name, queries, found, options.exclude_camera, remark)))
    return 0


def _remark(rescoring: Rescoring | None, run: Embedder | None) -> str:
    """What is said of re-scoring: how it is done, or that it is not where the run's evaluation does."""
    if rescoring:
        return (
            f"Re-scored: the {rescoring.size} nearest of each query come first, by {rescoring.mix:g} of the pair's "
            f"score and {1 - rescoring.mix:g} of the cosine."
        )
    return "Not re-scored, though the evaluation of the run is." if run and run.rescoring[0] else ""
