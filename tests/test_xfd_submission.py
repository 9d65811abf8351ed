"""The challenge's submission file: its form, and a score from names alone that agrees with the library's."""

import dataclasses
import zlib

import numpy as np
import pytest
from messages import refuses
from test_metrics import T1

from jaxreid import retrieval
from jaxreid.data.split import Labels, Split, TrackletTable
from jaxreid.evaluation import xfd
from jaxreid.evaluation.cases import cases
from jaxreid.retrieval.protocols import resolve
from jaxreid.tools import xfd as tool

QUERIES = ("0001_11", "0002_21", "0003_31")
GALLERY = ("0001_12", "0001_13", "0002_21", "0002_22", "0002_23", "0003_32", "0004_41", "0001_14")


def ranked(case, distances=T1, queries=QUERIES, gallery=GALLERY):
    return [
        xfd.Ranking(case, query, tuple(gallery[i] for i in np.argsort(row, kind="stable")))
        for query, row in zip(queries, distances, strict=True)
    ]


def file_of(path, rows):
    return xfd.write(path, iter(rows))


def test_scores_of_a_file(tmp_path):
    """The numbers of test_metrics.test_xfd_gold in all three cases: 0002_21 is the second query's own tracklet."""
    path = file_of(tmp_path / "s.csv", [row for case in xfd.CASES for row in ranked(case)])
    scores = xfd.score(xfd.read(path))
    assert list(scores) == [*xfd.CASES, "overall"]
    for found in scores.values():
        assert found.mAP == pytest.approx(47.5198, abs=6e-5)
        assert found.rank == pytest.approx({1: 200 / 3, 5: 200 / 3, 10: 100, 20: 100})
    np.testing.assert_allclose(scores[xfd.CASES[0]].average_precision, [0.654762, 0.708333, 0.0625], atol=6e-7)
    assert scores["overall"].queries == 9


@pytest.mark.parametrize(
    "ranks, precision",
    [([0, 2], 0.791667), ([1], 0.25), ([0, 1, 2], 1.0), ([3, 4], 0.225)],
)
def test_average_precision_of_the_challenge(ranks, precision):
    """0-based ranks of the matches."""
    gallery = tuple(f"{1 if place in ranks else 2:04d}_{place + 10}" for place in range(5))
    rows = [xfd.Ranking(case, "0001_1", gallery) for case in xfd.CASES]
    assert xfd.score(rows)["overall"].mAP / 100 == pytest.approx(precision, abs=6e-7)


def test_overall_goes_over_the_queries_of_all_cases():
    """One perfect query in the first case, three in the second that find their match last of two: (1 + 3 · ¼) / 4."""
    good = xfd.Ranking(xfd.CASES[0], "0001_1", ("0001_2", "0002_2"))
    bad = [xfd.Ranking(xfd.CASES[1], f"{pid:04d}_1", ("0009_9", f"{pid:04d}_2")) for pid in (3, 4, 5)]
    last = [xfd.Ranking(xfd.CASES[2], "0007_1", ("0007_2",)), xfd.Ranking(xfd.CASES[2], "0008_1", ("0007_2",))]
    scores = xfd.score([good, *bad, *last])
    assert [scores[case].mAP for case in xfd.CASES] == [100, 25, 100]
    assert scores["overall"].mAP == pytest.approx(100 * (1 + 3 * 0.25 + 1) / 5)
    assert (scores["overall"].queries, scores["overall"].unmatched) == (5, 1)


def split(name, tracklets, seed):
    count = len(tracklets)
    unknown = np.full(count, -1, np.int32)
    table = TrackletTable(
        length=np.full(count, 3, np.int32),
        camera=np.zeros(count, np.int32),
        camera_index=unknown,
        modality=np.zeros(count, np.int32),
        platform=unknown,
        session=unknown,
        geometry=np.full((count, 3), np.nan, np.float32),
        recording=unknown,
    )
    pid = np.array([int(tracklet[:4]) for tracklet in tracklets], np.int32)
    labels = Labels(pid, unknown, unknown, unknown, tuple(tracklets))
    return Split(None, name, table, labels, np.random.default_rng(seed).permutation(count))


def feature(name):
    """A person's, and some of the tracklet's own: the same on both sides of a case."""
    seeds = int(name[:4]), zlib.crc32(name.encode())
    return sum(np.random.default_rng(seed).normal(size=6) for seed in seeds).astype(np.float32)


def test_a_file_scores_as_the_distance_matrix_does(tmp_path):
    rng = np.random.default_rng(0)
    pairs, features, expected = [], {}, []
    for number in range(1, 4):
        names = [f"{pid:04d}_{rng.integers(10**4):04d}" for pid in rng.integers(0, 9, 50)]
        sides = [split(f"query_case{number}", names[:20], 1), split(f"gallery_case{number}", names[12:], 2)]
        for side in sides:
            features[side.name] = np.stack([feature(name) for name in side.labels.names])
        (case,) = cases(resolve("xfd"), *sides, f"case{number}")
        pairs.append(case)
        expected.append(
            retrieval.score(
                features[sides[0].name][case.query.rows], features[sides[1].name][case.gallery.rows],
                case.query.columns(), case.gallery.columns(), "xfd",
            )
        )  # fmt: skip
    path = file_of(tmp_path / "s.csv", xfd.rankings(pairs, features, "cosine"))
    found = xfd.score(xfd.read(path))
    for scores, one in zip(expected, found.values(), strict=False):
        assert one.mAP == pytest.approx(scores.mAP) and one.rank == pytest.approx(scores.rank)
        assert one.queries == scores.queries
    overall = retrieval.pooled(expected)
    assert (found["overall"].mAP, found["overall"].mINP) == pytest.approx((overall.mAP, overall.mINP))
    rows = xfd.read(path)
    assert [row.case for row in rows] == [case for case in xfd.CASES for _ in range(20)]
    for case in xfd.CASES:
        own = [row.query for row in rows if row.case == case]
        assert own == sorted(own)


def test_what_is_no_submission_is_named(tmp_path):
    rows = [row for case in xfd.CASES for row in ranked(case)]
    path = tmp_path / "s.csv"

    def refused(changed, *named):
        file_of(path, changed)
        with refuses(xfd.SubmissionError, *named):
            xfd.read(path)

    short = dataclasses.replace(rows[1], gallery=("a",))
    refused([rows[0], short], "row 2", "0002_21")
    twice = (*GALLERY[:-1], GALLERY[0])
    refused([rows[0], dataclasses.replace(rows[1], gallery=twice)], "row 2", "once")
    refused([*rows[3:6], rows[0]], "row 4", "Case 1")
    refused([rows[0], rows[0]], "twice")
    path.write_text("query,gallery\n")
    with refuses(xfd.SubmissionError, "row_id,case"):
        xfd.read(path)
    assert tool.main(["score", str(path)]) == 2


def test_anonymous_names_are_not_scored():
    """The authors' script prints zeros."""
    rows = [row for case in xfd.CASES for row in ranked(case, T1[:1], ("x_1",))]
    with refuses(xfd.SubmissionError, "'x_1'", "identity"):
        xfd.score(rows)
    rows = [row for case in xfd.CASES for row in ranked(case, T1[:1], ("0099_1",))]
    with pytest.raises(xfd.SubmissionError, match="anonymised"):
        xfd.score(rows)
