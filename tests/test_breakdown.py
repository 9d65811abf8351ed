"""Scores by condition: golden figures, brute force, the bootstrap and what a run writes."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from jaxreid import retrieval
from jaxreid.data.split import Labels, Split, TrackletTable
from jaxreid.evaluation import breakdown as tables_lib
from jaxreid.evaluation.breakdown import breakdown_tables
from jaxreid.evaluation.cases import cases
from jaxreid.evaluation.conditions import columns
from jaxreid.retrieval import breakdown as breakdown_lib
from jaxreid.retrieval.breakdown import Entries, breakdown, match_entries, query_entries, spearman
from jaxreid.retrieval.protocols import PROTOCOLS, Rows, resolve

# Matrix T1 of the protocols' golden checks, with clothes as MEVID and CCVID are scored.
T1 = np.array(
    [
        [0.10, 0.30, 0.20, 0.50, 0.60, 0.40, 0.80, 0.70],
        [0.55, 0.15, 0.45, 0.05, 0.35, 0.65, 0.25, 0.75],
        [0.20, 0.60, 0.10, 0.70, 0.30, 0.80, 0.40, 0.50],
    ],
    np.float32,
)
QUERY = Rows(np.array([1, 2, 3]), np.array([0, 1, 2]), clothes=np.ones(3, int))
GALLERY = Rows(
    np.array([1, 1, 2, 2, 1, 3, 3, 4]), np.array([0, 1, 0, 0, 2, 1, 0, 0]), clothes=np.array([1, 1, 1, 2, 2, 1, 1, 1])
)


def scored(distances, query, gallery, key, **options):
    return retrieval.score_distances(distances, query, gallery, key, keep_matches=True, **options)


@pytest.mark.parametrize("same, mAP, rank_1, queries", [(True, 1 / 3, 0, 3), (False, 0.625, 0.5, 2)])
def test_groups_of_matches_are_the_protocols_of_clothes(same, mAP, rank_1, queries):
    """One ranking under `market`, matches of same and other clothes apart: the golden figures of SC and CC."""
    scores = scored(T1, QUERY, GALLERY, "market")
    agree = QUERY.clothes[:, None] == GALLERY.clothes[scores.matches.row]
    entries = match_entries(scores, PROTOCOLS["market"], np.where(agree == same, 0, -1))
    found = breakdown(entries, scores.average_precision, QUERY.identity, 1)
    assert found.mAP[0] / 100 == pytest.approx(mAP) and found.queries[0] == found.identities[0] == queries
    assert found.rank[1][0] / 100 == pytest.approx(rank_1)


def brute_force(distances, query, gallery, protocol, groups, number, ties):
    """Average precision and first match of each query with the matches of one group, by scoring that anew: matches of
    other groups become rows of somebody whom the protocol leaves out."""
    positive, junk = protocol.masks(query.columns(protocol.columns), gallery.columns(protocol.columns))
    found = []
    for q in range(len(query)):
        dropped = junk[q] | (positive[q] & (groups != number))
        kept = np.flatnonzero(~dropped)
        tie_break = positive[q][kept] if ties == "pessimistic" else np.zeros(len(kept))
        order = kept[np.lexsort((np.arange(len(kept)), tie_break, distances[q][kept]))]
        relevant, near = positive[q][order], distances[q][order]
        at = np.flatnonzero(relevant)
        if not len(at):
            continue
        terms = []
        for hits, p in enumerate(at):
            if protocol.precision == "trapezoid":
                terms.append(((1.0 if p == 0 else hits / p) + (hits + 1) / (p + 1)) / 2)
            elif protocol.precision == "tied":
                terms.append(relevant[near <= near[p]].sum() / (near <= near[p]).sum())
            else:
                terms.append((hits + 1) / (p + 1))
        found.append((q, np.mean(terms), at[0] + 1))
    return found


@pytest.mark.parametrize("ties", ["stable", "pessimistic"])
@pytest.mark.parametrize("levels", [None, 6])
@pytest.mark.parametrize("key", ["market", "xfd", "skeleton", "bupt_full"])
def test_groups_of_matches_equal_scoring_anew(key, levels, ties):
    rng = np.random.default_rng(5)
    query = Rows(rng.integers(0, 6, 17), rng.integers(0, 3, 17), np.ones(17, int), tracklet=np.arange(17))
    gallery = Rows(rng.integers(-1, 6, 90), rng.integers(0, 3, 90), np.zeros(90, int), tracklet=np.arange(90))
    distances = rng.random((17, 90)).astype(np.float32)
    if levels:
        distances = np.floor(distances * levels) / levels
    groups = rng.integers(-1, 4, 90)
    scores = scored(distances, query, gallery, key, ties=ties, block=5)
    entries = match_entries(scores, PROTOCOLS[key], groups[scores.matches.row])
    assert set(entries.group) == {0, 1, 2, 3}
    for number in range(4):
        expected = brute_force(distances, query, gallery, PROTOCOLS[key], groups, number, ties)
        mine = entries.group == number
        np.testing.assert_array_equal(entries.query[mine], [q for q, _, _ in expected])
        np.testing.assert_array_equal(entries.first[mine], [first for _, _, first in expected])
        np.testing.assert_allclose(entries.precision[mine], [precision for _, precision, _ in expected], atol=1e-6)


def test_rows_of_matches_are_those_of_the_whole_gallery():
    """`bupt_reduced64` looks at the first 64 visible rows; a match's row is counted over all of the list."""
    rng = np.random.default_rng(0)
    gallery = Rows(rng.integers(0, 4, 100), modality=np.repeat([0, 1, 0], [40, 30, 30]))
    query = Rows(rng.integers(0, 4, 9), modality=np.full(9, 2))
    distances = rng.random((9, 100)).astype(np.float32)
    matches = scored(distances, query, gallery, "bupt_reduced64").matches
    for q in range(9):
        looked_at = np.r_[0:40, 40:70, 70:94]
        own = [
            row for row in np.argsort(distances[q]) if row in looked_at and gallery.identity[row] == query.identity[q]
        ]
        np.testing.assert_array_equal(matches.row[q][: len(own)], own)
        np.testing.assert_allclose(matches.distance[q][: len(own)], distances[q][own])
        assert (matches.row[q][len(own) :] == -1).all() and (matches.position[q][len(own) :] == 0).all()


