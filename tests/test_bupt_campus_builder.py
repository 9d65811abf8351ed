"""The BUPTCampus builder on small trees of the true layout: every field, pairs, and how what is wrong is named."""

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

_builder = builder_class("bupt_campus").__module__.rsplit(".", 1)[0]
listing = importlib.import_module(f"{_builder}.listing")
published = importlib.import_module(f"{_builder}.published")

FILES = {"train": "train.txt", "train_aux": "train_auxiliary.txt", "query": "query.txt", "gallery": "gallery.txt"}
NUMBERS = {"LS3": 0, "CQ1": 2, "TSG2": 5}


@dataclasses.dataclass
class Line:
    """A line of a list as the test lays it out."""

    pid: int
    modality: str
    camera: str
    tracklet: int
    frames: list[int]

    def __str__(self):
        return f"{self.pid} {self.modality} {self.camera} {self.tracklet}"

    @property
    def folders(self):
        return self.modality.split("/")

    def files(self, modality):
        """Generated infrared frames bear the visible frames' names."""
        printed = "RGB" if modality == "FakeIR" else modality
        return [
            f"DATA/{self.pid}/{modality}/{self.camera}/{self.pid}_{printed}_{self.camera}_{self.tracklet}_{frame}.jpg"
            for frame in self.frames
        ]


# Frames in the order of data_paths.json, which neither counts evenly nor sorts as text.
LISTS = {
    "train": [
        Line(10, "RGB/IR", "CQ1", 1, [8535, 8540, 10001]),
        Line(10, "RGB/IR", "LS3", 2, [7, 9, 30, 31]),
        Line(2, "RGB/IR", "CQ1", 1, [1, 2]),
        Line(2, "RGB/IR", "CQ1", 2, [900, 1000, 1100]),
        Line(7, "RGB/IR", "TSG2", 1, [5, 6, 7]),
        Line(7, "RGB/IR", "LS3", 1, [2, 30, 4]),
    ],
    "train_aux": [Line(21, "RGB/IR", "LS3", 1, [1, 5]), Line(20, "RGB/IR", "CQ1", 3, [2, 4, 12])],
    "query": [
        Line(33, "IR", "CQ1", 1, [10, 11, 120]),
        Line(31, "RGB", "LS3", 1, [3, 4]),
        Line(32, "RGB", "TSG2", 2, [8, 9, 10, 11]),
    ],
    "gallery": [
        Line(33, "RGB", "LS3", 1, [1, 2, 3]),
        Line(33, "IR", "LS3", 1, [1, 2, 3]),
        Line(31, "RGB", "CQ1", 1, [100, 99]),
        Line(31, "IR", "CQ1", 1, [100, 99]),
        Line(32, "RGB", "LS3", 1, [5, 50]),
        Line(32, "IR", "LS3", 1, [5, 50, 500]),
    ],
}


def jpeg(seed):
    return cv2.imencode(".jpg", np.random.default_rng(seed).integers(0, 255, (16, 8, 3), np.uint8))[1].tobytes()


def write_lists(root, lists=LISTS, prefix="DATA/"):
    root.mkdir(parents=True, exist_ok=True)
    paths = {}
    for split, lines in lists.items():
        (root / FILES[split]).write_text("".join(f"{line}\n" for line in lines))
        for line in lines:
            for modality in line.folders:
                tracklets = paths.setdefault(str(line.pid), {}).setdefault(modality, {}).setdefault(line.camera, {})
                tracklets[str(line.tracklet)] = [prefix + f.removeprefix("DATA/") for f in line.files(modality)]
    (root / "data_paths.json").write_text(json.dumps(paths))


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "BUPTCampus"
    write_lists(root)
    seed = 0
    for split, lines in LISTS.items():
        for line in lines:
            for modality in [*line.folders, *(["FakeIR"] if split == "train" else [])]:
                for file in line.files(modality):
                    seed += 1
                    (root / file).parent.mkdir(parents=True, exist_ok=True)
                    (root / file).write_bytes(jpeg(seed))
    return root


