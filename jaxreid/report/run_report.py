"""The report of a run: what `page` shows, gathered from the run, its features and their scores."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxreid import retrieval
from jaxreid.data.prepared import camera_names, read_metadata
from jaxreid.devices import processes
from jaxreid.files import write_json
from jaxreid.report.cameras import camera_table
from jaxreid.report.data_figures import data_table, length_histograms
from jaxreid.report.earlier import read_earlier
from jaxreid.report.page import CameraTable, EarlierRun, ReportContents, write_report
from jaxreid.report.pictures import shown
from jaxreid.report.ranked import ranked_lists
from jaxreid.retrieval.distances import Distance
from jaxreid.run.workdirs import RESULTS
from jaxreid.training.metric_writer import read_metrics

if TYPE_CHECKING:
    from jaxreid.evaluation.cases import Case
    from jaxreid.evaluation.evaluator import Assessment
    from jaxreid.run.model import Run


def report_run(run: Run, assessment: Assessment, compare: Path | None = None) -> None:
    """Writes the report of a run into its workdir, and what that took into `results.json`; process 0 does.

    Args:
      compare: workdir of an earlier run to show beside this one.
    """
    with processes.together():  # a process that leaves earlier would count as lost
        if run.is_main:
            with run.phase("report"):
                write(run, assessment, compare)
            assessment.results["seconds"]["report"] = round(run.phases["report"], 2)
            write_json(run.workdir / RESULTS, assessment.results)


def write(run: Run, assessment: Assessment, compare: Path | None = None) -> Path:
    """Writes the report of a run into its workdir; arguments as for `report_run`."""
    splits, results, cases = run.dataset.splits, assessment.results, assessment.cases
    distance, features, quality = assessment.distance, assessment.features, assessment.quality
    names = camera_names(read_metadata(run.dataset.directory))
    return write_report(
        run.workdir,
        ReportContents(
            title=f"{run.config.name} on {run.dataset.name}",
            summary=summary(run, results),
            config=run.config.to_dict(),
            results=results["scores"] or results["reason"],
            controls=[*results.get("centred", ()), *results["before_training"]],
            assumptions=results["assumptions"],
            notes=results["notes"],
            earlier=_earlier(run, results, compare) if compare else None,
            cameras=_cameras(cases, distance, features, quality),
            camera_names=names,
            breakdown=results.get("breakdown", {}).get("tables", ()),
            open_set=results.get("open_set", ()),
            examined=results.get("examined", ()),
            pairs=results.get("examined_pairs", ()),
            strips=shown(assessment.strips),
            metrics=read_metrics(run.workdir),
            ranked=ranked_lists(run, cases, distance, features, quality, names),
            data=data_table(splits),
            lengths=length_histograms(splits),
            environment=results["environment"] | _of_the_report(results),
            phases=results["seconds"],
        ),
    )


def _cameras(
    cases: tuple[Case, ...], distance: Distance, features: dict[str, Any], quality: list[retrieval.Scores]
) -> dict[str, CameraTable]:
    """A table for each direction of the headline protocol that has more than one pair of cameras."""
    found = {}
    for case, scores in zip(cases, quality, strict=False):
        if case.protocol != cases[0].protocol:
            continue
        query, gallery = case.query, case.gallery
        table = camera_table(
            query.of(features),
            gallery.of(features),
            query.columns(),
            gallery.columns(),
            case.protocol,
            distance,
            scores,
        )
        if (table.queries > 0).sum() > 1:
            found[case.direction] = table
    return found


def _earlier(run: Run, results: dict[str, Any], compare: Path) -> EarlierRun:
    if compare.resolve() == run.workdir.resolve():
        earlier = EarlierRun(compare.name, problem=f"{compare} is this run itself")
    else:
        earlier = read_earlier(compare, results, run.config.to_dict(), run.dataset.fingerprint())
    if earlier.problem:
        print(f"not compared: {earlier.problem}", flush=True)
    return earlier


def summary(run: Run, results: dict[str, Any]) -> list[str]:
    """What was trained, in a few words each."""
    train, config, cameras = run.dataset.train, run.config, len(run.dataset.cameras)
    done, planned = results["epochs_done"], results["epochs"]
    return [
        f"preset {config.preset}, seed {config.seed}",
        f"{done} epochs" if done == planned else f"{done} of {planned} epochs",
        f"{len(train):,} training tracklets, {int(train.table.length.sum()):,} frames, {cameras} cameras",
    ]


def _of_the_report(results: dict[str, Any]) -> dict[str, str]:
    """What is shown beside the environment of the training."""
    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"starting weights": results["starting_weights"] or "not known", "written": written}
