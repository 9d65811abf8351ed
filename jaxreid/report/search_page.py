"""What was found in a gallery, as a table for the terminal and as a page: one file with everything in it."""

from __future__ import annotations

from collections.abc import Sequence

from jaxreid.report import page
from jaxreid.report.page import RankedList, TrackletPictures
from jaxreid.retrieval import Gallery
from jaxreid.retrieval.queries import OWN, Hit, Query

COLUMNS = ("rank", "score", "source", "time", "camera", "tracklet")  # score: see retrieval.search.Found


def cells(hit: Hit, rank: int) -> tuple[str, ...]:
    """The values of `COLUMNS`."""
    known = hit.known
    values = (known["source"], clock(known["time"]), known["camera"], known.get("tracklet", f"row {hit.row}"))
    return (str(rank), f"{hit.score:.3f}", *map(str, values))


def clock(seconds: float | None) -> str:
    """Seconds as "1:02:03.4"; a dash where the time is not known."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(float(seconds) * 10), 600)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + f":{rest / 10:04.1f}"


def table(hits: Sequence[Hit]) -> str:
    """What was found, for the terminal."""
    rows = [COLUMNS, *(cells(hit, rank) for rank, hit in enumerate(hits, start=1))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows)


def _tracklet(gallery: Gallery, hit: Hit) -> TrackletPictures:
    *_, time, camera, name = cells(hit, 0)
    facts = [camera, name.removeprefix(f"{camera}/"), *([] if hit.known["time"] is None else [time])]
    picture = gallery.picture(hit.row)
    return TrackletPictures(name, (picture,) if picture else (), tuple(facts), score=hit.score)


def render(
    gallery: Gallery,
    title: str,
    queries: Sequence[Query],
    found: Sequence[Sequence[Hit]],
    exclude: Sequence[str],
    remark: str = "",
) -> str:
    """The page: every query with what was found for it; `remark` is a sentence on how it was ranked."""
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
        remark=remark,
        lists=lists,
        columns=COLUMNS,
        tables=[[cells(hit, rank) for rank, hit in enumerate(hits, start=1)] for hits in found],
    )
