"""jaxreid's command line in a process that kills itself, as `kill -9` would, at an exact moment.

    python tests/killed_run.py MOMENT [arguments of jaxreid.main]

MOMENT is one of:
  never                       an undisturbed run
  EVENT PATTERN               the interpreter's first audit event of this name (open, os.mkdir, os.rename) whose path,
                              of a rename the new one, has the pattern
  call MODULE:NAME N [FILE]   instead of the Nth call of a function, once FILE, written in the background, is there

The process leads a group of its own, which dies as a whole.
"""

import importlib
import os
import re
import signal
import sys
import time
from pathlib import Path

from finished import command_line


def die(*_, **__):
    os.killpg(0, signal.SIGKILL)


def at_event(event, pattern):
    def hook(name, arguments):
        if name == event:
            path = arguments[1] if name == "os.rename" else arguments[0]
            if not isinstance(path, int) and re.search(pattern, os.fsdecode(path)):
                die()

    sys.addaudithook(hook)


def at_call(target, number, awaited=None):
    module, _, name = target.partition(":")
    owner, _, attribute = name.rpartition(".")
    owner = getattr(importlib.import_module(module), owner)
    whole, calls = getattr(owner, attribute), []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == int(number):
            while awaited and not Path(awaited).exists():
                time.sleep(0.001)
            die()
        return whole(*arguments, **options)

    setattr(owner, attribute, counted)


if __name__ == "__main__":
    how, *what = sys.argv.pop(1).split()
    if how == "call":
        at_call(*what)
    elif how != "never":
        at_event(how, *what)
    command_line()
