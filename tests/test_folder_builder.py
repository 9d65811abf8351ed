"""The folder builder: what it makes of good trees, and how it names what is wrong with bad ones."""

import csv
import importlib
import os
import re

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from messages import refuses, says

from jaxreid.data import schema
from jaxreid.data.build import build
from jaxreid.data.builders import builder_class
from jaxreid.data.building import images
from jaxreid.data.building.listed import natural_key
from jaxreid.data.prepared import read_metadata
from jaxreid.errors import DataSetError

builder_class("folder")
_builder = builder_class("folder").__module__.rsplit(".", 1)[0]
listing = importlib.import_module(f"{_builder}.listing")

COLUMNS = ["camera", "tracklet", "identity", "modality", "split"]


def jpeg(number, size=(16, 8)):
    frame = np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)
    return cv2.imencode(".jpg", frame)[1].tobytes()


def png(number):
    return cv2.imencode(".png", np.full((16, 8, 3), number, np.uint8))[1].tobytes()


@pytest.fixture
def tree(tmp_path):
    """Cameras a, b, c with tracklets t1, t2 of three frames each, whose numbers do not sort as text."""
    root = tmp_path / "my cameras"
    for camera in "abc":
        for tracklet in ("t1", "t2"):
            folder = root / camera / tracklet
            folder.mkdir(parents=True)
            for frame in (2, 10, 1):
                (folder / f"{frame}.jpg").write_bytes(jpeg(100 * ord(camera) + 50 * int(tracklet[1]) + frame))
    return root


