"""One run: its config, devices, data and method, and the promise that a workdir holds one run only."""

from __future__ import annotations

import contextlib
import dataclasses
import json
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

from jaxreid import parallel
from jaxreid.augment import UNCHANGED, Augmentation, Pixels
from jaxreid.backbones.frame_encoder import PRECISIONS
from jaxreid.backbones.text import text_tokenizer
from jaxreid.config import EXECUTION
from jaxreid.config_values import check_config
from jaxreid.data.batch import Batch
from jaxreid.data.build import DataSetError
from jaxreid.data.dataset import Dataset, open_dataset, plan_dataset
from jaxreid.data.loader import LoaderOptions
from jaxreid.data.planned import origin
from jaxreid.data.split import FrameReader, Split
from jaxreid.dataset_info import INFO, dataset_info, read_info, save_info
from jaxreid.errors import UserError
from jaxreid.extract import Extractor
from jaxreid.files import write_json
from jaxreid.methods.method import DatasetInfo, Method, find_method


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

    def extractor(
        self,
        name: str,
        function: Any,
        flip: bool = False,
        augmentation: Augmentation = UNCHANGED,
    ) -> Extractor:
        """An extractor whose compiled step is listed under `name`."""
        size, seed = self.config.extraction_batch, self.config.seed
        extractor = Extractor(function, self.pixels, self.mesh, size, flip, augmentation, seed)
        self.compiled[name] = extractor.step
        return extractor

    @property
    def is_main(self) -> bool:
        return jax.process_index() == 0


def make_model(config: Any, workdir: Path, mesh: Mesh, info: DatasetInfo, *, dry: bool = False) -> Model:
    """The method of a config, told what `info` says of its data set; of a dry run only the shapes are right.

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
        pixels=Pixels(tuple(config.frames.mean), tuple(config.frames.std), PRECISIONS[config.precision]),
        loading=LoaderOptions(config.frames.height, config.frames.width, **config.loading),
    )


def open_model(workdir: Path, data_dir: Path | None = None) -> Model:
    """The model of the run in a workdir, on all devices: what was learnt does not depend on the mesh of its training.

    The data set is needed only where the workdir does not hold what the method was told of it.

    Raises:
      UserError: there is no run.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} holds no run: {path} is missing")
    config: Any = ConfigDict(json.loads(path.read_text()))
    info = read_info(workdir) or dataset_info(
        open_dataset(config.dataset, data_dir),
        find_method(config.method),
        (config.frames.height, config.frames.width),
    )
    return make_model(config, workdir, parallel.make_mesh(), info)


def start_run(config: Any, workdir: Path, data_dir: Path | None, *, dry: bool = False) -> Run:
    """Opens (or builds) the data set, lays out the devices and makes the method.

    A dry run of a data set that is not there is planned on its published size.

    Raises:
      UserError: a config value that does not fit the devices, the data or the library.
    """
    check_config(config)
    start = time.perf_counter()
    try:
        with parallel.main_first("data set"):
            dataset = open_dataset(config.dataset, data_dir)
    except DataSetError as error:
        planned = plan_dataset(config.dataset) if dry else None
        if planned is None:
            raise
        dataset, size = planned, origin(config.dataset.name)
        print(f"planned on {size}, because the data set is not there: {str(error).splitlines()[0]}")
    opened = time.perf_counter() - start
    mesh = parallel.make_mesh(config.mesh.fsdp, config.mesh.devices)
    info = dataset_info(dataset, find_method(config.method), (config.frames.height, config.frames.width))
    run = Run(**vars(make_model(config, workdir, mesh, info, dry=dry)), dataset=dataset)
    batches = {"config.extraction_batch": config.extraction_batch}
    batches |= {f"stage {s.name!r} (config.batch)": s.sampler.batch_size(info.columns) for s in run.method.stages()}
    for name, size in batches.items():
        if size % mesh.size:
            raise UserError(f"{name}: a batch of {size} clips does not divide over {mesh.size} devices")
    run.phases["data set"] = opened
    return run


def example_batch(run: Model) -> Batch:
    """Zeros of the shape that the network sees (two clips are enough to make parameters)."""
    height, width = run.config.frames.height, run.config.frames.width
    clips, frames = 2, max(stage.frames for stage in run.method.stages())
    number = np.zeros(clips, np.int32)
    columns: dict[str, Any] = dict.fromkeys((f.name for f in dataclasses.fields(Batch) if f.name != "extras"), number)
    columns |= {
        "frames": np.zeros((clips, frames, height, width, 3), run.pixels.dtype),
        "frame_mask": np.ones((clips, frames), bool),
        "geometry": np.zeros((clips, 3), np.float32),
        "valid": np.ones(clips, bool),
    }
    return Batch(**columns)


def abstract_batch(run: Model, clips: int, frames: int) -> Batch:
    """Shapes, types and placement of a batch as the loader delivers it."""

    def row(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((clips, *leaf.shape[1:]), leaf.dtype, sharding=parallel.rows(run.mesh))

    batch = jax.tree.map(row, jax.eval_shape(lambda: example_batch(run)))
    shape = (clips, frames, *batch.frames.shape[2:])
    return batch.replace(
        frames=jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=parallel.rows(run.mesh)),
        frame_mask=jax.ShapeDtypeStruct(shape[:2], bool, sharding=parallel.rows(run.mesh)),
    )


def claim_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """Makes the workdir, or checks that the run in it has the same config but for `EXECUTION`.

    Raises:
      UserError: the workdir cannot be written, or holds a run of another config; the message names the difference.
    """
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(path, config)
            return
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error}; choose another with --workdir") from error
    saved = json.loads(path.read_text())
    found = list(differences(saved, json.loads(json.dumps(config))))
    changes = [
        change for change in found if not change.startswith(tuple(f"{key}{end}" for key in EXECUTION for end in ".:"))
    ]
    for change in found if not changes else ():
        print(f"unlike when {workdir} was begun: {change}", flush=True)
    if changes:
        listing = "\n  ".join(changes)
        raise UserError(
            f"workdir {workdir} holds a run of another config:\n  {listing}\n"
            "choose another --workdir, or delete this one"
        )


def claim_dataset(run: Run) -> None:
    """Remembers the data set that a workdir was trained on, or checks that it is still the same.

    What its method was told of it is kept as well, so that `jaxreid.load` needs no data set.

    Raises:
      UserError: it is another one; the message names the difference.
    """
    path, fingerprint = run.workdir / "dataset.json", run.dataset.fingerprint()
    if not path.exists():
        write_json(path, fingerprint)
    changes = list(differences(json.loads(path.read_text()), fingerprint))
    if changes:
        raise UserError(f"workdir {run.workdir} was trained on another data set:\n  " + "\n  ".join(changes))
    if run.is_main and not (run.workdir / INFO).exists():
        save_info(run.workdir, run.method.info)


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Lines "key: old → new" for every value in which two nested dicts differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            missing = "not set"
            yield from differences(old.get(key, missing), new.get(key, missing), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path}: {old} → {new}"
