"""Published results beside one's own: rows of `published.csv`, which names of each how it was scored and its source."""

from __future__ import annotations

import csv
import functools
import statistics
from pathlib import Path

from jaxreid.report.comparison.rows import Row
from jaxreid.report.comparison.runs import CompareError
from jaxreid.report.comparison.settings import NOT_SET
from jaxreid.report.comparison.tables import Comparison

FILE = Path(__file__).with_name("published.csv")
METRICS = ("mAP", "rank-1")
# What stands before the scores of a line. "official": from a leaderboard, "reproduced": by somebody else.
FACTS = ("dataset", "method", "backbone", "protocol", "average precision", "re-ranking", "standing")
OVERALL = "overall"  # the last direction
OWN = "own"

Line = dict[str, str]


@functools.cache
def published() -> tuple[Line, ...]:
    """Every row of the file: a direction of a method, with percentages as they were printed."""
    with FILE.open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def beside_published(comparison: Comparison) -> list[list[str]]:
    """Cells of a table of the published results and of one's own, after a line with the headings; empty where nothing
    is published of the data sets (`Comparison.published`).

    Raises:
      CompareError: nothing is published of a data set that was asked for.
    """
    own = [line for table in comparison.tables for row in table.rows if not row.control for line in _own(row)]
    families = dict.fromkeys(_family(line["dataset"]) for line in published())
    if unknown := [name for name in comparison.published if name not in families]:
        raise CompareError(f"--published {unknown[0]}: nothing is known of it; there is {', '.join(families)}")
    names = {*comparison.published} or {_family(line["dataset"]) for line in own}
    known = [line for line in published() if _family(line["dataset"]) in names]
    if not known:
        return []
    directions = sorted(dict.fromkeys(line["direction"] for line in known), key=lambda name: name == OVERALL)
    own = [line for line in own if line["direction"] in directions]
    lines: dict[tuple[str, ...], dict[str, Line]] = {}
    for line in (*known, *own):
        key = tuple(line[fact] for fact in (*FACTS[:-1], "source"))
        lines.setdefault(key, {})[line["direction"]] = line
    head = [*FACTS, *(f"{_short(direction)} {metric}" for direction in directions for metric in METRICS), "source"]
    table = [head]
    for key, by_direction in lines.items():
        standings = dict.fromkeys(line["standing"] for line in by_direction.values())
        scores = [by_direction.get(direction, {}).get(metric) or "–" for direction in directions for metric in METRICS]
        table.append([*key[:-1], ", ".join(standings), *scores, key[-1]])
    return table


def _own(row: Row) -> list[Line]:
    """A line for every direction and protocol of a row, means over seeds."""
    from jaxreid.retrieval.protocols import PROTOCOLS

    found = []
    for setup in row.values:
        protocol, backbone = str(setup["protocol"]), row.runs_of(setup)[0].settings.get("backbone.name", "")
        cells = {metric: list(row.cell(setup, metric).values()) for metric in METRICS}
        found.append(
            {
                "dataset": str(setup["dataset"]),
                "direction": str(setup["direction"]),
                "method": row.label,
                "backbone": str(backbone),
                "protocol": protocol,
                "average precision": PROTOCOLS[protocol].precision if protocol in PROTOCOLS else "",
                "re-ranking": "yes" if setup["reranking"] else "no" if setup["rescoring"] == NOT_SET else "re-scored",
                "standing": OWN,
                "source": f"{len(row.seeds)} seeds" if len(row.seeds) > 1 else f"seed {row.seeds[0]}",
                **{metric: f"{statistics.fmean(values):.2f}" for metric, values in cells.items() if values},
            }
        )
    return found


def _family(dataset: str) -> str:
    return dataset.partition("/")[0]


def _short(direction: str) -> str:
    """aerial_to_ground is A → G."""
    first, found, second = direction.partition("_to_")
    return f"{first[0].upper()} → {second[0].upper()}" if found else direction
