"""The MEVID builder on small trees of the true layout: rows from 0, empty rows, outfits, places and sizes."""

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys

import pytest
from builder_trees import edit, ends, error, frame_names, ids, picture, prepare
from messages import refuses, says

from jaxreid.data import schema
from jaxreid.data.build import build, main
from jaxreid.data.builders import builder_class
from jaxreid.data.pictures import image_size
from jaxreid.data.planned import published as planned
from jaxreid.data.prepared import read_metadata
from jaxreid.errors import DataSetError

_builder = builder_class("mevid").__module__.rsplit(".", 1)[0]
listing = importlib.import_module(f"{_builder}.listing")
published = importlib.import_module(f"{_builder}.published")


@dataclasses.dataclass
class Row:
    """A tracklet as the test lays it out."""

    pid: int
    outfit: int
    camera: int
    tracklet: int
    frames: int
    first: int = 0
    size: tuple[int, int] = (16, 8)

    @property
    def name(self):
        return f"{self.pid:04d}O{self.outfit:03d}C{self.camera:03d}T{self.tracklet:03d}"

    @property
    def files(self):
        return [f"{self.name}F{frame:05d}.jpg" for frame in range(self.first, self.first + self.frames)]


EMPTY = "3 2 {} 1 329\n"  # a row that ends before it starts
TRAIN = [
    Row(103, 20, 424, 0, 3),
    Row(103, 20, 424, 1, 2),
    Row(103, 4, 329, 0, 4),
    Row(7, 1, 424, 0, 5),
    Row(7, 1, 329, 0, 2),
    Row(110, 2, 329, 3, 3),
]
TEST = [
    Row(201, 3, 330, 4, 3, first=192),  # a query
    Row(201, 3, 436, 0, 4, size=(100, 40)),  # √4000 = 63.2
    Row(201, 1, 329, 0, 2, size=(64, 64)),
    Row(202, 1, 436, 0, 3, size=(300, 130)),  # √39000 = 197.5; row 4, a query
    Row(202, 1, 507, 0, 2, size=(48, 48)),
    Row(202, 2, 436, 1, 5),
    Row(203, 2, 301, 0, 2),
    Row(203, 2, 999, 0, 2),  # row 8, a query before a camera of no known place
]
QUERIES = [4, 0, 8]  # positions among TEST with an empty row at 2


def write_lists(root, train=TRAIN, test=TEST, queries=QUERIES, empty_at=2):
    root.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", train), ("test", test)):
        (root / f"{part}_name.txt").write_text("".join(f"{file}\n" for row in rows for file in row.files))
        lines, start = [], 0
        for row in rows:
            cells = (start, start + row.frames - 1, row.pid, row.outfit, row.camera)
            lines.append(" ".join(f"{cell:.18e}" for cell in cells) + "\n")
            start += row.frames
        if part == "test":
            lines.insert(empty_at, EMPTY.format(201))
        (root / f"track_{part}_info.txt").write_text("".join(lines))
    (root / "query_IDX.txt").write_text("".join(f"{row:.18e}\n" for row in queries))


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "mevid"
    write_lists(root)
    for part, rows in (("train", TRAIN), ("test", TEST)):
        for number, row in enumerate(rows):
            home = root / f"bbox_{part}" / f"{row.pid:04d}"
            home.mkdir(parents=True, exist_ok=True)
            for frame, file in enumerate(row.files):
                (home / file).write_bytes(picture((number, frame), *row.size))
    return root


SPLITS = {
    "train": TRAIN,
    "query": [TEST[3], TEST[0], TEST[7]],
    "gallery": [TEST[1], TEST[2], TEST[4], TEST[5], TEST[6]],
}
# Rows of the sorted (identity, outfit) pairs: 7/1, 103/4, 103/20, 110/2, and 201/1, 201/3, 202/1, 202/2, 203/2.
CLOTHES = {"train": [2, 2, 1, 0, 0, 3], "query": [2, 1, 4], "gallery": [1, 0, 2, 3, 4]}
LOCATIONS = {"train": [-1, -1, 0, -1, 0, 0], "query": [1, 0, -1], "gallery": [1, 0, 0, 1, 1]}
SCALES = {"train": [0] * 6, "query": [5, 0, 0], "gallery": [1, 2, 1, 0, 0]}


