"""DinoGRL on the drawn world `vvi`, its streams alone and together, and how good the silhouettes are that nobody drew.

    python benchmarks/dinogrl.py --out runs/dinogrl [--world vvi] [--seeds 1 2 3] [--rows …] [--config.key=value …]

Trains every row once per seed; finished runs are not repeated, stopped ones go on. Prints mAP and rank-1 in per cent of
either direction, mean ± sample deviation over the seeds, and the mean difference in mAP of both directions to the whole
method, seed by seed, ± its standard error. Then, of the rows with a gait stream, the mean intersection over union of
silhouettes and true ones on the cells of test frames, by modality, beside two silhouettes that are the same for
everybody: the mean one of the training frames of that modality, and a box in the middle; and beside what the tower's
tokens hold: a threshold on their strongest direction, and a linear probe. Thresholds, the sides of the box and the
probe are those that are best on training frames. True silhouettes are read for this alone. `--config.…` goes to every
run.
"""

from __future__ import annotations

import functools
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from runs import beside, over_seeds, read_arguments, reopened, train_row

from jaxreid.run.workdirs import read_results

FULL = "DinoGRL"
DIRECTIONS = ("visible_to_infrared", "infrared_to_visible")
# Of configs/dinogrl.py's preset `walkers`: the appearance stream's tower, frames per step and steps.
SAME: dict[str, Any] = {
    "backbone.name": "resnet_tiny_two_stem",
    "backbone.checkpoint": "walkers_resnet_tiny",
    "batch.num_identities": 8,
    "batch.seq_len": 2,
    "epochs": 5,  # of 31 steps
    "evaluation.clip_sampling": "chunk_first",
    "evaluation.seq_len": 4,
}
Row = tuple[str, dict[str, Any]]
# Row → config and what differs from it; those of ONE_SEED are shown with the first seed.
ROWS: dict[str, Row] = {
    "baseline, same ResNet and clips": ("baseline", SAME),
    "appearance only": ("dinogrl", {"streams": "appearance"}),
    "gait only": ("dinogrl", {"streams": "gait"}),
    "both, no PBMGE": ("dinogrl", {"pbmge.granularities": "()"}),
    "PBMGE, gait enriched": ("dinogrl", {"pbmge.direction": "gait"}),
    "PBMGE, appearance enriched": ("dinogrl", {"pbmge.direction": "appearance"}),
    FULL: ("dinogrl", {}),
}
ONE_SEED: dict[str, Row] = {
    "PBMGE of halves": ("dinogrl", {"pbmge.granularities": "(2,)"}),
    "silhouettes alone as gait": ("dinogrl", {"gait_input": "silhouette"}),
    "no diversity loss": ("dinogrl", {"lambda_div": 0.0}),
    "no smoothness losses": ("dinogrl", {"lambda_sob_mask": 0.0, "lambda_sob_parts": 0.0}),
    "smoothness as published": ("dinogrl", {"mask_sobel_layout": "legacy"}),
    "identity losses reach the mask": ("dinogrl", {"mask_grad": True}),
    "no map is dropped": ("dinogrl", {"map_drop": 0.0}),
    "ReLU in the stems": ("dinogrl", {"stem_relu": True}),
    "every frame its own crop and flip": (
        "dinogrl",
        {"augment.per_frame": "('crop','flip','channel','erase')"},
    ),
}


# --- Silhouettes ------------------------------------------------------------------------------------------------------


