"""What an evaluation ranks: sides of a case, cases of several splits, and the columns that reach the protocols."""

import dataclasses
import types

import numpy as np
import pytest
from messages import refuses

from jaxreid import retrieval
from jaxreid.data import schema
from jaxreid.data import split as split_lib
from jaxreid.data.build import build
from jaxreid.data.dataset import Dataset, QueryGallery, open_dataset, pair_splits
from jaxreid.data.split import Labels, Split, TrackletTable, join, open_split
from jaxreid.devices.parallel import make_mesh
from jaxreid.errors import UserError
from jaxreid.evaluation.breakdown import breakdown_tables
from jaxreid.evaluation.cases import cases
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.methods.method import Evaluation
from jaxreid.retrieval.protocols import resolve


def split(name, pid, names=None, camera=0, **columns):
    """A split whose tables are given and whose files do not exist; records in the order of the rows."""
    count = len(pid)
    unknown = np.full(count, -1, np.int32)
    places = {key: np.asarray(columns.pop(key)) for key in ("location", "scale") if key in columns}
    table = TrackletTable(
        length=np.full(count, 3, np.int32),
        camera=np.broadcast_to(np.int32(camera), count).copy(),
        camera_index=unknown,
        modality=np.zeros(count, np.int32),
        platform=unknown,
        session=unknown,
        geometry=np.full((count, 3), np.nan, np.float32),
        recording=unknown,
        **places,
    )
    names = tuple(names or (f"{name}{row}" for row in range(count)))
    flags = {key: np.asarray(values, bool) for key, values in columns.items()}
    labels = Labels(np.asarray(pid, np.int32), unknown, unknown, unknown, names, **flags)
    return Split(None, name, table, labels, np.arange(count))


def test_junk_takes_no_part_and_distractors_are_never_looked_for():
    query = split("q", [1, 2, 3, 4], junk=[0, 1, 0, 0], distractor=[0, 0, 1, 0])
    gallery = split("g", [1, 2, 3, 0], camera=1, junk=[0, 0, 0, 0], distractor=[0, 0, 0, 1])
    (case,) = cases(resolve("market"), query, gallery)
    assert case.query.rows.tolist() == [0, 3] and case.gallery.rows.tolist() == [0, 1, 2, 3]
    gallery = dataclasses.replace(gallery, labels=dataclasses.replace(gallery.labels, junk=np.arange(4) == 1))
    (case,) = cases(resolve("market"), query, gallery)
    assert case.gallery.rows.tolist() == [0, 2, 3]
    assert case.gallery.columns().identity.tolist() == [1, 3, 0]


def test_location_and_scale_reach_their_protocols():
    """Same place in rows 0 and 2, same size class in rows 0 and 1."""
    query = split("q", [1], location=[5], scale=[0])
    gallery = split("g", [1, 1, 1], camera=[1, 2, 3], location=[5, 6, 5], scale=[0, 0, 1])
    expected = {
        "location_sl": [1, 0, 1], "location_dl": [0, 1, 0], "scale_ss": [1, 1, 0], "scale_ds": [0, 0, 1]
    }  # fmt: skip
    for key, positive in expected.items():
        (case,) = cases(resolve(key), query, gallery)
        case.check()
        columns = case.protocol.columns
        found, junk = case.protocol.masks(
            case.query.columns().columns(columns), case.gallery.columns().columns(columns)
        )
        assert found.tolist() == [[bool(value) for value in positive]] and (found ^ junk).all()
    (case,) = cases(resolve("location_sl"), split("q", [1]), gallery)
    with refuses(ValueError, "location"):
        case.check()


def test_a_tracklet_is_the_same_on_both_sides():
    """0002_21 stands in queries and gallery, at other rows."""
    query = split("q", [1, 2, 3], ["0001_11", "0002_21", "0003_31"])
    gallery = split("g", [1, 2, 2], ["0001_12", "0002_20", "0002_21"])
    (case,) = cases(resolve("xfd"), query, gallery)
    columns = case.protocol.columns
    positive, junk = case.protocol.masks(case.query.columns().columns(columns), case.gallery.columns().columns(columns))
    assert positive.tolist() == [[True, False, False], [False, True, False], [False, False, False]]
    assert junk.tolist() == [[False] * 3, [False, False, True], [False] * 3]


