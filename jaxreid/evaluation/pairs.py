"""Pairs of tracklets through the network of a method that scores them: one clip of each, and blocks of pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxreid.data.clips import ClipPlan, plan_tracklets
from jaxreid.data.extras import ExtraReader
from jaxreid.data.loader import LoaderOptions
from jaxreid.data.split import FrameReader, Split
from jaxreid.devices import parallel
from jaxreid.devices.compiled import Compiled
from jaxreid.errors import UserError
from jaxreid.evaluation.extract import Extractor, behind
from jaxreid.methods.method import Evaluation, Features, Method

ROOM = 1 << 32  # bytes of tracklets that are kept on an accelerator; on the CPU an eighth, for all devices together
TOGETHER = 1 << 25  # bytes of tracklets that go to the devices in one call


def pair_plan(rule: Evaluation, length: np.ndarray) -> ClipPlan:
    """One clip of each tracklet: frames ⌊i·n/T⌋, evenly over all n; of those that have no more than T the clip that the
    evaluation draws, filled as it fills it.

    Args:
      length: i32[N], frames of every tracklet.
    """
    even, own = plan_tracklets(length, "linspace", rule.seq_len), rule.plan(length)
    own = own.rows(np.flatnonzero(np.diff(own.tracklet, prepend=-1)))
    short = (np.asarray(length) <= rule.seq_len)[:, None]
    frames, mask = np.where(short, own.frames, even.frames), np.where(short, own.mask, even.mask)
    return ClipPlan(even.tracklet, even.part, frames, mask)


def extracted(extractor: Extractor, *arguments: Any) -> Iterator[dict[str, np.ndarray]]:
    """The features of the clips of a plan, a batch at a time, on the host; arguments as of `Extractor.each`."""
    yield from map(_valid, behind(extractor.each(*arguments), lag=1))  # they may be large


def _valid(clips: Features) -> dict[str, np.ndarray]:
    arrays, valid = parallel.to_host((clips.arrays, clips.valid))
    return {name: x[valid] for name, x in arrays.items()}


def pair_rows(
    extractor: Extractor,
    variables: Any,
    memory: Any,
    split: Split,
    rule: Evaluation,
    options: LoaderOptions,
    reader: FrameReader | None,
    rows: np.ndarray,
    extras: ExtraReader | None = None,
) -> dict[str, np.ndarray]:
    """Features for pairs of the tracklets `rows` of a split, in this order, [N, …] by name."""
    plan = dataclasses.replace(pair_plan(rule, split.table.length[rows]), tracklet=rows.astype(np.int32))
    batches = list(extracted(extractor, variables, memory, split, plan, options, reader, extras))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


class Rows(Protocol):
    """Where the features of tracklets come from, by their numbers."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]: ...


def pair_step(method: Method, mesh: Mesh, block: int, of_pairs: str = "pair_score") -> Compiled:
    """(variables, memory, features of tracklets, places of queries in them i32[block], of the others) → f32[block], or
    what else the method's function `of_pairs` finds in every pair."""

    def pair_score_step(variables: Any, memory: Any, kept: Any, query: jax.Array, gallery: jax.Array) -> Any:
        found = getattr(method, of_pairs)(variables, memory, _rows(kept, query), _rows(kept, gallery))
        for x in jax.tree.leaves(found):
            if x.shape != (block,):
                raise UserError(f"{type(method).__name__}.{of_pairs} gives {x.shape} for {block} pairs")
        return jax.tree.map(lambda x: x.astype(jnp.float32), found)

    return Compiled(pair_score_step, out_shardings=parallel.rows(mesh))


class PairScorer:
    """Scores pairs of tracklets in blocks of one size, split over all devices of a mesh.

    Their features stay on every device as long as there is room: tracklets that meet many others go there once.

    Args:
      method: whose score it is.
      mesh: devices.
      block: pairs at a time, a multiple of the devices.
      rows: the features.
      room: bytes of them that a device keeps, at least those of a block.
      of_pairs: the method's function of pairs, if another than its score.

    Attributes:
      step, store: what is compiled; once each.
    """

    def __init__(
        self,
        method: Method,
        mesh: Mesh,
        block: int,
        rows: Rows,
        room: int | None = None,
        of_pairs: str = "pair_score",
    ) -> None:
        def pair_rows_step(kept: Any, new: Any, places: jax.Array) -> Any:
            return jax.tree.map(lambda x, rows: x.at[places].set(rows), kept, new)

        self.mesh, self.block, self.rows = mesh, block, rows
        whole = parallel.replicated(mesh)
        self.step = pair_step(method, mesh, block, of_pairs)
        self.store = Compiled(pair_rows_step, donate_argnums=0, out_shardings=whole)
        one = rows.take(np.zeros(1, np.int64))
        size = sum(x.nbytes for x in one.values())
        if room is None:
            room = ROOM if mesh.devices.flat[0].platform != "cpu" else ROOM // 8 // mesh.size
        self.capacity = min(max(room // size, 2 * block), len(rows))  # a block has no more tracklets than that
        self.together = int(np.clip(TOGETHER // size, 1, block))
        self.place: dict[int, int] = {}  # of the tracklets that are there, those that were asked for last at the end
        shapes = {name: jax.ShapeDtypeStruct((self.capacity, *x.shape[1:]), x.dtype) for name, x in one.items()}
        zeros = jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), out_shardings=whole)
        self.kept = zeros()

    def __call__(self, variables: Any, memory: Any, query: np.ndarray, gallery: np.ndarray) -> Any:
        """Numbers i64[n] of the tracklets of both sides, n ≤ block → f32[block], of which the first n count."""
        self._bring(np.unique(np.concatenate([query, gallery])).tolist())
        sides = [np.array([self.place[row] for row in side.tolist()], np.int32) for side in (query, gallery)]
        sides = [np.pad(side, (0, self.block - len(side)), mode="edge") for side in sides]
        return self.step(variables, memory, self.kept, *_placed(sides, parallel.rows(self.mesh)))

    def _bring(self, wanted: list[int]) -> None:
        """Makes sure that tracklets are on the devices; those that were not asked for the longest leave."""
        for row in wanted:
            if row in self.place:
                self.place[row] = self.place.pop(row)
        missing = [row for row in wanted if row not in self.place]
        for start in range(0, len(missing), self.together):
            new = missing[start : start + self.together]
            for row in new:
                full = len(self.place) == self.capacity
                self.place[row] = self.place.pop(next(iter(self.place))) if full else len(self.place)
            new += new[-1:] * (self.together - len(new))
            arrays, places = self.rows.take(np.array(new)), np.array([self.place[row] for row in new], np.int32)
            self.kept = self.store(self.kept, *_placed((arrays, places), parallel.replicated(self.mesh)))


def _rows(kept: Any, places: jax.Array) -> Any:
    return parallel.constrain(jax.tree.map(lambda x: x[places], kept), "rows")


def _placed(tree: Any, sharding: Any) -> Any:
    return parallel.place(tree, jax.tree.map(lambda _: sharding, tree))
