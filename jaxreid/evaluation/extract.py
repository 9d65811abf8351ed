"""A split through the network: every planned clip becomes a row of features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxreid.arrays import unit_rows
from jaxreid.augment import UNCHANGED, Augmentation, Pixels
from jaxreid.data.batch import Batch
from jaxreid.data.clips import ClipPlan
from jaxreid.data.extras import ExtraReader
from jaxreid.data.loader import LoaderOptions, batches
from jaxreid.data.split import FrameReader, Split
from jaxreid.devices import parallel, processes
from jaxreid.devices.compiled import Compiled
from jaxreid.errors import UserError, some
from jaxreid.geometry import mirror
from jaxreid.methods.method import POOLS, Evaluation, Features
from jaxreid.run.model import Run


class Extractor:
    """Runs `function(variables, memory, batch)` in evaluation mode over clip plans, in batches of a fixed shape.

    With an augmentation, what is drawn depends on `seed` and on what a batch begins with.
    """

    def __init__(
        self,
        function: Callable[..., dict[str, jax.Array]],
        pixels: Pixels,
        mesh: Mesh,
        batch_size: int,
        flip: bool = False,
        augmentation: Augmentation = UNCHANGED,
        seed: int = 0,
    ) -> None:
        def extract_step(variables: Any, memory: Any, batch: Batch) -> Features:
            rng = jax.random.fold_in(jax.random.PRNGKey(seed), batch.tracklet[0])
            batch = pixels(batch.without_identity(), jax.random.fold_in(rng, batch.part[0]), augmentation)
            found = function(variables, memory, batch)
            if flip:
                mirrored = function(variables, memory, mirror(batch))
                found = jax.tree.map(lambda a, b: 0.5 * (a + b), found, mirrored)
            arrays = jax.tree.map(lambda x: x.astype(jnp.float32), found)
            # Whose features these are comes from the batch that they were made of, never from a place in the plan.
            return Features(arrays=arrays, tracklet=batch.tracklet, part=batch.part, valid=batch.valid)

        self.mesh, self.batch_size = mesh, batch_size
        self.step = Compiled(extract_step, out_shardings=parallel.rows(mesh))

    def __call__(
        self,
        variables: Any,
        memory: Any,
        split: Split,
        plan: ClipPlan,
        options: LoaderOptions,
        reader: FrameReader | None = None,
        extras: ExtraReader | None = None,
        progress: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
    ) -> Features:
        """Features of every clip of the plan, padded to whole batches, with the tracklet and part of each.

        Raises:
          UserError: a frame cannot be decoded, on every process if it is one of several.
        """

        def read(plan: ClipPlan) -> Iterator[Batch]:
            return batches(
                split,
                plan,
                self.batch_size,
                options,
                uses_identity=False,
                reader=reader,
                extras=extras,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )

        found: list[Features] = []
        failure = None
        try:
            for batch in progress(read(plan)):
                found.append(self.step(variables, memory, parallel.to_global(batch, self.mesh)))
        except UserError as error:
            failure = error
            # The others' steps may wait for this process: it takes part, with nothing to read, until they are through.
            rest = plan.unread(len(found) * self.batch_size) if jax.process_count() > 1 else None
            for batch in read(rest) if rest else ():
                self.step(variables, memory, parallel.to_global(batch, self.mesh))
        processes.agree(failure)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)

    def abstract_features(self, clips: int, *arguments: Any) -> Features:
        """Shapes, types and placement of what a call over a plan of this many clips returns; `arguments` of `step`."""
        count, rows = -(-clips // self.batch_size) * self.batch_size, parallel.rows(self.mesh)

        def row(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype, sharding=rows)

        return jax.tree.map(row, self.step.result_shapes(*arguments))


def make_extractor(
    run: Run, name: str, function: Any, flip: bool = False, augmentation: Augmentation = UNCHANGED
) -> Extractor:
    """An extractor of a run, whose compiled step the run lists under `name`."""
    size, seed = run.config.extraction_batch_size, run.config.seed
    extractor = Extractor(function, run.pixels, run.mesh, size, flip, augmentation, seed)
    run.compiled[name] = extractor.step
    return extractor


def tracklet_features(
    extractor: Extractor,
    variables: Any,
    memory: Any,
    split: Split,
    rule: Evaluation,
    options: LoaderOptions,
    reader: FrameReader | None = None,
    rows: np.ndarray | None = None,
    extras: ExtraReader | None = None,
) -> dict[str, np.ndarray]:
    """Unit features of a split's tracklets by name, f32[N, D]: of the clips that `options` plan, pooled.

    Args:
      extractor: of `method.embed`.
      rows: i64[N], the tracklets that are wanted, in this order; all where not given.
    """
    wanted, place = np.unique(np.arange(len(split)) if rows is None else rows, return_inverse=True)
    plan = rule.plan(split.table.length[wanted])
    of_split = dataclasses.replace(plan, tracklet=wanted[plan.tracklet].astype(np.int32))
    clips = extractor(variables, memory, split, of_split, options, reader, extras)
    pooled = pool_tracklets(clips, wanted, [split.labels.names[row] for row in wanted], rule.pool)
    return {name: found[place] for name, found in pooled.items()}


def pool_tracklets(features: Features, wanted: np.ndarray, names: Sequence[str], pool: str) -> dict[str, np.ndarray]:
    """Clip features → one unit row per tracklet, f32[N, D] by name, on the host.

    Args:
      features: from an `Extractor`, of these tracklets and no other.
      wanted: i64[N], sorted rows of the split.
      names: of these tracklets.
      pool: one of `POOLS`: "after" averages a tracklet's normalized clip features, "before" the raw ones.

    Raises:
      UserError: a feature is not finite, or zero, which has no direction; the message names the tracklets.
    """
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r} is not one of {', '.join(POOLS)}")
    pooled = {}
    host = parallel.to_host((features.arrays, features.tracklet, features.valid))
    arrays, tracklet, valid = host
    place = np.searchsorted(wanted, tracklet[valid])
    for name, rows in arrays.items():
        _refuse(name, "not finite", names, np.unique(place[broken_rows(rows)[valid]]))
        rows = np.asarray(unit_rows(rows)) if pool == "after" else rows
        total = np.zeros((len(wanted), rows.shape[1]), np.float32)
        np.add.at(total, place, rows[valid])
        _refuse(name, "zero, which has no direction", names, np.flatnonzero(~total.any(axis=1)))
        pooled[name] = np.asarray(unit_rows(total))
    return pooled


def broken_rows(x: np.ndarray) -> np.ndarray:
    """bool[N], the rows of [N, …] that hold NaN or infinity."""
    return np.logical_not(np.isfinite(x.reshape(len(x), -1)).all(axis=1))


def _refuse(feature: str, what: str, names: Sequence[str], rows: np.ndarray) -> None:
    if len(rows):
        listed = some([names[int(row)] for row in rows])
        raise UserError(
            f"{feature!r} of {len(rows)} of {len(names)} tracklets is {what}: {listed}. Look at their frames "
            "(jaxreid show); where they are many, the weights are broken: train again with a "
            "lower learning rate or config.precision=float32"
        )
