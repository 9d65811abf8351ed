"""The people of one video: detected, linked from frame to frame, and cut out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxreid.footage.cameras import CameraVideo
from jaxreid.footage.crops import Sighting, Tracklet, crop
from jaxreid.footage.detectors import Detector
from jaxreid.footage.linking import Linker
from jaxreid.footage.motion import MotionModel
from jaxreid.footage.settings import Settings
from jaxreid.footage.video import FrameReader

TRACKLET_COLUMNS = (
    "camera", "tracklet", "identity", "modality", "split", "start_time", "end_time", "recording",
    "frames", "start_frame", "end_frame",
)  # fmt: skip
BOX_COLUMNS = ("camera", "tracklet", "frame", "time", "x", "y", "w", "h", "score")


def video_tracklets(
    source: CameraVideo, folder: Path, settings: Settings, detector: Detector, progress: Callable[[int, int], Any]
) -> dict[str, Any]:
    """Detects, links and crops the people of one video.

    Args:
      source: the video and its cameras.
      folder: crops go to `folder/<camera>/<tracklet>/`.
      settings, detector: how.
      progress: told (frames read since the last call, tracklets so far).

    Returns:
      The video's record: `frames` read, `boxes` found, `short` and `still` tracklets left out, `broken_at` (the first
      missing frame or None), rows of `TRACKLET_COLUMNS` as `tracklets` and of `BOX_COLUMNS` as `crops`.
    """
    size = None if settings.height is None or settings.width is None else (settings.height, settings.width)
    reader = FrameReader(source.video, settings.stride, settings.seconds)
    length = source.length(settings.seconds)
    linker, motion = Linker(settings.min_iou, settings.max_missed), MotionModel()
    open_tracklets: dict[int, Tracklet] = {}
    kept: list[Tracklet] = []
    found = short = still = reported = 0

    def close(tracklet: Tracklet) -> None:
        nonlocal short, still
        if len(tracklet.sightings) < settings.min_frames:
            short += 1
        elif np.percentile([seen.motion for seen in tracklet.sightings.values()], 90) < settings.min_motion:
            still += 1
            shutil.rmtree(tracklet.folder)
            if not any(tracklet.folder.parent.iterdir()):
                tracklet.folder.parent.rmdir()
        else:
            kept.append(tracklet)

    for frame, time, image in reader:
        camera = source.cameras[min(len(source.cameras) - 1, frame * len(source.cameras) // max(length, 1))]
        boxes, scores = detector(image)
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        moving = motion.update(image, boxes)
        cut = [crop(image, box, settings.crop_margin, size) for box in boxes]
        crops = [(row, pixels) for row, pixels in enumerate(cut) if pixels is not None]
        found += len(crops)
        tracks, ended = linker.update(boxes[[row for row, _ in crops]])
        for track, (row, pixels) in zip(tracks.tolist(), crops, strict=True):
            tracklet = open_tracklets.get(track)
            if tracklet and (len(tracklet.sightings) == settings.max_frames or tracklet.camera != camera):
                close(tracklet)
                tracklet = None
            if tracklet is None:
                place = folder / camera / f"open_{track}_{frame}"
                tracklet = open_tracklets[track] = Tracklet(camera, f"{source.name}_r{track:05d}", place)
            x, y, w, h = boxes[row].tolist()
            tracklet.sightings[frame] = Sighting((x, y, w, h), time, float(scores[row]), float(moving[row]))
            tracklet.add_crop(frame, pixels)
            if len(tracklet.sightings) >= settings.min_frames:
                tracklet.write()
        for track in ended:
            close(open_tracklets.pop(track))
        progress(reader.read + 1 - reported, len(kept))
        reported = reader.read + 1
    for tracklet in open_tracklets.values():
        close(tracklet)
    progress(reader.read - reported, len(kept))
    tracklet_rows, crop_rows = _name(kept, source)
    return {
        "frames": reader.read,
        "boxes": found,
        "short": short,
        "still": still,
        "broken_at": reader.broken_at,
        "tracklets": tracklet_rows,
        "crops": crop_rows,
    }


def _name(kept: list[Tracklet], source: CameraVideo) -> tuple[list[list[Any]], list[list[Any]]]:
    """Numbers the tracklets of each camera as they appeared, renames their folders; the rows of the two tables."""
    tracklet_rows: list[list[Any]] = []
    crop_rows: list[list[Any]] = []
    numbers = dict.fromkeys(source.cameras, 0)
    for tracklet in sorted(
        kept, key=lambda item: (source.cameras.index(item.camera), min(item.sightings), item.recording)
    ):
        numbers[tracklet.camera] += 1
        name = f"t{numbers[tracklet.camera]:05d}"
        tracklet.folder.rename(tracklet.folder.with_name(name))
        first, last = min(tracklet.sightings), max(tracklet.sightings)
        start, end = tracklet.sightings[first].time, tracklet.sightings[last].time
        tracklet_rows.append(
            [tracklet.camera, name, "", source.modality, "", f"{start:.3f}", f"{end:.3f}", tracklet.recording,
             tracklet.crops, first, last]
        )  # fmt: skip
        crop_rows.extend(
            [tracklet.camera, name, frame, f"{time:.3f}", *(f"{value:.1f}" for value in box), f"{score:.4f}"]
            for frame, (box, time, score, _) in tracklet.sightings.items()
        )
    return tracklet_rows, crop_rows
