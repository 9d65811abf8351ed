"""The builders of MARS and of G2A-VReID, which is laid out the same, on small trees of the true layout."""

import importlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from builder_trees import check_fields, edit, ends, error, ids, prepare
from mars_trees import Row, write_tables, write_tree
from messages import refuses, says
from scipy.io import savemat

from jaxreid.data.build import build, main
from jaxreid.data.builders import builder_class
from jaxreid.data.building import recorder
from jaxreid.data.planned import published as planned
from jaxreid.data.prepared import read_metadata
from jaxreid.errors import DataSetError

_builder = builder_class("mars").__module__.rsplit(".", 1)[0]
listing = importlib.import_module(f"{_builder}.listing")
published = importlib.import_module(f"{_builder}.published")

TRAIN = [
    Row("0001", 1, 1, 3), Row("0001", 1, 2, 2), Row("0001", 6, 1, 4), Row("0001", 6, 2, 2),
    Row("0003", 1, 1, 5), Row("0003", 1, 2, 2), Row("0003", 6, 1, 2), Row("0003", 6, 2, 3),
    Row("1499", 2, 1, 2), Row("1499", 2, 2, 3), Row("1499", 6, 1, 2), Row("1499", 6, 2, 5),
]  # fmt: skip
TEST = [
    Row("00-1", 1, 1, 2), Row("00-1", 2, 1, 3),  # rows 1, 2: junk
    Row("0000", 1, 1, 2), Row("0000", 6, 1, 4), Row("0000", 6, 2, 2),  # rows 3 to 5: distractors
    Row("0002", 1, 1, 3), Row("0002", 1, 2, 2), Row("0002", 2, 1, 5), Row("0002", 2, 2, 2),
    Row("0004", 1, 1, 2), Row("0004", 1, 2, 3), Row("0004", 6, 1, 2), Row("0004", 6, 2, 4),
    Row("0006", 2, 1, 3), Row("0006", 2, 2, 2), Row("0006", 6, 1, 2), Row("0006", 6, 2, 2),
]  # fmt: skip
QUERIES = [6, 8, 10, 12, 14, 16]
LABELS = {1: 0, 3: 1, 1499: 2}


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "mars"
    write_tree(root, TRAIN, TEST, QUERIES)
    return root


@pytest.fixture
def as_published(monkeypatch):
    """The published figures are those of the small tree."""
    figures = {
        "train": {"tracklets": {"rgb": 12}, "frames": {"rgb": 35}, "identities": 3, "cameras": 3},
        "query": {"tracklets": {"rgb": 6}, "frames": {"rgb": 17}, "identities": 3, "cameras": 3},
        "gallery": {"tracklets": {"rgb": 11}, "frames": {"rgb": 28}, "identities": 5, "cameras": 3},
    }
    parts = {
        "test": {"tracklets": 17, "frames": 45, "identities": 5},
        "gallery without junk": {"tracklets": 9, "identities": 4},
        "junk": {"tracklets": 2, "frames": 5},
        "distractors": {"tracklets": 3, "frames": 8},
    }
    monkeypatch.setattr(listing, "PUBLISHED", figures)
    monkeypatch.setattr(listing, "LISTED", parts)
    monkeypatch.setattr(listing, "PER_CAMERA", {"train": (4, 2, 0, 0, 0, 6), "query": (2, 2, 0, 0, 0, 2)})


def check(records, rows, role, root, source):
    assert ids(records) == [row.name for row in rows]
    for record, row in zip(records, rows, strict=True):
        check_fields(
            record,
            frames=[(root / file).read_bytes() for file in row.files],
            frame_names=row.files,
            frame_index=range(row.length),
            num_frames_source=row.length,
            tracklet_id=row.name,
            pid=row.pid,
            label=LABELS[row.pid] if role == "train" else -1,
            camid=row.camera,
            cam_name=f"C{row.camera}",
            modality="rgb",
            platform="ground",
            role=role,
            is_junk=row.folder == "00-1",
            is_distractor=row.folder == "0000",
            source=source,
        )


