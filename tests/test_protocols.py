"""Protocol rules, and what is refused with which words."""

import dataclasses

import numpy as np
import pytest
from messages import refuses

from jaxreid import retrieval
from jaxreid.retrieval.protocols import PROTOCOLS, Rows, resolve


def test_every_key_is_there():
    """Those of docs/retrieval.md, and 'none' for data without identities."""
    assert set(PROTOCOLS) == {
        "market", "market_full", "mars_full", "mars_full_std", "single_match", "cross_modal_cam", "cross_modal_nocam",
        "bupt_full", "bupt_reduced64", "xfd", "xfd_train", "clothes_sc", "clothes_cc", "location_sl", "location_dl",
        "scale_ss", "scale_ds", "skeleton", "none",
    }  # fmt: skip
    assert all(key == protocol.key for key, protocol in PROTOCOLS.items())


def random_rows(seed, count):
    rng = np.random.default_rng(seed)
    return Rows(
        rng.integers(-1, 5, count),
        rng.integers(0, 3, count),
        np.full(count, seed),
        *(rng.integers(0, 2, count) for _ in range(4)),
    )


def masks(protocol, query, gallery):
    protocol = resolve(protocol)
    return protocol.masks(query.columns(protocol.columns), gallery.columns(protocol.columns))


@pytest.mark.parametrize("key", sorted(set(PROTOCOLS) - {"none", "bupt_reduced64"}))
def test_positive_and_junk_are_disjoint_and_junk_is_of_the_identity_or_thrown_away(key):
    query, gallery = random_rows(0, 30), random_rows(1, 50)
    positive, junk = masks(key, query, gallery)
    same = (query.identity[:, None] == gallery.identity) & (query.identity >= 0)[:, None]
    thrown_away = np.isin(gallery.identity, PROTOCOLS[key].junk_identities)
    assert positive.shape == junk.shape == (30, 50)
    assert not np.any(positive & junk)
    assert not np.any(positive & ~same)
    np.testing.assert_array_equal(positive | junk, (same | thrown_away[None, :]))
    np.testing.assert_array_equal(PROTOCOLS[key].junk(query, gallery), junk)


@pytest.mark.parametrize(
    "one, other", [("clothes_sc", "clothes_cc"), ("location_sl", "location_dl"), ("scale_ss", "scale_ds")]
)
def test_same_and_different_part_the_matches(one, other):
    """Positives of the same and of other clothes are disjoint and together the overall positives."""
    query, gallery = random_rows(0, 30), random_rows(1, 50)
    a, b, overall = (masks(key, query, gallery)[0] for key in (one, other, "market"))
    assert not np.any(a & b) and a.any() and b.any()
    np.testing.assert_array_equal(a | b, overall)


def test_both_directions_have_the_same_pairs():
    """HITSZ-VCM's directions are transposes of each other."""
    query, gallery = random_rows(0, 30), random_rows(1, 50)
    there, back = masks("cross_modal_cam", query, gallery), masks("cross_modal_cam", gallery, query)
    np.testing.assert_array_equal(there[0], back[0].T)


def test_unknown_identities_never_match():
    positive, junk = masks("cross_modal_nocam", Rows(np.array([-1])), Rows(np.array([-1, 1])))
    assert not positive.any() and not junk.any()


def rows(identity, **columns):
    return Rows(np.array(identity), **{name: np.array(values) for name, values in columns.items()})


@pytest.mark.parametrize(
    "protocol, query, gallery, named",
    [
        (
            "market",
            rows([1, 2], camera=[0, 0]),
            rows([1, 2], camera=[0, 0]),
            ("'market'", "another camera", 0),
        ),
        (
            "market",
            rows([1, 2], camera=[0, 0]),
            rows([3], camera=[1]),
            ("identity", "gallery"),
        ),
        ("market", rows([-1], camera=[0]), rows([3], camera=[1]), ("known identity",)),
        (
            "clothes_cc",
            rows([1], camera=[0], clothes=[4]),
            rows([1], camera=[1], clothes=[4]),
            ("another clothes",),
        ),
        (
            "clothes_sc",
            rows([1], camera=[0], clothes=[4]),
            rows([1], camera=[1], clothes=[5]),
            ("the same clothes",),
        ),
        ("xfd", rows([1], tracklet=[7]), rows([1], tracklet=[7]), ("another tracklet",)),
    ],
)
def test_why_no_query_has_a_match(protocol, query, gallery, named):
    with refuses(ValueError, *named):
        retrieval.score_distances(np.zeros((len(query), len(gallery))), query, gallery, protocol)


