"""Rows side by side by condition: mAP over altitude and other numbers of a tracklet, and what follows from it.

Of each run the tables of its `results.json` are taken (`jaxreid.evaluation.breakdown`). Over seeds, figures are means,
and so are the two ends of intervals: a seed's interval says how sure the people who were tested make it, which more
seeds do not change.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxreid.report import plots
from jaxreid.report.comparison.rows import Row
from jaxreid.report.comparison.tables import Table
from jaxreid.report.page import format_interval, format_signed
from jaxreid.report.words import readable

# Not drawn where its other form is: from straight above, everybody is at no distance.
SLANTED, MIXED = "distance, slanted views", "distance"
# What is said of a direction in one line: heading, condition, figure, digits.
FIGURES = (
    ("ρ altitude", "altitude", "rho", 2),
    ("ρ distance", MIXED, "rho", 2),
    ("ρ distance, slanted views", SLANTED, "rho", 2),
    ("ρ slant range", "slant range", "rho", 2),
    ("nadir gap", "angle", "nadir_gap", 1),
    ("lowest / highest altitude", "altitude", "lowest_to_highest", 2),
)

Found = Mapping[str, Any]  # a table of a run
Place = tuple[str, str, str]  # data set, direction, side


def condition_plots(table: Table) -> list[plots.Plot]:
    """A figure for every data set, direction and condition that has numbers, with a line for every row of the table."""
    found = []
    rows = [row for row in table.rows if any(_all_tables(row))]
    for place, conditions in _places(table).items():
        for condition in (name for name in conditions if name != MIXED or SLANTED not in conditions):
            lines = {row.label: _points(_tables(row, place, condition)) for row in rows}
            unit = next(t["unit"] for row in rows for t in _tables(row, place, condition))
            title = f"{_title(table, place)}: mAP over {condition}"
            found.append(plots.with_intervals(title, "", lines, f"{condition}, {unit}"))
    return found


def condition_rows(table: Table) -> list[list[str]]:
    """Cells of the table of `FIGURES`, after a line with the headings; empty where no run knows a condition."""
    lines = []
    for place in _places(table):
        for row in table.rows:
            cells = [_cell(_tables(row, place, name), figure, digits) for _, name, figure, digits in FIGURES]
            if any(cells):
                lines.append([row.label, _title(table, place), *(cell or "–" for cell in cells)])
    return [["", "direction", *(heading for heading, *_ in FIGURES)], *lines] if lines else []


def _places(table: Table) -> dict[Place, list[str]]:
    """Data sets and directions, each with its numbered conditions. By query where queries have numbers, by gallery
    where only the other side was looked at from above."""
    found: dict[Place, dict[str, None]] = {}
    for row in table.rows:
        for dataset, one in _all_tables(row):
            if "rho" in one:
                found.setdefault((dataset, one["direction"], one["side"]), {})[one["condition"]] = None
    return {
        (dataset, direction, side): [*conditions]
        for (dataset, direction, side), conditions in found.items()
        if side == "query" or (dataset, direction, "query") not in found
    }


def _all_tables(row: Row) -> Iterator[tuple[str, Found]]:
    for run in row.runs:
        dataset = str(next(iter(run.scores))["dataset"])
        for one in run.control_conditions.get(row.features, ()) if row.control else run.conditions:
            yield dataset, one


def _tables(row: Row, place: Place, condition: str) -> list[Found]:
    """That of every run of a row."""
    return [
        one
        for dataset, one in _all_tables(row)
        if (dataset, one["direction"], one["side"]) == place and one["condition"] == condition
    ]


def _points(tables: Sequence[Found]) -> list[tuple[float, float, float, float]]:
    """(number, mAP, lower and upper end) of every group, means over the tables that have it."""
    groups: dict[str, list[tuple[float, ...]]] = {}
    for one in tables:
        for row in one["groups"]:
            if row["mAP"] is not None and row["value"] is not None:
                ends = (float("nan") if end is None else end for end in row["mAP_interval"])
                groups.setdefault(row["group"], []).append((row["value"], row["mAP"], *ends))
    return [tuple(map(statistics.fmean, zip(*points, strict=True))) for points in groups.values()]  # pyright: ignore


def _cell(tables: Sequence[Found], figure: str, digits: int) -> str:
    known = [one for one in tables if one.get(figure) is not None and None not in one[f"{figure}_interval"]]
    if not known:
        return ""
    mean = statistics.fmean(one[figure] for one in known)
    ends = [statistics.fmean(one[f"{figure}_interval"][end] for one in known) for end in (0, 1)]
    return f"{format_signed(mean, digits)} ({format_interval(ends, digits)})"


def _title(table: Table, place: Place) -> str:
    dataset, direction, side = place
    several = len({setup["dataset"] for setup in table.setups}) > 1
    return f"{dataset + ', ' if several else ''}{readable(direction)}, by {side}"
