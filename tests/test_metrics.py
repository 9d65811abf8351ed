"""Scores against tables that were worked out beforehand (docs/datasets.md, gold checks), and against brute force."""

import dataclasses

import jax
import numpy as np
import pytest
from messages import refuses

from jaxreid import retrieval
from jaxreid.retrieval import metrics
from jaxreid.retrieval.precision import average_precision, inverse_negative_penalty
from jaxreid.retrieval.protocols import PROTOCOLS, Rows

T1 = np.array(
    [
        [0.10, 0.30, 0.20, 0.50, 0.60, 0.40, 0.80, 0.70],
        [0.55, 0.15, 0.45, 0.05, 0.35, 0.65, 0.25, 0.75],
        [0.20, 0.60, 0.10, 0.70, 0.30, 0.80, 0.40, 0.50],
    ],
    np.float32,
)
T1_QUERY = Rows(np.array([1, 2, 3]), np.array([0, 1, 2]))
T1_GALLERY = Rows(np.array([1, 1, 2, 2, 1, -1, 3, 4]), np.array([0, 1, 0, 1, 2, 1, 2, 0]))

T4 = np.array(
    [
        [0.10, 0.40, 0.20, 0.50, 0.30, 0.60],
        [0.50, 0.30, 0.10, 0.20, 0.60, 0.40],
        [0.35, 0.25, 0.45, 0.05, 0.15, 0.55],
        [0.30, 0.20, 0.50, 0.40, 0.10, 0.60],
    ],
    np.float32,
)
T4_IR = Rows(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 1]), modality=np.full(4, 1))
T4_RGB = Rows(np.array([1, 1, 2, 2, 3, 2]), np.array([1, 2, 2, 3, 1, 1]), modality=np.full(6, 0))


def assert_scores(scores, precisions, mAP, cmc, mINP, queries):
    """Scores against fractions to six digits."""
    np.testing.assert_allclose(scores.average_precision[scores.valid], precisions, atol=6e-7)
    assert scores.mAP / 100 == pytest.approx(mAP, abs=6e-7)
    assert [scores.rank[k] / 100 for k in sorted(scores.rank)] == pytest.approx(cmc, abs=6e-7)
    if mINP is not None:
        assert scores.mINP / 100 == pytest.approx(mINP, abs=6e-7)
    assert scores.queries == queries


@pytest.mark.parametrize(
    "relevance, standard, trapezoid, penalty, reciprocal",
    [
        ("101001", 0.722222, 0.677778, 0.5, 1),
        ("011", 0.583333, 0.416667, 0.666667, 0.5),
        ("0001", 0.25, 0.125, 0.25, 0.25),
        ("111", 1, 1, 1, 1),
        ("01010101", 0.5, 0.395238, 0.5, 0.5),
    ],
)
def test_average_precision_gold(relevance, standard, trapezoid, penalty, reciprocal):
    """Relevance of a ranked list, best first."""
    relevant = np.array([int(bit) for bit in relevance])
    query = Rows(np.array([1]))
    gallery = Rows(np.where(relevant == 1, 1, 2))
    distances = np.arange(len(relevant), dtype=np.float32)[None]
    rule = PROTOCOLS["cross_modal_nocam"]
    for name, expected in (("standard", standard), ("trapezoid", trapezoid)):
        scores = retrieval.score_distances(distances, query, gallery, dataclasses.replace(rule, precision=name))
        assert scores.average_precision[0] == pytest.approx(expected, abs=6e-7)
        assert scores.inverse_negative_penalty[0] == pytest.approx(penalty, abs=6e-7)
        assert 1 / scores.first_match[0] == pytest.approx(reciprocal)


@pytest.mark.parametrize(
    "protocol, precisions, mAP, cmc, mINP, queries",
    [
        ("market", [0.5, 0.25], 0.375, [0, 0.5, 0.5, 1], 0.375, 2),
        ("mars_full", [0.333333, 0.125], 0.229167, [0, 0.5, 0.5, 1], 0.375, 2),
        ("mars_full_std", [0.5, 0.25], 0.375, [0, 0.5, 0.5, 1], 0.375, 2),
        ("market_full", [0.5, 0.25], 0.375, [0, 0.5, 0.5, 1], 0.375, 2),
        ("cross_modal_nocam", [0.722222, 0.7, 0.25], 0.557407, [2 / 3, 2 / 3, 2 / 3, 1], 0.383333, 3),
        ("single_match", [0.722222, 0.7, 0.25], 0.557407, [2 / 3, 2 / 3, 2 / 3, 1], 0.383333, 3),
        ("bupt_full", [0.722222, 0.7, 0.25], 0.557407, [2 / 3, 2 / 3, 2 / 3, 1], 0.383333, 3),
        ("skeleton", [0.722222, 0.7, 0.25], 0.557407, [2 / 3, 2 / 3, 2 / 3, 1], 0.383333, 3),
    ],
)
def test_matrix_t1_gold(protocol, precisions, mAP, cmc, mINP, queries):
    """The third query's only match is of its own camera."""
    scores = retrieval.score_distances(T1, T1_QUERY, T1_GALLERY, protocol, ranks=(1, 2, 3, 4))
    assert_scores(scores, precisions, mAP, cmc, mINP, queries)
    assert scores.unmatched == 3 - queries
    assert scores.gallery == (7 if protocol.startswith(("market", "mars")) else 8)


