"""What there is to train with: the packaged configs with their presets, and the data sets that can be built."""

from __future__ import annotations

import textwrap

from jaxreid.config import config_module, packaged_configs
from jaxreid.data.builders import builder_names


def listing() -> str:
    """The names, for the terminal."""
    lines = ["configs and their presets, the first of which is taken where none is named (--config=NAME:PRESET):"]
    for path in packaged_configs():
        module = config_module(path)
        lines += [f"  {path.stem}: {(module.__doc__ or '').splitlines()[0]}", *_wrapped(module.PRESETS, 6)]
    return "\n".join([*lines, "", "data sets (jaxreid build NAME):", *_wrapped(builder_names(), 2)])


def _wrapped(names: tuple[str, ...] | list[str], indent: int) -> list[str]:
    return textwrap.wrap(", ".join(names), 100, initial_indent=" " * indent, subsequent_indent=" " * indent)
