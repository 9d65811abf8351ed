"""Errors that a user can mend, and how a command ends with one.

`UserError` and its kinds say what is wrong, where (path, record, key) and what to do; a command prints them as one
`error:` line and ends with status 2. Every other exception is a fault of the program and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

USER_ERROR = 2  # exit status
INTERRUPTED = 130  # as a shell reports SIGINT
TRACEBACK_VARIABLE = "JAXREID_TRACEBACK"  # set: user errors keep their traceback as well
_FULL = {errno.ENOSPC, errno.EDQUOT}
_PLACES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


class UserError(ValueError):
    """Something that a user can mend; the message says what, where and how."""


class DataSetError(UserError):
    """A data set cannot be found, read or built; the message says what, where and what to do."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that a user named, or that belongs to one, is not there."""

    __str__ = ValueError.__str__


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed; the message says how to install it."""


def no_space(error: BaseException) -> str:
    """The system's words where a write found no space, else "". Libraries that write in C++ have no type for it."""
    code = getattr(error, "errno", None)
    return next((os.strerror(full) for full in _FULL if full == code or os.strerror(full) in str(error)), "")


def full_disk(path: Any, error: BaseException) -> UserError:
    """The error of a write to `path` that found no space."""
    words = no_space(error) or error
    return UserError(f"no space left for {path} ({words}): free some, or choose another place, and run the line again")


@contextlib.contextmanager
def writing(path: Any) -> Iterator[None]:
    """Around what writes to `path`, or below it: a full disk is told with the place."""
    try:
        yield
    except Exception as error:
        if no_space(error) and not isinstance(error, UserError):
            raise full_disk(path, error) from error
        raise


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
    if no_space(error):
        return str(full_disk(getattr(error, "filename", None) or error, error))
    if isinstance(error, OSError) and error.errno in _PLACES and error.filename is not None:
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
