"""Finished runs side by side: one table of means over seeds, and a page that shows it.

    python -m jaxreid.tools.compare runs/seeds

What is a row and what is a column: `jaxreid.tools.run_tables`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxreid.errors import command
from jaxreid.files import expand
from jaxreid.report import page
from jaxreid.tools.folds import mean_over_folds
from jaxreid.tools.run_tables import (
    IGNORED,
    LABELS,
    NOT_SET,
    SEPARABLE,
    Case,
    Comparison,
    Difference,
    RunResult,
    Table,
    compare,
    setting_text,
    usual_value,
)

NAMED_FACTS = ("dataset", "protocol")  # which a case's name says where they differ
NARROWEST = 5.0  # percent on a figure's axis: a smaller range makes much of nothing


# --- words ---------------------------------------------------------------------------------------------------------


def case_names(cases: Sequence[Case]) -> dict[Case, str]:
    """The shortest names that tell cases apart: direction, then data set, protocol and what else is needed."""
    parts: dict[Case, list[str]] = {case: [] for case in cases}
    for key in NAMED_FACTS:
        if len({case[key] for case in cases}) > 1:
            for case in cases:
                parts[case].append(str(case[key]))
    for case in cases:
        parts[case].append(case.direction)
    for key in dict.fromkeys(key for case in cases for key, _ in case.facts):
        alike: dict[tuple[str, ...], list[Case]] = {}
        for case in cases:
            alike.setdefault(tuple(parts[case]), []).append(case)
        for group in alike.values():
            if len({case[key] for case in group}) > 1:
                for case in group:
                    parts[case].append(fact(key, case[key]))
    return {case: ", ".join(words) for case, words in parts.items()}


def fact(key: str, value: Any) -> str:
    """A fact of a case in words."""
    if key == "reranking":
        return "no re-ranking" if value is False else "re-ranked" if value is True else f"re-ranking {value}"
    kind, _, split = key.partition(".")
    if kind in ("tracklets", "frames") and split:
        return f"{value} {kind} in {split}"
    if kind == "contents":
        return f"another {split} of that size ({value})"
    forms = {
        "dataset": "{}", "version": "version {}", "clip_rule": "{} clips", "frames_per_clip": "{} frames per clip",
        "distance": "{} distance", "queries": "{} queries", "gallery": "gallery of {}",
        "unmatched": "{} queries without a match",
    }  # fmt: skip
    return forms.get(key, f"{key} {{}}").format(setting_text(value))


def conditions(table: Table) -> tuple[str, list[tuple[str, str]]]:
    """How everything in a table was scored, and (case's name, what is its own)."""
    names = case_names(table.cases)
    keys = [key for key in dict.fromkeys(k for case in table.cases for k, _ in case.facts) if key != "direction"]
    common = {key: table.cases[0][key] for key in keys if len({case[key] for case in table.cases}) == 1}
    # Sizes of splits and queries without a match are told where they tell something.
    told = {key: value for key, value in common.items() if "." not in key and (key, value) != ("unmatched", 0)}
    several = len({case["dataset"] for case in table.cases}) > 1
    own = [key for key in keys if key not in common and key not in NAMED_FACTS and not (several and "." in key)]
    lines = [(names[case], ", ".join(fact(key, case[key]) for key in own)) for case in table.cases] if own else []
    return ", ".join(fact(key, value) for key, value in told.items()), lines


def protocol_words(comparison: Comparison) -> list[tuple[str, str]]:
    """(protocol, its rules in a sentence)."""
    from jaxreid.retrieval.protocols import PROTOCOLS

    found = dict.fromkeys(str(case["protocol"]) for table in comparison.tables for case in table.cases)
    return [(f"Protocol {key}", PROTOCOLS[key].describe()) for key in found if key in PROTOCOLS]


def separations(table: Table) -> list[str]:
    """Why one direction of one data set has several columns, where not all runs stand in all of them."""
    reasons: dict[tuple[Any, str], list[str]] = {}
    for dataset, direction in dict.fromkeys((case["dataset"], case.direction) for case in table.cases):
        cases = [case for case in table.cases if (case["dataset"], case.direction) == (dataset, direction)]
        rows = {case: [row.label for row in table.rows if case in row.values and not row.control] for case in cases}
        runs = {case: [str(run.workdir) for row in table.rows for run in row.runs_of(case)] for case in cases}
        if len(set(map(frozenset, runs.values()))) == 1:
            continue
        who = rows if len(set(map(frozenset, rows.values()))) > 1 else runs
        keys = dict.fromkeys(key for case in cases for key, _ in case.facts)
        different = [key for key in keys if len({case[key] for case in cases}) > 1]
        different = [key for key in different if not key.startswith("contents.")] or different
        parts = [
            f"with {', '.join(fact(key, case[key]) for key in different)} for "
            + (listed(who[case], 3) or "scores from before training")
            for case in cases
        ]
        reasons.setdefault((dataset, "; ".join(parts)), []).append(direction)
    return [
        f"{' and '.join(directions)} on {dataset} {'is' if len(directions) == 1 else 'are'} scored {text}. "
        "They stand in columns of their own and do not compare."
        for (dataset, text), directions in reasons.items()
    ]


def listed(names: Iterable[str], most: int) -> str:
    """Names with commas; more than `most` are cut short."""
    shown = list(dict.fromkeys(names))
    return ", ".join(shown if len(shown) <= most else [*shown[: most - 1], f"{len(shown) - most + 1} more"])


def cell_text(values: Mapping[int, float], of_row: int) -> str:
    """Mean ± sample deviation; the number of seeds where it is not the row's."""
    if not values:
        return "–"
    text = f"{statistics.fmean(values.values()):.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values.values()):.1f}"
    return text if len(values) == of_row else f"{text} (n = {len(values)})"


def difference_text(difference: Difference | None, scored: bool, of_row: int) -> str:
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


def reading(comparison: Comparison) -> list[str]:
    """How to read the numbers."""
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


def score_rows(table: Table) -> list[list[str]]:
    """Cells of the table of scores: name, labels, seeds, then every column."""
    return [
        [
            row.label,
            row.labels_used,
            str(len(row.seeds)),
            *(cell_text(row.cell(case, metric), len(row.seeds)) for case, metric in table.columns()),
        ]
        for row in table.rows
    ]


def difference_rows(table: Table) -> list[list[str]]:
    """Cells of the table of differences: name, common seeds, then every column. Without a baseline none."""
    found = []
    for row in table.rows if table.baseline else ():
        if row is table.baseline:
            continue
        differences = {column: table.difference(row, *column) for column in table.compared()}
        common = max((len(d.seeds) for d in differences.values() if d), default=0)
        cells = [difference_text(d, bool(row.cell(*column)), common) for column, d in differences.items()]
        found.append([row.label, str(common), *cells])
    return found


def setting_rows(table: Table) -> list[tuple[str, list[tuple[str, str]]]]:
    """(setting, [(value, rows)]) where rows differ; a setting that a whole method lacks is not a difference of it."""
    runs = [(row, run.training()) for row in table.rows if not row.control for run in row.runs]
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


# --- outputs -------------------------------------------------------------------------------------------------------


def markdown(comparison: Comparison) -> str:
    """The comparison as GitHub Markdown that can be read in a terminal as well."""
    blocks = []
    for table in comparison.tables:
        names = case_names(table.cases)
        columns = [f"{names[case]} {metric}" for case, metric in table.columns()]
        if table.title:
            blocks.append(f"### {table.title}")
        blocks.append(_grid(["", LABELS, "seeds", *columns], score_rows(table), left=2))
        if table.baseline:
            compared = [f"{names[case]} {metric}" for case, metric in table.compared()]
            head = [f"difference to {table.baseline.label}", "common seeds", *compared]
            blocks.append(_grid(head, difference_rows(table), left=1))
        common, lines = conditions(table)
        lines = [f"Scored on {common}." if common else "Scored on:", *(f"- {name}: {own}" for name, own in lines)]
        blocks.append("\n".join(lines))
        blocks += separations(table)
    blocks += reading(comparison)
    blocks += [f"{key}: {words}." for key, words in protocol_words(comparison)]
    blocks += comparison.notes
    if comparison.left_out:
        blocks.append("\n".join(["Left out:", *(f"- {path}: {why}" for path, why in comparison.left_out)]))
    return "\n\n".join(blocks) + "\n"


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table with padded cells; the first `left` columns are words."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(line(cells) for cells in (lines[0], rule, *lines[1:]))


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """One dict per table, row, case and metric, with unrounded numbers."""
    found = []
    for table in comparison.tables:
        for row in table.rows:
            for case, metric in table.columns():
                cell = row.cell(case, metric)
                if not cell:
                    continue
                values = list(cell.values())
                record = {
                    "table": table.title,
                    "row": row.label,
                    "before training": row.control,
                    LABELS: row.labels_used,
                    **dict(case.facts),
                    "metric": metric,
                    "mean": statistics.fmean(values),
                    "sample deviation": statistics.stdev(values) if len(values) > 1 else None,
                    "n": len(values),
                    "seeds": list(cell),
                    "values": values,
                    "workdirs": [str(row.values[case][seed][1].workdir) for seed in cell],
                }
                difference = table.difference(row, case, metric)
                if table.baseline:
                    record |= {
                        "baseline": table.baseline.label,
                        "difference": difference.mean if difference else None,
                        "standard error": difference.error if difference else None,
                        "common seeds": list(difference.seeds) if difference else [],
                        "separable": difference.separable if difference else None,
                    }
                found.append(record)
    return found


def write(comparison: Comparison, out: Path) -> Path:
    """Writes `index.html`, `scores.jsonl` and `scores.csv` into a folder; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    lines = records(comparison)
    page.write_page(out / "scores.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: " ".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in line.items()})
    page.write_page(out / "scores.csv", text.getvalue())
    return page.write_page(out / "index.html", render(comparison, out))


def breakable(text: str) -> Any:
    """Text for the page in which long names of settings may break."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=[a-z])\.(?=[a-z])|[=_]", r"\g<0><wbr>", str(escape(text))))


