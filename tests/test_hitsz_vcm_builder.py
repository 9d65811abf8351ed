"""The HITSZ-VCM builder on small trees of the true layout: every field, and how what is wrong is named."""

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from builder_trees import leftovers
from messages import refuses, says

from jaxreid.data import schema
from jaxreid.data.build import build, main
from jaxreid.data.builders import builder_class
from jaxreid.data.building import recorder
from jaxreid.data.prepared import read_metadata
from jaxreid.errors import DataSetError

_builder = builder_class("hitsz_vcm").__module__.rsplit(".", 1)[0]
listing = importlib.import_module(f"{_builder}.listing")
published = importlib.import_module(f"{_builder}.published")

IR, RGB = 1, 2


@dataclasses.dataclass
class Row:
    """A tracklet as the test lays it out."""

    folder: str
    modality: int
    camera: int
    tracklet: int
    frames: list[int]

    @property
    def name(self):
        return f"{self.folder}M{self.modality}D{self.camera}T{self.tracklet}"

    @property
    def home(self):
        return f"{self.folder}/{'ir' if self.modality == IR else 'rgb'}/D{self.camera}"


def recording(folder, modality, camera, *lengths):
    """Rows cut from one recording; the files' numbers have gaps and go on from row to row."""
    rows, frame = [], 1
    for tracklet, length in enumerate(lengths, start=1):
        rows.append(Row(folder, modality, camera, tracklet, [frame + 5 * i for i in range(length)]))
        frame += 5 * length
    return rows


TRAIN = [
    *recording("0001", RGB, 3, 12, 14),
    *recording("0001", IR, 10, 12, 11),  # 11 is too short
    *recording("0002", RGB, 3, 13, 2),
    *recording("0002", IR, 3, 12, 12),
    *recording("0010", RGB, 10, 12, 12),
    *recording("0010", IR, 3, 13, 12),
]
TEST = [
    *recording("0503", IR, 3, 12, 13),
    *recording("0503", RGB, 10, 14, 12),
    *recording("0504", IR, 3, 12, 5),  # rows 5, 6
    *recording("0504", RGB, 3, 12, 12),
    *recording("0600", IR, 10, 12, 12),
    *recording("0600", RGB, 10, 12, 11),
]
QUERIES = [1, 2, 5, 6, 9, 10]


def jpeg(seed):
    return cv2.imencode(".jpg", np.random.default_rng(seed).integers(0, 255, (16, 8, 3), np.uint8))[1].tobytes()


def write_lists(info, train=TRAIN, test=TEST, queries=QUERIES, separator=" "):
    info.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", train), ("test", test)):
        (info / f"{part}_name.txt").write_text("".join(f"{r.name}F{f}.jpg\n" for r in rows for f in r.frames))
        lines, start = [], 1
        for row in rows:
            end = start + len(row.frames) - 1
            lines.append(f"{row.modality} {start} {end} {int(row.folder)} {row.camera}\n")
            start = end + 1
        (info / f"track_{part}_info.txt").write_text("".join(lines))
    (info / "query_IDX.txt").write_text(separator.join(map(str, queries)) + "\n")


def write_frames(train_root, test_root):
    for seed, (root, row) in enumerate([(train_root, r) for r in TRAIN] + [(test_root, r) for r in TEST]):
        (root / row.home).mkdir(parents=True, exist_ok=True)
        for frame in row.frames:
            (root / row.home / f"{frame}.jpg").write_bytes(jpeg((seed, frame)))


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "HITSZ-VCM"
    write_frames(root / "Train", root / "Test")
    write_lists(root / "info")
    return root


@pytest.fixture
def as_published(monkeypatch):
    """The published figures are those of the small tree."""
    figures = {
        "train": {"tracklets": {"ir": 5, "rgb": 5}, "frames": {"ir": 61, "rgb": 63}, "identities": 3, "cameras": 2},
        "query": {"tracklets": {"ir": 5}, "frames": {"ir": 61}, "identities": 3, "cameras": 2},
        "gallery": {"tracklets": {"rgb": 5}, "frames": {"rgb": 62}, "identities": 3, "cameras": 2},
    }
    monkeypatch.setattr(listing, "PUBLISHED", figures)
    monkeypatch.setattr(listing, "LISTED", {"train": {"tracklets": 12, "frames": 137}, "test": {"frames": 139}})


