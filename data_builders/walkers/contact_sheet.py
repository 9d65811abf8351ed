"""A picture of what a world looks like: persons in rows, cameras in columns.

python -m data_builders.walkers.contact_sheet docs/walkers_contact_sheet.png [--config vvi] [--frame 6]
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np

from jaxreid.errors import command

from .world import CONFIGS, World


def contact_sheet(config: str, persons: int, zoom: int, frames: tuple[int, ...] = (0, 4)) -> np.ndarray:
    """u8[h, w, 3] RGB: `frames` of the first tracklet of each person in each camera (dark where not seen)."""
    world = World(CONFIGS[config])
    height, width = world.config.height * zoom, world.config.width * zoom
    gap, head = 4, 18
    pids = list(world.pids("test"))[:persons]
    block = len(frames) * width + gap
    sheet = np.full((head + persons * (height + gap), len(world.cameras) * (block + gap), 3), 24, np.uint8)
    for spec in world.specs("test"):
        if spec.pid in pids and spec.tracklet_id.endswith("T01"):
            drawn = world.draw(spec).frames
            y = head + pids.index(spec.pid) * (height + gap)
            for column, frame in enumerate(frames):
                x = (spec.camera - 1) * (block + gap) + column * width
                crop = cv2.resize(drawn[min(frame, len(drawn) - 1)], (width, height), interpolation=cv2.INTER_NEAREST)
                sheet[y : y + height, x : x + width] = crop
    for camera in world.cameras:
        text = f"{camera.name}: {world.scenes[camera.number].place}"
        corner = ((camera.number - 1) * (block + gap) + 2, 13)
        cv2.putText(sheet, text, corner, 0, 0.42, (220, 220, 220), 1, cv2.LINE_AA)
    return sheet


@command()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path")
    parser.add_argument("--config", default="vvi", choices=sorted(CONFIGS))
    parser.add_argument("--persons", type=int, default=6)
    parser.add_argument("--zoom", type=int, default=3)
    arguments = parser.parse_args()
    sheet = contact_sheet(arguments.config, arguments.persons, arguments.zoom)
    if not cv2.imwrite(arguments.path, sheet[..., ::-1]):
        raise OSError(f"cannot write {arguments.path}: does its folder exist, and does the name end in .png?")


if __name__ == "__main__":
    main()
