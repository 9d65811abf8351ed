"""CLIP for extreme far distance on the drawn world `aerial`: one of its parts after another on VSLA-CLIP, by condition.

    python benchmarks/clip_xfd.py --out runs/clip_xfd [--world aerial] [--seeds 1 2 3] [--rows …] [--config.key=value …]

Trains each row once per seed (finished runs are not repeated, stopped ones go on), scores it under every rule
(`jaxreid xfd evaluate`), with and without re-ranking, and prints Markdown: the table of `jaxreid compare` by condition,
the scores under each rule, and how much frames with drawn noise count beside those without it. The rows of `ONE_SEED`
are run with one. The paper's larger tower is no row: there is one small tower for drawn people. `--config.…` goes to
every run; built sets are looked for in $JAXREID_DATA_DIR.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from runs import over_seeds, printed, reopened
from vreid_xfd import ROWS as ANCESTORS
from vreid_xfd import shown

NO_JITTER = {f"augment.{name}": 0.0 for name in ("brightness", "saturation", "hue")}
BARE: dict[str, Any] = {"pooling": "mean", "unfreeze_last": 0}

# Row → config and what differs from it. All but the ancestors are tested with the mirrored clip.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    **ANCESTORS,
    "VSLA-CLIP, this learning rate": ("vreid_xfd", {"optimizer.lr": 1e-2}),
    "four tokens, adapters from zero, flip": ("clip_xfd", BARE | NO_JITTER),
    "+ jitter": ("clip_xfd", BARE),
    "+ attention pooling": ("clip_xfd", {"unfreeze_last": 0}),
    "+ selective tuning": ("clip_xfd", {}),  # all of it
}
ONE_SEED: dict[str, tuple[str, dict[str, Any]]] = {
    "jitter of every frame": ("clip_xfd", {"augment.per_frame": ("erase_size", "jitter")}),
    "two blocks train": ("clip_xfd", {"unfreeze_last": 2}),
    "scores of directions": ("clip_xfd", {"attention_pooling.unit": True, "attention_pooling.temperature": 0.1}),
    "adapters of tokens alone": ("clip_xfd", {"adapters.temporal": False}),
    "adapters over frames alone": ("clip_xfd", {"adapters.tokens": False}),
    "no adapters": ("clip_xfd", {"adapters.width": 0}),
    "adapters from PyTorch's start": ("clip_xfd", {"adapters.zero_init": False}),
    "one token": ("clip_xfd", {"platform_prompts.length": 1}),
    "no prompts": ("clip_xfd", {"platform_prompts.blocks": 0}),
    "prompts of altitude, distance, angle": (
        "clip_xfd",
        {"platform_prompts.geometry": ("altitude", "distance", "angle")},
    ),
    "steps in place of a cosine": ("clip_xfd", {"schedule.name": "steps", "schedule.milestones": (8.0, 12.0)}),
    "no flip": ("clip_xfd", {"evaluation.flip": False}),
    "re-ranked with 20, 6, 0.3": ("clip_xfd", {"evaluation.rerank_k1": 20, "evaluation.rerank_lambda": 0.3}),
    "re-ranked with 22, 6, 0.3": ("clip_xfd", {"evaluation.rerank_k1": 22, "evaluation.rerank_lambda": 0.3}),
    "as released": ("clip_xfd", {"released": True, "adapters.zero_init": False}),
}
NOISE = (0.1, 0.2, 0.4)  # standard deviation of what is added to a frame's values in [0, 1]


def noisy_frames(workdir: Path, sigma: float) -> dict[str, float]:
    """What every other frame of the test clips counts when it has noise, over the mean of its clip; by pooling."""
    import jax
    import jax.numpy as jnp

    from jaxreid.evaluation.extract import make_extractor
    from jaxreid.training.steps import variables_of

    run, state, frozen = reopened(workdir)
    network: Any = run.method.network  # pyright: ignore[reportAttributeAccessIssue]

    def weights(variables: Any, memory: Any, batch: Any) -> dict[str, jax.Array]:
        mask = batch.frame_mask
        noisy = (jnp.arange(mask.shape[1]) % 2 == 1) & mask
        rng = jax.random.fold_in(jax.random.key(0), batch.tracklet[0])
        noise = sigma / jnp.array(run.pixels.std) * jax.random.normal(rng, batch.frames.shape)
        frames = jnp.where(noisy[..., None, None, None], batch.frames + noise, batch.frames)

        def look(network: Any) -> dict[str, jax.Array]:
            found = network.tower(batch.replace(frames=frames.astype(batch.frames.dtype)), False)
            pools = {"last": network.pool, "projected": network.pool_joint}
            return {name: pool.weights(getattr(found, name), mask) for name, pool in pools.items()}

        count = mask.sum(1, keepdims=True)
        found = network.apply(variables, method=look)
        return {name: w * count for name, w in found.items()} | {"noisy": noisy}

    extractor, found = make_extractor(run, "weights_step", weights), []
    for split in run.dataset.test_splits:
        plan = run.method.evaluation().plan(split.table.length)
        variables = variables_of(state, frozen)
        options, reader = run.loading.for_tests(), run.reader(split)
        features = extractor(variables, state.memory, split, plan, options, reader)
        found.append({name: np.asarray(x)[np.asarray(features.valid)] for name, x in features.arrays.items()})
    arrays = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    noisy = arrays.pop("noisy").astype(bool)
    return {name: float(relative[noisy].mean()) for name, relative in arrays.items()}


def noise_table(workdirs: dict[str, list[Path]]) -> Iterator[list[str]]:
    """Row, noise, and what noisy frames count over the mean of their clips, in each pooling, over seeds."""
    for name, folders in workdirs.items():
        for sigma in NOISE:
            found = [noisy_frames(folder, sigma) for folder in folders]
            yield [name, f"{sigma:g}", *(over_seeds([100 * one[key] for one in found]) for key in found[0])]


def main() -> None:
    known, workdirs = {**ROWS, **ONE_SEED}, shown(__doc__, ROWS, ONE_SEED)
    weighing = {
        name: folders
        for name, folders in workdirs.items()
        if known[name][0] == "clip_xfd" and known[name][1].get("pooling", "attention") == "attention"
    }
    if weighing:
        printed(["row", "noise", "own space, % of the mean", "joint space, % of the mean"], noise_table(weighing))


if __name__ == "__main__":
    main()
