"""Scores by condition, as the page shows them: figures, grids of two conditions, and tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxreid.report import plots
from jaxreid.report.plots import Plot
from jaxreid.report.words import readable

POINT = "point"
FEW = 10  # identities below which an interval says little
SIDES = {
    "query": "by query",
    "gallery": "by gallery",
    "relation": "by match",
}


@dataclasses.dataclass(frozen=True)
class Grid:
    """mAP of groups in rows and columns; `cells` [row][column] are rows of a table or None, with their shade."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[tuple[Mapping[str, Any], float] | None, ...], ...]


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition's tables with their titles, and those of two conditions and of points as grids."""

    name: str
    tables: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    grids: tuple[Grid, ...] = ()

    @property
    def has(self) -> set[str]:
        """What the tables and their rows say."""
        return {name for _, table in self.tables for part in (table, *table["groups"]) for name in part}


def conditions(tables: Sequence[Mapping[str, Any]]) -> list[Condition]:
    """The tables of `results.json`, condition by condition; that of the cases first."""
    found = []
    for name in sorted(dict.fromkeys(table["condition"] for table in tables), key=lambda name: name != "case"):
        own = [(title(table), table) for table in tables if table["condition"] == name]
        if "columns" in own[0][1]:
            found.append(Condition(name, grids=tuple(_grid(heading, table) for heading, table in own)))
        else:
            grids = tuple(_points_grid(heading, table) for heading, table in own) if name == POINT else ()
            found.append(Condition(name, tuple(own), grids))
    return found


def title(table: Mapping[str, Any]) -> str:
    """The direction, and the side that was grouped."""
    if table["condition"] == "case":
        return "all cases"
    return f"{readable(table['direction'])}, {SIDES[table['side']]}"


def condition_plots(tables: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """mAP over the number of every condition that has one, a line for every direction and side."""
    found, numbered = [], [table for table in tables if "rho" in table]
    names = dict.fromkeys(map(title, numbered))
    for name in dict.fromkeys(table["condition"] for table in numbered):
        own = {title(table): table for table in numbered if table["condition"] == name}
        # A line looks the same in all figures: what this one has not is an empty line.
        lines = {line: _points(own[line]["groups"]) if line in own else [] for line in names}
        caption = "mAP of each group at the mean of its numbers, with its interval."
        found.append(
            plots.with_intervals(f"mAP over {name}", caption, lines, f"{name}, {next(iter(own.values()))['unit']}")
        )
    return found


def _points(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, float, float]]:
    found = []
    for row in rows:
        if row["mAP"] is not None:
            low, high = (float("nan") if end is None else end for end in row["mAP_interval"])
            found.append((row["value"], row["mAP"], low, high))
    return found


def _points_grid(heading: str, table: Mapping[str, Any]) -> Grid:
    """Points by their angle, in each row from near to far."""
    of_angle: dict[str, int] = {}
    pairs = {}
    for row in table["groups"]:
        angle = row["group"].partition(", ")[0]
        of_angle[angle] = of_angle.get(angle, 0) + 1
        pairs[angle, str(of_angle[angle])] = row
    columns = tuple(str(number) for number in range(1, max(of_angle.values()) + 1))
    return _shaded(f"{heading}, from near to far", pairs, columns)


def _grid(heading: str, table: Mapping[str, Any]) -> Grid:
    return _shaded(heading, {tuple(row["group"]): row for row in table["groups"]}, tuple(table["columns"]))


def _shaded(heading: str, pairs: Mapping[Any, Mapping[str, Any]], columns: tuple[str, ...]) -> Grid:
    groups, rows = pairs.values(), tuple(dict.fromkeys(row for row, _ in pairs))
    known = [row["mAP"] for row in groups if row["mAP"] is not None]
    low, span = min(known, default=0.0), max(max(known, default=0.0) - min(known, default=0.0), 20.0)

    def cell(row: Mapping[str, Any] | None) -> tuple[Mapping[str, Any], float] | None:
        return None if row is None or row["mAP"] is None else (row, (row["mAP"] - low) / span)

    return Grid(heading, rows, columns, tuple(tuple(cell(pairs.get((a, b))) for b in columns) for a in rows))
