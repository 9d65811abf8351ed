"""The report of a run from made-up features: every number against a plain computation."""

import contextlib
import dataclasses
import json
import types

import cv2
import numpy as np
import pytest
from messages import refuses, says

from jaxreid import retrieval
from jaxreid.data.schema import INFRARED, VISIBLE
from jaxreid.data.split import Labels, Split, TrackletTable
from jaxreid.evaluation.cases import cases
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.methods.method import Evaluation
from jaxreid.report import cameras, data_figures, earlier, ranked, run_report
from jaxreid.report.pictures import shrunk, skeleton
from jaxreid.retrieval.protocols import PROTOCOLS, Protocol, resolve

NAN = float("nan")


def split(name, modality, camera, person, length, seed=0):
    """A split whose tables are given and whose files do not exist."""
    count = len(camera)
    unknown = np.full(count, -1, np.int32)
    table = TrackletTable(
        length=np.asarray(length, np.int32),
        camera=np.asarray(camera, np.int32),
        camera_index=unknown,
        modality=np.broadcast_to(np.int32(modality), count).copy(),
        platform=unknown,
        session=unknown,
        geometry=np.full((count, 3), np.nan, np.float32),
        recording=unknown,
    )
    names = tuple(f"{name}{i:03d}" for i in range(count))
    labels = Labels(np.asarray(person, np.int32), unknown, unknown, unknown, names)
    return Split(None, name, table, labels, np.random.default_rng(seed).permutation(count))


class Reader:
    """Frames that say which tracklet and which frame they are, 300×100 pixels."""

    def __init__(self, length):
        self.length, self.read = length, []

    def encoded(self, row):
        self.read.append(row)
        image = np.full((300, 100, 3), row, np.uint8)
        return [cv2.imencode(".png", image + np.uint8(i))[1].tobytes() for i in range(self.length[row])]


@pytest.fixture
def world():
    """A run of 60 infrared queries and 70 visible gallery tracklets of 12 persons, seen by 3 + 3 cameras."""
    rng = np.random.default_rng(0)
    query = split("query", INFRARED, rng.integers(4, 7, 60), rng.integers(0, 12, 60), rng.integers(1, 30, 60), 1)
    gallery = split("gallery", VISIBLE, rng.integers(1, 4, 70), rng.integers(0, 12, 70), rng.integers(1, 30, 70), 2)
    centre = rng.normal(size=(12, 8))
    features = {
        s.name: (centre[s.labels.pid] + rng.normal(size=(len(s), 8))).astype(np.float32) for s in (query, gallery)
    }
    readers = {s.name: Reader(s.table.length) for s in (query, gallery)}
    method = types.SimpleNamespace(sees_pictures=True)
    run = types.SimpleNamespace(reader=lambda s: readers[s.name], readers=readers, method=method)
    found = cases(resolve("cross_modal_cam"), query, gallery)
    quality = [
        retrieval.score(
            features[c.query.split.name][c.query.rows],
            features[c.gallery.split.name][c.gallery.rows],
            c.query.columns(),
            c.gallery.columns(),
            c.protocol,
        )
        for c in found
    ]
    return types.SimpleNamespace(run=run, cases=found, features=features, quality=quality)


def average_precision(distance, positive, junk):
    """Of one query, by sorting; None without a match. Also whether the first is a match."""
    order = [i for i in np.argsort(distance, kind="stable") if not junk[i]]
    hits = positive[order]
    if not hits.any():
        return None
    return np.mean((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits]), bool(hits[0])


def camera_table_by_hand(query_features, gallery_features, query, gallery, other_camera):
    unit = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in (query_features, gallery_features)]
    distance = 1 - unit[0].astype(np.float64) @ unit[1].T.astype(np.float64)
    rows, columns = np.unique(query.camera), np.unique(gallery.camera)
    mean, first = np.full((2, len(rows), len(columns)), NAN)
    count = np.zeros((len(rows), len(columns)), int)
    for a, row in enumerate(rows):
        for b, column in enumerate(columns):
            there = gallery.camera == column
            found = []
            for q in np.flatnonzero(query.camera == row):
                same = gallery.identity[there] == query.identity[q]
                allowed = gallery.camera[there] != query.camera[q] if other_camera else np.ones(there.sum(), bool)
                found.append(average_precision(distance[q, there], same & allowed, same & ~allowed))
            found = [f for f in found if f is not None]
            count[a, b] = len(found)
            if found:
                mean[a, b], first[a, b] = 100 * np.mean(found, axis=0)
    return mean, first, count


