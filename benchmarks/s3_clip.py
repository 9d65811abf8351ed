"""S3-CLIP on the drawn world `aerial`: with super-resolution from the air, nowhere and everywhere, beside VSLA-CLIP.

    python benchmarks/s3_clip.py --out runs/s3_clip [--world aerial] [--seeds 1 2 3] [--rows …] [--config.key=value …]

Trains every row once per seed; finished runs are not repeated, stopped ones go on, and a row without results is not in
the tables. All rows have the same tower and the same normalization of frames. Prints Markdown: scores of every
direction; what super-resolution changes within a run (scores with it minus without, same parameters); and how near
its pictures of held-out frames come to the sharp ones, beside bicubic ones: in how many seeds the interval over persons
lies above zero. Rows of `ONE_SEED` are run with one. `--config.…` goes to every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runs import over_seeds, printed, read_arguments, train_row
from vreid_xfd import ROWS as ANCESTORS

from jaxreid.run.workdirs import read_results

BUDGET = {"batch.num_instances": 4, "epochs": 3}  # of S3-CLIP's main stage, for what it is compared with
PLAIN = {"degradation.blur": (0.01, 0.01), "degradation.rows": (1.0, 1.0), "degradation.noise": 0.0}

# Row → config and what differs from it.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ANCESTORS["baseline"],
    "VSLA-CLIP": ANCESTORS["VSLA-CLIP"],
    "VSLA-CLIP, as many steps": ("vreid_xfd", BUDGET),
    "S3-CLIP": ("s3_clip", {}),
    "no task features": ("s3_clip", {"weights.task_features": 0.0}),
    "no mixed frames": ("s3_clip", {"views.restored": 0.5, "views.plain": 0.5, "views.mixed": 0.0}),
    "plain frames alone": ("s3_clip", {"views.restored": 0.0, "views.plain": 1.0, "views.mixed": 0.0}),
    "every frame by itself": ("s3_clip", {"sr.temporal": "none"}),
}
ONE_SEED: dict[str, tuple[str, dict[str, Any]]] = {
    "no pre-training": ("s3_clip", {"pretrain.steps": 0}),
    "no temporal loss": ("s3_clip", {"weights.temporal": 0.0}),
    "task features at weight 1": ("s3_clip", {"weights.task_features": 1.0}),
    "task features from the start": ("s3_clip", {"sr.warmup_epochs": 0.0}),
    "mixed frame by frame": ("s3_clip", {"cqmix.per": "frame"}),
    "bicubic small frames": ("s3_clip", PLAIN),
    "pictures of the step before": ("s3_clip", {"sr.stale": True}),
    "losses of identity, too": ("s3_clip", {"sr.joint": True}),
}
METRICS = ("mAP", "rank-1", "rank-5", "rank-10")
FORMS = {"feature": "aerial", "sr_off": "off", "sr_all": "all"}

Results = dict[str, list[dict[str, Any]]]  # row → of every seed


def records(found: dict[str, Any], output: str) -> dict[str, dict[str, Any]]:
    """Direction → the record of an output under the headline protocol, without re-ranking."""
    headline = found["scores"][0]["protocol"]
    own = [r for r in found["scores"] if (r["protocol"], r["output"]) == (headline, output)]
    return {r["direction"]: r for r in own if not r["reranking"]}


def scores(results: Results) -> Iterator[list[str]]:
    """Row, which frames are restored in tests, direction, and metrics over seeds."""
    for name, seeds in results.items():
        for output, word in FORMS.items():
            of_seeds = [records(found, output) for found in seeds]
            for direction in of_seeds[0]:
                cells = [over_seeds([one[direction][metric] for one in of_seeds]) for metric in METRICS]
                restored = word if records(seeds[0], "sr_off") else "–"
                yield [name, restored, direction.replace("_", " "), *cells, str(len(seeds))]


def changes(results: Results) -> Iterator[list[str]]:
    """Row, direction, and what restoring aerial frames adds to each metric, in points over seeds."""
    for name, seeds in results.items():
        pairs = [(records(found, "feature"), records(found, "sr_off")) for found in seeds]
        for direction in pairs[0][1]:
            cells = [over_seeds([one[direction][m] - other[direction][m] for one, other in pairs]) for m in METRICS]
            yield [name, direction.replace("_", " "), *cells]


def pictures(results: Results) -> Iterator[list[str]]:
    """Row, figure, its mean over seeds, the ends of its intervals, and in how many seeds these are above zero."""
    for name, seeds in results.items():
        for figures in zip(*(found.get("examined", ()) for found in seeds), strict=True):
            means, ends = [f["mean"] for f in figures], [f["interval"] for f in figures]
            deviation = over_seeds([100 * mean for mean in means])
            above = sum(low > 0 for low, _ in ends)
            interval = f"{min(low for low, _ in ends):.3f} to {max(high for _, high in ends):.3f}"
            yield [name, figures[0]["name"], deviation, interval, f"{above} of {len(seeds)}"]


def main() -> None:
    known = {**ROWS, **ONE_SEED}
    arguments, extra = read_arguments(__doc__, "aerial", [*known])
    results: Results = {}
    for name in arguments.rows:
        seeds = arguments.seeds if name in ROWS else arguments.seeds[:1]
        results[name] = [read_results(workdir) for workdir in train_row(name, known[name], seeds, arguments, extra)]
    printed(["row", "restored in tests", "direction", *METRICS, "seeds"], scores(results))
    printed(["row", "direction", *(f"{metric} gained" for metric in METRICS)], changes(results))
    head = ["row", "figure", "mean over seeds, × 100", "from the lowest to the highest end", "above zero"]
    printed(head, pictures(results))


if __name__ == "__main__":
    main()