def render(comparison: Comparison, out: Path) -> str:
    """The page; links to the runs' reports are relative to `out`."""
    rows = [row for table in comparison.tables for row in table.rows if not row.control]
    methods = dict.fromkeys(row.base for row in rows)
    datasets = dict.fromkeys(str(case["dataset"]) for table in comparison.tables for case in table.cases)
    views = []
    for table in comparison.tables:
        names, (common, own) = case_names(table.cases), conditions(table)
        views.append(
            {
                "title": table.title,
                "baseline": table.baseline.label if table.baseline else "",
                "metrics": table.metrics,
                "cases": [names[case] for case in table.cases],
                "compared": list(dict.fromkeys(names[case] for case, _ in table.compared())),
                "scores": [
                    (row.control, row is table.baseline, c)
                    for row, c in zip(table.rows, score_rows(table), strict=True)
                ],
                "differences": difference_rows(table),
                "common": common,
                "own": own,
                "separations": separations(table),
                "plots": plots_of(table),
                "settings": setting_rows(table),
                "devices": any(run.device for row in table.rows for run in row.runs),
                "runs": [(row.label, _run_view(run, out)) for row in table.rows if not row.control for run in row.runs],
            }
        )
    return page.render_template(
        "compare.html",
        title=f"{listed(methods, 4)} on {listed(datasets, 4)}",
        count=len({run for row in rows for run in row.runs}),
        tables=views,
        reading=reading(comparison),
        protocols=protocol_words(comparison),
        notes=comparison.notes,
        left_out=[(str(path), why) for path, why in comparison.left_out],
        ignored=IGNORED,
        breakable=breakable,
    )