def prepare(root, tmp_path, **options):
    path = build("bupt_campus", source=root, data_dir=tmp_path / "data", **{"strict_counts": False, **options})
    builder = tfds.builder_from_directory(str(path))
    return path, {name: list(builder.as_data_source(name)) for name in builder.info.splits}


def error(root, tmp_path, **options):
    with pytest.raises(DataSetError) as raised:
        build("bupt_campus", source=root, data_dir=tmp_path / "data", **{"strict_counts": False, **options})
    assert leftovers(tmp_path / "data") == [], "a refused set must leave nothing"
    return str(raised.value)


def check(records, split, root, extra=()):
    """Every field of every record, against the layout; lines in their order, a pair's tracklets in the given one."""
    expected = [(line, modality) for line in LISTS[split] for modality in [*line.folders, *extra]]
    labels = {2: 0, 7: 1, 10: 2} if split == "train" else {}
    modalities = {"RGB": "rgb", "IR": "ir", "FakeIR": "fake_ir"}
    for record, (line, modality) in zip(records, expected, strict=True):
        files = line.files(modality)
        assert record["tracklet_id"].decode() == f"{line.pid}_{modality}_{line.camera}_{line.tracklet}"
        assert record["frames"] == [(root / file).read_bytes() for file in files]
        assert [name.decode() for name in record["frame_names"]] == files
        assert list(record["frame_index"]) == list(range(len(files))) and record["num_frames_source"] == len(files)
        assert record["pid"] == line.pid and record["label"] == labels.get(line.pid, -1)
        assert record["camid"] == NUMBERS[line.camera] and record["cam_name"].decode() == line.camera
        assert schema.MODALITIES[record["modality"]] == modalities[modality]
        pair = f"{line.pid}_{line.camera}_{line.tracklet}" if line.modality == "RGB/IR" else ""
        assert record["pair_id"].decode() == pair and record["recording"] == b""
        assert schema.ROLES[record["role"]] == split and schema.PLATFORMS[record["platform"]] == "ground"


def test_every_field_in_the_order_of_the_lists(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "FRAMES_PER_SHARD", 8)  # several files per split
    path, splits = prepare(tree, tmp_path)
    assert len(list(path.glob("*-train.array_record-*"))) > 3
    assert list(splits) == ["train", "train_aux", "query", "gallery"]
    for split, records in splits.items():
        check(records, split, tree)
    # First and last frame of the first, a middle and the last tracklet, written out.
    for split, index, first, last in (
        ("train", 0, "DATA/10/RGB/CQ1/10_RGB_CQ1_1_8535.jpg", "DATA/10/RGB/CQ1/10_RGB_CQ1_1_10001.jpg"),
        ("train", 1, "DATA/10/IR/CQ1/10_IR_CQ1_1_8535.jpg", "DATA/10/IR/CQ1/10_IR_CQ1_1_10001.jpg"),
        ("train", 6, "DATA/2/RGB/CQ1/2_RGB_CQ1_2_900.jpg", "DATA/2/RGB/CQ1/2_RGB_CQ1_2_1100.jpg"),
        ("train", 11, "DATA/7/IR/LS3/7_IR_LS3_1_2.jpg", "DATA/7/IR/LS3/7_IR_LS3_1_4.jpg"),
        ("train_aux", 0, "DATA/21/RGB/LS3/21_RGB_LS3_1_1.jpg", "DATA/21/RGB/LS3/21_RGB_LS3_1_5.jpg"),
        ("query", 0, "DATA/33/IR/CQ1/33_IR_CQ1_1_10.jpg", "DATA/33/IR/CQ1/33_IR_CQ1_1_120.jpg"),
        ("query", 2, "DATA/32/RGB/TSG2/32_RGB_TSG2_2_8.jpg", "DATA/32/RGB/TSG2/32_RGB_TSG2_2_11.jpg"),
        ("gallery", 5, "DATA/32/IR/LS3/32_IR_LS3_1_5.jpg", "DATA/32/IR/LS3/32_IR_LS3_1_500.jpg"),
    ):
        names = [name.decode() for name in splits[split][index]["frame_names"]]
        assert (names[0], names[-1]) == (first, last)


def test_paths_may_count_from_the_data_folder(tree, tmp_path):
    write_lists(tree, prefix="")
    _, splits = prepare(tree, tmp_path)
    assert splits["query"][1]["frames"] == [(tree / file).read_bytes() for file in LISTS["query"][1].files("RGB")]
    assert splits["query"][1]["frame_names"][0] == b"31/RGB/LS3/31_RGB_LS3_1_3.jpg"


def test_generated_infrared_frames_are_a_third_tracklet_of_a_training_pair(tree, tmp_path):
    path, splits = prepare(tree, tmp_path, fake_ir=True)
    assert path.parent.name == "fake_ir_unchecked" and read_metadata(path)["fake_ir"] is True
    check(splits["train"], "train", tree, extra=["FakeIR"])
    check(splits["train_aux"], "train_aux", tree)
    check(splits["gallery"], "gallery", tree)
    first = [record["tracklet_id"].decode() for record in splits["train"][:3]]
    assert first == ["10_RGB_CQ1_1", "10_IR_CQ1_1", "10_FakeIR_CQ1_1"]
    assert splits["train"][2]["frame_names"][0] == b"DATA/10/FakeIR/CQ1/10_RGB_CQ1_1_8535.jpg"
    assert splits["train"][2]["frames"] != splits["train"][0]["frames"]
    assert {record["pair_id"] for record in splits["train"][:3]} == {b"10_CQ1_1"}
    plain, splits = prepare(tree, tmp_path)
    assert plain.parent.name == "rgb_ir_unchecked" and len(splits["train"]) == 12
    shutil.rmtree(tree / "DATA" / "10" / "FakeIR")
    says(error(tree, tmp_path / "other", fake_ir=True), "DATA/10/FakeIR/CQ1/10_RGB_CQ1_1_8535.jpg", "missing")


def test_what_is_noted_of_the_set(tree, tmp_path, monkeypatch, capsys):
    figures = {
        "train": {"tracklets": {"ir": 6, "rgb": 6}, "frames": {"ir": 18, "rgb": 18}, "identities": 3, "cameras": 3},
        "train_aux": {"tracklets": {"ir": 2, "rgb": 2}, "frames": {"ir": 5, "rgb": 5}, "identities": 2, "cameras": 3},
        "query": {"tracklets": {"ir": 1, "rgb": 2}, "frames": {"ir": 3, "rgb": 6}, "identities": 3, "cameras": 3},
        "gallery": {"tracklets": {"ir": 3, "rgb": 3}, "frames": {"ir": 8, "rgb": 7}, "identities": 3, "cameras": 3},
    }
    monkeypatch.setattr(listing, "PUBLISHED", figures)
    path = build("bupt_campus", source=tree, data_dir=tmp_path / "data")
    assert path == tmp_path / "data" / "bupt_campus" / "rgb_ir" / "1.0.0"
    facts = read_metadata(path)
    assert facts["protocols"] == ["bupt_full", "bupt_reduced64"]
    assert facts["cameras"] == [
        {"number": 0, "name": "LS3", "modality": "ir+rgb"},
        {"number": 2, "name": "CQ1", "modality": "ir+rgb"},
        {"number": 5, "name": "TSG2", "modality": "ir+rgb"},
    ]
    assert facts["train_pids"] == [2, 7, 10] and facts["fake_ir"] is False
    assert facts["counts"] == {
        "train": {"tracklets": 12, "frames": 36, "identities": 3, "cameras": 3, "ir": 6, "rgb": 6},
        "train_aux": {"tracklets": 4, "frames": 10, "identities": 2, "cameras": 2, "ir": 2, "rgb": 2},
        "query": {"tracklets": 3, "frames": 9, "identities": 3, "cameras": 3, "ir": 1, "rgb": 2},
        "gallery": {"tracklets": 6, "frames": 15, "identities": 3, "cameras": 2, "ir": 3, "rgb": 3},
    }
    assert facts["excluded_frames"] == facts["warnings"] == facts["differences"] == []
    assert facts["queries_in_gallery"] == 0 and facts["source"] == str(tree)
    assert main(["bupt_campus", "--data_dir", str(tmp_path / "data")]) == 0
    says(capsys.readouterr().out, "train_aux", 4, "tracklets", 10, "frames", 2, "identities", "cameras", "ir", "rgb")
    figures["train"]["frames"]["rgb"] = 19
    says(error(tree, tmp_path / "other", strict_counts=True), "train", "expected", 19, "rgb", "frames", 18)


def test_counts_that_are_not_the_published_ones(tree, tmp_path, caplog):
    message = error(tree, tmp_path, strict_counts=True)
    says(message, "lists", tree, "set")
    says(message, "train", "expected", 1074, "identities", 3)
    says(message, "train", "expected", 398069, "ir", "frames", 18)
    says(message, "train_aux", "expected", 930, "rgb", "tracklets", 2)
    says(message, "query", "expected", 536, "ir", "tracklets", 1)
    says(message, "gallery", "expected", 298771, "rgb", "frames", 7)
    says(message, "splits", "expected", 6, "cameras", 3)
    says(message, "--option", "strict_counts=False")
    prepare(tree, tmp_path)
    says(caplog.text, "train", "expected", 1074, "identities", 3)


def test_published_figures_are_consistent():
    """The authors' totals: 3,080 people; 1,076 queries, one of each test identity."""
    figures = published.PUBLISHED
    assert sum(figures[split]["identities"] for split in ("train", "train_aux", "query")) == 3080
    assert sum(figures["query"]["tracklets"].values()) == figures["query"]["identities"] == 1076
    assert sum(figures["gallery"]["tracklets"].values()) == 4844


def test_queries_that_are_also_in_the_gallery_are_counted(tree, tmp_path, caplog):
    lists = {**LISTS, "gallery": [*LISTS["gallery"], LISTS["query"][1]]}
    write_lists(tree, lists)
    path, splits = prepare(tree, tmp_path)
    assert read_metadata(path)["queries_in_gallery"] == 1
    says(caplog.text, 1, "query", "tracklets", "gallery", "31_RGB_LS3_1")
    assert splits["gallery"][-1]["tracklet_id"] == splits["query"][1]["tracklet_id"]


def test_identities_that_should_not_or_should_meet_are_named(tree, tmp_path, caplog):
    """Of the auxiliary pairs one shows a test identity and one a training identity, which gets no label there."""
    auxiliary = [dataclasses.replace(LISTS["train_aux"][0], pid=pid, tracklet=9) for pid in (31, 10)]
    for file in (file for line in auxiliary for modality in line.folders for file in line.files(modality)):
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).write_bytes(jpeg(1))
    gallery = [line for line in LISTS["gallery"] if line.pid != 32]
    write_lists(tree, {**LISTS, "gallery": gallery, "train_aux": auxiliary})
    _, splits = prepare(tree, tmp_path)
    says(caplog.text, 1, "identities", "train", "test", "splits", 31)
    says(caplog.text, 1, "query", "identities", "gallery", 32)
    assert [(record["pid"], record["label"]) for record in splits["train_aux"][::2]] == [(31, -1), (10, -1)]


