"""Training: stages and epochs, the same for every method.

init_memory → [extract → refresh → sampling_labels → steps → checkpoint] per epoch; the first extraction may also set
batch statistics before anything else is done with it.
"""

from __future__ import annotations

import time
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxreid import optimisers, parallel
from jaxreid.augment import augment, normalise, to_unit
from jaxreid.backbones import pretrained
from jaxreid.checkpoints import Checkpoints
from jaxreid.compiled import Compiled, compile_together
from jaxreid.data.batch import Batch
from jaxreid.data.loader import batches
from jaxreid.evaluate import Evaluator
from jaxreid.extract import without_identity
from jaxreid.methods.method import Features, Progress, Stage, Variables
from jaxreid.metric_writer import MetricWriter
from jaxreid.run import Run, abstract_batch, example_batch


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes."""

    step: jax.Array  # i32, over the whole run
    params: Any  # what the stage trains
    batch_stats: Any
    opt_state: dict[str, Any]  # by update
    memory: Any
    rng: jax.Array  # u32[2]


# ----------------------------------------------------------------------------------------------------------------
# State
# ----------------------------------------------------------------------------------------------------------------


def init_variables(run: Run) -> Variables:
    """Parameters and batch statistics at the start: random, then pretrained weights where the method names some."""
    rng, batch = jax.random.PRNGKey(run.config.seed), example_batch(run)
    sources = [
        (backbone.path, pretrained.load_variables(backbone.name, backbone.config))
        for backbone in run.method.backbones()
        if backbone.name
    ]

    def random_part(rng: jax.Array, batch: Batch) -> Variables:
        variables = run.method.init(rng, batch)
        for path, weights in sources:  # what weights replace is neither drawn nor compiled
            for collection, loaded in weights.items():
                tree, name = _at(variables[collection], path)
                tree[name] = _without(tree[name], loaded)
        return variables

    shapes = jax.eval_shape(run.method.init, rng, batch)
    shardings = parallel.state_sharding(shapes, run.mesh)
    placed = parallel.state_sharding(jax.eval_shape(random_part, rng, batch), run.mesh)
    variables = jax.jit(random_part, out_shardings=placed)(rng, batch)
    for path, weights in sources:
        for collection, loaded in weights.items():
            tree, name = _at(variables[collection], path)
            place, _ = _at(shardings[collection], path)
            tree[name] = optimisers.merge(tree[name], _placed(loaded, place[name]))
    return variables


def _without(tree: Any, other: Any) -> Any:
    """The leaves of a nested dict that another has not: a backbone's adapters, say, that no weights replace."""
    left = {}
    for key, value in tree.items():
        if key not in other:
            left[key] = value
        elif isinstance(value, dict) and (inside := _without(value, other[key])):
            left[key] = inside
    return left


def _placed(tree: Any, shardings: Any) -> Any:
    """The leaves of a nested dict where shardings of a tree with more leaves say."""
    if isinstance(tree, dict):
        return {key: _placed(value, shardings[key]) for key, value in tree.items()}
    return parallel.place(tree, shardings)


def _at(tree: Any, path: tuple[str, ...]) -> tuple[Any, str]:
    """(the dict that holds a path's last name, that name)."""
    for key in path[:-1]:
        tree = tree[key]
    return tree, path[-1]


def init_train_state(stage: Stage, variables: Variables, memory: Any, step: Any, rng: Any) -> tuple[TrainState, Any]:
    """(state, frozen parameters) at the start of a stage; a restored run takes its shapes from here too."""
    trained, frozen = optimisers.split_trained(variables["params"], *(update.optimiser for update in stage.updates))
    opt_state = {}
    for update in stage.updates:
        own, _ = optimisers.split_trained(trained, update.optimiser)
        opt_state[update.name] = jax.jit(optimisers.transformation(update.optimiser).init)(own)
    return TrainState(step, trained, variables.get("batch_stats", {}), opt_state, memory, rng), frozen


def abstract_train_state(run: Run, stage: Stage) -> tuple[TrainState, Any]:
    """Shapes and types of what `init_train_state` makes; nothing is computed and no weight is read."""

    def start() -> tuple[TrainState, Any]:
        variables = run.method.init(jax.random.PRNGKey(0), example_batch(run))
        memory = jax.tree.map(jnp.asarray, run.method.init_memory())
        return init_train_state(stage, variables, memory, jnp.int32(0), jax.random.PRNGKey(0))

    return jax.eval_shape(start)


def variables_of(state: TrainState, frozen: Any) -> Variables:
    return {"params": optimisers.merge(state.params, frozen), "batch_stats": state.batch_stats}


# ----------------------------------------------------------------------------------------------------------------
# Steps
# ----------------------------------------------------------------------------------------------------------------


