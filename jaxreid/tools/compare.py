"""Finished runs side by side: one table of means over seeds, and a page that shows it.

    jaxreid compare runs/seeds

What is a row and what is a column: `jaxreid.report.comparison`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxreid.errors import command
from jaxreid.files import expand
from jaxreid.report.comparison.markdown import markdown
from jaxreid.report.comparison.page import write
from jaxreid.report.comparison.tables import compare


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxreid compare",
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
    add("--published", nargs="+", default=[], metavar="DATA_SET",
        help="also show the published results on these data sets (default: on those of the runs)")  # fmt: skip
    return parser


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    options = _parser().parse_args(arguments)
    # `runs/*` names the page of an earlier comparison, which is no run.
    workdirs = [name for name in options.workdirs if expand(name).resolve() != options.out.resolve()]
    comparison = compare(workdirs, options.metrics, options.by, options.baseline, options.controls, options.folds)
    comparison = dataclasses.replace(comparison, published=tuple(options.published))
    path = write(comparison, options.out)
    print(markdown(comparison), end="")
    # Not part of the table, which may be on its way into a file.
    print(f"page: {path}", file=sys.stderr)
    return 0
