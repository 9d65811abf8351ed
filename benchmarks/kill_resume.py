"""Kill -9 at random moments, the same line again: does the run end as one that nothing has disturbed?

    python benchmarks/kill_resume.py --out DIR [--kills 20] [--seed 0] [--config.key=value …]

Trains HiTPro on `walkers/tiny` once without disturbance, then once per kill in a workdir of its own: killed after a
random share of the undisturbed run's time, then run to its end. One JSON line per kill, the summary as the last one.
Compared bit for bit: the last checkpoint (parameters, statistics, moments, memory), metrics.jsonl, and results.json
without the seconds and the number of compilations.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxreid.files import expand

LINE = (
    "--config=hitpro",
    "--config.dataset.config=tiny",
    "--config.epochs=2",
    "--config.batch.num_prototypes=4",
    "--config.prototypes.pad_to_multiple_of=8",
    "--config.extraction_batch_size=16",
    "--config.log_every=1",
    "--config.evaluate_every=1",
)
TIMED = ("seconds", "compilations")  # of results.json: they belong to the process, not to the run


def start(arguments: Sequence[str], workdir: Path, **options: Any) -> subprocess.Popen:
    line = [sys.executable, "-m", "jaxreid.main", *arguments, f"--workdir={workdir}"]
    return subprocess.Popen(line, text=True, start_new_session=True, **options)


def kill(process: subprocess.Popen) -> bool:
    """Kill -9, workers included; False where the process had ended before."""
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive and process.returncode == -signal.SIGKILL


def kill_when(process: subprocess.Popen, happened: Callable[[], bool]) -> bool:
    """Kills a process as soon as something has happened; False where it ended first."""
    while process.poll() is None and not happened():
        time.sleep(0.002)
    return kill(process)


def written(workdir: Path) -> dict[str, Any]:
    """What a finished run leaves, without what depends on the process that wrote it."""
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    return {
        "metrics.jsonl": (workdir / "metrics.jsonl").read_text(encoding="utf-8"),
        "start.json": (workdir / "start.json").read_text(encoding="utf-8"),
        "results.json": {key: value for key, value in results.items() if key not in TIMED},
        "state": last_state(workdir),
    }


def last_state(workdir: Path) -> dict[str, np.ndarray]:
    """Path → array of a workdir's newest checkpoint, whatever devices it was written from."""
    epochs = workdir.absolute() / "checkpoints" / "epochs"
    newest = max((path for path in epochs.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(newest / "state").item_metadata.tree
        to_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = checkpointer.restore(newest / "state", args=ocp.args.PyTreeRestore(restore_args=to_host))
    leaves, _ = jax.tree_util.tree_flatten_with_path(restored)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def unequal(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what differs between two `written`, arrays by their bits."""
    found = [name for name in one if name != "state" and one[name] != other[name]]
    a, b = one["state"], other["state"]
    return found + sorted(k for k in a.keys() | b.keys() if k not in a or k not in b or not _same(a[k], b[k]))


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def moment(workdir: Path) -> str:
    """What a killed run was doing, as far as its files tell."""
    epochs = workdir / "checkpoints" / "epochs"
    if (workdir / "results.json").exists():
        return "report"
    if epochs.exists() and any("tmp" in path.name for path in epochs.iterdir()):
        return "checkpoint write"
    rows = (
        (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        if (workdir / "metrics.jsonl").exists()
        else []
    )
    whole = sorted(int(path.name) for path in epochs.iterdir()) if epochs.exists() else []
    if not rows:
        return "before the first refresh"
    last = json.loads(rows[-1])
    after = {"association": "steps", "train": "evaluation", "evaluate": "extraction, refresh or final evaluation"}
    return f"{after[last['kind']]} (last row of epoch {last['run_epoch'] + 1}, checkpoints {whole})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=expand, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options, extra = parser.parse_known_args()
    line, quiet = [*LINE, *extra], {"stdout": subprocess.DEVNULL}
    options.out.mkdir(parents=True, exist_ok=True)

    def finish(workdir: Path) -> float:
        begun = time.perf_counter()
        if start(line, workdir, **quiet).wait():
            sys.exit(f"the run in {workdir} ended with an error")
        return time.perf_counter() - begun

    finish(options.out / "warm")  # builds the data set and fills the compile cache
    seconds = finish(options.out / "whole")
    expected = written(options.out / "whole")
    draw, equal, killed = np.random.default_rng(options.seed), 0, 0
    for number in range(options.kills):
        workdir, after = options.out / f"kill-{number:02}", float(draw.uniform(0, seconds))
        shutil.rmtree(workdir, ignore_errors=True)
        process = start(line, workdir, **quiet)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=after)
        was_killed = kill(process)
        row = {"kill": number, "seconds": round(after, 2), "killed": was_killed, "during": moment(workdir)}
        finish(workdir)
        differs = unequal(expected, written(workdir))
        print(json.dumps({**row, "differs": differs[:5]}), flush=True)
        equal, killed = equal + (not differs), killed + was_killed
    print(
        json.dumps({"kills": options.kills, "killed": killed, "equal": equal, "whole_run_seconds": round(seconds, 1)})
    )


if __name__ == "__main__":
    main()
