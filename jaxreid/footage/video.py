"""Reading a video file frame by frame, and noticing when frames are missing."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from jaxreid.errors import UserError

# These containers list their frames, so that their frame count is exact; others are asked for duration × rate.
EXACT_COUNT = (".avi", ".mp4", ".mov", ".m4v")


class VideoError(UserError):
    """A video that cannot be used; the message says which, why and what to do."""


@dataclasses.dataclass(frozen=True)
class Video:
    """What a video file says of itself: frames (0 where the container does not know), frames per second, pixels."""

    path: Path
    frames: int
    fps: float
    width: int
    height: int

    @classmethod
    def open(cls, path: str | Path) -> Video:
        """Opens the file and decodes its first frame.

        Raises:
          VideoError: no such file, not a video, no frame in it, or no frame rate.
        """
        path = Path(path)
        if not path.is_file():
            raise VideoError(f"{path}: no such video file")
        capture = _capture(path)
        try:
            if not capture.isOpened():
                raise VideoError(
                    f"{path}: not a video that OpenCV can read ({path.stat().st_size} bytes; empty, cut off, or an "
                    f"unknown codec); try `ffmpeg -i {path.name} -c:v libx264 fixed.mp4` and give fixed.mp4"
                )
            ok, image = capture.read()
            if not ok:
                raise VideoError(f"{path}: no frame can be decoded; leave it out, or repair it with ffmpeg")
            count, fps = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        finally:
            capture.release()
        if not math.isfinite(fps) or fps <= 0:
            raise VideoError(
                f"{path}: no frame rate in the file, so tracklets would have no times; "
                f"set one with `ffmpeg -r RATE -i {path.name} fixed.mp4`"
            )
        frames = int(count) if math.isfinite(count) and count > 0 else 0
        return cls(path, frames, float(fps), image.shape[1], image.shape[0])


def _capture(path: Path) -> cv2.VideoCapture:
    return cv2.VideoCapture(os.fsencode(path))  # pyright: ignore[reportCallIssue, reportArgumentType]  # str crashes it


class FrameReader:
    """Iterates over every `stride`-th frame of a video as (frame number, seconds, u8[H, W, 3] BGR).

    Seconds are the file's own time stamps where it has rising ones (so variable frame rates are right), else
    frame number / rate. Decoders skip what they cannot read without a word; after the iteration `broken_at` names
    the first frame that is missing, None when all are there. It equals `read`, the number of frames passed, where a
    file ends early and where it has no time stamps of its own (AVI), so that a gap inside it shows only in the count.

    Args:
      video: an opened video.
      stride: take every `stride`-th frame, from the first.
      seconds: stop there; None: read to the end.
    """

    def __init__(self, video: Video, stride: int = 1, seconds: float | None = None):
        self.video, self.stride, self.seconds = video, stride, seconds
        self.read = 0
        self.broken_at: int | None = None

    def __iter__(self) -> Iterator[tuple[int, float, np.ndarray]]:
        video = self.video
        capture = _capture(video.path)
        self.read, self.broken_at = 0, None
        # A pause this long between two frames is where a decoder skipped, if frames turn out to be missing.
        pause = max(1.0, 3 / video.fps)
        first_pause, time, stopped = None, -1.0, False
        try:
            while capture.grab():
                stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                previous, time = time, stamp if stamp > time else max(self.read / video.fps, time)
                if self.seconds is not None and time >= self.seconds:
                    stopped = True
                    break
                if first_pause is None and self.read and time - previous > pause:
                    first_pause = self.read
                if self.read % self.stride == 0:
                    ok, image = capture.retrieve()
                    if not ok:
                        break
                    yield self.read, time, image
                self.read += 1
        finally:
            capture.release()
        if not stopped:
            self.broken_at = self._first_missing(first_pause, time)

    def _first_missing(self, first_pause: int | None, last_time: float) -> int | None:
        video = self.video
        slack = 2 if video.path.suffix.lower() in EXACT_COUNT else max(2, math.ceil(video.fps))
        if video.frames - self.read <= slack:
            return None
        if first_pause is not None:
            return first_pause
        # Fewer frames than duration × rate, evenly up to the end, is a variable frame rate and no damage.
        ends_early = last_time < (video.frames - slack) / video.fps
        return self.read if ends_early else None