def test_market_with_an_unlabelled_row_as_negative_gold():
    """A common mistake: the row of identity −1 takes part as a stranger."""
    gallery = dataclasses.replace(T1_GALLERY, identity=np.where(np.arange(8) == 5, 99, T1_GALLERY.identity))
    scores = retrieval.score_distances(T1, T1_QUERY, gallery, "market", ranks=(1, 2, 3, 4))
    assert_scores(scores, [0.45, 0.25], 0.35, [0, 0.5, 0.5, 1], 0.325, 2)


def test_queries_in_the_gallery_gold():
    """Other queries are negatives, the query itself is junk."""
    among = np.array([[0, 0.9, 0.35], [0.9, 0, 0.85], [0.35, 0.85, 0]], np.float32)
    gallery = Rows(
        np.concatenate([T1_QUERY.identity, T1_GALLERY.identity]),
        np.concatenate([T1_QUERY.camera, T1_GALLERY.camera]),
    )
    scores = retrieval.score_distances(np.hstack([among, T1]), T1_QUERY, gallery, "market")
    np.testing.assert_allclose(scores.average_precision, [0.45, 0.25, 0], atol=6e-7)
    assert scores.mAP == pytest.approx(35)


@pytest.mark.parametrize(
    "protocol, precisions, mAP, cmc, mINP, queries",
    [
        ("market", [0.45, 0.7, 0.25], 0.466667, [1 / 3, 2 / 3, 2 / 3, 1], 0.35, 3),
        ("clothes_sc", [0.5, 0.25, 0.25], 0.333333, [0, 1 / 3, 1 / 3, 1], 0.333333, 3),
        ("clothes_cc", [0.25, 1], 0.625, [0.5, 0.5, 0.5, 1], 0.625, 2),
    ],
)
def test_clothes_gold(protocol, precisions, mAP, cmc, mINP, queries):
    """The location and scale protocols are the same rules on other columns."""
    kinds = np.array([1, 1, 1, 2, 2, 1, 1, 1])
    identity, camera = np.array([1, 1, 2, 2, 1, 3, 3, 4]), np.array([0, 1, 0, 0, 2, 1, 0, 0])
    twins = {
        "clothes_sc": ("location_sl", "scale_ss"),
        "clothes_cc": ("location_dl", "scale_ds"),
    }
    for key, column in zip((protocol, *twins.get(protocol, ())), ("clothes", "location", "scale"), strict=False):
        gallery = Rows(identity, camera, **{column: kinds})
        query = Rows(np.array([1, 2, 3]), np.array([0, 1, 2]), **{column: np.ones(3, int)})
        scores = retrieval.score_distances(T1, query, gallery, key, ranks=(1, 2, 3, 4))
        assert_scores(scores, precisions, mAP, cmc, mINP, queries)


def test_xfd_gold():
    """A tracklet is (identity, number); 0002_21 is the second query's own."""
    query = Rows(np.array([1, 2, 3]), np.zeros(3, int), tracklet=np.array([11, 21, 31]))
    gallery = Rows(
        np.array([1, 1, 2, 2, 2, 3, 4, 1]),
        np.ones(8, int),
        tracklet=np.array([12, 13, 21, 22, 23, 32, 41, 14]),
    )
    cmc = [2 / 3] * 7 + [1]
    standard = dataclasses.replace(PROTOCOLS["xfd"], precision="standard")
    for protocol, precisions, mAP in (
        ("xfd", [0.654762, 0.708333, 0.0625], 0.475198),
        (standard, [0.698413, 0.75, 0.125], 0.524471),
        ("xfd_train", [0.698413, 0.7, 0.125], 0.507804),
    ):
        scores = retrieval.score_distances(T1, query, gallery, protocol, ranks=tuple(range(1, 9)))
        assert_scores(scores, precisions, mAP, cmc, None, 3)


