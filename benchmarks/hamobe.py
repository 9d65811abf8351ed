"""HAMoBE on the drawn world `clothes`, beside what it starts from, its experts alone, and its gates without learning.

    python benchmarks/hamobe.py --out runs/hamobe [--world clothes] [--seeds 1 2 3] [--rows …] [--config.key=value …]

Trains every row once per seed; finished runs are not repeated, stopped ones go on. Prints mAP and rank-1 in per cent
over all matches and over those in other clothes, mean ± sample deviation over the seeds, and the mean difference in mAP
in other clothes to the whole method, seed by seed, ± its standard error. Rows whose shortlists are scored pair by pair
have a second line for that. Then, of the whole method, how much its second gate trusts each expert where a person is
seen in the same and in other clothes, and the share of each low-level expert, over the seeds. `--config.…` goes to
every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runs import beside, over_seeds, printed, read_arguments, train_row

from jaxreid.run.workdirs import read_results

FULL = "HAMoBE"
PROTOCOLS = ("market", "clothes_cc")
# Frames, clips and epochs of configs/hamobe.py's preset `walkers`.
SAME: dict[str, Any] = {
    "frames.width": 64,
    "loading.resize": "pad",
    "batch.num_identities": 8,
    "batch.num_instances": 4,
    "batch.seq_len": 4,
    "epochs": 8,
    "evaluation.clip_sampling": "linspace",
    "evaluation.seq_len": 4,
}
SHORTLIST: dict[str, Any] = {"evaluation.rescore_size": 50}


def with_experts(*names: str) -> dict[str, Any]:
    """Some of the experts, by their single embedding; one alone as it is, since it drowns no other."""
    used = "(" + "".join(f"'{name}'," for name in names) + ")"
    changes = {"experts.used": used, "evaluation.outputs": "('feature',)", "evaluation.rescore_size": 0}
    return changes | {"experts.normalize": len(names) > 1}


Row = tuple[str, dict[str, Any]]
# Row → config and what differs from it; those of ONE_SEED are shown with the first seed.
ROWS: dict[str, Row] = {
    "baseline, same tower, clips and epochs": ("baseline", SAME),
    "baseline, its tower frozen as here": ("baseline", SAME | {"optimizer.groups": "(('^encoder/',0.0,None),)"}),
    FULL: ("hamobe", SHORTLIST),
    "features as long as they are": ("hamobe", {**SHORTLIST, "experts.normalize": False}),
    "canonical expert alone": ("hamobe", with_experts("canonical")),
    "appearance expert alone": ("hamobe", with_experts("appearance")),
    "gait expert alone": ("hamobe", with_experts("gait")),
    "equal weights of experts": ("hamobe", {"gates.second": "uniform"}),
    "gates see one video": ("hamobe", {"pair.probability": 0.0}),
}
ONE_SEED: dict[str, Row] = {
    "both gates see the pair": ("hamobe", {**SHORTLIST, "pair.mode": "pair_full"}),
    "no loss of pairs": ("hamobe", {**SHORTLIST, "pair.weight": 0.0}),
    "equal shares of low-level experts": ("hamobe", {"gates.first": "uniform"}),
    "one stream for all experts": ("hamobe", {"experts.shared": True}),
    "last block alone": ("hamobe", {"decoder.blocks": 1}),
    "no temporal modules": ("hamobe", dict.fromkeys(("decoder.conv", "decoder.position", "decoder.bias"), False)),
    "no convolution over time": ("hamobe", {"decoder.conv": False}),
    "no places of frames": ("hamobe", {"decoder.position": False}),
    "no bias from neighbouring frames": ("hamobe", {"decoder.bias": False}),
    "without the canonical expert": ("hamobe", with_experts("appearance", "gait")),
    "without the appearance expert": ("hamobe", with_experts("canonical", "gait")),
    "without the gait expert": ("hamobe", with_experts("canonical", "appearance")),
    **{
        f"no consistency loss: {name}": ("hamobe", {f"weights.{name}": 0.0})
        for name in ("intra_canonical", "inter", "intra_appearance", "gait")
    },
    "clothes told apart by appearance": ("hamobe", {"weights.clothes": 1.0}),
}


def of_protocol(
    records: Sequence[Mapping[str, Any]], protocol: str, rescored: bool = False
) -> Mapping[str, Any] | None:
    """The headline's record of a protocol, of the single embedding or of its shortlists; None where there is none."""
    return next(
        (
            record
            for record in records
            if record["protocol"] == protocol
            and record.get("output", "feature") == "feature"
            and bool(record.get("rescoring")) == rescored
        ),
        None,
    )


def scores_table(found: Mapping[str, list[dict[str, Any]]]) -> None:
    whole = [of_protocol(results["scores"], PROTOCOLS[1])["mAP"] for results in found.get(FULL, [])]  # pyright: ignore
    lines: list[list[str]] = []
    first = next(iter(found.values()))[0]
    start = [record for record in first["before_training"] if record["features"] == "untouched tower"]
    cells = [over_seeds([of_protocol(start, p)[key]]) for p in PROTOCOLS for key in ("mAP", "rank-1")]  # pyright: ignore
    lines.append(["untouched tower", *cells, "", ""])
    for name, runs in found.items():
        for rescored in (False, True):
            records = [[of_protocol(results["scores"], p, rescored) for p in PROTOCOLS] for results in runs]
            if None in records[0]:
                continue
            columns: Any = list(zip(*records, strict=True))
            cells = [over_seeds([r[key] for r in column]) for column in columns for key in ("mAP", "rank-1")]
            plain = name == FULL and not rescored
            apart = "" if plain else beside([record["mAP"] for record in columns[1]], whole)
            lines.append([name + (", shortlists by pairs" if rescored else ""), *cells, apart, str(len(runs))])
    heads = ["", "mAP", "rank-1", "mAP, other clothes", "rank-1, other clothes", "mAP beside the whole method", "seeds"]
    printed(heads, lines)


def trust(runs: Sequence[Mapping[str, Any]]) -> None:
    """How much the second gate trusts each expert in pairs, by what the two have in common; and alone."""
    pairs = [
        {(record["pairs"], record["name"]): record["mean"] for record in results["examined_pairs"]} for results in runs
    ]
    alone = [{record["name"]: record["mean"] for record in results["examined"]} for results in runs]
    names = list(dict.fromkeys(name for _, name in pairs[0]))
    kinds = list(dict.fromkeys(kind for kind, _ in pairs[0]))
    lines = [[kind, *(over_seeds([one[kind, name] for one in pairs], 3) for name in names)] for kind in kinds]
    lines.append(["a clip that meets nobody", *(over_seeds([one[name] for one in alone], 3) for name in names)])
    printed(["", *names], lines)
    loads = [name for name in alone[0] if name not in names]
    printed(["", "mean over test clips"], [[name, over_seeds([one[name] for one in alone], 3)] for name in loads])


def main() -> None:
    known = {**ROWS, **ONE_SEED}
    arguments, extra = read_arguments(__doc__, "clothes", [*known])
    found: dict[str, list[dict[str, Any]]] = {}
    for name in arguments.rows:
        seeds = arguments.seeds if name in ROWS else arguments.seeds[:1]
        found[name] = [read_results(workdir) for workdir in train_row(name, known[name], seeds, arguments, extra)]
    scores_table(found)
    if FULL in found:
        trust(found[FULL])


if __name__ == "__main__":
    main()