def test_matches_are_kept_only_where_asked_for():
    assert retrieval.score_distances(T1, QUERY, GALLERY, "market").matches is None


def test_groups_of_queries_by_hand():
    """Precisions 1, ½, ¼ | 0.2 and a query without a match: means of groups, macro, overall, rank-k, counts."""
    precision, first = np.array([1.0, 0.5, 0.25, 0.2, 0.0]), np.array([1, 2, 4, 7, 0])
    scores = dataclasses.replace(
        scored(T1, QUERY, GALLERY, "market"), average_precision=precision, first_match=first, matches=None
    )
    identity, group = np.array([7, 7, 8, 9, 9]), np.array([0, 0, 0, 1, 1])
    found = breakdown(query_entries(scores, group), precision, identity, 3)
    np.testing.assert_allclose(found.mAP, [100 * 1.75 / 3, 20.0, np.nan])
    np.testing.assert_allclose(found.rank[1], [100 / 3, 0, np.nan])
    np.testing.assert_allclose(found.rank[5], [100, 0, np.nan])
    np.testing.assert_allclose(found.rank[10], [100, 100, np.nan])
    assert found.queries.tolist() == [3, 1, 0] and found.identities.tolist() == [2, 1, 0]
    assert found.macro[0] == pytest.approx(100 * (1.75 / 3 + 0.2) / 2) and found.overall[0] == pytest.approx(
        100 * 1.95 / 4
    )
    # Where the protocol counts misses, rank-k of the second group is a mean over two queries.
    counting = query_entries(dataclasses.replace(scores, count_unmatched=True), group)
    assert breakdown(counting, precision, identity, 2).rank[10].tolist() == [100, 50]


