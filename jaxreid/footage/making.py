"""From videos to a folder of tracklets.

Every person that is detected and linked from frame to frame becomes a folder of crops, in the layout that the
`folder` data set is built from:

    DIR/<camera>/<tracklet>/<frame number>.jpg
    DIR/tracklets.csv     one row per tracklet: camera, modality, times in seconds, recording; identity is empty
    DIR/boxes.csv         one row per crop: frame number, time in seconds, box in pixels of the video, score
    DIR/tracklets.json    the settings and counts of the run

One video is one camera. `recording` names the unbroken track that a tracklet was cut from: tracklets that share it
(cut by --max_frames, or by a window's border) show one person, as far as linking by overlap can tell.

All of it is written to DIR.partial and renamed to DIR at the end, so DIR is whole or absent. A run that was stopped
goes on behind the last finished video when the same line is run again.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxreid.data.names import printable
from jaxreid.footage.cameras import BOXES, RUN_RECORD, TRACKLETS, CameraVideo, open_videos
from jaxreid.footage.detectors import Detector, make_detector
from jaxreid.footage.people import BOX_COLUMNS, TRACKLET_COLUMNS, video_tracklets
from jaxreid.footage.settings import Settings, TrackletError
from jaxreid.footage.state import State
from jaxreid.footage.video import Video, VideoError


def make_tracklets(
    videos: Sequence[str | Path],
    out: str | Path,
    settings: Settings | None = None,
    *,
    detector: Detector | None = None,
    modality: str | Mapping[str, str] = "rgb",
    windows: int = 1,
    overwrite: bool = False,
    keep_broken: bool = False,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Makes a folder of tracklets from videos.

    Args:
      videos: files; each is a camera, named after the file.
      out: the folder to make; must not exist or be empty.
      settings: how (default `Settings()`).
      detector: used instead of the one that `settings.detector` names.
      modality: `rgb` or `ir` for all videos, or by camera name.
      windows: cut a single video into so many windows of time that act as cameras.
      overwrite: replace `out` if this tool made it.
      keep_broken: use videos with missing frames as far as they can be decoded.
      show_progress: a progress bar on stderr.

    Returns:
      The run record, as in DIR/tracklets.json: settings, one entry per video, notes.

    Raises:
      VideoError: a video that cannot be read, or that has missing frames and `keep_broken` is false.
      TrackletError: `out` is in use or cannot be written, settings do not fit, or nobody was found at all.
      ValueError, ImportError: the detector cannot be had.
    """
    settings = settings or Settings()
    # Resolved, so that a link is written through and not replaced.
    out = Path(out).resolve()
    found, notes = open_videos(videos, modality, windows)
    _check_target(out, overwrite)
    partial = out.with_name(out.name + ".partial")
    state = State(partial)
    records = {source.name: record for source in found if (record := state.finished(source, settings)) is not None}
    state.remove_unfinished(source for source in found if source.name in records)
    if records:
        notes.append(f"taken over from the run before: {', '.join(records)}")
    todo = [source for source in found if source.name not in records]
    if todo and detector is None:
        detector = make_detector(settings.detector, upscale=settings.upscale, min_score=settings.min_score)
    lengths = [source.length(settings.seconds) for source in todo]
    with tqdm(total=sum(lengths) if all(lengths) else None, unit="frame", disable=not show_progress or not todo) as bar:
        for source in todo:
            assert detector is not None
            earlier = sum(len(record["tracklets"]) for record in records.values())

            def progress(frames: int, tracklets: int, name: str = source.name, earlier: int = earlier) -> None:
                bar.set_description(name, refresh=False)
                bar.set_postfix(tracklets=earlier + tracklets, refresh=False)
                bar.update(frames)

            records[source.name] = video_tracklets(source, partial, settings, detector, progress)
            state.finish(source, settings, records[source.name])

    records = {source.name: records[source.name] for source in found}
    _check_broken(found, records, keep_broken, partial)
    if not any(record["tracklets"] for record in records.values()):
        boxes = sum(record["boxes"] for record in records.values())
        shutil.rmtree(partial)
        raise TrackletError(
            f"no tracklet in {len(found)} video(s): {boxes} people boxes in all, none linked over "
            f"{settings.min_frames} looked-at frames of something that moves. Try --upscale 2 (small people), "
            "--stride 1 (fast motion or a low frame rate), a smaller --min_frames, or another detector "
            "(--detector hf:MODEL); the HOG detector needs upright people seen nearly whole"
        )
    run = {
        "settings": dataclasses.asdict(settings),
        "windows": windows,
        "videos": [_video_entry(source, records[source.name]) for source in found],
        "notes": notes,
    }
    _write_csv(partial / TRACKLETS, TRACKLET_COLUMNS, (r for v in records.values() for r in v["tracklets"]))
    _write_csv(partial / BOXES, BOX_COLUMNS, (r for v in records.values() for r in v["crops"]))
    (partial / RUN_RECORD).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    state.publish(out)
    return run


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise TrackletError(f"--out {out} is a file; give a folder that does not exist yet")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise TrackletError(f"--out {out} is not empty; give another folder, or --overwrite to replace it")
    if not (out / RUN_RECORD).is_file():
        raise TrackletError(
            f"--out {out} was not made by this tool (no {RUN_RECORD} in it), so --overwrite does not touch it; "
            "give another folder"
        )


def _check_broken(found: list[CameraVideo], records: Mapping[str, Any], keep_broken: bool, partial: Path) -> None:
    broken = [source for source in found if records[source.name]["broken_at"] is not None]
    if not broken or keep_broken:
        return
    lines = [
        f"{source.video.path}: {_damage(records[source.name], source.video)}; "
        f"{len(records[source.name]['tracklets'])} tracklets found in them"
        for source in broken
    ]
    raise VideoError(
        "\n".join(lines) + "\nNothing was written to --out. Run the same line with --keep_broken to use what was "
        f"decoded (finished work is kept in {partial}), or leave the video out, or mend it with ffmpeg"
    )


def _damage(record: Mapping[str, Any], video: Video) -> str:
    at = record["broken_at"]
    # A file without time stamps of its own (AVI) does not show where the decoder skipped.
    where = f"breaks at frame {at}" if at < record["frames"] else f"ends at frame {at} or has gaps before it"
    return f"{where}: {record['frames']} of {video.frames} frames could be decoded"


def _video_entry(source: CameraVideo, record: Mapping[str, Any]) -> dict[str, Any]:
    """A video's entry of the run record; `crop_width` and `crop_height` are median boxes in pixels of the video."""
    sizes = np.array([[float(row[6]), float(row[7])] for row in record["crops"]]).reshape(-1, 2)
    width, height = np.median(sizes, axis=0).tolist() if len(sizes) else (None, None)
    counts = {camera: 0 for camera in source.cameras}
    for row in record["tracklets"]:
        counts[row[0]] += 1
    return {
        "video": printable(source.video.path),
        "modality": source.modality,
        "cameras": counts,
        "fps": source.video.fps,
        "frames_in_file": source.video.frames,
        "frames_read": record["frames"],
        "damage": None if record["broken_at"] is None else _damage(record, source.video),
        "boxes": record["boxes"],
        "tracklets": len(record["tracklets"]),
        "tracklets_too_short": record["short"],
        "tracklets_still": record["still"],
        "crops": len(record["crops"]),
        "crop_width": width,
        "crop_height": height,
    }


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
