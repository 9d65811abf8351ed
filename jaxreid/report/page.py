"""One HTML file that shows what a run did: results, cameras, learning curves, ranked lists, data, configuration.

The file needs nothing beside it: pictures, curves and styles are inside, and there is no script.
"""

from __future__ import annotations

import base64
import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxreid.config import flatten
from jaxreid.errors import UserError
from jaxreid.files import write_text
from jaxreid.report.words import camera_word, ranked_direction, readable

if TYPE_CHECKING:
    from jaxreid.report.plots import Plot

Record = Mapping[str, Any]  # of retrieval.result_record; a control may know fewer of its keys

SCORE_KEYS = ("mAP", "rank-1", "rank-5", "rank-10", "rank-20", "mINP")
MEASUREMENT = {
    "protocol": "Protocol",
    "clip_sampling": "Clip sampling",
    "seq_len": "Frames per clip",
    "distance": "Distance",
    "reranking": "Re-ranking",
    "checkpoint": "Checkpoint",
}
THIS_RUN = "this run"


@dataclasses.dataclass(frozen=True)
class TrackletPictures:
    """A tracklet to look at: JPEG or PNG pictures in order of time, and short lines to stand under them.

    `match`: whether it is the query's person; None for the query, or if unknown. `distance`: to the query; or `score`,
    its similarity.
    """

    name: str
    pictures: tuple[bytes, ...]
    facts: tuple[str, ...] = ()
    match: bool | None = None
    distance: float | None = None
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class RankedList:
    """A query and the gallery's nearest tracklets, nearest first; `kind` and `facts` say why it is shown."""

    direction: str
    query: TrackletPictures
    gallery: tuple[TrackletPictures, ...]
    kind: str = ""
    facts: str = ""


@dataclasses.dataclass(frozen=True)
class CameraTable:
    """Scores of the queries of A cameras against the gallery tracklets of each of B cameras.

    Attributes:
      query_cameras, gallery_cameras: their numbers in the data set.
      mAP, rank_1: f64[A, B] in percent, NaN where no query has a match.
      queries: i64[A, B], queries with a match.
      whole_mAP, whole_queries: f64[A] and i64[A], the same queries against the whole gallery.
      gallery: i64[B], tracklets.
      left_out: query and gallery cameras that are not shown, those with fewest tracklets.
    """

    query_cameras: tuple[int, ...]
    gallery_cameras: tuple[int, ...]
    mAP: np.ndarray
    rank_1: np.ndarray
    queries: np.ndarray
    whole_mAP: np.ndarray
    whole_queries: np.ndarray
    gallery: np.ndarray
    left_out: tuple[int, int] = (0, 0)

    @property
    def shade(self) -> np.ndarray:
        """f64[A, B], 0 for the lowest mAP to 1 for the highest; cells closer than 20 points do not span it all."""
        low, high = np.nanmin(self.mAP), np.nanmax(self.mAP)
        return (self.mAP - low) / max(high - low, 20.0)


@dataclasses.dataclass(frozen=True)
class SplitCounts:
    """What one split holds of one modality; `per_camera` counts tracklets, in the order of the table's cameras."""

    split: str
    modality: str
    tracklets: int
    frames: int
    persons: int
    median_length: float
    per_camera: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class DataTable:
    """What the data set holds: counts of every split and modality, and the numbers of its cameras."""

    cameras: tuple[int, ...]
    splits: tuple[SplitCounts, ...]


