"""What retrieval is given that it cannot rank as it is: told apart, put right, or refused by name."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxreid import retrieval
from jaxreid.errors import UserError
from jaxreid.retrieval import Protocol, Rows

MISSES = Protocol("ours", different=["camera"], count_unmatched=True)  # in no table of protocols


def rows(identity, camera):
    return Rows(np.array(identity), camera=np.array(camera))


def scores(protocol, shift=0.0):
    """Query 0 finds its match first, query 1 second, query 2 has none."""
    distances = np.array([[0.1, 0.2, 0.3], [0.4, 0.3, 0.2], [0.1, 0.2, 0.3]]) + shift
    return retrieval.score_distances(distances, rows([1, 2, 3], [0, 0, 0]), rows([1, 2, 9], [1, 1, 1]), protocol)


def test_results_of_a_protocol_of_ones_own():
    found = scores(MISSES)
    assert found.cmc(2) == pytest.approx([100 / 3, 200 / 3]) and found.asked == 3
    overall = retrieval.pooled([found, found])
    assert overall.cmc(2) == pytest.approx(found.cmc(2)) and overall.rank == pytest.approx(found.rank)
    for name in (MISSES, "ours"):
        assert retrieval.result_record(found, name, "all", 8, "cosine", "last")["protocol"] == "ours"
    other = scores(dataclasses.replace(MISSES, count_unmatched=False))
    assert other.cmc(2) == pytest.approx([50, 100])
    with pytest.raises(UserError, match="different protocols"):
        retrieval.pooled([found, other])
    with pytest.raises(UserError, match=r"'ours'.*'market'"):
        retrieval.result_record(found, "market", "all", 8, "cosine", "last")


def test_protocols_that_cannot_be_applied():
    with pytest.raises(UserError, match=r"'ours'.*no column 'cam'.*camera"):
        Protocol("ours", different=("cam",))
    with pytest.raises(UserError, match=r"junk identity 1099511627776 .*int32"):
        Protocol("ours", junk_identities=(1 << 40,))


@pytest.mark.parametrize("identity", [[1, 1 << 31], np.array([1, 1 << 63], np.uint64), [1, -(1 << 31) - 1]])
def test_identities_that_do_not_fit_are_refused_by_name(identity):
    with pytest.raises(UserError, match=r"Rows\.identity .*int32: number"):
        Rows(np.array(identity))


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_distances_beyond_float32_are_ranked_apart(dtype):
    """1e-9 apart near 1, or one of 2^30: the same number in float32."""
    near = np.array([[2, 1, 0, 3]])
    distances = (1 + 1e-9 * near if dtype is np.float64 else (1 << 30) + near).astype(dtype)
    assert len(np.unique(distances.astype(np.float32))) == 1
    query, gallery = rows([1], [0]), rows([9, 9, 1, 1], [1, 1, 1, 1])
    found = retrieval.score_distances(distances, query, gallery, "market")
    assert found.first_match == 1 and found.average_precision[0] == (1 + 2 / 4) / 2
    function = {"distance": lambda q, g: distances}
    scored = retrieval.score(np.arange(1), np.arange(4), query, gallery, "market", block=1, **function)
    assert scored.average_precision[0] == found.average_precision[0]
    index, values = retrieval.nearest(np.arange(1), np.arange(4), 4, block=1, **function)
    assert index.tolist() == [[2, 1, 0, 3]]
    np.testing.assert_allclose(values, np.take_along_axis(distances, index, axis=1))
    index, values = retrieval.nearest(
        np.arange(1), np.arange(4), 4, lambda r: np.array([[False, False, True, False]]), block=1, **function
    )
    assert index.tolist() == [[1, 0, 3, -1]] and np.isposinf(values[0, 3])


def test_equal_infinite_and_undefined_distances_stay_so_in_float64():
    query, gallery = rows([1], [0]), rows([9, 1, 1], [1, 1, 1])
    for distances, position in (([0.5, 0.5, np.inf], 2), ([np.inf, np.inf, np.inf], 2), ([1e300, 1e299, 0], 1)):
        found = retrieval.score_distances(np.array([distances]), query, gallery, "market")
        assert found.first_match == position
    with pytest.raises(UserError, match="query row 0 has NaN"):
        retrieval.score_distances(np.array([[0.1, np.nan, 0.2]]), query, gallery, "market")


@pytest.mark.parametrize(("value", "word"), [(1e25, "scale"), (1e-25, "scale"), (0.0, "zero"), (np.inf, "infinite")])
def test_features_whose_squares_float32_does_not_hold(value, word):
    """Their cosines were 0, whatever they were: every row equally near."""
    gallery = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    gallery[3] = value
    query = gallery[:2]
    who, others = rows([1, 2], [0, 0]), rows([1, 2, 3, 4, 5], [1] * 5)
    for function in (
        lambda: retrieval.score(query, gallery, who, others, "market"),
        lambda: retrieval.nearest(query, gallery, 2),
        lambda: retrieval.KReciprocal(query, gallery),
        lambda: retrieval.alpha_query_expansion(query, gallery),
        lambda: retrieval.database_augmentation(gallery),
        lambda: retrieval.Shortlist(query, gallery, lambda q, g: np.zeros(g.shape)),
        lambda: retrieval.cluster(gallery),
        lambda: retrieval.spherical_k_means(gallery, jax.random.key(0), 2),
    ):
        with pytest.raises(UserError, match=f"1 of 5 .*row 3 .*{word}"):
            function()


def test_a_plain_array_is_made_unit_rows():
    rng = np.random.default_rng(1)
    gallery = rng.normal(size=(200, 16)) * rng.uniform(0.01, 100, size=(200, 1))
    queries = rng.normal(size=(5, 16))
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    order = np.argsort(-queries @ unit.T, axis=1)[:, :10]
    for chunk in (None, 48):
        for given in (gallery, gallery.tolist()):
            found = retrieval.search_gallery(queries, given, 10, chunk=chunk)
            np.testing.assert_array_equal(found.index, order)
    assert np.all(np.abs(found.similarity) <= 1 + 1e-6)
    gallery[150] = 0
    with pytest.raises(UserError, match=r"gallery.*row 150"):
        retrieval.search_gallery(queries, gallery, 10, chunk=48)
    with pytest.raises(UserError, match="gallery"):
        retrieval.search_gallery(queries, gallery[0], 10)
