"""Shows what a data set holds on a page, one file with everything in it.

    jaxreid show walkers/aerial
    jaxreid show mars --source DIR
    jaxreid show folder --source people --keypoints

A set that is not there yet is built as `jaxreid build` does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxreid.data import build
from jaxreid.data.builders import builder_names
from jaxreid.errors import command
from jaxreid.files import expand
from jaxreid.report import dataset_page, page


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    parser = argparse.ArgumentParser(prog="jaxreid show", description="Show what a data set holds on a page.")
    add = parser.add_argument
    add("name", metavar="NAME[/CONFIG]", help=f"one of {', '.join(builder_names())}")
    add("--data_dir", help="where prepared sets live, as for jaxreid build")
    add("--source", help="directory with the raw data, for a set that is not prepared yet")
    add("--option", metavar="NAME=VALUE", action="append", default=[], type=build.option, help="of the builder")
    add("--out", type=expand, help="the page; runs/datasets/NAME-CONFIG.html where not given")
    add("--persons", type=int, default=dataset_page.PERSONS, help="of each split (default %(default)s)")
    add("--tracklets", type=int, default=dataset_page.TRACKLETS, help="of each person, at most (default %(default)s)")
    add("--keypoints", action="store_true", help="draw the key points of the sidecar on the frames")
    options = parser.parse_args(arguments)
    directory = build.build(options.name, data_dir=options.data_dir, source=options.source, **dict(options.option))
    config = directory.parent  # options and defaults decide it, too
    out = options.out or Path("runs/datasets") / f"{config.parent.name}-{config.name}.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    name = f"{config.parent.name}/{config.name}"
    text = dataset_page.render(directory, name, options.persons, options.tracklets, options.keypoints)
    page.write_page(out, text)
    print(out)
    return 0