def _run_view(run: RunResult, out: Path) -> dict[str, Any]:
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


def plots_of(table: Table) -> list[Any]:
    """One figure per case: every row's mean and deviation, its seeds as small dots."""
    names = case_names(table.cases)
    return [_plot(table, case, names[case]) for case in table.cases]


def _plot(table: Table, case: Case, name: str) -> Any:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from jaxreid.report import plots

    rows = [row for row in table.rows if case in row.values]
    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 8, "axes.edgecolor": plots.GRID,
        "axes.labelcolor": plots.INK, "text.color": plots.INK, "xtick.color": plots.INK, "grid.color": plots.GRID,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(3.7, 0.45 + 0.4 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for number, metric in enumerate(table.metrics):
            colour, marker = plots.SERIES[number % len(plots.SERIES)], plots.MARKERS[number % len(plots.MARKERS)]
            if table.baseline and (cell := table.baseline.cell(case, metric)):
                axes.axvline(statistics.fmean(cell.values()), color=colour, linewidth=0.8, linestyle=":", zorder=1)
            for place, row in enumerate(rows):
                values = list(row.cell(case, metric).values())
                if not values:
                    continue
                y = -place + 0.12 * ((len(table.metrics) - 1) / 2 - number)
                spread = statistics.stdev(values) if len(values) > 1 else None
                bar: Any = {"color": colour, "marker": marker, "markersize": 4.5, "capsize": 3, "linewidth": 1.2}
                axes.plot(values, [y] * len(values), "o", color=colour, markersize=2.5, alpha=0.45, zorder=2)
                axes.errorbar(statistics.fmean(values), y, xerr=spread, linestyle="", zorder=3, **bar)
        for place, row in enumerate(rows):
            label = row.label if len(row.label) < 60 else row.label[:58] + "…"
            # Above its line, where a long name does not take the width from the scale.
            where: Any = ("axes fraction", "data")
            axes.annotate(label, (0.0, -place + 0.33), xycoords=where, va="center", fontsize=8)
        axes.margins(x=0.06)
        low, high = axes.get_xlim()
        wider = max(0.0, NARROWEST - (high - low)) / 2
        axes.set(xlim=(low - wider, high + wider), ylim=(-len(rows) + 0.65, 0.6), yticks=[], xlabel="percent")
        axes.grid(axis="x")
        axes.spines[["left", "right", "top"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return plots.Plot(name, "", plots._for_page(buffer.getvalue(), f"{name}: the numbers of the table"))


# --- the command line ----------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxreid.tools.compare",
        description="Compare finished runs: a table over seeds here, a page and the numbers in DIR.",
    )
    add = parser.add_argument
    add("workdirs", nargs="+", metavar="WORKDIR",
        help="a run, or a folder with runs in it; NAME=WORKDIR calls its row NAME")  # fmt: skip
    add("--out", type=expand, default=Path("runs/compare"), metavar="DIR", help="default %(default)s")
    add("--metrics", nargs="+", default=["mAP", "rank-1"], metavar="METRIC",
        help="mAP, mINP, rank-1, rank-5, rank-10, rank-20; default mAP rank-1")  # fmt: skip
    add("--by", nargs="+", default=[], metavar="KEY",
        help="config keys that make the rows, besides the method (default: all that change results)")  # fmt: skip
    add("--baseline", default="", metavar="NAME", help="row that the others are compared with, seed by seed")
    add("--folds", action="store_true", help="average each config and seed over the folds of its data set")
    add("--controls", action="store_true", help="show the scores from before training, too")
    return parser


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    options = _parser().parse_args(arguments)
    prepare = mean_over_folds if options.folds else None
    comparison = compare(options.workdirs, options.metrics, options.by, options.baseline, options.controls, prepare)
    path = write(comparison, options.out)
    print(markdown(comparison), end="")
    # Not part of the table, which may be on its way into a file.
    print(f"page: {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