def check(records, split, root):
    """Every field of every record, against the layout."""
    part = "train" if split == "train" else "test"
    assert ids(records) == [row.name for row in SPLITS[split]]
    labels = {7: 0, 103: 1, 110: 2} if split == "train" else {}
    for number, (record, row) in enumerate(zip(records, SPLITS[split], strict=True)):
        files = [f"bbox_{part}/{row.pid:04d}/{file}" for file in row.files]
        assert record["frames"] == [(root / file).read_bytes() for file in files]
        assert frame_names(record) == files
        assert list(record["frame_index"]) == list(range(len(files))) and record["num_frames_source"] == len(files)
        assert record["pid"] == row.pid and record["label"] == labels.get(row.pid, -1)
        assert record["camid"] == row.camera and record["cam_name"].decode() == f"G{row.camera}"
        assert record["outfit"].decode() == f"O{row.outfit:03d}"
        assert record["clothes_id"] == CLOTHES[split][number]
        assert record["location"] == LOCATIONS[split][number] and record["scale_class"] == SCALES[split][number]
        assert schema.ROLES[record["role"]] == split and schema.PLATFORMS[record["platform"]] == "ground"
        assert schema.MODALITIES[record["modality"]] == "rgb"
        assert record["session"] == -1 and record["pair_id"] == record["recording"] == b""
        assert not record["is_junk"] and not record["is_distractor"] and record["case_mask"] == 0
        assert record["source"].startswith(b"mevid/standard_unchecked 1.0.0 lists ")
        assert record["source"].endswith(b", tracklets thinned to 256 frames")


@pytest.mark.parametrize("lists", [".", "mevid-v1-annotation-data"])
def test_every_field_in_the_order_of_the_lists(tree, tmp_path, lists):
    if lists != ".":
        (tree / lists).mkdir()
        for path in tree.glob("*.txt"):
            path.rename(tree / lists / path.name)
    path, splits = prepare("mevid", tree, tmp_path)
    assert path.parent.name == "standard_unchecked" and list(splits) == ["train", "query", "gallery"]
    for split, records in splits.items():
        check(records, split, tree)
    # First and last frame of the first, a middle and the last tracklet, written out.
    for split, index, first, last in (
        ("train", 0, "bbox_train/0103/0103O020C424T000F00000.jpg", "bbox_train/0103/0103O020C424T000F00002.jpg"),
        ("train", 3, "bbox_train/0007/0007O001C424T000F00000.jpg", "bbox_train/0007/0007O001C424T000F00004.jpg"),
        ("train", 5, "bbox_train/0110/0110O002C329T003F00000.jpg", "bbox_train/0110/0110O002C329T003F00002.jpg"),
        ("query", 0, "bbox_test/0202/0202O001C436T000F00000.jpg", "bbox_test/0202/0202O001C436T000F00002.jpg"),
        ("query", 1, "bbox_test/0201/0201O003C330T004F00192.jpg", "bbox_test/0201/0201O003C330T004F00194.jpg"),
        ("gallery", 4, "bbox_test/0203/0203O002C301T000F00000.jpg", "bbox_test/0203/0203O002C301T000F00001.jpg"),
    ):
        assert ends(splits[split][index]) == (first, last)