def test_the_bootstrap_draws_whole_identities():
    """With two people there are three draws: one of them twice (1/4 each), or both (1/2)."""
    precision = np.array([1.0, 1.0, 1.0, 0.0])
    entries = Entries(np.arange(4), np.zeros(4, int), precision, np.ones(4, int), np.ones(4, bool))
    found = breakdown(entries, precision, np.array([5, 5, 5, 6]), 1, replicates=4000)
    values, counts = np.unique(found.replicates.round(6), return_counts=True)
    np.testing.assert_allclose(values, [0, 75, 100])
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.03)
    assert found.interval[:, 0].tolist() == [0, 100]
    again = breakdown(entries, precision, np.array([5, 5, 5, 6]), 1, replicates=4000)
    np.testing.assert_array_equal(found.replicates, again.replicates)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    """Of 400 people with a query each the interval is about mean ± 1.96 s/√400; and as wide where each has
    five equal queries: repeating the queries of a person tells nothing new."""
    rng = np.random.default_rng(1)
    precision = rng.random(400)
    for repeats in (1, 5):
        p = np.repeat(precision, repeats)
        entries = Entries(np.arange(len(p)), np.zeros(len(p), int), p, np.ones(len(p), int), np.ones(len(p), bool))
        found = breakdown(entries, p, np.repeat(np.arange(400), repeats), 1)
        half = 100 * 1.96 * precision.std() / 20
        expected = 100 * precision.mean() + np.array([-half, half])
        np.testing.assert_allclose(found.interval[:, 0], expected, atol=0.25)


def test_one_identity_has_no_interval():
    entries = Entries(np.arange(2), np.array([0, 1]), np.array([0.5, 1.0]), np.ones(2, int), np.ones(2, bool))
    found = breakdown(entries, np.array([0.5, 1.0]), np.array([3, 3]), 2, value=np.array([1.0, 2.0]))
    assert np.isnan(found.interval).all() and found.mAP.tolist() == [50, 100] and found.rho[0] == pytest.approx(1)


@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_spearman_is_that_of_scipy(chunk, monkeypatch):
    monkeypatch.setattr(breakdown_lib, "TOGETHER", chunk)
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 5, 40).astype(float), rng.integers(0, 9, 40) / 8
    weight = rng.integers(0, 4, (6, 40)).astype(float)
    repeated = [np.repeat(np.arange(40), row.astype(int)) for row in weight]
    expected = [stats.spearmanr(x[rows], y[rows]).statistic for rows in repeated]
    np.testing.assert_allclose(spearman(x, y, weight), expected, atol=1e-12)
    assert np.isnan(spearman(np.full(40, 0.1), y, weight)).all()
    entries = Entries(np.arange(40), np.zeros(40, int), y, np.ones(40, int), np.ones(40, bool))
    found = breakdown(entries, y, rng.integers(0, 8, 40), 1, value=x)
    assert found.rho[0] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.rho[1][0] < found.rho[0] < found.rho[1][1] and len(found.replicates) == 1000


# --- What a run writes ------------------------------------------------------------------------------------------


def split(name, person, geometry=None, session=None, clothes=None, platform=None, names=None):
    count = len(person)
    unknown = np.full(count, -1, np.int32)
    table = TrackletTable(
        length=np.full(count, 3, np.int32),
        camera=np.zeros(count, np.int32),
        camera_index=unknown,
        modality=np.zeros(count, np.int32),
        platform=unknown * 0 if platform is None else np.asarray(platform, np.int32),
        session=unknown if session is None else np.asarray(session, np.int32),
        geometry=np.full((count, 3), np.nan, np.float32) if geometry is None else np.asarray(geometry, np.float32),
        recording=unknown,
    )
    names = names or tuple(f"{name}{i:03d}" for i in range(count))
    clothes = unknown if clothes is None else np.asarray(clothes, np.int32)
    return Split(
        None, name, table, Labels(np.asarray(person, np.int32), unknown, clothes, unknown, names), np.arange(count)
    )


