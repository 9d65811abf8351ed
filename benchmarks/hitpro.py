"""HiTPro on `walkers`: beside its controls, its peer, its bounds and labels, and without each of its parts.

    python benchmarks/hitpro.py --out runs/hitpro [--world vvi] [--seeds 1 2 3] [--rows …] [--config.key=value …]
    python benchmarks/hitpro.py --out runs/dev --world vvi_dev --rows HiTPro "levels 1, 3" …
    python benchmarks/hitpro.py --out runs/visible --world visible --rows "HiTPro, one modality" …
    python benchmarks/hitpro.py --out runs/imagenet --rows "HiTPro, ImageNet start" …

Trains each row once per seed (finished runs are not repeated, stopped ones go on) and prints Markdown: mAP of each
direction and the mean rank-1 to rank-20 of both (or of all queries, where there is one modality), in per cent, mean ±
sample deviation over the seeds; the mean difference in mAP to HiTPro, seed by seed, ± its standard error; and of the
last mining how many pairs are right and how many slots have one. Controls come first, and under each row what it scores
with its features centred per test camera (†), which is compared with controls that are. Rows named "true pairs" are
told identities (benchmarks/hitpro_true_pairs.py). By default all rows of `ROWS` run; others where they are named.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runs import beside, over_seeds, printed, read_arguments, train_row

from jaxreid.config import config_module, find_config
from jaxreid.run.workdirs import read_results
from jaxreid.training.metric_writer import read_metrics

HERE = Path(__file__).parent
TRUE = str(HERE / "hitpro_true_pairs.py")
FULL = "HiTPro"
# What others have of HiTPro's preset: cluster contrast its epochs, rate and averaged weights, the supervised baseline
# pictures changed alike and averaged weights.
CONFIG = config_module(Path(find_config("hitpro")))
WALKERS = CONFIG.WALKERS
AUGMENT = {key: value for key, value in WALKERS.items() if key.startswith("augment.")}
AVERAGE = {"ema_decay": WALKERS["ema_decay"]}
BUDGET = {key: WALKERS[key] for key in ("epochs", "optimizer.lr")} | AVERAGE
# Row → config and what differs from it.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    FULL: ("hitpro", {}),
    "cluster contrast": ("cluster_contrast", BUDGET),
    "cluster contrast, proxies of cameras": ("cluster_contrast", BUDGET | {"memory.kind": "camera"}),
    "cluster contrast, cameras centred": ("cluster_contrast", BUDGET | {"cluster.center_cameras": True}),
    "true pairs in stage 1": (f"{TRUE}:within", {}),
    "true pairs in stage 2": (f"{TRUE}:cross", {}),
    "true pairs in both": (f"{TRUE}:both", {}),
    "supervised baseline": ("baseline", {}),
    "supervised baseline, HiTPro's augmentation": ("baseline", AUGMENT),
    "supervised baseline, HiTPro's augmentation and average": ("baseline", AUGMENT | AVERAGE),
}
PLAIN = {"association.stage1_space": "raw", "association.stage2_space": "centred", "association.metric_rounds": 0}
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    name: ("hitpro", changes)
    for name, changes in {
        "level 1": {"levels.within_weight": 0.0, "levels.cross_weight": 0.0},
        "levels 1, 2": {"levels.cross_weight": 0.0},
        "levels 1, 3": {"levels.within_weight": 0.0},
        "level 2 at full weight": {"levels.within_weight": 1.0},
        "all levels from the start": {"levels.cross_start_epoch": 0},
        "plain prototypes, stage 2 centred per modality": PLAIN,
        "cameras centred, no pair metric": {"association.metric_rounds": 0},
        "pair metric alone": {"association.stage1_space": "raw", "association.stage2_space": "aggregated"},
        "stage 2 without aggregation": {"association.aggregation": 0.0},
        "no look-alikes": {"association.look_alikes": False},
        "no mutual test": {"association.mutual": False},
        "newest weights": {"ema_decay": 0.0},
        "no threshold": {"association.threshold": "none"},
        "fixed threshold 0.2": {"association.threshold": "fixed", "association.fixed_threshold": 0.2},
        "fixed threshold 0.4": {"association.threshold": "fixed", "association.fixed_threshold": 0.4},
        "fixed threshold 0.6": {"association.threshold": "fixed", "association.fixed_threshold": 0.6},
        "κ 0.5 → −0.5": {"kappa": (0.5, -0.5)},
        "uniform weights": {"association.weights": "uniform"},
        "softmax per camera": {"levels.scope": "camera"},
        "temperature 0.07": {"levels.temperature": 0.07},
        "mean over time": {"temporal.pooling": "mean"},
        "1 part": {"prototypes.parts": 1},
        "4 parts": {"prototypes.parts": 4},
    }.items()
}
# Told which tracklets were cut from one recording: another protocol.
RECORDINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "prototypes of recordings": ("hitpro", {"prototypes.unit": "camera_track"}),
}
# Where all cameras see alike.
ONE = "one modality"
VISIBLE: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name}, {ONE}": (f"{config}:walkers_visible", changes)
    for name, (config, changes) in {
        FULL: ROWS[FULL],
        "level 1": PARTS["level 1"],
        **{name: row for name, row in ROWS.items() if row[0] == "cluster_contrast"},
    }.items()
}
# From a tower that is not aware of places on purpose.
START = "ImageNet start"
TOWER = {"backbone.name": "imagenet:walkers_vit_tiny", "backbone.checkpoint": "walkers_imagenet_tiny"}
OTHER_START: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name}, {START}": (config, TOWER | changes)
    for name, (config, changes) in {
        FULL: ("hitpro:walkers_imagenet", {}),
        f"{FULL}, walkers' settings": ("hitpro", {}),
        "true pairs in stage 2": (f"{TRUE}:cross", CONFIG.GENTLE),
        "supervised baseline, HiTPro's augmentation": ROWS["supervised baseline, HiTPro's augmentation"],
    }.items()
}
FULLS = (FULL, f"{FULL}, {ONE}", f"{FULL}, {START}")
RANKS = ("rank-1", "rank-5", "rank-10", "rank-20")


def cells(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """mAP of each direction, and ranks as the mean of both, of the records of each run."""
    columns = list(zip(*runs, strict=True))
    found = [over_seeds([record["mAP"] for record in column]) for column in columns]
    return found + [over_seeds([statistics.mean(r[rank] for r in records) for records in runs]) for rank in RANKS]


def mined(workdirs: Sequence[Path]) -> list[str]:
    """Within and across modalities: per cent right / covered in the last mining, mean over seeds."""
    last = [[row for row in read_metrics(workdir) if row["kind"] == "association"][-1:] for workdir in workdirs]
    rows = [row for (row,) in last if row and "within_precision" in row] if all(last) else []
    return [
        "{:.0f} / {:.0f}".format(
            *(statistics.mean(row[f"{list_}_{key}"] for row in rows) for key in ("precision", "coverage"))
        )
        if rows and f"{list_}_precision" in rows[0]
        else ""
        for list_ in ("within", "cross")
    ]


def lines(workdirs: Mapping[str, list[Path]]) -> Iterator[list[str]]:
    results = {name: [read_results(folder) for folder in folders] for name, folders in workdirs.items()}
    first = next(iter(results.values()))[0]
    for features in dict.fromkeys(record["features"] for record in first["before_training"]):
        control = [record for record in first["before_training"] if record["features"] == features]
        yield [features + (" †" if "camera" in features else ""), *cells([control]), "", "", "", ""]
    whole = [mean_ap(one["scores"]) for name in FULLS for one in results.get(name, [])]
    for name, runs in results.items():
        apart = "" if name in FULLS else beside([mean_ap(one["scores"]) for one in runs], whole)
        yield [name, *cells([one["scores"] for one in runs]), apart, *mined(workdirs[name]), str(len(runs))]
        centred = [[r for r in one.get("centred", ()) if "per camera" in r["features"]] for one in runs]
        if all(centred):
            yield [f"{name}, centred per camera †", *cells(centred), "", "", "", str(len(runs))]


def mean_ap(records: Sequence[Mapping[str, Any]]) -> float:
    return statistics.mean(record["mAP"] for record in records)


def main() -> None:
    # The method with true pairs is a module of this folder.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    known = {**ROWS, **PARTS, **RECORDINGS, **VISIBLE, **OTHER_START}
    arguments, extra = read_arguments(__doc__, "vvi", [*known], [*ROWS])
    workdirs = {name: train_row(name, known[name], arguments.seeds, arguments, extra) for name in arguments.rows}
    both = all(name not in VISIBLE for name in arguments.rows)
    heads = [*(("V → I", "I → V") if both else ("mAP",)), *RANKS, "beside HiTPro"]
    printed(["", *heads, "within: right / covered", "across", "seeds"], lines(workdirs))


if __name__ == "__main__":
    main()
