"""Tracklets from a tracking data set: `jaxreid mot-tracklets --train DIR --test DIR --out DIR`.

What lies below DIR, and what is made of it: `jaxreid.footage.mot_making`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from jaxreid.data.building.listed import DEFAULT_MAX_EXCLUDED, shorten
from jaxreid.errors import command
from jaxreid.files import expand
from jaxreid.footage.mot_making import MotSettings, make_mot_tracklets


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    parser = argparse.ArgumentParser(
        prog="jaxreid mot-tracklets",
        description="Cut tracklets from a tracking data set in the MOT layout, for sports_vreid and dance_vreid.",
    )
    default = MotSettings()
    add = parser.add_argument
    add("--train", nargs="+", type=expand, required=True, metavar="DIR", help="directories with training sequences")
    add("--test", nargs="+", type=expand, required=True, metavar="DIR", help="directories with test sequences")
    add("--out", type=expand, required=True, metavar="DIR", help="folder to make")
    add("--segments", type=int, default=default.segments, metavar="N",
        help="windows of time per sequence, which act as cameras (default %(default)s)")  # fmt: skip
    add("--max_gap", type=float, default=default.max_gap, metavar="S",
        help="cut a track that was not seen for longer, in seconds (default %(default)s)")  # fmt: skip
    add("--min_frames", type=int, default=default.min_frames, help="shortest tracklet (default %(default)s)")
    add("--stride", type=int, default=default.stride, help="keep every n-th frame (default %(default)s)")
    add("--fps", type=float, default=default.fps, help="of sequences without seqinfo.ini (default %(default)s)")
    add("--max_excluded", type=float, default=DEFAULT_MAX_EXCLUDED, metavar="SHARE",
        help="largest share of images that may be unusable (default %(default)s)")  # fmt: skip
    options = parser.parse_args(arguments)
    settings = MotSettings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(MotSettings)})
    run = make_mot_tracklets(options.train, options.test, options.out, settings, options.max_excluded)
    if run["excluded_images"]:
        print(f"{len(run['excluded_images'])} images cannot be used:\n{shorten(run['excluded_images'])}")
    if run["outside_boxes"]:
        print(f"{len(run['outside_boxes'])} tracks leave the picture:\n{shorten(run['outside_boxes'])}")
    for split, counts in run["counts"].items():
        print(f"{split:>10}: " + ", ".join(f"{value} {what}" for what, value in counts.items()))
    print(options.out)
    return 0