def tables_of(query, gallery, key="xfd", seed=0):
    found = cases(resolve(key), query, gallery)
    distances = np.random.default_rng(seed).random((len(query), len(gallery))).astype(np.float32)
    sides = found[0].query.columns(), found[0].gallery.columns()
    scores = scored(distances, *sides, found[0].protocol)
    return breakdown_tables(found, [scores]), scores


POINTS = [(5.8, 10, 30), (60, 120, 30), (30, 20, 60), (90, 120, 60), (120, 0, 90), (10, 0, 90)]


def test_the_groups_of_geometry():
    """Bins of VReID-XFD's analysis: slant 134.164 m of (60, 120) lies in the eighth, 170 m in the last."""
    (case,) = cases(resolve("xfd"), split("query", [1] * 6, POINTS), split("gallery", [1]))
    found = {column.name: column for column in columns(case.query)}
    assert found["altitude"].group.tolist() == [0, 3, 2, 3, 3, 0]
    assert found["angle"].labels[1:] == ("30°", "60°", "90°") and found["angle"].group.tolist() == [1, 1, 2, 2, 3, 3]
    assert found["distance"].group.tolist() == [1, 6, 2, 6, 0, 0]
    assert found["distance"].labels[:3] == ("0 m", "10 m", "20 m")
    assert found["distance, slanted views"].group.tolist() == [1, 6, 2, 6, -1, -1]
    assert found["slant range"].group.tolist() == [0, 7, 2, 8, 7, 0]
    assert found["slant range"].value[1] == pytest.approx(134.164, abs=5e-4)
    assert found["point"].labels[0] == "30°, 5.8 m up, 10 m off" and found["point"].group.tolist() == [0, 1, 2, 3, 5, 4]
    crossed = found["angle × distance"]
    assert crossed.labels[crossed.group[1]] == ("30°", "120 m")
    assert "session" not in found and "platform" not in found
    (case,) = cases(resolve("xfd"), split("query", [1], [(0, 170, 0)]), split("gallery", [1]))
    assert {c.name: c for c in columns(case.query)}["slant range"].group.tolist() == [9]