def test_camera_table_is_that_of_brute_force(world):
    for case, scores in zip(world.cases, world.quality, strict=True):
        q = world.features[case.query.split.name][case.query.rows]
        g = world.features[case.gallery.split.name][case.gallery.rows]
        rows, columns = case.query.columns(), case.gallery.columns()
        table = cameras.camera_table(q, g, rows, columns, case.protocol, "cosine", scores)
        mean, first, count = camera_table_by_hand(q, g, rows, columns, other_camera=True)
        np.testing.assert_allclose(table.mAP, mean, atol=1e-3)
        np.testing.assert_allclose(table.rank_1, first, atol=1e-3)
        np.testing.assert_array_equal(table.queries, count)
        assert (count > 0).all() and len(np.unique(mean.round(1))) > 4
        assert table.query_cameras == tuple(np.unique(rows.camera))
        np.testing.assert_array_equal(table.gallery, np.unique(columns.camera, return_counts=True)[1])
        # The last column is the whole gallery's.
        weighted = (table.whole_mAP * table.whole_queries).sum() / table.whole_queries.sum()
        assert weighted == pytest.approx(scores.mAP)


def one_camera_set(count, seed):
    rng = np.random.default_rng(seed)
    rows = retrieval.Rows(identity=rng.integers(0, 9, count), camera=rng.integers(0, 3, count))
    return rng.normal(size=(count, 8)).astype(np.float32), rows


def test_a_camera_finds_nothing_in_itself_where_the_protocol_wants_another():
    (q, query), (g, gallery) = one_camera_set(50, 1), one_camera_set(90, 2)
    protocol = PROTOCOLS["market"]
    whole = retrieval.score(q, g, query, gallery, protocol)
    table = cameras.camera_table(q, g, query, gallery, protocol, "cosine", whole)
    mean, _, count = camera_table_by_hand(q, g, query, gallery, other_camera=True)
    np.testing.assert_allclose(table.mAP, mean, atol=1e-3)
    np.testing.assert_array_equal(table.queries, count)
    assert np.isnan(np.diag(table.mAP)).all() and (np.diag(table.queries) == 0).all()
    assert np.isfinite(table.mAP).sum() == 6


def test_a_camera_table_leaves_out_what_the_protocol_does_not_look_at():
    (q, query), (g, gallery) = one_camera_set(45, 1), one_camera_set(90, 2)
    query = retrieval.Rows(query.identity, query.camera, modality=np.full(45, 1))
    gallery = retrieval.Rows(gallery.identity, gallery.camera, modality=np.zeros(90, int))
    protocol = Protocol("bupt_full", other_modality=True, whole_batches=((0, 64),))
    whole = retrieval.score(q, g, query, gallery, protocol)
    table = cameras.camera_table(q, g, query, gallery, protocol, "cosine", whole)
    assert table.gallery.sum() == 64
    mean, _, count = camera_table_by_hand(q, g[:64], query, gallery[:64], other_camera=False)
    np.testing.assert_allclose(table.mAP, mean, atol=1e-3)
    np.testing.assert_array_equal(table.queries, count)


def test_a_table_of_many_cameras_shows_those_with_most_tracklets(monkeypatch):
    monkeypatch.setattr(cameras, "MOST_CAMERAS", 2)
    values = np.array([7, 7, 7, 3, 9, 9])
    assert [part.tolist() if isinstance(part, np.ndarray) else part for part in cameras._most_frequent(values)] == [
        [7, 9],
        1,
    ]


def test_queries_are_best_typical_and_worst_and_show_different_persons():
    precision = np.array([0.9, 0.0, 1.0, 0.5, 1.0, 0.2, 0.4, 0.1, 0.6])
    valid = np.array([True, False] + 7 * [True])
    person = np.array([5, 6, 1, 2, 1, 3, 4, 3, 8])
    # Best: row 2, and not row 4 of the same person but row 0. Worst: row 7, and not row 5 but row 6.
    chosen = ranked.choose(precision, valid, person)
    assert chosen[:2] == [(2, "best"), (0, "best")]
    assert chosen[4:] == [(6, "worst"), (7, "worst")]
    # In order of precision 2 4 0 8 3 6 5 7 the middle lies between 8 and 3.
    assert chosen[2:4] == [(8, "typical"), (3, "typical")]