def prepare(root, tmp_path, **options):
    path = build("hitsz_vcm", source=root, data_dir=tmp_path / "data", **{"strict_counts": False, **options})
    builder = tfds.builder_from_directory(str(path))
    return path, {name: list(builder.as_data_source(name)) for name in builder.info.splits}


def error(root, tmp_path, **options):
    with pytest.raises(DataSetError) as raised:
        build("hitsz_vcm", source=root, data_dir=tmp_path / "data", **{"strict_counts": False, **options})
    assert leftovers(tmp_path / "data") == [], "a refused set must leave nothing"
    return str(raised.value)


def spot(rows, name):
    return next(row for row in rows if row.name == name)


def check(records, rows, split, root):
    """Every field of every record, against the layout."""
    assert [record["tracklet_id"].decode() for record in records] == [row.name for row in rows]
    labels = {1: 0, 2: 1, 10: 2} if split == "train" else {}
    for record, row in zip(records, rows, strict=True):
        files = [f"{row.home}/{frame}.jpg" for frame in row.frames]
        assert record["frames"] == [(root / file).read_bytes() for file in files]
        assert [name.decode() for name in record["frame_names"]] == files
        assert list(record["frame_index"]) == list(range(len(files))) and record["num_frames_source"] == len(files)
        assert record["pid"] == int(row.folder) and record["label"] == labels.get(int(row.folder), -1)
        assert record["camid"] == row.camera and record["cam_name"].decode() == f"D{row.camera}"
        assert schema.MODALITIES[record["modality"]] == ("ir" if row.modality == IR else "rgb")
        assert record["recording"].decode() == row.home and record["pair_id"] == b""
        assert schema.ROLES[record["role"]] == split and schema.PLATFORMS[record["platform"]] == "ground"
        assert record["session"] == -1 and record["clothes_id"] == -1
        assert record["source"].startswith(b"hitsz_vcm/min12_unchecked 1.0.0 lists ")


LONG_TRAIN = [row for row in TRAIN if len(row.frames) >= 12]
LONG_QUERY = [TEST[n - 1] for n in QUERIES if len(TEST[n - 1].frames) >= 12]
LONG_GALLERY = [row for n, row in enumerate(TEST, 1) if n not in QUERIES and len(row.frames) >= 12]


@pytest.mark.parametrize("layout", ["Train and Test", "merged", "lists beside the identities"])
def test_every_field_in_the_order_of_the_lists(tmp_path, layout, monkeypatch):
    root = tmp_path / "HITSZ-VCM"
    train, test = (root / "Train", root / "Test") if layout == "Train and Test" else (root, root)
    write_frames(train, test)
    separator = "\n" if layout == "merged" else " "
    write_lists(root if layout == "lists beside the identities" else root / "info", separator=separator)
    monkeypatch.setattr(recorder, "FRAMES_PER_SHARD", 30)  # several files per split
    path, splits = prepare(root, tmp_path)
    assert len(list(path.glob("*-train.array_record-*"))) == 5
    assert list(splits) == ["train", "query", "gallery"]
    check(splits["train"], LONG_TRAIN, "train", train)
    check(splits["query"], LONG_QUERY, "query", test)
    check(splits["gallery"], LONG_GALLERY, "gallery", test)
    # First and last frame of the first, a middle and the last tracklet, written out.
    for split, index, first, last in (
        ("train", 0, "0001/rgb/D3/1.jpg", "0001/rgb/D3/56.jpg"),
        ("train", 1, "0001/rgb/D3/61.jpg", "0001/rgb/D3/126.jpg"),
        ("train", 4, "0002/ir/D3/1.jpg", "0002/ir/D3/56.jpg"),
        ("train", 9, "0010/ir/D3/66.jpg", "0010/ir/D3/121.jpg"),
        ("query", 0, "0503/ir/D3/1.jpg", "0503/ir/D3/56.jpg"),
        ("query", 2, "0504/ir/D3/1.jpg", "0504/ir/D3/56.jpg"),
        ("query", 4, "0600/ir/D10/61.jpg", "0600/ir/D10/116.jpg"),
        ("gallery", 0, "0503/rgb/D10/1.jpg", "0503/rgb/D10/66.jpg"),
        ("gallery", 4, "0600/rgb/D10/1.jpg", "0600/rgb/D10/56.jpg"),
    ):
        names = [name.decode() for name in splits[split][index]["frame_names"]]
        assert (names[0], names[-1]) == (first, last)


