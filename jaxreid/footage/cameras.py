"""Which videos there are, and the cameras that they are taken for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jaxreid.data.names import nfc
from jaxreid.footage.settings import TrackletError
from jaxreid.footage.video import Video, VideoError

MODALITIES = ("rgb", "ir")
# Files beside the cameras' folders, so that no camera is called so.
TRACKLETS, BOXES, RUN_RECORD = RESERVED = ("tracklets.csv", "boxes.csv", "tracklets.json")


@dataclasses.dataclass(frozen=True)
class CameraVideo:
    """A video: its unique name, its modality and the names of the cameras that it is taken for."""

    video: Video
    name: str
    modality: str
    cameras: tuple[str, ...]

    def length(self, seconds: float | None) -> int:
        """Frames that will be read; 0 where the container does not say."""
        if seconds is None or not self.video.frames:
            return self.video.frames
        return min(self.video.frames, max(1, round(seconds * self.video.fps)))


def open_videos(
    paths: Sequence[str | Path], modality: str | Mapping[str, str] = "rgb", windows: int = 1
) -> tuple[list[CameraVideo], list[str]]:
    """Opens the videos and names their cameras after the file names.

    Args:
      paths: the videos.
      modality: `rgb` or `ir` for all, or by camera name (the rest is rgb).
      windows: cut one video into so many windows of time that act as cameras.

    Returns:
      (one `CameraVideo` per video, remarks on names that had to be changed).

    Raises:
      VideoError: a video that cannot be read; all of them are named in one message.
      TrackletError: a modality that is unknown or given to an unknown camera; windows of more than one video.
    """
    if not paths:
        raise TrackletError("no video given")
    if windows < 1 or (windows > 1 and len(paths) > 1):
        raise TrackletError(f"--windows {windows}: at least 1, and more than 1 only with a single video")
    names, notes = _unique_names([Path(path).stem for path in paths])
    by_name = dict.fromkeys(names, modality) if isinstance(modality, str) else {nfc(k): v for k, v in modality.items()}
    unknown = [name for name in by_name if name not in names]
    wrong = sorted(set(by_name.values()) - set(MODALITIES))
    if unknown or wrong:
        raise TrackletError(
            f"--modality: cameras {unknown} and modalities {wrong} are unknown; cameras here are "
            f"{', '.join(names)}, modalities {' or '.join(MODALITIES)}"
        )
    videos, failures = [], []
    for path in paths:
        try:
            videos.append(Video.open(path))
        except VideoError as error:
            failures.append(str(error))
    if failures:
        raise VideoError("\n".join(failures))
    if windows > 1 and not videos[0].frames:
        raise TrackletError(
            f"--windows needs the length of {paths[0]}, which the file does not say; "
            "copy it into an mp4 first: ffmpeg -i VIDEO -c copy fixed.mp4"
        )
    digits = len(str(windows))
    return [
        CameraVideo(
            video,
            name,
            by_name.get(name, "rgb"),
            tuple(f"{name}_w{window + 1:0{digits}d}" for window in range(windows)) if windows > 1 else (name,),
        )
        for video, name in zip(videos, names, strict=True)
    ], notes


def _unique_names(stems: Iterable[str]) -> tuple[list[str], list[str]]:
    names: list[str] = []
    notes: list[str] = []
    for stem in map(nfc, stems):
        plain = re.sub(r"[^\w.-]+", "_", stem).strip("._") or "camera"
        name, number = plain, 1
        # Some file systems take Cam and cam for one folder.
        while name.lower() in {other.lower() for other in (*names, *RESERVED)}:
            number += 1
            name = f"{plain}_{number}"
        if name != stem:
            why = "that name is taken" if name != plain else "for a plain folder name"
            notes.append(f"camera of the video {stem!r} is called {name!r} ({why})")
        names.append(name)
    return names, notes
