"""Open-set rates: by hand, by brute force, and what is refused."""

import types

import jax
import numpy as np
import pytest
from messages import refuses

from jaxreid import retrieval
from jaxreid.errors import UserError
from jaxreid.evaluation import open_set as of_cases
from jaxreid.retrieval import open_set
from jaxreid.retrieval.open_set import left_out, open_set_rates
from jaxreid.retrieval.protocols import PROTOCOLS, Rows


def rates(distances, query, gallery, key, **options):
    """Of a matrix that is there already, by row numbers."""
    rows = np.arange(len(query))[:, None], np.arange(len(gallery))[:, None]
    matrix = np.asarray(distances)
    return open_set_rates(*rows, query, gallery, key, lambda q, g: matrix[q[:, 0]][:, np.asarray(g)[:, 0]], **options)


def by_definition(distances, query, gallery, key, seed):
    """Distances: nearest rows of unmatched queries, nearest matches of the others, genuine and impostor pairs."""
    known = sorted(set(query.identity.tolist()) - {-1})
    taken = np.random.default_rng(seed).choice(known, -(-len(known) // 10), replace=False)
    there = ~np.isin(gallery.identity, taken)
    protocol = PROTOCOLS[key]
    positive, junk = protocol.masks(query.columns(protocol.columns), gallery.columns(protocol.columns))
    unmatched, matched, genuine, impostor = [], [], [], []
    for q in range(len(query)):
        if query.identity[q] == -1:
            continue
        mine, others = distances[q][positive[q] & there], distances[q][~positive[q] & ~junk[q] & there]
        genuine += mine.tolist()
        impostor += others.tolist()
        if len(mine):
            matched.append(mine.min())
        else:
            unmatched.append(others.min())
    return tuple(np.array(values) for values in (unmatched, matched, genuine, impostor))


def is_largest_threshold(limit, values, share):
    """Whether not more than this share of the values lies below the limit, and more below the next larger value."""
    larger = values[values > limit]
    allowed = (values < limit).sum() <= share * len(values)
    return limit in values and allowed and (not len(larger) or (values < larger.min()).sum() > share * len(values))


@pytest.mark.parametrize("levels", [None, 40])
@pytest.mark.parametrize("offset", [0.0, -0.5])
@pytest.mark.parametrize("key, block", [("market", None), ("market", 7), ("xfd", 32)])
def test_equals_the_definition(key, block, offset, levels):
    """With ties, negative distances, people of unknown identity and queries that had no match anyway."""
    rng = np.random.default_rng(4)
    query = Rows(rng.integers(-1, 40, 400), rng.integers(0, 3, 400), tracklet=np.arange(400))
    gallery = Rows(rng.integers(-1, 45, 333), rng.integers(0, 3, 333), tracklet=np.arange(333))
    distances = rng.random((400, 333)) ** np.where(query.identity[:, None] == gallery.identity, 4, 0.5) + offset
    if levels:
        distances = np.floor(distances * levels) / levels
    distances = distances.astype(np.float32)
    asked = (0.0, 0.01, 0.1, 0.5)
    found = rates(distances, query, gallery, key, block=block, seed=3, fpir=asked, far=asked)
    unmatched, matched, genuine, impostor = by_definition(distances, query, gallery, key, 3)
    assert (found.unmatched, found.matched) == (len(unmatched), len(matched)) and len(unmatched) > 20
    assert (found.genuine, found.impostor) == (len(genuine), len(impostor)) and found.identities == 4
    assert found.removed == np.isin(gallery.identity, left_out(query.identity, 3)).sum() > 0
    for share, rate in zip(asked, found.identification, strict=True):
        limit = rate.threshold
        assert is_largest_threshold(limit, unmatched, share)
        assert rate.false_positive == (unmatched < limit).mean() <= share
        assert rate.found == (matched >= limit).mean()
    for share, rate in zip(asked, found.verification, strict=True):
        limit = rate.threshold
        assert is_largest_threshold(limit, impostor, share)
        assert rate.false_positive == (impostor < limit).mean() <= share
        assert rate.found == (genuine < limit).mean()
    assert 0 < found.identification[2].found < 1 and 0 < found.verification[2].found < 1


def test_by_hand():
    """Thirty people with a query and a gallery row each; three are taken out with a query of ten copies."""
    identity = np.arange(30)
    out = left_out(identity)
    assert len(out) == 3
    query = Rows(np.concatenate([np.repeat(out, 10), np.setdiff1d(identity, out)]))
    gallery = Rows(identity)
    distances = np.full((57, 30), 0.9, np.float32)
    distances[np.arange(57), query.identity] = 0.0  # of those who were taken out this counts nowhere
    there = np.setdiff1d(identity, out)
    distances[:30, there[0]] = 0.30 + np.arange(30) / 100  # somebody else: 0.30 … 0.59
    matches = 0.20 + np.arange(27) / 50  # 0.20, 0.22, … 0.72
    distances[np.arange(30, 57), there] = matches
    found = rates(distances, query, gallery, "single_match", fpir=(0.1,), far=(0.01,))
    assert (found.matched, found.unmatched, found.identities, found.removed) == (27, 30, 3, 3)
    # Three of thirty may be accepted: the threshold is the fourth, 0.33, and matches at 0.20 … 0.32 are found.
    (rate,) = found.identification
    assert (rate.false_positive, rate.found) == (0.1, 20 / 27) and rate.threshold == pytest.approx(0.33)
    # 57 × 27 − 27 pairs with somebody else, 15 of which may be accepted: the threshold is the sixteenth, 0.45.
    (rate,) = found.verification
    assert (found.genuine, found.impostor) == (27, 57 * 27 - 27) and rate.false_positive == 15 / found.impostor
    assert rate.threshold == pytest.approx(0.45) and rate.found == 13 / 27


def test_features_that_tell_all_people_apart_make_no_error():
    rng = np.random.default_rng(0)
    identity = np.repeat(np.arange(60), 4)
    features = np.eye(60, dtype=np.float32)[identity] + rng.normal(size=(240, 60)).astype(np.float32) * 0.01
    rows = Rows(identity)
    found = open_set_rates(features, features, rows, rows, "single_match", "euclidean")
    assert found.unmatched == 24
    for rate in (*found.identification, *found.verification):
        assert rate.false_positive <= rate.asked
    assert [rate.found for rate in found.identification] == [0, 0]
    assert [rate.found for rate in found.verification] == [1, 1, 1]


def test_several_devices_give_the_rates_of_one():
    rng = np.random.default_rng(2)
    rows, more = Rows(rng.integers(0, 60, 300)), Rows(rng.integers(0, 60, 400))
    features = [rng.integers(-1, 2, (n, 6)).astype(np.float32) + 2 for n in (300, 400)]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("rows",))
    one = open_set_rates(*features, rows, more, "single_match", "euclidean", block=16)
    assert open_set_rates(*features, rows, more, "single_match", "euclidean", block=16, mesh=mesh) == one


def test_who_is_left_out_is_the_same_for_every_run():
    identity = np.array([5, -1, 7, 7, 9, 3, 1])
    assert left_out(identity).tolist() == left_out(np.sort(identity)).tolist()
    assert len(left_out(identity)) == 1 and -1 not in left_out(np.array([-1, 4]))
    assert len(left_out(np.arange(101))) == 11
    assert left_out(np.arange(1000), 1).tolist() != left_out(np.arange(1000), 2).tolist()


def test_a_place_beyond_all_distances_is_infinite():
    values = np.array([0.5, -1.0, 0.0, -0.0], np.float32)
    counts = np.bincount(open_set._keys(values) >> open_set.HALF, minlength=1 << open_set.HALF)
    found = open_set._at_places(counts, [0, 1, 2, 3, 4], iter([values[:2], values[2:]]))
    assert found == [(-1.0, 0), (0.0, 1), (0.0, 1), (0.5, 3), (np.inf, 4)]


def test_too_few_queries_without_a_match_are_refused():
    rng = np.random.default_rng(0)
    rows = Rows(np.repeat(np.arange(50), 3))
    features = rng.normal(size=(150, 8)).astype(np.float32)
    # Five people with three queries each.
    with refuses(UserError, "single_match", "5 identities", "15 queries", "20"):
        open_set_rates(features, features, rows, rows, "single_match")
    distances = np.full((200, 200), np.nan, np.float32)
    rows = Rows(np.repeat(np.arange(50), 4))
    with refuses(UserError, "single_match", "NaN"):
        rates(distances, rows, rows, "single_match")


def case(direction, identity, protocol="single_match"):
    rows = Rows(identity)
    side = types.SimpleNamespace(
        columns=lambda: rows,
        rows=np.arange(len(rows)),
        split=types.SimpleNamespace(name=direction),
        of=lambda features: features[direction],
    )
    return types.SimpleNamespace(direction=direction, protocol=PROTOCOLS[protocol], query=side, gallery=side)


def test_a_case_that_is_too_small_says_why_and_the_others_are_scored():
    few, many = np.repeat(np.arange(9), 3), np.repeat(np.arange(60), 4)
    found = [case("down", few), case("up", many), case("up", many, "cross_modal_nocam")]
    of_cases.check_open_set(found)
    rng = np.random.default_rng(1)
    features = {"down": rng.normal(size=(27, 8)), "up": rng.normal(size=(240, 8))}
    features = {name: values.astype(np.float32) for name, values in features.items()}
    down, up = of_cases.open_set_tables(found, features, "cosine")["open_set"]
    assert down["direction"] == "down" and "3 queries have no match" in down["reason"] and "20" in down["reason"]
    expected = retrieval.open_set_rates(features["up"], features["up"], Rows(many), Rows(many), "single_match")
    assert up["unmatched"] == 24 and [row["asked"] for row in up["identification"]] == [1, 10]
    assert [row["FNIR"] for row in up["identification"]] == [100 * rate.found for rate in expected.identification]
    assert [row["TAR"] for row in up["verification"]] == [100 * rate.found for rate in expected.verification]
    assert [row["FAR"] for row in up["verification"]] == [100 * rate.false_positive for rate in expected.verification]
    with refuses(UserError, "down", "open_set=False", "20"):
        of_cases.check_open_set(found[:1])