def test_the_whole_test_set_as_gallery():
    """The queries stand in front of the gallery, each is junk to itself."""
    query, gallery = split("query", [1, 2, 3], camera=[0, 1, 2]), split("gallery", [1, 1, 2], camera=[0, 1, 0])
    (case,) = cases(resolve("mars_full"), query, gallery)
    assert case.gallery.split.name == "query+gallery" and case.gallery.rows.tolist() == list(range(6))
    identity, camera = case.gallery.columns().identity, case.gallery.columns().camera
    assert identity.tolist() == [1, 2, 3, 1, 1, 2] and camera.tolist() == [0, 1, 2, 0, 1, 0]
    assert case.gallery.columns().tracklet[:3].tolist() == case.query.columns().tracklet.tolist()
    (usual,) = cases(resolve("market"), query, gallery)
    assert usual.gallery.split is gallery


def test_tf_clip_ranks_two_cameras_against_queries_and_gallery():
    """iLIDS-VID as TF-CLIP scores it, by hand: other people's queries are distractors, so that ranks can only fall."""
    query, gallery = split("query", [1, 2, 3], camera=0), split("gallery", [1, 2, 3], camera=1)
    place = {"query": np.array([0.0, 1.0, 5.0]), "gallery": np.array([1.5, 2.1, 5.2])}
    place["query+gallery"] = np.concatenate([place["query"], place["gallery"]])
    precisions = {}
    for key in ("single_match", "market_full"):
        (case,) = cases(resolve(key), query, gallery)
        case.check()
        distance = np.abs(place[case.query.split.name][:, None] - place[case.gallery.split.name]).astype(np.float32)
        sides = case.query.columns(), case.gallery.columns()
        precisions[key] = retrieval.score_distances(distance, *sides, case.protocol).average_precision.tolist()
    # Query 1 (at 0): its match at 1.5, before it only query 2 at 1. Query 2 (at 1): its match at 2.1, before it the
    # gallery's 1 at 1.5 and query 1 at 0. Query 3: its match comes first.
    assert precisions == {"single_match": [1.0, 0.5, 1.0], "market_full": [0.5, pytest.approx(1 / 3), 1.0]}


def test_joined_splits_read_the_frames_of_each(tiny):
    parts = [open_split(tiny, name) for name in ("query", "gallery")]
    whole = join(parts)
    assert len(whole) == len(parts[0]) + len(parts[1])
    assert whole.labels.names == parts[0].labels.names + parts[1].labels.names
    reader, readers = whole.reader(cache=False), [part.reader(cache=False) for part in parts]
    edge = len(parts[0])
    for row, (which, own) in {0: (0, 0), edge - 1: (0, edge - 1), edge: (1, 0), len(whole) - 1: (1, -1)}.items():
        own %= len(parts[which])
        assert reader.encoded(row) == readers[which].encoded(own)
        np.testing.assert_array_equal(reader.decode(row, 1), readers[which].decode(own, 1))


# Several cases.

XFD = ("train", *(f"{role}_case{n}" for n in (1, 2, 3) for role in ("query", "gallery")))


def test_case_splits_are_paired_by_their_number():
    words = {"case1": "aerial_to_ground"}
    assert pair_splits(("train", "query", "gallery"), "query", "gallery", {}) == [("", "query", "gallery")]
    assert pair_splits(XFD, "query", "gallery", words) == [
        ("aerial_to_ground", "query_case1", "gallery_case1"),
        ("case2", "query_case2", "gallery_case2"),
        ("case3", "query_case3", "gallery_case3"),
    ]
    assert pair_splits(XFD, "query_case2", "gallery", words) == [("case2", "query_case2", "gallery_case2")]
    assert pair_splits(XFD, "query_case1", "gallery_case2", words) == [("", "query_case1", "gallery_case2")]
    with refuses(ValueError, "gallery_case3", "train"):
        pair_splits(XFD[:-1], "query", "gallery", words)
    with refuses(ValueError, "'probe'"):
        pair_splits(XFD, "probe", "gallery", words)