def test_what_is_noted_of_the_set(tree, tmp_path, as_published, capsys):
    path = build("hitsz_vcm", source=tree, data_dir=tmp_path / "data")
    assert path == tmp_path / "data" / "hitsz_vcm" / "min12" / "1.0.0"
    facts = read_metadata(path)
    assert facts["protocols"] == ["cross_modal_cam"]
    assert facts["cameras"] == [
        {"number": 3, "name": "D3", "modality": "ir+rgb"},
        {"number": 10, "name": "D10", "modality": "ir+rgb"},
    ]
    assert facts["train_pids"] == [1, 2, 10] and facts["min_frames"] == 12
    assert facts["counts"] == {
        "train": {"tracklets": 10, "frames": 124, "identities": 3, "cameras": 2, "ir": 5, "rgb": 5},
        "query": {"tracklets": 5, "frames": 61, "identities": 3, "cameras": 2, "ir": 5},
        "gallery": {"tracklets": 5, "frames": 62, "identities": 3, "cameras": 2, "rgb": 5},
    }
    assert facts["dropped_tracklets"] == {"train": 2, "query": 1, "gallery": 1}
    assert facts["excluded_frames"] == facts["warnings"] == facts["differences"] == []
    assert facts["source"] == str(tree) and "academic" in facts["licence"] and len(facts["lists"]) == 12
    assert main(["hitsz_vcm", "--data_dir", str(tmp_path / "data")]) == 0
    says(capsys.readouterr().out, "query", 5, "tracklets", 61, "frames", 3, "identities", 2, "cameras", "ir")


def test_the_least_number_of_frames_is_part_of_the_name(tree, tmp_path):
    path, splits = prepare(tree, tmp_path, min_frames=1)
    assert path.parent.name == "min1_unchecked"
    check_names = {name: [record["tracklet_id"].decode() for record in records] for name, records in splits.items()}
    assert check_names["train"] == [row.name for row in TRAIN]
    assert check_names["query"] == [TEST[number - 1].name for number in QUERIES]
    assert read_metadata(path)["dropped_tracklets"] == {"train": 0, "query": 0, "gallery": 0}
    assert build("hitsz_vcm/min1_unchecked", data_dir=tmp_path / "data") == path
    says(error(tree, tmp_path / "other", min_frames=30), "tracklet", "train", "query", "gallery")


def test_queries_are_taken_in_their_own_order(tree, tmp_path):
    write_lists(tree / "info", queries=[10, 1, 5])
    splits = listing.list_dataset(tree).splits
    assert [tracklet.tracklet_id for tracklet in splits["query"]] == ["0600M1D10T2", "0503M1D3T1", "0504M1D3T1"]
    assert "2 infrared tracklets are not in query_IDX.txt" not in str(listing.list_dataset(tree).warnings)
    says(str(listing.list_dataset(tree).warnings), 3, "infrared", "tracklets", "query_IDX.txt")


def test_counts_that_are_not_the_published_ones(tree, tmp_path, caplog):
    message = error(tree, tmp_path, strict_counts=True)
    says(message, "lists", tree, "set")
    says(message, "train", "expected", 11061, "tracklets", 12)
    says(message, "train", "expected", 232496, "frames", 137)
    says(message, "train", "expected", 500, "identities", 3)
    says(message, "test", "expected", 230763, "frames", 139)
    says(message, "query", "expected", 5159, "ir", "tracklets", 6)
    says(message, "gallery", "expected", 427, "identities", 3)
    says(message, "splits", "expected", 12, "cameras", 2)
    says(message, "train", "expected", 4291, "ir", "tracklets", 5, 12, "frames")
    says(message, "gallery", "expected", 118137, "rgb", "frames", 62, 12)
    says(message, "--option", "strict_counts=False")
    path, _ = prepare(tree, tmp_path)
    says(caplog.text, "train", "expected", 11061, "tracklets", 12)
    says(read_metadata(path)["differences"], "query", "expected", 5159, "ir", "tracklets", 6)
    # What was built so never passes for the published set.
    with refuses(DataSetError, "source"):
        build("hitsz_vcm", data_dir=tmp_path / "data")


