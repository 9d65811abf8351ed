"""Protocol rules, and what is refused with which words."""

import dataclasses

import numpy as np
import pytest

from jaxreid import retrieval
from jaxreid.retrieval.protocols import PROTOCOLS, Rows, resolve


def test_every_key_of_the_specification_is_there():
    """Data set specification, section 19, and 'none' for data without identities."""
    assert set(PROTOCOLS) == {
        "market", "mars_full", "mars_full_std", "single_match", "cross_modal_cam", "cross_modal_nocam", "xfd",
        "xfd_train", "clothes_sc", "clothes_cc", "location_sl", "location_dl", "scale_ss", "scale_ds", "skeleton",
        "none",
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


@pytest.mark.parametrize("key", sorted(set(PROTOCOLS) - {"none"}))
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
    """Section 20.7: SC and CC positives are disjoint and together the overall positives."""
    query, gallery = random_rows(0, 30), random_rows(1, 50)
    a, b, overall = (masks(key, query, gallery)[0] for key in (one, other, "market"))
    assert not np.any(a & b) and a.any() and b.any()
    np.testing.assert_array_equal(a | b, overall)


def test_both_directions_have_the_same_pairs():
    """Section 20.7: HITSZ-VCM's directions are transposes of each other."""
    query, gallery = random_rows(0, 30), random_rows(1, 50)
    there, back = masks("cross_modal_cam", query, gallery), masks("cross_modal_cam", gallery, query)
    np.testing.assert_array_equal(there[0], back[0].T)


def test_unknown_identities_never_match():
    positive, junk = masks("cross_modal_nocam", Rows(np.array([-1])), Rows(np.array([-1, 1])))
    assert not positive.any() and not junk.any()


def rows(identity, **columns):
    return Rows(np.array(identity), **{name: np.array(values) for name, values in columns.items()})


@pytest.mark.parametrize(
    "protocol, query, gallery, match",
    [
        (
            "market",
            rows([1, 2], camera=[0, 0]),
            rows([1, 2], camera=[0, 0]),
            "'market': no query has a match with another camera.*seen: 0",
        ),
        (
            "market",
            rows([1, 2], camera=[0, 0]),
            rows([3], camera=[1]),
            "no identity of the queries is in the gallery",
        ),
        ("market", rows([-1], camera=[0]), rows([3], camera=[1]), "no query has a known identity"),
        (
            "clothes_cc",
            rows([1], camera=[0], clothes=[4]),
            rows([1], camera=[1], clothes=[4]),
            "another clothes",
        ),
        (
            "clothes_sc",
            rows([1], camera=[0], clothes=[4]),
            rows([1], camera=[1], clothes=[5]),
            "the same clothes",
        ),
        ("xfd", rows([1], tracklet=[7]), rows([1], tracklet=[7]), "another tracklet"),
    ],
)
def test_why_no_query_has_a_match(protocol, query, gallery, match):
    with pytest.raises(ValueError, match=match):
        retrieval.score_distances(np.zeros((len(query), len(gallery))), query, gallery, protocol)


@pytest.mark.parametrize(
    "protocol, query, gallery, match",
    [
        ("none", rows([1]), rows([1]), "'none' is not scored"),
        ("no_such", rows([1]), rows([1]), "unknown protocol 'no_such'; known: market"),
        ("market", rows([1]), rows([1], camera=[0]), "needs the camera.*1 of 1 query rows have none"),
        ("market", rows([1], camera=[0]), rows([2, 1], camera=[0, -1]), r"1 of 2 gallery rows.*first: row 1"),
        (
            "cross_modal_cam",
            rows([1], camera=[0], modality=[1]),
            rows([1, 1], camera=[1, 1], modality=[0, 1]),
            "share modality codes .1.",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(protocol, query, gallery, match):
    with pytest.raises(ValueError, match=match):
        retrieval.score_distances(np.zeros((len(query), len(gallery))), query, gallery, protocol)


def test_empty_sets_are_refused():
    empty = Rows(np.zeros(0, int), np.zeros(0, int))
    with pytest.raises(ValueError, match="0 queries and 1 gallery rows"):
        retrieval.score(np.zeros((0, 4)), np.zeros((1, 4)), empty, rows([1], camera=[0]), "market")


def test_an_unknown_camera_of_a_distractor_does_not_matter():
    query, gallery = rows([1], camera=[0]), rows([1, 9], camera=[1, -1])
    scores = retrieval.score_distances(np.array([[0.2, 0.1]]), query, gallery, "market")
    assert scores.average_precision[0] == 0.5


@pytest.mark.parametrize(
    "columns, match",
    [
        ({"camera": np.zeros(2, int)}, r"Rows.camera has shape \(2,\)"),
        ({"camera": np.zeros(3)}, "Rows.camera holds float64"),
        ({"tracklet": np.array([0, 1, 1 << 40])}, "Rows.tracklet does not fit int32"),
    ],
)
def test_rows_are_checked(columns, match):
    with pytest.raises(ValueError, match=match):
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
    assert PROTOCOLS["market"] == dataclasses.replace(PROTOCOLS["mars_full_std"], key="market")
