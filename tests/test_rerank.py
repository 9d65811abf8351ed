"""Re-ranking against the released program's rule, written densely; query expansion against plain loops."""

import k_reciprocal_reference as reference
import numpy as np
import pytest
from messages import refuses

from jaxreid import retrieval
from jaxreid.retrieval.protocols import Rows


def dense(query, gallery, k1, k2, lambda_, unit=True):
    """Zhong et al.'s rule on dense matrices; distances are squared, then divided by the largest of their row."""
    features = np.concatenate([query, gallery]).astype(np.float64)
    features = reference.unit_rows(features) if unit else features
    original = ((features[:, None] - features) ** 2).sum(axis=2)
    original = original / original.max(axis=1, keepdims=True)
    rank = reference.ranking(original)
    weights = reference.encoding(original, rank, k1 + 1, int(np.around(k1 / 2)) + 1, k2)
    found = reference.jaccard(weights) * (1 - lambda_) + original * lambda_
    return found[: len(query), len(query) :]


def two_sides(seed, queries, gallery, dim=6):
    features, who = reference.people(np.random.default_rng(seed), queries + gallery, dim=dim, spread=0.7)
    return features[:queries], features[queries:], who[:queries], who[queries:]


@pytest.mark.parametrize(
    ("k1", "k2", "lambda_", "distance"),
    [(20, 6, 0.3, "cosine"), (20, 6, 0.3, "euclidean"), (3, 1, 0.7, "cosine"), (7, 3, 0.0, "cosine")],
)
def test_equals_the_dense_form(k1, k2, lambda_, distance):
    query, gallery, *_ = two_sides(0, 37, 150)
    expected = dense(query, gallery, k1, k2, lambda_, unit=distance == "cosine")
    options = {"k1": k1, "k2": k2, "lambda_": lambda_, "distance": distance}
    found = retrieval.k_reciprocal_distances(query, gallery, block=16, **options)
    np.testing.assert_allclose(found, expected, atol=5e-6)
    assert not np.allclose(found, dense(query, gallery, k1 + 3, k2, lambda_), atol=1e-3)


def test_only_the_original_distance_with_lambda_one():
    query, gallery, *_ = two_sides(1, 20, 60)
    found = retrieval.k_reciprocal_distances(query, gallery, lambda_=1.0)
    unit, other = reference.unit_rows(query), reference.unit_rows(np.concatenate([query, gallery]))
    original = 2 - 2 * unit @ other.T
    np.testing.assert_allclose(found, (original / original.max(axis=1, keepdims=True))[:, 20:], atol=1e-6)


def test_neighbourhoods_larger_than_the_data():
    query, gallery, *_ = two_sides(2, 4, 9)
    np.testing.assert_allclose(
        retrieval.k_reciprocal_distances(query, gallery, k1=50, k2=40),
        dense(query, gallery, 50, 40, 0.3),
        atol=5e-6,
    )


def test_rows_that_are_all_the_same():
    one = np.ones((3, 4), np.float32)
    found = retrieval.k_reciprocal_distances(one, np.ones((5, 4), np.float32), k1=4, k2=2)
    assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1


def test_wide_encodings_get_more_room():
    query, gallery, *_ = two_sides(0, 37, 150)
    found = retrieval.KReciprocal(query, gallery, width=8)
    assert int(found.encoding.lost.max()) == 0 and found.encoding.column.shape[1] > 24
    np.testing.assert_allclose(found(np.arange(37), np.arange(150)), dense(query, gallery, 20, 6, 0.3), atol=5e-6)


@pytest.mark.parametrize("protocol", ["market", "bupt_reduced64"])
def test_scores_in_blocks_equal_those_of_the_matrix(protocol):
    query, gallery, who, other = two_sides(4, 70, 117)
    rng = np.random.default_rng(0)
    query_rows = Rows(who, rng.integers(0, 3, 70), modality=np.zeros(70, int))
    gallery_rows = Rows(other, rng.integers(0, 3, 117), modality=np.ones(117, int))
    matrix = dense(query, gallery, 20, 6, 0.3).astype(np.float32)
    expected = retrieval.score_distances(matrix, query_rows, gallery_rows, protocol)
    reranked = retrieval.KReciprocal(query, gallery)
    found = retrieval.score(
        np.arange(70), np.arange(117), query_rows, gallery_rows, protocol, distance=reranked, block=8
    )
    np.testing.assert_allclose(found.average_precision, expected.average_precision, atol=1e-6)
    np.testing.assert_array_equal(found.first_match, expected.first_match)
    plain = retrieval.score(query, gallery, query_rows, gallery_rows, protocol)
    assert found.mAP > plain.mAP  # people in clouds: what re-ranking is for


def test_blocks_cover_all_queries():
    query, gallery, *_ = two_sides(5, 37, 150)
    whole = retrieval.k_reciprocal_distances(query, gallery)
    seen = []
    for rows, block in retrieval.k_reciprocal_blocks(query, gallery, block=16):
        assert block.shape == (16, 150)
        np.testing.assert_allclose(block[: len(rows)], whole[rows], atol=1e-6)
        seen += rows.tolist()
    assert seen == list(range(37))


def test_bad_input_is_named():
    query, gallery, *_ = two_sides(6, 5, 20)
    broken = gallery.copy()
    broken[3, 0] = np.nan
    with refuses(ValueError, 1, "gallery", "row 3"):
        retrieval.KReciprocal(query, broken)
    with refuses(ValueError, "query", 6, "gallery", 5):
        retrieval.KReciprocal(query, gallery[:, :5])
    with refuses(ValueError, "gallery"):
        retrieval.KReciprocal(query, gallery[:0])
    with refuses(ValueError, "distance", "'manhattan'"):
        retrieval.KReciprocal(query, gallery, distance="manhattan")
    for wrong in ({"k1": 0}, {"k2": 0}, {"lambda_": 1.5}):
        with refuses(ValueError, "k1", "k2", "lambda"):
            retrieval.KReciprocal(query, gallery, **wrong)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_alpha_query_expansion(alpha):
    query, gallery, *_ = two_sides(7, 9, 40)
    unit, other = reference.unit_rows(query), reference.unit_rows(gallery)
    expected = []
    for row in unit:
        nearest = np.argsort(-other @ row, kind="stable")[:5]
        weight = np.maximum(other[nearest] @ row, 0) ** alpha
        expected.append(row + weight @ other[nearest])
    found = retrieval.alpha_query_expansion(query, gallery, neighbours=5, alpha=alpha)
    np.testing.assert_allclose(found, reference.unit_rows(expected), atol=1e-5)


def test_database_augmentation():
    _, gallery, *_ = two_sides(8, 1, 40)
    unit = reference.unit_rows(gallery)
    expected = []
    for i, row in enumerate(unit):
        nearest = [j for j in np.argsort(-unit @ row, kind="stable") if j != i][:4]
        expected.append(row + np.maximum(unit[nearest] @ row, 0) ** 3 @ unit[nearest])
    found = retrieval.database_augmentation(gallery, neighbours=4)
    np.testing.assert_allclose(found, reference.unit_rows(expected), atol=1e-5)
    # Neighbours that are not there add nothing.
    np.testing.assert_allclose(retrieval.database_augmentation(gallery[:1]), unit[:1], atol=1e-6)
