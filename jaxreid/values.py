"""What the values of a config may be: conditions, and tables of them by key.

A table stands beside the code that reads its keys; the keys of every run, and the check of a whole config, are in
`jaxreid.run.config_values`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jaxreid.errors import UserError


@dataclasses.dataclass(frozen=True)
class Condition:
    """`holds(value)`: whether it is allowed; `allowed()`: which values are, to follow "must be" in a message; `needed`:
    whether a config must have the key."""

    holds: Callable[[Any], bool]
    allowed: Callable[[], str]
    needed: bool = True


Table = Mapping[str, Condition]


def number(least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf, below: float = math.inf):
    """A finite number within bounds."""

    def holds(value: Any) -> bool:
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        return plain and math.isfinite(value) and least <= value <= most and above < value < below

    return Condition(holds, lambda: "a finite number" + _bounds(least, most, above, below))


def whole(least: int, most: float = math.inf) -> Condition:
    """A whole number within bounds."""
    within = number(least, most)
    return Condition(
        lambda value: isinstance(value, int) and within.holds(value),
        lambda: "a whole number" + _bounds(least, most),
    )


def _bounds(least: float, most: float, above: float = -math.inf, below: float = math.inf) -> str:
    words = {"of at least": least, "above": above, "at most": most, "below": below}
    listed = ", ".join(f"{word} {bound:.12g}" for word, bound in words.items() if math.isfinite(bound))
    return f" {listed}" if listed else ""


def one_of(names: Iterable[Any] | Callable[[], Iterable[Any]]) -> Condition:
    """One of some names, which may be the result of a call and are listed when a value is checked."""

    def known() -> list[Any]:
        return list(names() if callable(names) else names)

    return Condition(lambda value: value in known(), lambda: "one of " + _listing(known()))


def some_of(names: Iterable[str], least: int = 0) -> Condition:
    """A tuple of some of the names, each at most once."""

    def holds(value: Any) -> bool:
        if not isinstance(value, (tuple, list)) or len(value) < least:
            return False
        return all(name in names for name in value) and len(set(value)) == len(value)

    return Condition(holds, lambda: f"a tuple of {least} or more of " + _listing(names))


def _listing(names: Iterable[Any]) -> str:
    return ", ".join(str(name) or "''" for name in names)


def series(each: Condition, length: int | None = None, ascending: bool = False, least: int = 0) -> Condition:
    """A tuple of values that each fulfil a condition."""

    def holds(value: Any) -> bool:
        if not isinstance(value, (tuple, list)) or length not in (None, len(value)) or len(value) < least:
            return False
        return all(map(each.holds, value)) and (not ascending or list(value) == sorted(set(value)))

    count = f" of {length} values" if length else f" of {least} or more values" if least else ""
    order = ", in ascending order" if ascending else ""
    return Condition(holds, lambda: f"a tuple{count}, each {each.allowed()}{order}")


def row(*conditions: Condition) -> Condition:
    """A tuple with a value for each condition."""

    def holds(value: Any) -> bool:
        if not isinstance(value, (tuple, list)) or len(value) != len(conditions):
            return False
        return all(condition.holds(each) for condition, each in zip(conditions, value, strict=True))

    return Condition(holds, lambda: f"({'; '.join(condition.allowed() for condition in conditions)})")


def optional(condition: Condition) -> Condition:
    """None, or a value that fulfils a condition."""
    return Condition(lambda value: value is None or condition.holds(value), lambda: f"{condition.allowed()}, or None")


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


positive, non_negative, fraction = number(above=0), number(0), number(0, 1)
flag = Condition(lambda value: isinstance(value, bool), lambda: "True or False")
word = Condition(lambda value: isinstance(value, str) and bool(value.strip()), lambda: "a text that is not empty")
text = Condition(lambda value: isinstance(value, str), lambda: "a text")  # a path or a name, which opening looks for
pattern = Condition(_is_pattern, lambda: "a regular expression")
free = Condition(lambda value: True, lambda: "anything")  # checked where it is used


def defaulted(table: Table) -> dict[str, Condition]:
    """The table, its keys not needed: what takes the values has its own for those that are left out."""
    return {key: dataclasses.replace(condition, needed=False) for key, condition in table.items()}


def under(prefix: str, table: Table) -> dict[str, Condition]:
    """The table with "`prefix`." before every key."""
    return {f"{prefix}.{key}": condition for key, condition in table.items()}


def faults(values: Mapping[str, Any], table: Table, prefix: str = "config.") -> Iterator[str]:
    """A sentence for every value that its condition does not allow; keys without a condition are passed over."""
    for key, value in values.items():
        if key in table and not table[key].holds(value):
            yield f"{prefix}{key}={value!r} must be {table[key].allowed()}"


def unset(values: Mapping[str, Any], table: Table) -> Iterator[str]:
    """A sentence for every key that the table needs and a config's values lack."""
    for key, condition in table.items():
        if condition.needed and key not in values:
            yield f"config.{key} is not set: it must be {condition.allowed()}"


def check(values: Mapping[str, Any], table: Table, prefix: str) -> None:
    """Raises UserError with the sentences of `faults`, if there are any."""
    if found := list(faults(values, table, prefix)):
        raise UserError("; ".join(found))
