"""Training runs that a benchmark asks for, and figures over their seeds."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def train(config: str, dataset: str, seed: int, workdir: Path, extra: Sequence[str] = ()) -> None:
    """Runs the main job on a configuration of `walkers`; a finished run is not repeated, a stopped one goes on."""
    line = [sys.executable, "-m", "jaxreid.main", f"--config={config}", f"--workdir={workdir}"]
    line += [f"--config.seed={seed}", f"--config.dataset.config={dataset}", *extra]
    print(" ".join(line[1:]), file=sys.stderr, flush=True)
    subprocess.run(line, check=True, stdout=sys.stderr)


def over_seeds(values: Sequence[float]) -> str:
    """Mean ± sample deviation."""
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")
