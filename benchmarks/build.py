"""How fast is a data set built, directly and through Apache Beam?

    python benchmarks/build.py [--config large] [--tracklets N] [--size 256x128] [--data_dir DIR] [--beam_options …]…

Builds `walkers`, which draws its pictures, then writes the pictures as a tree in the layout of MARS and builds that
tree as `jaxreid build mars` does: directly, and through Apache Beam (where it is installed) once for
each `--beam_options`. Prints one JSON line for each build; those through Beam are compared with the direct one, record
by record. Seconds are those of `build` itself, without the start of Python; files are in the page cache. `--tracklets`
writes the first of each split only, `--size` enlarges the pictures (walkers' are 64x32, MARS's 256x128). A `walkers`
that is in `--data_dir` already is not drawn again.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from scipy.io import savemat

from jaxreid.data.build import build
from jaxreid.data.prepared import read_metadata, split_counts
from jaxreid.files import expand

DIRECT_RUNNER = (
    "runner=DirectRunner",
    "runner=DirectRunner,direct_running_mode=multi_processing,direct_num_workers=2",
)


def records(prepared: Path, split: str) -> Iterator[dict[str, Any]]:
    source = tfds.builder_from_directory(str(prepared)).as_data_source(split)  # pyright: ignore[reportCallIssue]
    return (source[row] for row in range(len(source)))  # pyright: ignore[reportArgumentType, reportIndexIssue]


def enlarged(frame: bytes, size: tuple[int, int] | None) -> bytes:
    if size is None:
        return frame
    picture = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".jpg", cv2.resize(picture, size[::-1]))[1].tobytes()


def export_as_mars(prepared: Path, root: Path, tracklets: int | None, size: tuple[int, int] | None) -> None:
    """Writes the tracklets of `train`, `query` and `gallery` with MARS's names, tables and folders below `root`."""
    (root / "info").mkdir(parents=True)
    seen: dict[tuple[int, int], int] = {}
    for part, splits in {"train": ("train",), "test": ("query", "gallery")}.items():
        names, rows, queries = [], [], 0
        for split in splits:
            for record in itertools.islice(records(prepared, split), tracklets):
                pid, camera = record["pid"] + 1, record["camid"]  # identity 0 would be a distractor
                seen[pid, camera] = seen.get((pid, camera), 0) + 1
                stem = f"{pid:04d}C{camera}T{seen[pid, camera]:04d}"
                rows.append([len(names) + 1, len(names) + len(record["frames"]), pid, camera])
                folder = root / f"bbox_{part}" / f"{pid:04d}"
                folder.mkdir(parents=True, exist_ok=True)
                for position, frame in enumerate(record["frames"], start=1):
                    names.append(f"{stem}F{position:03d}.jpg")
                    (folder / names[-1]).write_bytes(enlarged(frame, size))
                queries += split == "query"
        (root / "info" / f"{part}_name.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        savemat(root / "info" / f"tracks_{part}_info.mat", {f"track_{part}_info": np.array(rows, np.int32)})
    savemat(root / "info" / "query_IDX.mat", {"query_IDX": np.arange(1, queries + 1)[None]})


def timed_build(name: str, how: str, data_dir: Path, **arguments: Any) -> tuple[Path, dict[str, Any]]:
    """The prepared directory, and what the build took."""
    start = time.perf_counter()
    prepared = build(name, data_dir=data_dir, **arguments)
    seconds = time.perf_counter() - start
    frames = sum(counts["frames"] for counts in read_metadata(prepared)["counts"].values())
    megabytes = sum(path.stat().st_size for path in prepared.glob("*array_record*")) / 1e6
    return prepared, {
        "set": name,
        "build": how,
        "tracklets": sum(split_counts(prepared).values()),
        "frames": frames,
        "megabytes": round(megabytes, 1),
        "seconds": round(seconds, 1),
        "frames_per_second": round(frames / seconds),
    }


def same_records(one: Path, other: Path) -> bool:
    """Whether two prepared sets hold the same records in the same order."""
    if split_counts(one) != split_counts(other):
        return False
    for split in split_counts(one):
        for left, right in zip(records(one, split), records(other, split), strict=True):
            try:
                np.testing.assert_equal(left, right)
            except AssertionError:
                return False
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="large", help="of walkers")
    parser.add_argument("--tracklets", type=int, help="of each split that are written as MARS (default all)")
    parser.add_argument("--size", help="height x width of the pictures written as MARS (default as drawn)")
    parser.add_argument("--beam_options", action="append", metavar="NAME=VALUE,…", help="of one build (repeatable)")
    parser.add_argument("--data_dir", type=expand, help="where walkers is built or found (default a temporary one)")
    parsed = parser.parse_args(arguments)
    height_width = parsed.size.split("x") if parsed.size else None
    size = (int(height_width[0]), int(height_width[1])) if height_width else None
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        data_dir = Path(parsed.data_dir or root / "drawn")
        drawn_before = (data_dir / "walkers" / parsed.config).exists()
        drawn, figures = timed_build(f"walkers/{parsed.config}", "drawn", data_dir)
        if not drawn_before:
            print(json.dumps({**figures, "cores": os.cpu_count()}), flush=True)
        export_as_mars(drawn, root / "mars", parsed.tracklets, size)
        common: dict[str, Any] = {"source": root / "mars", "strict_counts": False}
        build("mars", data_dir=root / "warm", **common)  # reads every file once, imports what a build needs
        direct, figures = timed_build("mars", "direct", root / "direct", **common)
        print(json.dumps({**figures, "size": parsed.size}), flush=True)
        if importlib.util.find_spec("apache_beam") is None:
            print("Apache Beam is not installed: pip install 'jaxreid[beam]'", file=sys.stderr)
            return
        import apache_beam

        for number, options in enumerate(parsed.beam_options or DIRECT_RUNNER):
            flags = [word for word in options.split(",") if word]
            beamed, figures = timed_build("mars", "beam", root / f"beam{number}", beam=flags, **common)
            facts = {"size": parsed.size, "beam": apache_beam.__version__, "beam_options": options}
            print(json.dumps({**figures, **facts, "same_records": same_records(direct, beamed)}), flush=True)


if __name__ == "__main__":
    main()
