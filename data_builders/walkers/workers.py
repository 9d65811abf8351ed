"""Tracklets drawn by several processes, in their order.

Each worker is a plain child that draws every n-th tracklet and writes it to its output, where the pipe makes it wait
for its reader. (`multiprocessing` would import the caller's main module again in every child, which a script or a
notebook may not expect.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from .render import DrawnTracklet
from .world import TrackletSpec, World, WorldConfig

JPEG_QUALITY = 92
MOST_WORKERS = 8
FEWEST_TRACKLETS = 200  # for fewer, starting the workers takes longer than drawing

Drawn = tuple[list[bytes], DrawnTracklet]  # JPEG frames, and the tracklet without them


def draw(world: World, spec: TrackletSpec) -> Drawn:
    """A tracklet's encoded frames, and what the rig knows of it (without the pixels)."""
    drawn = world.draw(spec)
    annotations = dataclasses.replace(drawn, frames=drawn.frames[:0], materials=drawn.materials[:0])
    return [_encode(frame) for frame in drawn.frames], annotations


def draw_all(config: WorldConfig, specs: Sequence[TrackletSpec]) -> Iterator[tuple[TrackletSpec, Drawn]]:
    """Every tracklet as specified and drawn, in the order of `specs`; the same whatever the number of processes.

    Raises:
      RuntimeError: a worker stopped; what it had to say is on stderr.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(available, MOST_WORKERS)
    if count == 1 or len(specs) < FEWEST_TRACKLETS:
        world = World(config)
        yield from ((spec, draw(world, spec)) for spec in specs)
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with contextlib.ExitStack() as stack:
        workers = []
        for first in range(count):
            child: Any = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
                )
            )
            stack.callback(child.kill)  # a reader that stops early leaves nobody drawing
            pickle.dump((config, specs[first::count]), child.stdin)
            child.stdin.close()
            workers.append(child)
        for number, spec in enumerate(specs):
            try:
                drawn = pickle.load(workers[number % count].stdout)
            except EOFError:
                raise RuntimeError(f"walkers: the process that draws {spec.tracklet_id} stopped") from None
            yield spec, drawn


def _serve() -> None:
    output = sys.stdout.buffer
    config, specs = pickle.load(sys.stdin.buffer)
    world = World(config)
    with contextlib.suppress(BrokenPipeError):  # nobody reads any more
        for spec in specs:
            pickle.dump(draw(world, spec), output, protocol=pickle.HIGHEST_PROTOCOL)
        output.flush()


def _encode(frame: np.ndarray) -> bytes:
    """JPEG bytes of u8[H, W, 3] RGB."""
    done, encoded = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise RuntimeError(f"OpenCV cannot encode a frame of shape {frame.shape}")
    return encoded.tobytes()


if __name__ == "__main__":
    _serve()
