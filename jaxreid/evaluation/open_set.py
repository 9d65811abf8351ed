"""Open-set rates of a run's cases, for `results.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from jaxreid import retrieval
from jaxreid.errors import UserError
from jaxreid.evaluation.cases import Case
from jaxreid.retrieval.distances import Distance
from jaxreid.retrieval.open_set import Rate, check


def check_open_set(cases: Sequence[Case]) -> None:
    """Refuses a data set that has too few queries for these rates in every case of the headline protocol.

    Raises:
      UserError: the message says of each case why.
    """
    reasons = [f"{case.direction}: {reason}" for case in _headline(cases) if (reason := _why_not(case))]
    if len(reasons) == len(_headline(cases)):
        raise UserError(f"{'; '.join(reasons)} (--config.evaluation.open_set=False does without)")


def open_set_tables(
    cases: Sequence[Case], features: Mapping[str, Any], distance: Distance, mesh: Mesh | None = None
) -> dict[str, Any]:
    """{"open_set": a table for every case of the headline protocol}.

    A table has `direction`, `protocol` and either `reason`, why its rates are not given, or the counts of
    `retrieval.OpenSet` with `identification`, rows of FPIR, FNIR and threshold, and `verification`, rows of FAR, TAR
    and threshold; rates in percent. `asked` is what the threshold was chosen for.

    Args:
      features: split name → features of its tracklets.
      distance, mesh: as in `retrieval.score`.
    """
    return {"open_set": [_table(case, features, distance, mesh) for case in _headline(cases)]}


def _headline(cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if case.protocol == cases[0].protocol]


def _why_not(case: Case) -> str:
    try:
        check(case.query.columns(), case.gallery.columns(), case.protocol)
    except UserError as error:
        return str(error)
    return ""


def _table(case: Case, features: Mapping[str, Any], distance: Distance, mesh: Mesh | None) -> dict[str, Any]:
    table: dict[str, Any] = {"direction": case.direction, "protocol": case.protocol.key}
    if reason := _why_not(case):
        return table | {"reason": reason}
    query, gallery = case.query, case.gallery
    found = retrieval.open_set_rates(
        query.of(features),
        gallery.of(features),
        query.columns(),
        gallery.columns(),
        case.protocol,
        distance,
        mesh=mesh,
    )
    counts = ("matched", "unmatched", "identities", "removed", "genuine", "impostor")
    table |= {name: getattr(found, name) for name in counts}
    table["identification"] = [_row(rate, "FPIR", "FNIR") for rate in found.identification]
    table["verification"] = [_row(rate, "FAR", "TAR") for rate in found.verification]
    return table


def _row(rate: Rate, false_positive: str, found: str) -> dict[str, Any]:
    shares = {"asked": rate.asked, false_positive: rate.false_positive, found: rate.found}
    # JSON knows no infinity: a threshold that nothing reaches.
    threshold = rate.threshold if abs(rate.threshold) < float("inf") else None
    return {**{name: 100.0 * share for name, share in shares.items()}, "threshold": threshold}
