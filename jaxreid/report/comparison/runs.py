"""Finished runs: finding their workdirs and reading what they hold."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxreid.config import flatten, is_config
from jaxreid.errors import UserError
from jaxreid.files import expand, read_json
from jaxreid.report.comparison.columns import LeftOutError, Setup, scores_by_setup
from jaxreid.report.comparison.settings import deciding, hashable


class CompareError(UserError):
    """The runs cannot be compared as asked; the message says why and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class RunResult:
    """A finished run.

    Attributes:
      name: as given on the command line, or empty.
      method: the name of the config, because a family's members share a module.
      settings: the flat config.
      assumptions: what it was given to learn from, such as identity labels, by name.
      scores: setup → metric → percent.
      controls: scores from before training, by the features' name.
      seconds: spent in all.
      conditions: tables of scores by condition, of the headline protocol; control_conditions: those from before
        training, by the features' name.
    """

    workdir: Path
    name: str
    method: str
    seed: int
    settings: dict[str, Any]
    assumptions: dict[str, str]
    scores: dict[Setup, dict[str, float]]
    controls: dict[str, dict[Setup, dict[str, float]]]
    checkpoint: str
    seconds: float | None
    device: str
    conditions: Sequence[dict[str, Any]] = ()
    control_conditions: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)

    def deciding_settings(self) -> dict[str, Any]:
        """Those that decide the result, the data set aside."""
        return deciding(self.settings)


def read_runs(arguments: Sequence[str | Path]) -> tuple[list[RunResult], list[tuple[Path, str]]]:
    """Every run once, in the order of the arguments, and what was left out: (workdir, why).

    Args:
      arguments: workdirs or folders that contain workdirs, or NAME=PATH to call them so.

    Raises:
      CompareError: a path does not exist, or one run has two names.
    """
    runs: dict[Path, RunResult] = {}
    left_out: dict[Path, tuple[Path, str]] = {}
    for argument in arguments:
        name, path = "", expand(argument)
        if not path.exists() and "=" in str(argument):
            name, _, rest = str(argument).partition("=")
            path = expand(rest)
        if not path.exists() or (name and "/" in name):
            raise CompareError(f"{argument}: there is no such folder")
        workdirs = find_workdirs(path if path.is_dir() else path.parent)
        if not workdirs:
            left_out.setdefault(path.resolve(), (path, "no run in it"))
        for workdir in workdirs:
            real = workdir.resolve()
            if real in runs:
                known = runs[real]
                if name and known.name and name != known.name:
                    raise CompareError(f"{workdir} is given two names: {known.name} and {name}")
                runs[real] = dataclasses.replace(known, name=known.name or name)
                continue
            try:
                runs[real] = read_run(workdir, name)
            except LeftOutError as error:
                left_out.setdefault(real, (workdir, str(error)))
    return list(runs.values()), list(left_out.values())


def find_workdirs(folder: Path) -> list[Path]:
    """Workdirs in and below a folder, in the order of their names; unfinished runs are among them."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in ("checkpoints", "tensorboard", "report")]
        if "results.json" in files or ("config.json" in files and _is_config(Path(place) / "config.json")):
            found.append(Path(place))
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[Any]:
    """Sorts run-2 before run-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _is_config(path: Path) -> bool:
    """Whether it is a run's config; other programs have files of that name, too."""
    try:
        return is_config(read_json(path, ""))
    except (OSError, UserError):
        return False


def read_run(workdir: Path, name: str = "") -> RunResult:
    """The result of a workdir.

    Raises:
      LeftOutError: it has none, or one that cannot be compared.
    """
    results = _finished_results(workdir)
    config, fingerprint = _read(workdir / "config.json"), _read(workdir / "dataset.json")
    for key in ("method", "seed"):
        if results.get(key) != config.get(key) or config.get(key) is None:
            raise LeftOutError(f"broken: {key} is {results.get(key)} in results.json, {config.get(key)} in config.json")
    if "name" not in fingerprint:
        raise LeftOutError("broken: dataset.json names no data set")
    controls: dict[str, list[Any]] = {}
    for record in results.get("before_training") or ():
        if not isinstance(record, dict) or "features" not in record:
            raise LeftOutError("broken: before_training in results.json holds a score without features")
        controls.setdefault(str(record["features"]), []).append(record)
    seconds, environment = (results.get(key) or {} for key in ("seconds", "environment"))
    return RunResult(
        workdir=workdir,
        name=name,
        method=str(config.get("name") or config["method"]),
        seed=config["seed"],
        settings={key: hashable(value) for key, value in flatten(config)},
        assumptions={str(key): str(value) for key, value in (results.get("assumptions") or {}).items()},
        scores=scores_by_setup(results["scores"], fingerprint),
        controls={features: scores_by_setup(records, fingerprint) for features, records in controls.items()},
        checkpoint=str(results["scores"][0].get("checkpoint", "")),
        seconds=sum(seconds.values()) if seconds else None,
        device=str(environment.get("devices", "")),
        conditions=(results.get("breakdown") or {}).get("tables", ()),
        control_conditions={
            features: [one for record in records for one in record.get("breakdown", ())]
            for features, records in controls.items()
        },
    )


def _finished_results(workdir: Path) -> dict[str, Any]:
    """What `results.json` of a run holds that was trained to its end and scored."""
    if not (workdir / "results.json").exists():
        raise LeftOutError("unfinished: there is no results.json yet")
    results = _read(workdir / "results.json")
    if not isinstance(results.get("scores"), list) or not {"epochs", "epochs_done"} <= set(results):
        raise LeftOutError(
            "results.json has an old format; score the run again with --mode=evaluate, or train it again"
        )
    if results["epochs_done"] != results["epochs"]:
        raise LeftOutError(f"unfinished: scored after epoch {results['epochs_done']} of {results['epochs']}")
    if results.get("reason") or not results["scores"]:
        raise LeftOutError(f"not scored: {results.get('reason') or 'results.json holds no scores'}")
    return results


def _read(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = read_json(path, "score or train the run again")
    except FileNotFoundError:
        raise LeftOutError(f"broken: there is no {path.name}") from None
    except (OSError, UserError) as error:
        raise LeftOutError(f"broken: {error}") from None
    if not isinstance(value, dict):
        raise LeftOutError(f"broken: {path.name} does not hold names and values")
    return value