def overlap(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Intersection over union f64[N] of masks bool[N, h, w], or of one mask bool[h, w], with true ones."""
    both, either = ((of(found, true)).sum((-2, -1)) for of in (np.logical_and, np.logical_or))
    return both / np.maximum(either, 1)


def on_cells(coverage: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Coverage u8[N, H, W] of 255 → which cells of a coarser grid are more than half covered, bool[N, h, w]."""
    n, rows, columns = coverage.shape
    cells = coverage.reshape(n, size[0], rows // size[0], size[1], columns // size[1])
    return cells.mean((2, 4)) > 127.5


def true_cells(split: Any, rows: np.ndarray, frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """True silhouettes of frames i32[M, T] of tracklets, bool[M, T, h, w]."""
    from jaxreid.data.sidecars import Sidecar

    sidecar = Sidecar.open(split.directory, "silhouettes")
    found = [
        on_cells(sidecar.read(split.labels.names[row], split.frame_index(row)[places])[0], size)
        for row, places in zip(rows.tolist(), frames, strict=True)
    ]
    return np.stack(found)


def same_for_everybody(true: np.ndarray) -> dict[str, np.ndarray]:
    """The best thresholded mean and the best centred box of true silhouettes bool[N, h, w]."""
    mean, (rows, columns) = true.mean(0), true.shape[1:]
    masks = {"mean of training": [mean > threshold for threshold in np.linspace(0.05, 0.95, 19)], "centred box": []}
    for height in range(2, rows + 1, 2):
        for width in range(2, columns + 1, 2):
            box = np.zeros((rows, columns), bool)
            top, left = (rows - height) // 2, (columns - width) // 2
            box[top : top + height, left : left + width] = True
            masks["centred box"].append(box)
    return {name: max(each, key=lambda mask: overlap(mask, true).mean()) for name, each in masks.items()}


def from_tokens(known: np.ndarray, true: np.ndarray, seen: np.ndarray) -> dict[str, np.ndarray]:
    """Silhouettes bool[M, h, w] of tokens `seen` f32[M, a, b, D], read as is best for `known` ones f32[N, a, b, D] with
    their true silhouettes bool[N, h, w]: by the side they are on along their strongest direction, and by least squares.
    """

    def cells(score: np.ndarray) -> np.ndarray:
        return score.repeat(true.shape[1] // score.shape[1], 1).repeat(true.shape[2] // score.shape[2], 2)

    mean = known.mean((0, 1, 2))
    flat = (known - mean).reshape(-1, known.shape[-1])
    direction = np.linalg.eigh(flat.T @ flat)[1][:, -1]
    found, wanted = cells((known - mean) @ direction), cells((seen - mean) @ direction)
    sides = [(sign, x) for sign in (1, -1) for x in sign * np.quantile(sign * found, np.linspace(0.1, 0.9, 17))]
    sign, limit = max(sides, key=lambda side: overlap(side[0] * found > side[0] * side[1], true).mean())
    covered = on_cells(255 * true.astype(np.uint8), known.shape[1:3]).reshape(-1)
    probe = np.linalg.lstsq(flat, covered - covered.mean(), rcond=None)[0]
    return {
        "strongest direction": sign * wanted > sign * limit,
        "linear probe": cells((seen - mean) @ probe) + covered.mean() > 0.5,
    }


@functools.cache
def silhouette_overlap(workdir: Path) -> dict[str, dict[str, float]]:
    """Modality → mean intersection over union of the run's silhouettes, of the two that are everybody's, and of the two
    that tokens are read for."""
    from jaxreid.data.clips import plan_all_parts
    from jaxreid.data.split import modality_name
    from jaxreid.evaluation.extract import make_extractor
    from jaxreid.training.steps import variables_of

    run, state, frozen = reopened(workdir)
    method: Any = run.method
    size, options = method.network_config.grid, run.method.evaluation()

    def look(*arguments: Any) -> dict[str, Any]:
        return {"silhouette": method.silhouettes(*arguments)["silhouette"], **method.last_tokens(*arguments)}

    extractor = make_extractor(run, "silhouette_step", look)

    def looked(split: Any, plan: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """(what is found of its clips by name, true silhouettes)"""
        features = extractor(
            variables_of(state, frozen), state.memory, split, plan, run.loading.for_tests(), run.reader(split)
        )
        arrays = {name: np.asarray(x)[np.asarray(features.valid)] for name, x in features.arrays.items()}
        return arrays, true_cells(split, plan.tracklet, plan.frames, size)

    train = run.dataset.train
    plan = plan_all_parts(train.table.length, parts=1, seq_len=options.seq_len)
    given, known = looked(train, plan)
    found: dict[str, dict[str, list[float]]] = {}
    for split in run.dataset.test_splits:
        plan = options.plan(split.table.length)
        arrays, true = looked(split, plan)
        for code in np.unique(split.table.modality):
            rows, own = (split.table.modality == code)[plan.tracklet], train.table.modality == code
            of_training = known[own].reshape(-1, *size)
            tokens = [
                x.astype(np.float32).reshape(-1, *x.shape[2:]) for x in (given["tokens"][own], arrays["tokens"][rows])
            ]
            masks = {
                "silhouettes": arrays["silhouette"][rows].reshape(-1, *size) > 0.5,
                **same_for_everybody(of_training),
                **from_tokens(tokens[0], of_training, tokens[1]),
            }
            seen = true[rows].reshape(-1, *size)
            counted = seen.any((1, 2))
            scores = found.setdefault(modality_name(int(code)), {})
            for name, mask in masks.items():
                scores.setdefault(name, []).extend(overlap(mask, seen)[counted].tolist())
    return {
        modality: {name: statistics.fmean(values) for name, values in scores.items()}
        for modality, scores in found.items()
    }


# --- Tables -----------------------------------------------------------------------------------------------------------


def of_direction(results: dict[str, Any], direction: str) -> dict[str, float]:
    return next(
        record
        for record in results["scores"]
        if record["direction"] == direction and record.get("output", "feature") == "feature"
    )


def scores_table(found: dict[str, list[dict[str, Any]]]) -> None:
    heads = [f"{key}, {direction.replace('_', ' ')}" for direction in DIRECTIONS for key in ("mAP", "rank-1")]
    print(f"| | {' | '.join(heads)} | mAP beside the whole method | seeds |\n|" + "---|" * 7)

    def mean(results: dict[str, Any]) -> float:
        return statistics.fmean(of_direction(results, direction)["mAP"] for direction in DIRECTIONS)

    whole = [mean(results) for results in found.get(FULL, [])]
    for name, runs in found.items():
        cells = [
            over_seeds([of_direction(results, direction)[key] for results in runs])
            for direction in DIRECTIONS
            for key in ("mAP", "rank-1")
        ]
        apart = "" if name == FULL else beside([*map(mean, runs)], whole)
        print(f"| {' | '.join([name, *cells, apart, str(len(runs))])} |")


def overlap_table(workdirs: dict[str, list[Path]]) -> None:
    everybody, tokens = ("mean of training", "centred box"), ("strongest direction", "linear probe")
    heads = ("modality", "silhouettes", *everybody, "above both by 0.1", *tokens)
    print(f"\n| | {' | '.join(heads)} |\n|" + "---|" * 8)
    for name, folders in workdirs.items():
        found = [silhouette_overlap(folder) for folder in folders]
        for modality in found[0]:
            mean = {key: statistics.fmean(one[modality][key] for one in found) for key in found[0][modality]}
            verdict = "yes" if mean["silhouettes"] >= max(mean[key] for key in everybody) + 0.1 else "failed"
            own, read = ([f"{mean[key]:.2f}" for key in keys] for keys in (("silhouettes", *everybody), tokens))
            print(f"| {' | '.join([name, modality, *own, verdict, *read])} |")


def main() -> None:
    known = {**ROWS, **ONE_SEED}
    arguments, extra = read_arguments(__doc__, "vvi", [*known])
    found: dict[str, list[dict[str, Any]]] = {}
    silhouettes: dict[str, list[Path]] = {}
    for name in arguments.rows:
        config, changes = known[name]
        seeds = arguments.seeds if name in ROWS else arguments.seeds[:1]
        workdirs = train_row(name, (config, changes), seeds, arguments, extra)
        found[name] = [read_results(workdir) for workdir in workdirs]
        if config == "dinogrl" and changes.get("streams") != "appearance":
            silhouettes[name] = workdirs
    scores_table(found)
    overlap_table(silhouettes)


if __name__ == "__main__":
    main()
