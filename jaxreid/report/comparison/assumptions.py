"""Which runs may share a table: those that were given the same to learn from.

A run's `assumptions` say what it was given: whether identity labels, which tracklets belong together, and so on. A run
that does not know an assumption agrees with every value of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from jaxreid.report.comparison.runs import RunResult

LABELS = "identity labels"
NOT_STATED = "not stated"


def dividing_assumptions(runs: Sequence[RunResult]) -> dict[RunResult, dict[str, str]]:
    """The assumptions that decide in which tables each run stands.

    Whether labels were used divides the runs of one method only: a supervised bound may stand beside an unsupervised
    method, and its row says so.
    """
    methods: dict[str, list[RunResult]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    dividing = {}
    for method, members in methods.items():
        names = dict.fromkeys(name for run in members for name in run.assumptions)
        values = {name: [run.assumptions.get(name, NOT_STATED) for run in members] for name in names}
        for place, run in enumerate(members):
            dividing[run] = {
                f"{LABELS} of {method}" if name == LABELS else name: values[name][place]
                for name in names
                if name != LABELS or len(set(values[name])) > 1
            }
    return {run: dividing[run] for run in runs}


def assumption_sets(runs: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The tables that are needed: sets of assumptions, each with the most runs that agree with it.

    Args:
      runs: the assumptions of each run.
    """
    values: dict[str, list[str]] = {}
    for one in runs:
        for name, value in one.items():
            values.setdefault(name, [])
            values[name] += [value] if value not in values[name] else []
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    members = [frozenset(i for i, one in enumerate(runs) if agrees(one, combination)) for combination in combinations]
    return [
        combination
        for place, combination in enumerate(combinations)
        if not any(members[place] < other for other in members) and members[place] not in members[:place]
    ]


def agrees(run: Mapping[str, str], table: Mapping[str, str]) -> bool:
    """Whether a run with these assumptions belongs in the table of those."""
    return all(table[name] == value for name, value in run.items())
