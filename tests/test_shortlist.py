"""A pair score over shortlists, against sorting by hand."""

import jax
import numpy as np
import pytest
from messages import refuses

from jaxreid import retrieval
from jaxreid.retrieval import Rows, Shortlist

QUERIES, GALLERY, SIZE = 23, 150, 12


@pytest.fixture
def world():
    rng = np.random.default_rng(0)
    query, gallery = (rng.normal(size=(n, 8)).astype(np.float32) for n in (QUERIES, GALLERY))
    pair = rng.integers(0, 6, (QUERIES, GALLERY)).astype(np.float32)  # scores of pairs, many of them equal
    rows = [Rows(rng.integers(0, 9, n), rng.integers(0, 3, n)) for n in (QUERIES, GALLERY)]
    return query, gallery, pair, rows


def by_hand(query, gallery, pair, size):
    """Every query's ranking: the shortlist by falling pair score, then the rest by cosine; ties in gallery order."""
    unit = [f.astype(np.float64) / np.linalg.norm(f, axis=1, keepdims=True) for f in (query, gallery)]
    rankings = []
    for q, near in enumerate(np.argsort(-unit[0] @ unit[1].T, axis=1, kind="stable")):
        shortlist = sorted(near[:size], key=lambda g: (-pair[q, g], g))
        rankings.append([*shortlist, *near[size:]])
    return np.array(rankings)


@pytest.mark.parametrize("size", [1, SIZE, 1000])
@pytest.mark.parametrize("devices", [1, 8])
def test_scores_are_those_of_the_ranking_by_hand(world, size, devices):
    query, gallery, pair, (here, there) = world
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",)) if devices > 1 else None
    paired = Shortlist(query, gallery, lambda q, g: pair[q[:, None], g], size)
    found = retrieval.score(
        np.arange(QUERIES), np.arange(GALLERY), here, there, "market", distance=paired, block=7, mesh=mesh
    )
    place = np.argsort(by_hand(query, gallery, pair, size), axis=1)  # of every gallery row
    expected = retrieval.score_distances(place.astype(np.float32), here, there, "market")
    np.testing.assert_array_equal(found.first_match, expected.first_match)
    np.testing.assert_array_equal(found.average_precision, expected.average_precision)
    plain = retrieval.score(query, gallery, here, there, "market")
    assert size == 1 or found.mAP != plain.mAP  # the pair score is looked at


def test_the_pair_score_may_be_mixed_with_the_cosine(world):
    query, gallery, pair, _ = world
    unit = [f.astype(np.float64) / np.linalg.norm(f, axis=1, keepdims=True) for f in (query, gallery)]
    mixed = 0.25 * pair + 0.75 * (unit[0] @ unit[1].T)
    paired = Shortlist(query, gallery, lambda q, g: pair[q[:, None], g], SIZE, mix=0.25)
    np.testing.assert_array_equal(paired.index, np.argsort(-unit[0] @ unit[1].T, axis=1, kind="stable")[:, :SIZE])
    found = np.argsort(paired(np.arange(QUERIES), np.arange(GALLERY)), axis=1, kind="stable")
    np.testing.assert_array_equal(found, by_hand(query, gallery, mixed, SIZE))


def test_equal_scores_are_at_equal_distance_and_close_ones_are_not(world):
    query, gallery, *_ = world
    score = np.float32(1e6) + np.array([[0, 0.0625, 0.0625, 0.125]], np.float32)  # neighbours in float32
    distance = Shortlist(query, gallery, lambda q, g: np.repeat(score, len(q), 0), 4)(np.arange(2), np.arange(GALLERY))
    for row in np.asarray(distance):
        assert sorted(row[row < 0]) == [-4, -3, -3, -1] and row[row >= 0].size == GALLERY - 4


def test_bad_scores_and_arguments_are_named(world):
    query, gallery, pair, (here, there) = world
    rows = np.arange(QUERIES), np.arange(GALLERY), here, there, "market"
    with refuses(ValueError, "row 3", "NaN"):
        broken = np.where(np.arange(QUERIES)[:, None] == 3, np.nan, pair)
        retrieval.score(*rows, distance=Shortlist(query, gallery, lambda q, g: broken[q[:, None], g], SIZE))
    with refuses(ValueError, "pair score", f", {SIZE})"):
        retrieval.score(*rows, distance=Shortlist(query, gallery, lambda q, g: pair[q, 0], SIZE))
    with refuses(ValueError, "size", 0):
        Shortlist(query, gallery, lambda q, g: pair, 0)
    with pytest.raises(ValueError, match="row 5 is zero"):
        Shortlist(query, np.where(np.arange(GALLERY)[:, None] == 5, 0, gallery), lambda q, g: pair)
