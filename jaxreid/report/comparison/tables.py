"""Tables of rows and columns, and the differences of rows to a baseline."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jaxreid.report.comparison.assumptions import agrees, assumption_sets, dividing_assumptions
from jaxreid.report.comparison.columns import Setup
from jaxreid.report.comparison.controls import BEFORE, control_rows
from jaxreid.report.comparison.folds import mean_over_folds
from jaxreid.report.comparison.rows import Row, group_runs, name_rows, row_named
from jaxreid.report.comparison.runs import CompareError, RunResult, read_runs

SEPARABLE = 2.0  # standard errors


@dataclasses.dataclass(frozen=True)
class Difference:
    """A row minus the baseline, paired over common `seeds`; `error` is the standard error of the mean."""

    mean: float
    error: float | None
    seeds: tuple[int, ...]

    @property
    def separable(self) -> bool | None:
        """Whether it is more than chance; None where one seed says nothing about that."""
        return None if self.error is None else abs(self.mean) >= SEPARABLE * self.error and self.mean != 0


def paired_difference(own: Sequence[float], other: Sequence[float], seeds: tuple[int, ...]) -> Difference:
    """Mean of own − other with its standard error, s / √n with the sample deviation s of the differences."""
    differences = [a - b for a, b in zip(own, other, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
    return Difference(statistics.fmean(differences), error, seeds)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows whose runs were given the same to learn from; `title` says what."""

    title: str
    rows: list[Row]
    setups: list[Setup]
    metrics: tuple[str, ...]
    baseline: Row | None = None

    def columns(self) -> list[tuple[Setup, str]]:
        return list(itertools.product(self.setups, self.metrics))

    def baseline_columns(self) -> list[tuple[Setup, str]]:
        """Those in which the baseline stands."""
        return [(setup, metric) for setup, metric in self.columns() if self.baseline and setup in self.baseline.values]

    def difference(self, row: Row, setup: Setup, metric: str) -> Difference | None:
        """To the baseline; None without a common seed."""
        if self.baseline is None or row is self.baseline:
            return None
        own, other = row.cell(setup, metric), self.baseline.cell(setup, metric)
        seeds = tuple(sorted(set(own) & set(other)))
        return paired_difference([own[s] for s in seeds], [other[s] for s in seeds], seeds) if seeds else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All tables, with the workdirs that were `left_out` (path, why) and sentences to read first.

    `published`: data sets whose published results are shown, those of the runs where empty.
    """

    tables: list[Table]
    left_out: list[tuple[Path, str]]
    notes: list[str]
    published: tuple[str, ...] = ()


def compare(
    arguments: Sequence[str | Path],
    metrics: Sequence[str] = ("mAP", "rank-1"),
    by: Sequence[str] = (),
    baseline: str = "",
    controls: bool = False,
    folds: bool = False,
) -> Comparison:
    """Reads runs and lays them out.

    Args:
      arguments: workdirs or folders that contain workdirs, or NAME=PATH to call them so.
      metrics: keys of the score records.
      by: config keys that make the rows, besides the method; every setting where empty.
      baseline: name of the row that others are compared with.
      controls: whether the scores from before training are rows, too.
      folds: whether the runs on the folds of one data set are averaged.

    Raises:
      CompareError: nothing is left to compare, or it cannot be laid out as asked.
    """
    runs, left_out = read_runs(arguments)
    if not runs:
        listing = "".join(f"\n  {path}: {why}" for path, why in left_out)
        raise CompareError(f"there is no finished, scored run in {', '.join(map(str, arguments))}{listing}")
    if folds:
        runs = mean_over_folds(runs)
    _check_known(metrics, {metric for run in runs for record in run.scores.values() for metric in record}, "metric")
    keys = {key for run in runs for key in run.settings}
    prefixes = {key[:end] for key in keys for end in range(len(key)) if key[end] == "."}
    _check_known(by, keys | prefixes, "config key")

    assumptions = dividing_assumptions(runs)
    tables: list[Table] = []
    copies: dict[RunResult, RunResult] = {}
    for shared in assumption_sets(list(assumptions.values())):
        rows, repeated = group_runs([run for run in runs if agrees(assumptions[run], shared)], by)
        copies |= repeated
        title = ", ".join(f"{name}: {value}" for name, value in shared.items())
        tables.append(_table(title, rows, tuple(metrics), baseline, controls))
    if baseline and not any(table.baseline for table in tables):
        names = dict.fromkeys(row.label for table in tables for row in table.rows)
        raise CompareError(f"--baseline {baseline!r} is the name of no row; rows: {'; '.join(names)}")
    return Comparison(tables, left_out, _notes(tables, baseline, copies))


def _check_known(wanted: Iterable[str], known: set[str], kind: str) -> None:
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 5, 0.4) or sorted(known)[:8]
            raise CompareError(f"no run has the {kind} {name!r}; near it: {', '.join(sorted(near))}")


def _table(title: str, rows: list[Row], metrics: tuple[str, ...], baseline: str, controls: bool) -> Table:
    """A table of these rows, which get their names; arguments as for `compare`."""
    name_rows(rows)
    reference = row_named(baseline, rows)
    if reference:
        name_rows(rows, reference)
    if controls:
        rows = control_rows(rows) + rows
    if baseline and reference is None:
        started = (row for row in rows if row.control and baseline in (row.label, row.base.removeprefix(BEFORE)))
        reference = next(started, None)
    setups = list(dict.fromkeys(setup for row in rows for setup in row.values))
    order = list(dict.fromkeys(setup["dataset"] for setup in setups))
    setups.sort(key=lambda setup: order.index(setup["dataset"]))
    return Table(title, rows, setups, metrics, reference)


def _notes(tables: Sequence[Table], baseline: str, copies: Mapping[RunResult, RunResult]) -> list[str]:
    """What a reader must know about how runs were put together."""
    notes = []
    if len(tables) > 1:
        titles = "; ".join(table.title for table in tables)
        notes.append(
            f"Runs that were told different things in training stand in tables of their own ({titles}); runs of "
            "methods to which the distinction does not apply stand in each."
        )
        notes += [
            f"The row {baseline} is not in the table “{table.title}”, which therefore shows no differences."
            for table in tables
            if baseline and not table.baseline
        ]
    return notes + [
        f"{copy.workdir} holds the same results as {run.workdir}: counted once." for copy, run in copies.items()
    ]