@pytest.mark.parametrize(
    "protocol, query, gallery, named",
    [
        ("none", rows([1]), rows([1]), ("'none'",)),
        ("no_such", rows([1]), rows([1]), ("'no_such'", "market")),
        ("market", rows([1]), rows([1], camera=[0]), ("camera", "1 of 1", "query")),
        ("market", rows([1], camera=[0]), rows([2, 1], camera=[0, -1]), ("1 of 2", "gallery", "row 1")),
        (
            "cross_modal_cam",
            rows([1], camera=[0], modality=[1]),
            rows([1, 1], camera=[1, 1], modality=[0, 1]),
            ("modality", 1),
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(protocol, query, gallery, named):
    with refuses(ValueError, *named):
        retrieval.score_distances(np.zeros((len(query), len(gallery))), query, gallery, protocol)


def test_empty_sets_are_refused():
    empty = Rows(np.zeros(0, int), np.zeros(0, int))
    with refuses(ValueError, "0 queries", "1 gallery"):
        retrieval.score(np.zeros((0, 4)), np.zeros((1, 4)), empty, rows([1], camera=[0]), "market")


def test_an_unknown_camera_of_a_distractor_does_not_matter():
    query, gallery = rows([1], camera=[0]), rows([1, 9], camera=[1, -1])
    scores = retrieval.score_distances(np.array([[0.2, 0.1]]), query, gallery, "market")
    assert scores.average_precision[0] == 0.5


@pytest.mark.parametrize(
    "columns, named",
    [
        ({"camera": np.zeros(2, int)}, ("Rows.camera", "(2,)")),
        ({"camera": np.zeros(3)}, ("Rows.camera", "float64")),
        ({"tracklet": np.array([0, 1, 1 << 40])}, ("Rows.tracklet", "int32")),
    ],
)
def test_rows_are_checked(columns, named):
    with refuses(ValueError, *named):
        Rows(np.zeros(3, int), **columns)


def test_rows_are_sliced_as_one():
    table = rows([5, 6, 7], camera=[1, 2, 3])
    np.testing.assert_array_equal(table[[2, 0]].identity, [7, 5])
    np.testing.assert_array_equal(table[table.camera > 1].camera, [2, 3])
    assert np.all(table.clothes == -1) and len(table[1:]) == 2


def test_rules_in_words():
    assert PROTOCOLS["clothes_cc"].describe() == (
        "a match has the same identity, other camera, other clothes; other rows of the query's identity are left out"
    )
    assert "trapezoid" in PROTOCOLS["mars_full"].describe()
    assert "not scored" in PROTOCOLS["none"].describe()
    assert PROTOCOLS["market"] == dataclasses.replace(
        PROTOCOLS["mars_full_std"], key="market", queries_in_gallery=False
    )


def test_bupt_reduced64_loses_the_tail_gold():
    """What the authors' code loses: 540 → 512 visible queries, 2,422 → 2,368 visible gallery tracklets."""
    rng = np.random.default_rng(0)
    modality = {"query": [0] * 540 + [1] * 536, "gallery": [0] * 2422 + [1] * 2422}
    sides = {}
    for name, codes in modality.items():
        codes = rng.permutation(codes)
        sides[name] = Rows(rng.integers(0, 300, len(codes)), modality=codes)
    visible, infrared = ({name: side[side.modality == code] for name, side in sides.items()} for code in (0, 1))
    features = {
        name: {code: rng.normal(size=(len(side[code]), 3)) for code in (0, 1)}
        for name, side in (("query", [visible["query"], infrared["query"]]),
                           ("gallery", [visible["gallery"], infrared["gallery"]]))
    }  # fmt: skip
    there = retrieval.score(
        features["query"][0], features["gallery"][1], visible["query"], infrared["gallery"], "bupt_reduced64"
    )
    assert (there.queries + there.unmatched, there.gallery) == (512, 2422)
    assert len(there.first_match) == 540 and not there.valid[512:].any()
    by_hand = retrieval.score(
        features["query"][0][:512], features["gallery"][1], visible["query"][:512], infrared["gallery"], "bupt_full"
    )
    assert (there.mAP, there.mINP, there.rank) == (by_hand.mAP, by_hand.mINP, by_hand.rank)

    back = retrieval.score(
        features["query"][1], features["gallery"][0], infrared["query"], visible["gallery"], "bupt_reduced64"
    )
    assert (back.queries + back.unmatched, back.gallery) == (536, 2368)
    by_hand = retrieval.score(
        features["query"][1], features["gallery"][0][:2368], infrared["query"], visible["gallery"][:2368], "bupt_full"
    )
    assert (back.mAP, back.mINP, back.rank) == (by_hand.mAP, by_hand.mINP, by_hand.rank)
    assert PROTOCOLS["bupt_reduced64"].junk(infrared["query"], visible["gallery"])[:, 2368:].all()

    distances = retrieval.cosine_distance(features["query"][1], features["gallery"][0])
    ready = retrieval.score_distances(distances, infrared["query"], visible["gallery"], "bupt_reduced64")
    assert ready.rank == back.rank and ready.mAP == pytest.approx(back.mAP)


def test_whole_batches_that_fill_exactly_lose_nothing():
    """The authors' sampler would lose the whole modality here (`[:-0]`); that is not copied."""
    assert len(PROTOCOLS["bupt_reduced64"].kept(Rows(np.zeros(128, int), modality=np.zeros(128, int)))) == 128
