"""The conditions under which tracklets were taken, as groups of queries and of their matches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxreid.data.schema import PLATFORMS
from jaxreid.evaluation.cases import Case, Side

ALTITUDE, DISTANCE, ANGLE = range(3)  # columns of `TrackletTable.geometry`
NADIR = 75.0  # degrees from which on a camera looks straight down
MOST_POINTS = 36  # capture points; where there are more, cameras do not look from points

# Lower edges of the groups. Those of altitude and slant range are the ones of VReID-XFD's analysis; each distance and
# angle of its 18 capture points has a group of its own.
ALTITUDES = (0.0, 15.0, 30.0, 60.0)
DISTANCES = (0.0, 5.0, 15.0, 25.0, 35.0, 60.0, 100.0)
SLANTS = tuple(17.0 * place for place in range(10))
ANGLES = (0.0, 15.0, 45.0, NADIR)


@dataclasses.dataclass(frozen=True)
class Column:
    """A condition of the tracklets of one side.

    Attributes:
      name: of the condition; `unit` of its numbers.
      group: i64[n], from 0 in the order of `labels`; −1 where it is not known.
      labels: what the groups are called; a pair for groups of two conditions.
      value: f64[n], the number that the groups order, or None.
    """

    name: str
    group: np.ndarray
    labels: tuple[str | tuple[str, str], ...]
    unit: str = ""
    value: np.ndarray | None = None


def columns(side: Side) -> Iterator[Column]:
    """Every condition of a side's tracklets of which something is known."""
    table, rows = side.split.table, side.rows
    geometry = table.geometry[rows].astype(np.float64)
    slant = np.hypot(geometry[:, ALTITUDE], geometry[:, DISTANCE])
    angle = geometry[:, ANGLE]
    # Whoever is looked at from straight above is at no distance: among all views, distance tells of the angle as well.
    slanted = np.where(angle < NADIR, geometry[:, DISTANCE], np.nan)
    if np.all(np.isnan(slanted) == np.isnan(angle)):
        slanted[:] = np.nan
    numbers = (
        _binned("altitude", geometry[:, ALTITUDE], ALTITUDES, "m"),
        _binned("distance", geometry[:, DISTANCE], DISTANCES, "m"),
        _binned("slant range", slant, SLANTS, "m"),
        _binned("angle", angle, ANGLES, "°"),
        _binned("distance, slanted views", slanted, DISTANCES, "m"),
    )
    words = (
        _points(geometry),
        crossed(numbers[3], numbers[1]),
        _named("session", table.session[rows], table.session[rows] >= 0, str),
        _named("platform", table.platform[rows], table.platform[rows] > 0, lambda code: PLATFORMS[code]),
    )
    yield from (column for column in (*numbers, *words) if (column.group >= 0).any())


def relations(case: Case) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(condition, its code of every query, its code of every gallery row) of those in which a match agrees with the
    query or differs; −1 where it is not known. Numbers of clothes mean nothing but that."""
    query, gallery = case.query, case.gallery
    for name in ("session", "clothes"):
        here, there = (getattr(_holder(side, name), name)[side.rows] for side in (query, gallery))
        if (here >= 0).any() and (there >= 0).any():
            yield name, here, there


def _holder(side: Side, name: str) -> object:
    return side.split.labels if name == "clothes" else side.split.table


def _binned(name: str, value: np.ndarray, edges: Sequence[float], unit: str) -> Column:
    """Groups between the edges; one that holds a single number is called by it."""
    known = np.isfinite(value)
    place = np.where(known, np.clip(np.searchsorted(edges, value, side="right") - 1, 0, None), -1)
    labels = [_bin_label(edges, number, value[place == number], unit) for number in range(len(edges))]
    return Column(name, place, tuple(labels), unit, value)


def _bin_label(edges: Sequence[float], number: int, values: np.ndarray, unit: str) -> str:
    end = unit if unit == "°" else f" {unit}"
    if len(values) and np.ptp(values) < 0.1:
        return f"{values[0]:.4g}{end}"
    if number == len(edges) - 1:
        return f"from {edges[number]:g}{end}"
    return f"{edges[number]:g} to {edges[number + 1]:g}{end}"


def _points(geometry: np.ndarray) -> Column:
    """The places that cameras look from: tracklets of equal altitude, distance and angle, to a tenth."""
    known = np.isfinite(geometry).all(axis=1)
    group = np.full(len(geometry), -1)
    places, group[known] = np.unique(np.round(geometry[known][:, ::-1], 1), axis=0, return_inverse=True)
    if len(places) > MOST_POINTS:
        return Column("point", np.full(len(geometry), -1), ())
    return Column("point", group, tuple(f"{angle:g}°, {up:g} m up, {off:g} m off" for angle, off, up in places))


def crossed(first: Column, second: Column) -> Column:
    """A group for every pair of groups."""
    known = (first.group >= 0) & (second.group >= 0)
    group = np.where(known, first.group * len(second.labels) + second.group, -1)
    labels = tuple((str(a), str(b)) for a in first.labels for b in second.labels)
    return Column(f"{first.name} × {second.name}", group, labels)


def _named(name: str, code: np.ndarray, known: np.ndarray, word: Callable[[int], str]) -> Column:
    values, group = np.unique(code[known], return_inverse=True)
    whole = np.full(len(code), -1)
    whole[known] = group
    return Column(name, whole, tuple(f"{name} {word(int(value))}" for value in values))
