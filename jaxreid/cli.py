"""The command line `jaxreid`: one subcommand per job, each with --help."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from jaxreid.errors import USER_ERROR

# name → (module whose main runs it, what it does). A run's mode is a flag of jaxreid.main.
RUNS = {
    "train": "train a config, evaluate it and write the report; --list names configs, presets and data sets",
    "evaluate": "score a workdir's newest checkpoint again",
    "dry-run": "print shapes, parameters, memory and work of a run",
}
COMMANDS = {
    "build": ("jaxreid.data.build", "prepare a data set"),
    "show": ("jaxreid.tools.show_dataset", "show what a prepared data set holds on a page"),
    "tracklets": ("jaxreid.tools.tracklets", "find the people in videos and cut out every track"),
    "mot-tracklets": ("jaxreid.tools.mot_tracklets", "cut tracklets from a tracking data set in the MOT layout"),
    "embed": ("jaxreid.tools.embed", "fill a gallery with the features of tracklets"),
    "search": ("jaxreid.tools.search", "look for somebody in a gallery"),
    "compare": ("jaxreid.tools.compare", "lay finished runs out side by side, also as means over folds"),
    "export": ("jaxreid.tools.export", "write the towers of a trained run to a safetensors file"),
    "import-sidecar": ("jaxreid.tools.import_sidecar", "make a sidecar of a built data set from files of other codes"),
    "make-tower": ("jaxreid.tools.starting_tower", "train the small image tower that the package ships"),
    "make-word-table": ("jaxreid.tools.word_table", "make the small table of words that the package ships"),
    "xfd": ("jaxreid.tools.xfd_submission", "write or score a VReID-XFD submission file"),
}


def usage() -> str:
    """The list of subcommands."""
    width = max(map(len, (*RUNS, *COMMANDS)))
    rows = [*RUNS.items(), *((name, text) for name, (_, text) in COMMANDS.items())]
    lines = [f"  {name:<{width}}  {text}" for name, text in rows]
    return "\n".join(["usage: jaxreid COMMAND …   (jaxreid COMMAND --help says more)", "", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns its exit status."""
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name in RUNS:
        from jaxreid.main import run_main

        return run_main([f"jaxreid {name}", *rest], mode=name.replace("-", "_"))
    if name not in COMMANDS:
        print(f"error: {name!r} is no command of jaxreid\n\n{usage()}", file=sys.stderr)
        return USER_ERROR
    return importlib.import_module(COMMANDS[name][0]).main(rest)


if __name__ == "__main__":
    sys.exit(main())