@dataclasses.dataclass(frozen=True)
class EarlierRun:
    """An earlier run beside this one.

    Attributes:
      name: what it is called in tables.
      problem: why it cannot be shown; then nothing else is known.
      records: (direction, protocol) of this run → the earlier record (None: there is none) and why the two cannot
        be subtracted (empty: they can).
      settings: (name, earlier value, this run's value) of the settings that differ, None where one is not set.
      metrics: rows of its metrics.jsonl.
      checkpoint: which of its states was scored.
    """

    name: str
    problem: str = ""
    records: Mapping[tuple[str, str], tuple[Record | None, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    settings: tuple[tuple[str, Any, Any], ...] = ()
    metrics: tuple[Mapping[str, Any], ...] = ()
    checkpoint: str = ""


@dataclasses.dataclass(frozen=True)
class ReportContents:
    """All that the page shows.

    Attributes:
      title: what ran on what.
      config: the resolved configuration, nested dicts allowed.
      results: records (`retrieval.result_record`) with their `direction`, or a sentence why nothing was scored.
      summary: a few facts to stand under the title.
      controls: what the result is to be compared with, such as the starting features or a bound: records that also
        say of which `features` they are.
      assumptions: what training was given to learn from, such as identity labels, by name.
      notes: sentences that a reader must know before believing a number.
      earlier: an earlier run to compare with.
      cameras: direction → its scores by camera.
      camera_names: their names, by number.
      breakdown, open_set: tables of `results.json` (jaxreid.evaluation.breakdown, .open_set).
      examined: figures of `results.json` that a method adds (jaxreid.evaluation.examination).
      pairs: figures of `results.json` that a method adds of pairs (jaxreid.evaluation.pair_examination).
      strips: pictures to be seen beside each other, of each what it is of, and (caption, JPEG or PNG) of its pictures.
      metrics: rows of metrics.jsonl, see `plots.learning_curves`.
      ranked: ranked lists to look at.
      data, lengths: what the data set holds, and histograms of it.
      environment: versions, devices.
      phases: name → seconds spent.
    """

    title: str
    config: Mapping[str, Any]
    results: Sequence[Record] | str
    summary: Sequence[str] = ()
    controls: Sequence[Record] = ()
    assumptions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    earlier: EarlierRun | None = None
    cameras: Mapping[str, CameraTable] = dataclasses.field(default_factory=dict)
    camera_names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    breakdown: Sequence[Record] = ()
    open_set: Sequence[Record] = ()
    examined: Sequence[Record] = ()
    pairs: Sequence[Record] = ()
    strips: Sequence[tuple[str, Sequence[tuple[str, bytes]]]] = ()
    metrics: Sequence[Mapping[str, Any]] = ()
    ranked: Sequence[RankedList] = ()
    data: DataTable | None = None
    lengths: Sequence[Plot] = ()
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    phases: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ResultGroup:
    """What the table of results shows of one direction and protocol; `record` is empty where only controls have it.

    `name` is the direction, with the protocol where several protocols have it.
    `rows` are the (name, record) that may stand in one drawing, this run first.
    """

    name: str
    direction: str
    record: Record
    controls: tuple[tuple[str, Record], ...]
    earlier: Record | None = None
    reasons: tuple[str, ...] = ()
    earlier_name: str = ""

    @property
    def protocol(self) -> str:
        """That of this run's record, or of the first that says one."""
        return next((str(row["protocol"]) for _, row in self.rows if "protocol" in row), "")

    @property
    def rows(self) -> list[tuple[str, Record]]:
        own = [(THIS_RUN, self.record)] if self.record else []
        before = [(f"earlier: {self.earlier_name}", self.earlier)] if self.earlier and not self.reasons else []
        return [*own, *before, *self.controls]


def write_report(workdir: Path, contents: ReportContents) -> Path:
    """Writes `workdir/report/index.html` and returns its path."""
    path = Path(workdir) / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(path, render(contents))


def write_page(path: Path, text: str) -> Path:
    """Writes a page so that a file that is there is whole; returns its path."""
    write_text(path, text)
    return path


def render_template(name: str, **values: Any) -> str:
    """A template of this folder as a string, with the filters `number`, `change`, `value`, `duration`,
    `image`, `readable`, `signed`, `between` and `camera`.

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
    environment.filters.update(
        number=format_number,
        change=format_change,
        value=format_value,
        duration=format_duration,
        image=data_uri,
        readable=readable,
        between=format_interval,
        signed=format_signed,
        camera=camera_word,
    )
    return environment.get_template(name).render(**values)


def render(contents: ReportContents) -> str:
    """The report of a run as a string."""
    from jaxreid.report import plots
    from jaxreid.report.conditions import condition_plots, conditions

    explanation = contents.results if isinstance(contents.results, str) else ""
    groups = [] if explanation else _result_groups(contents)
    cmc = plots.cmc_curves({group.name: dict(group.rows) for group in groups})
    earlier = contents.earlier.metrics if contents.earlier else ()
    by_condition = condition_plots(contents.breakdown)
    return render_template(
        "run.html",
        contents=contents,
        explanation=explanation,
        score_keys=SCORE_KEYS,
        groups=groups,
        this_run=THIS_RUN,
        measurement=_measurement({group.name: group.record for group in groups if group.record}),
        cmc=cmc,
        cmc_legend=list(dict.fromkeys(key for plot in cmc for key in plot.legend)),
        plots=plots.learning_curves(contents.metrics, earlier),
        last_values=_last_values(contents.metrics),
        pairs_plot=_pairs_plot(contents.pairs),
        conditions=conditions(contents.breakdown),
        condition_plots=by_condition,
        condition_legend=list(dict.fromkeys(key for plot in by_condition for key in plot.legend)),
        ranked=_by_direction(contents.ranked),
        config=list(flatten(contents.config)),
        total_seconds=sum(contents.phases.values()),
        slowest=max(contents.phases.values(), default=0.0) or 1.0,
    )


def _pairs_plot(records: Sequence[Record]) -> Plot | None:
    """What a method finds in pairs, by what the two have in common."""
    from jaxreid.report import plots

    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    for record in records:
        groups.setdefault(record["pairs"], {})[record["name"]] = (record["mean"], *record["interval"])
    return plots.means_of_groups("By who the two are", "Means with their intervals.", groups) if groups else None


def _result_groups(contents: ReportContents) -> list[ResultGroup]:
    """This run's records with what they are compared with; what only controls have follows."""
    results, controls = _by_ranking(contents.results), _by_ranking(contents.controls)  # type: ignore[arg-type]
    groups = []
    for name in dict.fromkeys([*results, *controls]):
        record = results[name][0] if name in results else {}
        beside = tuple((str(control["features"]), control) for control in controls.get(name, ()))
        direction = readable(ranked_direction(record or controls[name][0]))
        group = ResultGroup(readable(name), direction, record, beside)
        if record and contents.earlier and not contents.earlier.problem:
            key = (ranked_direction(record), record.get("protocol", ""))
            other, reasons = contents.earlier.records.get(key, (None, ()))
            group = dataclasses.replace(group, earlier=other, reasons=reasons, earlier_name=contents.earlier.name)
        groups.append(group)
    return groups


def _by_ranking(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by what they rank: the direction, with the protocol where the same direction has several."""
    protocols: dict[str, set[str]] = {}
    for record in records:
        protocols.setdefault(ranked_direction(record), set()).add(record.get("protocol", ""))
    groups: dict[str, list[Record]] = {}
    for record in records:
        direction = ranked_direction(record)
        name = f"{direction}, {record['protocol']}" if len(protocols[direction]) > 1 else direction
        groups.setdefault(name, []).append(record)
    return groups


def _measurement(results: Mapping[str, Record]) -> list[tuple[str, str]]:
    """How it was measured: a line per fact, of each direction only where they differ; protocols name themselves."""
    lines = []
    for key, label in MEASUREMENT.items():
        values = {name: _fact(key, record[key]) for name, record in results.items() if key in record}
        if key == "protocol" or len(set(values.values())) == 1:
            lines += [(label, value) for value in dict.fromkeys(values.values())]
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
        groups.setdefault(readable(item.direction), []).append(item)
    return groups


def format_number(value: Any) -> str:
    """A percentage for a table; a dash for what is not known."""
    return f"{value:.1f}" if isinstance(value, numbers.Real) and value == value else "–"


def format_interval(ends: Sequence[Any], digits: int = 1) -> str:
    """The two ends of an interval; a dash where it is not known."""
    return "–" if None in ends else " to ".join(format_signed(end, digits) for end in ends)


def format_signed(value: float, digits: int = 1) -> str:
    """A number that may be negative; what rounds to zero has no sign."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if not float(text) else text.replace("-", "−")


def format_change(value: Any) -> str:
    """A difference in points, with its sign; a dash for what is not known."""
    if not isinstance(value, numbers.Real):
        return "–"
    return f"{value:+.1f}".replace("-", "−").replace("+0.0", "±0.0").replace("−0.0", "±0.0")


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
      UserError: the bytes are neither.
    """
    for magic, kind in ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG", "png")):
        if picture.startswith(magic):
            return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"
    raise UserError(f"a report's picture must be JPEG or PNG; it begins with {picture[:4]!r}")
