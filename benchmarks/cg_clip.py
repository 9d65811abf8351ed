"""CG-CLIP on the drawn world `teams`, beside what it starts from, what it is compared with, and parts of itself.

    python benchmarks/cg_clip.py --out runs/cg_clip [--world teams] [--seeds 1 2 3] [--rows …] [--config.key=value …]

Trains every row once per seed; finished runs are not repeated, stopped ones go on. Prints mAP and rank-1 in per cent,
mean ± sample deviation over the seeds, and the mean difference in mAP to the whole method, seed by seed, ± its standard
error. Then how much the starting towers make of captions: of the training people, how many have an image row that is
nearer to their own captions than to those of each team-mate.
`--config.…` goes to every run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from runs import beside, over_seeds, read_arguments, reopened, train_row

from jaxreid.run.workdirs import read_results

# Clips, augmentation and the bank's weight of configs/cg_clip.py's preset `walkers`.
SAME: dict[str, Any] = {"batch.seq_len": 4, "evaluation.seq_len": 4}
SAME |= {"augment.channel_exchange": 0.0, "augment.infrared_mix": False}
OF_FAMILY = {"augment.contrast": 0.0, "augment.gamma": 0.0, "augment.negative": 0.0, "weights.bank": 0.02}
TWO = "('last','projected')"  # features without TFE's
NO_TFE: dict[str, Any] = {"tfe.layers": 0, "triplet.features": TWO, "embedding": TWO}
NO_CMR: dict[str, Any] = {"cmr.depth": 0}
FULL = "CG-CLIP"
# Row → config and what differs from it; those of ONE_SEED are shown with the first seed.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline, same tower, clips and epochs": ("baseline", SAME),
    "TF-CLIP": ("tf_clip", {**SAME, **OF_FAMILY}),
    FULL: ("cg_clip", {}),
    "memory only": ("cg_clip", {**NO_TFE, **NO_CMR}),
    "memory and CMR": ("cg_clip", NO_TFE),
    "memory and TFE": ("cg_clip", NO_CMR),
    "captions of other people": ("cg_clip", {"captions.source": "shuffled"}),
    "one sentence for all": ("cg_clip", {"captions.source": "template"}),
}
HEAVY: dict[str, Any] = {"weights.bank": 0.1}
# Nothing but the bank says who is who: the case in which captions have the most to say.
ALONE: dict[str, Any] = {"weights.bank": 1.0, "weights.identity": 0.0, "weights.triplet": 0.0}
STRONG: dict[str, Any] = {"cmr.alpha": 1.0}
WRONG: dict[str, Any] = {"captions.source": "shuffled"}
ONE_SEED: dict[str, tuple[str, dict[str, Any]]] = {
    "no bank": ("cg_clip", {"weights.bank": 0.0}),
    "bank at weight 0.1": ("cg_clip", HEAVY),
    "bank at weight 0.1, no CMR": ("cg_clip", {**HEAVY, **NO_CMR}),
    "bank at weight 0.1, captions of other people": ("cg_clip", HEAVY | WRONG),
    "bank at weight 1": ("cg_clip", {"weights.bank": 1.0}),
    "bank at weight 1, no CMR": ("cg_clip", {"weights.bank": 1.0, **NO_CMR}),
    "bank alone": ("cg_clip", ALONE),
    "bank alone, no CMR": ("cg_clip", {**ALONE, **NO_CMR}),
    "bank alone, captions of other people": ("cg_clip", ALONE | WRONG),
    "bank at weight 0.1, CMR at full strength": ("cg_clip", HEAVY | STRONG),
    "bank at weight 0.1, CMR at full strength, captions of other people": ("cg_clip", HEAVY | STRONG | WRONG),
    "bank alone, CMR at full strength": ("cg_clip", ALONE | STRONG),
    "bank alone, CMR at full strength, captions of other people": ("cg_clip", ALONE | STRONG | WRONG),
    "end tokens of all captions": ("cg_clip", {"captions.level": "sentence"}),
    "one caption per person": ("cg_clip", {"captions.per_identity": 1}),
    "CMR of one layer": ("cg_clip", {"cmr.depth": 1}),
    "CMR at full strength": ("cg_clip", STRONG),
    "SSP on top": ("cg_clip", {"cmr.context": "caption+video"}),
    "contrast of clips and captions": ("cg_clip", {"weights.caption_contrast": 0.1}),
    "rows follow the batches": ("cg_clip", {"memory.momentum": 0.9}),
    "TFE's losses reach the tower": ("cg_clip", {"tfe.stop_grad": False}),
    "TFE without places": ("cg_clip", {"tfe.temporal_embed": False}),
    "TFE of two layers": ("cg_clip", {"tfe.layers": 2}),
    "4 learned tokens": ("cg_clip", {"tfe.queries": 4}),
    "8 learned tokens": ("cg_clip", {"tfe.queries": 8}),
    "32 learned tokens": ("cg_clip", {"tfe.queries": 32}),
}


def told_apart(workdir: Path, team: int) -> float:
    """Per cent of the training people whose image row is, of their team, nearest to their own captions: cosines, after
    the team's means are taken off, which say what all of them wear. Chance is one in a team."""
    from jaxreid.arrays import unit_rows

    run, state, _ = reopened(workdir)
    memory, labels = state.memory, run.method.info.labels
    assert labels is not None
    rows = np.asarray(memory.bank)
    texts = np.asarray(memory.mean_end())[: len(rows)]
    _, first = np.unique(labels.identity, return_index=True)
    teams = (labels.pid[first] - 1) // team
    right = []
    for one in np.unique(teams):
        of = teams == one
        image, text = (unit_rows(x[of] - x[of].mean(0)) for x in (rows, texts))
        right += [np.asarray(image @ text.T).argmax(1) == np.arange(of.sum())]
    return 100.0 * float(np.concatenate(right).mean())


def main() -> None:
    arguments, extra = read_arguments(__doc__, "teams", [*ROWS, *ONE_SEED])
    found: dict[str, list[dict[str, Any]]] = {}
    for name in arguments.rows:
        seeds = arguments.seeds if name in ROWS else arguments.seeds[:1]
        workdirs = train_row(name, {**ROWS, **ONE_SEED}[name], seeds, arguments, extra)
        found[name] = [read_results(workdir) for workdir in workdirs]
    print("| | mAP | rank-1 | mAP beside the whole method | seeds |\n|" + "---|" * 5)
    first = next(iter(found.values()))[0]
    start = next(record for record in first["before_training"] if record["features"] == "untouched tower")
    print(f"| untouched tower | {start['mAP']:.1f} | {start['rank-1']:.1f} | | |")
    whole = [results["scores"][0]["mAP"] for results in found.get(FULL, [])]
    for name, results in found.items():
        scores = [each["scores"][0] for each in results]
        apart = "" if name == FULL else beside([score["mAP"] for score in scores], whole)
        columns = (over_seeds([score[key] for score in scores]) for key in ("mAP", "rank-1"))
        print(f"| {' | '.join([name, *columns, apart, str(len(scores))])} |")
    if FULL in found:
        from data_builders.walkers.world import CONFIGS

        team = CONFIGS[arguments.world].team
        share = told_apart(arguments.out / f"{FULL}-{arguments.seeds[0]}", team)
        print(f"\nnearest to their own captions, in a team of {team}: {share:.0f} % (chance {100 / team:.0f} %)")


if __name__ == "__main__":
    main()
