"""Scores from before training as rows: those of the features that training started from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from jaxreid.report.comparison.rows import Row

BEFORE = "before training: "
SAME = 0.01  # percent


def control_rows(rows: Sequence[Row]) -> list[Row]:
    """One row for all rows that started from the same features.

    They count as the same where they agree, to 0.01 percent, on every setup and seed that they share, and share one.
    """
    distinct: list[tuple[str, Row, list[str]]] = []  # features, their row, labels of the rows that started from them
    for row in rows:
        for features in dict.fromkeys(features for run in row.runs for features in run.controls):
            own = _scores_of(features, row)
            for known, control, starts in distinct:
                if known == features and _agree(control, own):
                    for setup, by_seed in own.values.items():
                        control.values[setup] = {**by_seed, **control.values.get(setup, {})}
                    starts.append(row.label)
                    break
            else:
                distinct.append((features, own, [row.label]))
    counts = Counter(features for features, _, _ in distinct)
    for features, control, starts in distinct:
        control.label = control.base
        if counts[features] > 1:
            shown = starts if len(starts) < 3 else [starts[0], f"{len(starts) - 1} more"]
            control.label += f" (of {' and '.join(shown)})"
    order = list(dict.fromkeys(features for features, _, _ in distinct))
    return [control for features, control, _ in sorted(distinct, key=lambda one: order.index(one[0]))]


def _scores_of(features: str, row: Row) -> Row:
    """What the runs of a row scored with these features before training."""
    control = Row(f"{BEFORE}{features}", {}, "not trained", control=True, features=features)
    for run in row.runs:
        for setup, metrics in run.controls.get(features, {}).items():
            control.values.setdefault(setup, {})[run.seed] = (metrics, run)
    return control


def _agree(one: Row, other: Row) -> bool:
    shared = [
        (metrics, other.values[setup][seed][0])
        for setup, by_seed in one.values.items()
        for seed, (metrics, _) in by_seed.items()
        if seed in other.values.get(setup, {})
    ]
    return bool(shared) and all(abs(a[key] - b[key]) < SAME for a, b in shared for key in a.keys() & b.keys())
