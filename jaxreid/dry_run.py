"""What a run would be made of, without training: shapes, parameters, bytes per device, steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid import parallel
from jaxreid.run import Run
from jaxreid.train import example_batch, init_train_state


def _count(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def dry_run(run: Run) -> None:
    """Prints the sizes of every stage; nothing is computed and no weight is read."""

    def start(stage: Any) -> Any:
        variables = run.method.init(jax.random.PRNGKey(0), example_batch(run))
        memory = jax.tree.map(jnp.asarray, run.method.init_memory())
        return init_train_state(stage, variables, memory, jnp.int32(0), jax.random.PRNGKey(0))

    modality = run.dataset.train.table.modality
    for number, stage in enumerate(run.method.stages()):
        state, frozen = jax.eval_shape(lambda stage=stage: start(stage))
        labels = run.method.sampling_labels(run.method.init_memory())
        labels = run.dataset.train.labels.identity if labels is None else np.asarray(labels)
        steps = len(stage.sampler.draw(labels, modality, np.random.default_rng(0))[0])
        size = stage.sampler.batch_size(modality)
        height, width = run.config.frames.height, run.config.frames.width
        print(f"stage {number + 1} {stage.name!r}: {stage.epochs} epochs × {steps} steps")
        print(f"  batch u8[{size}, {stage.frames}, {height}, {width}, 3], {size // run.mesh.size} clips per device")
        print(f"  parameters: {_count(state.params):,} trained, {_count(frozen):,} frozen")
        parts = {"parameters": state.params, "optimiser": state.opt_state, "memory": state.memory, "frozen": frozen}
        for name, tree in parts.items():
            placed = parallel.bytes_per_device(tree, parallel.state_sharding(tree, run.mesh))
            print(f"  {name}: {placed / 2**20:.1f} MiB per device")
        if stage.extraction:
            clips = len(run.dataset.train) * stage.extraction.parts
            every = f"every {stage.extraction.every} epochs" if stage.extraction.every else "once"
            print(f"  extraction {every}: {clips} clips, {clips * stage.extraction.frames} frames")
    for split in (run.dataset.query, run.dataset.gallery):
        print(f"  evaluation: {len(split)} {split.name} tracklets, rule {run.method.evaluation().rule}")
