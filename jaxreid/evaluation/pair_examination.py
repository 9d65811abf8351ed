"""What a method finds in pairs of test tracklets beside their score (`Method.examine_pairs`): figures over a sample of
pairs, by what the two tracklets have in common."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxreid.devices import parallel
from jaxreid.evaluation.cases import Case, numbered
from jaxreid.evaluation.examination import mean_over
from jaxreid.evaluation.extract import Extractor, behind
from jaxreid.evaluation.pairs import PairScorer, pair_rows
from jaxreid.retrieval.breakdown import SEED
from jaxreid.run.model import Run

PAIRS = 128  # of a group, at most
SAME, SAME_CLOTHES, OTHER_CLOTHES = "same person", "same person, same clothes", "same person, other clothes"
ANOTHER = "another person"


@dataclasses.dataclass(frozen=True)
class InMemory:
    """Features of tracklets as `PairScorer` asks for them."""

    arrays: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: x[rows] for name, x in self.arrays.items()}


def groups(case: Case) -> dict[str, np.ndarray]:
    """Name → rows of queries and of the gallery i64[n, 2], of two cameras; drawn without replacement. The same person
    by clothes where these are known."""
    rng = np.random.default_rng(SEED)
    query, gallery = case.query.columns(), case.gallery.columns()
    asked = np.sort(rng.permutation(len(query.identity))[:PAIRS])

    def both(name: str) -> tuple[np.ndarray, np.ndarray]:
        return getattr(query, name)[asked, None], getattr(gallery, name)[None]

    def differ(name: str) -> np.ndarray:
        one, other = both(name)
        return one != other

    another, known = differ("identity"), np.minimum(*both("clothes")) >= 0
    wanted = {SAME: ~another}
    if known.any():
        changed = differ("clothes")
        wanted = {SAME_CLOTHES: ~another & known & ~changed, OTHER_CLOTHES: ~another & known & changed}
    wanted[ANOTHER] = another
    found = {}
    for name, mask in wanted.items():
        one, other = np.nonzero(mask & differ("camera"))
        drawn = np.sort(rng.permutation(len(one))[:PAIRS])
        if len(drawn):
            found[name] = np.stack([asked[one[drawn]], other[drawn]], axis=1)
    return found


def pair_examination(run: Run, extractor: Extractor, case: Case, variables: Any, memory: Any) -> list[dict[str, Any]]:
    """A record for each figure and group of pairs: its mean, with the interval over the queries' persons.

    Args:
      extractor: of `method.pair_features`.
    """
    rule, splits, drawn = run.method.evaluation(), run.dataset.test_splits, groups(case)
    if not drawn:
        return []
    numbers = numbered(splits)
    pairs = np.concatenate([*drawn.values()])
    sides = [side.of(numbers)[pairs[:, i]] for i, side in enumerate((case.query, case.gallery))]
    wanted, found = np.unique(sides), []
    for split in splits:
        rows = np.flatnonzero(np.isin(numbers[split.name], wanted))
        reading = run.loading.for_tests(), run.reader(split), rows, run.extras(split, "test")
        found += [pair_rows(extractor, variables, memory, split, rule, *reading)] if len(rows) else []
    features = InMemory({name: np.concatenate([part[name] for part in found]) for name in found[0]})
    scorer = PairScorer(run.method, run.mesh, rule.rescore_block, features, of_pairs="examine_pairs")
    run.compiled["examine_pairs_step"] = scorer.step
    blocks = [slice(start, start + rule.rescore_block) for start in range(0, len(pairs), rule.rescore_block)]
    places = [np.searchsorted(wanted, side) for side in sides]
    batches = behind(scorer(variables, memory, *(side[block] for side in places)) for block in blocks)
    figures = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(pairs)], *map(parallel.to_host, batches))
    group = np.repeat([*drawn], [len(x) for x in drawn.values()])
    person = case.query.columns().identity[pairs[:, 0]]
    return [
        {"name": name, "pairs": at, **mean_over(x[group == at], person[group == at]), "count": int((group == at).sum())}
        for name, x in figures.items()
        for at in drawn
    ]