def write_table(root, rows, columns=COLUMNS):
    with (root / "tracklets.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


GOOD_ROWS = [
    ["a", "t1", "7", "rgb", "train"],
    ["a", "t2", "12", "rgb", "gallery"],
    ["b", "t1", "3", "rgb", "train"],
    ["b", "t2", "12", "rgb", "query"],
    ["c", "t1", "", "rgb", "train"],
    ["c", "t2", "5", "rgb", "gallery"],
]


def changed(row, column, value):
    rows = [list(cells) for cells in GOOD_ROWS]
    rows[row][COLUMNS.index(column)] = value
    return rows


def prepared(root, tmp_path, **options):
    path = build("folder", source=root, data_dir=tmp_path / "data", **options)
    builder = tfds.builder_from_directory(str(path))
    return path, {name: list(builder.as_data_source(name)) for name in builder.info.splits}


def error(root, tmp_path, **options):
    with pytest.raises(DataSetError) as raised:
        build("folder", source=root, data_dir=tmp_path / "data", **options)
    assert not list((tmp_path / "data").rglob("*.array_record*")), "a refused folder must leave no records"
    return str(raised.value)


def test_without_a_table_everything_is_in_every_split_and_nobody_scores(tree, tmp_path):
    path, splits = prepared(tree, tmp_path)
    assert set(splits) == {"train", "query", "gallery"}
    facts = read_metadata(path)
    assert facts["protocols"] == ["none"] and facts["excluded_frames"] == []
    assert [camera["name"] for camera in facts["cameras"]] == ["a", "b", "c"]
    for name, records in splits.items():
        assert [record["tracklet_id"].decode() for record in records] == [
            f"{c}/{t}" for c in "abc" for t in ("t1", "t2")
        ]
        assert {schema.ROLES[record["role"]] for record in records} == {name}
        assert {record["pid"] for record in records} == {-1} and {record["label"] for record in records} == {-1}
        assert [record["camid"] for record in records] == [1, 1, 2, 2, 3, 3]


def test_frames_keep_their_bytes_in_the_order_of_their_numbers(tree, tmp_path):
    _, splits = prepared(tree, tmp_path)
    for record in splits["train"]:
        folder = tree / record["tracklet_id"].decode()
        assert record["frames"] == [(folder / f"{n}.jpg").read_bytes() for n in (1, 2, 10)]
        assert [name.decode() for name in record["frame_names"]] == [
            f"{record['tracklet_id'].decode()}/{n}.jpg" for n in (1, 2, 10)
        ]
        assert list(record["frame_index"]) == [0, 1, 2] and record["num_frames_source"] == 3


def test_table_gives_splits_identities_and_labels(tree, tmp_path):
    rows = [[*row, f"rec{i % 2}", "1.5", "2.5"] for i, row in enumerate(GOOD_ROWS)]
    write_table(tree, rows, [*COLUMNS, "recording", "start_time", "end_time"])
    path, splits = prepared(tree, tmp_path)
    assert {name: [r["tracklet_id"].decode() for r in records] for name, records in splits.items()} == {
        "train": ["a/t1", "b/t1", "c/t1"],
        "query": ["b/t2"],
        "gallery": ["a/t2", "c/t2"],
    }
    # Labels count the sorted training identities 3 and 7; an unknown one has none.
    assert [(r["pid"], r["label"]) for r in splits["train"]] == [(7, 1), (3, 0), (-1, -1)]
    assert [(r["pid"], r["label"]) for r in splits["gallery"]] == [(12, -1), (5, -1)]
    assert [r["recording"].decode() for r in splits["gallery"]] == ["rec1", "rec1"]
    facts = read_metadata(path)
    assert facts["protocols"] == ["market"] and facts["train_pids"] == [3, 7]
    assert facts["counts"]["train"] == {"tracklets": 3, "frames": 9, "identities": 2, "cameras": 3}
    assert (path / "tracklets.csv").read_bytes() == (tree / "tracklets.csv").read_bytes()


def test_identities_may_be_names(tree, tmp_path):
    names = {"7": "zoe", "12": "adam", "3": "mia", "5": "ben", "": ""}
    write_table(tree, [[c, t, names[i], m, s] for c, t, i, m, s in GOOD_ROWS])
    path, splits = prepared(tree, tmp_path)
    assert [(r["pid"], r["label"]) for r in splits["train"]] == [(4, 1), (3, 0), (-1, -1)]
    assert read_metadata(path)["identity_names"] == {"1": "adam", "2": "ben", "3": "mia", "4": "zoe"}


def test_both_modalities_under_test_are_scored_across_them(tree, tmp_path):
    write_table(tree, changed(3, "modality", "ir"))
    path, splits = prepared(tree, tmp_path)
    assert read_metadata(path)["protocols"] == ["cross_modal_cam"] and read_metadata(path)["warnings"] == []
    assert [schema.MODALITIES[r["modality"]] for r in splits["query"]] == ["ir"]
    assert {c["name"]: c["modality"] for c in read_metadata(path)["cameras"]} == {"a": "rgb", "b": "ir+rgb", "c": "rgb"}


def test_modality_counts_among_test_tracklets_only(tree, tmp_path):
    write_table(tree, changed(0, "modality", "ir"))
    assert read_metadata(prepared(tree, tmp_path)[0])["protocols"] == ["market"]


def test_test_tracklets_without_identities_are_not_scored(tree, tmp_path):
    write_table(tree, [[c, t, i if s == "train" else "", m, s] for c, t, i, m, s in GOOD_ROWS])
    path, splits = prepared(tree, tmp_path)
    assert read_metadata(path)["protocols"] == ["none"] and len(splits["gallery"]) == 2


def test_train_only(tree, tmp_path):
    write_table(tree, [[c, t, i, m, "train"] for c, t, i, m, _ in GOOD_ROWS])
    _, splits = prepared(tree, tmp_path)
    assert set(splits) == {"train"} and len(splits["train"]) == 6


def test_an_unchanged_folder_is_not_built_again_and_a_changed_one_is(tree, tmp_path):
    first = build("folder", source=tree, data_dir=tmp_path / "data")
    written = (first / "dataset_info.json").stat().st_mtime_ns
    assert build("folder", source=tree, data_dir=tmp_path / "data") == first
    assert (first / "dataset_info.json").stat().st_mtime_ns == written
    assert re.fullmatch(r"my_cameras-[0-9a-f]{12}", first.parent.name)
    frame = tree / "a" / "t1" / "1.jpg"
    os.utime(frame, ns=(1, 1))  # same name, same size, written at another time
    second = build("folder", source=tree, data_dir=tmp_path / "data")
    assert second != first
    write_table(tree, GOOD_ROWS)
    third = build("folder", source=tree, data_dir=tmp_path / "data")
    (tree / "c" / "t2" / "11.png").write_bytes(png(3))
    fourth = build("folder", source=tree, data_dir=tmp_path / "data")
    assert len({first, second, third, fourth}) == 4 and first.exists()


def test_damaged_frames_are_named_counted_and_left_out(tree, tmp_path, caplog):
    whole = (tree / "b" / "t1" / "2.jpg").read_bytes()
    (tree / "b" / "t1" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    path, splits = prepared(tree, tmp_path, max_excluded=0.1)
    record = next(r for r in splits["train"] if r["tracklet_id"] == b"b/t1")
    assert list(record["frame_index"]) == [0, 2] and record["num_frames_source"] == 3
    facts = read_metadata(path)
    assert facts["excluded_frames"] == [{"path": "b/t1/2.jpg", "fault": "truncated: no end-of-image marker"}]
    assert facts["counts"]["train"]["frames"] == 17
    says(caplog.text, "1 of 18", "frames")
    says(caplog.text, f"{tree}/b/t1/2.jpg", "truncated")


def test_too_many_damaged_frames_are_an_error_that_lists_the_first_ten(tree, tmp_path):
    for number, path in enumerate(sorted(tree.rglob("*.jpg"))[:12]):
        path.write_bytes(b"" if number == 0 else path.read_bytes()[:200])
    message = error(tree, tmp_path)
    says(message, "12 of 18", "frames", "66.7%", "5.0%")
    says(message, f"{tree}/a/t1/1.jpg", "empty")
    says(message, "2 more")
    assert message.count("truncated") == 9
    # One of eighteen is above five per cent, too.
    for path in tree.rglob("*.jpg"):
        path.write_bytes(jpeg(0))
    (tree / "a" / "t1" / "1.jpg").write_bytes(b"GIF89a")
    assert "neither JPEG nor PNG" in error(tree, tmp_path)
    says(error(tree, tmp_path), "1 of 18", "frames", "5.6%")


def test_a_tracklet_without_a_whole_frame_is_named_and_left_out(tree, tmp_path, caplog):
    for path in (tree / "c" / "t2").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    _, splits = prepared(tree, tmp_path, max_excluded=0.5)
    assert len(splits["train"]) == 5
    says(caplog.text, "tracklet", "c/t2", "frame")
    write_table(tree, [[*row[:4], "val" if row[:2] == ["c", "t2"] else row[4]] for row in GOOD_ROWS])
    says(error_only(tree, tmp_path, max_excluded=0.5), "frame", "splits", "['val']")


def error_only(root, tmp_path, **options):
    with pytest.raises(DataSetError) as raised:
        build("folder", source=root, data_dir=tmp_path / "data", **options)
    return str(raised.value)


def test_a_camera_with_one_tracklet_is_fine_but_named(tree, tmp_path, caplog):
    for path in (tree / "c" / "t2").iterdir():
        path.unlink()
    (tree / "c" / "t2").rmdir()
    path, splits = prepared(tree, tmp_path)
    assert len(splits["train"]) == 5
    says(caplog.text, "camera c", "one tracklet")
    assert len(read_metadata(path)["warnings"]) == 1


def test_identities_in_train_and_test_are_named(tree, tmp_path, caplog):
    write_table(tree, changed(0, "identity", "12"))
    prepared(tree, tmp_path)
    says(caplog.text, 1, "identities", "train", "test", "splits", 12)


def test_files_that_are_no_images_are_named(tree, tmp_path, caplog):
    (tree / "a" / "t1" / "Thumbs.db").write_bytes(b"x")
    (tree / "a" / "t1" / ".DS_Store").write_bytes(b"x")  # hidden files are everywhere and say nothing
    _, splits = prepared(tree, tmp_path)
    says(caplog.text, f"{tree}/a/t1", 1, "files", "images", "Thumbs.db")
    assert splits["train"][0]["num_frames_source"] == 3


def test_layouts_that_are_refused(tree, tmp_path):
    says(error(tree / "nowhere", tmp_path), tree / "nowhere", "directory")
    (tmp_path / "empty").mkdir()
    says(error(tmp_path / "empty", tmp_path), "tracklets", "expected")
    (tree / "a" / "t3").mkdir()
    (tree / "b" / "loose.jpg").write_bytes(jpeg(0))
    message = error(tree, tmp_path)
    says(message, f"{tree}/a/t3", "image")
    says(message, f"{tree}/b", "images", "camera's", "loose.jpg")
    with refuses(DataSetError, "--source"):
        build("folder", data_dir=tmp_path / "data")
    with refuses(DataSetError, "configuration", "--source"):
        build("folder/x", source=tree, data_dir=tmp_path / "data")


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (
            [*GOOD_ROWS, ["d", "t9", "1", "rgb", "train"]],
            ("row 8", "my cameras/d/t9", "remove"),
        ),
        ([*GOOD_ROWS, GOOD_ROWS[2]], ("row 8", "b/t1", "row 4", "keep one")),
        (GOOD_ROWS[:-1], ("no row", "1 tracklet", "c/t2")),
        (changed(1, "modality", "thermal"), ("row 3", "modality", "'thermal'", "rgb", "ir")),
        (changed(1, "split", "test"), ("row 3", "split", "'test'", "train")),
        (changed(1, "split", ""), ("1 rows", "split", "a/t2")),
        (changed(3, "split", "train"), ("gallery", "query")),
        (changed(3, "identity", ""), (1, "query", "gallery", "identity", "b/t2")),
        ([[c, t, i, m, ""] for c, t, i, m, _ in GOOD_ROWS], ("identities", "splits")),
        ([*GOOD_ROWS[:-1], ["c", "t2", "5", "rgb", "gallery", "x"]], ("row 7", "columns")),
    ],
)
def test_tables_that_are_refused(tree, tmp_path, rows, named):
    write_table(tree, rows)
    says(error(tree, tmp_path), "tracklets.csv", *named)


