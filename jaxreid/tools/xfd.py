"""The submission file of the VReID-XFD challenge from a trained run, and its score.

jaxreid xfd write runs/RUN submission.csv
jaxreid xfd score submission.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxreid.errors import command
from jaxreid.evaluation.cases import cases
from jaxreid.evaluation.xfd import Ranking, rankings, read, score, write
from jaxreid.files import expand
from jaxreid.retrieval.protocols import resolve


def rank_run(workdir: Path, data_dir: Path | None) -> Iterator[Ranking]:
    """The rankings of a run's newest checkpoint."""
    import ml_collections

    from jaxreid.evaluation.evaluator import Evaluator, of_output
    from jaxreid.run.model import start_run
    from jaxreid.run.workdirs import read_config
    from jaxreid.training.restore import restore_judged
    from jaxreid.training.steps import variables_of

    config = ml_collections.ConfigDict(read_config(workdir))
    run = start_run(config, workdir, data_dir)
    tests = run.dataset.tests
    pairs = [case for test in tests for case in cases(resolve("xfd"), test.query, test.gallery, test.name)]
    state, frozen, *_ = restore_judged(run)
    evaluator = Evaluator(run)
    features = evaluator.features(variables_of(state, frozen), state.memory)
    return rankings(pairs, of_output(features, evaluator.options.headline), evaluator.distance)


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    parser = argparse.ArgumentParser(prog="jaxreid xfd", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("write", help="rank the test tracklets with a trained run")
    making.add_argument("workdir", type=expand, help="of a run on a data set with the three cases")
    making.add_argument("csv", type=expand, help="file to write")
    making.add_argument("--data_dir", type=expand, help="where prepared sets live, as for jaxreid build")
    scoring = commands.add_parser("score", help="score a file by the names in it")
    scoring.add_argument("csv", type=expand, help="file to read")
    options = parser.parse_args(arguments)
    if options.command == "write":
        print(write(options.csv, rank_run(options.workdir, options.data_dir)))
        return 0
    for name, scores in score(read(options.csv)).items():
        ranks = "  ".join(f"rank-{k} {value:.2f}" for k, value in scores.rank.items())
        print(f"{name:<26}  mAP {scores.mAP:.2f}  {ranks}  queries {scores.queries}, unmatched {scores.unmatched}")
    return 0
