"""Training: stages and epochs, the same for every method.

init_memory, then for each stage: begin_stage → [extract → refresh → sampling_labels → steps → checkpoint] per epoch;
the first extraction may also set batch statistics before anything else is done with it.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxreid.data.loader import batches
from jaxreid.data.samplers import NothingToDraw
from jaxreid.devices import parallel, processes
from jaxreid.devices.compiled import Compiled, compile_together
from jaxreid.devices.digests import digest
from jaxreid.errors import UserError
from jaxreid.evaluation.evaluator import Evaluator, headline
from jaxreid.evaluation.extract import make_extractor
from jaxreid.methods.method import Context, Features, Stage
from jaxreid.run.environment import note_training
from jaxreid.run.model import Run, abstract_batch
from jaxreid.training.cached import Cache, fill, plan_of, rows_of
from jaxreid.training.checkpoints import Checkpoints, newest_whole
from jaxreid.training.finite import Watch
from jaxreid.training.forecast import Forecast
from jaxreid.training.metric_writer import MetricWriter
from jaxreid.training.restore import restore
from jaxreid.training.start import enter_stage, memory_for_tests
from jaxreid.training.steps import TrainState, groups, make_train_step, progress_at, variables_of, with_batch_stats


def train(run: Run, evaluator: Evaluator) -> tuple[TrainState, Any]:
    """Trains from the newest checkpoint of the workdir, or from the start, to the last epoch of the last stage.

    Returns:
      (state, frozen parameters) after the last epoch.
    """
    config = run.config
    if config.keep_best and not evaluator.scored:
        raise UserError("config.keep_best=True needs scores, and this data set cannot be scored: set it to False")
    checkpoints = Checkpoints(run.workdir, config.keep_checkpoints, config.keep_best)
    stages = run.method.stages()
    with run.phase("start-up"):
        restored = newest_whole(checkpoints, lambda number: (number, *restore(run, checkpoints, number, mend=True)))
    state: Any
    latest, state, frozen, meta = restored or (0, None, None, {"stage": 0, "epoch": 0, "step": 0})
    with processes.together():
        writer = MetricWriter(run.workdir, latest, run.is_main)
    bar = tqdm(unit=" frames", unit_scale=True, disable=None if run.is_main else True, dynamic_ncols=True)
    run_epoch = sum(stage.epochs for stage in stages[: meta["stage"]])
    try:
        for number in range(meta["stage"], len(stages)):
            stage = stages[number]
            with run.phase("start-up"):
                if restored and number == meta["stage"]:
                    print(f"resuming {run.workdir} after epoch {meta['epoch']} of stage {stage.name!r}", flush=True)
                    first = meta["epoch"]
                else:
                    state, frozen = enter_stage(run, stage, state, frozen)
                    checkpoints.save_frozen(stage.name, frozen)
                    first = 0
            weights = None if restored or number else digest(variables_of(state, frozen))
            if run.is_main and first < stage.epochs:
                note_training(run.workdir, weights)
            steps = EpochLoop(run, stage, number, state)
            print(steps.describe(state, frozen), flush=True)
            steps.find_cache(state, frozen, checkpoints, begins=first == 0, bar=bar)
            scored_first = number == 0 and first == 0 and config.evaluate_start
            with run.compiling():
                jobs = steps.jobs(state, frozen, begins=first == 0)
                if scored_first:
                    jobs += evaluator.jobs(variables_of(state, frozen), memory_for_tests(run, number, state.memory))
                compile_together(jobs)
            features = None
            if first == 0 and stage.calibrate:
                with run.phase("extraction"):
                    state, features = steps.calibrate(state, frozen, bar)
            if scored_first:
                with run.phase("evaluation"):
                    evaluator.at_start(variables_of(state, frozen), memory_for_tests(run, number, state.memory))
            for epoch in range(first, stage.epochs):
                where = {"stage": stage.name, "epoch": epoch, "run_epoch": run_epoch + epoch}
                state = steps.epoch(state, frozen, epoch, writer, where, bar, features)
                features = None
                score, done = None, epoch + 1
                due = config.evaluate_every and done % config.evaluate_every == 0
                if due and (config.keep_best or done < stage.epochs):
                    # Before the checkpoint: whoever resumes from it finds the scores written.
                    with run.phase("evaluation"):
                        memory = memory_for_tests(run, number, state.memory)
                        scores = evaluator.scores(variables_of(state, frozen), memory)
                    writer.write("evaluate", scores, **where, step=int(state.step))
                    score = headline(scores) if config.keep_best else None
                with run.phase("checkpoint"):
                    meta = {"stage": number, "epoch": done, "step": int(state.step)}
                    checkpoints.save(run_epoch + done, state, meta, score)
            run_epoch += stage.epochs
        with run.phase("checkpoint"):
            checkpoints.wait()
    finally:
        bar.close()
        writer.close()
        checkpoints.close()
    return state, frozen  # pyright: ignore[reportReturnType]


class EpochLoop:
    """The epochs of one stage: its compiled steps, its plans, its loaders."""

    def __init__(self, run: Run, stage: Stage, number: int, state: TrainState) -> None:
        self.run, self.stage, self.number = run, stage, number
        self.split, self.columns = run.dataset.train, run.method.info.columns
        self.sharding = parallel.state_sharding(state, run.mesh)
        self.forecast, self.watch = Forecast(run, stage), Watch(run.config, stage)
        method = run.method
        self.train_step = make_train_step(method, stage, run.pixels, run.mesh, self.sharding)
        run.compiled[f"{stage.name}/train_step"] = self.train_step
        self.cache: Cache | None = None
        if stage.cached:
            name, options = f"{stage.name}/cache_step", stage.cached
            self.cacher = make_extractor(run, name, options.extract, augmentation=options.augment)
        if stage.extraction:
            self.extractor = make_extractor(
                run,
                f"{stage.name}/extract_step",
                stage.extraction.extract or method.embed,
                augmentation=stage.extraction.augment,
            )
            if stage.extraction.refresh:
                self.refresh = self._compiled("refresh", stage.extraction.refresh, self.sharding.memory)
        if stage.calibrate:
            shardings = (self.sharding.batch_stats, parallel.rows(run.mesh))
            self.calibrated = self._compiled("calibrate", method.calibrate, shardings)
        if stage.refresh_after:
            self.refresh_after = self._compiled("refresh_after", stage.refresh_after, self.sharding.memory)

    def _compiled(self, name: str, function: Any, shardings: Any) -> Compiled:
        step = self.run.compiled[f"{self.stage.name}/{name}"] = Compiled(function, out_shardings=shardings)
        return step

    def describe(self, state: TrainState, frozen: Any) -> str:
        """The stage's batches, and what of its arrays lies where."""
        stage, clips = self.stage, self.stage.sampler.batch_size(self.columns)
        line = f"stage {stage.name!r}: {stage.epochs} epochs; batches of {clips} clips × {stage.seq_len} frames, "
        line += f"{clips // self.run.mesh.size} clips per device"
        return "\n".join([line, *parallel.placement(groups(state, frozen))])

    def jobs(self, state: TrainState, frozen: Any, begins: bool) -> list[tuple[Compiled, tuple[Any, ...]]]:
        """The steps that will be called and their arguments, known before anything is read; for `compile_together`."""
        run, stage = self.run, self.stage
        batch = abstract_batch(run, stage.sampler.batch_size(self.columns), stage.seq_len, "train", stage.pictures)
        progress, variables = progress_at(stage, 0, 0, 1), variables_of(state, frozen)
        jobs: list[tuple[Compiled, tuple[Any, ...]]] = [(self.train_step, (state, frozen, batch, progress, self.cache))]
        if stage.extraction and (begins or stage.extraction.every):
            batch = abstract_batch(run, run.config.extraction_batch_size, stage.extraction.seq_len, "extract")
            arguments = (variables, state.memory, batch)
            jobs.append((self.extractor.step, arguments))
            clips = len(stage.extraction.plan(self.split.table.length))
            features = self.extractor.abstract_features(clips, *arguments)
            if stage.extraction.refresh:
                jobs.append((self.refresh, (variables, state.memory, features, Context(state.rng, progress))))
            if begins and stage.calibrate:
                jobs.append((self.calibrated, (variables, features)))
        return jobs

    def abstract_cache(self, state: TrainState, frozen: Any) -> Cache:
        """Shapes and placement of the cached features."""
        options, run = self.stage.cached, self.run
        assert options
        batch = abstract_batch(run, run.config.extraction_batch_size, options.seq_len, "extract")
        features = self.cacher.step.result_shapes(variables_of(state, frozen), state.memory, batch)
        start, rows = rows_of(options, self.split.table.length)
        like = jax.eval_shape(lambda features: fill(features, start, rows), features)
        return parallel.with_shardings(like, parallel.state_sharding(like, run.mesh))

    def find_cache(self, state: TrainState, frozen: Any, checkpoints: Checkpoints, begins: bool, bar: Any) -> None:
        """The features that the stage learns from: found where it begins, read again where it goes on."""
        options, run, length = self.stage.cached, self.run, self.split.table.length
        if not options:
            return
        name, like = f"{self.stage.name}-cached", self.abstract_cache(state, frozen)
        if not begins:
            with run.phase("start-up"):
                self.cache = checkpoints.restore_frozen(name, like, jax.tree.map(lambda x: x.sharding, like))
            return
        with run.phase("extraction"):
            bar.set_description(f"features for stage {self.stage.name!r}")
            reader, extras = run.reader(self.split), run.extras(self.split, "extract")
            plan, variables = plan_of(options, length), variables_of(state, frozen)
            features = self.cacher(variables, state.memory, self.split, plan, run.loading, reader, extras)
            start, rows = rows_of(options, length)
            placed = jax.jit(fill, static_argnums=2, out_shardings=jax.tree.map(lambda x: x.sharding, like))
            self.cache = placed(features, start, rows)
        with run.phase("checkpoint"):
            checkpoints.save_frozen(name, self.cache)

    def loader(self, state: TrainState, epoch: int) -> tuple[Any, int]:
        """(iterator of batches, their number): the order is a function of seed, stage, epoch and labels.

        An epoch whose labels from memory leave nothing to draw has no batch, in every process alike.
        """
        run, stage = self.run, self.stage
        remembered = run.method.sampling_labels(state.memory)
        labels = self.split.labels.identity if remembered is None else parallel.to_host(remembered)
        rng = np.random.default_rng((run.config.seed, self.number, epoch))
        try:
            plan = stage.plan(labels, self.columns, self.split.table.length, rng, epoch)
        except NothingToDraw as error:
            if remembered is None:  # these labels are the same in every epoch
                raise
            warnings.warn(f"epoch {epoch + 1} of stage {stage.name!r} is skipped: {error}", stacklevel=2)
            return iter(()), 0
        size = stage.sampler.batch_size(self.columns)
        loader = batches(
            self.split,
            plan,
            size,
            run.loading,
            uses_identity=run.method.uses_identity,
            reader=run.reader(self.split),
            extras=run.extras(self.split, "train"),
            pictures=stage.pictures,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return (parallel.to_global(batch, run.mesh) for batch in loader), len(plan) // size

    def extract(self, state: TrainState, frozen: Any, epoch: int, bar: Any) -> Features:
        """Features of the training split as the stage's `extraction` asks for them."""
        run, variables = self.run, variables_of(state, frozen)
        assert self.stage.extraction
        plan = self.stage.extraction.plan(self.split.table.length)
        bar.set_description(f"epoch {epoch + 1}/{self.stage.epochs} reading the split")
        reader, extras = run.reader(self.split), run.extras(self.split, "extract")
        features = self.extractor(variables, state.memory, self.split, plan, run.loading, reader, extras)
        self.watch.after_extraction(epoch, features, self.split.labels.names)
        return features

    def calibrate(self, state: TrainState, frozen: Any, bar: Any) -> tuple[TrainState, Features]:
        """Batch statistics of the features that training starts from, and the features under these statistics."""
        features = self.extract(state, frozen, 0, bar)
        batch_stats, features = self.calibrated(variables_of(state, frozen), features)
        return with_batch_stats(state, batch_stats), features

    def epoch(
        self,
        state: TrainState,
        frozen: Any,
        epoch: int,
        writer: MetricWriter,
        where: dict[str, Any],
        bar: Any,
        features: Features | None = None,
    ) -> TrainState:
        """One epoch; `features` are those of its extraction where they are known already."""
        run, stage = self.run, self.stage
        start = time.perf_counter()
        diagnosis: dict[str, float] = {}
        extraction = stage.extraction
        if extraction and extraction.refresh and epoch % (extraction.every or stage.epochs) == 0:
            if features is None:
                with run.phase("extraction"):
                    features = self.extract(state, frozen, epoch, bar)
            with run.phase("refresh"):
                variables = variables_of(state, frozen)
                rng = jax.random.fold_in(jax.random.fold_in(state.rng, 1), state.step)
                context = Context(rng, progress_at(stage, epoch, 0, 1))
                memory = self.refresh(variables, state.memory, features, context)
                state = state.replace(memory=jax.block_until_ready(memory))
                diagnosis = run.method.diagnose(parallel.to_host(memory), self.split.labels)
                writer.write("association", diagnosis, **where, step=int(state.step))
        with run.phase("steps"):
            state, metrics, frames = self._steps(state, frozen, epoch, bar)
        if stage.refresh_after:
            with run.phase("refresh"):
                rng = jax.random.fold_in(jax.random.fold_in(state.rng, 2), state.step)
                context = Context(rng, progress_at(stage, epoch + 1, 0, 1))
                memory = self.refresh_after(variables_of(state, frozen), state.memory, context)
                state = state.replace(memory=memory)
        self.watch.after_epoch(epoch, metrics, state)
        seconds = time.perf_counter() - start
        first = int(state.step) - len(metrics)
        for begin in range(0, len(metrics), run.config.log_every):
            window = metrics[begin : begin + run.config.log_every]
            writer.write("train", _mean(window), **where, step=first + begin + len(window))
        line = f"epoch {epoch + 1:>3}/{stage.epochs}  {seconds:5.1f} s  {frames / seconds:5.0f} frames/s  "
        bar.write(line + _summary(_mean(metrics) if metrics else {}, diagnosis))
        return state

    def _steps(self, state: TrainState, frozen: Any, epoch: int, bar: Any) -> tuple[TrainState, list[Any], int]:
        loader, steps = self.loader(state, epoch)
        size = self.stage.sampler.batch_size(self.columns) * self.stage.seq_len
        bar.total = bar.total or size * steps * self.stage.epochs
        bar.set_description(f"epoch {epoch + 1}/{self.stage.epochs}")
        metrics: list[Any] = []
        for step, batch in enumerate(loader):
            progress = progress_at(self.stage, epoch, step, steps)
            state, found = self.train_step(state, frozen, batch, progress, self.cache)
            metrics.append(found)
            self.watch.after_step(epoch, metrics)
            if line := self.forecast.after(step, steps, epoch, found):
                bar.write(line)
            if step >= 2 and not bar.disable:
                # Two steps back: known by now, so that looking at it keeps nobody waiting.
                known = {name: f"{float(value):.2f}" for name, value in metrics[step - 2].items()}
                bar.set_postfix(known, refresh=False)
            bar.update(size)
        return state, jax.device_get(metrics), size * steps


def _summary(metrics: dict[str, float], diagnosis: dict[str, float]) -> str:
    """An epoch in a line: losses, of every kind of association how much is right and how much is covered, counts."""
    parts = [f"{name} {metrics[name]:.2f}" for name in sorted(metrics)]
    for name in (key.removesuffix("_coverage") for key in diagnosis if key.endswith("_coverage")):
        right = f"{diagnosis[f'{name}_precision']:.0f} % right, " if f"{name}_precision" in diagnosis else ""
        parts.append(f"{name.replace('_', '-')} ({right}{diagnosis[f'{name}_coverage']:.0f} % covered)")
    counts = {key.removesuffix("_count"): n for key, n in diagnosis.items() if key.endswith("_count")}
    return "  ".join([*parts, *(f"{name.replace('_', ' ')} {n:,.0f}" for name, n in counts.items())])


def _mean(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
