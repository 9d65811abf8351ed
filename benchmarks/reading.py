"""What does it cost to read a few frames of a long tracklet?

    python benchmarks/reading.py [--lengths 10,100,1000] [--frames 8] [--tracklets 8] [--size 256x128] [--threads 2]

Builds data sets of drawn JPEG pictures through the `folder` builder, one for each tracklet length, and reads clips of
`--frames` frames, the first of equal chunks. Prints one JSON line for each length: size of a record; milliseconds to
fetch a record, to decode the clip's frames, to decode all frames (what a reader without skipping would do); pictures
decoded for a clip; and what the loader delivers with its threads, in clips and frames a second. Files are in the page
cache.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from jaxreid.data import build, clips, loader, split

PICTURES = 64


def draw_pictures(height: int, width: int) -> list[bytes]:
    """JPEG files of about the size that crops of people have: smooth areas, edges, some noise."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(PICTURES):
        coarse = rng.integers(0, 255, (height // 16, width // 16, 3), np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        picture = np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
        files.append(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    return files


def write_tree(root: Path, pictures: list[Path], tracklets: int, length: int) -> Path:
    """`root`/<camera>/<tracklet>/<frame>.jpg, hard links to a few files."""
    for tracklet in range(tracklets):
        folder = root / f"camera{tracklet % 2}" / f"t{tracklet:03d}"
        folder.mkdir(parents=True)
        for frame in range(length):
            os.link(pictures[(tracklet * 7 + frame) % PICTURES], folder / f"{frame:05d}.jpg")
    return root


def milliseconds(function, times: int) -> float:
    start = time.perf_counter()
    for i in range(times):
        function(i)
    return 1e3 * (time.perf_counter() - start) / times


class CountingReader(split.FrameReader):
    """Counts the pictures that are decoded."""

    decoded = 0

    def decode_each(self, row, indices):
        for image in super().decode_each(row, indices):
            self.decoded += 1
            yield image


def measure(data: split.Split, options: loader.LoaderOptions, frames: int, clips_read: int) -> dict[str, float]:
    tracklets, length = len(data), int(data.table.length[0])
    plan = clips.plan_tracklets(data.table.length, clip_sampling="chunk_first", seq_len=frames)
    record = data.reader(cache=False)
    record.encoded(0)  # opens the files
    known = data.reader(cache=True)
    for row in range(tracklets):
        known.encoded(row)

    counting = CountingReader(data.directory, data.name, data.record, data.labels.names, cache=False)
    rows = np.arange(clips_read) % tracklets
    plan = clips.ClipPlan(*(column[rows] for column in (plan.tracklet, plan.part, plan.frames, plan.mask)))

    def load() -> float:
        start = time.perf_counter()
        for _ in loader.batches(data, plan, tracklets, options, uses_identity=False, reader=counting):
            pass
        return time.perf_counter() - start

    load()  # imports grain
    counting.decoded = 0
    seconds = load()
    return {
        "record_megabytes": sum(map(len, record.encoded(0))) / 1e6,
        "fetch_ms": milliseconds(lambda i: record.encoded(i % tracklets), 2 * tracklets),
        "decode_clip_ms": milliseconds(
            lambda i: list(known.decode_each(i % tracklets, plan.frames[i % tracklets].tolist())), 4 * tracklets
        ),
        "decode_all_ms": milliseconds(lambda i: list(known.decode_each(i, range(length))), min(2, tracklets)),
        "decoded_per_clip": counting.decoded / clips_read,
        "clips_per_second": clips_read / seconds,
        "frames_per_second": clips_read * frames / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="10,100,1000", help="frames of a tracklet")
    parser.add_argument("--frames", type=int, default=8, help="of a clip")
    parser.add_argument("--tracklets", type=int, default=8)
    parser.add_argument("--size", default="256x128", help="height x width in pixels")
    parser.add_argument("--threads", type=int, default=2, help="of the loader")
    parser.add_argument("--clips", type=int, default=64, help="read through the loader")
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))
    options = loader.LoaderOptions(height, width, threads=arguments.threads)
    with tempfile.TemporaryDirectory() as root:
        pictures = []
        for number, content in enumerate(draw_pictures(height, width)):
            pictures.append(Path(root, f"{number}.jpg"))
            pictures[-1].write_bytes(content)
        for length in map(int, arguments.lengths.split(",")):
            tree = write_tree(Path(root, f"tree{length}"), pictures, arguments.tracklets, length)
            built = build.build("folder", data_dir=Path(root, "built"), source=tree)
            found = measure(split.open_split(built, "train"), options, arguments.frames, arguments.clips)
            rounded = {name: round(value, 2) for name, value in found.items()}
            print(json.dumps({"length": length, "frames": arguments.frames} | rounded))


if __name__ == "__main__":
    main()