def test_what_is_left_out_decides_over_xfd():
    """Ranked (1, session 1), (2, session 2), (1, session 2) for a query of identity 1 in session 1, with camera =
    session; only `xfd_train` removes the first."""
    query = Rows(np.array([1]), np.array([1]), tracklet=np.array([10]))
    gallery = Rows(np.array([1, 2, 1]), np.array([1, 2, 2]), tracklet=np.array([11, 12, 13]))
    distances = np.array([[0.1, 0.2, 0.3]])
    for protocol, precision, expected, first in (
        ("xfd", "trapezoid", 0.791667, 100),
        ("xfd", "standard", 0.833333, 100),
        ("xfd_train", "standard", 0.5, 0),
        ("xfd_train", "trapezoid", 0.25, 0),
    ):
        rule = dataclasses.replace(PROTOCOLS[protocol], precision=precision)
        scores = retrieval.score_distances(distances, query, gallery, rule)
        assert (scores.mAP / 100, scores.rank[1]) == (pytest.approx(expected, abs=6e-7), first)


def test_chance_with_one_match_among_89():
    """Means over all places of the match; trapezoid = (rank-1 + MRR) / 2."""
    places = np.arange(1, 90)[:, None]
    standard, trapezoid = (average_precision(places, rule).mean() for rule in ("standard", "trapezoid"))
    assert standard == pytest.approx(0.056983, abs=6e-7) and trapezoid == pytest.approx(0.034109, abs=6e-7)
    assert trapezoid == pytest.approx((1 / 89 + standard) / 2)


@pytest.mark.parametrize(
    "protocol, transposed, precisions, mAP, cmc, mINP, queries",
    [
        ("cross_modal_cam", False, [1 / 3, 0.833333, 0.325], 0.497222, [1 / 3, 1 / 3, 2 / 3, 1], 0.466667, 3),
        ("cross_modal_cam", True, [0.25, 0.5, 1, 1], 0.6875, [0.5, 0.75, 0.75, 1], 0.6875, 4),
        ("cross_modal_nocam", False, [0.75, 0.916667, 0.633333, 1], 0.825, [1, 1, 1, 1], 0.6875, 4),
        (
            "cross_modal_nocam",
            True,
            [1, 0.25, 0.833333, 1, 1, 1],
            0.847222,
            [0.833333, 0.833333, 0.833333, 1],
            0.819444,
            6,
        ),
    ],
)
def test_cross_modality_gold(protocol, transposed, precisions, mAP, cmc, mINP, queries):
    """Infrared → visible and, transposed, visible → infrared."""
    distances, query, gallery = (T4.T, T4_RGB, T4_IR) if transposed else (T4, T4_IR, T4_RGB)
    scores = retrieval.score_distances(distances, query, gallery, protocol, ranks=(1, 2, 3, 4))
    assert_scores(scores, precisions, mAP, cmc, mINP, queries)


# Brute force: one query at a time, a stable sort, the definitions as docs/retrieval.md words them.


def rules(key, query, gallery, q):
    """(positive, junk) of one query, spelt out protocol by protocol, not by the library's rule columns."""
    same_identity = gallery.identity == query.identity[q]
    same_camera = gallery.camera == query.camera[q]
    same_clothes = gallery.clothes == query.clothes[q]
    same_tracklet = gallery.tracklet == query.tracklet[q]
    unlabelled = gallery.identity == -1
    nothing = np.zeros(len(gallery), bool)
    return {
        "market": (same_identity & ~same_camera, same_identity & same_camera | unlabelled),
        "mars_full": (same_identity & ~same_camera, same_identity & same_camera | unlabelled),
        "single_match": (same_identity, nothing),
        "cross_modal_cam": (same_identity & ~same_camera, same_identity & same_camera),
        "cross_modal_nocam": (same_identity, nothing),
        "skeleton": (same_identity, nothing),
        "xfd": (same_identity & ~same_tracklet, same_identity & same_tracklet),
        "xfd_train": (same_identity & ~same_camera, same_identity & same_camera),
        "clothes_sc": (
            same_identity & ~same_camera & same_clothes,
            same_identity & (same_camera | ~same_clothes) | unlabelled,
        ),
        "clothes_cc": (
            same_identity & ~same_camera & ~same_clothes,
            same_identity & (same_camera | same_clothes) | unlabelled,
        ),
    }[key]


BRUTE_FORCE_KEYS = (
    "market",
    "mars_full",
    "single_match",
    "cross_modal_cam",
    "cross_modal_nocam",
    "skeleton",
    "xfd",
    "xfd_train",
    "clothes_sc",
    "clothes_cc",
)


