"""The command line `jaxreid`: one subcommand per job, each with --help."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from jaxreid.errors import USER_ERROR

HELP = ("-h", "--help")
# name → what it does. Each is `jaxreid.main` with the mode of that name.
RUNS = {
    "train": "train a config, evaluate it and write the report; --list names configs, presets and data sets",
    "evaluate": "score the newest checkpoint of a workdir again",
    "dry-run": "print shapes, parameters, memory and work of a run, without training",
}
# name → (module whose main runs it, what it does)
COMMANDS = {
    "build": ("jaxreid.data.build", "prepare a data set"),
    "show": ("jaxreid.tools.show_dataset", "show what a prepared data set holds on a page"),
    "tracklets": ("jaxreid.tools.tracklets", "find the people in videos and cut out every track"),
    "mot-tracklets": ("jaxreid.tools.mot_tracklets", "cut tracklets from a tracking data set in the MOT layout"),
    "embed": ("jaxreid.tools.embed", "fill a gallery with the features of tracklets"),
    "search": ("jaxreid.tools.search", "look for somebody in a gallery"),
    "compare": ("jaxreid.tools.compare", "put finished runs side by side, also as means over folds"),
    "export": ("jaxreid.tools.export", "write the backbones of a trained run to a safetensors file"),
    "import-checkpoint": (
        "jaxreid.tools.import_checkpoint",
        "make a workdir of the files that authors released",
    ),
    "import-sidecar": ("jaxreid.tools.import_sidecar", "make a sidecar of a built data set from files of other codes"),
    "make-sidecars": ("jaxreid.tools.make_sidecars", "find the key points of people in a data set's own frames"),
    "make-tower": ("jaxreid.tools.starting_tower", "train a small image tower that the package ships"),
    "make-word-table": ("jaxreid.tools.word_table", "write the words that the packaged text tower knows"),
    "xfd": ("jaxreid.tools.xfd", "score a run on VReID-XFD and write its submission file, or score such a file"),
}


def usage() -> str:
    """The list of subcommands."""
    rows = RUNS | {name: what for name, (_, what) in COMMANDS.items()}
    width = max(map(len, rows))
    lines = [f"  {name:<{width}}  {what}" for name, what in rows.items()]
    return "\n".join(["usage: jaxreid COMMAND …   (jaxreid COMMAND --help says more)", "", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand, that of `sys.argv` where no arguments are given; returns its exit status."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or HELP[-1:]
    if name in HELP:
        print(usage())
        return 0
    sys.path.append(os.getcwd())  # where `config.method` may be, as with `python -m`
    if name in RUNS:
        return _run(name, rest)
    if name not in COMMANDS:
        print(f"error: jaxreid has no command {name!r}\n\n{usage()}", file=sys.stderr)
        return USER_ERROR
    return importlib.import_module(COMMANDS[name][0]).main(rest)


def _run(name: str, arguments: Sequence[str]) -> int:
    from jaxreid.main import help_text, run_main

    if {*HELP} & {*arguments}:
        print(help_text(f"jaxreid {name}", RUNS[name]))
        return 0
    if name == "train" and "--list" in arguments:
        from jaxreid.tools.listing import listing

        print(listing())
        return 0
    run_main([f"jaxreid {name}", f"--mode={name.replace('-', '_')}", *arguments])


if __name__ == "__main__":
    sys.exit(main())
