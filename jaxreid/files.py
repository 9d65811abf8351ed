"""Whole files: written aside and renamed, read with the name of what is damaged, locked while a process holds them."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from jaxreid.errors import UserError, writing

_LOG = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # what file systems say that have none


def expand(path: str | os.PathLike[str]) -> Path:
    """A path as a user typed it, `~` expanded. Raises UserError where no home directory is known."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error} Set HOME, or give the path without ~") from error


def cache_folder() -> Path:
    """$XDG_CACHE_HOME, or ~/.cache. Raises UserError where no home directory is known."""
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache")


@contextlib.contextmanager
def written_aside(path: Path, synced: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to, no other writer's; renamed to `path` at the end, deleted after an exception.

    With `synced` it is on the disk before it is renamed: what is written next may count on it.
    """
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with writing(path):
            yield aside
            if synced:
                with aside.open("rb+") as file:
                    os.fsync(file)
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 so that a file that is there is whole."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a file that is there is whole."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, remedy: str) -> Any:
    """What a JSON file holds.

    Raises:
      UserError: it is empty, cut or no JSON; the message names the file and the remedy.
    """
    content = path.read_bytes()
    try:
        return json.loads(content)
    except ValueError as error:
        damage = "is empty" if not content.strip() else f"is damaged ({error})"
        raise UserError(f"{path} {damage}: {remedy}") from error


@contextlib.contextmanager
def held(path: Path, wait: float = 0) -> Iterator[bool]:
    """Holds the lock file `path`, whose folder is there, until the end of the block; the kernel gives it back when a
    process dies. While waiting is allowed (`wait` seconds, −1 for ever) others are waited for.

    Yields:
      Whether it is held: False, after a warning, on a file system that knows no locks.

    Raises:
      Held: another process holds it; `holder` says which.
    """
    lock, note = filelock.FileLock(path), path.with_name(path.name + ".holder")
    try:
        lock.acquire(timeout=wait)
    except filelock.Timeout as error:
        raise Held(_noted(note)) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        _LOG.warning("%s cannot be locked (%s): use it in one process at a time", path.parent, error)
        yield False
        return
    try:
        note.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield True
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _noted(note: Path) -> str:
    try:
        return note.read_text(encoding="utf-8").strip() or "another process"
    except OSError:  # its holder has not written it yet, or is about to leave
        return "another process"


class Held(Exception):
    """A lock is held by another process, named by `holder`."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder
