"""The CCVID builder on small trees of the true layout: sessions, cameras, outfits that mean nothing without the pid."""

import dataclasses
import importlib
import os
import shutil

import pytest
from builder_trees import edit, ends, error, frame_names, ids, picture, prepare
from messages import refuses, says

from jaxreid.data import schema
from jaxreid.data.build import build, main
from jaxreid.data.builders import builder_class
from jaxreid.data.planned import published as planned
from jaxreid.data.prepared import read_metadata
from jaxreid.errors import DataSetError

_builder = builder_class("ccvid").__module__.rsplit(".", 1)[0]
listing = importlib.import_module(f"{_builder}.listing")
published = importlib.import_module(f"{_builder}.published")


@dataclasses.dataclass
class Line:
    """A line of a list as the test lays it out."""

    session: int
    folder: str
    pid: int
    outfit: str
    frames: list[int]

    @property
    def home(self):
        return f"session{self.session}/{self.folder}"

    @property
    def files(self):
        return [f"{self.home}/{frame:05d}.jpg" for frame in self.frames]

    def __str__(self):
        return f"{self.home}\t{self.pid:03d}\t{self.outfit}"


FIRST, SECOND = "u0_l0_s0_c0_a0", "u1_l0_s0_c1_a0"
LISTS = {
    "train": [
        Line(1, "010_01", 10, FIRST, [1, 2, 3]),
        Line(1, "010_12", 10, SECOND, [1, 2]),
        Line(2, "002_01", 2, SECOND, [4, 5]),
        Line(2, "002_03", 2, FIRST, [1, 2, 3, 4]),
        Line(3, "007_01", 7, FIRST, [1, 2]),
        Line(3, "007_12", 7, FIRST, [9, 10, 11, 100000]),  # sorted as text, the last would come first
    ],
    "query": [Line(1, "101_02", 101, FIRST, [1, 2]), Line(3, "102_05", 102, SECOND, [1, 2, 3])],
    "gallery": [
        Line(2, "102_05", 102, FIRST, [1, 2]),
        Line(2, "101_02", 101, SECOND, [1, 2, 3]),
        Line(1, "101_03", 101, FIRST, [5, 6]),
    ],
}
CAMERAS = {"train": [1, 12, 1, 3, 13, 24], "query": [2, 17], "gallery": [5, 2, 3]}
# Rows of the sorted pairs: 2 first, 2 second, 7 first, 10 first, 10 second; 101 and 102 first, second each.
CLOTHES = {"train": [3, 4, 1, 0, 2, 2], "query": [0, 3], "gallery": [2, 1, 0]}


