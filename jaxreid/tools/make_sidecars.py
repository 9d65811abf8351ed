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
from jaxreid.footage import joints, poses
from jaxreid.footage.pose_sidecar import KIND, make_poses

BACKENDS = {KIND: poses.BACKENDS, joints.KIND: joints.BACKENDS}


@command("run the same line again to go on behind the last finished tracklet")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    parser = argparse.ArgumentParser(
        prog="jaxreid make-sidecars", description="Make a sidecar of a data set from its own frames."
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET|FOLDER",
        help="a data set's NAME[/CONFIG], a built one's directory, or a folder <camera>/<tracklet>/*.jpg")  # fmt: skip
    add("--kind", choices=[*BACKENDS], default=KIND, help="what to make (default %(default)s)")
    add("--backend", required=True, help="; ".join(f"of {kind}: {named}" for kind, named in BACKENDS.items()))
    add("--data_dir", help="where prepared sets live, as for jaxreid build")
    add("--batch", type=int, default=16, help="crops in a step of vitpose (default %(default)s)")
    add("--overwrite", action="store_true", help="replace a sidecar of this kind")
    options = parser.parse_args(arguments)
    kind, lifted = options.kind, (options.kind, options.backend) == (joints.KIND, joints.LIFT)
    make_estimator = joints.make_joint_estimator if kind == joints.KIND else poses.make_estimator
    estimator = None if lifted else make_estimator(options.backend)
    prepared = named_set(options.dataset, options.data_dir)
    words = ["jaxreid", "make-sidecars", str(prepared), f"--kind={kind}", f"--backend={options.backend}", "--overwrite"]
    again = shlex.join(words)
    if estimator is None:
        made = joints.make_lifted(prepared, again, overwrite=options.overwrite)
    else:
        batch = max(1, options.batch)
        made = make_poses(prepared, estimator, again, kind=kind, overwrite=options.overwrite, batch=batch)
    taken = f"; {made.taken_over} tracklets were there from a run before" if made.taken_over else ""
    print(f"{made.tracklets} tracklets, {made.frames} frames, {made.undetected} of them without a person{taken}")
    print(sidecar_dir(prepared, kind))
    return 0
