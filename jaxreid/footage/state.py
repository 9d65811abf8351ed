"""What of a run over many videos is finished: a record for each of them, kept until all are done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxreid.errors import UserError
from jaxreid.files import read_json, write_text
from jaxreid.footage.cameras import CameraVideo
from jaxreid.footage.settings import Settings, TrackletError

STATE = ".state"


class State:
    """Records of finished videos in `folder`/.state, by the names of the videos.

    Args:
      folder: where the crops go while there is something to do; made if missing.

    Raises:
      TrackletError: the folder was not made so, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.records = folder, folder / STATE
        try:
            if folder.exists() and not self.records.is_dir():
                raise TrackletError(f"{folder} is in the way: remove it, or give another --out")
            self.records.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrackletError(f"{folder} cannot be written ({error}); give another --out") from error

    def finished(self, source: CameraVideo, settings: Settings) -> dict[str, Any] | None:
        """The record of a video that was finished with these settings and is what it was then."""
        file = self.records / f"{source.name}.json"
        if not file.is_file():
            return None
        try:
            record = read_json(file, "delete it")
        except UserError:  # cut off with the machine: the video is looked at again
            return None
        return record if record["key"] == fingerprint(source, settings) else None

    def finish(self, source: CameraVideo, settings: Settings, record: Mapping[str, Any]) -> None:
        """Keeps the record of a video."""
        text = json.dumps({**record, "key": fingerprint(source, settings)})
        write_text(self.records / f"{source.name}.json", text)

    def remove_unfinished(self, finished: Iterable[CameraVideo]) -> None:
        """Removes crops and records of all other videos."""
        finished = list(finished)
        names, cameras = {s.name for s in finished}, {camera for s in finished for camera in s.cameras}
        for entry in self.folder.iterdir():
            if entry != self.records and entry.is_dir() and entry.name not in cameras:
                shutil.rmtree(entry)
        for file in self.records.glob("*.json"):
            if file.stem not in names:
                file.unlink()

    def publish(self, out: Path) -> None:
        """Renames the folder to `out`, which it replaces, and forgets the records."""
        if out.exists():
            if any(out.iterdir()):
                out.rename(self.records / "replaced")
            else:
                out.rmdir()
        self.folder.rename(out)
        shutil.rmtree(out / STATE)


def fingerprint(source: CameraVideo, settings: Settings) -> str:
    """Changes when the video's tracklets would."""
    file = source.video.path.resolve()
    status = file.stat()
    what = [str(file), status.st_size, status.st_mtime_ns, source.modality, source.cameras]
    text = json.dumps([what, dataclasses.asdict(settings)])
    return hashlib.sha256(text.encode()).hexdigest()
