"""KeyRe-ID on the drawn world `visible`, beside what it starts from and beside parts of itself.

    python benchmarks/keyre_id.py --out runs/keyre_id [--world visible] [--seeds 1 2 3] [--config.key=value …]

Trains every row once per seed; finished runs are not repeated, stopped ones go on, and a row without results is not in
the table. Prints mAP and rank-1 in per cent, mean ± sample deviation over the seeds, and rank-1 of the queries whose
upper body is hidden in most frames apart from that of all others. `--config.…` goes to every run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from runs import over_seeds, read_arguments, reopened, train_row

from jaxreid.run.workdirs import read_results

TOWER = {
    "backbone.name": "imagenet:walkers_vit_tiny",
    "backbone.checkpoint": "walkers_imagenet_tiny",
    "batch.num_identities": 16,
    "batch.seq_len": 4,
    "epochs": 12,
}
# Row → config and what differs from it; those behind the line are shown with one seed.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline, same tower, clips and epochs": ("baseline", TOWER),
    "KeyRe-ID": ("keyre_id", {}),
    "global branch only": ("keyre_id", {"branches": "global"}),
    "local branch only": ("keyre_id", {"branches": "local"}),
    "no key points": ("keyre_id", {"keypoints.use": False}),
    "key points taken for one another": ("keyre_id", {"keypoints.shuffle": True}),
    "published layout": ("keyre_id", {"local.layout": "released"}),
}
ONE_SEED: dict[str, tuple[str, dict[str, Any]]] = {
    "soft gate": ("keyre_id", {"local.gate": "post_norm"}),
    "four parts": ("keyre_id", {"local.parts": 4}),
    "three parts": ("keyre_id", {"local.parts": 3}),
    "key points off by a tenth of the width": ("keyre_id", {"keypoints.noise": 0.1}),
    "parts' centres as drawn": ("keyre_id", {"center.local": False}),
}
UPPER = slice(0, 11)  # key points from the nose to the wrists


def by_occlusion(workdir: Path) -> tuple[float, float]:
    """Rank-1 of queries with a hidden upper body, and of the others."""
    from jaxreid.data.sidecars import Sidecar
    from jaxreid.evaluation.controls import of_output
    from jaxreid.evaluation.evaluator import Evaluator
    from jaxreid.training.steps import variables_of

    run, state, frozen = reopened(workdir)
    evaluator = Evaluator(run)
    features = of_output(evaluator.features(variables_of(state, frozen), state.memory), evaluator.options.headline)
    ((_, scores), *_) = evaluator._score(features, "")
    query = evaluator.cases[0].query
    sidecar, split = Sidecar.open(query.split.directory, "keypoints"), query.split
    hidden = np.array([
        (sidecar.read(split.labels.names[row], split.frame_index(row))[0][:, UPPER, 2] <= 0.5).mean() > 0.5
        for row in query.rows
    ])  # fmt: skip
    first = scores.first_match == 1
    return tuple(100.0 * float(first[group & scores.valid].mean()) for group in (hidden, ~hidden))  # pyright: ignore


def main() -> None:
    arguments, extra = read_arguments(__doc__, "visible", [*ROWS, *ONE_SEED])
    table: list[list[str]] = []
    for name in arguments.rows:
        seeds = arguments.seeds if name in ROWS else arguments.seeds[:1]
        workdirs = train_row(name, {**ROWS, **ONE_SEED}[name], seeds, arguments, extra)
        results = [read_results(workdir) for workdir in workdirs]
        records = [next(r for r in found["scores"] if r.get("output", "feature") == "feature") for found in results]
        groups = np.array([by_occlusion(workdir) for workdir in workdirs])
        row = [name, *(over_seeds([record[key] for record in records]) for key in ("mAP", "rank-1"))]
        table.append([*row, *(over_seeds(group.tolist()) for group in groups.T), str(len(seeds))])
        if not table[1:]:
            start = next(r for r in results[0]["before_training"] if r["features"] == "untouched tower")
            table.insert(0, ["untouched tower", f"{start['mAP']:.1f}", f"{start['rank-1']:.1f}", "", "", ""])
    print("| | mAP | rank-1 | upper body hidden | others | seeds |\n|" + "---|" * 6)
    for row in table:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
