"""From a clip plan to uint8 batches: grain reads, decodes only the planned frames, and assembles them.

The order is the plan's, whatever the number of threads, worker processes or hosts; process h of n delivers rows
[h·B/n, (h+1)·B/n) of every global batch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from jaxreid.data.batch import Batch
from jaxreid.data.clips import ClipPlan
from jaxreid.data.extras import ExtraReader, empty_extras, of_clip
from jaxreid.data.split import UNKNOWN, FrameReader, Split
from jaxreid.errors import UserError

ELEMENTS_PER_BATCH = 8
RESIZING = ("stretch", "pad")
INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """How frames are read: output size in pixels, threads or worker processes, caching of bytes.

    `resize`: "stretch" a picture to the size, or "pad" it with black to the size's aspect first, the picture in the
    middle. `interpolation` is that of training or, where `test_interpolation` is not empty, that alone.
    """

    height: int
    width: int
    interpolation: str = "bilinear"
    threads: int = 2
    workers: int = 0
    prefetch: int = 4
    cache: bool = False
    resize: str = "stretch"
    test_interpolation: str = ""

    def for_tests(self) -> LoaderOptions:
        """The options as test frames are read with."""
        return dataclasses.replace(self, interpolation=self.test_interpolation or self.interpolation)


def padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture u8[H, W, 3] with black beside or above and below it, so that H : W becomes height : width."""
    own_height, own_width = picture.shape[:2]
    more_height = max(0, round(own_width * height / width) - own_height)
    more_width = max(0, round(own_height * width / height) - own_width)
    top, left = more_height // 2, more_width // 2
    return np.pad(picture, ((top, more_height - top), (left, more_width - left), (0, 0)))


class _Clips:
    """Random access over the rows of a plan that this process delivers, a few clips at a time.

    grain looks at every element that is under way whenever it hands one out, so that single clips would cost more
    there than in decoding.
    """

    def __init__(
        self,
        reader: FrameReader,
        plan: ClipPlan,
        rows: np.ndarray,
        options: LoaderOptions,
        extras: ExtraReader | None = None,
        pictures: bool = True,
    ) -> None:
        self.reader, self.plan, self.rows, self.options = reader, plan, rows, options  # rows i64[elements, clips]
        self.extras, self.pictures = extras, pictures

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: Any) -> dict[str, Any]:
        _one_thread_each()
        rows, options = self.rows[int(position)], self.options
        size = (options.height, options.width) if self.pictures else (0, 0)
        frames = np.zeros((len(rows), self.plan.frames.shape[1], *size, 3), np.uint8)
        extras = empty_extras(self.extras.wanted if self.extras else {}, len(rows), frames.shape[1])
        for place, row in enumerate(rows):
            if self.plan.tracklet[row] >= 0:
                planned = np.flatnonzero(self.plan.mask[row])
                for name, values in self._read(frames[place], row).items():
                    extras[name][place, slice(None) if of_clip(name) else planned] = values
        return {"row": rows, "frames": frames, "extras": extras}

    def _read(self, clip: np.ndarray, row: int) -> dict[str, np.ndarray]:
        """Fills in the frames of a clip; returns the extras of those that count."""
        options, planned = self.options, np.flatnonzero(self.plan.mask[row])
        tracklet, numbers = int(self.plan.tracklet[row]), self.plan.frames[row, planned].tolist()
        extras = self.extras.read(tracklet, numbers) if self.extras else {}
        of_pictures = self.extras is not None and self.extras.needs_pictures
        if not (self.pictures or of_pictures) or (self.extras and self.extras.split.skeletons):
            return extras
        for place, stored in enumerate(self.reader.decode_each(tracklet, numbers)):
            image = padded(stored, options.height, options.width) if options.resize == "pad" else stored
            if self.extras:
                self.extras.of_picture(extras, place, stored, image)
            if not self.pictures:
                continue
            frame = clip[planned[place]]
            if image.shape == frame.shape:
                frame[:] = image
            else:
                size, rule = (options.width, options.height), INTERPOLATION[options.interpolation]
                cv2.resize(image, size, dst=frame, interpolation=rule)
        return extras


