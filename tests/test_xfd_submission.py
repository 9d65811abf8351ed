"""VReID-XFD's submission file: its form, and scores from rankings that agree with the library's and with hand-made
cases, whether they come from features or from the file."""

import dataclasses
import json
import types
import zlib

import numpy as np
import pytest
from messages import refuses
from test_cases import evaluator_of, scored_by
from test_metrics import T1

from jaxreid import retrieval
from jaxreid.data.dataset import open_dataset
from jaxreid.data.split import Labels, Split, TrackletTable
from jaxreid.evaluation import xfd, xfd_files
from jaxreid.evaluation.cases import cases
from jaxreid.methods.method import Evaluation
from jaxreid.retrieval.protocols import resolve
from jaxreid.tools import xfd as tool

QUERIES = ("0001_11", "0002_21", "0003_31")
GALLERY = ("0001_12", "0001_13", "0002_21", "0002_22", "0002_23", "0003_32", "0004_41", "0001_14")


def ranked(case, distances=T1, queries=QUERIES, gallery=GALLERY):
    return xfd.Ranked(case, tuple(queries), tuple(gallery), np.argsort(distances, axis=1, kind="stable"))


def all_cases(*arguments):
    return [ranked(case, *arguments) for case in xfd.CASES]


def by_names(found):
    """(case, rule of junk) → record."""
    records = xfd.score(found, xfd_files.truth_of_names(found))
    return {record["case"]: record for record in records}


def test_scores_of_a_file(tmp_path):
    """The numbers of test_metrics.test_xfd_gold in all three cases: 0002_21 is the second query's own tracklet."""
    scores = by_names(xfd_files.read(xfd_files.write(tmp_path / "s.csv", all_cases())))
    assert list(scores) == [*xfd.CASES, "overall", "macro"]
    for found in scores.values():
        assert found["mAP_official"] == pytest.approx(47.5198, abs=6e-5) and found["junk"] == "tracklet"
        assert [found[f"rank-{k}"] for k in (1, 5, 10, 20)] == pytest.approx([200 / 3, 200 / 3, 100, 100])
    assert scores["overall"]["queries"] == 9


@pytest.mark.parametrize(
    "ranks, standard, trapezoid",
    [([0, 2], 0.833333, 0.791667), ([1], 0.5, 0.25), ([0, 1, 2], 1.0, 1.0), ([3, 4], 0.325, 0.225)],
)
def test_both_average_precisions(ranks, standard, trapezoid):
    """0-based ranks of the matches."""
    gallery = [f"{1 if place in ranks else 2:04d}_{place + 10}" for place in range(5)]
    found = by_names(all_cases(np.arange(5.0)[None], ["0001_1"], gallery))["overall"]
    assert found["mAP"] / 100 == pytest.approx(standard, abs=6e-7)
    assert found["mAP_official"] / 100 == pytest.approx(trapezoid, abs=6e-7)


def test_both_rules_of_junk():
    """Query of person 1 in session 1; ranked (1, session 1), (2, session 2), (1, session 2): one's own session is junk
    by camera, by tracklet nothing is."""
    found = [ranked(case, np.arange(3.0)[None], ["q"], ["a", "b", "c"]) for case in xfd.CASES]
    sessions = {"q": (1, 1)}, {"a": (1, 1), "b": (2, 2), "c": (1, 2)}
    truth = {(case, role): table for case in xfd.CASES for role, table in zip(("query", "gallery"), sessions)}  # noqa: B905
    records = {(r["case"], r["junk"]): r for r in xfd.score(found, truth)}
    third = records[xfd.CASES[2], "camid"]
    assert (third["mAP"], third["mAP_official"], third["rank-1"]) == (50, 25, 0)
    third = records[xfd.CASES[2], "tracklet"]
    assert third["mAP"] == pytest.approx(83.3333, abs=1e-4) and third["rank-1"] == 100
    assert third["mAP_official"] == pytest.approx(79.1667, abs=1e-4)
    # Between ground and air no camera is the same, whatever a session of the ground may say.
    for case in xfd.CASES[:2]:
        both = [{k: v for k, v in records[case, junk].items() if k != "junk"} for junk in ("camid", "tracklet")]
        assert both[0] == both[1]