def make_train_step(run: Run, stage: Stage, state_sharding: Any) -> Compiled:
    """(state, frozen, batch, progress) → (state, metrics) of a stage."""
    method, pixels = run.method, run.pixels

    def prepare(state: TrainState, batch: Batch) -> tuple[Batch, jax.Array]:
        augment_rng, loss_rng = jax.random.split(jax.random.fold_in(state.rng, state.step))
        batch = batch if method.uses_identity else without_identity(batch)
        batch = augment(to_unit(batch), augment_rng, stage.augment, pixels.mean)
        return normalise(batch, pixels.mean, pixels.std, pixels.dtype), loss_rng

    def train_step(state: TrainState, frozen: Any, batch: Batch, progress: Progress) -> tuple[TrainState, Any]:
        batch, rng = prepare(state, batch)
        params, batch_stats, memory = state.params, state.batch_stats, state.memory
        opt_state, metrics = dict(state.opt_state), {}
        for update in stage.updates:
            own, others = optimisers.split_trained(params, update.optimiser)

            def loss(
                own: Any, others: Any = others, name: str = update.name, stats: Any = batch_stats, bank: Any = memory
            ):
                whole = optimisers.merge(optimisers.merge(own, others), frozen)
                return method.loss({"params": whole, "batch_stats": stats}, bank, batch, rng, progress, stage, name)

            (value, (found, batch_stats, memory)), gradients = jax.value_and_grad(loss, has_aux=True)(own)
            transformation = optimisers.transformation(update.optimiser)
            directions, opt_state[update.name] = transformation.update(gradients, opt_state[update.name], own)
            factor = optimisers.schedule_factor(update.schedule, stage.epochs, progress)
            own = optimisers.descend(own, directions, update.optimiser, factor, update.schedule.least_rate)
            params = optimisers.merge(own, others)
            metrics |= {**found, "loss" if len(stage.updates) == 1 else f"loss_{update.name}": value}
        state = state.replace(
            step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, memory=memory
        )
        return state, metrics

    step = Compiled(train_step, donate_argnums=0, out_shardings=(state_sharding, parallel.replicated(run.mesh)))
    run.compiled[f"{stage.name}/train_step"] = step
    return step


def progress_at(stage: Stage, epoch: int, step: int, steps: int) -> Progress:
    done = epoch + step / steps
    return Progress(
        step=np.int32(epoch * steps + step), epoch=np.float32(done), fraction=np.float32(done / max(stage.epochs, 1))
    )


# ----------------------------------------------------------------------------------------------------------------
# The loop
# ----------------------------------------------------------------------------------------------------------------


def train(run: Run, evaluator: Evaluator) -> tuple[TrainState, Any]:
    """Trains from the newest checkpoint of the workdir, or from the start, to the last epoch of the last stage.

    Returns:
      (state, frozen parameters) after the last epoch.
    """
    checkpoints = Checkpoints(run.workdir, run.config.keep_checkpoints)
    stages = run.method.stages()
    latest = checkpoints.latest()
    meta = {"stage": 0, "epoch": 0, "step": 0} if latest is None else checkpoints.meta(latest)
    writer = MetricWriter(run.workdir, latest or 0, meta["step"], run.is_main)
    bar = tqdm(unit=" frames", unit_scale=True, disable=None, dynamic_ncols=True)
    state, frozen, run_epoch = None, None, sum(stage.epochs for stage in stages[: meta["stage"]])
    try:
        for number in range(meta["stage"], len(stages)):
            stage = stages[number]
            with run.phase("start-up"):
                if latest is not None and number == meta["stage"]:
                    state, frozen = _restore(run, stage, checkpoints, latest)
                    print(f"resuming {run.workdir} after epoch {meta['epoch']} of stage {stage.name!r}", flush=True)
                    first = meta["epoch"]
                else:
                    state, frozen = _enter(run, stage, state, frozen)
                    checkpoints.save_frozen(stage.name, frozen)
                    first = 0
            steps = EpochLoop(run, stage, number, state)
            scored_first = number == 0 and first == 0 and run.config.evaluate_start
            with run.compiling():
                jobs = steps.jobs(state, frozen, begins=first == 0)
                compile_together(
                    jobs + (evaluator.jobs(variables_of(state, frozen), state.memory) if scored_first else [])
                )
            features = None
            if first == 0 and stage.calibrate:
                with run.phase("extraction"):
                    state, features = steps.calibrate(state, frozen, bar)
            if scored_first:
                with run.phase("evaluation"):
                    evaluator.at_start(variables_of(state, frozen), state.memory)
            for epoch in range(first, stage.epochs):
                where = {"stage": stage.name, "epoch": epoch, "run_epoch": run_epoch + epoch}
                state = steps.epoch(state, frozen, epoch, writer, where, bar, features)
                features = None
                with run.phase("checkpoint"):
                    meta = {"stage": number, "epoch": epoch + 1, "step": int(state.step)}
                    checkpoints.save(run_epoch + epoch + 1, state, meta)
                if (
                    run.config.evaluate_every
                    and (epoch + 1) % run.config.evaluate_every == 0
                    and epoch + 1 < stage.epochs
                ):
                    with run.phase("evaluation"):
                        scores = evaluator.scores(variables_of(state, frozen), state.memory)
                    writer.write("evaluate", scores, **where, step=int(state.step))
            run_epoch += stage.epochs
        with run.phase("checkpoint"):
            checkpoints.wait()
    finally:
        bar.close()
        writer.close()
        checkpoints.close()
    return state, frozen  # pyright: ignore[reportReturnType]


