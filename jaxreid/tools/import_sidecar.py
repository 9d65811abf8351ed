"""Makes a sidecar of files of other codes: `jaxreid import-sidecar KIND --dataset NAME --source PATH`.

Which files these are: `jaxreid.data.sidecar_import`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jaxreid.data.build import named_set
from jaxreid.data.sidecar_import import KINDS, import_sidecar
from jaxreid.data.sidecars import sidecar_dir
from jaxreid.errors import command
from jaxreid.files import expand, read_json


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    parser = argparse.ArgumentParser(
        prog="jaxreid import-sidecar",
        description="Make a sidecar of a built data set from the files of other codes.",
    )
    parser.add_argument("kind", choices=KINDS, help="what the files hold")
    parser.add_argument("--dataset", required=True, metavar="NAME[/CONFIG]", help="a data set, or a built one's folder")
    parser.add_argument("--source", required=True, type=expand, help="folder of a file per frame, or file of captions")
    parser.add_argument("--data_dir", help="where prepared sets live")
    parser.add_argument("--overwrite", action="store_true", help="replace a sidecar of this kind")
    options = parser.parse_args(arguments)
    prepared = named_set(options.dataset, options.data_dir)
    name = read_json(prepared / "dataset_info.json", "build the data set again")["name"]
    report = import_sidecar(options.kind, prepared, name, options.source, options.overwrite)
    print("\n".join(report.lines()))
    print(sidecar_dir(prepared, options.kind))
    return 0