def brute_force(distances, query, gallery, key, ranks, ties="stable"):
    precisions, penalties, first = [], [], []
    for q in range(len(query)):
        positive, junk = rules(key, query, gallery, q)
        kept = np.flatnonzero(~junk)
        tie_break = positive[kept] if ties == "pessimistic" else np.zeros(len(kept))
        order = kept[np.lexsort((np.arange(len(kept)), tie_break, distances[q][kept]))]
        relevance, sorted_distances = positive[order], distances[q][order]
        if not relevance.any():
            continue
        terms = []
        for hits, p in enumerate(np.flatnonzero(relevance)):
            if key in ("mars_full", "xfd"):
                before = 1.0 if p == 0 else hits / p
                terms.append((before + (hits + 1) / (p + 1)) / 2)
            elif key == "skeleton":
                at_least = sorted_distances <= sorted_distances[p]
                terms.append(relevance[at_least].sum() / at_least.sum())
            else:
                terms.append((hits + 1) / (p + 1))
        precisions.append(np.mean(terms))
        penalties.append(relevance.sum() / (np.flatnonzero(relevance)[-1] + 1))
        first.append(np.flatnonzero(relevance)[0] + 1)
    asked = len(query) if key == "skeleton" else len(first)
    return (
        100 * np.mean(precisions),
        100 * np.mean(penalties),
        {k: 100 * np.sum(np.array(first) <= k) / asked for k in ranks},
        len(first),
    )


def random_rows(rng, count, modality=-1):
    return Rows(
        rng.integers(-1, 7, count),
        rng.integers(0, 3, count),
        np.full(count, modality),
        rng.integers(0, 3, count),
        rng.integers(0, 9, count),
    )


def random_case(seed, queries=23, gallery=61, levels=None):
    """Distances, and queries of known identity; `levels` distinct distances make ties."""
    rng = np.random.default_rng(seed)
    query, rows = random_rows(rng, queries, 1), random_rows(rng, gallery, 0)
    query = dataclasses.replace(query, identity=np.maximum(query.identity, 0))
    distances = rng.random((queries, gallery), np.float32)
    if levels:
        distances = np.floor(distances * levels) / levels
    return distances.astype(np.float32), query, rows


@pytest.mark.parametrize("ties", ["stable", "pessimistic"])
@pytest.mark.parametrize("levels", [None, 5, 1])
@pytest.mark.parametrize("key", BRUTE_FORCE_KEYS)
def test_equals_brute_force(key, levels, ties):
    ranks = (1, 3, 10, 100)
    distances, query, gallery = random_case(7, levels=levels)
    scores = retrieval.score_distances(distances, query, gallery, key, ranks=ranks, ties=ties)
    mAP, mINP, cmc, queries = brute_force(distances, query, gallery, key, ranks, ties)
    assert scores.mAP == pytest.approx(mAP, abs=1e-6)
    assert scores.mINP == pytest.approx(mINP, abs=1e-6)
    assert dict(scores.rank) == pytest.approx(cmc, abs=1e-6)
    assert scores.queries == queries


def test_a_common_larger_case_equals_brute_force():
    """More matches per query than are counted in one pass, distances with and without ties."""
    rng = np.random.default_rng(3)
    query = Rows(rng.integers(0, 3, 9), rng.integers(0, 4, 9))
    gallery = Rows(rng.integers(0, 4, 700), rng.integers(0, 4, 700))
    distances = np.round(rng.random((9, 700)), 2).astype(np.float32)
    scores = retrieval.score_distances(distances, query, gallery, "market")
    mAP, mINP, _, _ = brute_force(distances, query, gallery, "market", ())
    assert (scores.mAP, scores.mINP) == pytest.approx((mAP, mINP), abs=1e-6)


@pytest.mark.parametrize("cached", [1, 61 * 5, 1 << 20])
def test_positions_in_parts_of_a_block(cached, monkeypatch):
    """However few rows are ranked at a time, positions and precisions at ties are those of a sort."""
    monkeypatch.setattr(metrics, "CACHED", cached)
    distances, query, gallery = random_case(11, queries=30, levels=9)
    positive, junk = PROTOCOLS["market"].masks(
        query.columns(("identity", "camera")), gallery.columns(("identity", "camera"))
    )
    found = metrics.match_positions.__wrapped__(distances, positive, junk, capacity=19)
    for row in range(30):
        kept = np.flatnonzero(~junk[row])
        order = kept[np.argsort(distances[row, kept], kind="stable")]
        hits = np.flatnonzero(positive[row, order])
        value, retrieved = distances[row, order[hits], None], distances[row, order]
        tied = np.sum((retrieved <= value) & positive[row, order], 1) / np.sum(retrieved <= value, 1)
        rest = np.zeros(19 - len(hits))
        np.testing.assert_array_equal(found["position"][row], [*(hits + 1), *rest])
        np.testing.assert_allclose(found["tied_precision"][row], [*tied, *rest], rtol=1e-6)


