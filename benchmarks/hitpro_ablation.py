"""Every switch of HiTPro, one at a time, on people and cameras that play no part in reported results.

    python benchmarks/hitpro_ablation.py --out runs/ablation [--seeds 1 2 3] [--only NAME …] [--workers 2]

The reference is the method as it is specified, with a softmax per camera, at the other values of the preset `walkers`.
Trains each variant once per seed on `walkers/vvi_dev` (finished runs are not repeated, stopped ones go on), most
telling variants first, and prints the table of `jaxreid compare` with every variant's difference to the
reference.
"""

import argparse
import concurrent.futures
import json
import os
import queue
import subprocess
import sys
from pathlib import Path

from jaxreid.files import expand

# Name → what differs from configs/hitpro.py. The order is that of a list of questions: levels, look-alikes, threshold,
# mining rules, softmax, schedule of levels, encoder, prototypes.
VARIANTS: dict[str, dict[str, object]] = {
    "reference": {},
    "level 1": {"levels.within_weight": 0.0, "levels.cross_weight": 0.0},
    "levels 1, 2": {"levels.cross_weight": 0.0},
    "levels 1, 3": {"levels.within_weight": 0.0},
    "no look-alikes": {"association.look_alikes": False},
    "κ 0 → −2": {"kappa": (0.0, -2.0)},
    "κ 0 → −1": {"kappa": (0.0, -1.0)},
    "no threshold": {"association.threshold": "none"},
    "no mutual test": {"association.mutual": False},
    "joint softmax": {"levels.scope": "joint"},
    "stage 2 on raw prototypes": {"association.stage2_space": "raw"},
    "κ_ν 0": {"association.look_alike_kappa": 0.0},
    "κ_ν −1": {"association.look_alike_kappa": -1.0},
    "fixed threshold 0.5": {"association.threshold": "fixed"},
    "uniform weights": {"association.weights": "uniform"},
    "all levels from the start": {"levels.cross_from": 0},
    "levels one by one": {"levels.within_from": 1, "levels.cross_from": 2},
    "level 1 at full weight": {"levels.intra_weight": 1.0},
    "level 2 at half weight": {"levels.within_weight": 0.5},
    "level 2 at quarter weight": {"levels.within_weight": 0.25},
    "levels 2, 3 at half weight": {"levels.within_weight": 0.5, "levels.cross_weight": 0.5},
    "mean over time": {"temporal": "mean"},
    "stage 2 not centred": {"association.stage2_space": "aggregated"},
    "stage 2 without aggregation": {"association.aggregation": 0.0},
    "stage 2 on softmax codes": {"association.stage2_space": "softmax_code"},
    "2 candidates per camera": {"association.candidates_per_camera": 2},
    "momentum 0.2": {"prototypes.momentum": 0.2},
    "momentum 0.8": {"prototypes.momentum": 0.8},
    "1 part": {"prototypes.parts": 1},
    "4 parts": {"prototypes.parts": 4},
    "temperature 0.05": {"levels.temperature": 0.05},
    "κ +0.5 → +0.5": {"kappa": (0.5, 0.5)},
    "fixed threshold 0.3": {"association.threshold": "fixed", "association.fixed_threshold": 0.3},
    "fixed threshold 0.8": {"association.threshold": "fixed", "association.fixed_threshold": 0.8},
    "most concentrated slots": {"association.min_concentration": 0.9},
    "camera_track": {"prototypes.unit": "camera_track", "association.look_alikes": False},
    "camera_track, look-alikes": {"prototypes.unit": "camera_track"},
}


def folder(name: str) -> str:
    return name.replace(" ", "_")


def line(changes: dict[str, object], seed: int, workdir: Path) -> list[str]:
    values = {"dataset.config": "vvi_dev", "evaluate_start": False, "seed": seed, "levels.scope": "camera", **changes}
    settings = [f"--config.{name}={value}" for name, value in values.items()]
    return [sys.executable, "-m", "jaxreid.main", "--config=hitpro", f"--workdir={workdir}", *settings]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=expand, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, each on its share of the processors")
    arguments = parser.parse_args()
    shares: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    processors = sorted(os.sched_getaffinity(0))
    for worker in range(arguments.workers):
        shares.put(processors[worker :: arguments.workers])

    def run(name: str, seed: int) -> str:
        workdir = arguments.out / folder(name) / f"seed-{seed}"
        workdir.parent.mkdir(parents=True, exist_ok=True)
        share = shares.get()
        with (workdir.parent / f"seed-{seed}.log").open("a", encoding="utf-8") as log:
            done = subprocess.run(
                line(VARIANTS[name], seed, workdir),
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
                preexec_fn=lambda: os.sched_setaffinity(0, share),
            )
        shares.put(share)
        if done.returncode:
            return f"{name}, seed {seed}: failed, see {log.name}"
        scores = json.loads((workdir / "results.json").read_text(encoding="utf-8"))["scores"]
        return f"{name}, seed {seed}: " + "  ".join(f"{s['direction']} mAP {s['mAP']:.1f}" for s in scores)

    with concurrent.futures.ThreadPoolExecutor(arguments.workers) as pool:
        for done in pool.map(lambda job: run(*job), [(n, s) for n in arguments.only for s in arguments.seeds]):
            print(done, file=sys.stderr, flush=True)
    rows = [f"{name}={arguments.out / folder(name)}" for name in arguments.only]
    table = [sys.executable, "-m", "jaxreid.cli", "compare", *rows, f"--out={arguments.out / 'compare'}"]
    baseline = ["--baseline", "reference"] if "reference" in arguments.only else []
    subprocess.run([*table, *baseline, "--metrics", "mAP", "rank-1"], check=True)


if __name__ == "__main__":
    main()
