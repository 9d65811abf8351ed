"""Evaluation: a split's features, and their scores in every direction of every protocol."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxreid import retrieval
from jaxreid.devices import parallel, processes
from jaxreid.devices.compiled import Compiled
from jaxreid.evaluation.breakdown import breakdown_tables
from jaxreid.evaluation.cases import Case, cases
from jaxreid.evaluation.controls import centred_controls, free_controls, of_output
from jaxreid.evaluation.examination import Strip, examination
from jaxreid.evaluation.extract import Extractor, embedding, make_extractor, tracklet_features
from jaxreid.evaluation.open_set import check_open_set, open_set_tables
from jaxreid.evaluation.pair_examination import pair_examination
from jaxreid.evaluation.rescoring import Rescored, Rescorer
from jaxreid.files import read_json, write_json
from jaxreid.methods.method import OWN
from jaxreid.retrieval.distances import Distance, OwnDistance
from jaxreid.retrieval.protocols import resolve
from jaxreid.retrieval.rerank import RERANKING
from jaxreid.run.environment import environment, read_training
from jaxreid.run.model import Run, abstract_batch
from jaxreid.run.workdirs import RESULTS, START, import_notes, read_results, read_sidecars

CMC_LENGTH = 20


@dataclasses.dataclass(frozen=True)
class Assessment:
    """What the final evaluation found.

    Attributes:
      results: what `results.json` holds: `scores`, one record per case, or `reason`, why nothing was scored;
        `before_training`, records of the controls; `centred`, of the trained features without the test set's means;
        `assumptions`, `notes` and what the run cost.
      cases: what was ranked, those of the headline protocol first.
      distance: of the headline output.
      features: split name → the headline output, one row per test tracklet.
      quality: its per-query scores of every case; empty where nothing was scored.
      strips: pictures that the method shows of its work.
    """

    results: dict[str, Any]
    cases: tuple[Case, ...]
    distance: Distance
    features: dict[str, Any]
    quality: list[retrieval.Scores]
    strips: tuple[Strip, ...] = ()


class Evaluator:
    """Scores a run's test splits; made once, so that its step compiles once.

    Attributes:
      scored: whether test tracklets have identities to score by.
      cases: every direction of every protocol, those of the headline protocol first.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.options = run.method.evaluation()
        tests = run.dataset.tests
        protocols = tuple(resolve(key) for key in run.dataset.protocols)
        known = max(split.labels.pid.max() for split in run.dataset.test_splits) >= 0
        self.scored = known and all(protocol.scored for protocol in protocols)
        if not self.scored:
            protocols = (resolve("none"),)
        self.cases = tuple(
            case for key in protocols for test in tests for case in cases(key, test.query, test.gallery, test.name)
        )
        for case in self.cases if self.scored else ():  # a run that cannot be scored should not be trained first
            case.check()
        if self.scored and self.options.open_set:
            check_open_set(self.cases)
        self.distance: Distance = self.options.distance
        if self.distance == OWN:
            self.distance = OwnDistance(run.method.distance)
        self.extractor = make_extractor(run, "embed_step", embedding(run.method), self.options.flip)

    @property
    def mesh(self) -> Mesh | None:
        """The devices that rank: every process ranks all queries on its own."""
        mesh = parallel.local_mesh(self.run.mesh)
        return mesh if mesh.size > 1 else None

    @property
    def across(self) -> bool:
        """Whether a query is compared with the other modality."""
        return any(case.protocol.other_modality for case in self.cases[:1])

    @functools.cached_property
    def rescorer(self) -> Rescorer:
        """Made when it is first asked for: training never does."""
        return Rescorer(self.run)

    def jobs(self, variables: Any, memory: Any) -> list[tuple[Compiled, tuple[Any, ...]]]:
        """The embedding step with its arguments, for `compile_together`."""
        batch = abstract_batch(self.run, self.run.config.extraction_batch_size, self.options.seq_len, "test")
        return [(self.extractor.step, (variables, memory, batch))]

    def features(self, variables: Any, memory: Any, extractor: Extractor | None = None) -> dict[str, dict[str, Any]]:
        """Split name → feature name → a pytree of f32[N, …], one row per test tracklet; of `embed` where no other
        extractor is given."""
        run, splits, pieces = self.run, self.run.dataset.test_splits, []
        for split, (_, rows) in zip(splits, run.distinct, strict=True):
            given = split, self.options, run.loading.for_tests(), run.reader(split), rows, run.extras(split, "test")
            pieces += [tracklet_features(extractor or self.extractor, variables, memory, *given)] if len(rows) else []
        if sum(len(rows) for _, rows in run.distinct) == sum(map(len, splits)):
            return {split.name: piece for split, piece in zip(splits, pieces, strict=True)}
        together = jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)
        numbered = zip(splits, run.distinct, strict=True)
        return {split.name: jax.tree.map(lambda x: x[numbers], together) for split, (numbers, _) in numbered}  # noqa: B023

    def _score(
        self,
        features: Mapping[str, Any],
        checkpoint: str,
        reranking: bool = False,
        output: str = "",
        distance: Distance | None = None,
        rescored: Rescored | None = None,
    ) -> list[tuple[dict[str, Any], Any]]:
        """(result record, per-query scores) of every case, for one feature per split; then those of all cases of a
        protocol together, where the data set is tested in several.

        Args:
          output: its name; the headline's where not given.
          distance: the run's where not given.
          rescored: shortlists of the cases, by which they are ranked.
        """
        found, options = [], self.options
        compared = distance or self.distance

        def entry(direction: str, scores: retrieval.Scores) -> tuple[dict[str, Any], retrieval.Scores]:
            record = retrieval.result_record(
                scores,
                scores.protocol,
                options.clip_description,
                options.seq_len,
                compared if isinstance(compared, str) else OWN,
                checkpoint,
                reranking,
                output or options.headline,
                rescored.told if rescored else "",
            )
            return {"direction": direction, **record}, scores

        for number, case in enumerate(self.cases):
            query, gallery = case.query, case.gallery
            rows: list[Any] = [side.of(features) for side in (query, gallery)]
            using: Any = compared
            if reranking:
                reranker = RERANKING[options.reranking]
                assert reranker is not None
                using = reranker(*rows, **options.rerank_options)
            elif rescored:
                using = rescored.distances[number]
            if using is not compared:  # it knows rows by their numbers
                rows = [np.arange(len(side)) for side in rows]
            scores = retrieval.score(
                rows[0],
                rows[1],
                query.columns(),
                gallery.columns(),
                case.protocol,
                distance=using,
                mesh=self.mesh,
                keep_matches=using is compared,
            )
            found.append(entry(case.direction, scores))
        if len(self.run.dataset.tests) > 1:
            for key in dict.fromkeys(scores.protocol for _, scores in found):
                found.append(entry("overall", retrieval.pooled([s for _, s in found if s.protocol == key])))
        return found

    def scores(self, variables: Any, memory: Any) -> dict[str, float]:
        """Flat figures for the training curves, of the headline protocol: "<direction>/mAP", "<direction>/rank-1"."""
        if not self.scored:
            return {}
        features = self.features(variables, memory)
        found = self._score(of_output(features, self.options.headline), "during training")
        headline = self.cases[0].protocol.key
        return {
            f"{record['direction']}/{k}": record[k]
            for record, _ in found
            if record["protocol"] == headline
            for k in ("mAP", "rank-1")
        }

    def at_start(self, variables: Any, memory: Any) -> None:
        """Scores the features that training starts from, with the free controls, into `start.json`."""
        path = self.run.workdir / START
        if not self.scored or processes.of_main(path.exists):
            return
        found = []
        by = functools.partial(self.features, variables, memory)
        for control in free_controls(self.run, self.options, by, self.across):
            scored = self._score(control.features, "before training", distance=control.distance)
            records = [{"features": control.name, **_with_cmc(record, scores)} for record, scores in scored]
            if not found:  # the plainest: what all that was trained is held against
                _add_breakdown(records, breakdown_tables(self.cases, [scores for _, scores in scored]))
            figures = "  ".join(f"{case_name(record, self.cases)} mAP {record['mAP']:.1f}" for record in records)
            print(f"before training, {control.name}: {figures}", flush=True)
            found += records
        with processes.together():
            if self.run.is_main:
                write_json(path, found)

    def _centred(self, features: dict[str, Any], checkpoint: str) -> list[dict[str, Any]]:
        """Records of the trained features without the test set's means, to be held against controls that are so."""
        found = centred_controls(features, self.run.dataset.test_splits, "trained", self.options.normalize)
        return [
            {"features": control.name, **_with_cmc(record, scores)}
            for control in found
            for record, scores in self._score(control.features, checkpoint)
        ]

    def final(self, variables: Any, memory: Any, epoch: int, epochs_done: int | None = None) -> Assessment:
        """Scores a state after `epoch` epochs of the whole run, and writes `results.json`.

        Args:
          epochs_done: how many the run has trained, where that is another number (an earlier state is the best).
        """
        run = self.run
        epochs = sum(stage.epochs for stage in run.method.stages())
        epochs_done = epoch if epochs_done is None else epochs_done
        checkpoint = f"epoch {epoch} " + ("(last)" if epoch == epochs else f"of {epochs}")
        if run.config.keep_best:
            checkpoint += ", chosen by test score"
        config = run.config
        notes: list[str] = []
        results: dict[str, Any] = {"config": config.name, "method": config.method, "seed": config.seed}
        results["dataset"] = run.dataset.name
        with run.phase("evaluation"):
            everything = self.features(variables, memory)
            features = of_output(everything, self.options.headline)
            quality: list[retrieval.Scores] = []
            if self.scored:
                scored = self._score(features, checkpoint)
                quality = [scores for _, scores in scored[: len(self.cases)]]
                if self.options.reranking:
                    scored += self._score(features, checkpoint, reranking=True)
                for output in self.options.outputs[1:]:
                    scored += self._score(of_output(everything, output), checkpoint, output=output)
                results["scores"] = [_with_cmc(record, scores) for record, scores in scored]
                results["centred"] = self._centred(features, checkpoint) if self.across else []
                results |= breakdown_tables(self.cases, quality)
                if self.options.open_set:
                    results |= open_set_tables(self.cases, features, self.distance, self.mesh)
            else:
                results["scores"], results["reason"] = [], self._why_not_scored()
            strips: tuple[Strip, ...] = ()
            if run.method.examines:
                results["examined"], strips = examination(run, [rows for _, rows in run.distinct], variables, memory)
            if run.method.examines_pairs() and self.scored:
                pairs = pair_examination(run, self.rescorer.extractor, self.cases[0], variables, memory)
                results["examined_pairs"] = pairs
        if self.scored and self.options.rescore_size:
            with run.phase("re-scoring"):
                rescored = self.rescorer(self.cases, features, variables, memory)
                scored = self._score(features, checkpoint, rescored=rescored)
                results["scores"] += [_with_cmc(record, scores) for record, scores in scored]
                results["rescoring"] = rescored.facts
                notes.append(rescored.note)
        results["before_training"] = self._start() if (run.workdir / START).exists() else []
        results["epochs_done"], results["epochs"] = epochs_done, epochs
        results["assumptions"] = run.method.assumptions() | read_sidecars(run.workdir)
        results["notes"] = [*run.method.notes(), *import_notes(run.workdir), *notes]
        results["compilations"] = {name: step.count for name, step in run.compiled.items() if step.count}
        results |= {"environment": environment(), "starting_weights": None} | read_training(run.workdir)
        results["seconds"] = self._seconds(epochs_done)
        with processes.together():  # a process that leaves earlier would count as lost
            if run.is_main:
                write_json(run.workdir / RESULTS, results)
        return Assessment(results, self.cases, self.distance, features, quality, strips)

    def _start(self) -> list[dict[str, Any]]:
        remedy = "delete it: the report then does without the scores from before training"
        return read_json(self.run.workdir / START, remedy)

    def _seconds(self, epochs_done: int) -> dict[str, float]:
        """Seconds by phase; scoring the same state again keeps what training it took."""
        before = read_results(self.run.workdir)
        known = before.get("seconds", {}) if before.get("epochs_done") == epochs_done else {}
        return known | {name: round(seconds, 2) for name, seconds in self.run.phases.items()}

    def _why_not_scored(self) -> str:
        if resolve(self.run.dataset.protocols[0]).scored:
            return "no test tracklet has an identity: nothing was scored, nearest tracklets are shown instead"
        return "the data set gives no identities: nothing was scored, nearest tracklets are shown instead"


def _with_cmc(record: dict[str, Any], scores: retrieval.Scores) -> dict[str, Any]:
    return {**record, "cmc": scores.cmc(CMC_LENGTH)}


def _add_breakdown(records: list[dict[str, Any]], breakdown: dict[str, Any]) -> None:
    """Puts tables of scores by condition into the records of their directions."""
    for table in breakdown.get("breakdown", {}).get("tables", ()):
        for record in records:
            if (record["direction"], record["protocol"]) == (table["direction"], table["protocol"]):
                record.setdefault("breakdown", []).append(table)


def headline(scores: dict[str, float]) -> float:
    """What epochs are compared by: the mean mAP of the directions that `Evaluator.scores` found."""
    return float(np.mean([value for name, value in scores.items() if name.endswith("/mAP")]))


def case_name(record: dict[str, Any], known: tuple[Case, ...]) -> str:
    """A record's direction, with its protocol where several are scored."""
    several = len({case.protocol.key for case in known}) > 1
    return f"{record['direction']} ({record['protocol']})" if several else record["direction"]