def test_few_queries_are_shown_once_each():
    chosen = ranked.choose(np.array([0.3, 0.1, 0.2]), np.ones(3, bool), np.zeros(3, int))
    assert sorted(row for row, _ in chosen) == [0, 1, 2]


def test_ranked_lists_hold_the_nearest_without_junk(world):
    lists = ranked.ranked_lists(world.run, world.cases, "cosine", world.features, world.quality)
    assert [item.kind for item in lists] == 2 * ["best", "best", "typical", "typical", "worst", "worst"]
    case, scores = world.cases[0], world.quality[0]
    query, gallery = case.query.split, case.gallery.split
    for item in lists[:6]:
        row = query.labels.names.index(item.query.name)
        a, b = world.features["gallery"][row], world.features["query"]
        assert query.name == "gallery"  # visible queries come from the gallery split
        distance = 1 - (b @ a) / np.linalg.norm(b, axis=1) / np.linalg.norm(a)
        nearest = np.argsort(distance)[:10]
        assert [hit.name for hit in item.gallery] == [gallery.labels.names[i] for i in nearest]
        assert [hit.match for hit in item.gallery] == [
            bool(gallery.labels.pid[i] == query.labels.pid[row]) for i in nearest
        ]
        np.testing.assert_allclose([hit.distance for hit in item.gallery], distance[nearest], atol=1e-5)
        # The label's numbers are those of the whole ranking.
        hits = 1 + np.flatnonzero(gallery.labels.pid[np.argsort(distance)] == query.labels.pid[row])
        place = case.query.rows.tolist().index(row)
        text = f"AP {100 * scores.average_precision[place]:.1f} %, {len(hits)} matches: the first at rank {hits[0]}"
        assert item.facts == f"{text}, the last at {hits[-1]}" or len(hits) == 1
        assert len(item.query.pictures) == min(5, query.table.length[row])
        assert all(len(hit.pictures) == 1 for hit in item.gallery)
    best, worst = lists[0], lists[5]
    assert float(best.facts.split()[1]) > float(worst.facts.split()[1])


def test_ranked_lists_name_cameras_where_they_have_names(world):
    names = {1: "door", 2: "2", 4: "hall", 5: "yard"}
    words = {1: "door", 2: "camera 2", 3: "camera 3", 4: "hall", 5: "yard", 6: "camera 6"}
    lists = ranked.ranked_lists(world.run, world.cases, "cosine", world.features, world.quality, names)
    shown = [item.query for item in lists] + [hit for item in lists for hit in item.gallery]
    for tracklet in shown:
        (split_,) = (
            s for s in (world.cases[0].query.split, world.cases[0].gallery.split) if tracklet.name in s.labels.names
        )
        row = split_.labels.names.index(tracklet.name)
        assert tracklet.facts[0].endswith(f"person {split_.labels.pid[row]}, {words[split_.table.camera[row]]}")
    assert len({fact.facts[0].partition(", ")[2] for fact in shown}) > 3


class Joints:
    """Twenty joints a frame, none in every third; asking for a picture is an error."""

    def __init__(self, length):
        self.length = length

    def joints(self, row):
        joints = np.random.default_rng(row).normal(size=(self.length[row], 20, 3)).astype(np.float32)
        return joints, np.arange(self.length[row]) % 3 > 0