def test_every_field_in_the_order_of_the_tables(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "FRAMES_PER_SHARD", 12)  # several files per split
    path, splits = prepare("mars", tree, tmp_path)
    assert len(list(path.glob("*-train.array_record-*"))) == 3  # of 11, 12 and 12 frames
    source = f"mars/standard_unchecked 1.0.0 lists {read_metadata(path)['lists']}"
    query = [TEST[number - 1] for number in QUERIES]
    gallery = [row for number, row in enumerate(TEST, start=1) if number not in QUERIES]
    check(splits["train"], TRAIN, "train", tree / "bbox_train", source)
    check(splits["query"], query, "query", tree / "bbox_test", source)
    check(splits["gallery"], gallery, "gallery", tree / "bbox_test", source)
    # First and last frame of the first, a middle and the last tracklet, written out.
    for split, index, first, last in (
        ("train", 0, "0001/0001C1T0001F001.jpg", "0001/0001C1T0001F003.jpg"),
        ("train", 4, "0003/0003C1T0001F001.jpg", "0003/0003C1T0001F005.jpg"),
        ("train", 11, "1499/1499C6T0002F001.jpg", "1499/1499C6T0002F005.jpg"),
        ("query", 0, "0002/0002C1T0001F001.jpg", "0002/0002C1T0001F003.jpg"),
        ("query", 3, "0004/0004C6T0001F001.jpg", "0004/0004C6T0001F002.jpg"),
        ("query", 5, "0006/0006C6T0001F001.jpg", "0006/0006C6T0001F002.jpg"),
        ("gallery", 0, "00-1/00-1C1T0001F001.jpg", "00-1/00-1C1T0001F002.jpg"),
        ("gallery", 5, "0002/0002C1T0002F001.jpg", "0002/0002C1T0002F002.jpg"),
        ("gallery", 10, "0006/0006C6T0002F001.jpg", "0006/0006C6T0002F002.jpg"),
    ):
        assert ends(splits[split][index]) == (first, last)


def test_what_is_noted_of_the_set(tree, tmp_path, as_published, capsys):
    path = build("mars", source=tree, data_dir=tmp_path / "data")
    assert path == tmp_path / "data" / "mars" / "standard" / "1.0.0"
    facts = read_metadata(path)
    assert facts["protocols"] == ["market", "mars_full", "mars_full_std"]
    assert [(camera["number"], camera["name"]) for camera in facts["cameras"]] == [(1, "C1"), (2, "C2"), (6, "C6")]
    assert facts["train_pids"] == [1, 3, 1499] and "research" in facts["licence"]
    assert facts["counts"]["gallery"] == {"tracklets": 11, "frames": 28, "identities": 5, "cameras": 3, "rgb": 11}
    assert facts["differences"] == facts["warnings"] == facts["excluded_frames"] == []
    shutil.rmtree(tree)
    assert build("mars/standard", data_dir=tmp_path / "data") == path
    assert main(["mars", "--data_dir", str(tmp_path / "data")]) == 0
    says(capsys.readouterr().out, "query", 6, "tracklets", 17, "frames", 3, "identities", "cameras", "rgb")


def test_tables_beside_the_pictures_and_thinned_tracklets(tree, tmp_path):
    for file in (tree / "info").iterdir():
        file.rename(tree / file.name)
    path, splits = prepare("mars", tree, tmp_path, max_frames=2)
    assert path.parent.name == "standard_max2_unchecked"
    record = splits["train"][4]  # of five frames: 0·5/2 and 1·5/2
    assert list(record["frame_index"]) == [0, 2] and record["num_frames_source"] == 5
    assert ends(record) == ("0003/0003C1T0001F001.jpg", "0003/0003C1T0001F003.jpg")


