"""From videos to tracklets: `jaxreid tracklets VIDEO… --out DIR`.

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

import argparse
import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from jaxreid.data.names import nfc, printable
from jaxreid.errors import UserError, command
from jaxreid.files import expand, read_json
from jaxreid.footage.detectors import Detector, make_detector
from jaxreid.footage.linking import Linker
from jaxreid.footage.motion import MotionModel
from jaxreid.footage.video import FrameReader, Video, VideoError

TRACKLET_COLUMNS = (
    "camera", "tracklet", "identity", "modality", "split", "start_time", "end_time", "recording",
    "frames", "start_frame", "end_frame",
)  # fmt: skip
BOX_COLUMNS = ("camera", "tracklet", "frame", "time", "x", "y", "w", "h", "score")
MODALITIES = ("rgb", "ir")
RUN_RECORD = "tracklets.json"
RESERVED = ("tracklets.csv", "boxes.csv", RUN_RECORD)
STATE = ".state"  # inside DIR.partial: what is finished
JPEG_QUALITY = 95


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


@dataclasses.dataclass(frozen=True)
class Source:
    """One video of the run: its unique name, its modality and the names of the cameras that it is taken for."""

    video: Video
    name: str
    modality: str
    cameras: tuple[str, ...]

    def length(self, seconds: float | None) -> int:
        """Frames that will be read; 0 where the container does not say."""
        if seconds is None or not self.video.frames:
            return self.video.frames
        return min(self.video.frames, max(1, round(seconds * self.video.fps)))


# --- what is made of one video ---------------------------------------------------------------------------------


@dataclasses.dataclass
class Tracklet:
    """A person in one camera while its track lasts. Crops wait in memory until the tracklet is long enough."""

    camera: str
    recording: str
    folder: Path
    boxes: list[tuple[int, float, np.ndarray, float]] = dataclasses.field(default_factory=list)
    motion: list[float] = dataclasses.field(default_factory=list)
    waiting: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)

    def add(self, frame: int, time: float, box: np.ndarray, score: float, motion: float, pixels: np.ndarray) -> None:
        self.boxes.append((frame, time, box, score))
        self.motion.append(motion)
        _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        self.waiting.append((f"{frame:06d}.jpg", jpeg.tobytes()))

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.waiting:
            (self.folder / name).write_bytes(content)
        self.waiting.clear()


def crop(image: np.ndarray, box: np.ndarray, settings: Settings) -> np.ndarray | None:
    """The part of u8[H, W, 3] under the box and its margin, cut at the picture's border; None if nothing is left."""
    x, y, w, h = (float(value) for value in box)
    margin_x, margin_y = w * settings.crop_margin, h * settings.crop_margin
    left, top = max(0, round(x - margin_x)), max(0, round(y - margin_y))
    right = min(image.shape[1], round(x + w + margin_x))
    bottom = min(image.shape[0], round(y + h + margin_y))
    if right <= left or bottom <= top:
        return None
    pixels = image[top:bottom, left:right]
    if settings.height is None or settings.width is None:
        return pixels
    shrinks = settings.height * settings.width < pixels.shape[0] * pixels.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(pixels, (settings.width, settings.height), interpolation=method)


