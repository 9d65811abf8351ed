"""VReID-XFD from a trained run: features, submission file and scores under every rule; scores of such a file.

jaxreid xfd evaluate runs/RUN
jaxreid xfd score runs/RUN/xfd/submission.csv --truth runs/RUN/xfd/gt.csv
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxreid.errors import UserError, command
from jaxreid.evaluation import xfd
from jaxreid.evaluation.cases import Case, cases
from jaxreid.evaluation.open_set import open_set_tables
from jaxreid.evaluation.xfd_files import read, read_truth, truth_of_names, write, write_truth
from jaxreid.files import expand, write_json, written_aside
from jaxreid.retrieval.protocols import resolve

if TYPE_CHECKING:
    from jaxreid.evaluation.evaluator import Evaluator

COLUMNS = {
    "case": "", "junk": "left out", "mAP_official": "mAP official", "mAP": "mAP", "rank-1": "rank-1",
    "rank-5": "rank-5", "rank-10": "rank-10", "mINP": "mINP", "queries": "queries", "unmatched": "unmatched",
    "gallery": "gallery",
}  # fmt: skip
SUBMISSION, RERANKED, FEATURES = "submission.csv", "submission_reranked.csv", "features.npz"


def features_of(workdir: Path, data_dir: Path | None) -> tuple[Evaluator, dict[str, Any], int]:
    """The evaluator of a run, its headline features of every test split, and the epoch of the state that is scored."""
    import ml_collections

    from jaxreid.evaluation.controls import of_output
    from jaxreid.evaluation.evaluator import Evaluator
    from jaxreid.run.model import start_run
    from jaxreid.run.workdirs import read_config
    from jaxreid.training.restore import restore_judged
    from jaxreid.training.steps import variables_of

    run = start_run(ml_collections.ConfigDict(read_config(workdir)), workdir, data_dir, train=False)
    state, frozen, epoch, _ = restore_judged(run)
    evaluator = Evaluator(run)
    features = evaluator.features(variables_of(state, frozen), state.memory)
    return evaluator, of_output(features, evaluator.options.headline), epoch


def evaluate(workdir: Path, out: Path, data_dir: Path | None) -> dict[str, Any]:
    """Writes features, rankings with and without re-ranking, who is who, and the scores of both into a folder.

    Returns:
      `scores` and `reranked`, records of `xfd.score`, and `open_set`: what `scores.json` holds.

    Raises:
      UserError: the data set does not have the three cases or, after features and rankings were written, does not say
        who is who.
    """
    evaluator, features, epoch = features_of(workdir, data_dir)
    dataset, options = evaluator.run.dataset, evaluator.options
    known = [cases(resolve("xfd"), test.query, test.gallery, test.name) for test in dataset.tests]
    pairs = xfd.ordered([case for each in known for case in each])
    out.mkdir(parents=True, exist_ok=True)
    _save(out / FEATURES, pairs, features)
    rankings = {SUBMISSION: xfd.rank(pairs, features, evaluator.distance)}
    plain = all(isinstance(rows, np.ndarray) and rows.ndim == 2 for rows in features.values())
    if plain and evaluator.distance in ("cosine", "euclidean"):
        rankings[RERANKED] = xfd.rank(pairs, features, evaluator.distance, options.rerank_options)
    for name, ranked in rankings.items():
        write(out / name, ranked)
    if not evaluator.scored:
        raise UserError(
            f"{out / SUBMISSION} is written, and {FEATURES} beside it, but nothing is scored: {dataset.name} does not "
            "say who is who. Submit the file, score it with --truth gt.csv, or train the preset detreidx_dev"
        )
    truth = xfd.truth_of(pairs)
    write_truth(out / "gt.csv", truth)
    scores = [xfd.score(ranked, truth) for ranked in rankings.values()]
    found = {"dataset": dataset.name, "epoch": epoch, **dict(zip(("scores", "reranked"), scores, strict=False))}
    found |= open_set_tables(pairs, features, evaluator.distance, evaluator.mesh)
    write_json(out / "scores.json", found)
    return found


def _save(path: Path, pairs: Sequence[Case], features: dict[str, Any]) -> None:
    """An array for every side of a case and every leaf of its features, and the names of its tracklets."""
    import jax

    arrays = {}
    for case in pairs:
        for side in (case.query, case.gallery):
            names = [side.split.labels.names[row] for row in side.rows]
            arrays[f"{side.split.name}/names"] = np.array(names)
            for leaf, values in jax.tree_util.tree_leaves_with_path(side.of(features)):
                arrays[f"{side.split.name}/feature{jax.tree_util.keystr(leaf)}"] = np.asarray(values)
    with written_aside(path) as aside, aside.open("wb") as file:
        np.savez(file, **arrays)


def table(records: Sequence[xfd.Record], title: str) -> str:
    """Records as a Markdown table."""
    lines = [[title, *(*COLUMNS.values(),)[1:]], ["---"] * len(COLUMNS)]
    lines += [
        [f"{record[key]:.2f}" if isinstance(record[key], float) else str(record[key]) for key in COLUMNS]
        for record in records
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _open_set(tables: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for one in tables:
        rates = [f"FNIR {row['FNIR']:.1f} at FPIR {row['asked']:g}" for row in one.get("identification", ())]
        rates += [f"TAR {row['TAR']:.1f} at FAR {row['asked']:g}" for row in one.get("verification", ())]
        lines.append(f"open set, {one['direction']}: {', '.join(rates) or one['reason']}")
    return lines


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    parser = argparse.ArgumentParser(prog="jaxreid xfd", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("evaluate", help="rank and score the three cases with a trained run")
    making.add_argument("workdir", type=expand, help="of a run on a data set with the three cases")
    making.add_argument("--out", type=expand, metavar="DIR", help="for what is written; default WORKDIR/xfd")
    making.add_argument("--data_dir", type=expand, help="where prepared sets live, as for jaxreid build")
    scoring = commands.add_parser("score", help="score a submission file")
    scoring.add_argument("csv", type=expand, help="file to read")
    scoring.add_argument("--truth", type=expand, metavar="CSV",
        help="who is who: case,split,tracklet,pid,session; default: by the identities in the names")  # fmt: skip
    scoring.add_argument("--json", type=expand, metavar="FILE", help="also write the scores here, unrounded")
    options = parser.parse_args(arguments)
    if options.command == "evaluate":
        out = options.out or options.workdir / "xfd"
        found = evaluate(options.workdir, out, options.data_dir)
        print(table(found["scores"], ""))
        if "reranked" in found:
            print(table(found["reranked"], "re-ranked"))
        print(*_open_set(found["open_set"]), f"written: {out}", sep="\n")
        return 0
    ranked = read(options.csv)
    for remark in xfd.remarks(ranked):
        print(f"warning: {remark}", file=sys.stderr)
    scores = xfd.score(ranked, read_truth(options.truth) if options.truth else truth_of_names(ranked))
    if options.json:
        write_json(options.json, {"scores": scores})
    print(table(scores, ""))
    if not options.truth:
        print("without --truth no session is known: nothing is scored by the rule “camid”", file=sys.stderr)
    return 0
