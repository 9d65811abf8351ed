"""How scores depend on the conditions under which tracklets were taken: tables for `results.json`.

Groups are those of VReID-XFD's analysis (altitude, distance, pitch, slant range, 18 capture points), and of sessions,
platforms and clothes where a data set knows them. Every table comes by query (the mean over the queries of a group),
by gallery (every query is scored for the matches of a group alone) or by relation (matches that agree with the query
in a condition, or differ from it), see `jaxreid.retrieval.breakdown`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxreid.evaluation.cases import Case
from jaxreid.evaluation.conditions import NADIR, Column, columns, relations
from jaxreid.retrieval.breakdown import (
    LEVEL,
    REPLICATES,
    SEED,
    Breakdown,
    Entries,
    breakdown,
    match_entries,
    query_entries,
)
from jaxreid.retrieval.metrics import Scores

QUERY, GALLERY, RELATION = "query", "gallery", "relation"
CASE = "case"

Table = dict[str, Any]


def breakdown_tables(cases: Sequence[Case], quality: Sequence[Scores]) -> dict[str, Any]:
    """{"breakdown": …} for `results.json`, of the headline protocol; {} where there is nothing to group by.

    Args:
      cases: what was ranked, those of the headline protocol first.
      quality: their scores, with matches.

    Each of its `tables` names direction, protocol, condition and side, and has a row per group: `group` (a pair for two
    conditions, of which the second are listed in order as `columns`), `value` (mean of the condition's numbers), mAP
    with `mAP_interval`, rank-k, `queries` and `identities` of its entries, and `gallery`, its gallery tracklets.
    `macro` is the mean mAP of the groups, `overall` that over the queries in their whole ranking; `lowest_to_highest`
    the lowest mAP of a group over the highest, with the interval of these two groups; `rho` Spearman's correlation of
    average precision with the condition's number; `nadir_gap` the mean mAP of the groups of other angles less that of
    90°. Percent, but for rho and lowest_to_highest. Each has its interval.
    """
    headline = [
        (case, scores) for case, scores in zip(cases, quality, strict=False) if case.protocol == cases[0].protocol
    ]
    tables = [table for case, scores in headline for table in _tables(case, scores)]
    if len({frozenset((case.query.split.name, case.gallery.split.name)) for case, _ in headline}) > 1:
        tables += _of_cases(headline)
    if not tables:
        return {}
    return {"breakdown": {"replicates": REPLICATES, "seed": SEED, "level": LEVEL, "tables": tables}}


def _tables(case: Case, scores: Scores) -> Iterator[Table]:
    identity = case.query.columns().identity

    def table(condition: str, side: str, labels: Sequence[Any], entries: Entries, **known: Any) -> Iterator[Table]:
        if len(np.unique(entries.group[entries.valid])) > 1:
            facts = {"direction": case.direction, "protocol": case.protocol.key, "condition": condition, "side": side}
            yield facts | _table(labels, entries, scores.average_precision, identity, **known)

    for column in columns(case.query):
        entries = query_entries(scores, column.group)
        value = None if column.value is None else column.value[entries.query]
        yield from table(column.name, QUERY, column.labels, entries, value=value, column=column)
    matches = scores.matches
    assert matches is not None
    for column in columns(case.gallery):
        entries = match_entries(scores, case.protocol, column.group[matches.row])
        means = _group_values(column)
        value = None if means is None else means[entries.group]
        size = np.bincount(column.group[column.group >= 0], minlength=len(column.labels))
        yield from table(column.name, GALLERY, column.labels, entries, value=value, column=column, gallery=size)
    for name, here, there in relations(case):
        mine, other = here[:, None], there[matches.row]
        group = np.where((mine < 0) | (other < 0), -1, mine != other)
        entries = match_entries(scores, case.protocol, group)
        yield from table(name, RELATION, (f"same {name}", f"other {name}"), entries)


def _of_cases(headline: Sequence[tuple[Case, Scores]]) -> Iterator[Table]:
    """One table of all cases: their macro average beside the query-weighted mean, as leaderboards mean "overall"."""
    scores = [scores for _, scores in headline]
    group = np.concatenate([np.full(len(each.first_match), number) for number, each in enumerate(scores)])
    first, precision = (
        np.concatenate([getattr(each, name) for each in scores]) for name in ("first_match", "average_precision")
    )
    entries = Entries(np.arange(len(group)), group, precision, first, (first > 0) | scores[0].count_unmatched)
    identity = np.concatenate([case.query.columns().identity for case, _ in headline])
    facts = {"direction": "overall", "protocol": headline[0][0].protocol.key, "condition": CASE, "side": QUERY}
    yield facts | _table([case.direction for case, _ in headline], entries, precision, identity)


def _table(
    labels: Sequence[Any],
    entries: Entries,
    whole: np.ndarray,
    identity: np.ndarray,
    value: np.ndarray | None = None,
    column: Column | None = None,
    gallery: np.ndarray | None = None,
) -> Table:
    found = breakdown(entries, whole, identity, len(labels), value)
    seen = np.union1d(entries.group, () if gallery is None else np.flatnonzero(gallery)).astype(int)
    means = None if column is None else _group_values(column)
    rows = []
    for number in seen:
        row: dict[str, Any] = {"group": labels[number]}
        if means is not None:
            row["value"] = _number(means[number])
        row |= {"mAP": _number(found.mAP[number]), "mAP_interval": [*map(_number, found.interval[:, number])]}
        row |= {f"rank-{k}": _number(values[number]) for k, values in found.rank.items()}
        row |= {"queries": int(found.queries[number]), "identities": int(found.identities[number])}
        rows.append(row if gallery is None else row | {"gallery": int(gallery[number])})
    figures = {"macro": found.macro, "overall": found.overall, "lowest_to_highest": _lowest_to_highest(found)}
    if found.rho is not None:
        figures["rho"] = found.rho
    if column is not None and column.name == "angle" and means is not None:
        gap = _nadir_gap(found, means)
        figures |= {"nadir_gap": gap} if gap else {}
    table: Table = {"unit": column.unit if column else "", "groups": rows}
    if isinstance(labels[0], tuple):
        known = {labels[number][1] for number in seen}
        table["columns"] = [label for label in dict.fromkeys(pair[1] for pair in labels) if label in known]
    for name, (figure, between) in figures.items():
        table |= {name: _number(figure), f"{name}_interval": [*map(_number, between)]}
    return table


def _group_values(column: Column) -> np.ndarray | None:
    """f64[G], mean number of each group's tracklets; NaN where it has none."""
    if column.value is None:
        return None
    known = column.group >= 0
    size = np.bincount(column.group[known], minlength=len(column.labels))
    total = np.bincount(column.group[known], column.value[known], minlength=len(column.labels))
    return np.divide(total, size, out=np.full(len(size), np.nan), where=size > 0)


def _lowest_to_highest(found: Breakdown) -> tuple[float, tuple[float, float]]:
    """Of the same two groups in every replicate: the lowest of many groups is lower in each than it is on the whole."""
    low, high = np.nanargmin(found.mAP), np.nanargmax(found.mAP)

    def ratio(mAP: np.ndarray) -> np.ndarray:
        whole = mAP[..., high]
        return np.divide(mAP[..., low], whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)

    return found.figure(ratio)


def _nadir_gap(found: Breakdown, means: np.ndarray) -> tuple[float, tuple[float, float]] | None:
    straight = means >= NADIR
    known = ~np.isnan(found.mAP)
    if not (known & straight).any() or not (known & ~straight).any():
        return None

    def gap(mAP: np.ndarray) -> np.ndarray:
        return mAP[..., known & ~straight].mean(axis=-1) - mAP[..., known & straight].mean(axis=-1)

    return found.figure(gap)


def _number(value: Any) -> float | None:
    """As JSON has it, which knows no NaN."""
    return round(float(value), 6) if np.isfinite(value) else None