def test_one_row_more_or_less_is_noticed(tree, tmp_path, as_published):
    write_lists(tree / "info", train=TRAIN[:-1])
    says(error(tree, tmp_path, strict_counts=True), "train", "expected", 12, "tracklets", 11)


def test_published_figures_are_consistent():
    """Totals that the authors publish: 927 people, 21,863 tracklets, 463,259 frames."""
    listed, kept = published.LISTED, published.PUBLISHED
    assert listed["train"]["tracklets"] + listed["test"]["tracklets"] == 21863
    assert listed["train"]["frames"] + listed["test"]["frames"] == 463259
    assert listed["train"]["identities"] + listed["test"]["identities"] == 927
    assert listed["query"]["tracklets"]["ir"] + listed["gallery"]["tracklets"]["rgb"] == listed["test"]["tracklets"]
    assert sum(kept["train"]["tracklets"].values()) == 9751 and sum(kept["train"]["frames"].values()) == 224757
    assert kept["query"]["frames"]["ir"] + kept["gallery"]["frames"]["rgb"] == 224116


def test_damaged_and_missing_frames_are_named_counted_and_left_out(tree, tmp_path, caplog, as_published):
    cut = tree / "Train" / "0001" / "rgb" / "D3" / "6.jpg"
    cut.write_bytes(cut.read_bytes()[:-30])
    (tree / "Test" / "0503" / "ir" / "D3" / "56.jpg").unlink()
    # 12 frames are listed, 11 are left: the rule looks at the list.
    path, splits = prepare(tree, tmp_path, strict_counts=True)
    first, query = splits["train"][0], splits["query"][0]
    assert list(first["frame_index"]) == [0, *range(2, 12)] and first["num_frames_source"] == 12
    assert [name.decode() for name in first["frame_names"]][:2] == ["0001/rgb/D3/1.jpg", "0001/rgb/D3/11.jpg"]
    assert list(query["frame_index"]) == list(range(11)) and query["num_frames_source"] == 12
    home = tree / "Train" / "0001" / "rgb" / "D3"
    assert first["frames"] == [(home / f"{frame}.jpg").read_bytes() for frame in TRAIN[0].frames if frame != 6]
    facts = read_metadata(path)
    assert facts["excluded_frames"] == [
        {"path": "Test/0503/ir/D3/56.jpg", "fault": "is missing"},
        {"path": "Train/0001/rgb/D3/6.jpg", "fault": "truncated: no end-of-image marker"},
    ]
    assert facts["counts"]["train"]["frames"] == 123 and facts["counts"]["query"]["frames"] == 60
    says(caplog.text, "2 of 247", "frames")
    says(caplog.text, f"{tree}/Test/0503/ir/D3/56.jpg", "missing")


def test_too_many_damaged_frames_are_an_error_as_soon_as_they_are_met(tree, tmp_path):
    for number in (1, 6, 11):
        (tree / "Train" / "0001" / "rgb" / "D3" / f"{number}.jpg").write_bytes(b"")
    message = error(tree, tmp_path, max_excluded=0.01)  # of 247 frames: two are allowed
    says(message, "3 of 247", "frames", "1.2%", "1.0%")
    says(message, f"{tree}/Train/0001/rgb/D3/11.jpg", "empty")
    (tree / "Train" / "0001" / "rgb" / "D3" / "1.jpg").write_bytes(jpeg(0))
    assert len(read_metadata(prepare(tree, tmp_path, max_excluded=0.01)[0])["excluded_frames"]) == 2


def test_frames_that_are_elsewhere_are_an_error_with_the_expected_tree(tree, tmp_path):
    (tree / "Test").rename(tree / "test_images")
    message = error(tree, tmp_path)
    says(message, "123 of 247", "frames", "49.8%")
    says(message, "113 more")
    says(message, f"{tree}/Test/0503/ir/D3/1.jpg", "missing")
    assert "DIR/Test/0503/ir/D1/1.jpg" in message
    says(message, "expected")
    says(message, "DIR/info/train_name.txt")


