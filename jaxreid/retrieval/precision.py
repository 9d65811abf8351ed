"""Average precision and the inverse negative penalty, from where the matches stand in a ranking."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxreid.errors import UserError
from jaxreid.shapes import Bool, Float, Int


class Matches(NamedTuple):
    """Where the matches of Q queries stand, at most P of each, nearest first."""

    position: Int[np.ndarray, "queries matches"]  # 1-based, of the ranking without junk; 0 past the last match
    row: Int[np.ndarray, "queries matches"]  # of the gallery; −1 past the last
    distance: Float[np.ndarray, "queries matches"]
    tied_precision: Float[np.ndarray, "queries matches"] | None = None  # of `metrics.match_positions`, where it decides

    @property
    def exist(self) -> Bool[np.ndarray, "queries matches"]:
        return self.position > 0

    def only(self, chosen: Bool[np.ndarray, "queries matches"]) -> Matches:
        """The chosen matches alone, in the ranking that the others are taken out of as junk; negatives stay."""
        chosen = chosen & self.exist
        number = np.arange(1, self.position.shape[1] + 1)
        count = np.cumsum(chosen, axis=1)
        order = np.argsort(~chosen, axis=1, kind="stable")
        left = np.take_along_axis(chosen, order, axis=1)

        def of_chosen(values: np.ndarray, fill: float) -> np.ndarray:
            return np.where(left, np.take_along_axis(values, order, axis=1), fill).astype(values.dtype)

        tied = self.tied_precision
        if tied is not None:
            # Negatives up to a match's distance are those among what is retrieved with it: hits / precision − hits.
            last = self._last_of_equals()
            negatives = np.rint((last + 1) / np.where(tied > 0, tied, 1.0) - (last + 1))
            hits = np.take_along_axis(count, last, axis=1)
            tied = of_chosen((hits / np.maximum(hits + negatives, 1)).astype(tied.dtype), 0)
        # A match at position p is the number-th of all: p − number negatives stand before it.
        position = of_chosen(self.position - number + count, 0)
        return Matches(position, of_chosen(self.row, -1), of_chosen(self.distance, np.inf), tied)

    def _last_of_equals(self) -> Int[np.ndarray, "queries matches"]:
        """For every match the place of the last one at its distance."""
        places = np.arange(self.position.shape[1])
        ends = np.ones(self.position.shape, bool)
        ends[:, :-1] = (self.distance[:, 1:] != self.distance[:, :-1]) | ~self.exist[:, 1:]
        return np.minimum.accumulate(np.where(ends, places, len(places))[:, ::-1], axis=1)[:, ::-1]


def average_precision(
    positions: Int[np.ndarray, "queries matches"],
    rule: str = "standard",
    tied: Float[np.ndarray, "queries matches"] | None = None,
) -> Float[np.ndarray, " queries"]:
    """Average precision from the positions of the matches, in [0, 1]; 0 where there is no match.

    Args:
      positions: 1-based and ascending, 0 past the last match.
      rule: 'standard', the mean over matches of hits so far / position; 'trapezoid', the mean of the precisions
        just before and at each match (precision before the first row is 1), as MARS and VReID-XFD score;
        'tied', the mean of `tied`, for rankings with groups of equal distance.
      tied: the `tied_precision` of `metrics.match_positions`.
    """
    exists = positions > 0
    hits = np.arange(1, positions.shape[1] + 1)
    at = hits / np.maximum(positions, 1)
    if rule == "trapezoid":
        before = np.where(positions == 1, 1.0, (hits - 1) / np.maximum(positions - 1, 1))
        at = (before + at) / 2
    elif rule == "tied" and tied is not None:
        at = tied.astype(np.float64)
    elif rule != "standard":
        raise UserError(f"unknown average precision {rule!r}; known: standard, trapezoid, tied (needs `tied`)")
    return np.sum(at * exists, axis=1) / np.maximum(exists.sum(axis=1), 1)


def inverse_negative_penalty(positions: Int[np.ndarray, "queries matches"]) -> Float[np.ndarray, " queries"]:
    """Number of matches / position of the last match; 0 where there is no match. `positions` as above."""
    return np.sum(positions > 0, axis=1) / np.maximum(positions.max(axis=1), 1)
