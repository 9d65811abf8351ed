"""A workdir of the files that a method's authors released.

    jaxreid import-checkpoint --config=NAME[:PRESET] FILE… [--workdir=DIR] [--config.KEY=VALUE …]

What is in it opens in evaluate, embed and search; `jaxreid.training.importing` says more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jaxreid.errors import UserError, command
from jaxreid.files import expand

PROGRAM = "jaxreid import-checkpoint"


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    from jaxreid.main import CONFIG, DATA_DIR, DATA_FLAGS, help_text, read_flags, workdir_of

    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & {*given}:
        print(help_text(f"{PROGRAM} FILE…", "make a workdir of released checkpoints", DATA_FLAGS))
        return 0
    files = [expand(file) for file in read_flags([PROGRAM, *given])]
    if not files:
        raise UserError("name the released files: a .pth, .pt or .safetensors file, or several of one checkpoint")
    from jaxreid.training.importing import import_released

    workdir = workdir_of(CONFIG.value)
    print("\n".join(import_released(CONFIG.value, files, workdir, expand(DATA_DIR.value) if DATA_DIR.value else None)))
    print(workdir)
    return 0
