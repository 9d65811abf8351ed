"""What a message must tell a user (a path, a key, a number, a remedy), however it is worded."""

import contextlib
import re

import pytest


def _lacks(text, parts):
    """Those parts that a text does not name. Case does not matter, and a number is not found inside a longer one."""

    def pattern(part):
        before, after = r"(?<!\d)" if part[:1].isdigit() else "", r"(?!\d)" if part[-1:].isdigit() else ""
        return before + re.escape(part) + after

    return [part for part in map(str, parts) if not re.search(pattern(part), text, re.IGNORECASE)]


def says(text, *parts):
    """Asserts that one line of a text, or one text of a list, names every part."""
    lines = text.splitlines() if isinstance(text, str) else [str(line) for line in text]
    if all(_lacks(line, parts) for line in lines):
        closest = min(lines, key=lambda line: len(_lacks(line, parts)), default="")
        pytest.fail(f"no line names {parts}; lacking in the closest: {_lacks(closest, parts)}\n" + "\n".join(lines))


@contextlib.contextmanager
def refuses(kind, *parts):
    """The block raises an exception of this kind whose message names every part."""
    with pytest.raises(kind) as raised:
        yield raised
    lacking = _lacks(str(raised.value), parts)
    assert not lacking, f"{lacking} not in: {raised.value}"
