"""Evaluation: a split's features, their scores in every direction of the protocol, and the report."""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxreid import __version__, retrieval
from jaxreid.data.clips import plan_tracklets
from jaxreid.data.schema import INFRARED, VISIBLE
from jaxreid.data.split import Split, modality_name
from jaxreid.extract import pool_tracklets
from jaxreid.metric_writer import read_metrics
from jaxreid.report.page import RankedList, ReportContents, Thumb, write_report
from jaxreid.retrieval.protocols import resolve
from jaxreid.run import Run, write_json

RANKED_QUERIES, RANKED_RESULTS = 3, 10


@dataclasses.dataclass(frozen=True)
class Side:
    """Tracklets that take part in a direction: rows of one split."""

    split: Split
    rows: np.ndarray  # i64[n]

    def columns(self) -> retrieval.Rows:
        table, labels = self.split.table, self.split.labels
        every = retrieval.Rows(
            identity=labels.pid,
            camera=table.camera,
            modality=table.modality,
            clothes=labels.clothes,
            tracklet=np.arange(len(self.split)),
        )
        return every[self.rows]


def directions(query: Split, gallery: Split, cross_modality: bool) -> dict[str, tuple[Side, Side]]:
    """Name → (query side, gallery side).

    Across modalities there are two directions; where the query split holds one modality only, the gallery split
    gives the queries of the other (as on HITSZ-VCM, where the two sets swap).

    Raises:
      ValueError: the protocol is cross-modality and a modality is missing.
    """
    if not cross_modality:
        return {"query_to_gallery": (Side(query, np.arange(len(query))), Side(gallery, np.arange(len(gallery))))}

    def side(first: Split, second: Split, code: int) -> Side:
        for split in (first, second):
            rows = np.flatnonzero(split.table.modality == code)
            if len(rows):
                return Side(split, rows)
        raise ValueError(
            f"{first.directory}: the protocol compares visible with infrared, but no test tracklet is "
            f"{modality_name(code)}; choose another with --config.dataset.protocol"
        )

    found = {}
    for one, other in ((VISIBLE, INFRARED), (INFRARED, VISIBLE)):
        name = f"{modality_name(one)}_to_{modality_name(other)}"
        found[name] = (side(query, gallery, one), side(gallery, query, other))
    return found


