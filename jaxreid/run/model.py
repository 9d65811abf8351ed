"""One run: its config, devices, data and method."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxreid.augment import Pixels
from jaxreid.backbones.frame_encoder import PRECISIONS
from jaxreid.backbones.text import text_tokenizer
from jaxreid.config import flatten
from jaxreid.data.batch import Batch
from jaxreid.data.dataset import Dataset, foreseen_dataset, open_dataset
from jaxreid.data.extras import ExtraReader, empty_extras, of_clip
from jaxreid.data.loader import LoaderOptions
from jaxreid.data.repeats import distinct
from jaxreid.data.sidecars import Sidecar
from jaxreid.data.split import FrameReader, Split
from jaxreid.dataset_info import DatasetInfo, dataset_info, read_info
from jaxreid.devices import parallel, processes
from jaxreid.errors import DataSetError, UserError
from jaxreid.methods.method import Method, Phase, find_method
from jaxreid.run.config_values import check_config
from jaxreid.run.workdirs import read_config
from jaxreid.values import unset


@dataclasses.dataclass(kw_only=True)
class Model:
    """A method with its config and devices: all that it takes to compute with the parameters of a workdir."""

    config: Any
    workdir: Path
    mesh: Mesh
    method: Method
    pixels: Pixels
    loading: LoaderOptions


@dataclasses.dataclass(kw_only=True)
class Run(Model):
    """What every part of a run needs. `phases` collects seconds by phase, `readers` the open splits."""

    dataset: Dataset
    phases: defaultdict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    compiled: dict[str, Any] = dataclasses.field(default_factory=dict)
    readers: dict[str, FrameReader] = dataclasses.field(default_factory=dict)
    extra_readers: dict[tuple[str, Phase], ExtraReader | None] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to a phase; compiling inside is booked as compiling."""
        start, compiling = time.perf_counter(), self._compile_seconds()
        try:
            yield
        finally:
            compiled = self._compile_seconds() - compiling
            self.phases[name] += time.perf_counter() - start - compiled
            self.phases["compiling"] += compiled

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Books the time spent inside as compiling; not to be nested with `phase`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases["compiling"] += time.perf_counter() - start

    def _compile_seconds(self) -> float:
        return sum(step.seconds for step in self.compiled.values())

    def reader(self, split: Split) -> FrameReader:
        if split.name not in self.readers:
            self.readers[split.name] = split.reader(cache=self.loading.cache)
        return self.readers[split.name]

    @functools.cached_property
    def distinct(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of every test split (a number for each of its tracklets, rows of those that are in no split before it): what
        is in several is embedded once."""
        splits = self.dataset.test_splits
        return distinct(splits, [self.reader(split) for split in splits])

    def extras(self, split: Split, phase: Phase) -> ExtraReader | None:
        """What reads the extras that the method asks for in a phase, None where it asks for none."""
        key = split.name, phase
        if key not in self.extra_readers:
            wanted = self.method.extras(phase)
            tokenize = self.method.info.tokenize
            self.extra_readers[key] = ExtraReader(split, self.reader(split), wanted, tokenize) if wanted else None
        return self.extra_readers[key]

    def sidecars(self, train: bool) -> dict[str, str]:
        """The sidecars that tests and, with `train`, training read: kind → who made it, and a digest of it."""
        readers = [self.extras(split, "test") for split in self.dataset.test_splits]
        readers += [self.extras(self.dataset.train, phase) for phase in ("train", "extract")] if train else []
        opened = [sidecar for reader in readers if reader for sidecar in reader.sidecars.values()]
        if train and self.method.reads_captions(self.config):
            opened.append(Sidecar.open(self.dataset.directory, "captions"))
        # Phases and splits open the same ones: each is read through once for its digest.
        return {kind: sidecar.source for kind, sidecar in {sidecar.kind: sidecar for sidecar in opened}.items()}

    @property
    def is_main(self) -> bool:
        return jax.process_index() == 0


def make_model(config: Any, workdir: Path, mesh: Mesh, info: DatasetInfo, *, dry: bool = False) -> Model:
    """The method of a config, for the data set that `info` describes; of a dry run only the shapes are right.

    Raises:
      UserError: a config value that does not fit the data or the library.
    """
    tokenize = text_tokenizer(config.backbone.name, config.backbone.checkpoint, counting=dry)
    info = dataclasses.replace(info, tokenize=tokenize)
    return Model(
        config=config,
        workdir=Path(workdir),
        mesh=mesh,
        method=find_method(config.method)(config, info),
        pixels=Pixels(
            tuple(config.frames.mean),
            tuple(config.frames.std),
            PRECISIONS[config.precision],
            (config.frames.height, config.frames.width),
        ),
        loading=LoaderOptions(config.frames.height, config.frames.width, **config.loading),
    )


def _info_of(dataset: Dataset, config: Any) -> DatasetInfo:
    """What the method of a config is told of a data set."""
    method, size = find_method(config.method), (config.frames.height, config.frames.width)
    return dataset_info(dataset, method, size, captions=method.reads_captions(config))


def open_model(workdir: Path, data_dir: Path | None = None) -> Model:
    """The model of the run in a workdir, on all devices: what was learnt does not depend on the mesh of its training.

    The data set is needed only where the workdir does not hold its `DatasetInfo`.

    Raises:
      UserError: there is no run, or another version of the library made it, whose config had other keys.
    """
    config: Any = ConfigDict(read_config(workdir))
    if lacking := list(unset(dict(flatten(config.to_dict())), find_method(config.method).values)):
        raise UserError(
            f"{workdir} was made by another version of the library, whose {config.method} had no such keys: "
            f"{'; '.join(lacking)}. Open it with that version, or train it again"
        )
    info = read_info(workdir) or _info_of(open_dataset(config.dataset, data_dir), config)
    return make_model(config, workdir, parallel.make_mesh(), info)


def _everywhere(here: bool) -> bool:
    return all(processes.gather(here))


def start_run(config: Any, workdir: Path, data_dir: Path | None, *, dry: bool = False, train: bool = True) -> Run:
    """Opens (or builds) the data set, lays out the devices and makes the method.

    A dry run builds no data set: see `foreseen_dataset`. Without `train` the method knows of its training set what the
    workdir says, so that nothing is needed that only training reads.

    Raises:
      UserError: a config value that does not fit the devices, the data or the library.
    """
    check_config(config)
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        if dry:
            with processes.together():
                dataset = stack.enter_context(foreseen_dataset(config.dataset, data_dir, _everywhere))
        else:
            with processes.main_first(DataSetError):
                dataset = open_dataset(config.dataset, data_dir)
        opened = time.perf_counter() - start
        processes.same("data set", dataset.fingerprint())
        mesh = parallel.make_mesh(config.mesh.fsdp, config.mesh.devices)
        with processes.together():
            kept = None if train or dry else read_info(Path(workdir))
            info = kept or _info_of(dataset, config)
            model = make_model(config, workdir, mesh, info, dry=dry)  # reads a vocabulary where the method needs one
    run = Run(**vars(model), dataset=dataset)
    batches = {"config.extraction_batch_size": config.extraction_batch_size}
    if config.evaluation.get("rescore_size"):
        batches["config.evaluation.rescore_block"] = config.evaluation.rescore_block
    batches |= {f"stage {s.name!r} (config.batch)": s.sampler.batch_size(info.columns) for s in run.method.stages()}
    for name, size in batches.items():
        if size % mesh.size:
            raise UserError(f"{name}: a batch of {size} does not divide over {mesh.size} devices")
    run.phases["data set"] = opened
    return run


def example_batch(run: Model, phase: Phase = "train") -> Batch:
    """Zeros of the shape that the network sees (two clips are enough to make parameters)."""
    height, width = run.config.frames.height, run.config.frames.width
    clips, frames = 2, max(stage.seq_len for stage in run.method.stages())
    number = np.zeros(clips, np.int32)
    columns: dict[str, Any] = dict.fromkeys((f.name for f in dataclasses.fields(Batch) if f.name != "extras"), number)
    columns |= {
        "frames": np.zeros((clips, frames, height, width, 3), run.pixels.dtype),
        "frame_mask": np.ones((clips, frames), bool),
        "geometry": np.zeros((clips, 3), np.float32),
        "valid": np.ones(clips, bool),
    }
    return Batch(**columns, extras=empty_extras(run.method.extras(phase), clips, frames))


def abstract_batch(run: Model, clips: int, frames: int, phase: Phase, pictures: bool = True) -> Batch:
    """Shapes, types and placement of a batch as the loader delivers it in a phase."""

    def row(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((clips, *leaf.shape[1:]), leaf.dtype, sharding=parallel.rows(run.mesh))

    batch = jax.tree.map(row, jax.eval_shape(lambda: example_batch(run, phase)))

    def of_frames(leaf: Any, dtype: Any = None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((clips, frames, *leaf.shape[2:]), dtype or leaf.dtype, sharding=leaf.sharding)

    # Clips of no frames have none.
    extras = {name: x if of_clip(name) else of_frames(x) for name, x in batch.extras.items() if frames}
    pictures = pictures and run.method.sees_pictures
    seen = batch.frames if pictures else jax.eval_shape(lambda x: x[:, :, :0, :0], batch.frames)
    seen = jax.ShapeDtypeStruct(seen.shape, seen.dtype, sharding=batch.frames.sharding)
    return batch.replace(frames=of_frames(seen, jnp.uint8), frame_mask=of_frames(batch.frame_mask), extras=extras)
