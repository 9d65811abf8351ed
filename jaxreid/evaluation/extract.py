"""A split through the network: every planned clip becomes a row of features."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxreid.augment import UNCHANGED, Augmentation, Pixels
from jaxreid.data.batch import Batch
from jaxreid.data.clips import ClipPlan
from jaxreid.data.extras import ExtraReader
from jaxreid.data.loader import LoaderOptions, batches
from jaxreid.data.split import FrameReader, Split
from jaxreid.devices import parallel, processes
from jaxreid.devices.compiled import Compiled
from jaxreid.errors import UserError
from jaxreid.evaluation.pooling import TrackletPool
from jaxreid.geometry import mirror
from jaxreid.methods.method import Evaluation, Features, Method
from jaxreid.run.model import Run

Item = TypeVar("Item")
LAG = 2  # batches on their way, so that fetching one's features keeps no device waiting


class Extractor:
    """Runs `function(variables, memory, batch)` in evaluation mode over clip plans, in batches of a fixed shape.

    With an augmentation, what is drawn depends on `seed` and on what a batch begins with. Without `pictures`, none is
    read. What is found has the type `dtype`, or with None those that the function gives.
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
        pictures: bool = True,
        dtype: Any = jnp.float32,
    ) -> None:
        def extract_step(variables: Any, memory: Any, batch: Batch) -> Features:
            rng = jax.random.fold_in(jax.random.PRNGKey(seed), batch.tracklet[0])
            batch = pixels(batch.without_identity(), jax.random.fold_in(rng, batch.part[0]), augmentation)
            found = function(variables, memory, batch)
            if flip:
                mirrored = function(variables, memory, mirror(batch))
                found = jax.tree.map(lambda a, b: 0.5 * (a + b), found, mirrored)
            arrays = jax.tree.map(lambda x: x.astype(dtype or x.dtype), found)
            # Whose features these are comes from the batch that they were made of, never from a place in the plan.
            return Features(arrays=arrays, tracklet=batch.tracklet, part=batch.part, valid=batch.valid)

        self.mesh, self.batch_size, self.pictures = mesh, batch_size, pictures
        self.step = Compiled(extract_step, out_shardings=parallel.rows(mesh))

    def __call__(self, *arguments: Any) -> Features:
        """What `each` finds with the same arguments, of the whole plan."""
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *self.each(*arguments))

    def each(
        self,
        variables: Any,
        memory: Any,
        split: Split,
        plan: ClipPlan,
        options: LoaderOptions,
        reader: FrameReader | None = None,
        extras: ExtraReader | None = None,
    ) -> Iterator[Features]:
        """Features of the clips of the plan, a batch at a time, the last filled up; with the tracklet and part of each.

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
                pictures=self.pictures,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )

        done, failure = 0, None
        try:
            for batch in read(plan):
                yield self.step(variables, memory, parallel.to_global(batch, self.mesh))
                done += 1
        except UserError as error:
            failure = error
            # The others' steps may wait for this process: it takes part, with nothing to read, until they are through.
            rest = plan.unread(done * self.batch_size) if jax.process_count() > 1 else None
            for batch in read(rest) if rest else ():
                yield self.step(variables, memory, parallel.to_global(batch, self.mesh))
        processes.agree(failure)

    def abstract_features(self, clips: int, *arguments: Any) -> Features:
        """Shapes, types and placement of what a call over a plan of this many clips returns; `arguments` of `step`."""
        count, rows = -(-clips // self.batch_size) * self.batch_size, parallel.rows(self.mesh)

        def row(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype, sharding=rows)

        return jax.tree.map(row, self.step.result_shapes(*arguments))


def embedding(method: Method) -> Callable[..., dict[str, Any]]:
    """`method.embed`, which is refused where it does not give every output that the evaluation scores."""
    outputs = method.evaluation().outputs

    def embed(variables: Any, memory: Any, batch: Batch) -> dict[str, Any]:
        found = method.embed(variables, memory, batch)
        if unknown := [name for name in outputs if name not in found]:
            raise UserError(
                f"config.evaluation.outputs: {type(method).__name__} gives no {', '.join(unknown)}; it gives "
                f"{', '.join(found)}"
            )
        return found

    return embed


def behind(items: Iterable[Item], lag: int = LAG) -> Iterator[Item]:
    """What is given, each when the one that comes `lag` later is on its way."""
    waiting = collections.deque[Item]()
    for item in items:
        waiting.append(item)
        if len(waiting) > lag:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def make_extractor(
    run: Run,
    name: str,
    function: Any,
    flip: bool = False,
    augmentation: Augmentation = UNCHANGED,
    dtype: Any = jnp.float32,
) -> Extractor:
    """An extractor of a run, whose compiled step the run lists under `name`."""
    size, seed = run.config.extraction_batch_size, run.config.seed
    pictures = run.method.sees_pictures
    extractor = Extractor(function, run.pixels, run.mesh, size, flip, augmentation, seed, pictures, dtype)
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
) -> dict[str, Any]:
    """Features of a split's tracklets by name, pytrees of f32[N, …]: of the clips that `rule` plans, pooled.

    Args:
      extractor: of `method.embed`.
      rows: i64[N], the tracklets that are wanted, in this order; all where not given.
    """
    wanted, place = np.unique(np.arange(len(split)) if rows is None else rows, return_inverse=True)
    plan = rule.plan(split.table.length[wanted])
    of_split = dataclasses.replace(plan, tracklet=wanted[plan.tracklet].astype(np.int32))
    names = [split.labels.names[row] for row in wanted]
    pool = TrackletPool(wanted, names, rule.pool, rule.normalize)
    for clips in behind(extractor.each(variables, memory, split, of_split, options, reader, extras)):
        pool.add(clips)
    pooled = pool.finish()
    return pooled if np.array_equal(place, np.arange(len(wanted))) else jax.tree.map(lambda x: x[place], pooled)
