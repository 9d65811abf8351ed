"""What lies in a directory, and which of it are frames: what cannot be used, or is no frame, is named as well."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from jaxreid.data.building.listed import natural_key
from jaxreid.data.names import is_utf8, printable
from jaxreid.errors import DataSetError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")  # of frames that are kept as they are
PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".webp", ".bmp", ".tif", ".tiff")  # of pictures that are only looked at
NOT_UTF8 = "has a name that is not UTF-8"
Fault = tuple[str, str]  # a name that can be printed, and what is wrong


@dataclasses.dataclass(frozen=True)
class Entries:
    """What is in a directory, by name; what is hidden is left out."""

    files: list[str]
    folders: list[str]
    broken: list[Fault]  # links to nothing, and what else is neither a file nor a folder
    unreadable: list[Fault]  # folders whose names are not UTF-8: no record could name what is in them


@dataclasses.dataclass(frozen=True)
class Frames:
    """What is in a folder of frames."""

    images: list[str]  # in the order of their numbers
    faults: list[Fault]  # frames that cannot be used
    others: list[str]  # files and folders that are no images
    twins: list[str]  # two images of one name, such as a frame and its mask


def is_image(name: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> bool:
    """By its suffix."""
    return name.lower().endswith(suffixes)


def scan(directory: Path) -> Entries:
    """Lists a directory.

    Raises:
      DataSetError: it cannot be read.
    """
    found = Entries([], [], [], [])
    try:
        with os.scandir(directory) as scanned:
            entries = sorted((entry for entry in scanned if entry.name[0] != "."), key=lambda entry: entry.name)
        for entry in entries:
            _place(entry, found)
    except OSError as error:
        raise DataSetError(f"cannot read {printable(directory)}: {error.strerror or error}") from error
    return found


def _place(entry: os.DirEntry[str], found: Entries) -> None:
    try:
        is_folder = entry.is_dir()
    except OSError as error:  # a link to itself
        found.broken.append((printable(entry.name), error.strerror or str(error)))
        return
    if is_folder:
        if is_utf8(entry.name):
            found.folders.append(entry.name)
        else:
            found.unreadable.append((printable(entry.name), NOT_UTF8))
    elif entry.is_file():
        found.files.append(entry.name)
    else:
        fault = "is a link to nothing" if entry.is_symlink() else "is neither a file nor a folder"
        found.broken.append((printable(entry.name), fault))


def list_frames(directory: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Frames:
    """What a folder of frames, which end in one of `suffixes`, holds.

    Raises:
      DataSetError: it cannot be read.
    """
    entries = scan(directory)
    named = [name for name in entries.files if is_image(name, suffixes)]
    images = sorted(filter(is_utf8, named), key=natural_key)
    faults = [(printable(name), NOT_UTF8) for name in named if not is_utf8(name)]
    faults += [(name, "is a folder") for name in entries.folders if is_image(name, suffixes)]
    others = [printable(name) for name in entries.files if not is_image(name, suffixes)]
    others += [name for name in entries.folders if not is_image(name, suffixes)]
    stems: dict[str, str] = {}
    twins = []
    for name in images:
        other = stems.setdefault(os.path.splitext(name)[0], name)
        if other != name:
            twins.append(f"{other} and {name}")
    return Frames(images, [*faults, *entries.broken, *entries.unreadable], others, twins)


def left_out(folder: str | os.PathLike[str], names: list[str]) -> str:
    """What is to be said of a folder with something else in it."""
    return f"{printable(folder)}: {len(names)} files or folders are not images and are left out, e.g. {names[0]}"


def twins_error(folder: str | os.PathLike[str], twins: list[str]) -> str:
    """What is to be said of a folder with two images of one name."""
    return (
        f"{printable(folder)}: {twins[0]} are two pictures of one name ({len(twins)} such pairs): keep the frames and "
        "move the others, such as masks, elsewhere"
    )
