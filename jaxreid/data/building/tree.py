"""Tracklets that come as folders of frames, without lists; the names of one folder are in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxreid.data.building.contents import is_image, list_frames, scan, twins_error
from jaxreid.data.building.progress import progress
from jaxreid.data.names import printable
from jaxreid.data.schema import LARGEST_NUMBER
from jaxreid.errors import DataSetError


class Tree:
    """Reads the folders below `source`, and gathers what is wrong with them.

    Attributes:
      errors: folders that are not what they should be.
      missing: tracklet folders that give no frame, each with the reason.
      faults: frames that cannot be used, because of their names or because they are links to nothing: path and fault.
      others: files and folders that are no images.
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
        return [f"{count} files or folders are not images and are left out, e.g. {self.others[0]}"] if count else []

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
        for folder in self._folders(directory):
            place = self.source / directory / folder
            if not (folder.isascii() and folder.isdigit()):
                self.errors.append(f"{place}: is not named by an identity, a whole number")
            elif int(folder) > LARGEST_NUMBER:
                self.errors.append(f"{place}: identities go up to {LARGEST_NUMBER}; number the people anew")
            else:
                found.append((int(folder), folder))
        return sorted(found)

    def tracklets(self, directory: str) -> Iterator[tuple[int, str, list[str]]]:
        """Identity, path and frames' names of each folder <directory>/<identity>/<tracklet>, by identity and name."""
        people = self.identities(directory)
        for pid, person in progress(people, f"listing {directory}", unit="identities"):
            home = f"{directory}/{person}"
            for tracklet in self._folders(home):
                frames = self.frames(f"{home}/{tracklet}")
                if frames:
                    yield pid, f"{home}/{tracklet}", frames

    def frames(self, folder: str) -> list[str]:
        """Names of the images in a folder in the order of their numbers; empty if there are none."""
        if not (self.source / folder).is_dir():
            self.missing.append(f"{self.source / folder}: is missing")
            return []
        found = list_frames(self.source / folder)
        self.faults += [(f"{folder}/{name}", fault) for name, fault in found.faults]
        self.others += [f"{self.source / folder / name}" for name in found.others]
        if found.twins:
            self.errors.append(twins_error(self.source / folder, found.twins))
        self._content.update("\n".join([folder, *found.images, ""]).encode())
        if not found.images:
            self.missing.append(f"{self.source / folder}: holds no frame (*.jpg, *.jpeg, *.png)")
        return found.images

    def _folders(self, directory: str) -> list[str]:
        """Names of the folders in a directory; what else is there is noted."""
        found = scan(self.source / directory)
        self.faults += [(f"{directory}/{name}", fault) for name, fault in found.broken]
        self.errors += [f"{self.source / directory / name}: {fault}" for name, fault in found.unreadable]
        self.others += [f"{self.source / directory / printable(name)}" for name in found.files if not is_image(name)]
        loose = [printable(name) for name in found.files if is_image(name)]
        if loose:
            self.errors.append(f"{self.source / directory}: images lie beside its tracklet folders, e.g. {loose[0]}")
        return found.folders
