"""Runs on the folds of a data set as one result: its mean over the folds, under a name that says so.

Folds are configurations of one data set that differ in the number after `split_` (`ilids_vid/split_0` … `split_9`).
Only runs of one method, config and seed are averaged, and the folds stand in the data set's name: means over other
folds never share a column.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jaxreid.report.comparison.columns import Setup
from jaxreid.report.comparison.runs import CompareError, RunResult

FOLD = re.compile(r"(?P<name>.+/split)_(?P<number>\d+)(?P<rest>(?:_.+)?)")
# What may differ from fold to fold: the sizes of splits, and of what was scored.
SIZES = ("queries", "unmatched", "gallery")
DIFFERENT = "differs between folds"


def mean_over_folds(runs: Sequence[RunResult]) -> list[RunResult]:
    """The runs, with those on the folds of one data set averaged; others stay as they are.

    Raises:
      CompareError: a fold was run twice, or was not scored as the others were.
    """
    groups: dict[Any, dict[int, RunResult]] = {}
    for run in runs:
        match = FOLD.fullmatch(_dataset(run))
        if not match:
            groups[run] = {0: run}
            continue
        family = match["name"] + match["rest"]
        key = (run.name, run.method, run.seed, family, frozenset(run.deciding_settings().items()))
        group, number = groups.setdefault(key, {}), int(match["number"])
        if number in group:
            raise CompareError(f"{group[number].workdir} and {run.workdir} are the same fold of one config and seed")
        group[number] = run
    return [key if isinstance(key, RunResult) else _mean(key[3], group) for key, group in groups.items()]


def _dataset(run: RunResult) -> str:
    return str(next(iter(run.scores))["dataset"])


def _mean(family: str, folds: Mapping[int, RunResult]) -> RunResult:
    """One run for all folds, with the settings of the first; `folds` has them by number."""
    numbers = sorted(folds)
    runs = [folds[number] for number in numbers]
    name = f"{family}, mean of folds {_ranges(numbers)}"
    common = set.intersection(*(set(run.controls) for run in runs))
    return dataclasses.replace(
        runs[0],
        scores=_mean_scores(name, [(run, run.scores) for run in runs]),
        controls={
            features: _mean_scores(name, [(run, run.controls[features]) for run in runs])
            for features in runs[0].controls
            if features in common
        },
        seconds=sum(run.seconds for run in runs if run.seconds) or None,
        conditions=(),  # groups of several folds have no mean
        control_conditions={},
    )


def _mean_scores(
    dataset: str, scores: Sequence[tuple[RunResult, Mapping[Setup, Mapping[str, float]]]]
) -> dict[Setup, dict[str, float]]:
    """Metrics of equal setups averaged; a size in which the folds differ is said to differ."""
    by_fold = [{_without_sizes(setup): (setup, metrics) for setup, metrics in found.items()} for _, found in scores]
    for (run, _), found in zip(scores, by_fold, strict=True):
        if found.keys() != by_fold[0].keys():
            raise CompareError(f"{run.workdir} was not scored as {scores[0][0].workdir}: their folds have no mean")
    means = {}
    for key in by_fold[0]:
        setups, metrics = zip(*(found[key] for found in by_fold), strict=True)
        facts = {
            fact: value if all(setup[fact] == value for setup in setups) else DIFFERENT
            for fact, value in setups[0].facts
        }
        shared = [metric for metric in metrics[0] if all(metric in one for one in metrics)]
        means[Setup(tuple((facts | {"dataset": dataset}).items()))] = {
            metric: statistics.fmean(one[metric] for one in metrics) for metric in shared
        }
    return means


def _without_sizes(setup: Setup) -> tuple[tuple[str, Any], ...]:
    """The facts that are the same on every fold."""
    return tuple(
        (fact, value)
        for fact, value in setup.facts
        if fact not in ("dataset", *SIZES) and not fact.startswith(("tracklets.", "frames.", "contents."))
    )


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as "0–2, 5"."""
    parts = []
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in group]
        parts.append(f"{members[0]}–{members[-1]}" if len(members) > 1 else str(members[0]))
    return ", ".join(parts)
