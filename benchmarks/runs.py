"""Training runs that a benchmark asks for, row by row and seed by seed, and figures over their seeds."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxreid.files import expand

Row = tuple[str, Mapping[str, Any]]  # config, and what differs from it


def train(config: str, dataset: str, seed: int, workdir: Path, extra: Sequence[str] = ()) -> None:
    """Runs the main job on a configuration of `walkers`; a finished run is not repeated, a stopped one goes on."""
    line = [sys.executable, "-m", "jaxreid.main", f"--config={config}", f"--workdir={workdir}"]
    line += [f"--config.seed={seed}", f"--config.dataset.config={dataset}", *extra]
    print(" ".join(line[1:]), file=sys.stderr, flush=True)
    subprocess.run(line, check=True, stdout=sys.stderr)


def flags(changes: Mapping[str, Any]) -> list[str]:
    """Changed values as the command line takes them."""
    return [f"--config.{key}={value}" for key, value in changes.items()]


def read_arguments(
    doc: str | None, world: str, rows: Sequence[str], default: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """out, world, seeds and rows of a table's command line, and what of it goes to every run; all rows by default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=expand, required=True)
    parser.add_argument("--world", default=world)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", default=[*(rows if default is None else default)], choices=[*rows])
    return parser.parse_known_args()


def workdir_of(out: Path, name: str, seed: int) -> Path:
    """Where the run of a row and a seed lies."""
    return out / f"{name.replace(' ', '-').replace(',', '')}-{seed}"


def train_row(name: str, row: Row, seeds: Sequence[int], arguments: argparse.Namespace, extra: list[str]) -> list[Path]:
    """The workdirs of a row, trained with each seed."""
    config, changes = row
    workdirs = [workdir_of(arguments.out, name, seed) for seed in seeds]
    for seed, workdir in zip(seeds, workdirs, strict=True):
        train(config, arguments.world, seed, workdir, [*flags(changes), *extra])
    return workdirs


def reopened(workdir: Path, data_dir: Path | None = None) -> tuple[Any, Any, Any]:
    """(run, state that is scored, frozen parameters) of a finished run, whose built set lies in `data_dir`."""
    import ml_collections

    from jaxreid.run.model import start_run
    from jaxreid.run.workdirs import read_config
    from jaxreid.training.restore import restore_judged

    run = start_run(ml_collections.ConfigDict(read_config(workdir)), workdir, data_dir, train=False)
    state, frozen, *_ = restore_judged(run)
    return run, state, frozen


def over_seeds(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± sample deviation."""
    more = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{more}"


def printed(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """A table of Markdown."""
    print(f"\n| {' | '.join(heads)} |\n|" + "---|" * len(heads))
    for line in lines:
        print(f"| {' | '.join(line)} |")


def beside(values: Sequence[float], whole: Sequence[float]) -> str:
    """Mean difference to the whole method, seed by seed, ± its standard error; "" without one."""
    apart = [value - full for value, full in zip(values, whole, strict=False)]
    error = f" ± {statistics.stdev(apart) / len(apart) ** 0.5:.1f}" if len(apart) > 1 else ""
    return f"{statistics.mean(apart):+.1f}{error}" if apart else ""
