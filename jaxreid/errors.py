"""Errors that a user can mend, and how a command ends with one.

`UserError` and its kinds say what is wrong, where (path, record, key) and what to do; a command prints them as one
`error:` line and ends with status 2. Every other exception is a fault of the program and keeps its traceback.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

USER_ERROR = 2  # exit status
INTERRUPTED = 130  # as a shell reports SIGINT
TRACEBACK_VARIABLE = "JAXREID_TRACEBACK"  # set: user errors keep their traceback as well
_FULL = {errno.ENOSPC, errno.EDQUOT}
_PLACES = _FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


class UserError(ValueError):
    """Something that a user can mend; the message says what, where and how."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that a user named, or that belongs to one, is not there."""

    __str__ = ValueError.__str__


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed; the message says how to install it."""


def full_disk(path: Any, error: BaseException) -> UserError:
    """The error of a write to `path` that found no space."""
    return UserError(f"no space left for {path} ({error}): free some, or choose another place, and run the line again")


def some(names: Sequence[str], most: int = 5) -> str:
    """The first of a list of names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def told(error: BaseException) -> str | None:
    """The sentence for an error that a user can mend, None for every other.

    Of the operating system's errors those that are about a place are told: no space, no permission, no such file.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _PLACES and (error.filename is not None or error.errno in _FULL):
        if error.errno in _FULL:
            return str(full_disk(error.filename or "what was being written", error))
        return f"{error.filename}: {error.strerror}"
    return None


def command(after_interrupt: str = "") -> Callable[[Callable[..., int | None]], Callable[..., int]]:
    """Decorates a command's `main`, so that it returns its exit status and tells a user's errors in a sentence.

    Ctrl-C ends with one line, followed by `after_interrupt`: what stays of the work.
    """

    def decorate(main: Callable[..., int | None]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(*arguments: Any, **options: Any) -> int:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="backslashreplace")  # for paths that are not UTF-8
            try:
                return main(*arguments, **options) or 0
            except KeyboardInterrupt:
                print("\n" + ": ".join(filter(None, ["interrupted", after_interrupt])), file=sys.stderr)
                return INTERRUPTED
            except Exception as error:
                sentence = told(error)
                if sentence is None or os.environ.get(TRACEBACK_VARIABLE):
                    raise
                print(f"error: {sentence}", file=sys.stderr)
                return USER_ERROR

        return run

    return decorate
