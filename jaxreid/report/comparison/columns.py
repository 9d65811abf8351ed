"""What is one column: a metric under one setup of the evaluation; and the shortest names that tell setups apart."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxreid.config import flatten
from jaxreid.report.comparison.settings import NOT_SET, hashable, setting_text

METRIC = re.compile(r"mAP|mINP|rank-\d+")
# Keys of a score record that a setup must have, and those that say nothing about how it was scored.
REQUIRED = (
    "direction", "protocol", "clip_sampling", "seq_len", "distance", "reranking", "queries", "gallery"
)  # fmt: skip
NO_CONDITION = ("cmc", "checkpoint", "features")
NAMED_FACTS = ("dataset", "protocol")  # which a setup's name says where they differ


class LeftOutError(Exception):
    """A workdir has no result to compare; the message says why."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """On what and how something was scored: the data set with its version and sizes, the protocol, the direction, and
    how test clips were drawn, compared and counted.

    `facts` are (name, value) pairs; scores compare where all of them are equal.
    """

    facts: tuple[tuple[str, Any], ...]

    def __getitem__(self, name: str) -> Any:
        return next((value for known, value in self.facts if known == name), NOT_SET)

    @property
    def direction(self) -> str:
        return str(self["direction"]).replace("_to_", " → ").replace("_", " ")


def scores_by_setup(records: Sequence[Any], fingerprint: Mapping[str, Any]) -> dict[Setup, dict[str, float]]:
    """Setup → metric → percent.

    Args:
      records: score records of `results.json`.
      fingerprint: the data set they were scored on, as `dataset.json` holds it.

    Raises:
      LeftOutError: a record lacks something, or is there twice.
    """
    data = {"dataset": fingerprint["name"], **dict(flatten({k: v for k, v in fingerprint.items() if k != "name"}))}
    scores: dict[Setup, dict[str, float]] = {}
    for record in records:
        missing = [key for key in REQUIRED if not isinstance(record, dict) or key not in record]
        if missing:
            raise LeftOutError(f"results.json has an old format or is broken: a score without {', '.join(missing)}")
        record = {"output": "feature", **record}
        metrics = {key: value for key, value in record.items() if METRIC.fullmatch(key)}
        for key, value in metrics.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise LeftOutError(f"broken: {key} of {record['direction']} in results.json is {value}")
        # An unknown word, switch or count may be a condition, and keeps columns apart; unknown fractions and lists are
        # taken for measurements.
        others = {
            key
            for key, value in record.items()
            if key not in (*metrics, *NO_CONDITION, *REQUIRED) and (value is None or isinstance(value, str | int))
        }
        conditions = {key: record[key] for key in (*REQUIRED, *sorted(others))}
        setup = Setup(tuple((key, hashable(value)) for key, value in {**data, **conditions}.items()))
        if setup in scores:
            raise LeftOutError(f"broken: results.json holds {record['direction']} ({record['protocol']}) twice")
        scores[setup] = metrics
    return scores


def setup_names(setups: Sequence[Setup]) -> dict[Setup, str]:
    """The shortest names that tell setups apart: direction, then data set, protocol and what else is needed."""
    parts: dict[Setup, list[str]] = {setup: [] for setup in setups}
    for key in NAMED_FACTS:
        if len({setup[key] for setup in setups}) > 1:
            for setup in setups:
                parts[setup].append(str(setup[key]))
    for setup in setups:
        parts[setup].append(setup.direction)
    for key in dict.fromkeys(key for setup in setups for key, _ in setup.facts):
        alike: dict[tuple[str, ...], list[Setup]] = {}
        for setup in setups:
            alike.setdefault(tuple(parts[setup]), []).append(setup)
        for group in alike.values():
            if len({setup[key] for setup in group}) > 1:
                for setup in group:
                    parts[setup].append(fact_text(key, setup[key]))
    return {setup: ", ".join(words) for setup, words in parts.items()}


def fact_text(key: str, value: Any) -> str:
    """A fact of a setup in words."""
    if key == "reranking":
        return "no re-ranking" if value is False else "re-ranked" if value is True else f"re-ranking {value}"
    if key == "rescoring":
        return "no re-scoring" if value == NOT_SET else f"re-scored with the {value}"
    kind, _, split = key.partition(".")
    if kind in ("tracklets", "frames") and split:
        return f"{value} {kind} in {split}"
    if kind == "contents":
        return f"another {split} of that size ({value})"
    forms = {
        "dataset": "{}", "version": "version {}", "clip_sampling": "{} clips", "seq_len": "{} frames per clip",
        "distance": "{} distance", "queries": "{} queries", "gallery": "gallery of {}",
        "unmatched": "{} queries without a match", "output": "output {}",
    }  # fmt: skip
    return forms.get(key, f"{key} {{}}").format(setting_text(value))
