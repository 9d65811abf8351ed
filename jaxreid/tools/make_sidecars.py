"""Makes a sidecar of a data set from its own frames: `jaxreid make-sidecars DATASET|FOLDER --kind keypoints …`.

What each backend is and needs: docs/sidecars.md.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from jaxreid.data.build import named_set
from jaxreid.data.sidecars import sidecar_dir
from jaxreid.errors import command
from jaxreid.footage.pose_sidecar import KIND, make_keypoints
from jaxreid.footage.poses import BACKENDS, make_estimator


@command("run the same line again to go on behind the last finished tracklet")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    parser = argparse.ArgumentParser(
        prog="jaxreid make-sidecars", description="Make a sidecar of a data set from its own frames."
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET|FOLDER",
        help="a data set's NAME[/CONFIG], a built one's directory, or a folder <camera>/<tracklet>/*.jpg")  # fmt: skip
    add("--kind", choices=(KIND,), default=KIND, help="what to make (default %(default)s)")
    add("--backend", required=True, help=BACKENDS)
    add("--data_dir", help="where prepared sets live, as for jaxreid build")
    add("--batch", type=int, default=16, help="crops in a step of vitpose (default %(default)s)")
    add("--overwrite", action="store_true", help="replace a sidecar of this kind")
    options = parser.parse_args(arguments)
    estimator = make_estimator(options.backend)
    prepared = named_set(options.dataset, options.data_dir)
    words = ["jaxreid", "make-sidecars", str(prepared), f"--kind={KIND}", f"--backend={options.backend}", "--overwrite"]
    made = make_keypoints(
        prepared, estimator, shlex.join(words), overwrite=options.overwrite, batch=max(1, options.batch)
    )
    taken = f"; {made.taken_over} tracklets were there from a run before" if made.taken_over else ""
    print(f"{made.tracklets} tracklets, {made.frames} frames, {made.undetected} of them without a person{taken}")
    print(sidecar_dir(prepared, KIND))
    return 0