def test_damaged_and_missing_frames_are_named_counted_and_left_out(tree, tmp_path, caplog):
    bad = tree / LISTS["train"][0].files("IR")[1]
    bad.write_bytes(bad.read_bytes()[:200])
    (tree / LISTS["query"][2].files("RGB")[0]).unlink()
    path, splits = prepare(tree, tmp_path)
    visible, infrared = splits["train"][:2]
    assert list(visible["frame_index"]) == [0, 1, 2] and list(infrared["frame_index"]) == [0, 2]  # still aligned
    assert infrared["num_frames_source"] == 3
    assert list(splits["query"][2]["frame_index"]) == [1, 2, 3]
    facts = read_metadata(path)
    assert facts["excluded_frames"] == [
        {"path": "DATA/32/RGB/TSG2/32_RGB_TSG2_2_8.jpg", "fault": "is missing"},
        {"path": "DATA/10/IR/CQ1/10_IR_CQ1_1_8540.jpg", "fault": "truncated: no end-of-image marker"},
    ]
    assert facts["counts"]["train"]["frames"] == 35
    says(caplog.text, "2 of 70", "frames")
    message = error(tree, tmp_path / "other", max_excluded=0.02)
    says(message, "2 of 70", "frames", "2.9%", "2.0%")


def test_a_tracklet_without_a_whole_frame(tree, tmp_path, caplog):
    for file in LISTS["train"][2].files("IR"):
        (tree / file).unlink()
    _, splits = prepare(tree, tmp_path)
    says(caplog.text, "tracklet", "2_IR_CQ1_1", "frame")
    names = [record["tracklet_id"].decode() for record in splits["train"]]
    assert "2_RGB_CQ1_1" in names and "2_IR_CQ1_1" not in names and len(names) == 11
    for line in LISTS["query"]:
        for file in line.files(line.modality):
            (tree / file).write_bytes(b"")
    message = error(tree, tmp_path / "other", max_excluded=0.5)
    says(message, "frame", "query")
    says(message, "33_IR_CQ1_1_10.jpg", "empty")


def test_frames_that_are_elsewhere_are_an_error_with_the_expected_tree(tree, tmp_path):
    (tree / "DATA").rename(tree / "images")
    message = error(tree, tmp_path)
    says(message, "70 of 70", "frames", "100.0%")
    says(message, "60 more")
    says(message, f"{tree}/DATA/10/RGB/CQ1/10_RGB_CQ1_1_8535.jpg", "missing")
    says(message, "expected")
    says(message, "DIR/data_paths.json", "train.txt")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        (
            "train.txt",
            "10 RGB/IR LS3 2",
            "10 RGB LS3 2",
            ("train.txt", "row 2", 10, "RGB", "LS3", 2, "modality", "RGB/IR"),
        ),
        ("train.txt", "10 RGB/IR LS3 2", "10 RGB/IR LS3", ("train.txt", "row 2", 10, "RGB/IR", "LS3")),
        ("train.txt", "10 RGB/IR LS3 2", "ten RGB/IR LS3 2", ("row 2", "ten RGB/IR LS3 2")),
        ("query.txt", "31 RGB LS3 1", "31 RGB/IR LS3 1", ("query.txt", "row 2", "modality", "RGB", "IR")),
        (
            "gallery.txt",
            "31 RGB CQ1 1",
            "31 RGB CQ9 1",
            ("gallery.txt", "row 3", "camera", "'CQ9'", "LS3", "G25", "CQ1", "W4", "TSG1", "TSG2"),
        ),
        (
            "gallery.txt",
            "31 RGB CQ1 1",
            "31 RGB CQ1 4",
            ("gallery.txt", "row 3", "data_paths.json", "names", "frames", "31/RGB/CQ1/4"),
        ),
        (
            "gallery.txt",
            "31 RGB CQ1 1",
            "31 IR CQ1 1",
            ("gallery.txt", 1, "tracklets", "several", "rows", "31_IR_CQ1_1"),
        ),
        (
            "data_paths.json",
            "/31_RGB_LS3_1_4.jpg",
            "/30_RGB_LS3_1_4.jpg",
            (
                "query.txt",
                "row 2",
                31,
                "RGB",
                "LS3",
                1,
                "30_RGB_LS3_1_4.jpg'",
                "data_paths.json",
                "identity 30",
                "modality",
                "row",
                "identity 31",
            ),
        ),
        (
            "data_paths.json",
            "/31_RGB_LS3_1_4.jpg",
            "/31_IR_LS3_1_4.jpg",
            ("query.txt", "row 2", "modality", "IR", "camera", "LS3", "row", "identity 31", "RGB"),
        ),
        (
            "data_paths.json",
            "/31_RGB_LS3_1_4.jpg",
            "/31_RGB_W4_1_4.jpg",
            ("query.txt", "row 2", "camera", "W4", "row", "LS3"),
        ),
        (
            "data_paths.json",
            "/31_RGB_LS3_1_4.jpg",
            "/4.jpg",
            ("query.txt", "row 2", "1_RGB_CQ1_1_8535.jpg"),
        ),
    ],
)
def test_lists_that_contradict_each_other(tree, file, old, new, named):
    edit(tree / file, old, new)
    with refuses(DataSetError, *named):
        listing.list_dataset(tree)


