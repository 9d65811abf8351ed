"""Settings of a run's config: which of them decide its result, how two configs differ, and how a value is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxreid.config import EXECUTION, among

# Settings that change neither training nor scores, up to rounding: speed, devices, logs, and the names of a config and
# its preset, whose values stand in the config themselves.
IGNORED = (
    "seed",
    "name",
    "preset",
    *EXECUTION,
    "extraction_batch_size",
    "log_every",
    "evaluate_every",
    "evaluate_start",
)
IN_COLUMNS = ("dataset",)  # what a column says already
NOT_SET = "not set"


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a flat config that decide a result, the data set aside."""
    return {key: value for key, value in settings.items() if not among(key, (*IGNORED, *IN_COLUMNS))}


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(key, (old value, new value)) wherever two flat configs differ."""
    for key in sorted(set(old) | set(new)):
        pair = old.get(key, NOT_SET), new.get(key, NOT_SET)
        if pair[0] != pair[1]:
            yield key, pair


def usual_value(values: Sequence[Any]) -> tuple[Any, ...]:
    """The most common value as (value,), or () where two are equally common."""
    counts = Counter(values).most_common(2)
    return () if len(counts) > 1 and counts[0][1] == counts[1][1] else (counts[0][0],)


def setting_text(value: Any) -> str:
    """A setting as it is written on a command line."""
    if isinstance(value, tuple):
        return f"({', '.join(map(setting_text, value))})"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != "" else "''"


def hashable(value: Any) -> Any:
    """A JSON value as one that can be a key: lists and dicts become tuples."""
    if isinstance(value, dict):
        value = sorted(value.items())
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value
