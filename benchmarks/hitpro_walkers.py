"""HiTPro on `walkers` over seeds: before training, after it, and the supervised bound beside it.

    python benchmarks/hitpro_walkers.py --out runs/seeds [--seeds 1 2 3] [--dataset vvi] [--config.key=value …]

Runs the main job once per seed and method (finished runs are not repeated) and prints a Markdown table of mAP in
percent, V→I and I→V, with mean and deviation over the seeds. Further `--config.…` arguments go to every HiTPro run.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

DIRECTIONS = ("visible_to_infrared", "infrared_to_visible")


def results_of(method: str, dataset: str, seed: int, workdir: Path, extra: list[str]) -> dict:
    line = [sys.executable, "-m", "jaxreid.main", f"--config={method}", f"--workdir={workdir}"]
    line += [f"--config.seed={seed}", f"--config.dataset.config={dataset}", *extra]
    print(" ".join(line[1:]), file=sys.stderr, flush=True)
    subprocess.run(line, check=True, stdout=sys.stderr)
    return json.loads((workdir / "results.json").read_text())


def cell(values: list[float]) -> str:
    return f"{np.mean(values):.1f} ± {np.std(values):.1f} ({', '.join(f'{v:.1f}' for v in values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--dataset", default="vvi")
    parser.add_argument("--name", default="hitpro", help="what the HiTPro runs are called under --out")
    parser.add_argument("--no-bound", action="store_true", help="leave the supervised baseline out")
    arguments, extra = parser.parse_known_args()
    rows: dict[str, dict[str, list[float]]] = {}

    def add(name: str, record: dict) -> None:
        rows.setdefault(name, {}).setdefault(record["direction"], []).append(record["mAP"])

    for seed in arguments.seeds:
        found = results_of("hitpro", arguments.dataset, seed, arguments.out / f"{arguments.name}-{seed}", extra)
        for record in found["before_training"]:
            add(record["features"], record)
        for record in found["scores"]:
            add("HiTPro", record)
        if not arguments.no_bound:
            bound = results_of("baseline", arguments.dataset, seed, arguments.out / f"baseline-{seed}", [])
            for record in bound["scores"]:
                add("supervised baseline", record)
    print(f"| mAP over seeds {arguments.seeds} | V→I | I→V |\n|---|---|---|")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(cell(values[direction]) for direction in DIRECTIONS)} |")


if __name__ == "__main__":
    main()
