"""Re-scoring: the tracklets nearest to each query by the single embedding, put in the order of a score of pairs.

A method whose network looks at both sides of a pair has no fixed embedding to rank by, and all pairs are too many. So
everything is ranked by the single embedding; of the `rescore_size` nearest of each query, one clip of every tracklet is
embedded for pairs, once, into a store on disk; the pairs are scored in blocks over all devices; and

    score = rescore_mix · (score of the pair) + (1 − rescore_mix) · cosine

orders the shortlist, ahead of all others, which keep the order of the single embedding (`retrieval.Shortlist`).

A shortlist is made among all that a case's gallery lists, before a protocol leaves anything out of a query's ranking:
it needs no label, as in use, and the protocols of a data set share it, so that each pair is scored once. Of its places
those go to waste that a protocol leaves out.

What is done stays in the workdir, and the same line goes on behind it after a kill: the features of pairs until all
pairs are scored, the scores of pairs for good.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxreid.config import EXECUTION, among, flatten
from jaxreid.data.clips import ClipPlan
from jaxreid.data.split import Split
from jaxreid.devices import parallel, processes
from jaxreid.devices.digests import digest
from jaxreid.errors import UserError, some
from jaxreid.evaluation.cases import Case, numbered
from jaxreid.evaluation.extract import behind, make_extractor
from jaxreid.evaluation.pairs import PairScorer, extracted, pair_plan
from jaxreid.retrieval.blocks import BlockStore, remove
from jaxreid.retrieval.shortlist import Shortlist
from jaxreid.run.model import Run, abstract_batch

FOLDER, FEATURES, SCORES = "pairs", "features", "scores"  # in a workdir, and in it
TOGETHER = 64  # queries whose pairs are scored by gallery tracklet, so that each of these is read once for all of them


@dataclasses.dataclass(frozen=True)
class Rescored:
    """Shortlists with their scores, one for each case in their order; what records say of it; and what it took."""

    distances: tuple[Shortlist, ...]
    told: str
    facts: dict[str, int]

    @property
    def note(self) -> str:
        """What a reader of the results must know."""
        return (
            f"Re-scored ({self.told}): so many of each query, the nearest by the single embedding, those that a "
            "protocol leaves out among them, are in the order of mix · score of the pair + (1 − mix) · cosine."
        )


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """P pairs of numbers of tracklets, by query and then by gallery tracklet, each once; in which order they are
    scored."""

    query: np.ndarray  # i64[P]
    gallery: np.ndarray  # i64[P]
    order: np.ndarray  # i64[P]
    key: np.ndarray  # i64[P], ascending
    base: int  # of the keys

    @classmethod
    def of(cls, sides: Sequence[tuple[np.ndarray, np.ndarray]]) -> _Pairs:
        """All pairs of a number with each of its row: (i64[Q], i64[Q, size])."""
        base = 1 + max(int(near.max()) for _, near in sides)
        key = np.unique(np.concatenate([(query[:, None] * base + near).ravel() for query, near in sides]))
        query, gallery = np.divmod(key, base)
        group = np.unique(query, return_inverse=True)[1] // TOGETHER
        return cls(query, gallery, np.lexsort((query, gallery, group)), key, base)

    def __len__(self) -> int:
        return len(self.query)

    def find(self, query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """Which pairs these are, of numbers that are among them."""
        return np.searchsorted(self.key, query * self.base + gallery)


class Rescorer:
    """Re-scores the cases of a run; made once, so that its steps compile once."""

    def __init__(self, run: Run) -> None:
        self.run, self.options = run, run.method.evaluation()
        self.extractor = make_extractor(run, "pair_features_step", run.method.pair_features, dtype=None)
        self.numbers = numbered(run.dataset.test_splits)

    def __call__(self, cases: Sequence[Case], features: Mapping[str, Any], variables: Any, memory: Any) -> Rescored:
        """Scores every pair that is in a case's shortlists and has no score from before.

        Args:
          features: split name → the single embedding of its tracklets, f32[N, D].

        Raises:
          UserError: the single embedding is no vector, a frame cannot be decoded, or a score is not finite.
        """
        options, scores = self.options, np.zeros(0, np.float32)
        sides, shortlists = [], []
        for case in cases:
            query, gallery = (side.of(self.numbers) for side in (case.query, case.gallery))

            def looked_up(rows: np.ndarray, near: np.ndarray, query: Any = query, gallery: Any = gallery) -> np.ndarray:
                return scores[pairs.find(query[rows][:, None], gallery[near])]

            single = case.query.of(features), case.gallery.of(features)
            shortlists.append(Shortlist(*single, looked_up, options.rescore_size, options.rescore_mix))
            sides.append((query, gallery[shortlists[-1].index]))
        pairs = _Pairs.of(sides)
        scores, facts = self._scores(pairs, variables, memory)
        return Rescored(tuple(shortlists), f"{options.rescore_size} nearest, mix {options.rescore_mix:g}", facts)

    # --- scores -------------------------------------------------------------------------------------------------

    def _scores(self, pairs: _Pairs, variables: Any, memory: Any) -> tuple[np.ndarray, dict[str, int]]:
        """(f32[P], figures)."""
        run, size = self.run, self.options.rescore_block
        wanted = np.unique([pairs.query, pairs.gallery])
        plans = self._plans(wanted)
        made_of = self._made_of(variables, memory, plans)
        blocks = -(-len(pairs) // size)
        listed = hashlib.sha256(pairs.key.tobytes() + str(pairs.base).encode()).hexdigest()
        array = jax.ShapeDtypeStruct((len(pairs),), np.float32)
        with processes.main_first():
            store = BlockStore(run.workdir / FOLDER / SCORES, f"{made_of} {listed} {size}", {"score": array}, blocks)
        todo = processes.of_main(store.missing)
        slots = np.split(pairs.order, range(size, len(pairs), size))
        left = sum(len(slots[block]) for block in todo)
        arrays = self._shapes(len(wanted), variables, memory)
        total = sum(x.size * x.dtype.itemsize for x in arrays.values())
        found = np.empty(len(pairs), np.float32)
        found[pairs.order] = store.take(np.arange(len(pairs)))["score"]  # zeros in blocks that are missing
        facts = {
            "pairs": len(pairs), "found": len(pairs) - left, "scored": left, "blocks": blocks, "pairs_in_block": size,
            "tracklets": len(wanted), "bytes": total,
        }  # fmt: skip
        print(
            f"re-scoring the {self.options.rescore_size} nearest of each query: {len(pairs):,} pairs in {blocks:,} "
            f"blocks of {size}, {len(pairs) - left:,} pairs scored before; features of {len(wanted):,} tracklets, "
            f"{total / 2**30:.2f} GiB in {run.workdir / FOLDER} until all are scored",
            flush=True,
        )
        if todo:
            tracklets = self._features(plans, made_of, arrays, variables, memory)
            for block, values in self._scored(tracklets, wanted, pairs, slots, todo, variables, memory):
                found[slots[block]] = values
                with processes.together():
                    if run.is_main:
                        store.put(block, block * size, {"score": values})
        with processes.together():
            if run.is_main:
                remove(self.run.workdir / FOLDER / FEATURES)
        return found, facts

    def _scored(
        self,
        tracklets: BlockStore,
        wanted: np.ndarray,
        pairs: _Pairs,
        slots: Sequence[np.ndarray],
        todo: Sequence[int],
        variables: Any,
        memory: Any,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(block, its scores) of the blocks that are to be done."""
        run = self.run
        scorer = PairScorer(run.method, run.mesh, self.options.rescore_block, tracklets)
        run.compiled |= {"pair_score_step": scorer.step, "pair_rows_step": scorer.store}

        def scored(block: int) -> tuple[int, jax.Array]:
            sides = [np.searchsorted(wanted, side[slots[block]]) for side in (pairs.query, pairs.gallery)]
            return block, scorer(variables, memory, *sides)

        done = len(pairs) - sum(len(slots[block]) for block in todo)
        with self._bar(len(pairs), done, "pairs") as bar:
            for block, scores in behind(map(scored, todo)):
                values = parallel.to_host(scores)[: len(slots[block])]
                self._check(values, pairs, slots[block])
                bar.update(len(values))
                yield block, values

    def _check(self, values: np.ndarray, pairs: _Pairs, slots: np.ndarray) -> None:
        broken = slots[~np.isfinite(values)]
        if len(broken):
            names = [name for split in self.run.dataset.test_splits for name in split.labels.names]
            told = [f"{names[pairs.query[at]]} with {names[pairs.gallery[at]]}" for at in broken]
            raise UserError(f"the scores of {len(broken)} of {len(values)} pairs are not finite: {some(told)}")

    def _bar(self, total: int, done: int, unit: str) -> tqdm:
        quiet = None if self.run.is_main else True
        return tqdm(total=total, initial=done, unit=f" {unit}", disable=quiet, dynamic_ncols=True)

    # --- features -----------------------------------------------------------------------------------------------

    def _plans(self, wanted: np.ndarray) -> list[tuple[Split, ClipPlan]]:
        """For every test split a clip of each of its tracklets that is in a pair."""
        plans = []
        for split in self.run.dataset.test_splits:
            rows = np.flatnonzero(np.isin(self.numbers[split.name], wanted)).astype(np.int32)
            plan = pair_plan(self.options, split.table.length[rows])
            plans.append((split, dataclasses.replace(plan, tracklet=rows)))
        return plans

    def _made_of(self, variables: Any, memory: Any, plans: Sequence[tuple[Split, ClipPlan]]) -> str:
        """A digest of all that the features of pairs follow from: weights, config, data and clips."""
        config, run = flatten(self.run.config.to_dict()), self.run
        facts = {
            "weights": digest((variables, memory)),
            "config": {key: value for key, value in config if not among(key, EXECUTION)},
            "data": run.dataset.fingerprint(),
            "sidecars": run.sidecars(train=False),
        }
        found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for _, plan in plans:
            for column in vars(plan).values():
                found.update(np.ascontiguousarray(column).tobytes())
        return found.hexdigest()

    def _shapes(self, count: int, variables: Any, memory: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the features of so many tracklets."""
        run = self.run
        batch = abstract_batch(run, run.config.extraction_batch_size, self.options.seq_len, "test")
        found = self.extractor.step.result_shapes(variables, memory, batch).arrays
        return {name: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype) for name, x in found.items()}

    def _features(
        self, plans: Sequence[tuple[Split, ClipPlan]], made_of: str, arrays: Any, variables: Any, memory: Any
    ) -> BlockStore:
        """The store of the features of all planned clips, split by split; what it lacked is extracted."""
        run, size, first, start = self.run, self.extractor.batch_size, 0, 0
        blocks = sum(-(-len(plan) // size) for _, plan in plans)
        with processes.main_first():
            store = BlockStore(run.workdir / FOLDER / FEATURES, f"{made_of} {size}", arrays, blocks)
        missing = set(processes.of_main(store.missing))
        with self._bar(len(store), 0, "tracklets") as bar:
            for split, plan in plans:
                mine = range(-(-len(plan) // size))
                todo = [block for block in mine if first + block in missing]
                rows = [np.arange(block * size, min((block + 1) * size, len(plan))) for block in todo]
                bar.update(len(plan) - sum(map(len, rows)))
                some = plan.rows(np.concatenate([np.zeros(0, np.int64), *rows]))
                reading = run.loading.for_tests(), run.reader(split), run.extras(split, "test")
                batches = extracted(self.extractor, variables, memory, split, some, *reading) if rows else ()
                for block, values in zip(todo, batches, strict=True):
                    with processes.together():
                        if run.is_main:
                            store.put(first + block, start + block * size, values)
                    bar.update(len(next(iter(values.values()))))
                first, start = first + len(mine), start + len(plan)
        return store