def test_tables_by_query_gallery_and_relation():
    rng = np.random.default_rng(3)
    person = np.repeat(np.arange(8), 6)
    view = np.array(POINTS)[np.tile(np.arange(6), 8)]
    query = split("query", person, view, rng.integers(1, 3, 48), rng.integers(0, 2, 48))
    gallery = split("gallery", np.tile(np.arange(10), 5), None, rng.integers(0, 3, 50), rng.integers(0, 2, 50))
    found, scores = tables_of(query, gallery)
    tables = {(table["condition"], table["side"]): table for table in found["breakdown"]["tables"]}
    by_query = {"altitude", "distance", "slant range", "angle", "point", "angle × distance", "session"}
    by_query |= {"distance, slanted views"}
    assert set(tables) == {(name, "query") for name in by_query} | {
        ("session", "gallery"), ("session", "relation"), ("clothes", "relation")
    }  # fmt: skip
    json.dumps(found, allow_nan=False)

    assert tables["angle × distance", "query"]["columns"] == ["0 m", "10 m", "20 m", "120 m"]

    angle = tables["angle", "query"]
    precision = 100 * scores.average_precision
    expected = [precision[view[:, 2] == value].mean() for value in (30, 60, 90)]
    assert [row["mAP"] for row in angle["groups"]] == pytest.approx(expected, abs=1e-5)
    assert [row["group"] for row in angle["groups"]] == ["30°", "60°", "90°"]
    assert [row["queries"] for row in angle["groups"]] == [16] * 3 and angle["groups"][0]["identities"] == 8
    assert angle["nadir_gap"] == pytest.approx((expected[0] + expected[1]) / 2 - expected[2], abs=1e-5)
    assert angle["macro"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert angle["overall"] == pytest.approx(scores.mAP, abs=1e-5)
    assert angle["lowest_to_highest"] == pytest.approx(min(expected) / max(expected), abs=1e-5)
    assert angle["lowest_to_highest_interval"][0] < angle["lowest_to_highest"] < angle["lowest_to_highest_interval"][1]
    slanted = tables["distance, slanted views", "query"]
    mine = view[:, 2] < 90
    rho = stats.spearmanr(view[mine, 1], precision[mine]).statistic
    assert slanted["rho"] == pytest.approx(rho, abs=1e-5) and sum(row["queries"] for row in slanted["groups"]) == 32
    altitude = tables["altitude", "query"]
    assert altitude["rho"] == pytest.approx(
        stats.spearmanr(view[:, 0].astype(np.float32), precision).statistic, abs=1e-5
    )
    assert altitude["groups"][0]["value"] == pytest.approx(7.9) and "nadir_gap" not in altitude
    assert altitude["rho_interval"][0] < altitude["rho"] < altitude["rho_interval"][1]

    session = tables["session", "gallery"]
    sizes = np.bincount(gallery.table.session)
    assert [row["gallery"] for row in session["groups"]] == sizes.tolist() and "rho" not in session
    same, other = (row["queries"] for row in tables["session", "relation"]["groups"])
    agree = query.table.session[:, None] == gallery.table.session
    shared = person[:, None] == gallery.labels.pid
    assert (same, other) == ((agree & shared).any(1).sum(), (~agree & shared).any(1).sum())


def test_small_groups_are_shown_with_their_counts():
    """One query from above, and a gallery altitude of which nobody is asked for."""
    view = [(5.8, 10, 30)] * 4 + [(120, 0, 90)]
    far = [(5.8, 10, 30)] * 3 + [(30, 20, 60), (120, 0, 90)]
    found, _ = tables_of(split("query", [1, 1, 2, 3, 3], view), split("gallery", [1, 2, 3, 9, 3], far))
    tables = {(table["condition"], table["side"]): table["groups"] for table in found["breakdown"]["tables"]}
    assert [(row["queries"], row["identities"]) for row in tables["angle", "query"]] == [(4, 3), (1, 1)]
    assert [(row["queries"], row["gallery"]) for row in tables["angle", "gallery"]] == [(5, 3), (0, 1), (2, 1)]
    assert tables["angle", "gallery"][1]["mAP"] is None and tables["angle", "gallery"][1]["mAP_interval"] == [
        None,
        None,
    ]


def test_nothing_to_group_by_makes_no_table():
    assert tables_of(split("query", [1, 2]), split("gallery", [1, 2]))[0] == {}
    one = [(10, 0, 90)] * 2
    assert tables_of(split("query", [1, 2], one, [1, 1]), split("gallery", [1, 2], one, [1, 1]))[0] == {}


def test_the_cases_of_a_set_have_a_macro_average_beside_the_query_weighted_one():
    """43.93, 35.44 and 20.13 of 3204, 89 and 2789 queries: 32.892 by queries, 33.167 by cases."""
    counts, means = (3204, 89, 2789), (0.4393, 0.3544, 0.2013)
    pairs = [(split(f"query_case{n}", [1]), split(f"gallery_case{n}", [1])) for n in (1, 2, 3)]
    found, quality = [], []
    for count, mean, (query, gallery) in zip(counts, means, pairs, strict=True):
        (case,) = cases(resolve("xfd"), query, gallery, query.name)
        side = dataclasses.replace(case.query, rows=np.zeros(count, int), tracklet=np.arange(count, dtype=np.int32))
        found.append(dataclasses.replace(case, query=side))
        nothing = np.zeros((count, 1), int)
        matches = retrieval.Matches(nothing, nothing - 1, nothing + np.inf)
        base = scored(T1, QUERY, GALLERY, "market")
        quality.append(
            dataclasses.replace(
                base, average_precision=np.full(count, mean), first_match=np.ones(count, int), matches=matches
            )
        )
    (table,) = breakdown_tables(found, quality)["breakdown"]["tables"]
    assert (table["condition"], table["direction"]) == (tables_lib.CASE, "overall")
    assert table["overall"] == pytest.approx(32.892, abs=5e-4) and table["macro"] == pytest.approx(33.1667, abs=5e-4)
    assert [row["queries"] for row in table["groups"]] == list(counts)
