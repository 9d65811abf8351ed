"""A checkpoint that a method's authors released as a workdir of ours, which evaluate, embed and search open.

    files ──read_tensors──▶ {name: tensor} ──Released.rows──▶ variables ──▶ state after the last epoch ──▶ workdir

Every tensor is used or is known to have no use; sizes of the training set are those of the tensors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxreid.backbones.pretrained import unusable, unwrapped
from jaxreid.backbones.tensors import Tensors, read_tensors
from jaxreid.config import flatten
from jaxreid.data.dataset import open_dataset, plan_dataset
from jaxreid.dataset_info import DatasetInfo, dataset_info, save_info
from jaxreid.devices import parallel
from jaxreid.devices.compiled import Compiled
from jaxreid.errors import DataSetError, UserError, some, writing
from jaxreid.files import write_json
from jaxreid.methods.method import Context, Variables, find_method
from jaxreid.methods.released import Released, Sizes, reason_for, released_methods
from jaxreid.run.config_values import check_config
from jaxreid.run.model import Model, example_batch, make_model
from jaxreid.run.workdirs import IMPORTED, claim_workdir
from jaxreid.training.checkpoints import Checkpoints
from jaxreid.training.start import begin_stage, memory_at
from jaxreid.training.steps import progress_at


@dataclasses.dataclass
class Fitted:
    """What was made of the tensors of a file.

    Attributes:
      arrays: parameters and batch statistics by path.
      used: how many tensors they were read from.
      unused: name of a tensor → why it has no use.
      drawn: path of a parameter → what it is that no tensor holds.
      doubts: sentences about tensors that are not as expected.
    """

    arrays: dict[str, np.ndarray]
    used: int
    unused: dict[str, str]
    drawn: dict[str, str]
    doubts: list[str]


def import_released(config: Any, files: Sequence[Path], workdir: Path, data_dir: Path | None = None) -> list[str]:
    """Makes a workdir of released files of the config's method; returns lines that say what was done.

    The data set is not needed; where it is at hand, its cameras keep their numbers.

    Raises:
      UserError: files that cannot be read, of another architecture than the config's, or a workdir that is there.
    """
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f"{workdir} is there already: name another --workdir, or delete this one")
    check_config(config)
    released = find_method(config.method).released
    if released is None:
        known = ", ".join(name for name, _ in released_methods())
        raise UserError(f"config.method={config.method!r} knows no released checkpoints; those that do: {known}")
    source = ", ".join(str(file) for file in files)
    tensors = released.canonical(unwrapped(read_files(files)))
    _check_architecture(released, tensors, config, source)
    sizes = released.sizes({name: tensor.shape for name, tensor in tensors.items()}, config)
    info, notes = _info(config, sizes, data_dir)
    run = make_model(config, workdir, parallel.make_mesh(), info)
    found = fit(released, tensors, run, source)
    record = _record(released, files, sizes, found, notes)
    aside = workdir.with_name(f"{workdir.name}.{uuid.uuid4().hex}.part")
    try:
        with writing(workdir):
            aside.mkdir(parents=True)
            claim_workdir(aside, config.to_dict())
            save_info(aside, info)
            write_json(aside / IMPORTED, record)
            _save(run, _whole(run, found), aside)
            if workdir.exists():
                workdir.rmdir()
            aside.rename(workdir)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [*_lines(record), *record["notes"]]


def read_files(files: Sequence[Path]) -> Tensors:
    """The tensors of several files. Raises UserError where two hold different ones under one name."""
    tensors: Tensors = {}
    for file in files:
        read = read_tensors(file)
        if twice := [name for name in tensors.keys() & read.keys() if not np.array_equal(tensors[name], read[name])]:
            raise UserError(f"{file} has other tensors than an earlier file under the names {some(sorted(twice))}")
        tensors |= read
    return tensors


def _check_architecture(released: Released, tensors: Tensors, config: Any, source: str) -> None:
    """Raises UserError where a file is another method's, or made with other values of the config."""
    marked = [(name, other) for name, other in released_methods() if other.marked(other.canonical(tensors))]
    if not any(other is released for _, other in marked):
        marked += [(config.method, released)] if released.marked(tensors) else []
    best = max((len(other.marks) for _, other in marked), default=0)
    fitting = {name: other for name, other in marked if len(other.marks) == best}
    if not any(other is released for other in fitting.values()):
        whose = " or ".join(f"{other.name} (method {name})" for name, other in fitting.items())
        lacking = [mark for mark in released.marks if not dataclasses.replace(released, marks=(mark,)).marked(tensors)]
        wants = f"; it has no {some(lacking)}" if lacking else ""
        raise UserError(
            f"{source} is no checkpoint of {released.name} (method {config.method}){wants}: "
            + (f"it is one of {whose}" if whose else f"its first tensors are {some(sorted(tensors))}")
        )
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    ours = dict(flatten(config.to_dict()))
    differing = {
        key: value for key, value in released.settings(shapes, config).items() if _plain(ours[key]) != _plain(value)
    }
    if differing:
        was = ", ".join(f"{key} is {ours[key]!r} and was {value!r}" for key, value in differing.items())
        flags = " ".join(f'"--config.{key}={value}"' for key, value in differing.items())
        raise UserError(
            f"{source} was trained with another config: {was}. In this line and all later ones type {flags}"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _info(config: Any, sizes: Sizes, data_dir: Path | None) -> tuple[DatasetInfo, list[str]]:
    """(what the method knows of the training set of the file, sentences where that is not the config's data set)."""
    try:
        dataset: Any = open_dataset(config.dataset, data_dir)
    except DataSetError:
        dataset = plan_dataset(config.dataset)
        if dataset is None:
            raise
    method = find_method(config.method)
    info = dataset_info(dataset, method, (config.frames.height, config.frames.width), captions=False)
    notes, cameras = [], info.cameras
    if method.uses_identity and sizes.identities not in (None, info.num_classes):
        notes.append(
            f"The weights were trained on {sizes.identities} identities; {info.name} trains on {info.num_classes}."
        )
    if sizes.cameras is not None and sizes.cameras != len(cameras):
        notes.append(
            f"The weights know {sizes.cameras} cameras; {info.name} has {len(cameras)} in training: they are taken in "
            "order of their numbers, and those for which there is no row are unknown to the network."
        )
        more = np.arange(sizes.cameras, dtype=cameras.dtype) + cameras.max(initial=-1) + 1
        cameras = np.concatenate([cameras, more])[: sizes.cameras]
    return dataclasses.replace(info, num_classes=sizes.identities or info.num_classes, cameras=cameras), notes


def fit(released: Released, tensors: Mapping[str, np.ndarray], run: Model, source: str) -> Fitted:
    """The variables of a run's method from the tensors of a released file.

    Raises:
      UserError: tensors are missing, left over, of other shapes or not finite, all of them named; or parameters are
        left without.
    """
    variables = jax.eval_shape(run.method.init, jax.random.key(0), example_batch(run))
    expected = {path: leaf.shape for tree in variables.values() for path, leaf in parallel.flatten_paths(tree)}
    rows = released.rows(run.method)
    keys = {key for row in rows for key in row.keys}
    unused = {name: reason for name in tensors.keys() - keys if (reason := reason_for(name, released.unused))}
    arrays: dict[str, np.ndarray] = {}
    used, misshapen, invalid, doubts = 0, [], [], []
    for row in rows:
        if not all(key in tensors for key in row.keys):
            continue
        used += len(row.keys)
        read, names = [np.asarray(tensors[key]) for key in row.keys], " and ".join(row.keys)
        if wrong := [problem for tensor in read if (problem := unusable(tensor))]:
            invalid.append(f"{names} ({wrong[0]})")
            continue
        read = [tensor.astype(np.float32, copy=False) for tensor in read]
        try:
            values = list(row.read(*read))
        except (ValueError, IndexError):
            values = None
        if values is None or [value.shape for value in values] != [expected.get(path) for path in row.paths]:
            sizes = ", ".join(f"{path} {expected.get(path, 'which is not there')}" for path in row.paths)
            misshapen.append(f"{names} {' and '.join(str(tensor.shape) for tensor in read)}, for {sizes}")
            continue
        doubts += [f"{names}: {doubt}" for doubt in [row.doubt(*read)] if doubt]
        arrays |= {path: np.ascontiguousarray(value) for path, value in zip(row.paths, values, strict=True)}
    held = {path for row in rows for path in row.paths}
    drawn = {path: reason for path in expected.keys() - held if (reason := reason_for(path, released.drawn))}
    problems = {
        "missing": {key for row in rows if row.paths for key in row.keys} - tensors.keys(),
        "left over": tensors.keys() - keys - unused.keys(),
        "of another shape": misshapen,
        "unusable": invalid,
        "parameters that nothing holds": expected.keys() - held - drawn.keys(),
    }
    if listed := [f"{title} ({len(found)}): {some(sorted(found), 8)}" for title, found in problems.items() if found]:
        raise UserError(
            f"{source} does not fit {run.config.name} ({released.name}):\n  " + "\n  ".join(listed) + "\n"
            "Give the file of this architecture, or the values of the config that it was trained with"
        )
    return Fitted(arrays, used, unused, drawn, doubts)


def _whole(run: Model, found: Fitted) -> Variables:
    """Variables on the devices; what no tensor holds is drawn, and nothing else."""
    batch = example_batch(run)

    def draw(rng: jax.Array) -> dict[str, jax.Array]:
        variables = run.method.init(rng, batch)
        leaves = {path: leaf for tree in variables.values() for path, leaf in parallel.flatten_paths(tree)}
        return {path: leaves[path] for path in found.drawn}

    rest = jax.jit(draw)(jax.random.PRNGKey(run.config.seed)) if found.drawn else {}
    leaves = found.arrays | jax.device_get(rest)
    like = jax.eval_shape(run.method.init, jax.random.key(0), batch)
    variables = {
        collection: unflatten_dict(
            {p: leaves[p].astype(leaf.dtype) for p, leaf in parallel.flatten_paths(tree)}, sep="/"
        )
        for collection, tree in like.items()
    }
    return parallel.place(variables, parallel.state_sharding(variables, run.mesh))


def _save(run: Model, variables: Variables, workdir: Path) -> None:
    """Writes the state that training would leave after the last epoch: its memory is what follows from the parameters
    (a bank of sentences), else as it begins."""
    stages = run.method.stages()
    number, last = len(stages) - 1, stages[-1]
    memory = memory_at(run.method, last)
    placement = parallel.state_sharding(memory, run.mesh)
    memory = jax.device_put(memory, placement)
    context = Context(jax.random.PRNGKey(run.config.seed), progress_at(last, last.epochs, 0, 1))
    for stage in stages:
        if stage.refresh_after:
            memory = Compiled(stage.refresh_after, out_shardings=placement)(variables, memory, context)
    state, frozen = begin_stage(run, last, variables, memory, np.int32(0), jax.random.PRNGKey(run.config.seed + 1))
    checkpoints = Checkpoints(workdir)
    try:
        checkpoints.save_frozen(last.name, frozen)
        meta = {"stage": number, "epoch": last.epochs, "step": 0}
        checkpoints.save(sum(stage.epochs for stage in stages), state, meta)
        checkpoints.wait()
    finally:
        checkpoints.close()


def _record(released: Released, files: Sequence[Path], sizes: Sizes, found: Fitted, notes: list[str]) -> dict[str, Any]:
    """What `imported.json` says."""
    named = ", ".join(file.name for file in files)
    counts = [f"{count} {of}" for of, count in (("identities", sizes.identities), ("cameras", sizes.cameras)) if count]
    trained = f", trained on {' and '.join(counts)}" if counts else ""
    origin = f"The weights are those of {named} ({released.name}){trained}: nothing was trained here."
    drawn = [f"Not in the file, and as drawn at random: {reason}." for reason in dict.fromkeys(found.drawn.values())]
    return {
        "files": {str(file): _sha256(file) for file in files},
        "released": released.name,
        "identities": sizes.identities,
        "cameras": sizes.cameras,
        "used": found.used,
        "unused": dict(sorted(found.unused.items())),
        "drawn": dict(sorted(found.drawn.items())),
        "notes": [origin, *notes, *drawn, *(f"Unlike a released file: {doubt}." for doubt in found.doubts)],
    }


def _lines(record: Mapping[str, Any]) -> list[str]:
    """How many tensors were used, and which were not and why."""
    unused: dict[str, list[str]] = {}
    for name, reason in record["unused"].items():
        unused.setdefault(reason, []).append(name)
    lines = [f"{record['used']} tensors used, {len(record['unused'])} knowingly not"]
    return lines + [f"  {reason}: {some(names, 3)}" for reason, names in unused.items()]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
