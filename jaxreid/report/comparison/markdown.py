"""A comparison as GitHub Markdown that can be read in a terminal as well."""

from __future__ import annotations

from collections.abc import Sequence

from jaxreid.report.comparison import text
from jaxreid.report.comparison.assumptions import LABELS
from jaxreid.report.comparison.by_condition import condition_rows
from jaxreid.report.comparison.columns import setup_names
from jaxreid.report.comparison.published import FACTS, beside_published
from jaxreid.report.comparison.tables import Comparison, Table


def markdown(comparison: Comparison) -> str:
    """The tables, then how to read them and what was left out."""
    blocks = [block for table in comparison.tables for block in _blocks(table)]
    if known := beside_published(comparison):
        blocks += ["### Published results", text.OF_PUBLISHED, _grid(known[0], known[1:], left=len(FACTS))]
    blocks += text.how_to_read(comparison)
    blocks += [f"{protocol}: {rules}." for protocol, rules in text.protocol_rules(comparison)]
    blocks += comparison.notes
    if comparison.left_out:
        blocks.append("\n".join(["Left out:", *(f"- {path}: {why}" for path, why in comparison.left_out)]))
    return "\n\n".join(blocks) + "\n"


def _blocks(table: Table) -> list[str]:
    """Title, scores, differences, and how they were scored."""
    names = setup_names(table.setups)
    blocks = [f"### {table.title}"] if table.title else []
    head = ["", LABELS, "seeds", *(f"{names[setup]} {metric}" for setup, metric in table.columns())]
    blocks.append(_grid(head, text.score_rows(table), left=2))
    if table.baseline:
        columns = [f"{names[setup]} {metric}" for setup, metric in table.baseline_columns()]
        head = [f"difference to {table.baseline.label}", "common seeds", *columns]
        blocks.append(_grid(head, text.difference_rows(table), left=1))
    if by_condition := condition_rows(table):
        blocks.append(_grid(by_condition[0], by_condition[1:], left=2))
    common, own = text.conditions(table)
    lines = [f"Scored on {common}." if common else "Scored on:", *(f"- {name}: {facts}" for name, facts in own)]
    return [*blocks, "\n".join(lines), *text.separations(table)]


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table with padded cells; the first `left` columns are words."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(line(cells) for cells in (lines[0], rule, *lines[1:]))
