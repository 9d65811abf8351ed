"""From videos to tracklets: `jaxreid tracklets VIDEO… --out DIR`; what is written: `jaxreid.footage.making`."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxreid.errors import command
from jaxreid.files import expand
from jaxreid.footage.making import make_tracklets
from jaxreid.footage.settings import Settings, TrackletError


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