def test_counts_that_are_not_the_published_ones(tree, tmp_path, caplog):
    message = error("mars", tree, tmp_path, strict_counts=True)
    says(message, "train", "expected", 8298, "rgb", "tracklets", 12)
    says(message, "train", "expected", 509914, "rgb", "frames", 35)
    says(message, "train", "expected", 625, "identities", 3)
    says(message, "query", "expected", 1980, "rgb", "tracklets", 6)
    says(message, "query", "expected", 114493, "rgb", "frames", 17)
    says(message, "query", "expected", 626, "identities", 3)
    says(message, "test", "expected", 12180, "tracklets", 17)
    says(message, "test", "expected", 681089, "frames", 45)
    says(message, "test", "expected", 636, "identities", 5)
    says(message, "gallery", "expected", 9330, "tracklets", 9)
    says(message, "gallery", "expected", 621, "identities", 4)
    says(message, "expected", 870, "tracklets", 2)
    says(message, "expected", 23380, "frames", 5)
    says(message, "expected", 3248, "tracklets", 3)
    says(message, "expected", 147743, "frames", 8)
    says(message, "train", "expected", 1816, "tracklets", "camera", 1, 4)
    says(message, "test", "expected", 1425, "tracklets", "camera", 6)
    says(message, "query", "expected", 106, "tracklets", "camera", 6, 2)
    says(message, "splits", "expected", 6, "cameras", 3)
    path, _ = prepare("mars", tree, tmp_path)
    says(caplog.text, "train", "expected", 8298, "rgb", "tracklets", 12)
    says(read_metadata(path)["differences"], "test", "expected", 12180, "tracklets", 17)


def test_published_figures_are_consistent():
    """Counts of the authors' .mat files add up."""
    of, parts, cameras = published.PUBLISHED, published.LISTED, published.PER_CAMERA
    assert of["query"]["tracklets"]["rgb"] + of["gallery"]["tracklets"]["rgb"] == parts["test"]["tracklets"] == 12180
    assert of["query"]["frames"]["rgb"] + of["gallery"]["frames"]["rgb"] == parts["test"]["frames"] == 681089
    assert of["gallery"]["tracklets"]["rgb"] - parts["junk"]["tracklets"] == 9330 == 12180 - 870 - 1980
    assert planned("mars") == of and planned("prid2011") is None
    ls_vid, ilids, g2a = (planned(name) for name in ("ls_vid", "ilids_vid", "g2a_vreid"))
    assert ls_vid and ilids and g2a  # in the order of the authors' totals: frames and tracklets, a mean length, people
    assert ls_vid["train"]["frames"]["rgb"] == 565_079  # 2,982,685 · 2,831 / 14,943
    assert ilids["train"]["frames"]["rgb"] == 21_900
    assert [sum(g2a[split][what]["rgb"] for split in g2a) for what in ("tracklets", "frames")] == [5_576, 185_905]
    assert [sum(cameras[part]) for part in ("train", "test", "query")] == [8298, 12180, 1980]


@pytest.mark.parametrize(
    ("train", "test", "queries", "named"),
    [
        (TRAIN, [*TEST, Row("1499", 1, 9, 2)], QUERIES, (1, "identities", "train", "test", 1499)),
        (TRAIN, TEST, [6, 7], ("query", "several", "tracklets", "identity 2", "camera 1")),
        (TRAIN, TEST, [1, 6], ("query", "00-1C1T0001", "nobody")),
        (TRAIN, TEST, [3, 6], ("query", "0000C1T0001", "nobody")),
    ],
)
def test_what_the_published_set_never_has(tree, tmp_path, train, test, queries, named):
    write_tables(tree / "info", train, test, queries)
    says(listing.list_dataset(tree).differences, *named)
    says(error("mars", tree, tmp_path, strict_counts=True), *named)


def test_rows_that_leave_names_out(tree):
    edit(tree / "info" / "test_name.txt", "0006C6T0002F002.jpg", "0006C6T0002F002.jpg\n0006C6T0002F003.jpg")
    says(listing.list_dataset(tree).differences, "test_name.txt", "row 18")


def rewrite(path, key, change):
    """A MATLAB table with one entry changed; position from 0."""
    from scipy.io import loadmat

    table = loadmat(path)[key]
    position, value = change
    table[position] = value
    savemat(path, {key: table})