def test_a_tracklet_without_a_whole_frame(tree, tmp_path, caplog, as_published, monkeypatch):
    for frame in spot(TRAIN, "0002M1D3T1").frames:
        path = tree / "Train" / "0002" / "ir" / "D3" / f"{frame}.jpg"
        path.write_bytes(path.read_bytes()[:100])
    message = error(tree, tmp_path, strict_counts=True, max_excluded=0.1)
    says(message, "frame", "tracklet", "0002M1D3T1", "set")
    monkeypatch.setattr(recorder, "FRAMES_PER_SHARD", 12)  # a file of its own, that stays empty
    path, splits = prepare(tree, tmp_path, max_excluded=0.1)
    says(caplog.text, "tracklet", "0002M1D3T1", "frame")
    assert [r["tracklet_id"].decode() for r in splits["train"]] == [
        row.name for row in LONG_TRAIN if row.name != "0002M1D3T1"
    ]
    assert read_metadata(path)["counts"]["train"]["tracklets"] == 9
    assert build("hitsz_vcm", strict_counts=False, data_dir=tmp_path / "data") == path


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        # Row 2 is frames 13 to 26 of 0001M2D3T2.
        (
            "track_train_info.txt",
            "2 13 26 1 3",
            "1 13 26 1 3",
            (
                "track_train_info.txt",
                "row 2",
                "1 13 26 1 3",
                "0001M2D3T2F61.jpg",
                "line 13",
                "modality 2",
                "identity 1",
                "camera 3",
                "row",
                "modality 1",
            ),
        ),
        (
            "track_train_info.txt",
            "2 13 26 1 3",
            "2 13 26 2 3",
            ("row 2", "0001M2D3T2F61.jpg", "row", "modality 2", "identity 2", "camera 3"),
        ),
        (
            "track_train_info.txt",
            "2 13 26 1 3",
            "2 13 26 1 4",
            ("row 2", "0001M2D3T2F61.jpg", "identity 1", "camera 4"),
        ),
        # A row that begins one too early shows it at its first frame.
        ("track_train_info.txt", "1 27 38 1 10", "1 26 38 1 10", ("row 3", "0001M2D3T2F126.jpg", "line 26")),
        (
            "track_train_info.txt",
            "2 13 26 1 3",
            "2 13 26 1",
            ("row 2", "2 13 26 1", "'modality start end identity camera'"),
        ),
        ("track_train_info.txt", "2 13 26 1 3", "3 13 26 1 3", ("row 2", "3 13 26 1 3", "modality 1", 2)),
        ("track_train_info.txt", "2 1 12 1 3", "2 0 12 1 3", ("row 1", "frames", 0, 12)),
        (
            "track_test_info.txt",
            "2 129 139 600 10",
            "2 129 140 600 10",
            ("row 12", "frames", 129, 140, 139, "names"),
        ),
        ("track_train_info.txt", "2 13 26 1 3", "2 1 12 1 3", (1, "tracklets", "several", "rows", "0001M2D3T1F1")),
        (
            "test_name.txt",
            "0503M1D3T1F1.jpg",
            "0503M1D3T1.jpg",
            ("track_test_info.txt", "row 1", "'0503M1D3T1.jpg'", "line 1", "name"),
        ),
        ("query_IDX.txt", "1 2 5", "1 3 5", ("row 3", "0503M2D10T1", "visible", "queries", "infrared")),
        ("query_IDX.txt", "1 2 5", "0 2 5", ("row 0", "test", 12, "rows")),
        ("query_IDX.txt", "10", "13", ("row 13",)),
        ("query_IDX.txt", "1 2 5", "1 1 5", ("names", 1, "rows", "once")),
        ("query_IDX.txt", "1 2 5", "one 2 5", ("row", "numbers")),
    ],
)
def test_lists_that_contradict_each_other(tree, file, old, new, named):
    edit(tree / "info" / file, old, new)
    with refuses(DataSetError, *named):
        listing.list_dataset(tree)