def test_ranked_lists_of_skeletons_are_drawn(world):
    length = {side.split.name: side.split.table.length for side in (world.cases[0].query, world.cases[0].gallery)}
    readers = {name: Joints(lengths) for name, lengths in length.items()}
    run = types.SimpleNamespace(reader=lambda s: readers[s.name], method=types.SimpleNamespace(sees_pictures=True))
    found = [
        dataclasses.replace(
            case,
            query=dataclasses.replace(case.query, split=dataclasses.replace(case.query.split, skeletons=True)),
            gallery=dataclasses.replace(case.gallery, split=dataclasses.replace(case.gallery.split, skeletons=True)),
        )
        for case in world.cases
    ]
    lists = ranked.ranked_lists(run, tuple(found), "cosine", world.features, world.quality)
    assert len(lists) == 12
    for item, case in zip(lists, [found[0]] * 6 + [found[1]] * 6, strict=True):
        for tracklet, split_, most in (
            (item.query, case.query.split, 5), *((hit, case.gallery.split, 1) for hit in item.gallery)
        ):  # fmt: skip
            row = split_.labels.names.index(tracklet.name)
            joints, there = readers[split_.name].joints(row)
            assert len(tracklet.pictures) == min(most, there.sum())
            if most == 1 and there.any():
                assert tracklet.pictures[0] == skeleton(joints[np.flatnonzero(there)[there.sum() // 2]])


def test_a_skeleton_has_the_bones_of_its_joints():
    """A joint at every corner of a long polygon: the hand is joined to the wrist, not to the foot."""
    angle = np.arange(20) / 20 * 2 * np.pi
    joints = np.stack([np.sin(angle), np.cos(angle), angle], 1)
    picture = cv2.imdecode(np.frombuffer(skeleton(joints), np.uint8), cv2.IMREAD_COLOR).astype(int)

    def middle(one, other):
        x, y = (np.array([joints[one], joints[other]])[:, :2] * [1, -1]).mean(0) / 2 * 0.8 * 96 + 48
        return picture[round(y), round(x)].min()

    assert middle(6, 7) < 200 and middle(0, 12) < 200 and middle(14, 15) < 200
    assert middle(7, 8) > 230 and middle(11, 12) > 230


def test_only_what_is_shown_is_read(world):
    lists = ranked.ranked_lists(world.run, world.cases, "cosine", world.features, world.quality)
    shown = sum(1 + len(item.gallery) for item in lists)
    assert sum(len(reader.read) for reader in world.run.readers.values()) == shown


@pytest.mark.parametrize("one_camera", [False, True])
def test_unscored_lists_show_a_spread_of_queries_and_leave_out_their_own_camera(world, one_camera):
    split_ = world.cases[0].gallery.split
    if one_camera:
        split_.table.camera[:] = 4
    world.cases = cases(resolve("none"), split_, split_)
    lists = ranked.ranked_lists(world.run, world.cases, "cosine", world.features, [])
    assert len(lists) == 6 and all(item.kind == item.facts == "" for item in lists)
    unit = world.features["query"] / np.linalg.norm(world.features["query"], axis=1, keepdims=True)
    for item in lists:
        row = split_.labels.names.index(item.query.name)
        distance = 1 - unit @ unit[row]
        # With one camera only the tracklet itself is left out.
        distance[np.arange(len(split_)) == row if one_camera else split_.table.camera == split_.table.camera[row]] = (
            np.inf
        )
        assert [hit.name for hit in item.gallery] == [split_.labels.names[i] for i in np.argsort(distance)[:10]]
        assert all(hit.match is None for hit in item.gallery)
    assert run_report._cameras(world.cases, "cosine", world.features, []) == {}


def test_a_large_picture_is_encoded_smaller_and_a_small_one_kept():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (400, 200, 3), np.uint8)
    large = cv2.imencode(".png", cv2.GaussianBlur(noise, (0, 0), 4))[1].tobytes()
    smaller = shrunk(large, side=160)
    image = cv2.imdecode(np.frombuffer(smaller, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (160, 80, 3) and smaller.startswith(b"\xff\xd8") and len(smaller) < len(large) / 5
    before = cv2.resize(cv2.imdecode(np.frombuffer(large, np.uint8), cv2.IMREAD_COLOR), (80, 160), None, 0, 0, 3)
    assert np.abs(image.astype(int) - before).mean() < 6

    small = cv2.imencode(".jpg", noise[:128, :64], [cv2.IMWRITE_JPEG_QUALITY, 50])[1].tobytes()
    assert shrunk(small, side=160, most=len(small)) is small
    # Of the right size, but heavy: encoded again, and kept where that saves nothing.
    heavy = cv2.imencode(".png", noise[:128, :64])[1].tobytes()
    assert len(shrunk(heavy, side=160, most=100)) < len(heavy)
    light = cv2.imencode(".jpg", noise[:128, :64], [cv2.IMWRITE_JPEG_QUALITY, 10])[1].tobytes()
    assert shrunk(light, side=160, most=100) is light
    with refuses(ValueError, "GIF8"):
        shrunk(b"GIF89a")


def test_data_is_counted_by_split_modality_and_camera():
    train = split("train", VISIBLE, [1, 1, 2, 5], [10, 10, 11, 12], [4, 6, 8, 20])
    train.table.modality[3] = INFRARED
    test = split("query", INFRARED, [5, 5, 2], [3, -1, 3], [7, 9, 1])
    table = data_figures.data_table([train, test, test])
    assert table.cameras == (1, 2, 5)
    assert [(h.split, h.modality, h.tracklets, h.frames, h.persons, h.median_length) for h in table.splits] == [
        ("train", "visible", 3, 18, 2, 6.0),
        ("train", "infrared", 1, 20, 1, 20.0),
        ("query", "infrared", 3, 17, 1, 7.0),
    ]
    assert [h.per_camera for h in table.splits] == [(2, 1, 0), (0, 0, 1), (0, 1, 2)]


@pytest.mark.parametrize(
    "length, edges, shortened",
    [
        ([3, 5, 4], [2.5, 3.5, 4.5, 5.5], False),
        ([7], [6.5, 7.5], False),
        (list(range(1, 101)), [0.5 + 5 * i for i in range(21)], False),
    ],
)
def test_bins_lie_around_whole_numbers(length, edges, shortened):
    found, short = data_figures.length_bins(np.array(length))
    np.testing.assert_array_equal(found, edges)
    assert short == shortened


def test_a_long_tail_is_counted_in_the_last_bar(monkeypatch):
    lengths = np.array([10, 11, 12] * 100 + [900, 950])
    edges, shortened = data_figures.length_bins(lengths)
    assert shortened and edges.tolist() == [9.5, 10.5, 11.5, 12.5]
    drawn = {}
    monkeypatch.setattr(
        data_figures.plots, "histogram", lambda *args, series: drawn.update(counts=args[3], text=args[1])
    )
    data_figures.length_histograms([split("train", VISIBLE, lengths * 0, lengths * 0, lengths)])
    assert drawn["counts"]["visible"].tolist() == [100, 100, 102]
    assert drawn["text"].startswith("Frames in a tracklet: 10 to 950, median 11.")
    assert drawn["text"].endswith("The last bar also holds the 2 longer ones.")


def score_record(**changes):
    return {
        "direction": "a_to_b", "protocol": "cross_modal_cam", "mAP": 40.0, "rank-1": 50.0, "queries": 12,
        "unmatched": 0, "gallery": 34, "seq_len": 6, "clip_sampling": "packed", "distance": "cosine",
        "reranking": False,
    } | changes  # fmt: skip


FINGERPRINT = {"name": "walkers", "version": "1.0.0", "tracklets": {"train": 5}, "frames": {"train": 50}}


@pytest.fixture
def old(tmp_path):
    """An earlier workdir; gives a function that changes one of its files."""
    directory = tmp_path / "old"
    directory.mkdir()
    files = {
        "results.json": {
            "scores": [score_record(mAP=35.5)],
            "assumptions": {"identity labels": "no"},
            "epochs_done": 4,
            "epochs": 6,
        },
        "config.json": {"seed": 1, "levels": {"scope": "camera", "temperature": 0.07}, "kappa": [0.5, -0.5]},
        "dataset.json": FINGERPRINT,
    }

    def write(name=None, **changes):
        for file, content in files.items():
            (directory / file).write_text(json.dumps(content | (changes if file == name else {})))
        return directory

    write()
    (directory / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 2.0}\n')
    return write


def beside(directory, **changes):
    results = {"scores": [score_record(**changes)], "assumptions": {"identity labels": "no"}}
    config = {"seed": 2, "levels": {"scope": "camera", "temperature": 0.05}, "kappa": (0.5, -0.5), "new": ""}
    return earlier.read_earlier(directory, results, config, FINGERPRINT)


def test_an_earlier_run_that_was_measured_alike(old):
    found = beside(old())
    ((key, (record, reasons)),) = found.records.items()
    assert key == ("a_to_b", "cross_modal_cam") and record["mAP"] == 35.5 and reasons == ()
    assert found.settings == (("levels.temperature", 0.07, 0.05), ("new", None, ""), ("seed", 1, 2))
    assert found.name == "old" and not found.problem and found.checkpoint == "epoch 4 of 6"
    assert found.metrics == ({"kind": "train", "step": 1, "loss": 2.0},)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"gallery": 33}, "gallery tracklets 34 → 33"),
        ({"queries": 11}, "queries 12 → 11"),
        ({"unmatched": 1}, "queries without a match 0 → 1"),
        ({"clip_sampling": "dense"}, "clip sampling packed → dense"),
        ({"seq_len": 8}, "frames per clip 6 → 8"),
        ({"distance": "euclidean"}, "distance cosine → euclidean"),
        ({"reranking": True}, "re-ranking False → True"),
        ({"protocol": "market"}, "the earlier run has no score of a_to_b under market"),
        ({"direction": "b_to_a"}, "the earlier run has no score of b_to_a under cross_modal_cam"),
    ],
)
def test_scores_that_were_measured_otherwise_are_not_subtracted(old, changes, reason):
    ((record, reasons),) = beside(old(), **changes).records.values()
    assert reasons == (reason,)
    assert (record is None) == ("no score" in reason)