def test_what_is_noted_of_the_set(tree, tmp_path, monkeypatch, capsys, caplog):
    figures = {
        # All seven rows or the six that are not empty: the authors' number may be either.
        "train": {"tracklets": 6, "identities": 3, "outfits": 4, "cameras": 7},
        "query": {"tracklets": 3, "identities": 3, "outfits": 3},
        "gallery": {"tracklets": 5, "identities": 3, "outfits": 5},
        "test": {"outfits": 5},
    }
    monkeypatch.setattr(listing, "COUNTS", figures)
    monkeypatch.setattr(listing, "QUERY_CAMERAS", (330, 436, 999))
    monkeypatch.setattr(listing, "GALLERY_CAMERAS", (301, 329, 436, 507))
    path = build("mevid", source=tree, data_dir=tmp_path / "data")
    assert path == tmp_path / "data" / "mevid" / "standard" / "1.0.0"
    facts = read_metadata(path)
    assert facts["protocols"][:3] == ["market", "clothes_sc", "clothes_cc"]
    assert facts["protocols"][3:] == ["location_sl", "location_dl", "scale_ss", "scale_ds"]
    assert [camera["number"] for camera in facts["cameras"]] == [301, 329, 330, 424, 436, 507, 999]
    assert facts["clothes"]["train"] == [[7, "O001"], [103, "O004"], [103, "O020"], [110, "O002"]]
    assert facts["clothes"]["test"][1] == [201, "O003"] and len(facts["clothes"]["test"]) == 5
    assert facts["train_pids"] == [7, 103, 110]
    assert facts["counts"]["gallery"] == {"tracklets": 5, "frames": 15, "identities": 3, "cameras": 4, "rgb": 5}
    assert facts["empty_rows"] == {"train": 0, "query": 0, "gallery": 1}
    assert facts["differences"] == facts["excluded_frames"] == []
    says(caplog.text, 1, "rows", "empty")
    says(caplog.text, "row", 2, 3, 201, 1, 329)
    assert main(["mevid", "--data_dir", str(tmp_path / "data")]) == 0
    says(capsys.readouterr().out, "query", 3, "tracklets", 8, "frames", "identities", "cameras", "rgb")
    figures["test"]["outfits"] = 6
    says(error("mevid", tree, tmp_path / "other", strict_counts=True), "test", "expected", 6, "outfits", 5)


def test_empty_training_rows_may_be_among_those_that_are_published(tree, monkeypatch):
    monkeypatch.setattr(listing, "COUNTS", {"train": {"tracklets": 7}})
    says(listing.list_dataset(tree).differences, "train", "expected", 7, "tracklets", 6)
    edit(tree / "track_train_info.txt", "0.0", "5 1 7 1 424\n0.0")
    assert not [line for line in listing.list_dataset(tree).differences if line.startswith("train: ")]


def test_long_tracklets_are_thinned_and_say_so(tree, tmp_path):
    path, splits = prepare("mevid", tree, tmp_path, max_frames=2)
    assert path.parent.name == "standard_max2_unchecked"
    record = splits["train"][3]  # 5 frames: ⌊0 · 5 / 2⌋ and ⌊1 · 5 / 2⌋
    assert list(record["frame_index"]) == [0, 2] and record["num_frames_source"] == 5
    assert [name[-9:] for name in frame_names(record)] == ["00000.jpg", "00002.jpg"]
    assert record["source"].endswith(b"thinned to 2 frames")
    path, splits = prepare("mevid", tree, tmp_path, config="standard_max0_unchecked")
    assert b"thinned" not in splits["train"][3]["source"] and len(splits["train"][3]["frames"]) == 5


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(16, 16)], 0), ([(47, 47)], 0), ([(48, 48)], 1), ([(64, 64)], 2), ([(96, 96)], 3), ([(128, 128)], 4),
        ([(192, 192)], 5), ([(32, 32), (72, 72)], 1), ([(128, 32)], 2),
    ],
)  # fmt: skip
def test_scale_classes_are_of_the_mean_size(sizes, expected):
    assert listing.scale_class([picture(0, *size) for size in sizes]) == {"scale_class": expected}


def test_sizes_are_read_from_headers():
    for suffix in (".jpg", ".png"):
        assert image_size(picture(0, 33, 70, suffix)) == (33, 70)
    jpeg = picture(0, 33, 70)
    comment = b"\xff\xfe\x00\x06\xff\xc0\x00\x00"  # looks like a frame's header, but is the comment's text
    assert image_size(jpeg[:2] + comment + b"\xff" + jpeg[2:]) == (33, 70)


