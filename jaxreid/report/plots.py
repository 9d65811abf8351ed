"""Curves and histograms as inline SVG that follows the page's light or dark colours.

matplotlib draws with marker colours that no theme uses; they are replaced by the page's CSS variables, so that one
drawing serves both themes and its text stays text. Legends are left to the page, where they wrap with the window.
matplotlib is imported when something is drawn, not before.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxreid.report.words import readable

INK, GRID = "#010101", "#020202"
SERIES = tuple(f"#0{i}0{i}03" for i in range(1, 7))
CSS_COLOURS = {INK: "var(--muted)", GRID: "var(--line)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES, 1)
}
SCORES = ("mAP", "rank-1")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = {"-": "", "--": "5 3", ":": "2 2.5"}  # of matplotlib's line styles, for the legend
MAX_POINTS = 300
SIZE = (3.7, 2.35)  # inches; what stands three in a row on a desktop and fills a phone's width
ASSOCIATION = (  # the word in a logged name, the axis, its limits, what is drawn
    ("precision", "percent", (0, 102), "Share of the pairs found that show one person; labels are for this log only."),
    ("coverage", "percent", (0, 102), "Share of the prototypes that found a partner at all."),
    ("threshold", "similarity", None, "Similarity from which on two prototypes can be a pair."),
    ("concentration", "length", None, "How much the clips of a prototype agree: length of their mean, at most 1."),
)  # fmt: skip

Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve: what it is called, its points, and how it is drawn apart from the others.

    `series` chooses colour and marker. `key` is the legend's entry, the label where not given; '' for none.
    """

    label: str
    points: Points
    series: int
    style: str = "-"
    width: float = 1.6
    key: str | None = None


@dataclasses.dataclass(frozen=True)
class Key:
    """A legend's entry. `marker` is '' for a curve without markers, 'solid' or 'striped' for bars."""

    label: str
    colour: str
    dashes: str = ""
    marker: str = ""


@dataclasses.dataclass(frozen=True)
class Plot:
    """One figure: `svg` is an `<svg>` element for inlining, `caption` says what it shows."""

    title: str
    caption: str
    svg: str
    legend: tuple[Key, ...] = ()


def learning_curves(metrics: Iterable[Mapping[str, Any]], earlier: Iterable[Mapping[str, Any]] = ()) -> list[Plot]:
    """The figures that the logged rows allow: loss, mAP and rank-1, association. Nothing logged, no figure.

    Args:
      metrics: rows of metrics.jsonl, dicts with `kind` ('train', 'association' or 'evaluate') and some of `stage`,
        `epoch`, `run_epoch`, `step` and any numbers. In 'train' rows names with 'loss' are drawn over steps; in
        'association' rows names with a word of `ASSOCIATION` over epochs; in 'evaluate' rows 'mAP' and 'rank-1' over
        epochs, either with a `direction` beside them or written 'direction/mAP'.
      earlier: rows of another run, drawn dotted in the same figures; what only that run logged is not drawn.
    """
    rows, other = _by_kind(metrics), _by_kind(earlier)
    plots = []

    def add(kind: str, axis: str, wanted: Any, title: str, caption: str, short: Any = str, **style: Any) -> None:
        series = _series(rows[kind], _x(rows[kind], axis), wanted)
        if not series:
            return
        before = _series(other[kind], _x(other[kind], axis), wanted)
        before = {name: points for name, points in before.items() if name in series}
        skipped = sum(not math.isfinite(y) for points in series.values() for _, y in points)
        if any(len(points) > MAX_POINTS for points in series.values()):
            caption += f" Averaged to at most {MAX_POINTS} points."
        if skipped:
            caption += f" {skipped} values are not finite and leave gaps."
        if before:
            caption += " Dotted: the earlier run."
        # The scores of one direction share a colour.
        groups = list(dict.fromkeys(_group(name) for name in series))
        lines = [
            Line(f"{short(name)} of the earlier run", points, groups.index(_group(name)), ":", 1.2, key="")
            for name, points in before.items()
        ]
        named: set[str] = set()
        for name, points in series.items():
            group, style_of_line = _group(name), "--" if name.endswith("rank-1") else "-"
            key = "" if group in named else short(group).strip(" ,/") or short(name)
            named.add(group)
            lines.append(Line(short(name), points, groups.index(group), style_of_line, key=key))
        borders = _stage_borders(rows[kind], _x(rows[kind], axis)) if kind == "train" else []
        plots.append(_curves(title, caption, lines, "step" if axis == "step" else "epoch", borders=borders, **style))

    loss = "Loss of the logged training steps."
    add("train", "step", lambda name: "loss" in name.lower(), "Training loss", loss, y_label="loss")
    scores = "Scores during training: mAP solid, rank-1 dashed. Higher is better."
    add("evaluate", "epoch", _is_score, "Retrieval during training", scores, readable, y_label="percent")
    for word, y_label, limits, meaning in ASSOCIATION:
        add(
            "association",
            "epoch",
            lambda name, word=word: word in name.lower(),
            f"Association {word}",
            meaning,
            lambda name, word=word: re.sub(rf"_?{word}_?", " ", name).replace("_", " ").strip() or word,
            y_label=y_label,
            y_limits=limits,
        )
    return plots


