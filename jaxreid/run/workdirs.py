"""The folder of a run: its default name, who works in it, and the promise that it holds one run only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxreid.config import EXECUTION, among, flatten, is_config
from jaxreid.data.dataset import Dataset
from jaxreid.dataset_info import INFO, DatasetInfo, save_info
from jaxreid.errors import UserError
from jaxreid.files import Held, held, read_json, write_json

LOCK = ".lock"
CONFIG, DATASET, START, TRAINING = "config.json", "dataset.json", "start.json", "training.json"
METRICS, BOARD, RESULTS, CHECKPOINTS = "metrics.jsonl", "tensorboard", "results.json", "checkpoints"
IMPORTED = "imported.json"  # of a workdir that was made of a released checkpoint
BEGUN = (DATASET, INFO, START, TRAINING, METRICS, BOARD, CHECKPOINTS)  # what there may be beside a config before a run
IN_NAME = ("name", "preset", "seed", "dataset.name", "dataset.config")


def default_workdir(config: Any, defaults: Any) -> Path:
    """runs/<config>-<preset>[-<data set>_<its config>][-<8 hex digits of other changed values>]-seed<N>

    Lines that make different runs get different folders, and a line that carries on another the same.

    Args:
      config: of the run; defaults: of its preset, before anything was changed.
    """
    parts = [config.name, config.preset]
    data, usual = config.dataset, defaults.dataset
    if (data.name, data.config) != (usual.name, usual.config):
        parts.append("_".join(filter(None, (data.name, data.config))))
    old, new = (dict(flatten(json.loads(json.dumps(each.to_dict())))) for each in (defaults, config))
    changed = {
        key: new.get(key)
        for key in old.keys() | new.keys()
        if not among(key, (*IN_NAME, *EXECUTION)) and (key in old, old.get(key)) != (key in new, new.get(key))
    }
    if changed:
        parts.append(hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8])
    name = "-".join([*parts, f"seed{config.seed}"])
    return Path("runs") / re.sub(r"[^\w.-]+", "_", name)


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Makes a workdir and keeps other runs out of it until the end of the block; of several processes of one run the
    first does so for all.

    Raises:
      UserError: another run is in it, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(workdir / LOCK))
        except Held as error:
            raise UserError(
                f"{error.holder} is training in {workdir}, or scores what is in it: wait for it, or choose another "
                "--workdir"
            ) from None
        except OSError as error:
            raise _cannot_be_written(workdir, error) from error
        yield


def _cannot_be_written(workdir: Path, error: OSError) -> UserError:
    return UserError(f"workdir {workdir} cannot be written: {error}; choose another with --workdir")


def epochs_folder(workdir: Path) -> Path:
    """Where checkpoints lie, each in a folder of its number."""
    return workdir / CHECKPOINTS / "epochs"


def damaged_folder(workdir: Path) -> Path:
    """Where checkpoints are put that cannot be read."""
    return workdir / CHECKPOINTS / "damaged"


def holds_checkpoint(workdir: Path) -> bool:
    """Whether there is a complete checkpoint; nothing is made or opened."""
    return any(path.name.isdigit() for path in epochs_folder(workdir).glob("*"))


def holds_run(workdir: Path) -> bool:
    """Whether anything in it took training: a checkpoint, also a damaged one that was put aside, or results."""
    kept = (workdir / RESULTS, damaged_folder(workdir))
    return any(place.exists() for place in kept) or holds_checkpoint(workdir)


def require_run(workdir: Path) -> None:
    """Raises UserError where a workdir holds no run that could be scored; nothing is made."""
    if not (workdir / CONFIG).exists() or not holds_checkpoint(workdir):
        raise UserError(
            f"{workdir} holds no run with a complete checkpoint: train first, with the same line without --mode, or "
            "name the folder of a run with --workdir"
        )


def read_config(workdir: Path) -> dict[str, Any]:
    """The config of the run in a workdir.

    Raises:
      UserError: there is none, or it is damaged or another program's.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise UserError(f"{workdir} holds no run: {path} is missing")
    config = read_json(path, "put a copy back, or delete it and type the line that the run was begun with")
    if not is_config(config):
        raise UserError(f"{path} is not the config of a run: choose another workdir")
    return config


