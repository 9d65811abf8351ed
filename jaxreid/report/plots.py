"""Learning curves as inline SVG that follows the page's light or dark colours.

matplotlib draws with marker colours that no theme uses; they are replaced by the page's CSS variables, so that one
drawing serves both themes and its text stays text. It is imported when something is drawn, not before.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

INK, GRID = "#010101", "#020202"
SERIES = tuple(f"#0{i}0{i}03" for i in range(1, 7))
CSS_COLOURS = {INK: "var(--muted)", GRID: "var(--line)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES, 1)
}
SCORES = ("mAP", "rank-1")
MARKERS = ("o", "s", "^", "D", "v", "P")
MAX_POINTS = 300

Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Plot:
    """One figure: `svg` is an `<svg>` element for inlining, `caption` says what it shows."""

    title: str
    caption: str
    svg: str


def learning_curves(metrics: Iterable[Mapping[str, Any]]) -> list[Plot]:
    """The figures that the logged rows allow: loss, association, mAP and rank-1. Nothing logged, no figure.

    Args:
      metrics: rows of metrics.jsonl, dicts with `kind` ('train', 'association' or 'evaluate') and some of `stage`,
        `epoch`, `step` and any numbers. In 'train' rows names with 'loss' are drawn over steps; in 'association'
        rows names with 'precision' or 'coverage' over epochs; in 'evaluate' rows 'mAP' and 'rank-1' over epochs,
        either with a `direction` beside them or written 'direction/mAP'.
    """
    rows = [dict(row) for row in metrics]
    kinds = {kind: [row for row in rows if row.get("kind") == kind] for kind in ("train", "association", "evaluate")}
    plots = []
    losses = _series(kinds["train"], _x(kinds["train"], "step"), lambda name: "loss" in name.lower())
    if losses:
        skipped = sum(not math.isfinite(y) for points in losses.values() for _, y in points)
        caption = "Loss of each logged training step"
        if any(len(points) > MAX_POINTS for points in losses.values()):
            caption += f", averaged to at most {MAX_POINTS} points"
        caption += "."
        if skipped:
            caption += f" {skipped} values are not finite and leave gaps."
        borders = _stage_borders(kinds["train"], _x(kinds["train"], "step"))
        plots.append(_draw("Training loss", caption, losses, "step", "loss", borders=borders))
    scores = _series(kinds["evaluate"], _x(kinds["evaluate"], "epoch"), _is_score)
    if scores:
        caption = "Retrieval quality where it was evaluated: mAP solid, rank-1 dashed. Higher is better."
        plots.append(_draw("Retrieval during training", caption, scores, "epoch", "percent"))
    for word, meaning in (
        ("precision", "Share of the pairs found that show one person (labels are used for this log only)."),
        ("coverage", "Share of the prototypes that found a partner at all."),
    ):
        x = _x(kinds["association"], "epoch")
        series = _series(kinds["association"], x, lambda name, word=word: word in name.lower())
        if series:
            plots.append(_draw(f"Association {word}", meaning, series, "epoch", "percent", (0.0, 102.0)))
    return plots


def _is_score(name: str) -> bool:
    return name.rsplit("/", 1)[-1] in SCORES


def _group(name: str) -> str:
    for score in SCORES:
        name = name.removesuffix(score)
    return name


def _x(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Where each row stands on the axis: what it says itself, or its number if that restarts or is missing."""
    values = [float(x) for x in (row.get(name) for row in rows) if isinstance(x, int | float)]
    if len(values) < len(rows) or any(b < a for a, b in itertools.pairwise(values)):
        return [float(i) for i in range(len(rows))]
    return values


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


def _draw(
    title: str,
    caption: str,
    series: Mapping[str, Points],
    x_label: str,
    y_label: str,
    y_limits: tuple[float, float] | None = None,
    borders: Sequence[tuple[float, str]] = (),
) -> Plot:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,  # the same data give the same bytes
        "font.size": 9,
        "axes.edgecolor": GRID,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": GRID,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    # A figure of one's own needs no pyplot, no backend choice and no global state.
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        # The scores of one direction share a colour.
        groups = list(dict.fromkeys(_group(name) for name in series))
        for name, points in series.items():
            x, y = zip(*_thin(points), strict=True)
            group = groups.index(_group(name))
            axes.plot(
                x,
                y,
                label=name,
                color=SERIES[group % len(SERIES)],
                linestyle="--" if name.endswith("rank-1") else "-",
                linewidth=1.6,
                marker=MARKERS[group % len(MARKERS)] if len(x) <= 40 else None,
                markersize=4,
            )
        for x, name in borders:
            axes.axvline(x, color=INK, linewidth=0.8, linestyle=":")
            axes.annotate(name, (x, 1.01), xycoords=("data", "axes fraction"), va="bottom", fontsize=8)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if y_limits:
            axes.set_ylim(*y_limits)
        if len(series) > 1:
            columns = 3 if max(map(len, series)) < 14 else 2
            figure.legend(loc="outside upper left", ncols=columns, fontsize=8, handlelength=2.2)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Plot(title, caption, _for_page(buffer.getvalue(), f"{title}. {caption}"))


def _for_page(svg: str, label: str) -> str:
    """An SVG document as an element of the page: no prologue, no page-wide style, the page's colours, a label."""
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    # The names of groups would be the same in every figure of the page.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    start, rest = svg.split(">", 1)
    svg = re.sub(r' (?:width|height)="[^"]*"', "", start) + ">" + rest
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
