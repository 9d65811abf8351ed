"""Builds a listed data set through Apache Beam: a file at a time, on any runner, taken up again where it stopped.

The process that starts the pipeline reads the lists and writes a plan per file, its tracklets by name, into a
directory beside the data set. A worker needs that directory and the raw data, both under the same paths as here: it
holds one tracklet's frames at a time, writes the file aside, gives it its name when it is whole, and reports what it
found. A later run keeps the files whose plan is still the same and whose frames were all whole, and takes the rest
up again. The records are those of a build without Beam.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pickle
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, writer

from jaxreid.data import schema
from jaxreid.data.building.listed import ExcludedFrames, Listing, Tracklet
from jaxreid.data.building.recorder import Recorder, shards_of
from jaxreid.data.building.sixteen_bit import SixteenBit
from jaxreid.data.prepared import unfinished_directory
from jaxreid.errors import DataSetError
from jaxreid.files import write_text, written_aside

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What goes into one file."""

    split: str
    tracklets: list[Tracklet]
    unusable: dict[str, str]  # frames that are known to be, with their faults
    recorder: Recorder
    file_format: str

    @property
    def digest(self) -> str:
        """The same for two plans of the same records."""
        recorder = self.recorder
        parts = (self.split, self.tracklets, self.unusable, recorder.source, recorder.labels, recorder.description)
        return hashlib.sha256(repr((*parts, recorder.sixteen_bit, self.file_format)).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Shard:
    """The files of one shard in the directory of the unfinished set, by their common stem."""

    stem: Path

    @property
    def plan(self) -> Path:
        return self.stem.with_suffix(".plan")

    @property
    def records(self) -> Path:
        return self.stem.with_suffix(".records")

    @property
    def report(self) -> Path:
        return self.stem.with_suffix(".json")

    def is_whole(self, plan: _Plan) -> bool:
        """Whether it was written as planned, from frames that were all whole; others may have been repaired."""
        try:
            found = json.loads(self.report.read_text(encoding="utf-8"))
            size = self.records.stat().st_size
        except (OSError, ValueError):
            return False
        return (found["plan"], found["bytes"], found["faults"]) == (plan.digest, size, [])


def pipeline_options(builder: Any, flags: Sequence[str]) -> Any:
    """Beam's options from words like `runner=DirectRunner`, with or without leading dashes.

    Raises:
      DataSetError: the data set is not one that Beam can build, or Apache Beam is not installed.
    """
    if not getattr(builder, "lists_tracklets", False):
        raise DataSetError(f"{builder.name}: is not built through Apache Beam; leave --beam out")
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise DataSetError(
            f"Apache Beam cannot be imported ({error}); install it with pip install 'jaxreid[beam]', or build without "
            "--beam: the records are the same"
        ) from error
    return PipelineOptions([f"--{flag.removeprefix('--')}" for flag in flags])


def write(
    builder: tfds.core.DatasetBuilder,
    recorder: Recorder,
    listing: Listing,
    excluded: ExcludedFrames,
    deep: SixteenBit,
    options: Any,
) -> None:
    """Writes every split of a listing into `builder.data_dir` and notes them in `builder.info`.

    Args:
      builder: the data set's, a `ListedBuilder`.
      recorder: makes its records.
      listing: its tracklets.
      excluded: frames that cannot be used; those that the workers find are added.
      deep: takes account of frames of 16 bits.
      options: Beam's `PipelineOptions`.

    Raises:
      DataSetError: the pipeline failed; too many frames cannot be used, or all of a tracklet of the published set.
        Whole files stay for the next run.
    """
    directory = unfinished_directory(Path(builder.data_dir).with_name(str(builder.version)))
    directory.mkdir(exist_ok=True)
    file_format = (builder.info.file_format or tfds.core.FileFormat.ARRAY_RECORD).value
    # A worker leaves a lost tracklet out; whether that is allowed is decided here, when all are known.
    lenient = dataclasses.replace(recorder, strict=False)
    present = {
        split: [tracklet for tracklet in members if recorder.keeps_frames(tracklet, excluded)]
        for split, members in listing.splits.items()
    }
    shards: dict[str, list[_Shard]] = {split: [] for split in present}
    pending = []
    for split, members in present.items():
        for number, tracklets in enumerate(shards_of(members)):
            shard = _Shard(directory / f"{split}-{number:05d}")
            shards[split].append(shard)
            unusable = {p: excluded.faults[p] for t in tracklets for p in t.paths if p in excluded.faults}
            plan = _Plan(split, tracklets, unusable, lenient, file_format)
            if not shard.is_whole(plan):
                shard.report.unlink(missing_ok=True)
                shard.plan.write_bytes(pickle.dumps((plan.digest, plan)))
                pending.append(shard)
    total = sum(map(len, shards.values()))
    if len(pending) < total:
        _LOG.warning("%s: %d of %d files are there already", builder.name, total - len(pending), total)
    if pending:
        _run(builder.name, pending, options)
    reports = {
        split: [json.loads(shard.report.read_text(encoding="utf-8")) for shard in members]
        for split, members in shards.items()
    }
    excluded.add((path, fault) for found in reports.values() for report in found for path, fault in report["faults"])
    for report in itertools.chain.from_iterable(reports.values()):
        deep.add(SixteenBit(**report["sixteen_bit"]))
    for members in present.values():
        for tracklet in members:
            recorder.keeps_frames(tracklet, excluded)
    infos = [_move(builder, split, members, reports[split]) for split, members in shards.items()]
    builder.info.set_splits(tfds.core.SplitDict(infos))
    shutil.rmtree(directory)


def write_shard(stem: str) -> None:
    """Writes one planned file and its report; what a worker runs."""
    shard = _Shard(Path(stem))
    digest, plan = pickle.loads(shard.plan.read_bytes())
    paths = sum(len(tracklet.frames) for tracklet in plan.tracklets)
    excluded = ExcludedFrames(plan.recorder.name, plan.recorder.source, paths, limit=1.0)
    excluded.add(plan.unusable.items())
    deep = SixteenBit()
    count = 0

    def serialized() -> Iterator[tuple[int, bytes]]:
        nonlocal count
        features = schema.features()
        serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
        for key, record in plan.recorder.records(plan.split, plan.tracklets, excluded, deep):
            yield key, serializer.serialize_example(features.encode_example(record))
            count += 1

    with written_aside(shard.records) as aside:  # a runner may give one shard to two workers
        writer.ExampleWriter(tfds.core.FileFormat(plan.file_format)).write(aside, serialized())
        size = aside.stat().st_size
    found = [(path, fault) for path, fault in excluded.faults.items() if path not in plan.unusable]
    report = {"plan": digest, "records": count, "bytes": size, "faults": found}
    write_text(shard.report, json.dumps({**report, "sixteen_bit": dataclasses.asdict(deep)}))


def _run(name: str, shards: list[_Shard], options: Any) -> None:
    import apache_beam as beam

    finished = threading.Event()
    threading.Thread(target=_show_progress, args=(shards, finished), daemon=True).start()
    try:
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "files to write" >> beam.Create([str(shard.stem) for shard in shards], reshuffle=False)
                | "to all workers" >> beam.Reshuffle()
                | "write" >> beam.Map(write_shard)
            )
    except Exception as error:
        raise DataSetError(
            f"{name}: the pipeline stopped: {error}\n"
            f"The files that are whole are kept in {shards[0].stem.parent}: run again"
        ) from error
    finally:
        finished.set()


def _show_progress(shards: list[_Shard], finished: threading.Event) -> None:
    """Runners tell little of how far they are; the reports do."""
    from tqdm import tqdm

    with tqdm(total=len(shards), desc="written", unit=" files", leave=False) as bar:
        while not finished.wait(1):
            bar.update(sum(shard.report.exists() for shard in shards) - bar.n)


def _move(builder: Any, split: str, shards: list[_Shard], reports: list[dict[str, Any]]) -> tfds.core.SplitInfo:
    """Gives the files of a split their final names."""
    template = builder._get_filename_template(split_name=split)
    for number, shard in enumerate(shards):
        os.replace(shard.records, template.sharded_filepath(shard_index=number, num_shards=len(shards)))
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[report["records"] for report in reports],
        num_bytes=sum(report["bytes"] for report in reports),
        filename_template=template,
    )