def claim_workdir(workdir: Path, config: dict[str, Any]) -> None:
    """Makes the workdir, or checks that the run in it has the same config but for `EXECUTION`.

    What was begun with another config and never came to a checkpoint is no run: it is replaced.

    Raises:
      UserError: the workdir cannot be written, or holds a run of another config; the message names the difference.
    """
    path, config = workdir / CONFIG, json.loads(json.dumps(config))
    anew = False
    if path.exists():
        saved = read_config(workdir)
        found = list(differences(saved, config))
        changes = [change for change in found if not among(change.partition(":")[0], EXECUTION)]
        if not changes:
            for change in found:
                print(f"unlike when {workdir} was begun: {change}", flush=True)
            if not any(change.startswith("dataset.path:") for change in found):
                return
            # Where the data lie now; all else is kept as it was when the run was begun.
            config = saved | {"dataset": saved["dataset"] | {"path": config["dataset"]["path"]}}
        elif holds_run(workdir):
            listing = "\n  ".join(changes)
            raise UserError(
                f"workdir {workdir} holds a run of another config:\n  {listing}\n"
                "choose another --workdir, or delete this one"
            )
        else:
            print(f"{workdir} has no checkpoint yet and is begun anew with {'; '.join(changes)}", flush=True)
            anew = True
    elif jax.process_index():  # process 0 has made it
        raise UserError(f"{path} is not there, which process 0 has written: name a --workdir that all can see")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if anew:
            _clear(workdir)
        write_json(path, config)
    except OSError as error:
        raise _cannot_be_written(workdir, error) from error


def _clear(workdir: Path) -> None:
    """Removes what a run left that never came to a checkpoint, but for its config."""
    for path in (workdir / name for name in BEGUN):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def claim_dataset(
    workdir: Path, dataset: Dataset, info: DatasetInfo, sidecars: Mapping[str, str] | None = None, train: bool = True
) -> None:
    """Remembers the data set that a workdir was trained on, or checks that it is still the same.

    Its `DatasetInfo` is kept as well, so that `jaxreid.load` needs no data set.

    Args:
      sidecars: those that were read, by kind (`Run.sidecars`).
      train: whether these are all that training reads; else others may be gone by now.

    Raises:
      UserError: it is another one, and the run has come to a checkpoint; the message names the difference.
    """
    path, fingerprint = workdir / DATASET, dataset.fingerprint()
    remedy = "delete it if the data are those that the run was begun with: it is written again"
    saved = read_json(path, remedy) if path.exists() else None
    known = {} if train or saved is None else saved.get("sidecars", {})
    if read := {**known, **(sidecars or {})}:
        fingerprint |= {"sidecars": read}
    changes = list(differences(saved, fingerprint)) if saved is not None else []
    if changes and holds_run(workdir):
        listing = "\n  ".join(changes)
        raise UserError(
            f"workdir {workdir} was trained on another data set:\n  {listing}\n"
            "name the data set that it was trained on, or choose another --workdir"
        )
    if changes:
        _clear(workdir)
    if changes or saved is None:
        write_json(path, fingerprint)
    if jax.process_index() == 0 and not (workdir / INFO).exists():
        save_info(workdir, info)


def read_sidecars(workdir: Path) -> dict[str, str]:
    """The sidecars beside captions that a run was trained and tested with: kind → who made it, and a digest."""
    path = workdir / DATASET
    known = read_json(path, "put it back, or train again").get("sidecars", {}) if path.exists() else {}
    return {kind: source for kind, source in known.items() if kind != "captions"}


def read_results(workdir: Path) -> dict[str, Any]:
    """What `results.json` holds, {} where there is none. Raises UserError where it is damaged."""
    path = workdir / RESULTS
    remedy = "delete it, and the line of the run scores its newest checkpoint again"
    return read_json(path, remedy) if path.exists() else {}


def import_notes(workdir: Path) -> list[str]:
    """What a reader of the results must know of weights that were not trained here; [] of a run that was."""
    path = workdir / IMPORTED
    return read_json(path, "import the released checkpoint again")["notes"] if path.exists() else []


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Lines "key: old → new" for every value in which two nested dicts differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            missing = "not set"
            yield from differences(old.get(key, missing), new.get(key, missing), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path}: {old} → {new}"
