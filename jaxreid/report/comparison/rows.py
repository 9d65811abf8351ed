"""Which runs are one row, and how rows are named."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jaxreid.config import among
from jaxreid.report.comparison.assumptions import LABELS, NOT_STATED
from jaxreid.report.comparison.columns import Setup
from jaxreid.report.comparison.runs import CompareError, RunResult
from jaxreid.report.comparison.settings import NOT_SET, changes, setting_text, usual_value

NAMED_SETTINGS = 4  # more of them do not fit a row's name


@dataclasses.dataclass(eq=False)
class Row:
    """Runs that are averaged.

    Attributes:
      base: the method, or the name given on the command line.
      settings: what tells this row from others of the same base.
      labels_used: whether its runs learned from identity labels.
      values: setup → seed → (metric → percent, run).
      control: whether this is a score from before training; features: of which.
      label: its name in the table.
    """

    base: str
    settings: dict[str, Any]
    labels_used: str
    values: dict[Setup, dict[int, tuple[dict[str, float], RunResult]]] = dataclasses.field(default_factory=dict)
    control: bool = False
    label: str = ""
    features: str = ""

    @property
    def runs(self) -> list[RunResult]:
        return list(dict.fromkeys(run for setup in self.values for run in self.runs_of(setup)))

    def runs_of(self, setup: Setup) -> list[RunResult]:
        return [run for _, run in self.values.get(setup, {}).values()]

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for by_seed in self.values.values() for seed in by_seed})

    def cell(self, setup: Setup, metric: str) -> dict[int, float]:
        """seed → value."""
        by_seed = self.values.get(setup, {})
        return {seed: metrics[metric] for seed, (metrics, _) in sorted(by_seed.items()) if metric in metrics}


def group_runs(runs: Sequence[RunResult], by: Sequence[str] = ()) -> tuple[list[Row], dict[RunResult, RunResult]]:
    """Rows, those of one method together, and the runs that repeat another's results: copy → run.

    Args:
      by: config keys that make the rows, besides the method; every setting that decides a result where empty.

    Raises:
      CompareError: runs of one row differ in more than their seed, or one config and seed has two results.
    """
    methods: dict[str, set[str]] = {}
    for run in runs:
        methods.setdefault(run.name, set()).add(run.method)
    rows: dict[Any, Row] = {}
    copies: dict[RunResult, RunResult] = {}
    for run in runs:
        base = run.name or run.method
        if run.name and len(methods[run.name]) > 1:
            base = f"{run.name} ({run.method})"
        settings = {k: v for k, v in run.settings.items() if among(k, by)} if by else run.deciding_settings()
        key = (base, run.method, frozenset(settings.items()))
        row = rows.setdefault(key, Row(base, settings, run.assumptions.get(LABELS, NOT_STATED)))
        repeated = []
        for setup, metrics in run.scores.items():
            by_seed = row.values.setdefault(setup, {})
            if by_seed:
                _check_same_config(next(iter(by_seed.values()))[1], run, row)
            if run.seed in by_seed:
                known, other = by_seed[run.seed]
                _check_same_result(other, known, run, metrics, setup)
                repeated.append(other)
            else:
                by_seed[run.seed] = (metrics, run)
        if len(repeated) == len(run.scores):
            copies[run] = repeated[0]
    order = list(dict.fromkeys(row.base for row in rows.values()))
    return sorted(rows.values(), key=lambda row: order.index(row.base)), copies


def _check_same_config(one: RunResult, other: RunResult, row: Row) -> None:
    different = dict(changes(one.deciding_settings(), other.deciding_settings()))
    if different:
        listing = "; ".join(
            f"{key}: {setting_text(old)} → {setting_text(new)}" for key, (old, new) in list(different.items())[:5]
        )
        raise CompareError(
            f"{one.workdir} and {other.workdir} would be averaged as {row.base!r}, but not only their seeds differ "
            f"({listing}): add {next(iter(different))} to --by, or give them names (NAME=WORKDIR)"
        )


def _check_same_result(
    one: RunResult, known: Mapping[str, float], other: RunResult, metrics: Mapping[str, float], setup: Setup
) -> None:
    different = [key for key in metrics if metrics[key] != known.get(key)]
    if not different:
        return
    key = different[0]
    text = (
        f"{one.workdir} and {other.workdir} have the same config and seed {one.seed}, but different results "
        f"({setup.direction} {key} {known.get(key)} and {metrics[key]})"
    )
    harmless = [k for k, _ in changes(one.settings, other.settings)]
    if harmless:
        text += f"; they differ in {', '.join(harmless)}, which should not change a result"
    raise CompareError(f"{text}. Leave one out, or give them names (NAME=WORKDIR) to see them as two rows")


def name_rows(rows: Sequence[Row], reference: Row | None = None) -> None:
    """Labels rows with their base and the settings in which those of one base differ.

    A setting is named where it differs from the most common value among them (or from the reference row's); where no
    value is the most common, all are named.
    """
    for base in dict.fromkeys(row.base for row in rows):
        group = [row for row in rows if row.base == base]
        named: dict[int, list[str]] = {id(row): [] for row in group}
        for key in dict.fromkeys(key for row in group for key in row.settings):
            values = [row.settings.get(key, NOT_SET) for row in group]
            usual = usual_value(values)
            if reference is not None and reference in group:
                usual = (reference.settings.get(key, NOT_SET),)
            for row, value in zip(group, values, strict=True):
                if len(set(values)) > 1 and (value,) != usual:
                    named[id(row)].append(f"{key}={setting_text(value)}")
        taken: Counter[str] = Counter()
        for row in group:
            words = named[id(row)]
            if len(words) > NAMED_SETTINGS:
                words = [*words[: NAMED_SETTINGS - 1], f"and {len(words) - NAMED_SETTINGS + 1} more"]
            label = " ".join([base, *words])
            taken[label] += 1
            row.label = label if taken[label] == 1 else f"{label} [{taken[label]}]"


def row_named(name: str, rows: Sequence[Row]) -> Row | None:
    """The row of this label, or of this base where that is one row's only; None where there is none.

    Raises:
      CompareError: several rows have it as their base.
    """
    found = [row for row in rows if row.label == name] or [row for row in rows if row.base == name]
    if len(found) > 1:
        listing = "; ".join(row.label for row in found)
        raise CompareError(f"--baseline {name!r} may be any of these rows; give the full name: {listing}")
    return found[0] if found else None
