"""A folder for a comparison: a page that shows it, and the numbers beside it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from jaxreid.files import write_text
from jaxreid.report.comparison import text
from jaxreid.report.comparison.by_condition import condition_plots, condition_rows
from jaxreid.report.comparison.columns import setup_names
from jaxreid.report.comparison.figures import figures
from jaxreid.report.comparison.published import FACTS, beside_published
from jaxreid.report.comparison.records import as_csv, as_json_lines, score_records
from jaxreid.report.comparison.runs import RunResult
from jaxreid.report.comparison.settings import IGNORED
from jaxreid.report.comparison.tables import Comparison, Table
from jaxreid.report.page import render_template


def write(comparison: Comparison, out: Path) -> Path:
    """Writes `index.html`, `scores.jsonl` and `scores.csv` into a folder; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    records, path = score_records(comparison), out / "index.html"
    write_text(out / "scores.jsonl", as_json_lines(records))
    write_text(out / "scores.csv", as_csv(records))
    write_text(path, render(comparison, out))
    return path


def render(comparison: Comparison, out: Path) -> str:
    """The page; links to the runs' reports are relative to `out`."""
    rows = [row for table in comparison.tables for row in table.rows if not row.control]
    methods = dict.fromkeys(row.base for row in rows)
    datasets = dict.fromkeys(str(setup["dataset"]) for table in comparison.tables for setup in table.setups)
    return render_template(
        "compare.html",
        title=f"{text.listed(methods, 4)} on {text.listed(datasets, 4)}",
        count=len({run for row in rows for run in row.runs}),
        tables=[_table_view(table, out) for table in comparison.tables],
        published=beside_published(comparison),
        published_facts=len(FACTS),
        of_published=text.OF_PUBLISHED,
        reading=text.how_to_read(comparison),
        protocols=text.protocol_rules(comparison),
        notes=comparison.notes,
        left_out=[(str(path), why) for path, why in comparison.left_out],
        ignored=IGNORED,
        breakable=breakable,
    )


def _table_view(table: Table, out: Path) -> dict[str, Any]:
    """What the template shows of a table."""
    names, (common, own) = setup_names(table.setups), text.conditions(table)
    by_condition = condition_plots(table)
    return {
        "title": table.title,
        "baseline": table.baseline.label if table.baseline else "",
        "metrics": table.metrics,
        "setups": [names[setup] for setup in table.setups],
        "baseline_setups": list(dict.fromkeys(names[setup] for setup, _ in table.baseline_columns())),
        "scores": [
            (row.control, row is table.baseline, cells)
            for row, cells in zip(table.rows, text.score_rows(table), strict=True)
        ],
        "differences": text.difference_rows(table),
        "common": common,
        "own": own,
        "separations": text.separations(table),
        "plots": figures(table),
        "condition_rows": condition_rows(table),
        "condition_plots": by_condition,
        "condition_legend": list(dict.fromkeys(key for plot in by_condition for key in plot.legend)),
        "settings": text.setting_rows(table),
        "devices": any(run.device for row in table.rows for run in row.runs),
        "runs": [(row.label, _run_view(run, out)) for row in table.rows if not row.control for run in row.runs],
    }


def _run_view(run: RunResult, out: Path) -> dict[str, Any]:
    """What the template shows of a run."""
    report = run.workdir / "report" / "index.html"
    link = Path(os.path.relpath(report.resolve(), out.resolve())).as_posix() if report.exists() else ""
    return {
        "workdir": str(run.workdir),
        "link": link,
        "seed": run.seed,
        "seconds": run.seconds,
        "checkpoint": run.checkpoint,
        "device": run.device,
    }


def breakable(words: str) -> Any:
    """Text for the page in which long names of settings may break."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=[a-z])\.(?=[a-z])|[=_]", r"\g<0><wbr>", str(escape(words))))
