"""Names that come from file systems and tables: of folders, frames, cameras, people."""

from __future__ import annotations

import os
import unicodedata

UNKNOWN_CELLS = ("", "nan", "none", "-1", "-1.0")  # in any case; pandas writes all of them


def nfc(name: str) -> str:
    """The composed Unicode form: Macs write the names of folders decomposed, which looks the same."""
    return unicodedata.normalize("NFC", name)


def printable(path: str | os.PathLike[str]) -> str:
    """A name or path with the bytes that are not UTF-8 as escapes: what can be printed, stored and hashed."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_utf8(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path) == printable(path)


def known(cell: str | None) -> str:
    """A table's cell without white space, in composed form; "" where it says that the value is not known."""
    text = nfc((cell or "").strip())
    return "" if text.lower() in UNKNOWN_CELLS else text
