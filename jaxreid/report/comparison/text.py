"""A table in words: its cells, how its columns were scored, where its rows' settings differ, how to read it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from jaxreid.report.comparison.columns import NAMED_FACTS, Setup, fact_text, setup_names
from jaxreid.report.comparison.settings import NOT_SET, setting_text, usual_value
from jaxreid.report.comparison.tables import SEPARABLE, Comparison, Difference, Table

OF_PUBLISHED = (
    "Percent, as printed in their sources. Figures compare where data set, protocol, average precision and re-ranking "
    "are the same; what a source does not say is not known to be the same."
)


def score_rows(table: Table) -> list[list[str]]:
    """Cells of the table of scores: name, labels, seeds, then every column."""
    return [
        [
            row.label,
            row.labels_used,
            str(len(row.seeds)),
            *(cell_text(row.cell(setup, metric), len(row.seeds)) for setup, metric in table.columns()),
        ]
        for row in table.rows
    ]


def cell_text(values: Mapping[int, float], of_row: int) -> str:
    """Mean ± sample deviation; the number of seeds where it is not `of_row`, the row's."""
    if not values:
        return "–"
    text = f"{statistics.fmean(values.values()):.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values.values()):.1f}"
    return text if len(values) == of_row else f"{text} (n = {len(values)})"


def difference_rows(table: Table) -> list[list[str]]:
    """Cells of the table of differences: name, common seeds, then the baseline's columns. Without a baseline none."""
    cells = []
    for row in table.rows if table.baseline else ():
        if row is table.baseline:
            continue
        differences = {column: table.difference(row, *column) for column in table.baseline_columns()}
        common = max((len(d.seeds) for d in differences.values() if d), default=0)
        texts = [difference_text(d, bool(row.cell(*column)), common) for column, d in differences.items()]
        cells.append([row.label, str(common), *texts])
    return cells


def difference_text(difference: Difference | None, scored: bool, of_row: int) -> str:
    """Mean ± standard error; `scored`: whether the row stands in that column, `of_row`: its number of common seeds."""
    if difference is None:
        return "no common seed" if scored else "–"
    text = f"{difference.mean:+.2f}".replace("-", "−")
    if difference.error is None:
        return f"{text} (one seed)"
    text += f" ± {difference.error:.2f}"
    if len(difference.seeds) != of_row:
        text += f" (n = {len(difference.seeds)})"
    if difference.mean == 0:
        return f"{text}, equal" if difference.error == 0 else f"{text}, not separable"
    return text if difference.separable else f"{text}, not separable"


def conditions(table: Table) -> tuple[str, list[tuple[str, str]]]:
    """How everything in a table was scored, and (setup's name, what is its own)."""
    names = setup_names(table.setups)
    keys = [key for key in dict.fromkeys(k for setup in table.setups for k, _ in setup.facts) if key != "direction"]
    common = {key: table.setups[0][key] for key in keys if len({setup[key] for setup in table.setups}) == 1}
    # Sizes of splits and queries without a match are said where they say something.
    said = {key: value for key, value in common.items() if "." not in key and (key, value) != ("unmatched", 0)}
    several = len({setup["dataset"] for setup in table.setups}) > 1
    own = [key for key in keys if key not in common and key not in NAMED_FACTS and not (several and "." in key)]
    lines = [(names[s], ", ".join(fact_text(key, s[key]) for key in own)) for s in table.setups] if own else []
    return ", ".join(fact_text(key, value) for key, value in said.items()), lines


def separations(table: Table) -> list[str]:
    """Why one direction of one data set has several columns, where not all runs stand in all of them."""
    reasons: dict[tuple[Any, str], list[str]] = {}
    for dataset, direction in dict.fromkeys((setup["dataset"], setup.direction) for setup in table.setups):
        setups = [setup for setup in table.setups if (setup["dataset"], setup.direction) == (dataset, direction)]
        rows = {setup: [row.label for row in table.rows if setup in row.values and not row.control] for setup in setups}
        runs = {setup: [str(run.workdir) for row in table.rows for run in row.runs_of(setup)] for setup in setups}
        if len(set(map(frozenset, runs.values()))) == 1:
            continue
        who = rows if len(set(map(frozenset, rows.values()))) > 1 else runs
        parts = [
            f"with {', '.join(fact_text(key, setup[key]) for key in _different_facts(setups))} for "
            + (listed(who[setup], 3) or "scores from before training")
            for setup in setups
        ]
        reasons.setdefault((dataset, "; ".join(parts)), []).append(direction)
    return [
        f"{' and '.join(directions)} on {dataset} {'is' if len(directions) == 1 else 'are'} scored {text}. "
        "They stand in columns of their own and do not compare."
        for (dataset, text), directions in reasons.items()
    ]


def _different_facts(setups: list[Setup]) -> list[str]:
    """Names of the facts that set them apart; a checksum of contents where nothing else does."""
    keys = dict.fromkeys(key for setup in setups for key, _ in setup.facts)
    different = [key for key in keys if len({setup[key] for setup in setups}) > 1]
    return [key for key in different if not key.startswith("contents.")] or different


def setting_rows(table: Table) -> list[tuple[str, list[tuple[str, str]]]]:
    """(setting, [(value, rows)]) where rows differ; a setting that a whole method lacks is not a difference of it."""
    runs = [(row, run.deciding_settings()) for row in table.rows if not row.control for run in row.runs]
    found = []
    for key in sorted({key for _, settings in runs for key in settings} - {"method"}):
        bases = {row.base for row, settings in runs if key in settings}
        values: dict[Any, list[str]] = {}
        for row, settings in runs:
            labels = values.setdefault(settings.get(key, NOT_SET), []) if row.base in bases else []
            labels += [row.label] if row.label not in labels else []
        if len(values) > 1:
            usual = usual_value([value for value, labels in values.items() for _ in labels])
            several = sum(map(len, values.values())) > 3
            lines = [
                (setting_text(value), "all others" if several and (value,) == usual else "; ".join(labels))
                for value, labels in values.items()
            ]
            found.append((key, sorted(lines, key=lambda line: line[1] == "all others")))
    return found


def how_to_read(comparison: Comparison) -> list[str]:
    """What the numbers are: a sentence or two on scores, and on differences where there are any."""
    metrics = comparison.tables[0].metrics
    sentences = [
        f"{', '.join(metrics)} in percent, higher is better: mean ± sample deviation (divided by n − 1) over training "
        "seeds. A row with one seed has no deviation."
    ]
    if any(table.baseline for table in comparison.tables):
        # The chances are those of |t| > 2 in Student's distribution.
        sentences.append(
            "Differences are taken seed by seed, to the row that --baseline names: mean ± standard error. Below "
            f"{SEPARABLE:g} standard errors a difference is not separable from chance, which is no proof that there is "
            "none. With few seeds this is a weak test: chance alone crosses that line in 30 of 100 comparisons with "
            "two seeds, in 18 with three, in 12 with five."
        )
    return sentences


def protocol_rules(comparison: Comparison) -> list[tuple[str, str]]:
    """(protocol, its rules in a sentence)."""
    from jaxreid.retrieval.protocols import PROTOCOLS

    keys = dict.fromkeys(str(setup["protocol"]) for table in comparison.tables for setup in table.setups)
    return [(f"Protocol {key}", PROTOCOLS[key].describe()) for key in keys if key in PROTOCOLS]


def listed(names: Iterable[str], most: int) -> str:
    """Names with commas; more than `most` are cut short."""
    shown = list(dict.fromkeys(names))
    return ", ".join(shown if len(shown) <= most else [*shown[: most - 1], f"{len(shown) - most + 1} more"])