def test_overall_goes_over_the_queries_of_all_cases_and_macro_over_the_cases():
    """One perfect query in the first case, three in the second that find their match last of two: ½(½ + 0) = ¼."""
    good = ranked(xfd.CASES[0], np.arange(2.0)[None], ["0001_1"], ["0001_2", "0002_2"])
    bad = ranked(
        xfd.CASES[1], np.array([[2.0, 0, 1, 3]] * 3), [f"{pid:04d}_1" for pid in (3, 3, 3)],
        ["0003_2", "0009_9", "0008_8", "0007_7"],
    )  # fmt: skip
    last = ranked(xfd.CASES[2], np.zeros((2, 1)), ["0007_1", "0008_1"], ["0007_2"])
    scores = by_names([good, bad, last])
    precision = 100 * (0 + 1 / 3) / 2
    assert [scores[case]["mAP_official"] for case in xfd.CASES] == pytest.approx([100, precision, 100])
    assert scores["overall"]["mAP_official"] == pytest.approx((100 + 3 * precision + 100) / 5)
    assert scores["macro"]["mAP_official"] == pytest.approx((100 + precision + 100) / 3)
    assert (scores["overall"]["queries"], scores["overall"]["unmatched"]) == (5, 1)


@pytest.mark.parametrize(
    "mAPs, overall", [((43.93, 35.44, 20.13), 32.892), ((38.76, 28.36, 16.02), 28.18), ((39.59, 34.49, 19.79), 30.436)]
)
def test_the_leaderboard_weighs_by_queries(mAPs, overall):
    one = retrieval.score_distances(
        T1, *(retrieval.Rows(np.array(ids)) for ids in ([1, 2, 3], range(8))), "single_match"
    )
    counts = zip(mAPs, (3204, 89, 2789), strict=True)
    parts = [dataclasses.replace(one, mAP=mAP, queries=queries, unmatched=0) for mAP, queries in counts]
    assert retrieval.pooled(parts).mAP == pytest.approx(overall, abs=6e-4)


