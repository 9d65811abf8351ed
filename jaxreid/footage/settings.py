"""How tracklets are made of videos."""

from __future__ import annotations

import dataclasses

from jaxreid.errors import UserError


class TrackletError(UserError):
    """The tracklets cannot be made; the message says where and what to do."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How tracklets are made; two runs with equal settings on equal videos make equal tracklets.

    Attributes:
      detector: `hog` or `hf:MODEL` (`jaxreid.footage.detectors.make_detector`).
      upscale: enlargement before HOG.
      min_score: lowest score of a box, None for the detector's own default.
      stride: look at every `stride`-th frame.
      min_iou: overlap with which a box continues a track.
      max_missed: looked-at frames in a row that a track survives without a box.
      min_frames: shorter tracklets are left out (and counted).
      max_frames: longer ones are cut; None: never.
      min_motion: tracklets whose most moving tenth of boxes moves in a smaller share of its pixels are left out (and
        counted): parts of the scene that look like a person. 0 keeps all.
      seconds: read only so much of each video; None: all.
      crop_margin: what a crop shows beyond its box on each side, in shares of the box's width and height.
      height, width: size of the crops in pixels; None: as they are in the video.
    """

    detector: str = "hog"
    upscale: float = 1.5
    min_score: float | None = None
    stride: int = 2
    min_iou: float = 0.3
    max_missed: int = 3
    min_frames: int = 8
    max_frames: int | None = None
    min_motion: float = 0.2
    seconds: float | None = None
    crop_margin: float = 0.0
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        checks = {
            "--upscale must be above 0": self.upscale > 0,
            "--stride must be at least 1": self.stride >= 1,
            "--min_iou must lie in (0, 1]": 0 < self.min_iou <= 1,
            "--max_missed must be at least 0": self.max_missed >= 0,
            "--min_frames must be at least 1": self.min_frames >= 1,
            "--max_frames must be at least --min_frames": (self.max_frames or self.min_frames) >= self.min_frames,
            "--min_motion must lie in [0, 1]": 0 <= self.min_motion <= 1,
            "--seconds must be above 0": self.seconds is None or self.seconds > 0,
            "--crop_margin must be at least 0": self.crop_margin >= 0,
            "--height and --width go together, both at least 1": (self.height is None) == (self.width is None)
            and (self.height is None or min(self.height, self.width or 0) >= 1),
        }
        wrong = [message for message, right in checks.items() if not right]
        if wrong:
            raise TrackletError("; ".join(wrong))