def test_pairs_of_unequal_length_are_named(tree):
    edit(tree / "data_paths.json", ', "DATA/10/IR/CQ1/10_IR_CQ1_1_10001.jpg"', "")
    (warning,) = listing.list_dataset(tree).warnings
    says(warning, 1, "pairs", "unequal")
    says(warning, "row", 1, 10, "RGB/IR", "CQ1")


def test_missing_lists_and_directories(tree, tmp_path):
    (tree / "data_paths.json").write_text("{")
    says(error(tree, tmp_path), "data_paths.json", "JSON")
    (tree / "train_auxiliary.txt").unlink()
    message = error(tree, tmp_path)
    says(message, "train_auxiliary.txt", "missing", tree)
    says(message, "expected")
    shutil.rmtree(tree)
    says(error(tree, tmp_path), tree, "directory")


def test_an_empty_list_is_an_error(tree, tmp_path):
    (tree / "train_auxiliary.txt").write_text("\n")
    says(error(tree, tmp_path), "tracklet", "train_aux")


def test_a_prepared_set_is_found_without_its_source_and_without_heavy_imports(tree, tmp_path):
    path, _ = prepare(tree, tmp_path)
    written = (path / "dataset_info.json").stat().st_mtime_ns
    assert build("bupt_campus", source=tree, data_dir=tmp_path / "data", strict_counts=False) == path
    shutil.rmtree(tree)
    code = """
import json, sys
from jaxreid.data.build import build
path = build("bupt_campus", data_dir=sys.argv[1], strict_counts=False)
heavy = [m for m in ("tensorflow_datasets", "jax", "cv2", "numpy", "tensorflow") if m in sys.modules]
print(json.dumps([str(path), heavy]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data")], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [str(path), []]
    assert (path / "dataset_info.json").stat().st_mtime_ns == written


def test_neither_prepared_nor_a_source(tmp_path, capsys):
    assert main(["bupt_campus", "--data_dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    says(message, "bupt_campus", "source")
    says(message, "github.com/dyhBUPT/BUPTCampus")
    says(message, "academic use")
    says(message, "DIR/data_paths.json")
    says(message, "jaxreid build bupt_campus --source DIR")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "options", "named"),
    [
        ("ir", {}, ("'ir'", "rgb_ir", "fake_ir", "rgb_ir_unchecked", "fake_ir_unchecked")),
        ("rgb_ir", {"fake_ir": True}, ("fake_ir=True", "'rgb_ir'", "fake_ir=False")),
        (None, {"fake_ir": 1}, ("fake_ir", 1)),
        (None, {"min_frames": 12}, ("min_frames",)),
    ],
)
def test_configurations_and_options_that_are_refused(tree, tmp_path, config, options, named):
    with refuses(DataSetError, *named):
        build("bupt_campus", config, source=tree, data_dir=tmp_path / "data", **options)