def test_a_data_set_of_several_cases_is_opened_and_scored(data_dir):
    options = types.SimpleNamespace(
        name="walkers", config="tiny_aerial", path="", train="train", query="query", gallery="gallery", protocols=()
    )
    dataset = open_dataset(options, data_dir)
    assert [test.name for test in dataset.tests] == ["aerial_to_ground", "ground_to_aerial", "aerial_to_aerial"]
    assert {s.name for s in dataset.splits} == set(XFD) == set(dataset.fingerprint()["tracklets"])
    assert set(dataset.query.table.platform.tolist()) == {schema.PLATFORMS.index("uav")}
    method = scored_by(Evaluation("recombine", 4, stride=2))
    evaluator = evaluator_of(dataset, method)
    rng = np.random.default_rng(0)
    features = {s.name: rng.normal(size=(len(s), 5)).astype(np.float32) for s in dataset.test_splits}
    found = evaluator._score(features, "last")
    xfd = [record for record, _ in found if record["protocol"] == "xfd"]
    assert [record["direction"] for record in xfd] == [
        "aerial_to_ground", "ground_to_aerial", "aerial_to_aerial", "overall"
    ]  # fmt: skip
    weights = [record["queries"] for record in xfd[:3]]
    assert xfd[3]["mAP"] == pytest.approx(np.average([record["mAP"] for record in xfd[:3]], weights=weights))
    assert xfd[3]["queries"] == sum(weights) and xfd[0]["clip_sampling"] == "recombine, stride 2"
    # The cases come first, in the order in which the report knows them.
    directions = [record["direction"] for record, _ in found]
    assert directions[: len(evaluator.cases)] == [case.direction for case in evaluator.cases]
    # Its tracklets know where they were taken from; from the ground there is no altitude.
    quality = [scores for _, scores in found[: len(evaluator.cases)]]
    tables = breakdown_tables(evaluator.cases, quality)["breakdown"]["tables"]
    sides = {(table["direction"], table["side"]) for table in tables if table["condition"] == "altitude"}
    assert sides == {
        ("aerial_to_ground", "query"), ("ground_to_aerial", "gallery"),
        ("aerial_to_aerial", "query"), ("aerial_to_aerial", "gallery"),
    }  # fmt: skip
    (overall,) = (table for table in tables if table["condition"] == "case")
    assert overall["overall"] == pytest.approx(xfd[3]["mAP"], abs=1e-5)
    assert overall["macro"] == pytest.approx(np.mean([record["mAP"] for record in xfd[:3]]), abs=1e-5)
    # Four people are too few to leave some out, which is said before a run is trained.
    method.evaluation = lambda: Evaluation("recombine", 4, stride=2, open_set=True)
    with refuses(UserError, "aerial_to_ground", "ground_to_aerial", "20", "evaluation.open_set=False"):
        evaluator_of(dataset, method)


def test_features_of_a_whole_test_set_are_those_of_its_splits():
    query, gallery = split("query", [1, 2], camera=0), split("gallery", [1, 2, 3], camera=1)
    dataset = Dataset("d", None, query, (QueryGallery("", query, gallery),), ("mars_full",), np.arange(2))
    method = scored_by(Evaluation("packed", 4))
    evaluator = evaluator_of(dataset, method)
    found = {"query": np.eye(5)[:2], "gallery": np.eye(5)[[0, 1, 4]]}
    [(record, scores)] = evaluator._score(found, "last")
    assert record["gallery"] == 5 and record["rank-1"] == 100
    assert retrieval.PROTOCOLS[scores.protocol].queries_in_gallery


def scored_by(evaluation):
    """A method of pictures whose network is never called."""
    return types.SimpleNamespace(evaluation=lambda: evaluation, embed=None, sees_pictures=True)


def evaluator_of(dataset, method):
    config = types.SimpleNamespace(extraction_batch_size=1, seed=0)
    return Evaluator(
        types.SimpleNamespace(
            dataset=dataset, method=method, config=config, mesh=make_mesh(devices=1), pixels=None, compiled={}
        )
    )


# The index file.


def test_an_index_of_another_version_is_made_anew(tmp_path):
    directory = build("walkers/tiny", data_dir=tmp_path)
    first = open_split(directory, "query")
    path = directory / "index" / "query.npz"
    with np.load(path) as file:
        rows = dict(file)
    assert rows["version"] == split_lib.INDEX_VERSION and not rows["junk"].any()
    for column in ("location", "scale", "junk", "distractor", "version"):
        del rows[column]
    np.savez(path, **rows)  # as it was before these columns
    again = open_split(directory, "query")
    assert again.labels.names == first.labels.names and (again.table.location == -1).all()
    with np.load(path) as file:
        assert file["version"] == split_lib.INDEX_VERSION
