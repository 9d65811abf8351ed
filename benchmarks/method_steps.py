"""Training steps of a method as its preset has them, stage by stage: what `benchmarks/train.py --method` prints.

Work and memory come from shapes, so that full-size presets need no data set and no weights; steps are timed on random
weights and random pictures, batches of bytes on the host as a loader delivers them. A drawn data set is drawn where it
is not there, and not kept.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.papers import step_work
from jaxreid.config import find_config
from jaxreid.data.batch import Batch
from jaxreid.devices import parallel
from jaxreid.evaluation.extract import make_extractor
from jaxreid.methods.method import Stage
from jaxreid.run.model import Run, abstract_batch, example_batch, start_run
from jaxreid.training.cached import with_cached
from jaxreid.training.dry_run import kept_for_backward
from jaxreid.training.loop import EpochLoop
from jaxreid.training.start import abstract_train_state, begin_stage, memory_at
from jaxreid.training.steps import progress_at

GIB = 2**30
CALCULATED = ("tflop_per_step", "kept_gib", "programs")
COMPILED = ("tflop_compiled", "memory_gib")
MEASURED = ("compile_seconds", "seconds", "frames_per_second", "clips_per_second", "peak_gib", "peak_tflops", "mfu")


def values(words: Sequence[str]) -> dict[str, Any]:
    """Config values that were typed as KEY=VALUE."""

    def value(text: str) -> Any:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text

    return {key: value(text) for key, _, text in (word.partition("=") for word in words)}


def open_run(name: str, preset: str, changes: dict[str, Any], data_dir: Path | None) -> Run:
    """A run of a preset on one device; its data set as it is, as large as published, or drawn for the purpose."""
    spec = importlib.util.spec_from_file_location(name, find_config(name))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(preset)
    config.update_from_flattened_dict({"mesh.devices": 1, **changes})
    with contextlib.redirect_stdout(sys.stderr):  # what it says of the data set is none of the lines
        return start_run(config, Path("nowhere"), data_dir, dry=True)


def measure(
    name: str,
    preset: str,
    changes: dict[str, Any],
    steps: int,
    data_dir: Path | None,
    clock: Callable[..., float],
    product: Callable[..., float],
) -> Iterator[dict[str, Any]]:
    """A line for each stage of a method.

    Args:
      steps: timed steps of a turn, 0 = only what needs no step.
      clock: `seconds_per_step` of benchmarks/train.py; product: its `peak_tflops`.
    """
    run = open_run(name, preset, changes, data_dir)
    device = jax.devices()[0]
    where = f"{device.platform} {device.device_kind}"
    stages = run.method.stages()
    found = [_stage(run, number, stage, steps, clock) for number, stage in enumerate(stages)]
    make_extractor(run, "embed_step", run.method.embed, run.method.evaluation().flip)
    accelerated = device.platform != "cpu"
    peak = _peak(run, accelerated, product) if steps else None
    basis = dict.fromkeys(CALCULATED, "calculated") | dict.fromkeys(COMPILED, f"compiled for {device.platform}")
    basis |= dict.fromkeys(MEASURED, f"measured on {where}")
    for stage, figures in zip(stages, found, strict=True):
        if peak:
            figures |= {"peak_tflops": peak, "mfu": figures["tflop_per_step"] / figures["seconds"] / peak}
            stats = device.memory_stats() or {}
            held = stats.get("peak_bytes_in_use", 2**10 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            figures["peak_gib"] = held / GIB
        figures["programs"] = len(run.compiled)
        yield {
            "method": name,
            "preset": run.config.preset,
            "stage": stage.name,
            "dataset": run.dataset.name,
            "tower": run.config.backbone.name,
            "clips": stage.sampler.batch_size(run.method.info.columns),
            "frames": stage.seq_len,
            "size": f"{run.config.frames.height}x{run.config.frames.width}",
            "precision": run.config.precision,
            "device": where,
            **figures,
            "programs_named": sorted(run.compiled),
            "basis": {key: basis[key] for key in figures},
            "version": jax.__version__,
        }


def _stage(run: Run, number: int, stage: Stage, steps: int, clock: Callable[..., float]) -> dict[str, Any]:
    """The figures of a stage by name."""
    trees = abstract_train_state(run, stage)
    state, frozen = (parallel.with_shardings(tree, parallel.state_sharding(tree, run.mesh)) for tree in trees)
    clips = stage.sampler.batch_size(run.method.info.columns)
    batch = abstract_batch(run, clips, stage.seq_len, "train", stage.pictures)
    loop = EpochLoop(run, stage, number, state)
    cache = loop.abstract_cache(state, frozen) if stage.cached else None
    seen = jax.eval_shape(lambda cache, batch: with_cached(stage.cached, cache, batch), cache, batch)
    progress = progress_at(stage, 0, 0, 1)
    compiled = loop.train_step.compile(state, frozen, batch, progress, cache)
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    figures: dict[str, Any] = {
        "tflop_per_step": step_work(run, stage, state, frozen, seen) / 1e12,
        "kept_gib": kept_for_backward(run, stage, state, frozen, seen) / GIB,
        "tflop_compiled": float(compiled.cost_analysis()["flops"]) / 1e12,
        "memory_gib": (held + memory.temp_size_in_bytes) / GIB,
        "compile_seconds": loop.train_step.seconds,
    }
    if not steps:
        return figures
    variables = jax.jit(run.method.init)(jax.random.PRNGKey(0), example_batch(run))
    variables = jax.device_put(variables, parallel.state_sharding(variables, run.mesh))
    start = begin_stage(run, stage, variables, memory_at(run.method, stage), np.int32(0), jax.random.PRNGKey(1))
    kept = jax.tree.map(lambda leaf: jax.device_put(jnp.ones(leaf.shape, leaf.dtype), leaf.sharding), cache)
    batches = [random_batch(batch, run.method.info.num_classes, seed) for seed in range(4)]
    now = {"state": start[0]}

    def take(step: int) -> None:
        rows = parallel.to_global(batches[step % len(batches)], run.mesh)
        now["state"], _ = loop.train_step(now["state"], start[1], rows, progress, kept)

    seconds = clock(take, lambda: jax.block_until_ready(now["state"]), steps)
    frames = clips * stage.seq_len if stage.pictures else 0
    rate = {"frames_per_second": frames / seconds} if frames else {}
    return figures | {"seconds": seconds, **rate, "clips_per_second": clips / seconds}


def random_batch(like: Batch, identities: int, seed: int) -> Batch:
    """A batch on the host of these shapes: neighbours are one person, in turns visible and infrared."""
    rng = np.random.default_rng(seed)
    clips = len(like.valid)

    def filled(leaf: Any) -> np.ndarray:
        if leaf.dtype == np.uint8:
            return rng.integers(0, 256, leaf.shape, np.uint8)
        return np.ones(leaf.shape, leaf.dtype) if leaf.dtype == bool else np.zeros(leaf.shape, leaf.dtype)

    rows = np.arange(clips, dtype=np.int32)
    people = rows // 2 % max(identities, 1)
    return jax.tree.map(filled, like).replace(tracklet=rows, identity=people, pair=people, modality=rows % 2)


def _peak(run: Run, accelerated: bool, product: Callable[..., float]) -> float:
    """TFLOP/s of a large matrix product in the run's precision."""
    size = 8192 if accelerated else 2048
    a, found = jnp.ones((size, size), jnp.dtype(run.config.precision)), {}
    multiply = jax.jit(lambda a: a @ a)
    return product(lambda: found.update(x=multiply(a)), lambda: jax.block_until_ready(found), size)