def features_case(seed=0):
    rng = np.random.default_rng(seed)
    _, query, gallery = random_case(seed)
    means = rng.normal(size=(8, 12)).astype(np.float32)
    return (
        means[query.identity] + rng.normal(size=(len(query), 12)).astype(np.float32),
        means[gallery.identity] + rng.normal(size=(len(gallery), 12)).astype(np.float32),
        query,
        gallery,
    )


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("block", [1, 8, 23, 100])
def test_blocks_equal_one_block(distance, block):
    query, gallery, query_rows, gallery_rows = features_case()
    rows = (query_rows, gallery_rows)
    whole = retrieval.score(query, gallery, *rows, "market", distance)
    parts = retrieval.score(query, gallery, *rows, "market", distance, block=block)
    np.testing.assert_array_equal(parts.first_match, whole.first_match)
    np.testing.assert_array_equal(parts.average_precision, whole.average_precision)
    assert (parts.mAP, parts.mINP, parts.rank) == (whole.mAP, whole.mINP, whole.rank)


def test_distances_equal_float64():
    query, gallery, *_ = features_case()
    q, g = query.astype(np.float64), gallery.astype(np.float64)
    cosine = 1 - (q @ g.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(g, axis=1)
    euclidean = np.sqrt(((q[:, None] - g[None]) ** 2).sum(-1))
    np.testing.assert_allclose(retrieval.cosine_distance(query, gallery), cosine, atol=1e-6)
    np.testing.assert_allclose(retrieval.euclidean_distance(query, gallery), euclidean, atol=1e-5)
    assert np.all(np.asarray(retrieval.cosine_distance(np.zeros((1, 12)), gallery)) == 1)


def parts_case(queries=13, gallery=41, parts=3, dim=5):
    rng = np.random.default_rng(4)

    def side(rows):
        visibility = rng.random((rows, parts)).round(1) * (rng.random((rows, parts)) < 0.6)
        return retrieval.Parts(rng.normal(size=(rows, parts, dim)).astype(np.float32), visibility.astype(np.float32))

    return side(queries), side(gallery)


def test_body_parts_count_where_both_show_them():
    query, gallery = parts_case()
    expected = np.empty((13, 41))
    for q in range(13):
        for g in range(41):
            weighted, weights = 0.0, 0.0
            for part in range(3):
                one, other = query.features[q, part].astype(float), gallery.features[g, part].astype(float)
                weight = float(query.visibility[q, part]) * float(gallery.visibility[g, part])
                weighted += weight * (1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other))
                weights += weight
            expected[q, g] = weighted / weights if weights else np.inf
    assert np.isinf(expected).any() and np.isfinite(expected).any()
    np.testing.assert_allclose(retrieval.part_distance(query, gallery), expected, atol=1e-5)
    # Equal visibilities are no weights at all: the plain mean over parts.
    seen = [side._replace(visibility=np.full_like(side.visibility, 0.5)) for side in (query, gallery)]
    mean = sum(retrieval.cosine_distance(query.features[:, p], gallery.features[:, p]) for p in range(3)) / 3
    np.testing.assert_allclose(retrieval.part_distance(*seen), mean, atol=1e-6)
    _, query_rows, gallery_rows = random_case(0, queries=13, gallery=41)
    whole = retrieval.score_distances(expected.astype(np.float32), query_rows, gallery_rows, "market")
    found = retrieval.score(query, gallery, query_rows, gallery_rows, "market", "parts", block=4)
    np.testing.assert_allclose(found.average_precision, whole.average_precision, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda side: side._replace(visibility=side.visibility + 0.9), ("visibilities",)),
        (lambda side: side._replace(features=side.features * np.nan), ("41 of 41", "gallery")),
        (lambda side: side._replace(features=side.features[:, :2]), ("Parts", "features")),
        (lambda side: side.features[:, 0], ("Parts", "[N, P, D]")),
        (lambda side: side._replace(visibility=side.visibility * 0 + 1, features=side.features * 0), ("zero",)),
    ],
)
def test_bad_parts_are_named(change, named):
    query, gallery = parts_case()
    _, query_rows, gallery_rows = random_case(0, queries=13, gallery=41)
    with refuses(ValueError, *named):
        retrieval.score(query, change(gallery), query_rows, gallery_rows, "market", "parts")


def test_a_method_may_bring_its_own_distance_and_features():
    """A pytree of arrays and a function of a block of it: here the mean of two cosine distances."""
    query, gallery, query_rows, gallery_rows = features_case()
    halves = [{"upper": x[:, :6], "lower": x[:, 6:]} for x in (query, gallery)]

    def distance(q, g):
        return sum(retrieval.cosine_distance(q[part], g[part]) for part in ("upper", "lower")) / 2

    scores = retrieval.score(halves[0], halves[1], query_rows, gallery_rows, "market", distance, block=4)
    expected = retrieval.score_distances(np.asarray(distance(*halves)), query_rows, gallery_rows, "market")
    assert scores.mAP == pytest.approx(expected.mAP, abs=1e-9)


