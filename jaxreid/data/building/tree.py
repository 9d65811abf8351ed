"""Tracklets that come as folders of frames, without lists; the names of one folder are in memory at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxreid.data.build import DataSetError, progress
from jaxreid.data.building.listed import natural_key

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class Tree:
    """Reads the folders below `source`, and gathers what is wrong with them.

    Attributes:
      errors: folders that are not what they should be.
      missing: tracklet folders that give no frame, each with the reason.
      faults: frames that cannot be used because of their names: path and fault.
      others: files that are no images.
    """

    def __init__(self, name: str, source: Path) -> None:
        self.name, self.source = name, source
        self.errors: list[str] = []
        self.missing: list[str] = []
        self.faults: list[tuple[str, str]] = []
        self.others: list[str] = []
        self._content = hashlib.sha256()

    @property
    def digest(self) -> str:
        """A short digest of the names of all frames that were listed."""
        return self._content.hexdigest()[:12]

    @property
    def warnings(self) -> list[str]:
        """What was left out without being missed."""
        count = len(self.others)
        return [f"{count} files are not images and are left out, e.g. {self.others[0]}"] if count else []

    def require(self, directories: Iterable[str], expected: str) -> None:
        """Refuses a source that lacks a directory.

        Raises:
          DataSetError: so it is; the message ends with the expected tree.
        """
        lacking = [directory for directory in directories if not (self.source / directory).is_dir()]
        if lacking:
            raise DataSetError(f"{self.name}: {', '.join(lacking)} missing in {self.source}\n{expected}")

    def identities(self, directory: str) -> list[tuple[int, str]]:
        """Identities and the names of their folders in a directory, in the order of their numbers."""
        found = []
        for folder in self._entries(directory, folders=True):
            if folder.isascii() and folder.isdigit():
                found.append((int(folder), folder))
            else:
                self.errors.append(f"{self.source / directory / folder}: is not named by an identity, a whole number")
        return sorted(found)

    def tracklets(self, directory: str) -> Iterator[tuple[int, str, list[str]]]:
        """Identity, path and frames' names of each folder <directory>/<identity>/<tracklet>, by identity and name."""
        people = self.identities(directory)
        for pid, person in progress(people, f"listing {directory}", unit="identities"):
            home = f"{directory}/{person}"
            loose = [name for name in self._entries(home, folders=False) if _is_image(name)]
            if loose:
                self.errors.append(f"{self.source / home}: images lie beside its tracklet folders, e.g. {loose[0]}")
            for tracklet in self._entries(home, folders=True):
                frames = self.frames(f"{home}/{tracklet}")
                if frames:
                    yield pid, f"{home}/{tracklet}", frames

    def frames(self, folder: str) -> list[str]:
        """Names of the images in a folder in the order of their numbers; empty if there are none."""
        if not (self.source / folder).is_dir():
            self.missing.append(f"{self.source / folder}: is missing")
            return []
        images = []
        for name in self._entries(folder, folders=False):
            if not _is_image(name):
                self.others.append(f"{self.source / folder / name}")
            elif name != _printable(name):
                self.faults.append((f"{folder}/{_printable(name)}", "has a name that is not UTF-8"))
            else:
                images.append(name)
        images.sort(key=natural_key)
        self._content.update("\n".join([folder, *images, ""]).encode())
        if not images:
            self.missing.append(f"{self.source / folder}: holds no frame (*.jpg, *.jpeg, *.png)")
        return images

    def _entries(self, directory: str, folders: bool) -> list[str]:
        """Names of the folders or of the files in a directory, sorted; hidden ones are left out."""
        try:
            with os.scandir(self.source / directory) as entries:
                found = [entry.name for entry in entries if entry.name[0] != "." and entry.is_dir() == folders]
        except OSError as error:
            raise DataSetError(
                f"{self.name}: cannot read {self.source / directory}: {error.strerror or error}"
            ) from error
        if folders:
            for name in [name for name in found if name != _printable(name)]:
                found.remove(name)
                self.errors.append(f"{self.source / directory / _printable(name)}: has a name that is not UTF-8")
        return sorted(found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _printable(name: str) -> str:
    """A name with the bytes that are not UTF-8 as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
