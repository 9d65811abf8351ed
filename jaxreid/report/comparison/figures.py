"""Figures of a table: every row's mean and deviation on one axis."""

from __future__ import annotations

import statistics
from typing import Any

from jaxreid.report import plots
from jaxreid.report.comparison.columns import Setup, setup_names
from jaxreid.report.comparison.tables import Table

NARROWEST = 5.0  # percent on a figure's axis: a smaller range makes much of nothing


def figures(table: Table) -> list[plots.Plot]:
    """One figure per setup: every row's mean and deviation, its seeds as small dots."""
    names = setup_names(table.setups)
    return [_figure(table, setup, names[setup]) for setup in table.setups]


def _figure(table: Table, setup: Setup, name: str) -> plots.Plot:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = [row for row in table.rows if setup in row.values]
    with rc_context(plots.theme(name, font_size=8)):
        figure = Figure(figsize=(3.7, 0.45 + 0.4 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for number, metric in enumerate(table.metrics):
            colour, marker = plots.SERIES[number % len(plots.SERIES)], plots.MARKERS[number % len(plots.MARKERS)]
            if table.baseline and (cell := table.baseline.cell(setup, metric)):
                axes.axvline(statistics.fmean(cell.values()), color=colour, linewidth=0.8, linestyle=":", zorder=1)
            for place, row in enumerate(rows):
                values = list(row.cell(setup, metric).values())
                if not values:
                    continue
                y = -place + 0.12 * ((len(table.metrics) - 1) / 2 - number)
                spread = statistics.stdev(values) if len(values) > 1 else None
                bar: Any = {"color": colour, "marker": marker, "markersize": 4.5, "capsize": 3, "linewidth": 1.2}
                axes.plot(values, [y] * len(values), "o", color=colour, markersize=2.5, alpha=0.45, zorder=2)
                axes.errorbar(statistics.fmean(values), y, xerr=spread, linestyle="", zorder=3, **bar)
        for place, row in enumerate(rows):
            label = row.label if len(row.label) < 60 else row.label[:58] + "…"
            # Above its line, where a long name does not take the width from the scale.
            where: Any = ("axes fraction", "data")
            axes.annotate(label, (0.0, -place + 0.33), xycoords=where, va="center", fontsize=8)
        axes.margins(x=0.06)
        low, high = axes.get_xlim()
        wider = max(0.0, NARROWEST - (high - low)) / 2
        axes.set(xlim=(low - wider, high + wider), ylim=(-len(rows) + 0.65, 0.6), yticks=[], xlabel="percent")
        axes.grid(axis="x")
        axes.spines[["left", "right", "top"]].set_visible(False)
        return plots.Plot(name, "", plots.inline_svg(figure, f"{name}: the numbers of the table"))