# Invariants.


def same(a, b):
    return (a.mAP, a.mINP, *a.rank.values()) == pytest.approx((b.mAP, b.mINP, *b.rank.values()), abs=1e-9)


def test_increasing_maps_and_gallery_order_change_nothing():
    distances, query, gallery = random_case(1)
    scores = retrieval.score_distances(distances, query, gallery, "market")
    for mapped in (np.exp(distances), distances**3 - 7):
        # A map that merges neighbours in fp32 would not be strictly increasing any more.
        assert np.array_equal(np.argsort(mapped, axis=1, kind="stable"), np.argsort(distances, axis=1))
        assert same(scores, retrieval.score_distances(mapped, query, gallery, "market"))
    order = np.random.default_rng(0).permutation(len(gallery))
    assert same(scores, retrieval.score_distances(distances[:, order], query, gallery[order], "market"))


def with_row(rows, identity):
    """The rows and one more of this identity, everything else 0."""
    columns = {name: np.append(column, 0) for name, column in vars(rows).items()}
    return Rows(**columns | {"identity": np.append(rows.identity, identity)})


@pytest.mark.parametrize("ties", ["stable", "pessimistic"])
def test_an_infinitely_far_or_near_negative(ties):
    distances, query, gallery = random_case(2)
    gallery_and_stranger = with_row(gallery, 1000)
    scores = retrieval.score_distances(distances, query, gallery, "market", ties=ties)
    far = np.hstack([distances, np.full((len(query), 1), np.inf, np.float32)])
    assert same(scores, retrieval.score_distances(far, query, gallery_and_stranger, "market", ties=ties))
    near = retrieval.score_distances(-far[:, ::-1], query, gallery_and_stranger[::-1], "market")
    assert near.rank[1] == 0


def test_infinite_distances_of_matches_are_ranked_last():
    """One match at 0.5, one at infinity behind a stranger; junk at minus infinity does not count."""
    gallery = Rows(np.array([1, 2, 1, 1]), np.array([1, 1, 1, 0]))
    distances = np.array([[np.inf, 0.7, 0.5, -np.inf]], np.float32)
    scores = retrieval.score_distances(distances, Rows(np.array([1]), np.array([0])), gallery, "market")
    assert scores.average_precision[0] == pytest.approx((1 + 2 / 3) / 2)


def test_zero_and_minus_zero_are_equal():
    gallery = Rows(np.array([2, 1, 2]))
    distances = np.array([[0.0, -0.0, -0.0]], np.float32)
    scores = retrieval.score_distances(distances, Rows(np.array([1])), gallery, "single_match")
    assert scores.first_match[0] == 2


def test_trapezoid_never_above_standard_and_rank_k_never_falls():
    for seed in range(3):
        distances, query, gallery = random_case(seed)
        ranks = tuple(range(1, 30))
        standard = retrieval.score_distances(distances, query, gallery, "mars_full_std", ranks=ranks)
        trapezoid = retrieval.score_distances(distances, query, gallery, "mars_full", ranks=ranks)
        assert np.all(trapezoid.average_precision <= standard.average_precision)
        assert np.all(np.diff(list(standard.rank.values())) >= 0)


def test_one_match_makes_all_measures_equal():
    rng = np.random.default_rng(5)
    rows = Rows(np.arange(20))
    scores = retrieval.score_distances(rng.random((20, 20)), rows, rows, "single_match")
    np.testing.assert_allclose(scores.average_precision, 1 / scores.first_match)
    np.testing.assert_allclose(scores.inverse_negative_penalty, 1 / scores.first_match)


def test_average_precision_may_lie_on_either_side_of_the_penalty():
    positions = np.array([[4, 5, 6]])
    assert average_precision(positions)[0] == pytest.approx(0.383333, abs=6e-7)
    assert inverse_negative_penalty(positions)[0] == 0.5


def test_market_without_shared_cameras_is_no_filter():
    distances, query, gallery = random_case(4)
    known = gallery[gallery.identity >= 0]
    query, distances = (
        dataclasses.replace(query, camera=query.camera + 10),
        distances[:, gallery.identity >= 0],
    )
    market = retrieval.score_distances(distances, query, known, "market")
    assert same(market, retrieval.score_distances(distances, query, known, "cross_modal_nocam"))


