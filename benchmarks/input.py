"""Pictures read, decoded and resized: jaxreid's loader beside a PyTorch DataLoader, as JSON lines.

    python benchmarks/input.py [--sources 256x128 512x256] [--size 256x128] [--workers 2] [--clips 1600] [--frames 8]
                               [--consumer 4000] [--cores 16]

Tracklets of 100 drawn JPEG pictures; clips of `--frames` frames from all over a tracklet, in random order.

    decoder    one thread decodes and resizes pictures in memory, with every decoder that is installed
    jaxreid    the loader over a built data set: threads in the process, or worker processes
    torch      a DataLoader of worker processes over the files: PIL decodes and resizes, then float32 in 0…1, channels
               first, normalized, as torchreid's transforms do (jaxreid delivers bytes and normalizes on the device)

`frames_per_second_per_core` divides by the processor seconds that all processes spent, not by the number of workers, so
that other load on the machine matters less. `worker_mb` is the largest worker's own memory (private, in MiB). With
`--consumer`, the frames per second that training takes, `cores_needed` says how many cores feed it, of `--cores`.
Needs the extra parity for its peer. Files are in the page cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from reading import draw_pictures, write_tree

from jaxreid.data import build, clips, loader, split

LENGTH, CAMERAS = 100, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def processes() -> tuple[float, float]:
    """(processor seconds of this process and its living children, private MiB of the largest child)."""
    seconds, largest = time.process_time(), 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # After the name in brackets: state, parent, …, user and system ticks at places 11 and 12.
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                private = re.findall(r"Private_\w+:\s+(\d+)", (folder / "smaps_rollup").read_text(encoding="utf-8"))
                largest = max(largest, sum(map(int, private)) / 2**10)
        except OSError:  # it has ended
            continue
    return seconds, largest


def measure(batches: Iterable, frames_of_batch: int) -> dict[str, float]:
    """From the first batch, when all workers run, to the last."""
    start, processor, memory, count = 0.0, 0.0, 0.0, 0
    for count, _ in enumerate(batches):
        spent, largest = processes()
        if count == 0:
            start, processor = time.perf_counter(), spent
        memory = max(memory, largest)
        end = time.perf_counter()
    frames = count * frames_of_batch
    return {
        "frames_per_second": frames / (end - start),
        "frames_per_second_per_core": frames / (spent - processor),
        "worker_mb": memory,
    }


# ------------------------------------------------------------------------------------------------------ decoders


def decoders(height: int, width: int) -> dict[str, Callable[[bytes], np.ndarray]]:
    """Name → bytes of a JPEG file to u8[height, width, 3]; those that are installed."""
    from PIL import Image

    def with_cv2(content: bytes) -> np.ndarray:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
        return image if image.shape[:2] == (height, width) else cv2.resize(image, (width, height))

    def with_pillow(content: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

    found = {"cv2": with_cv2, "pillow": with_pillow}
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        def with_simplejpeg(content: bytes) -> np.ndarray:
            image = simplejpeg.decode_jpeg(content)
            return image if image.shape[:2] == (height, width) else cv2.resize(image, (width, height))

        found["simplejpeg"] = with_simplejpeg
    return found


# ------------------------------------------------------------------------------------------------------- loaders


def torch_batches(tree: Path, plan: clips.ClipPlan, size: tuple[int, int], batch: int, workers: int) -> Iterable:
    import torch
    from PIL import Image

    folders = sorted(folder for camera in sorted(tree.iterdir()) for folder in camera.iterdir())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    class Clips(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(plan)

        def __getitem__(self, row: int) -> torch.Tensor:
            folder, pictures = folders[plan.tracklet[row]], []
            for frame in plan.frames[row]:
                image = Image.open(folder / f"{frame:05d}.jpg").convert("RGB")
                image = image.resize(size[::-1], Image.Resampling.BILINEAR)
                tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
                pictures.append((tensor - mean) / std)
            return torch.stack(pictures)

    return torch.utils.data.DataLoader(Clips(), batch, num_workers=workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", default=["256x128", "512x256"], help="height x width of the files")
    parser.add_argument("--size", default="256x128", help="height x width that is delivered")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clips", type=int, default=1600)
    parser.add_argument("--frames", type=int, default=8, help="of a clip")
    parser.add_argument("--batch", type=int, default=32, help="clips of a batch")
    parser.add_argument("--consumer", type=float, default=0.0, help="frames per second that training takes")
    parser.add_argument("--cores", type=int, default=16, help="of the machine that trains")
    args = parser.parse_args()
    height, width = map(int, args.size.split("x"))
    frames = args.clips * args.frames

    def show(source: str, contender: str, found: dict[str, float]) -> None:
        per_core = found["frames_per_second_per_core"]
        row = {"source": source, "size": args.size, "contender": contender, **found, "load": os.getloadavg()[0]}
        if args.consumer:
            row |= {"cores_needed": args.consumer / per_core, "cores": args.cores}
        print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}), flush=True)

    with tempfile.TemporaryDirectory() as root:
        for source in args.sources:
            files = draw_pictures(*map(int, source.split("x")))
            pictures = []
            for number, content in enumerate(files):
                pictures.append(Path(root, f"{source}-{number}.jpg"))
                pictures[-1].write_bytes(content)
            for name, decode in decoders(height, width).items():
                begin = time.process_time()
                for number in range(frames):
                    decode(files[number % len(files)])
                show(source, f"decoder {name}", {"frames_per_second_per_core": frames / (time.process_time() - begin)})

            tree = write_tree(Path(root, f"tree{source}"), pictures, 16, LENGTH)
            built = build.build("folder", data_dir=Path(root, f"built{source}"), source=tree)
            data = split.open_split(built, "train")
            order = np.random.default_rng(0).integers(0, len(data), args.clips)
            plan = clips.plan_tracklets(data.table.length, clip_sampling="chunk_first", seq_len=args.frames)
            plan = clips.ClipPlan(*(column[order] for column in (plan.tracklet, plan.part, plan.frames, plan.mask)))
            for kind in ("threads", "workers"):
                options = loader.LoaderOptions(height, width, **{kind: args.workers})
                ours = loader.batches(data, plan, args.batch, options, uses_identity=False)
                show(source, f"jaxreid, {args.workers} {kind}", measure(ours, args.batch * args.frames))
            if importlib.util.find_spec("torch"):
                theirs = torch_batches(tree, plan, (height, width), args.batch, args.workers)
                show(source, f"torch, {args.workers} workers", measure(theirs, args.batch * args.frames))


if __name__ == "__main__":
    main()