class Evaluator:
    """Scores a run's test splits; made once, so that its step compiles once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.options = run.method.evaluation()
        self.protocol = resolve(run.dataset.protocol)
        known = max(run.dataset.query.labels.pid.max(), run.dataset.gallery.labels.pid.max()) >= 0
        self.scored = self.protocol.scored and known
        cross_modality = self.protocol.other_modality if self.scored else False
        self.directions = directions(run.dataset.query, run.dataset.gallery, cross_modality)
        self.extractor = run.extractor("embed_step", run.method.embed, self.options.flip)

    def features(self, variables: Any, memory: Any) -> dict[str, dict[str, np.ndarray]]:
        """Split name → feature name → f32[N, D], one unit row per test tracklet."""
        run, found = self.run, {}
        for split in {s.name: s for s in (run.dataset.query, run.dataset.gallery)}.values():
            plan = plan_tracklets(split.table.length, rule=self.options.rule, frames=self.options.frames)
            clips = self.extractor(variables, memory, split, plan, run.loading, run.reader(split))
            found[split.name] = pool_tracklets(clips, len(split), self.options.pool)
        return found

    def _score(self, features: dict[str, np.ndarray], checkpoint: str) -> dict[str, tuple[dict[str, Any], Any]]:
        """Direction → (result record, per-query scores) for one feature array per split."""
        found = {}
        for name, (query, gallery) in self.directions.items():
            scores = retrieval.score(
                features[query.split.name][query.rows],
                features[gallery.split.name][gallery.rows],
                query.columns(),
                gallery.columns(),
                self.protocol,
                distance=self.options.distance,
            )
            record = retrieval.result_record(
                scores, self.protocol, self.options.rule, self.options.frames, self.options.distance, checkpoint
            )
            found[name] = (record, scores)
        return found

    def scores(self, variables: Any, memory: Any) -> dict[str, float]:
        """Flat figures for the training curves: "<direction>/mAP", "<direction>/rank-1"."""
        if not self.scored:
            return {}
        features = self.features(variables, memory)
        found = self._score({name: arrays["feature"] for name, arrays in features.items()}, "during training")
        return {f"{direction}/{k}": found[direction][0][k] for direction in found for k in ("mAP", "rank-1")}

    def at_start(self, variables: Any, memory: Any) -> None:
        """Scores the features that training starts from, with the free controls, into `start.json`.

        Controls need no training: the tower's own feature, the neck's (whose statistics were calibrated on training
        clips), and that with the mean of each modality or each camera of the test set taken out (no method may know
        the test cameras, so the last is for diagnosis only).
        """
        path = self.run.workdir / "start.json"
        if not self.scored or path.exists():
            return
        features = self.features(variables, memory)
        names = {"tower": "untouched tower", "feature": "batch-norm calibrated"}
        controls = {}
        known = next(iter(features.values()))
        for name in (*(name for name in names if name in known), *(name for name in known if name not in names)):
            controls[names.get(name, name)] = {split: arrays[name] for split, arrays in features.items()}
        if self.protocol.other_modality:
            calibrated = {split: arrays["feature"] for split, arrays in features.items()}
            controls["calibrated, centred per modality"] = self._centred(calibrated, "modality")
            controls["calibrated, centred per camera"] = self._centred(calibrated, "camera")
        found = {
            label: {direction: record for direction, (record, _) in self._score(arrays, "before training").items()}
            for label, arrays in controls.items()
        }
        if self.run.is_main:
            write_json(path, found)
        for label, records in found.items():
            figures = "  ".join(f"{direction} mAP {record['mAP']:.1f}" for direction, record in records.items())
            print(f"before training, {label}: {figures}", flush=True)

    def _centred(self, features: dict[str, np.ndarray], column: str) -> dict[str, np.ndarray]:
        """Features with the mean of all test tracklets of the same modality (or camera) taken out."""
        splits = {split.name: split for split in (self.run.dataset.query, self.run.dataset.gallery)}
        group = {name: getattr(splits[name].table, column) for name in features}
        centred = {name: rows.copy() for name, rows in features.items()}
        for code in np.unique(np.concatenate(list(group.values()))):
            mean = np.concatenate([features[name][group[name] == code] for name in features]).mean(0)
            for name in features:
                centred[name][group[name] == code] -= mean
        return {name: np.asarray(retrieval.l2_normalise(rows)) for name, rows in centred.items()}

    def final(self, variables: Any, memory: Any, epochs_done: int) -> dict[str, Any]:
        """Scores, `results.json` and the report of a state after `epochs_done` epochs of the whole run.

        Returns:
          What `results.json` holds.
        """
        run = self.run
        epochs = sum(stage.epochs for stage in run.method.stages())
        checkpoint = f"epoch {epochs_done} " + ("(last)" if epochs_done == epochs else f"of {epochs}")
        with run.phase("evaluation"):
            features = {name: arrays["feature"] for name, arrays in self.features(variables, memory).items()}
            if self.scored:
                scored = self._score(features, checkpoint)
                results: dict[str, Any] = {direction: record for direction, (record, _) in scored.items()}
                quality = {direction: scores for direction, (_, scores) in scored.items()}
            else:
                results = {"scored": False, "reason": self._why_not_scored()}
                quality = {}
            ranked = self._ranked(features, quality)
        start = run.workdir / "start.json"
        if start.exists():
            results["before_training"] = json.loads(start.read_text())
        results["epochs_done"], results["epochs"] = epochs_done, epochs
        results["notes"] = list(run.method.notes())
        results["compilations"] = {name: step.count for name, step in run.compiled.items() if step.count}
        with run.phase("report"):
            if run.is_main:
                self._report(results, ranked)
        results["seconds"] = {name: round(seconds, 2) for name, seconds in run.phases.items()}
        if run.is_main:
            write_json(run.workdir / "results.json", results)
        return results

    def _why_not_scored(self) -> str:
        if not self.protocol.scored:
            return "the data set gives no identities: nothing was scored, nearest tracklets are shown instead"
        return "no test tracklet has an identity: nothing was scored, nearest tracklets are shown instead"

    def _ranked(self, features: dict[str, np.ndarray], quality: dict[str, Any]) -> tuple[RankedList, ...]:
        """Best and worst queries (a spread of them where nothing is scored) with their nearest tracklets."""
        lists = []
        for direction, (query, gallery) in self.directions.items():
            columns, others = query.columns(), gallery.columns()
            chosen, label = self._chosen(query, quality.get(direction))
            selected = columns[chosen]

            def left_out(rows, selected=selected, others=others, query=query, gallery=gallery, chosen=chosen):
                if self.scored:
                    return np.asarray(self.protocol.junk(selected[rows], others))
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
                distance=self.options.distance,
            )
            for place, (row, hits, values) in enumerate(zip(chosen, index, distance, strict=True)):
                results = tuple(
                    self._thumb(gallery, int(hit), self._match(columns, row, others, hit), f"{value:.2f}")
                    for hit, value in zip(hits, values, strict=True)
                    if hit >= 0
                )
                lists.append(
                    RankedList(f"{direction}, {label[place]}", self._thumb(query, int(row), None, ""), results)
                )
        return tuple(lists)

    def _chosen(self, query: Side, quality: Any) -> tuple[np.ndarray, list[str]]:
        if quality is None:
            rows = np.unique(np.linspace(0, len(query.rows) - 1, 2 * RANKED_QUERIES).astype(int))
            return rows, ["nearest tracklets"] * len(rows)
        precision = np.asarray(quality.average_precision)
        order = np.argsort(np.where(np.isfinite(precision), precision, -1.0), kind="stable")
        order = order[np.isfinite(precision[order])]
        worst, best = order[:RANKED_QUERIES], order[::-1][:RANKED_QUERIES]
        return np.concatenate([best, worst]), ["best"] * len(best) + ["worst"] * len(worst)

    def _match(self, query: retrieval.Rows, row: int, gallery: retrieval.Rows, hit: int) -> bool | None:
        return bool(query.identity[row] == gallery.identity[hit]) if self.scored else None

    def _thumb(self, side: Side, row: int, match: bool | None, text: str) -> Thumb:
        split, row = side.split, int(side.rows[row])
        frames = self.run.reader(split).encoded(row)
        camera = split.table.camera[row]
        caption = f"{split.labels.names[row]}, camera {camera}, {modality_name(int(split.table.modality[row]))}"
        return Thumb(f"{caption} {text}".strip(), frames[len(frames) // 2], match)

    def _report(self, results: dict[str, Any], ranked: tuple[RankedList, ...]) -> Path:
        run = self.run
        records = {name: results[name] for name in self.directions if name in results}
        return write_report(
            run.workdir,
            ReportContents(
                title=f"{run.config.method} on {run.dataset.name}",
                config=run.config.to_dict(),
                results=records or results["reason"],
                controls=results.get("before_training", {}),
                metrics=read_metrics(run.workdir),
                ranked=ranked,
                notes=results["notes"],
                environment=environment(),
                phases=dict(run.phases),
            ),
        )


def environment() -> dict[str, str]:
    """What the run ran on."""
    device = jax.devices()[0]
    return {
        "jaxreid": __version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} × {device.device_kind} ({device.platform}), {jax.process_count()} processes",
    }