def test_pessimistic_order_shows_collapsed_features():
    """All distances equal and matches first in the gallery: a stable order flatters, the pessimistic does not."""
    query, gallery = Rows(np.array([1])), Rows(np.array([1, 2, 2, 2]))
    distances = np.zeros((1, 4), np.float32)
    assert retrieval.score_distances(distances, query, gallery, "single_match").rank[1] == 100
    pessimistic = retrieval.score_distances(distances, query, gallery, "single_match", ties="pessimistic")
    assert pessimistic.first_match[0] == 4


def test_skeleton_counts_probes_without_a_match():
    query, gallery = Rows(np.array([1, 9])), Rows(np.array([1, 2]))
    scores = retrieval.score_distances(np.array([[0.1, 0.2], [0.1, 0.2]]), query, gallery, "skeleton")
    assert (scores.mAP, scores.rank[1], scores.queries, scores.unmatched) == (100, 50, 1, 1)


# Refusals.


def test_nan_is_named():
    distances = T1.copy()
    distances[1, 3] = np.nan
    with refuses(ValueError, "row 1", "NaN"):
        retrieval.score_distances(distances, T1_QUERY, T1_GALLERY, "market")
    with pytest.raises(ValueError, match="NaN"):
        retrieval.nearest(np.full((2, 3), np.nan), np.ones((4, 3)), 2)


@pytest.mark.parametrize("side", ["query", "gallery"])
@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinite"), (0, "zero")])
def test_bad_features_are_named(side, value, kind):
    query, gallery, query_rows, gallery_rows = features_case()
    bad = {"query": query.copy(), "gallery": gallery.copy()}
    bad[side][5] = value
    named = (1, side, "row 5", kind)
    with refuses(ValueError, *named):
        retrieval.score(bad["query"], bad["gallery"], query_rows, gallery_rows, "market")
    with refuses(ValueError, *named):
        retrieval.nearest(bad["query"], bad["gallery"], 3)
    if value == 0:  # the origin has distances
        retrieval.score(bad["query"], bad["gallery"], query_rows, gallery_rows, "market", distance="euclidean")


def test_widths_must_agree():
    query, gallery, query_rows, gallery_rows = features_case()
    with refuses(ValueError, "width"):
        retrieval.score(query[:, :-1], gallery, query_rows, gallery_rows, "market")
    with refuses(ValueError, "width"):
        retrieval.nearest(query[0], gallery, 3)


def test_a_query_without_a_match_is_counted_and_in_no_mean():
    distances = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], np.float32)
    query, gallery = Rows(np.array([1, 9]), np.array([0, 0])), Rows(np.array([2, 1, 1]), np.array([1, 1, 0]))
    scores = retrieval.score_distances(distances, query, gallery, "market")
    assert (scores.queries, scores.unmatched) == (1, 1)
    assert scores.valid.tolist() == [True, False] and scores.mAP == 50


def test_features_and_rows_must_agree():
    query, gallery, query_rows, gallery_rows = features_case()
    with refuses(ValueError, 22, 23):
        retrieval.score(query[1:], gallery, query_rows, gallery_rows, "market")
    with refuses(ValueError, "(8, 3)"):
        retrieval.score_distances(T1.T, T1_QUERY, T1_GALLERY, "market")


@pytest.mark.parametrize("option", [{"distance": "manhattan"}, {"ties": "x"}])
def test_unknown_options_are_named(option):
    with refuses(ValueError, *option.keys(), *option.values()):
        retrieval.score(*features_case(), "market", **option)


# Ranked lists.