def cmc_curves(groups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Plot]:
    """A figure of rank-k over k for every group of records that is known at more than one k.

    Args:
      groups: what was ranked → name of the features → record, with `cmc` (percent at 1, 2, …) or with some 'rank-k'.
        The first name of all is drawn thick. A name keeps its colour from group to group.
    """
    names = list(dict.fromkeys(name for records in groups.values() for name in records))
    plots = []
    for title, records in groups.items():
        points = {name: _cmc(record) for name, record in records.items()}
        lines = [
            Line(name, points[name], i, "-" if i == 0 else "--", 2.4 if i == 0 else 1.2)
            for i, name in enumerate(names)
            if len(points.get(name, ())) > 1
        ]
        if lines:
            caption = "Share of queries with the right person among the first k."
            limits = (0.0, 102.0)
            plots.append(_curves(title, caption, lines, "k", "rank-k, percent", limits, x_ticks=(1, 5, 10, 15, 20)))
    return plots


def with_intervals(
    title: str, caption: str, lines: Mapping[str, Sequence[tuple[float, float, float, float]]], x_label: str
) -> Plot:
    """Percentages over a number, with their intervals.

    Args:
      lines: name → (number, percentage, lower and upper end of its interval), ends NaN where they are not known. An
        empty line is not drawn, and keeps its colour from the others.
    """
    keys = []

    def draw(axes: Any) -> None:
        for order, (name, points) in enumerate(lines.items()):
            if not points:
                continue
            x, y, low, high = np.array(points, float).T
            colour, marker = SERIES[order % len(SERIES)], MARKERS[order % len(MARKERS)]
            axes.plot(x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.4, zorder=2.5)
            axes.vlines(x, low, high, color=colour, linewidth=1.0)
            keys.append(Key(name, CSS_COLOURS[colour], marker=marker))
        axes.set_xlabel(x_label)
        axes.set_title("mAP, percent", loc="left", fontsize=8.5)
        axes.set_ylim(bottom=0)

    svg = _figure(title, caption, draw)
    return Plot(title, caption, svg, tuple(keys))


