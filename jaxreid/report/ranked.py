"""Ranked lists to look at: which queries, and what their nearest gallery tracklets are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxreid import retrieval
from jaxreid.data.split import modality_name
from jaxreid.report.page import RankedList, TrackletPictures
from jaxreid.report.pictures import tracklet_pictures
from jaxreid.report.words import camera_word
from jaxreid.retrieval.distances import Distance

if TYPE_CHECKING:
    from jaxreid.evaluation.cases import Case, Side
    from jaxreid.run.model import Run

QUERIES, RESULTS, CLIP = 2, 10, 5  # queries of each kind, tracklets in a list, frames of the query
KINDS = ("best", "typical", "worst")


def ranked_lists(
    run: Run,
    cases: tuple[Case, ...],
    distance: Distance,
    features: dict[str, Any],
    quality: list[retrieval.Scores],
    cameras: Mapping[int, str] | None = None,
) -> tuple[RankedList, ...]:
    """Best, typical and worst queries of the headline protocol; a spread of queries where nothing was scored.

    Args:
      features: split name → what the distance compares, one row per tracklet.
      quality: scores of every case; empty where nothing was scored.
      cameras: their names, by number.
    """
    headline = cases[0].protocol
    lists: list[RankedList] = []
    for number, case in enumerate(cases):
        if case.protocol == headline:
            lists += _lists_of(run, case, distance, features, quality[number] if quality else None, cameras or {})
    return tuple(lists)


def _lists_of(
    run: Run,
    case: Case,
    distance: Distance,
    features: dict[str, Any],
    scores: retrieval.Scores | None,
    cameras: Mapping[int, str],
) -> list[RankedList]:
    query, gallery = case.query, case.gallery
    here, there = query.columns(), gallery.columns()
    if scores is None:
        rows = np.unique(np.linspace(0, len(query.rows) - 1, 3 * QUERIES).astype(int))
        chosen = [(int(row), "") for row in rows]
    else:
        chosen = choose(scores.average_precision, scores.valid, here.identity)
    rows = np.array([row for row, _ in chosen])
    kept = case.protocol.kept(there)

    def left_out(which: np.ndarray) -> np.ndarray:
        if scores is not None:
            return np.asarray(case.protocol.junk(here[rows[which]], there))
        # Search is for other cameras; with one camera, for other tracklets (names compare across splits).
        if len(np.unique(there.camera)) > 1:
            return here.camera[rows[which]][:, None] == there.camera
        return _names(query, rows[which])[:, None] == _names(gallery, np.arange(len(gallery.rows)))

    # A power of two rows, so that the directions share one compilation.
    count = len(gallery.rows)
    filled = np.minimum(np.arange(1 << (count - 1).bit_length()), count - 1)
    index, distances = retrieval.nearest(
        jax.tree.map(lambda x: x[rows], query.of(features)),
        jax.tree.map(lambda x: x[filled], gallery.of(features)),
        RESULTS,
        exclude=lambda which: np.pad(left_out(which), ((0, 0), (0, len(filled) - count)), constant_values=True),
        distance=distance,
    )
    lists = []
    for (row, kind), hits, values in zip(chosen, index, distances, strict=True):
        found = tuple(
            _tracklet(
                run,
                gallery,
                int(hit),
                cameras,
                frames=1,
                match=None if scores is None else bool(here.identity[row] == there.identity[hit]),
                distance=float(value),
            )
            for hit, value in zip(hits, values, strict=True)
            if hit >= 0
        )
        facts = ""
        if scores is not None:
            columns = case.protocol.columns
            matches = case.protocol.masks(here[row : row + 1].columns(columns), there.columns(columns))[0]
            facts = _facts(scores, row, int(matches[:, kept].sum()))
        lists.append(RankedList(case.direction, _tracklet(run, query, row, cameras, frames=CLIP), found, kind, facts))
    return lists


def choose(
    average_precision: np.ndarray, valid: np.ndarray, identity: np.ndarray, count: int = QUERIES
) -> list[tuple[int, str]]:
    """(query row, kind) of the best, the typical and the worst queries: `count` of each, no row twice.

    Typical queries stand in the middle of the order by average precision. The queries of a kind show different
    persons as long as there are any.
    """
    order = np.flatnonzero(valid)
    order = order[np.argsort(-average_precision[order], kind="stable")]
    middle = (len(order) - 1) / 2
    # Every row in the order of how well it stands for a kind.
    preference = {
        "best": order,
        "typical": order[np.argsort(np.abs(np.arange(len(order)) - middle), kind="stable")],
        "worst": order[::-1],
    }
    taken: list[tuple[int, str]] = []
    for kind in ("best", "worst", "typical"):
        free = [row for row in preference[kind].tolist() if row not in {row for row, _ in taken}]
        shown, others, seen = [], [], set()
        for row in free:
            (others if int(identity[row]) in seen else shown).append(row)
            seen.add(int(identity[row]))
        taken += [(row, kind) for row in (shown + others)[:count]]
    return sorted(taken, key=lambda item: (KINDS.index(item[1]), -average_precision[item[0]]))


def _facts(scores: retrieval.Scores, row: int, matches: int) -> str:
    """Average precision of a query, and where its matches stand in the whole ranking."""
    first = int(scores.first_match[row])
    text = f"AP {100.0 * scores.average_precision[row]:.1f} %, {matches} {'match' if matches == 1 else 'matches'}"
    # The inverse negative penalty is the number of matches / the position of the last.
    last = round(matches / scores.inverse_negative_penalty[row])
    return f"{text} at rank {first}" if matches == 1 else f"{text}: the first at rank {first}, the last at {last}"


def _names(side: Side, rows: np.ndarray) -> np.ndarray:
    return np.array(side.split.labels.names)[side.rows[rows]]


def _tracklet(
    run: Run,
    side: Side,
    row: int,
    cameras: Mapping[int, str],
    frames: int,
    match: bool | None = None,
    distance: float | None = None,
) -> TrackletPictures:
    """A tracklet with evenly spaced frames (one: the middle one)."""
    split, at = side.split, int(side.rows[row])
    table, name = split.table, split.labels.names[at]
    extras = None if run.method.sees_pictures else run.extras(split, "test")
    pictures = tracklet_pictures(split, run.reader(split), at, frames, extras)
    person = int(split.labels.pid[at])
    facts = [f"{f'person {person}' if person >= 0 else name}, {camera_word(table.camera[at], cameras)}"]
    if distance is None:
        facts.append(f"{modality_name(int(table.modality[at]))}, {table.length[at]} frames")
    return TrackletPictures(name, pictures, tuple(facts), match, distance)