@pytest.mark.parametrize("block", [None, 4])
def test_nearest_equals_a_sort(block):
    query, gallery, query_rows, gallery_rows = features_case()
    market = PROTOCOLS["market"]
    indices, values = retrieval.nearest(
        query, gallery, 5, lambda rows: market.junk(query_rows[rows], gallery_rows), block=block
    )
    distances = np.array(retrieval.cosine_distance(query, gallery))
    distances[market.junk(query_rows, gallery_rows)] = np.inf
    expected = np.argsort(distances, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(values, np.take_along_axis(distances, expected, 1), atol=1e-6)


def test_nearest_pads_what_is_left_out():
    features = np.eye(3, dtype=np.float32)
    indices, values = retrieval.nearest(features, features, 9, lambda rows: np.eye(3, dtype=bool)[rows])
    assert indices.shape == (3, 3)
    np.testing.assert_array_equal(indices[:, 2], -1)
    assert np.all(np.isinf(values[:, 2])) and np.all(values[:, :2] == 1)
    np.testing.assert_array_equal(np.sort(indices[:, :2], axis=1), [[1, 2], [0, 2], [0, 1]])


@pytest.mark.parametrize(
    "case_mAP, mAP",
    [
        ((46.69, 41.23, 22.98), 35.738),
        ((43.93, 35.44, 20.13), 32.892),
        ((38.76, 28.36, 16.02), 28.180),
        ((39.59, 34.49, 19.79), 30.436),
    ],
)
def test_cases_are_pooled_by_queries(case_mAP, mAP):
    """Published rows of VReID-XFD: "overall" is the mean over the queries of all cases, 3,204 + 89 + 2,789."""
    some = retrieval.score_distances(T1, T1_QUERY, T1_GALLERY, "cross_modal_nocam")
    parts = [
        dataclasses.replace(some, mAP=mAP, queries=queries, unmatched=2)
        for mAP, queries in zip(case_mAP, (3204, 89, 2789), strict=True)
    ]
    overall = retrieval.pooled(parts)
    assert overall.mAP == pytest.approx(mAP, abs=6e-4)
    assert (overall.queries, overall.unmatched, overall.gallery) == (6082, 6, 24)
    assert overall.rank == pytest.approx(some.rank)
    with refuses(ValueError, "protocols"):
        retrieval.pooled([some, dataclasses.replace(some, protocol="market")])


def test_pooled_scores_are_those_of_all_queries_at_once():
    distances, query, gallery = random_case(6, queries=40)
    for key in ("market", "skeleton"):
        halves = [
            retrieval.score_distances(distances[rows], query[rows], gallery, key)
            for rows in (slice(15), slice(15, None))
        ]
        assert same(retrieval.pooled(halves), retrieval.score_distances(distances, query, gallery, key))


def test_result_record_says_what_was_measured():
    scores = retrieval.score_distances(T1, T1_QUERY, T1_GALLERY, "market")
    record = retrieval.result_record(scores, "market", "chunk_first", 6, "cosine", "epoch 3 (last)")
    assert record == {
        "mAP": pytest.approx(37.5),
        "mINP": pytest.approx(37.5),
        "rank-1": 0.0,
        "rank-5": 100.0,
        "rank-10": 100.0,
        "rank-20": 100.0,
        "protocol": "market",
        "queries": 2,
        "unmatched": 1,
        "gallery": 7,
        "output": "feature",
        "seq_len": 6,
        "clip_sampling": "chunk_first",
        "distance": "cosine",
        "reranking": False,
        "checkpoint": "epoch 3 (last)",
    }
    with pytest.raises(ValueError, match="protocol"):
        retrieval.result_record(scores, "xfd", "chunk_first", 6, "cosine", "last")


@pytest.mark.parametrize(
    "protocol, devices, axes",
    [("market", 8, ("data", "fsdp")), ("skeleton", 8, ("data", "fsdp")), ("mars_full", 3, ("rows",))],
)
def test_sharded_over_devices_equals_one(protocol, devices, axes):
    """Positions, and with them every score, are those of one device; features on a grid, so that distances tie."""
    rng = np.random.default_rng(0)
    shape = (devices // 2, 2) if len(axes) == 2 else (devices,)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]).reshape(shape), axes)
    features = [rng.integers(-1, 2, (n, 6)).astype(np.float32) + 2 for n in (101, 333)]
    query, gallery = (
        Rows(rng.integers(0, 20, n), rng.integers(0, 4, n), modality=np.full(n, m)) for n, m in ((101, 1), (333, 0))
    )
    for distance, block, ties in (
        ("euclidean", None, "stable"),
        ("cosine", 7, "pessimistic"),
        (manhattan, 16, "stable"),
    ):
        options = {"distance": distance, "block": block, "ties": ties, "keep_matches": True}
        one = retrieval.score(*features, query, gallery, protocol, **options)
        many = retrieval.score(*features, query, gallery, protocol, **options, mesh=mesh)
        assert (one.mAP, one.mINP, one.rank, one.unmatched) == (many.mAP, many.mINP, many.rank, many.unmatched)
        for name in ("average_precision", "inverse_negative_penalty", "first_match"):
            np.testing.assert_array_equal(getattr(one, name), getattr(many, name))
        for name in ("position", "row"):
            np.testing.assert_array_equal(getattr(one.matches, name), getattr(many.matches, name))


def manhattan(query, gallery):
    """A distance on the host, which knows no devices."""
    return np.abs(np.asarray(query)[:, None] - np.asarray(gallery)).sum(-1)


def test_every_device_ranks_its_share():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("rows",))
    query, gallery = np.eye(10, dtype=np.float32), np.eye(10, dtype=np.float32)
    blocks = list(metrics.distances_lib.distance_blocks(query, gallery, "cosine", 2, mesh))
    assert [rows.tolist() for rows, _ in blocks] == [list(range(8)), [8, 9]]
    for rows, distances in blocks:
        assert [shard.data.shape for shard in distances.addressable_shards] == [(2, 10)] * 4
        np.testing.assert_allclose(distances[: len(rows)], (1 - np.eye(10))[rows], atol=1e-6)
