"""What a run would be made of, without training: shapes, parameters, memory, work, and how long that takes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxreid.data.batch import Batch
from jaxreid.devices import parallel
from jaxreid.devices.compiled import Compiled
from jaxreid.evaluation.extract import embedding, make_extractor
from jaxreid.evaluation.pairs import pair_step
from jaxreid.methods.method import Stage, Update
from jaxreid.optimizers import split_trained
from jaxreid.run.model import Run, abstract_batch, example_batch
from jaxreid.training.cached import plan_of, with_cached
from jaxreid.training.loop import EpochLoop
from jaxreid.training.start import abstract_train_state, memory_at
from jaxreid.training.steps import TrainState, groups, loss_of, progress_at, variables_of

# Dense bf16 peaks in TFLOP/s, from the vendors' data sheets.
PEAKS = {"A100": 312, "H100 SXM": 989, "TPU v4": 275, "TPU v5p": 459}
UTILISATION = 0.4  # share of the peak that is assumed


def dry_run(run: Run) -> None:
    """Prints the sizes of every stage and of the evaluation; steps are compiled, nothing is computed."""
    total = sum(_stage(run, number, stage) for number, stage in enumerate(run.method.stages()))
    total += _evaluation(run)
    hours = {device: total / (peak * 1e12 * UTILISATION * run.mesh.size) / 3600 for device, peak in PEAKS.items()}
    print(
        f"all: {_work(total)}; at {UTILISATION:.0%} of the bf16 peak (assumed, not measured) on {run.mesh.size} "
        + ", ".join(f"{device}: {_duration(value)}" for device, value in hours.items())
    )


def _stage(run: Run, number: int, stage: Stage) -> float:
    """Prints a stage; returns its work in floating-point operations."""
    trees = abstract_train_state(run, stage)
    state, frozen = (parallel.with_shardings(tree, parallel.state_sharding(tree, run.mesh)) for tree in trees)
    columns = run.method.info.columns
    labels = run.method.sampling_labels(memory_at(run.method, stage))
    labels = run.dataset.train.labels.identity if labels is None else np.asarray(labels)
    clips = stage.sampler.batch_size(columns)
    length = run.dataset.train.table.length
    steps = len(stage.plan(labels, columns, length, np.random.default_rng(0))) // clips
    height, width = run.config.frames.height, run.config.frames.width
    print(f"stage {number + 1} {stage.name!r}: {stage.epochs} epochs × {steps} steps")
    print(f"  batch u8[{clips}, {stage.seq_len}, {height}, {width}, 3], {clips // run.mesh.size} clips per device")
    print(f"  parameters: {_count(state.params):,} trained, {_count(frozen):,} frozen")
    print("\n".join(parallel.placement(groups(state, frozen))))

    batch = abstract_batch(run, clips, stage.seq_len, "train", stage.pictures)
    loop = EpochLoop(run, stage, number, state)
    cache = loop.abstract_cache(state, frozen) if stage.cached else None
    seen = jax.eval_shape(lambda cache, batch: with_cached(stage.cached, cache, batch), cache, batch)
    kept = kept_for_backward(run, stage, state, frozen, seen)
    print(f"  kept for the backward pass: at most {kept / 2**30:.2f} GiB per device")

    arguments = state, frozen, batch, progress_at(stage, 0, 0, steps), cache
    work = stage.epochs * steps * _compiled(run, "training step", loop.train_step, *arguments)
    frames = clips * stage.seq_len * steps if stage.pictures else 0

    def add_passes(what: str, step: Compiled, passes: int, count: int, seq_len: int) -> None:
        """Passes over the training split, of so many clips each."""
        nonlocal work, frames
        size = run.config.extraction_batch_size
        print(f"  {what}, {passes} times: {count:,} clips of {seq_len} frames")
        batch = abstract_batch(run, size, seq_len, "extract")
        each = _compiled(run, f"{what} step", step, variables_of(state, frozen), state.memory, batch)
        work += passes * -(-count // size) * each
        frames += passes * count * seq_len / stage.epochs if run.method.sees_pictures else 0

    if cached := stage.cached:
        add_passes("caching", loop.cacher.step, 1, len(plan_of(cached, length)), cached.seq_len)
    if rule := stage.extraction:
        passes = -(-stage.epochs // rule.every) if rule.every else 1
        add_passes("extraction", loop.extractor.step, passes, len(rule.plan(length)), rule.seq_len)
    print(f"  frames to read and decode per epoch: {frames:,.0f}")
    print(f"  {_work(work)}")
    return work


def kept_for_backward(run: Run, stage: Stage, state: TrainState, frozen: Any, batch: Batch) -> float:
    """Bytes per device of the activations that differentiation keeps, before a compiler saves any of them: those of the
    update that keeps most, since updates follow each other."""
    frames = jax.ShapeDtypeStruct(batch.frames.shape, run.pixels.dtype)
    batch = batch.replace(frames=frames)

    def kept(update: Update) -> int:
        def pullback(own: Any, others: Any, state: TrainState, frozen: Any, batch: Batch) -> Any:
            progress = progress_at(stage, 0, 0, 1)
            loss = loss_of(stage, update, others, frozen, state.batch_stats, state.memory, batch, state.rng, progress)
            # The function that vjp returns is a tree: its leaves are what it needs of the forward pass.
            return jax.vjp(loss, own, has_aux=True)[1]

        own, others = split_trained(state.params, update.optimizer)
        residuals = jax.tree.leaves(jax.eval_shape(pullback, own, others, state, frozen, batch))
        activations = [leaf for leaf in residuals if leaf.shape[:1] and leaf.shape[0] % len(batch.valid) == 0]
        return sum(leaf.size * leaf.dtype.itemsize for leaf in activations)

    return max(map(kept, stage.updates)) / run.mesh.size


def _evaluation(run: Run) -> float:
    """Prints the evaluation after training; returns its work."""
    options, size = run.method.evaluation(), run.config.extraction_batch_size
    splits = run.dataset.test_splits
    lengths = [split.table.length for split in splits]
    if run.dataset.built:  # what is planned holds nothing twice, and has no frames to compare
        lengths = [length[rows] for length, (_, rows) in zip(lengths, run.distinct, strict=True)]
    plans = [options.plan(length) for length in lengths]
    count = sum(-(-len(plan) // size) for plan in plans)
    sampling = f"clip sampling {options.clip_description}"
    print(f"evaluation: {sum(map(len, plans)):,} clips of {options.seq_len} frames, {sampling}")

    def start() -> tuple[Any, Any]:
        memory = memory_at(run.method, run.method.stages()[-1])
        return run.method.init(jax.random.PRNGKey(0), example_batch(run)), memory

    variables, memory = (
        parallel.with_shardings(tree, parallel.state_sharding(tree, run.mesh)) for tree in jax.eval_shape(start)
    )
    extractor = make_extractor(run, "embed_step", embedding(run.method), options.flip)
    work = count * _compiled(
        run, "embedding step", extractor.step, variables, memory, abstract_batch(run, size, options.seq_len, "test")
    )
    print(f"  {_work(work)}")
    return work + (_rescoring(run, variables, memory) if options.rescore_size else 0.0)


def _rescoring(run: Run, variables: Any, memory: Any) -> float:
    """Prints what re-scoring takes where every query of a split has a shortlist; returns its work."""
    options, size, dataset = run.method.evaluation(), run.config.extraction_batch_size, run.dataset
    extractor = make_extractor(run, "pair_features_step", run.method.pair_features, dtype=None)
    batch = abstract_batch(run, size, options.seq_len, "test")
    found = extractor.step.result_shapes(variables, memory, batch).arrays
    tracklets, block = sum(map(len, dataset.test_splits)), options.rescore_block
    pairs = sum(len(test.query) * min(options.rescore_size, len(test.gallery)) for test in dataset.tests)
    store = tracklets * sum(x.size // len(x) * x.dtype.itemsize for x in found.values())
    print(f"re-scoring: {pairs:,} pairs, features of {tracklets:,} tracklets, {store / 2**30:.2f} GiB on the disk")
    work = -(-tracklets // size) * _compiled(run, "step of pair features", extractor.step, variables, memory, batch)

    def placed(x: Any, rows: int, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=sharding)

    kept = {name: placed(x, 2 * block, parallel.replicated(run.mesh)) for name, x in found.items()}
    places = placed(np.zeros(1, np.int32), block, parallel.rows(run.mesh))
    step = pair_step(run.method, run.mesh, block)
    work += -(-pairs // block) * _compiled(run, "step of pairs", step, variables, memory, kept, places, places)
    print(f"  {_work(work)}")
    return work


def _compiled(run: Run, name: str, step: Compiled, *arguments: Any) -> float:
    """Compiles a step for abstract arguments and prints what it needs; returns its work over all devices."""
    with tqdm(desc=f"compiling the {name}", bar_format="{desc} {elapsed}", leave=False, disable=None):
        compiled = step.compile(*arguments)
    memory = compiled.memory_analysis()
    # Donated arguments and the results that take their place are the same bytes.
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    work = float(compiled.cost_analysis()["flops"]) * run.mesh.size
    where = jax.default_backend()
    print(
        f"  {name}: {(held + memory.temp_size_in_bytes) / 2**30:.2f} GiB per device as compiled for {where} "
        f"({memory.temp_size_in_bytes / 2**30:.2f} of it work space), {work / 1e12:.3f} TFLOP"
    )
    return work


def _count(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _work(operations: float) -> str:
    return f"{operations / 1e15:.3g} PFLOP"


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min" if hours >= 1 / 60 else "under a minute"