def test_lists_may_be_written_as_real_numbers(tree):
    expected = listing.list_dataset(tree).splits
    info = tree / "info" / "track_train_info.txt"
    rows = [" ".join(f"{float(cell):.8e}" for cell in line.split()) for line in info.read_text().splitlines()]
    info.write_text("\r\n".join(rows) + "\r\n\r\n")
    assert listing.list_dataset(tree).splits == expected


def test_frames_in_no_row_are_named_and_rows_that_share_a_number_are_told_apart(tree):
    edit(tree / "info" / "track_train_info.txt", "2 13 26 1 3", "2 14 26 1 3")
    says(str(listing.list_dataset(tree).warnings), 136, "frames")
    rows = [dataclasses.replace(row, tracklet=1) for row in TRAIN]
    write_lists(tree / "info", train=rows)
    assert [tracklet.tracklet_id for tracklet in listing.list_dataset(tree).splits["train"][:3]] == [
        "0001M2D3T1F1", "0001M2D3T1F61", "0001M1D10T1F1",
    ]  # fmt: skip


def test_missing_lists_and_directories(tree, tmp_path):
    (tree / "info" / "query_IDX.txt").unlink()
    message = error(tree, tmp_path)
    says(message, "query_IDX.txt", "missing", f"{tree}/info", tree)
    says(message, "expected")
    says(message, "DIR/info/train_name.txt")
    shutil.rmtree(tree)
    message = error(tree, tmp_path)
    says(message, tree, "directory")
    says(message, "jaxreid build hitsz_vcm --source DIR")
    tree.mkdir()
    says(error(tree, tmp_path), "train_name.txt", "track_train_info.txt", "test_name.txt")


def test_a_prepared_set_is_found_without_its_source_and_without_heavy_imports(tree, tmp_path):
    path, _ = prepare(tree, tmp_path)
    written = (path / "dataset_info.json").stat().st_mtime_ns
    assert build("hitsz_vcm", source=tree, data_dir=tmp_path / "data", strict_counts=False) == path
    shutil.rmtree(tree)
    assert build("hitsz_vcm", source=tree, data_dir=tmp_path / "data", strict_counts=False) == path
    code = """
import json, sys
from jaxreid.data.build import build
path = build("hitsz_vcm/min12_unchecked", data_dir=sys.argv[1])
heavy = [m for m in ("tensorflow_datasets", "jax", "cv2", "numpy", "tensorflow") if m in sys.modules]
print(json.dumps([str(path), heavy]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data")], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [str(path), []]
    assert (path / "dataset_info.json").stat().st_mtime_ns == written


def test_neither_prepared_nor_a_source(tmp_path, capsys):
    assert main(["hitsz_vcm", "--data_dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    says(message, "hitsz_vcm", "source")
    says(message, "github.com/VCM-project233/HITSZ-VCM-data")
    says(message, "academic use")
    says(message, "DIR/info/train_name.txt")
    says(message, "jaxreid build hitsz_vcm --source DIR")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "options", "named"),
    [
        ("all", {}, ("'all'", "min12", "min<N>")),
        ("min0", {}, ("'min0'",)),
        ("min12", {"min_frames": 4}, ("min_frames=4", "'min12'", "min_frames=12")),
        ("min12", {"strict_counts": False}, ("strict_counts=False",)),
        (None, {"min_frames": 0}, ("min_frames", 1)),
        (None, {"min_frames": "12"}, ("min_frames", "whole", "number", "'12'")),
        (None, {"strict_counts": "no"}, ("strict_counts", "'no'")),
        (None, {"max_excluded": 5}, ("max_excluded", "share", 0, 1, 5)),
        (None, {"fake_ir": True}, ("fake_ir",)),
    ],
)
def test_configurations_and_options_that_are_refused(tree, tmp_path, config, options, named):
    with refuses(DataSetError, *named):
        build("hitsz_vcm", config, source=tree, data_dir=tmp_path / "data", **options)


def test_as_an_ordinary_tfds_builder(tree, tmp_path, as_published):
    """`tfds build --manual_dir` opens the class without a configuration, or with a name of one."""
    builder = builder_class("hitsz_vcm")(data_dir=str(tmp_path / "data"))
    builder.download_and_prepare(
        file_format="array_record", download_config=tfds.download.DownloadConfig(manual_dir=str(tree))
    )
    assert builder.info.splits["gallery"].num_examples == 5