def test_counts_that_are_not_the_published_ones(tree, tmp_path, caplog):
    message = error("mevid", tree, tmp_path, strict_counts=True)
    says(message, "train", "expected", 6338, "tracklets", 6)
    says(message, "train", "expected", 104, "identities", 3)
    says(message, "train", "expected", 485, "outfits", 4)
    says(message, "test", "expected", 113, "outfits", 5)
    says(message, "query", "expected", 316, "tracklets", 3)
    says(message, "gallery", "expected", 1438, "tracklets", 5)
    says(message, "splits", "expected", 33, "cameras", 7)
    says(message, "query", "expected", "cameras", 329, 336, 340, 436, 505, 507, 508, 509, 639, 330, 999)
    prepare("mevid", tree, tmp_path)
    says(caplog.text, "train", "expected", 6338, "tracklets", 6)


def test_published_figures_are_consistent():
    """The authors' totals: 158 people in 598 outfits, 8,092 tracklets. 9 and 11 cameras: counted in their distances."""
    figures = published.COUNTS
    assert figures["train"]["identities"] + figures["gallery"]["identities"] == 158
    assert figures["train"]["outfits"] + figures["test"]["outfits"] == 598
    assert sum(figures[split]["tracklets"] for split in ("train", "query", "gallery")) == 8092
    assert len(published.QUERY_CAMERAS) == 9 and len(published.GALLERY_CAMERAS) == 11
    assert set(listing.LOCATIONS) == set(published.GALLERY_CAMERAS)
    plan = planned("mevid")
    assert plan is not None and plan["train"]["frames"]["rgb"] == 6338 * 590  # the authors' mean length


def test_damaged_missing_and_shared_are_named(tree, tmp_path, caplog):
    cut = tree / "bbox_train/0103/0103O020C424T000F00001.jpg"
    cut.write_bytes(cut.read_bytes()[:-30])
    (tree / "bbox_test/0202/0202O001C436T000F00002.jpg").unlink()
    path, splits = prepare("mevid", tree, tmp_path, max_excluded=0.1)
    assert list(splits["train"][0]["frame_index"]) == [0, 2] and splits["train"][0]["num_frames_source"] == 3
    assert list(splits["query"][0]["frame_index"]) == [0, 1]
    assert read_metadata(path)["excluded_frames"] == [
        {"path": "bbox_test/0202/0202O001C436T000F00002.jpg", "fault": "is missing"},
        {"path": "bbox_train/0103/0103O020C424T000F00001.jpg", "fault": "truncated: no end-of-image marker"},
    ]
    shutil.rmtree(tree / "bbox_test")
    message = error("mevid", tree, tmp_path / "other")
    assert "DIR/bbox_train/0103/" in message
    says(message, "0201O003C330T004F00192.jpg", "missing")
    write_lists(tree, train=[*TRAIN, TEST[0]])
    says(listing.list_dataset(tree).differences, 1, "identities", "train", "test", "splits", 201)


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        # Row 1 is frames 3 and 4 of 0103O020C424T001, row 2 frames 5 to 8 of 0103O004C329T000.
        ("track_train_info.txt", "3 4 103 20 424", "3 4 103 21 424",
         ("row 1", "T001F00000.jpg", "identity 103", "outfit 20", "camera 424", "row", "outfit 21")),
        ("track_train_info.txt", "3 4 103 20 424", "3 4 103 20 423", ("row 1", "camera 423")),
        ("track_train_info.txt", "5 8 103 4 329", "4 8 103 4 329", ("row 2", "0103O020C424T001F00001.jpg")),
        ("track_train_info.txt", "3 4 103 20 424", "3 5 103 20 424", ("row 1", "0103O004C329T000F00000.jpg")),
        ("track_train_info.txt", "16 18 110 2 329", "16 19 110 2 329", ("row 5", "frames", 16, 19, "names")),
        ("track_train_info.txt", "3 4 103 20 424", "3 4 103 20", ("row 1", "3 4 103 20", "start end identity")),
        ("track_train_info.txt", "3 4 103 20 424", "3 x 103 20 424", ("'start end identity outfit camera'",)),
        ("track_train_info.txt", "3 4 103 20 424", "0 2 103 20 424",
         (1, "tracklets", "several", "rows", "0103O020C424T000F00000")),
        ("test_name.txt", "0201O003C330T004F00192.jpg", "0201O003C330T004.jpg",
         ("row 0", "'0201O003C330T004.jpg'", "name")),
        ("query_IDX.txt", "8", "9", ("row 9", "test", "rows", 0, 8)),
        ("query_IDX.txt", "8", "-1", ("row -1",)),
        ("query_IDX.txt", "8", "0", ("names", 1, "rows", "once")),
        ("query_IDX.txt", "8", "last", ("row", "numbers")),
    ],
)  # fmt: skip
def test_lists_that_contradict_each_other(tree, file, old, new, named):
    for name in ("track_train_info.txt", "track_test_info.txt", "query_IDX.txt"):  # as whole numbers, easier to edit
        path = tree / name
        rows = [" ".join(str(int(float(cell))) for cell in line.split()) for line in path.read_text().splitlines()]
        path.write_text("\n".join(rows) + "\n")
    edit(tree / file, old, new)
    with refuses(DataSetError, *named):
        listing.list_dataset(tree)


