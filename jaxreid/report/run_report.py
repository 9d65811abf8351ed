"""The report of a run: what `page` shows, gathered from the run, its features and their scores."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxreid import __version__, retrieval
from jaxreid.data.split import modality_name
from jaxreid.metric_writer import read_metrics
from jaxreid.report.page import RankedList, ReportContents, Thumb, write_report

RANKED_QUERIES, RANKED_RESULTS = 3, 10


def write(
    run: Any, evaluator: Any, features: dict[str, np.ndarray], quality: Sequence[Any], results: dict[str, Any]
) -> Path:
    """Writes the report of a run into its workdir.

    Args:
      run: the run (`jaxreid.run.Run`).
      evaluator: its evaluator, whose `cases` were scored (`jaxreid.evaluate.Evaluator`).
      features: split name → f32[N, D], one row per test tracklet.
      quality: per-query scores of every case; empty where nothing was scored.
      results: what `results.json` holds.
    """
    return write_report(
        run.workdir,
        ReportContents(
            title=f"{run.config.method} on {run.dataset.name}",
            config=run.config.to_dict(),
            results=results["scores"] or results["reason"],
            controls=results["before_training"],
            metrics=read_metrics(run.workdir),
            ranked=_ranked(run, evaluator, features, quality),
            notes=results["notes"],
            environment=environment(),
            phases=dict(run.phases),
        ),
    )


def _ranked(
    run: Any, evaluator: Any, features: dict[str, np.ndarray], quality: Sequence[Any]
) -> tuple[RankedList, ...]:
    """Best and worst queries of the headline protocol (a spread of queries where nothing is scored)."""
    lists = []
    headline = evaluator.cases[0].protocol
    for number, case in enumerate(evaluator.cases):
        if case.protocol is not headline:
            continue
        query, gallery = case.query, case.gallery
        columns, others = query.columns(), gallery.columns()
        chosen, label = _chosen(len(query.rows), quality[number] if quality else None)
        selected = columns[chosen]

        def left_out(rows, case=case, selected=selected, others=others, query=query, gallery=gallery, chosen=chosen):
            if evaluator.scored:
                return np.asarray(case.protocol.junk(selected[rows], others))
            # Search is for other cameras; with one camera, for other tracklets (names compare across splits).
            if len(np.unique(others.camera)) > 1:
                return selected.camera[rows][:, None] == others.camera
            names = np.array(query.split.labels.names)[query.rows[chosen[rows]]]
            return names[:, None] == np.array(gallery.split.labels.names)[gallery.rows]

        index, distance = retrieval.nearest(
            features[query.split.name][query.rows[chosen]],
            features[gallery.split.name][gallery.rows],
            RANKED_RESULTS,
            exclude=left_out,
            distance=evaluator.options.distance,
        )
        for place, (row, hits, values) in enumerate(zip(chosen, index, distance, strict=True)):
            results = tuple(
                _thumb(
                    run,
                    gallery,
                    int(hit),
                    bool(columns.identity[row] == others.identity[hit]) if evaluator.scored else None,
                    f"{value:.2f}",
                )
                for hit, value in zip(hits, values, strict=True)
                if hit >= 0
            )
            title = f"{case.direction}, {label[place]}"
            lists.append(RankedList(title, _thumb(run, query, int(row), None, ""), results))
    return tuple(lists)


def _chosen(count: int, quality: Any) -> tuple[np.ndarray, list[str]]:
    if quality is None:
        rows = np.unique(np.linspace(0, count - 1, 2 * RANKED_QUERIES).astype(int))
        return rows, ["nearest tracklets"] * len(rows)
    order = np.argsort(quality.average_precision, kind="stable")
    order = order[quality.valid[order]]
    worst, best = order[:RANKED_QUERIES], order[::-1][:RANKED_QUERIES]
    return np.concatenate([best, worst]), ["best"] * len(best) + ["worst"] * len(worst)


def _thumb(run: Any, side: Any, row: int, match: bool | None, text: str) -> Thumb:
    split, row = side.split, int(side.rows[row])
    frames = run.reader(split).encoded(row)
    camera = split.table.camera[row]
    caption = f"{split.labels.names[row]}, camera {camera}, {modality_name(int(split.table.modality[row]))}"
    return Thumb(f"{caption} {text}".strip(), frames[len(frames) // 2], match)


def environment() -> dict[str, str]:
    """What the run ran on."""
    device = jax.devices()[0]
    return {
        "jaxreid": __version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} × {device.device_kind} ({device.platform}), {jax.process_count()} processes",
    }