def split(name, tracklets, sessions, seed):
    count = len(tracklets)
    unknown = np.full(count, -1, np.int32)
    sessions = np.array(sessions, np.int32)
    table = TrackletTable(
        length=np.full(count, 3, np.int32),
        camera=np.maximum(sessions, 0),
        camera_index=unknown,
        modality=np.zeros(count, np.int32),
        platform=unknown,
        session=sessions,
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


@pytest.fixture(scope="module")
def challenge():
    """Three cases of nine people, drones in two sessions: sides in a mixed order, and their features."""
    rng = np.random.default_rng(0)
    pairs, features = [], {}
    for number, (first, second) in enumerate((("air", "ground"), ("ground", "air"), ("air", "air")), 1):
        names = [f"{pid:04d}_{number}{place:03d}" for place, pid in enumerate(rng.integers(0, 9, 50))]
        taken = rng.integers(1, 3, 50)
        sides = []
        for role, what, rows in (("query", first, slice(0, 20)), ("gallery", second, slice(12, 50))):
            sessions = taken[rows] if what == "air" else np.full(len(taken[rows]), -1)
            sides.append(split(f"{role}_case{number}", names[rows], sessions, number))
            features[sides[-1].name] = np.stack([feature(name) for name in names[rows]])
        (case,) = cases(resolve("xfd"), *sides, f"case{number}")
        pairs.append(case)
    return pairs, features


def average_precision(relevant, rule):
    """By the formulas of the two scripts."""
    places = np.flatnonzero(relevant)
    if rule == "standard":
        return np.mean([(i + 1) / (r + 1) for i, r in enumerate(places)])
    return np.mean([((i + 1) / (r + 1) + (i / r if r else 1.0)) / 2 for i, r in enumerate(places)])


@pytest.mark.parametrize("reranked", [False, True])
def test_scores_are_those_of_brute_force(challenge, reranked):
    """Every query's ranking sorted anew, junk taken out row by row."""
    pairs, features = challenge
    options = {"k1": 6, "k2": 3, "lambda_": 0.3} if reranked else None
    pairs = xfd.ordered(pairs)
    records = xfd.score(xfd.rank(pairs, features, "cosine", options), xfd.truth_of(pairs))
    found = {(record["case"], record["junk"]): record for record in records}
    assert len(found) == 2 * 5
    for junk, column in (("tracklet", "names"), ("camid", "camera")):
        everything = {"standard": [], "trapezoid": []}
        for name, case in zip(xfd.CASES, pairs, strict=True):
            q, g = case.query, case.gallery
            a, b = features[q.split.name][q.rows], features[g.split.name][g.rows]
            distance = 1 - (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
            if reranked:
                distance = retrieval.k_reciprocal_distances(a, b, **options)
            own = {"standard": [], "trapezoid": []}
            for i, row in enumerate(q.rows):
                relevant = []
                for j in np.argsort(distance[i], kind="stable"):
                    other = g.rows[j]
                    same = q.split.labels.pid[row] == g.split.labels.pid[other]
                    if column == "names":
                        alike = q.split.labels.names[row] == g.split.labels.names[other]
                    else:
                        alike = q.split.table.camera[row] == g.split.table.camera[other]
                    if not (same and alike):
                        relevant.append(same)
                for rule, values in own.items():
                    values += [average_precision(relevant, rule)] * any(relevant)
            record = found[name, junk]
            assert record["mAP"] == pytest.approx(100 * np.mean(own["standard"]), abs=1e-9)
            assert record["mAP_official"] == pytest.approx(100 * np.mean(own["trapezoid"]), abs=1e-9)
            assert record["queries"] == len(own["standard"])
            for rule, values in own.items():
                everything[rule] += values
        overall = found["overall", junk]
        assert overall["mAP"] == pytest.approx(100 * np.mean(everything["standard"]), abs=1e-9)
        assert overall["mAP_official"] == pytest.approx(100 * np.mean(everything["trapezoid"]), abs=1e-9)


def test_a_file_scores_as_the_run_to_the_last_digit(challenge, tmp_path, capsys):
    pairs, features = challenge
    pairs = xfd.ordered(pairs)
    ranked, truth = xfd.rank(pairs, features, "cosine"), xfd.truth_of(pairs)
    path = xfd_files.write(tmp_path / "s.csv", ranked)
    answers = xfd_files.write_truth(tmp_path / "gt.csv", truth)
    assert tool.main(["score", str(path), "--truth", str(answers), "--json", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["scores"] == xfd.score(ranked, truth)
    assert "expected" in capsys.readouterr().err  # not as many queries as the challenge's: a warning
    rows = xfd_files.read(path)
    for one, own in zip(rows, ranked, strict=True):
        assert one.query == own.query == tuple(sorted(own.query))
        listed = [[each.gallery[row] for row in order] for each in (one, own) for order in each.order]
        assert listed[: len(listed) // 2] == listed[len(listed) // 2 :]
    # The names begin with the identities: without the table all but the sessions is known.
    by_name = xfd.score(rows, xfd_files.truth_of_names(rows))
    assert by_name == [record for record in xfd.score(ranked, truth) if record["junk"] == "tracklet"]
    # And the library's own scores, of the sides in their own order.
    expected = [
        retrieval.score(
            c.query.of(features), c.gallery.of(features), c.query.columns(), c.gallery.columns(), c.protocol
        )
        for c in challenge[0]
    ]
    assert [record["mAP_official"] for record in by_name[:3]] == pytest.approx([scores.mAP for scores in expected])
    assert by_name[3]["mAP_official"] == pytest.approx(retrieval.pooled(expected).mAP)


def test_equal_distances_rank_by_identity_and_name(challenge):
    pairs, features = challenge
    flat = {name: np.ones_like(rows) for name, rows in features.items()}
    for one in xfd.rank(xfd.ordered(pairs), flat, "cosine"):
        assert (one.order == np.arange(len(one.gallery))).all() and list(one.gallery) == sorted(one.gallery)


def test_what_is_no_submission_is_named(tmp_path):
    lines = xfd_files.write(tmp_path / "s.csv", all_cases()).read_text().splitlines()
    path = tmp_path / "changed.csv"

    def refused(changed, *named):
        path.write_text("\n".join(changed) + "\n")
        with refuses(xfd.SubmissionError, *named):
            xfd_files.read(path)

    def numbered(rows):
        return [lines[0], *(f"{number},{row.split(',', 1)[1]}" for number, row in enumerate(rows, 1))]

    refused(numbered([lines[1], lines[2].rsplit(" ", 1)[0]]), "row 2", "0002_21")
    refused(numbered([lines[1], lines[2].replace("0001_12", "0001_13")]), "row 2", "once")
    refused(numbered([lines[4], lines[1]]), "row 2", "Case 1")
    refused(numbered([lines[1], lines[1]]), "row 2", "twice")
    refused(numbered(lines[1:4]), "Case 2", "Case 3")
    refused([lines[0], lines[2]], "row 1", "numbered")
    refused(["query,gallery"], "row_id,case")
    assert tool.main(["score", str(path)]) == 2
    spaced = [dataclasses.replace(one, query=("0001 11", *one.query[1:])) for one in all_cases()]
    with refuses(xfd.SubmissionError, "'0001 11'", "spaces"):
        xfd_files.write(path, spaced)


def test_hidden_identities_are_not_scored():
    """The authors' script prints zeros."""
    with refuses(xfd.SubmissionError, "'x_1'", "identity"):
        by_names(all_cases(T1[:1], ("x_1",)))
    with refuses(xfd.SubmissionError, "Case 1", "hidden"):
        by_names(all_cases(T1[:1], ("0099_1",)))


def test_a_table_of_who_is_who(tmp_path):
    path = tmp_path / "gt.csv"
    head = "case,split,tracklet,pid,session\n"
    path.write_text(head + "1,query,a,7,2\n1,gallery,b,7,\n3,query,a,7.0,nan\n")
    assert xfd_files.read_truth(path) == {
        (xfd.CASES[0], "query"): {"a": (7, 2)},
        (xfd.CASES[0], "gallery"): {"b": (7, -1)},
        (xfd.CASES[2], "query"): {"a": (7, -1)},
    }
    for rows, named in (("1,probe,a,7,2\n", "row 2"), ("4,query,a,7,2\n", "case '4'")):
        path.write_text(head + rows)
        with refuses(xfd.SubmissionError, named):
            xfd_files.read_truth(path)
    with refuses(xfd.SubmissionError, "Case 1", "query", "0001_11"):
        xfd.score(all_cases(), {})


# --- the command on a run ---------------------------------------------------------------------------------------------


@pytest.fixture(params=[(), ("none",)], ids=["known", "hidden"])
def run(request, data_dir, monkeypatch):
    """A run on the smallest drawn world with features that a test makes; identities are known, or nothing is scored."""
    options = types.SimpleNamespace(
        name="walkers", config="tiny_aerial", path="", train="train", query="query", gallery="gallery",
        protocols=request.param,
    )  # fmt: skip
    dataset = open_dataset(options, data_dir)
    method = scored_by(Evaluation("packed", 4, rerank_k1=3, rerank_k2=2))
    evaluator = evaluator_of(dataset, method)
    rng = np.random.default_rng(0)
    features = {split.name: rng.normal(size=(len(split), 5)).astype(np.float32) for split in dataset.test_splits}
    monkeypatch.setattr(tool, "features_of", lambda *_: (evaluator, features, 7))
    return evaluator, features


def test_a_run_is_scored_with_and_without_re_ranking(run, tmp_path, capsys):
    evaluator, features = run
    line = ["evaluate", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    status = tool.main(line)
    shown = capsys.readouterr()
    saved = np.load(tmp_path / "out" / "features.npz")
    for split in evaluator.run.dataset.test_splits:
        row = {name: at for at, name in enumerate(split.labels.names)}
        rows = [row[name] for name in saved[f"{split.name}/names"].tolist()]
        np.testing.assert_array_equal(saved[f"{split.name}/feature"], features[split.name][rows])
    if not evaluator.scored:
        assert status == 2 and "submission.csv is written" in shown.err and "who is who" in shown.err
        assert not (tmp_path / "out" / "scores.json").exists() and not (tmp_path / "out" / "gt.csv").exists()
        assert [len(one.query) for one in xfd_files.read(tmp_path / "out" / "submission.csv")]
        return
    assert status == 0 and "re-ranked" in shown.out and "open set, aerial_to_ground" in shown.out
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    for key, name in (("scores", "submission.csv"), ("reranked", "submission_reranked.csv")):
        files = [str(tmp_path / "out" / file) for file in (name, "gt.csv")]
        assert tool.main(["score", files[0], "--truth", files[1], "--json", str(tmp_path / "s.json")]) == 0
        assert json.loads((tmp_path / "s.json").read_text())["scores"] == found[key]
    assert found["scores"] != found["reranked"]
    # As the evaluation of a run has them.
    records = {(r["protocol"], r["direction"]): r for r, _ in evaluator._score(features, "last")}
    own = {(r["junk"], r["case"]): r for r in found["scores"]}
    for protocol, junk, metric in (("xfd", "tracklet", "mAP_official"), ("xfd_train", "camid", "mAP")):
        directions = (*(test.name for test in evaluator.run.dataset.tests), "overall")
        for name, case in zip((*xfd.CASES, "overall"), directions, strict=True):
            one = records[protocol, case]
            assert own[junk, name][metric] == pytest.approx(one["mAP"])
            assert own[junk, name]["rank-1"] == pytest.approx(one["rank-1"])
            assert own[junk, name]["queries"] == one["queries"]


def test_a_data_set_without_the_three_cases_is_named():
    with refuses(xfd.SubmissionError, "3", "1"):
        xfd.ordered([None])
