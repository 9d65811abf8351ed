"""One HTML file that shows what a run did: results, controls, learning curves, ranked lists, configuration.

The file needs nothing beside it: pictures, curves and styles are inside, and there is no script.
"""

from __future__ import annotations

import base64
import dataclasses
import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]  # of retrieval.result_record; a control may know fewer of its keys

SCORE_KEYS = ("mAP", "rank-1", "rank-5", "rank-10", "rank-20", "mINP")
MEASUREMENT = {
    "protocol": "Protocol",
    "clip_rule": "Clip rule",
    "frames_per_clip": "Frames per clip",
    "distance": "Distance",
    "reranking": "Re-ranking",
    "checkpoint": "Checkpoint",
}


@dataclasses.dataclass(frozen=True)
class Thumb:
    """A picture of a tracklet. `match`: whether it is the query's person; None for the query, or if unknown."""

    caption: str
    jpeg: bytes
    match: bool | None = None


@dataclasses.dataclass(frozen=True)
class RankedList:
    """A query and the gallery's nearest tracklets, nearest first; `label` says why this query is shown."""

    direction: str
    query: Thumb
    gallery: tuple[Thumb, ...]
    label: str = ""


@dataclasses.dataclass(frozen=True)
class ReportContents:
    """All that the page shows.

    Attributes:
      title: what ran on what.
      config: the resolved configuration, nested dicts allowed.
      results: records (`retrieval.result_record`) with their `direction`, or a sentence why nothing was scored.
      controls: what the result is to be compared with, such as the starting features or a bound: records that also
        say of which `features` they are.
      metrics: rows of metrics.jsonl, see `plots.learning_curves`.
      ranked: ranked lists to look at.
      notes: sentences that a reader must know before believing a number.
      environment: versions, devices, commit.
      phases: name → seconds spent.
    """

    title: str
    config: Mapping[str, Any]
    results: Sequence[Record] | str
    controls: Sequence[Record] = ()
    metrics: Sequence[Mapping[str, Any]] = ()
    ranked: Sequence[RankedList] = ()
    notes: Sequence[str] = ()
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    phases: Mapping[str, float] = dataclasses.field(default_factory=dict)


def write_report(workdir: Path, contents: ReportContents) -> Path:
    """Writes `workdir/report/index.html` and returns its path."""
    path = Path(workdir) / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(path, render(contents))


def write_page(path: Path, text: str) -> Path:
    """Writes a page aside and renames it, so that an earlier one stays whole until the end; returns its path."""
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def render_template(name: str, **values: Any) -> str:
    """A template of this folder as a string, with the filters `number`, `value`, `duration` and `image`.

    Templates extend `base.html` and fill its blocks `title`, `style`, `header`, `nav` and `main`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format_number, duration=format_duration, image=data_uri, value=format_value)
    return environment.get_template(name).render(**values)


def render(contents: ReportContents) -> str:
    """The report of a run as a string."""
    from jaxreid.report import plots

    results, explanation = ([], contents.results) if isinstance(contents.results, str) else (contents.results, "")
    results, controls = _by_case(results), _by_case(contents.controls)
    return render_template(
        "run.html",
        contents=contents,
        explanation=explanation,
        score_keys=SCORE_KEYS,
        directions=[] if explanation else _directions(results, controls),
        measurement=_measurement(results),
        plots=plots.learning_curves(contents.metrics),
        last_values=_last_values(contents.metrics),
        ranked=_by_direction(contents.ranked),
        config=list(flatten(contents.config)),
        total_seconds=sum(contents.phases.values()),
        slowest=max(contents.phases.values(), default=0.0) or 1.0,
    )


def _by_case(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by what they rank: the direction, with the protocol where the same direction has several."""
    protocols: dict[str, set[str]] = {}
    for record in records:
        protocols.setdefault(record["direction"], set()).add(record.get("protocol", ""))
    groups: dict[str, list[Record]] = {}
    for record in records:
        several = len(protocols[record["direction"]]) > 1
        name = f"{record['direction']}, {record['protocol']}" if several else record["direction"]
        groups.setdefault(name, []).append(record)
    return groups


def _directions(
    results: Mapping[str, Sequence[Record]], controls: Mapping[str, Sequence[Record]]
) -> list[tuple[str, Record, list[tuple[str, Record]]]]:
    """(case, this run's record, [(control, its record)]); a control's own cases follow, without a run."""
    return [
        (
            case,
            results[case][0] if case in results else {},
            [(str(record["features"]), record) for record in controls.get(case, ())],
        )
        for case in dict.fromkeys([*results, *controls])
    ]


def _measurement(results: Mapping[str, Sequence[Record]]) -> list[tuple[str, str]]:
    """How it was measured: one line per fact, by direction only where directions differ."""
    lines = []
    for key, label in MEASUREMENT.items():
        values = {name: _fact(key, record[key]) for name, (record, *_) in results.items() if key in record}
        if len(set(values.values())) == 1:
            lines.append((label, next(iter(values.values()))))
        else:
            lines += [(f"{label}, {name}", value) for name, value in values.items()]
    return lines


def _fact(key: str, value: Any) -> str:
    from jaxreid.retrieval.protocols import PROTOCOLS

    if key == "protocol" and value in PROTOCOLS:
        return f"{value}: {PROTOCOLS[value].describe()}"
    return format_value(value)


def _last_values(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """The last logged value of every number, by kind of row and stage."""
    groups: dict[str, dict[str, Any]] = {}
    for row in metrics:
        name = ", ".join(str(row[key]) for key in ("kind", "stage", "direction") if row.get(key) not in (None, ""))
        numbers_of_row = {
            key: value
            for key, value in row.items()
            if isinstance(value, numbers.Real) and not isinstance(value, bool) and key not in ("kind", "stage")
        }
        groups.setdefault(name, {}).update(numbers_of_row)
    return [(name, list(values.items())) for name, values in groups.items()]


def _by_direction(ranked: Sequence[RankedList]) -> dict[str, list[RankedList]]:
    groups: dict[str, list[RankedList]] = {}
    for item in ranked:
        groups.setdefault(item.direction, []).append(item)
    return groups


def flatten(tree: Mapping[str, Any], prefix: str = ""):
    """(dotted name, value) of every leaf of nested dicts, in order."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def format_number(value: Any) -> str:
    """A percentage for a table; a dash for what is not known."""
    return f"{value:.1f}" if isinstance(value, numbers.Real) else "–"


def format_value(value: Any) -> str:
    """A setting or a logged number as a person would write it."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return str(value)
    if isinstance(value, numbers.Real):
        return f"{float(value):.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(format_value, value)) or "–"
    return str(value)


def format_duration(seconds: float) -> str:
    """Seconds as '0.42 s', '12 s', '3 min 05 s' or '2 h 07 min'."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def data_uri(picture: bytes) -> str:
    """JPEG or PNG bytes as a `data:` address.

    Raises:
      ValueError: the bytes are neither.
    """
    for magic, kind in ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG", "png")):
        if picture.startswith(magic):
            return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"
    raise ValueError(f"a report's picture must be JPEG or PNG; it begins with {picture[:4]!r}")