def write_lists(root, lists=LISTS):
    for split, lines in lists.items():
        (root / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "CCVID"
    for line in (line for lines in LISTS.values() for line in lines):
        (root / line.home).mkdir(parents=True)
        for file in line.files:
            (root / file).write_bytes(picture((line.session, line.pid, int(file[-6:-4]))))
    (root / "readme.txt").write_text("CC BY-NC-SA 4.0")
    write_lists(root)
    return root


def test_every_field_in_the_order_of_the_lists(tree, tmp_path):
    path, splits = prepare("ccvid", tree, tmp_path)
    assert path.parent.name == "standard_unchecked" and list(splits) == ["train", "query", "gallery"]
    for split, records in splits.items():
        assert ids(records) == [line.home for line in LISTS[split]]
        labels = {2: 0, 7: 1, 10: 2} if split == "train" else {}
        for number, (record, line) in enumerate(zip(records, LISTS[split], strict=True)):
            assert record["frames"] == [(tree / file).read_bytes() for file in line.files]
            assert frame_names(record) == line.files
            assert list(record["frame_index"]) == list(range(len(line.files)))
            assert record["num_frames_source"] == len(line.files)
            assert record["pid"] == line.pid and record["label"] == labels.get(line.pid, -1)
            camera = CAMERAS[split][number]
            assert record["camid"] == camera and record["cam_name"].decode() == f"C{camera}"
            assert record["session"] == line.session and record["outfit"].decode() == line.outfit
            assert record["clothes_id"] == CLOTHES[split][number]
            assert schema.ROLES[record["role"]] == split and schema.PLATFORMS[record["platform"]] == "ground"
            assert schema.MODALITIES[record["modality"]] == "rgb"
            assert record["location"] == record["scale_class"] == -1
            assert record["source"].startswith(b"ccvid/standard_unchecked 1.0.0 lists ")
            assert b"thinned" not in record["source"]
    for split, index, first, last in (
        ("train", 0, "session1/010_01/00001.jpg", "session1/010_01/00003.jpg"),
        ("train", 3, "session2/002_03/00001.jpg", "session2/002_03/00004.jpg"),
        ("train", 5, "session3/007_12/00009.jpg", "session3/007_12/100000.jpg"),
        ("query", 1, "session3/102_05/00001.jpg", "session3/102_05/00003.jpg"),
        ("gallery", 2, "session1/101_03/00005.jpg", "session1/101_03/00006.jpg"),
    ):
        assert ends(splits[split][index]) == (first, last)


def test_what_is_noted_of_the_set(tree, tmp_path, monkeypatch, capsys):
    figures = {
        "train": {"tracklets": {"rgb": 6}, "frames": {"rgb": 17}, "identities": 3, "outfits": 5, "cameras": 8},
        "query": {"tracklets": {"rgb": 2}, "frames": {"rgb": 5}, "identities": 2},
        "gallery": {"tracklets": {"rgb": 3}, "frames": {"rgb": 7}, "identities": 2},
        "test": {"outfits": 4},
    }
    monkeypatch.setattr(listing, "PUBLISHED", figures)
    monkeypatch.setattr(listing, "SESSIONS", {1: 4, 2: 4, 3: 3})
    path = build("ccvid", source=tree, data_dir=tmp_path / "data")
    assert path == tmp_path / "data" / "ccvid" / "standard" / "1.0.0"
    facts = read_metadata(path)
    assert facts["protocols"] == ["market", "clothes_sc", "clothes_cc"]
    assert [camera["number"] for camera in facts["cameras"]] == [1, 2, 3, 5, 12, 13, 17, 24]
    assert facts["clothes"]["test"] == [[101, FIRST], [101, SECOND], [102, FIRST], [102, SECOND]]
    assert facts["train_pids"] == [2, 7, 10] and "NC" in facts["licence"]
    assert facts["counts"]["train"] == {"tracklets": 6, "frames": 17, "identities": 3, "cameras": 5, "rgb": 6}
    assert facts["differences"] == facts["warnings"] == facts["excluded_frames"] == []
    assert main(["ccvid", "--data_dir", str(tmp_path / "data")]) == 0
    says(capsys.readouterr().out, "gallery", 3, "tracklets", 7, "frames", 2, "identities")
    monkeypatch.setattr(listing, "SESSIONS", {1: 4, 2: 4, 3: 4})
    says(error("ccvid", tree, tmp_path / "other", strict_counts=True), "session", 3, "expected", 4, "tracklets")


def test_counts_that_are_not_the_published_ones(tree, tmp_path):
    message = error("ccvid", tree, tmp_path, strict_counts=True)
    says(message, "train", "expected", 75, "identities", 3)
    says(message, "train", "expected", 948, "rgb", "tracklets", 6)
    says(message, "query", "expected", 116799, "rgb", "frames", 5)
    says(message, "gallery", "expected", 1074, "rgb", "tracklets", 3)
    says(message, "splits", "expected", 24, "cameras", 8)
    differences = listing.list_dataset(tree).differences
    says(differences, "train", "expected", 159, 5)
    says(differences, "test", "expected", 321, 4)
    says(differences, "session", 1, "expected", 1764, "tracklets", 4)


def test_published_figures_are_consistent():
    """Counted from the release: 226 people, 2,856 tracklets, 347,833 frames."""
    figures = published.PUBLISHED
    splits = ("train", "query", "gallery")
    assert sum(figures[split]["tracklets"]["rgb"] for split in splits) == 2856 == sum(published.SESSIONS.values())
    assert sum(figures[split]["frames"]["rgb"] for split in splits) == 347833
    assert figures["train"]["identities"] + figures["gallery"]["identities"] == 226
    assert planned("ccvid") == figures


def test_thinning_is_a_choice(tree, tmp_path):
    path, splits = prepare("ccvid", tree, tmp_path, config="standard_max3_unchecked")
    record = splits["train"][3]  # of 4 frames: 0, ⌊4 / 3⌋, ⌊8 / 3⌋
    assert path.parent.name == "standard_max3_unchecked" and list(record["frame_index"]) == [0, 1, 2]
    assert record["num_frames_source"] == 4 and record["source"].endswith(b"tracklets thinned to 3 frames")


def test_folders_that_are_missing_or_empty(tree, tmp_path, caplog):
    shutil.rmtree(tree / "session1/010_12")
    for file in (tree / "session2/101_02").iterdir():
        file.unlink()
    (tree / "session2/101_02/Thumbs.db").write_bytes(b"no picture")
    message = error("ccvid", tree, tmp_path, strict_counts=True)
    says(message, f"{tree}/session1/010_12", "missing")
    says(message, f"{tree}/session2/101_02", "frame")
    path, splits = prepare("ccvid", tree, tmp_path)
    assert "session1/010_12" not in ids(splits["train"]) and len(splits["train"]) == 5
    assert ids(splits["gallery"]) == ["session2/102_05", "session1/101_03"]
    facts = read_metadata(path)
    assert facts["differences"][:2] == [
        f"{tree}/session1/010_12: is missing",
        f"{tree}/session2/101_02: holds no frame (*.jpg, *.jpeg, *.png)",
    ]
    assert "Thumbs.db" in caplog.text
    says(caplog.text, 1, "files", "images")


def test_damaged_frames_and_names_that_are_not_utf8(tree, tmp_path):
    cut = tree / "session1/010_01/00002.jpg"
    cut.write_bytes(cut.read_bytes()[:-30])
    with open(os.fsencode(tree / "session1/010_01") + b"/0000\xff.jpg", "wb") as file:
        file.write(picture(0))
    path, splits = prepare("ccvid", tree, tmp_path, max_excluded=0.1)
    assert frame_names(splits["train"][0]) == ["session1/010_01/00001.jpg", "session1/010_01/00003.jpg"]
    assert read_metadata(path)["excluded_frames"] == [
        {"path": r"session1/010_01/0000\xff.jpg", "fault": "has a name that is not UTF-8"},
        {"path": "session1/010_01/00002.jpg", "fault": "truncated: no end-of-image marker"},
    ]
    says(error("ccvid", tree, tmp_path / "other"), "2 of 29", "frames", "6.9%")


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("train.txt", "session1/010_12\t", "session4/010_12\t",
         ("train.txt", "row 2", "session4/010_12", "010", "u1_l0_s0_c1_a0", "'folder identity clothes'")),
        ("train.txt", "session1/010_12\t", "session1/01012\t", ("row 2", "session1/01012")),
        ("train.txt", "session1/010_12\t", "session1/010_13\t",
         ("session1/010_13", "camera", 1, 12)),
        ("train.txt", "session1/010_12\t010", "session1/010_12\tten", ("row 2",)),
        ("query.txt", f"101\t{FIRST}", "101", ("query.txt", "row 1", "session1/101_02", 101)),
        ("gallery.txt", "session1/101_03", "session2/101_02",
         ("gallery.txt", 1, "tracklets", "several", "rows", "session2/101_02")),
    ],
)  # fmt: skip
def test_lines_that_say_something_else(tree, file, old, new, named):
    edit(tree / file, old, new)
    with refuses(DataSetError, *named):
        listing.list_dataset(tree)


def test_lists_that_share_what_they_should_not(tree):
    write_lists(tree, {**LISTS, "gallery": [*LISTS["gallery"], LISTS["query"][0], LISTS["train"][0]]})
    differences = listing.list_dataset(tree).differences
    says(differences, 2, "tracklets", "lists", "session1/010_01")
    says(differences, 1, "identities", "train", "test", "splits", 10)


def test_neither_prepared_nor_a_source(tree, tmp_path, capsys):
    assert main(["ccvid", "--data_dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    says(message, "ccvid", "source")
    says(message, "Simple-CCReID")
    says(message, "CC BY-NC-SA 4.0")
    says(message, "DIR/session1/001_01/00001.jpg")
    says(message, "jaxreid build ccvid --source DIR")
    (tree / "query.txt").unlink()
    says(error("ccvid", tree, tmp_path), "query.txt", "missing", tree)