class _Assemble:
    """Rows of a plan → Batch. Labels are left out unless the method uses them."""

    def __init__(self, split: Split, plan: ClipPlan, uses_identity: bool) -> None:
        self.table, self.plan = split.table, plan
        self.labels = split.labels if uses_identity else None

    def __call__(self, elements: Sequence[dict[str, Any]]) -> Batch:
        row = np.concatenate([element["row"] for element in elements])
        tracklet = self.plan.tracklet[row]
        valid = tracklet >= 0
        table, labels = self.table, self.labels

        def column(values: np.ndarray | None) -> np.ndarray:
            if values is None:
                return np.full(len(row), UNKNOWN, np.int32)
            return np.where(valid, values[np.maximum(tracklet, 0)], UNKNOWN).astype(np.int32)

        geometry = np.where(valid[:, None], table.geometry[np.maximum(tracklet, 0)], np.nan)
        return Batch(
            frames=np.concatenate([element["frames"] for element in elements]),
            frame_mask=self.plan.mask[row] & valid[:, None],
            tracklet=tracklet.astype(np.int32),
            part=self.plan.part[row].astype(np.int32),
            camera=column(table.camera),
            camera_index=column(table.camera_index),
            modality=column(table.modality),
            platform=column(table.platform),
            session=column(table.session),
            geometry=geometry.astype(np.float32),
            valid=valid,
            identity=column(labels and labels.identity),
            pair=column(labels and labels.pair),
            clothes=column(labels and labels.clothes),
            extras={
                name: np.concatenate([element["extras"][name] for element in elements])
                for name in elements[0]["extras"]
            },
        )


def batches(
    split: Split,
    plan: ClipPlan,
    batch_size: int,
    options: LoaderOptions,
    *,
    uses_identity: bool,
    reader: FrameReader | None = None,
    extras: ExtraReader | None = None,
    pictures: bool = True,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Batches of `batch_size` clips (over all processes) in the plan's order; the last one is filled with padding.

    Args:
      split: where the frames come from.
      plan: which clips.
      batch_size: rows of the global batch; a multiple of `process_count`.
      options: frame size, interpolation, parallelism.
      uses_identity: whether identity, pair and clothes are filled in.
      reader: an open reader of the split, to keep its cache from one pass to the next.
      extras: what else a batch holds of every frame.
      pictures: whether frames are read; else they are 0 × 0, and none is decoded that no extra is made of.
      process_index, process_count: which share of every batch this process delivers.

    Raises:
      UserError: a frame cannot be decoded, or the batch does not divide over the processes.
    """
    import grain

    _parse_flags_for_grain()
    if batch_size % process_count:
        raise UserError(f"a batch of {batch_size} clips does not divide over {process_count} processes")
    plan = plan.padded(batch_size)
    share = batch_size // process_count
    assemble = _Assemble(split, plan, uses_identity)
    if not plan.frames.shape[1]:  # clips of no frames: there is nothing to read
        frames = np.zeros((share, 0, options.height, options.width, 3), np.uint8)
        for row in np.arange(len(plan)).reshape(-1, process_count, share)[:, process_index]:
            yield assemble([{"row": row, "frames": frames, "extras": {}}])
        return
    elements = math.gcd(share, ELEMENTS_PER_BATCH)
    rows = np.arange(len(plan)).reshape(-1, process_count, share)[:, process_index].reshape(-1, share // elements)
    clips = _Clips(reader or split.reader(cache=options.cache), plan, rows, options, extras, pictures)
    threads = 0 if options.workers else options.threads
    under_way = options.prefetch * elements if threads else 0
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=under_way)
    dataset = (
        grain.MapDataset.source(clips)  # pyright: ignore[reportArgumentType]
        .to_iter_dataset(read)
        .batch(elements, batch_fn=assemble)
    )
    if options.workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=options.workers))
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        if hasattr(iterator, "close"):
            iterator.close()  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def _one_thread_each() -> None:
    """OpenCV uses no threads of its own in this process: grain's threads and workers are the parallelism."""
    cv2.setNumThreads(0)


def _parse_flags_for_grain() -> None:
    """grain reads absl flags; outside of `absl.app.run` (tests, notebooks) nobody has parsed them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