def means_of_groups(title: str, caption: str, groups: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Plot:
    """Points with their intervals, side by side.

    Args:
      groups: name of a group → what is shown → (mean, lower and upper end of its interval).
    """
    keys, shown = [], list(dict.fromkeys(name for values in groups.values() for name in values))

    def draw(axes: Any) -> None:
        for order, (group, values) in enumerate(groups.items()):
            y, low, high = np.array([values.get(name, (np.nan,) * 3) for name in shown], float).T
            x = np.arange(len(shown)) + 0.18 * (order - (len(groups) - 1) / 2)
            colour, marker = SERIES[order % len(SERIES)], MARKERS[order % len(MARKERS)]
            axes.plot(x, y, color=colour, marker=marker, markersize=4.5, linestyle="", zorder=2.5)
            axes.vlines(x, low, high, color=colour, linewidth=1.2)
            keys.append(Key(group, CSS_COLOURS[colour], marker=marker))
        axes.set_xticks(range(len(shown)), [textwrap.fill(name, 18) for name in shown], fontsize=7)
        axes.grid(False, axis="x")
        axes.set_ylim(bottom=0)
        axes.set_title("mean", loc="left", fontsize=8.5)

    svg = _figure(title, caption, draw)
    return Plot(title, caption, svg, tuple(keys))


def _cmc(record: Mapping[str, Any]) -> list[tuple[float, float]]:
    if "cmc" in record:
        return [(float(k), float(value)) for k, value in enumerate(record["cmc"], 1)]
    ranks = {int(name.removeprefix("rank-")): value for name, value in record.items() if name.startswith("rank-")}
    return [(float(k), float(ranks[k])) for k in sorted(ranks)]


def histogram(
    title: str, caption: str, edges: np.ndarray, counts: Mapping[str, np.ndarray], x_label: str, series: Sequence[int]
) -> Plot:
    """Stacked bars.

    Args:
      edges: ascending borders of the bins, f64[n + 1].
      counts: name → count in each bin, i64[n]; stacked in this order.
      series: the colour of each name; bars of odd numbers are striped.
    """
    keys = []

    def draw(axes: Any) -> None:
        bottom = np.zeros(len(edges) - 1)
        for name, number in zip(counts, series, strict=True):
            colour, striped = SERIES[number % len(SERIES)], number % 2 == 1
            fill = {"facecolor": "none", "hatch": "//////"} if striped else {"facecolor": colour}
            bars = {"align": "edge", "edgecolor": colour, "linewidth": 0.8, **fill}
            axes.bar(edges[:-1], counts[name], np.diff(edges), bottom, **bars)
            bottom += counts[name]
            keys.append(Key(name, CSS_COLOURS[colour], marker="striped" if striped else "solid"))
        axes.set(xlabel=x_label, xlim=(edges[0], edges[-1]))
        axes.set_title("tracklets", loc="left", fontsize=8.5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
        axes.set_axisbelow(True)

    totals = ", ".join(f"{name} {int(values.sum())}" for name, values in counts.items())
    svg = _figure(title, f"{caption} Tracklets: {totals}.", draw)
    return Plot(title, caption, svg, tuple(keys))


def _by_kind(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    kinds: dict[str, list[Mapping[str, Any]]] = {"train": [], "association": [], "evaluate": []}
    for row in rows:
        if row.get("kind") in kinds:
            kinds[row["kind"]].append(row)
    return kinds


def _is_score(name: str) -> bool:
    return name.rsplit("/", 1)[-1] in SCORES


def _group(name: str) -> str:
    for score in SCORES:
        name = name.removesuffix(score)
    return name


def _x(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Where each row stands on the axis: what it says itself, or its number if that restarts or is missing.

    Epochs are those of the whole run where rows say them.
    """
    keys = ("run_epoch", "epoch") if name == "epoch" else (name,)
    for key in keys:
        values = [float(x) for x in (row.get(key) for row in rows) if isinstance(x, int | float)]
        if len(values) == len(rows) and not any(b < a for a, b in itertools.pairwise(values)):
            return values
    return [float(i) for i in range(len(rows))]


def _series(rows: Sequence[Mapping[str, Any]], x: Sequence[float], wanted: Any) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for row, at in zip(rows, x, strict=True):
        for name, value in row.items():
            if wanted(name) and isinstance(value, int | float) and not isinstance(value, bool):
                direction = row.get("direction")
                label = f"{direction} {name}" if direction else name
                series.setdefault(label, []).append((at, float(value)))
    return series


def _stage_borders(rows: Sequence[Mapping[str, Any]], x: Sequence[float]) -> list[tuple[float, str]]:
    """Where each stage begins, if there is more than one."""
    borders = []
    for i, row in enumerate(rows):
        if i == 0 or row.get("stage") != rows[i - 1].get("stage"):
            borders.append((x[i], str(row.get("stage", ""))))
    return borders if len(borders) > 1 else []


def _thin(points: Points) -> list[tuple[float, float]]:
    """At most MAX_POINTS points: means of consecutive groups. A group with a value that is not finite is a gap."""
    size = -(-len(points) // MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _curves(
    title: str,
    caption: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    y_limits: tuple[float, float] | None = None,
    borders: Sequence[tuple[float, str]] = (),
    x_ticks: Sequence[int] = (),
) -> Plot:
    """Curves over a whole-numbered axis."""
    keys = []

    def draw(axes: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        for order, line in enumerate(lines):
            x, y = zip(*_thin(line.points), strict=True)
            colour = SERIES[line.series % len(SERIES)]
            marker = MARKERS[line.series % len(MARKERS)] if line.style != ":" and len(x) <= 40 else ""
            # The thickest, which the figure is about, lies above the others.
            above = 2.0 + line.width / 10 + order / 1000
            style = {"linestyle": line.style, "linewidth": line.width, "markersize": 3.5, "zorder": above}
            axes.plot(x, y, color=colour, marker=marker or None, **style)
            key = line.label if line.key is None else line.key
            if key:
                keys.append(Key(key, CSS_COLOURS[colour], DASHES[line.style], marker))
        for x, name in borders:
            axes.axvline(x, color=INK, linewidth=0.8, linestyle=":")
            place = {"xycoords": ("data", "axes fraction"), "xytext": (2, -2), "textcoords": "offset points"}
            axes.annotate(name, (x, 1.0), va="top", rotation=90, fontsize=7.5, **place)
        axes.set_xlabel(x_label)
        axes.set_title(y_label, loc="left", fontsize=8.5)
        if x_ticks:
            axes.set_xticks(x_ticks)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if y_limits:
            axes.set_ylim(*y_limits)

    last = ", ".join(f"{line.label} {line.points[-1][1]:.3g}" for line in lines)
    svg = _figure(title, f"{caption} Last values: {last}.", draw)
    return Plot(title, caption, svg, tuple(keys) if len(keys) > 1 else ())


def _figure(title: str, label: str, draw: Any) -> str:
    """What `draw` puts on its axes, as an element of the page."""
    import matplotlib
    from matplotlib.figure import Figure

    axes: Any = {"axes.grid": True, "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 1.0}
    # A figure of one's own needs no pyplot, no backend choice and no global state.
    with matplotlib.rc_context(theme(title, font_size=8.5) | axes):
        figure = Figure(figsize=SIZE)
        # The same margins everywhere, so that figures side by side line up; a layout engine costs as much as drawing.
        draw(figure.add_axes((0.115, 0.18, 0.845, 0.72)))
        return inline_svg(figure, f"{title}. {label}")


def theme(title: str, font_size: float) -> Any:
    """matplotlib's settings for a figure of the page, in force while it is drawn and while it becomes SVG."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": title,  # the same data give the same bytes
        "font.size": font_size,
        "axes.edgecolor": GRID,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": GRID,
    }


def inline_svg(figure: Any, label: str) -> str:
    """A figure as an `<svg>` element: no prologue, no page-wide style, the page's colours, an aria label."""
    from markupsafe import escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    # The names of groups would be the same in every figure of the page.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    start, rest = svg.split(">", 1)
    svg = re.sub(r' (?:width|height)="[^"]*"', "", start) + ">" + rest
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