def _enter(run: Run, stage: Stage, state: TrainState | None, frozen: Any) -> tuple[TrainState, Any]:
    """State at the border of a stage: what trains changes, the rest is carried over."""
    if state is None:
        variables, memory = init_variables(run), run.method.init_memory()
        step, rng = np.int32(0), jax.random.PRNGKey(run.config.seed + 1)
    else:
        variables, memory, step, rng = variables_of(state, frozen), state.memory, state.step, state.rng
    fresh, frozen = init_train_state(stage, variables, memory, step, rng)
    fresh = jax.tree.map(jnp.asarray, fresh)
    return jax.device_put(fresh, parallel.state_sharding(fresh, run.mesh)), frozen


def _restore(run: Run, stage: Stage, checkpoints: Checkpoints, number: int) -> tuple[TrainState, Any]:
    state, frozen = abstract_train_state(run, stage)
    restored = checkpoints.restore(number, state, parallel.state_sharding(state, run.mesh))
    return restored, checkpoints.restore_frozen(stage.name, frozen, parallel.state_sharding(frozen, run.mesh))


def restore_latest(run: Run) -> tuple[TrainState, Any, int]:
    """The newest checkpoint of a workdir for evaluation: (state, frozen parameters, epochs done).

    Raises:
      ValueError: there is none.
    """
    checkpoints = Checkpoints(run.workdir)
    try:
        latest = checkpoints.latest()
        if latest is None:
            raise ValueError(f"{checkpoints.directory} holds no complete checkpoint: train first, or name a workdir")
        stage = run.method.stages()[checkpoints.meta(latest)["stage"]]
        return *_restore(run, stage, checkpoints, latest), latest
    finally:
        checkpoints.close()


