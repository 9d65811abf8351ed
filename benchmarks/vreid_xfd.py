"""VReID-XFD on the drawn world `aerial`: the untouched tower, the supervised baseline and VSLA-CLIP, by condition.

    python benchmarks/vreid_xfd.py --out runs/vreid_xfd [--world aerial] [--seeds 1 2 3] [--config.key=value …]

Trains each row once per seed (finished runs are not repeated, stopped ones go on), scores it under every rule
(`jaxreid xfd evaluate`) and prints Markdown: the table of `jaxreid compare` with what follows from altitude, distance
and pitch, the same under each rule, and which of the paper's claims every seed's interval bears out. The page beside it
has the curves. `--config.…` goes to every run; built sets are looked for in $JAXREID_DATA_DIR.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runs import flags, over_seeds, printed, read_arguments, train, workdir_of

from jaxreid.files import read_json
from jaxreid.run.workdirs import read_results
from jaxreid.tools import compare, xfd

# Row → config and what differs from it: the baseline sees as many clips of as many frames, with the same augmentation.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": (
        "baseline",
        {
            "batch.num_identities": 12,
            "batch.num_instances": 8,
            "augment.channel_exchange": 0.0,
            "augment.infrared_mix": False,
            "augment.contrast": 0.2,
            "augment.gamma": 0.3,
        },
    ),
    "VSLA-CLIP": ("vreid_xfd", {}),
}
Rows = dict[str, tuple[str, dict[str, Any]]]
UNTOUCHED = "untouched tower"
METRICS = ("mAP_official", "mAP", "rank-1")
# The paper's claims of every method: condition, figure, and the sign that bears it out.
CLAIMS = (
    ("falls with altitude", "altitude", "rho", -1),
    ("falls with distance", "distance", "rho", -1),
    ("falls with distance, slanted views", "distance, slanted views", "rho", -1),
    ("falls with slant range", "slant range", "rho", -1),
    ("nadir is worse", "angle", "nadir_gap", 1),
)


def trained(row: tuple[str, dict[str, Any]], workdir: Path, world: str, seed: int, extra: list[str]) -> Path:
    """The workdir of a run of (config, what differs from it) that is trained, and scored under every rule."""
    config, changes = row
    train(config, world, seed, workdir, [*flags(changes), *extra])
    scores = workdir / "xfd" / "scores.json"
    if not scores.exists() or scores.stat().st_mtime < (workdir / "results.json").stat().st_mtime:
        xfd.evaluate(workdir, workdir / "xfd", None)
    return workdir


def by_rule(workdirs: dict[str, list[Path]]) -> Iterator[list[str]]:
    """Row, re-ranking, rule of junk, case, both mAP and rank-1 over seeds."""
    for name, folders in workdirs.items():
        found = [read_json(folder / "xfd" / "scores.json", "delete it") for folder in folders]
        for key, word in (("scores", "no"), ("reranked", "yes")):
            for records in zip(*(one.get(key, ()) for one in found), strict=True):
                cells = [over_seeds([record[metric] for record in records]) for metric in METRICS]
                yield [name, word, records[0]["junk"], records[0]["case"], *cells]


def tables_of(workdirs: dict[str, list[Path]]) -> dict[str, list[list[dict[str, Any]]]]:
    """Row → for each seed its tables by condition; the untouched tower's are those of the first row's runs."""
    results = {name: [read_results(folder) for folder in folders] for name, folders in workdirs.items()}
    before = [
        record for record in next(iter(results.values()))[0]["before_training"] if record["features"] == UNTOUCHED
    ]
    untouched = [table for record in before for table in record.get("breakdown", ())]
    learned = {name: [one["breakdown"]["tables"] for one in found] for name, found in results.items()}
    return {UNTOUCHED: [untouched], **learned}


def claims(seeds: list[list[dict[str, Any]]]) -> Iterator[list[str]]:
    """Direction and, for every claim, its figure over seeds and what the seeds' intervals say of it."""
    tables = [table for of_seed in seeds for table in of_seed]
    for direction, side in dict.fromkeys((t["direction"], t["side"]) for t in tables if t["condition"] == "altitude"):
        cells = []
        for _, condition, figure, sign in CLAIMS:
            own = [t for t in tables if (t["direction"], t["side"], t["condition"]) == (direction, side, condition)]
            known = [t for t in own if t.get(figure) is not None and None not in t[f"{figure}_interval"]]
            if not known:
                cells.append("–")
                continue
            ends = [sign * end for t in known for end in t[f"{figure}_interval"]]
            borne_out = "yes" if min(ends) > 0 else "the opposite" if max(ends) < 0 else "open"
            cells.append(f"{statistics.mean(t[figure] for t in known):.2f}: {borne_out}")
        yield [f"{direction}, by {side}", *cells]


def shown(doc: str | None, rows: Rows, one_seed: Rows | None = None) -> dict[str, list[Path]]:
    """Trains the rows that the command line asks for, those of `one_seed` with the first seed, prints the table of
    `jaxreid compare` by condition and the scores under each rule; row → its workdirs."""
    once = one_seed or {}
    known = {**rows, **once}
    arguments, extra = read_arguments(doc, "aerial", [*known])
    workdirs: dict[str, list[Path]] = {name: [] for name in arguments.rows}
    for number, seed in enumerate(arguments.seeds):  # all rows of a seed before the next: what is there can be shown
        for name in arguments.rows:
            if name in once and number:
                continue
            workdir = workdir_of(arguments.out, name, seed)
            workdirs[name].append(trained(known[name], workdir, arguments.world, seed, extra))
    named = [f"{name}={folder}" for name, folders in workdirs.items() for folder in folders]
    compare.main([*named, "--controls", f"--out={arguments.out / 'compare'}"])
    printed(["row", "re-ranked", "left out", "case", "mAP official", "mAP", "rank-1"], by_rule(workdirs))
    return workdirs


def main() -> None:
    workdirs = shown(__doc__, ROWS)
    head = ["row", "direction", *(claim for claim, *_ in CLAIMS)]
    printed(head, ([name, *line] for name, seeds in tables_of(workdirs).items() for line in claims(seeds)))


if __name__ == "__main__":
    main()