def test_tables_with_bad_columns_times_or_text_are_refused(tree, tmp_path):
    write_table(tree, [row[:4] for row in GOOD_ROWS], COLUMNS[:4])
    says(error(tree, tmp_path), "columns", "['split']")
    for start, end, *named in (
        ("5", "2", "end_time", "2.0", "start_time", "5.0"),
        ("noon", "", "start_time", "'noon'"),
    ):
        write_table(tree, [[*row, start, end] for row in GOOD_ROWS], [*COLUMNS, "start_time", "end_time"])
        says(error(tree, tmp_path), "row 2", *named)
    (tree / "tracklets.csv").write_bytes(b"\xff\xfe\x00")
    says(error(tree, tmp_path), "UTF-8", "table")


def test_every_cut_of_a_picture_is_found():
    pictures = {
        "baseline": jpeg(1, (40, 30)),
        "progressive": cv2.imencode(
            ".jpg", np.random.default_rng(2).integers(0, 255, (40, 30, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
        )[1].tobytes(),
        "restarts": cv2.imencode(
            ".jpg", np.random.default_rng(3).integers(0, 255, (40, 30, 3), np.uint8), [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
        )[1].tobytes(),
        "png": cv2.imencode(".png", np.random.default_rng(4).integers(0, 255, (20, 10, 3), np.uint8))[1].tobytes(),
    }
    for name, data in pictures.items():
        assert images.image_fault(data) is None, name
        assert images.image_fault(data + b"\x00" * 7) is None, f"{name}: cameras pad their files"
        assert [cut for cut in range(len(data)) if images.image_fault(data[:cut]) is None] == [], name


def test_a_cut_picture_with_a_thumbnail_is_found():
    """The end-of-image marker of the thumbnail in the header is not the picture's."""
    picture, thumbnail = jpeg(5, (40, 30)), jpeg(6)
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    data = picture[:2] + segment + picture[2:]
    assert images.image_fault(data) is None
    assert images.image_fault(data[:-400]) == "truncated: no end-of-image marker"


def test_damaged_png_chunk_is_found():
    data = bytearray(png(9))
    data[45] ^= 1
    assert "damaged chunk" in images.image_fault(bytes(data))


def test_natural_order():
    names = ["f10.jpg", "f9.jpg", "a.jpg", "10.jpg", "2.jpg", "f09.jpg"]
    assert sorted(names, key=natural_key) == ["2.jpg", "10.jpg", "a.jpg", "f09.jpg", "f9.jpg", "f10.jpg"]
