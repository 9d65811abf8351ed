"""A comparison for programs: unrounded numbers as dicts, JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from typing import Any

from jaxreid.report.comparison.assumptions import LABELS
from jaxreid.report.comparison.columns import Setup
from jaxreid.report.comparison.rows import Row
from jaxreid.report.comparison.tables import Comparison, Table


def score_records(comparison: Comparison) -> list[dict[str, Any]]:
    """One dict per table, row, setup and metric."""
    return [
        _record(table, row, setup, metric)
        for table in comparison.tables
        for row in table.rows
        for setup, metric in table.columns()
        if row.cell(setup, metric)
    ]


def _record(table: Table, row: Row, setup: Setup, metric: str) -> dict[str, Any]:
    cell = row.cell(setup, metric)
    values = list(cell.values())
    record = {
        "table": table.title,
        "row": row.label,
        "before training": row.control,
        LABELS: row.labels_used,
        **dict(setup.facts),
        "metric": metric,
        "mean": statistics.fmean(values),
        "sample deviation": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "seeds": list(cell),
        "values": values,
        "workdirs": [str(row.values[setup][seed][1].workdir) for seed in cell],
    }
    if table.baseline:
        difference = table.difference(row, setup, metric)
        record |= {
            "baseline": table.baseline.label,
            "difference": difference.mean if difference else None,
            "standard error": difference.error if difference else None,
            "common seeds": list(difference.seeds) if difference else [],
            "separable": difference.separable if difference else None,
        }
    return record


def as_json_lines(records: Sequence[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def as_csv(records: Sequence[dict[str, Any]]) -> str:
    """One line a record, after one of names; the items of a list stand with spaces between them."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({k: " ".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in record.items()})
    return text.getvalue()