@pytest.mark.parametrize(
    ("file", "key", "change", "named"),
    [
        # Row 2 is frames 4 and 5, 0001C1T0002. A row that ends one too late shows it at its last frame.
        ("tracks_train_info.mat", "track_train_info", ((1, 1), 6),
         ("tracks_train_info.mat", "row 2", "4 6 1 1", "0001C6T0001F001.jpg", "line 6", "identity 1", "camera 6")),
        ("tracks_train_info.mat", "track_train_info", ((4, 0), 11),
         ("row 5", "11 16 3 1", "0001C6T0002F002.jpg", "row", "identity 3", "camera 1")),
        ("tracks_train_info.mat", "track_train_info", ((0, 0), 0), ("row 1", "frames", 0, 3, 35, "names")),
        ("tracks_test_info.mat", "track_test_info", ((16, 1), 46), ("row 17", "frames", 44, 46)),
        ("tracks_test_info.mat", "track_test_info", ((0, 2), 7), ("00-1C1T0001F001.jpg", "identity -1", "camera 1")),
        ("query_IDX.mat", "query_IDX", ((0, 0), 0), ("query_IDX.mat", "row 0", "test", "table", 17, "rows")),
        ("query_IDX.mat", "query_IDX", ((0, 5), 18), ("row 18",)),
        ("query_IDX.mat", "query_IDX", ((0, 1), 6), ("names", 1, "rows", "once")),
    ],
)  # fmt: skip
def test_tables_that_contradict_the_lists(tree, file, key, change, named):
    rewrite(tree / "info" / file, key, change)
    with refuses(DataSetError, *named):
        listing.list_dataset(tree)


@pytest.mark.parametrize("name", [b"0001C1T0001F1", b"0001T0001F001.jpg", b"0001C1T0001F\xff01.jpg"])
def test_names_that_cannot_be_parsed(tree, tmp_path, name):
    path = tree / "info" / "train_name.txt"
    path.write_bytes(path.read_bytes().replace(b"0001C1T0001F001.jpg", name))
    says(error("mars", tree, tmp_path), "line", 1, "name", "0001C1T0001F001.jpg")


def test_files_that_are_not_matlab_tables(tree, tmp_path):
    path = tree / "info" / "query_IDX.mat"
    for content in (b"1 2 3", path.read_bytes()[:150]):
        path.write_bytes(content)
        says(error("mars", tree, tmp_path), path, "MATLAB")
    for tables, wanted in (
        ({"other": [[1]]}, "variable"),
        ({"query_IDX": [[1.5]]}, "whole numbers"),
        ({"query_IDX": "six"}, "whole numbers"),
    ):
        savemat(path, tables)
        says(error("mars", tree, tmp_path), "query_IDX", wanted)
    path.unlink()
    says(error("mars", tree, tmp_path), "query_IDX.mat", "missing")
    savemat(tree / "info" / "tracks_test_info.mat", {"track_test_info": np.ones((3, 3))})
    savemat(path, {"query_IDX": [[1]]})
    says(error("mars", tree, tmp_path), 3, "columns", "start end identity camera")


def test_damaged_and_missing_frames(tree, tmp_path, as_published, caplog):
    cut = tree / "bbox_train" / "0001" / "0001C1T0001F002.jpg"
    cut.write_bytes(cut.read_bytes()[:-20])
    shutil.rmtree(tree / "bbox_test" / "0000")
    (tree / "bbox_test" / "0000").mkdir()  # three tracklets without frames
    message = error("mars", tree, tmp_path, strict_counts=True)
    says(message, "8 of 80", "frames", "10.0%")
    says(message, "0000C1T0001F001.jpg", "missing")
    message = error("mars", tree, tmp_path, strict_counts=True, max_excluded=0.2)
    says(message, "frame", "tracklet", "0000C1T0001")
    path, splits = prepare("mars", tree, tmp_path, max_excluded=0.2)
    assert list(splits["train"][0]["frame_index"]) == [0, 2] and splits["train"][0]["num_frames_source"] == 3
    assert len(splits["gallery"]) == 8
    says(caplog.text, "tracklet", "0000C6T0002", "frame")
    faults = {entry["path"]: entry["fault"] for entry in read_metadata(path)["excluded_frames"]}
    assert faults["bbox_train/0001/0001C1T0001F002.jpg"] == "truncated: no end-of-image marker" and len(faults) == 9