class EpochLoop:
    """The epochs of one stage: its compiled steps, its plans, its loaders."""

    def __init__(self, run: Run, stage: Stage, number: int, state: TrainState) -> None:
        self.run, self.stage, self.number = run, stage, number
        self.split, self.columns = run.dataset.train, run.method.info.columns
        self.sharding = parallel.state_sharding(state, run.mesh)
        self.train_step = make_train_step(run, stage, self.sharding)
        method = run.method
        if stage.extraction:
            self.extractor = run.extractor(
                f"{stage.name}/extract_step",
                lambda variables, memory, batch: method.extract(variables, memory, batch, stage),
            )

            def refresh(variables: Any, memory: Any, features: Features, rng: jax.Array, progress: Progress) -> Any:
                return method.refresh(variables, memory, features, rng, progress, stage)

            self.refresh = Compiled(refresh, out_shardings=self.sharding.memory)
            run.compiled[f"{stage.name}/refresh"] = self.refresh
        if stage.calibrate:
            rows = parallel.rows(run.mesh)
            self.calibrated = Compiled(method.calibrate, out_shardings=(self.sharding.batch_stats, rows))
            run.compiled[f"{stage.name}/calibrate"] = self.calibrated
        if stage.refresh_after:

            def refresh_after(variables: Any, memory: Any, rng: jax.Array, progress: Progress) -> Any:
                return method.refresh(variables, memory, None, rng, progress, stage)

            self.refresh_after = Compiled(refresh_after, out_shardings=self.sharding.memory)
            run.compiled[f"{stage.name}/refresh_after"] = self.refresh_after

    def jobs(self, state: TrainState, frozen: Any, begins: bool) -> list[tuple[Compiled, tuple[Any, ...]]]:
        """The steps that will be called and their arguments, known before anything is read; for `compile_together`."""
        run, stage = self.run, self.stage
        batch = abstract_batch(run, stage.sampler.batch_size(self.columns), stage.frames)
        progress, variables = progress_at(stage, 0, 0, 1), variables_of(state, frozen)
        jobs: list[tuple[Compiled, tuple[Any, ...]]] = [(self.train_step, (state, frozen, batch, progress))]
        if stage.extraction and (begins or stage.extraction.every):
            batch = abstract_batch(run, run.config.extraction_batch, stage.extraction.frames)
            arguments = (variables, state.memory, batch)
            jobs.append((self.extractor.step, arguments))
            clips = len(stage.extraction.plan(self.split.table.length))
            features = self.extractor.abstract_features(clips, *arguments)
            jobs.append((self.refresh, (variables, state.memory, features, state.rng, progress)))
            if begins and stage.calibrate:
                jobs.append((self.calibrated, (variables, features)))
        return jobs

    def loader(self, state: TrainState, epoch: int) -> tuple[Any, int]:
        """(iterator of batches, their number): the order is a function of seed, stage, epoch and labels."""
        run, stage = self.run, self.stage
        labels = run.method.sampling_labels(state.memory)
        labels = self.split.labels.identity if labels is None else parallel.to_host(labels)
        rng = np.random.default_rng((run.config.seed, self.number, epoch))
        plan = stage.plan(labels, self.columns, self.split.table.length, rng)
        size = stage.sampler.batch_size(self.columns)
        loader = batches(
            self.split,
            plan,
            size,
            run.loading,
            uses_identity=run.method.uses_identity,
            reader=run.reader(self.split),
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
        features = self.extractor(variables, state.memory, self.split, plan, run.loading, run.reader(self.split))
        return jax.block_until_ready(features)

    def calibrate(self, state: TrainState, frozen: Any, bar: Any) -> tuple[TrainState, Features]:
        """Batch statistics of the features that training starts from, and the features under these statistics."""
        features = self.extract(state, frozen, 0, bar)
        batch_stats, features = self.calibrated(variables_of(state, frozen), features)
        return state.replace(batch_stats=batch_stats), features

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
        if stage.extraction and epoch % (stage.extraction.every or stage.epochs) == 0:
            if features is None:
                with run.phase("extraction"):
                    features = self.extract(state, frozen, epoch, bar)
            with run.phase("refresh"):
                variables = variables_of(state, frozen)
                rng = jax.random.fold_in(jax.random.fold_in(state.rng, 1), state.step)
                memory = self.refresh(variables, state.memory, features, rng, progress_at(stage, epoch, 0, 1))
                state = state.replace(memory=jax.block_until_ready(memory))
                diagnosis = run.method.diagnose(parallel.to_host(memory), self.split.labels)
                writer.write("association", diagnosis, **where, step=int(state.step))
        with run.phase("steps"):
            state, metrics, frames = self._steps(state, frozen, epoch, bar)
        if stage.refresh_after:
            with run.phase("refresh"):
                rng = jax.random.fold_in(jax.random.fold_in(state.rng, 2), state.step)
                progress = progress_at(stage, epoch + 1, 0, 1)
                memory = self.refresh_after(variables_of(state, frozen), state.memory, rng, progress)
                state = state.replace(memory=memory)
        seconds = time.perf_counter() - start
        first = int(state.step) - len(metrics)
        for begin in range(0, len(metrics), run.config.log_every):
            window = metrics[begin : begin + run.config.log_every]
            writer.write("train", _mean(window), **where, step=first + begin + len(window))
        line = f"epoch {epoch + 1:>3}/{stage.epochs}  {seconds:5.1f} s  {frames / seconds:5.0f} frames/s  "
        bar.write(line + _summary(_mean(metrics), diagnosis))
        return state

    def _steps(self, state: TrainState, frozen: Any, epoch: int, bar: Any) -> tuple[TrainState, list[Any], int]:
        loader, steps = self.loader(state, epoch)
        size = self.stage.sampler.batch_size(self.columns) * self.stage.frames
        bar.total = bar.total or size * steps * self.stage.epochs
        bar.set_description(f"epoch {epoch + 1}/{self.stage.epochs}")
        metrics: list[Any] = []
        for step, batch in enumerate(loader):
            progress = progress_at(self.stage, epoch, step, steps)
            state, found = self.train_step(state, frozen, batch, progress)
            metrics.append(found)
            if step >= 2 and not bar.disable:
                # Two steps back: known by now, so that looking at it keeps nobody waiting.
                known = {name: f"{float(value):.2f}" for name, value in metrics[step - 2].items()}
                bar.set_postfix(known, refresh=False)
            bar.update(size)
        return state, jax.device_get(metrics), size * steps


def _summary(metrics: dict[str, float], diagnosis: dict[str, float]) -> str:
    """An epoch in a line: losses, and of every kind of association how much is right and how much is covered."""
    parts = [f"{name} {metrics[name]:.2f}" for name in sorted(metrics)]
    for name in (key.removesuffix("_coverage") for key in diagnosis if key.endswith("_coverage")):
        right = f"{diagnosis[f'{name}_precision']:.0f} % right, " if f"{name}_precision" in diagnosis else ""
        parts.append(f"{name.replace('_', '-')} ({right}{diagnosis[f'{name}_coverage']:.0f} % covered)")
    return "  ".join(parts)


def _mean(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