def test_other_data_or_other_assumptions_are_not_subtracted(old):
    ((_, reasons),) = beside(old("dataset.json", version="0.9.0")).records.values()
    assert reasons == ("the data set differs (version: 0.9.0 → 1.0.0)",)
    ((_, reasons),) = beside(old("results.json", assumptions={"identity labels": "yes"})).records.values()
    assert reasons == ("training was told something else (identity labels: yes → no)",)


def test_what_cannot_be_read_is_said(old, tmp_path):
    says(beside(tmp_path / "nowhere").problem, "nowhere/results.json")
    directory = old("results.json", scores={"a_to_b": {"mAP": 35.5}})
    assert "older" in beside(directory).problem and "--mode=evaluate" in beside(directory).problem
    (directory / "results.json").write_text("{")
    says(beside(directory).problem, "results.json")
    old()
    (directory / "config.json").unlink()
    says(beside(directory).problem, "config.json")


def test_a_run_is_not_compared_with_itself(tmp_path, capsys):
    run = types.SimpleNamespace(workdir=tmp_path)
    assert "this run itself" in run_report._earlier(run, {}, tmp_path / ".." / tmp_path.name).problem
    assert "not compared" in capsys.readouterr().out


@pytest.fixture
def evaluator(tmp_path):
    """One that scores something without a network."""
    method = types.SimpleNamespace(
        stages=lambda: [types.SimpleNamespace(epochs=2)],
        assumptions=lambda: {"identity labels": "no"},
        notes=lambda: (),
        examines=False,
        examines_pairs=lambda: False,
    )
    found = Evaluator.__new__(Evaluator)
    found.scored, found.cases = True, ()
    found.options, found.distance = Evaluation("packed", 4), "cosine"
    found.run = types.SimpleNamespace(
        workdir=tmp_path,
        method=method,
        config=types.SimpleNamespace(name="any", method="any", seed=1, keep_best=False),
        dataset=types.SimpleNamespace(name="made up"),
        phase=lambda name: contextlib.nullcontext(),
        phases={"evaluation": 3.0},
        compiled={},
        is_main=True,
    )
    found.features = lambda variables, memory: {}
    found._score = lambda features, checkpoint: [({"mAP": 12.5}, types.SimpleNamespace(cmc=lambda length: [1.0]))]
    return found


def test_scores_are_kept_when_the_report_fails(evaluator, monkeypatch):
    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(run_report, "write", fail)
    with pytest.raises(OSError, match="no space"):
        run_report.report_run(evaluator.run, evaluator.final(None, None, 2))
    assert json.loads((evaluator.run.workdir / "results.json").read_text())["scores"] == [{"mAP": 12.5, "cmc": [1.0]}]


def test_scoring_again_keeps_the_time_of_training(evaluator):
    path = evaluator.run.workdir / "results.json"
    path.write_text(json.dumps({"epochs_done": 2, "seconds": {"steps": 80.0, "evaluation": 9.0}}))
    assert evaluator.final(None, None, 2).results["seconds"] == {"steps": 80.0, "evaluation": 3.0}
    # Another state took another time to train.
    assert evaluator.final(None, None, 1).results["seconds"] == {"evaluation": 3.0}