def test_as_an_ordinary_tfds_builder(tree, tmp_path, as_published):
    """`tfds build --manual_dir` opens the class without a configuration, or with a name of one."""
    builder = builder_class("mars")(data_dir=str(tmp_path / "data"))
    builder.download_and_prepare(
        file_format="array_record", download_config=tfds.download.DownloadConfig(manual_dir=str(tree))
    )
    assert builder.info.splits["gallery"].num_examples == 11
    assert build("mars", data_dir=tmp_path / "data") == Path(builder.data_dir)  # the library finds it
    named = builder_class("mars")(data_dir=str(tmp_path / "data"), config="standard_max4_unchecked")
    assert named.builder_config.max_frames == 4 and not named.builder_config.strict_counts
    with refuses(DataSetError, "mars", "'large'", "standard"):
        builder_class("mars")(data_dir=str(tmp_path / "data"), config="large")


def test_neither_prepared_nor_a_source(tmp_path, capsys):
    for name, place in (("mars", "liangzheng.com.cn"), ("g2a_vreid", "github.com/FHR-L/G2A-VReID")):
        assert main([name, "--data_dir", str(tmp_path)]) == 2
        message = capsys.readouterr().err
        assert place in message and "Licence" in message and "DIR/bbox_test/0002/0002C1T0001F001.jpg" in message
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("config", ["market", "standard_max", "standard_max01", "standard_unchecked_max3"])
def test_configurations_that_are_refused(tree, tmp_path, config):
    with refuses(DataSetError, "mars", f"'{config}'"):
        build("mars", config, source=tree, data_dir=tmp_path / "data")


G2A_TRAIN = [Row("0007", 1, 1, 2), Row("0007", 2, 1, 3), Row("0009", 1, 1, 2), Row("0009", 2, 1, 2)]
G2A_TEST = [
    Row("0000", 1, 1, 2), Row("0000", 2, 1, 3), Row("0003", 1, 1, 2),
    Row("0003", 2, 1, 4), Row("0005", 1, 1, 2), Row("0005", 2, 1, 2),
]  # fmt: skip


def test_g2a_vreid_has_two_platforms_and_no_distractors(tmp_path):
    root = tmp_path / "G2A-VReID"
    write_tree(root, G2A_TRAIN, G2A_TEST, [1, 3, 5])
    path, splits = prepare("g2a_vreid", root, tmp_path)
    assert path.parent.name == "v1_unchecked" and read_metadata(path)["protocols"] == ["market"]
    assert ids(splits["query"]) == ["0000C1T0001", "0003C1T0001", "0005C1T0001"]
    source = f"g2a_vreid/v1_unchecked 1.0.0 lists {read_metadata(path)['lists']}"
    expected = {"train": G2A_TRAIN, "query": G2A_TEST[::2], "gallery": G2A_TEST[1::2]}
    for split, rows in expected.items():
        home = root / ("bbox_train" if split == "train" else "bbox_test")
        for record, row in zip(splits[split], rows, strict=True):
            check_fields(
                record,
                frames=[(home / file).read_bytes() for file in row.files],
                frame_names=row.files,
                frame_index=range(row.length),
                num_frames_source=row.length,
                tracklet_id=row.name,
                pid=row.pid,
                label={7: 0, 9: 1}[row.pid] if split == "train" else -1,
                camid=row.camera,
                cam_name=f"C{row.camera}",
                modality="rgb",
                platform="ground" if row.camera == 1 else "uav",
                role=split,
                source=source,
            )
    assert ends(splits["gallery"][1]) == ("0003/0003C2T0001F001.jpg", "0003/0003C2T0001F004.jpg")
    message = error("g2a_vreid", root, tmp_path / "strict", strict_counts=True)
    says(message, "train", "test", "expected", 5576, "tracklets", 10)
    says(message, "train", "test", "expected", 185907, "frames", 24)
    says(message, "train", "test", "expected", 2788, "identities", 5)
    message = error("g2a_vreid", root, tmp_path / "strict", "v2")
    assert "frames" not in message
    says(message, "train", "test", "expected", 11282, "tracklets", 10)


def test_g2a_vreid_with_queries_of_both_cameras(tmp_path, caplog):
    root = tmp_path / "G2A-VReID"
    write_tree(root, G2A_TRAIN, G2A_TEST, [1, 4])
    _, splits = prepare("g2a_vreid", root, tmp_path)
    says(caplog.text, "cameras", "[1, 2]")
    assert {record["platform"] for members in splits.values() for record in members} == {0}