def test_rows_that_share_a_tracklet_number_are_told_apart(tree):
    write_lists(
        tree, train=[dataclasses.replace(row, first=10 * number, tracklet=0) for number, row in enumerate(TRAIN)]
    )
    assert [tracklet.tracklet_id for tracklet in listing.list_dataset(tree).splits["train"]][:3] == [
        "0103O020C424T000F00000", "0103O020C424T000F00010", "0103O004C329T000",
    ]  # fmt: skip


def test_a_query_may_be_an_empty_row(tree):
    (tree / "query_IDX.txt").write_text("2\n0\n")
    found = listing.list_dataset(tree)
    assert [tracklet.tracklet_id for tracklet in found.splits["query"]] == ["0201O003C330T004"]
    assert found.facts["empty_rows"] == {"train": 0, "query": 1, "gallery": 0} and len(found.splits["gallery"]) == 7


def test_a_prepared_set_is_found_without_its_source_and_without_heavy_imports(tree, tmp_path):
    path, _ = prepare("mevid", tree, tmp_path)
    shutil.rmtree(tree)
    code = """
import json, sys
from jaxreid.data.build import build
path = build("mevid/standard_unchecked", data_dir=sys.argv[1])
heavy = [m for m in ("tensorflow_datasets", "jax", "cv2", "numpy", "tensorflow") if m in sys.modules]
print(json.dumps([str(path), heavy]))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [str(path), []]


def test_neither_prepared_nor_a_source(tmp_path, capsys):
    assert main(["mevid", "--data_dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    says(message, "mevid", "source")
    says(message, "mevadata.org")
    says(message, "CC BY 4.0")
    says(message, "DIR/bbox_test/")
    says(message, "jaxreid build mevid --source DIR")
    (tmp_path / "raw").mkdir()
    message = error("mevid", tmp_path / "raw", tmp_path)
    says(
        message,
        "train_name.txt",
        "track_train_info.txt",
        "test_name.txt",
        "track_test_info.txt",
        "query_IDX.txt",
        "missing",
    )


@pytest.mark.parametrize(
    ("config", "options", "named"),
    [
        ("clothes", {}, ("'clothes'", "<name>_max<N>")),
        ("standard_max09", {}, ("'standard_max09'",)),
        ("standard", {"max_frames": 8},
         ("max_frames=8", "'standard'", "max_frames=256")),
        (None, {"max_frames": True}, ("max_frames", "whole", "number")),
        (None, {"max_frames": -1}, ("max_frames", "negative")),
        (None, {"min_frames": 12}, ("min_frames",)),
    ],
)  # fmt: skip
def test_configurations_and_options_that_are_refused(tmp_path, config, options, named):
    with refuses(DataSetError, *named):
        build("mevid", config, source=tmp_path, data_dir=tmp_path / "data", **options)


def test_a_configuration_has_one_name(tree):
    folder = importlib.import_module(_builder)
    names = [
        folder.locate(config, None, **options)[0]
        for config, options in (
            (None, {}), ("standard_max256", {}), (None, {"max_frames": 256}), ("standard_max0", {}),
            (None, {"max_frames": 64, "strict_counts": False}),
        )
    ]  # fmt: skip
    assert names == ["standard", "standard", "standard", "standard_max0", "standard_max64_unchecked"]