def video_tracklets(
    source: Source, folder: Path, settings: Settings, detector: Detector, progress: Callable[[int, int], Any]
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
    reader = FrameReader(source.video, settings.stride, settings.seconds)
    length = source.length(settings.seconds)
    linker, motion = Linker(settings.min_iou, settings.max_missed), MotionModel()
    open_tracklets: dict[int, Tracklet] = {}
    kept: list[Tracklet] = []
    found = short = still = reported = 0

    def close(tracklet: Tracklet) -> None:
        nonlocal short, still
        if len(tracklet.boxes) < settings.min_frames:
            short += 1
        elif np.percentile(tracklet.motion, 90) < settings.min_motion:
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
        crops = [(row, pixels) for row, box in enumerate(boxes) if (pixels := crop(image, box, settings)) is not None]
        found += len(crops)
        tracks, ended = linker.update(boxes[[row for row, _ in crops]])
        for track, (row, pixels) in zip(tracks.tolist(), crops, strict=True):
            tracklet = open_tracklets.get(track)
            if tracklet and (len(tracklet.boxes) == settings.max_frames or tracklet.camera != camera):
                close(tracklet)
                tracklet = None
            if tracklet is None:
                place = folder / camera / f"open_{track}_{frame}"
                tracklet = open_tracklets[track] = Tracklet(camera, f"{source.name}_r{track:05d}", place)
            tracklet.add(frame, time, boxes[row], float(scores[row]), float(moving[row]), pixels)
            if len(tracklet.boxes) >= settings.min_frames:
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


def _name(kept: list[Tracklet], source: Source) -> tuple[list[list[Any]], list[list[Any]]]:
    """Numbers the tracklets of each camera as they appeared, renames their folders; the rows of the two tables."""
    tracklet_rows: list[list[Any]] = []
    crop_rows: list[list[Any]] = []
    numbers = dict.fromkeys(source.cameras, 0)
    for tracklet in sorted(
        kept, key=lambda item: (source.cameras.index(item.camera), item.boxes[0][0], item.recording)
    ):
        numbers[tracklet.camera] += 1
        name = f"t{numbers[tracklet.camera]:05d}"
        tracklet.folder.rename(tracklet.folder.with_name(name))
        (first, start, *_), (last, end, *_) = tracklet.boxes[0], tracklet.boxes[-1]
        tracklet_rows.append(
            [tracklet.camera, name, "", source.modality, "", f"{start:.3f}", f"{end:.3f}", tracklet.recording,
             len(tracklet.boxes), first, last]
        )  # fmt: skip
        crop_rows.extend(
            [tracklet.camera, name, frame, f"{time:.3f}", *(f"{value:.1f}" for value in box), f"{score:.4f}"]
            for frame, time, box, score in tracklet.boxes
        )
    return tracklet_rows, crop_rows


# --- names -----------------------------------------------------------------------------------------------------


def sources(
    paths: Sequence[str | Path], modality: str | Mapping[str, str] = "rgb", windows: int = 1
) -> tuple[list[Source], list[str]]:
    """Opens the videos and names their cameras after the file names.

    Args:
      paths: the videos.
      modality: `rgb` or `ir` for all, or by camera name (the rest is rgb).
      windows: cut one video into so many windows of time that act as cameras.

    Returns:
      (one `Source` per video, remarks on names that had to be changed).

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
        Source(
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


# --- the run: one video after another, resumable -----------------------------------------------------------------


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
    found, notes = sources(videos, modality, windows)
    _check_target(out, overwrite)
    partial = out.with_name(out.name + ".partial")
    try:
        state = _open_state(partial)
    except OSError as error:
        raise TrackletError(f"{partial} cannot be written ({error}); give another --out") from error

    keys = {source.name: _fingerprint(source, settings) for source in found}
    records = {name: record for name in keys if (record := _finished(state, name, keys[name])) is not None}
    _remove_unfinished(partial, state, found, records)
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

            record = video_tracklets(source, partial, settings, detector, progress)
            records[source.name] = _finish(state, source.name, keys[source.name], record)

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
    _write_csv(partial / "tracklets.csv", TRACKLET_COLUMNS, (r for v in records.values() for r in v["tracklets"]))
    _write_csv(partial / "boxes.csv", BOX_COLUMNS, (r for v in records.values() for r in v["crops"]))
    (partial / RUN_RECORD).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    if out.exists():
        if any(out.iterdir()):
            out.rename(partial / STATE / "replaced")
        else:
            out.rmdir()
    partial.rename(out)
    shutil.rmtree(out / STATE)
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


def _open_state(partial: Path) -> Path:
    state = partial / STATE
    if partial.exists() and not state.is_dir():
        raise TrackletError(f"{partial} is in the way: remove it, or give another --out")
    state.mkdir(parents=True, exist_ok=True)
    return state


def _fingerprint(source: Source, settings: Settings) -> str:
    """Changes when the video's tracklets would."""
    file = source.video.path.resolve()
    status = file.stat()
    what = [str(file), status.st_size, status.st_mtime_ns, source.modality, source.cameras]
    text = json.dumps([what, dataclasses.asdict(settings)])
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(state: Path, name: str, key: str) -> dict[str, Any] | None:
    file = state / f"{name}.json"
    if not file.is_file():
        return None
    try:
        record = read_json(file, "delete it")
    except UserError:  # cut off with the machine: the video is looked at again
        return None
    return record if record["key"] == key else None


def _finish(state: Path, name: str, key: str, record: dict[str, Any]) -> dict[str, Any]:
    aside = state / f"{name}.json.aside"
    aside.write_text(json.dumps({**record, "key": key}), encoding="utf-8")
    aside.rename(state / f"{name}.json")
    return record


def _remove_unfinished(partial: Path, state: Path, found: list[Source], records: Mapping[str, Any]) -> None:
    kept = {camera for source in found if source.name in records for camera in source.cameras}
    for entry in partial.iterdir():
        if entry != state and entry.is_dir() and entry.name not in kept:
            shutil.rmtree(entry)
    for file in state.glob("*.json"):
        if file.stem not in records:
            file.unlink()


def _check_broken(found: list[Source], records: Mapping[str, Any], keep_broken: bool, partial: Path) -> None:
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


def _video_entry(source: Source, record: Mapping[str, Any]) -> dict[str, Any]:
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


# --- the command line --------------------------------------------------------------------------------------------


def summary(run: Mapping[str, Any], out: str | Path) -> str:
    """What a run did and what to do next, for a person."""
    videos = run["videos"]
    lines = [*run["notes"]]
    for entry in videos:
        lines.append(f"{entry['video']} ({entry['modality']})")
        lines.append(
            f"  {entry['frames_read']} frames read, {entry['boxes']} people boxes -> {entry['tracklets']} tracklets "
            f"of {entry['crops']} crops; {entry['tracklets_too_short']} tracks shorter than "
            f"{run['settings']['min_frames']} crops left out"
        )
        if entry["tracklets_still"]:
            lines.append(
                f"  {entry['tracklets_still']} tracks in which nothing moves left out: parts of the scene, or somebody "
                "who stands still throughout (--min_motion 0 keeps them)"
            )
        if entry["tracklets"]:
            lines.append(f"  a person is {entry['crop_width']:.0f} x {entry['crop_height']:.0f} pixels (median)")
        else:
            lines.append("  NOBODY FOUND: no camera folder is made for this video (--upscale 2? --stride 1?)")
        if entry["damage"] is not None:
            lines.append(f"  BROKEN: {entry['damage']} and are used (--keep_broken)")
        if len(entry["cameras"]) > 1:
            cut = ", ".join(f"{camera}: {count}" for camera, count in entry["cameras"].items())
            lines.append(f"  one video, cut into windows of time that stand for cameras ({cut} tracklets)")
    cameras = [camera for entry in videos for camera, count in entry["cameras"].items() if count]
    total, crops = sum(entry["tracklets"] for entry in videos), sum(entry["crops"] for entry in videos)
    lines += ["", f"{total} tracklets ({crops} crops) of {len(cameras)} camera(s): {out}"]
    if len(cameras) == 1:
        lines.append("Only one camera: give more videos, or --windows 2 for a trial of search across cameras.")
    lines += [
        "Nobody has a name yet; training without labels needs none. Next, train on them:",
        f"  jaxreid train --config=hitpro:folder --config.dataset.path={out}",
    ]
    return "\n".join(lines)


def _modality(values: Sequence[str]) -> str | dict[str, str]:
    plain = [value for value in values if "=" not in value]
    named = dict(value.split("=", 1) for value in values if "=" in value)
    if plain and (named or len(plain) > 1):
        raise TrackletError(f"--modality {' '.join(values)}: one of rgb, ir for all videos, or CAMERA=ir for some")
    return named or (plain[0] if plain else "rgb")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxreid tracklets",
        description="Find the people in videos and save every track as a folder of crops. One video is one camera.",
    )
    default = Settings()
    add = parser.add_argument
    add("videos", nargs="+", type=expand, metavar="VIDEO", help="video files; the file name becomes the camera's name")
    add("--out", type=expand, required=True, metavar="DIR", help="folder to make")
    add("--overwrite", action="store_true", help="replace DIR if this tool made it")
    add("--modality", action="append", default=[], metavar="rgb|ir|CAMERA=ir",
        help="rgb or ir for all videos, or CAMERA=ir for one (may be repeated); default rgb")  # fmt: skip
    add("--windows", type=int, default=1, metavar="N", help="cut one video into N windows that stand for cameras")
    add("--detector", default=default.detector, help="hog (default), or hf: and a Hugging Face model id or folder")
    add("--upscale", type=float, default=default.upscale, help="enlarge frames for HOG (default %(default)s)")
    add("--min_score", type=float, help="lowest score of a box (default 0 for hog, 0.5 for hf)")
    add("--stride", type=int, default=default.stride, help="look at every n-th frame (default %(default)s)")
    add("--seconds", type=float, metavar="S", help="read only the first S seconds of each video")
    add("--min_iou", type=float, default=default.min_iou, help="overlap that continues a track (default %(default)s)")
    add("--max_missed", type=int, default=default.max_missed,
        help="looked-at frames that a track survives unseen (default %(default)s)")  # fmt: skip
    add("--min_frames", type=int, default=default.min_frames, help="shortest tracklet, in crops (default %(default)s)")
    add("--max_frames", type=int, help="cut longer tracklets into pieces of so many crops")
    add("--min_motion", type=float, default=default.min_motion, metavar="SHARE",
        help="leave out tracks that move in less of their box: scenery (default %(default)s; 0 keeps all)")  # fmt: skip
    add("--crop_margin", type=float, default=default.crop_margin, metavar="SHARE",
        help="show more around a person, in shares of the box (default %(default)s)")  # fmt: skip
    add("--height", type=int, help="resize crops (with --width); default: as they are in the video")
    add("--width", type=int, help="resize crops (with --height)")
    add("--keep_broken", action="store_true", help="use videos with missing frames as far as they can be decoded")
    return parser


@command("run the same line again to go on behind the last finished video")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    options = _parser().parse_args(arguments)
    fields = [field.name for field in dataclasses.fields(Settings)]
    run = make_tracklets(
        options.videos,
        options.out,
        Settings(**{name: getattr(options, name) for name in fields}),
        modality=_modality(options.modality),
        windows=options.windows,
        overwrite=options.overwrite,
        keep_broken=options.keep_broken,
    )
    print(summary(run, os.path.relpath(options.out) if not os.path.isabs(options.out) else options.out))
    return 0
