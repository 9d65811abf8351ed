"""The AG-VPReID builder on small trees of the true layout: cases, platforms, attribute tables, distractors."""

import importlib
import math
import os
import shutil

import pytest
from builder_trees import edit, ends, error, frame_names, ids, picture, prepare, write
from messages import refuses, says

from jaxreid.data import schema
from jaxreid.data.build import build, main
from jaxreid.data.builders import builder_class
from jaxreid.data.planned import published as planned
from jaxreid.data.prepared import read_metadata
from jaxreid.errors import DataSetError

_builder = builder_class("ag_vpreid").__module__.rsplit(".", 1)[0]
listing = importlib.import_module(f"{_builder}.listing")

CASE1, CASE2 = "case1_aerial_to_ground", "case2_ground_to_aerial"
SPLITS = ["train", "query_case1", "gallery_case1", "query_case2", "gallery_case2"]


def names(folder, pid, camera, frames, altitude=0):
    return [f"{folder}/P{pid:04d}T230811A{altitude}C{camera}E1K1F{frame:03d}.jpg" for frame in frames]


# Folder, identity, camera, altitude, frames; in the order of the records: by number, then by tracklet name.
TRACKLETS = {
    "train": [
        ("train/3/tracklet_1", 3, 0, 30, [1, 2, 3]),
        ("train/3/tracklet_2", 3, 5, 80, [998, 999, 1000]),  # sorted as text, the last would come first
        ("train/20/tracklet_1", 20, 4, 120, [1, 2]),
        ("train/20/tracklet_10", 20, 2, 0, [5, 6, 7, 8]),
        ("train/20/tracklet_2", 20, 3, 0, [2, 3]),
        ("train/100/tracklet_1", 100, 1, 0, [1, 2]),
    ],
    "query_case1": [
        (f"{CASE1}/query/1604/tracklet_1", 1604, 4, 15, [1, 2]),
        (f"{CASE1}/query/1605/tracklet_1", 1605, 5, 30, [1, 2, 3]),
    ],
    "gallery_case1": [
        (f"{CASE1}/gallery/1604/tracklet_1", 1604, 0, 0, [1, 2]),
        (f"{CASE1}/gallery/1605/tracklet_1", 1605, 3, 0, [4, 5]),
    ],
    "query_case2": [
        (f"{CASE2}/query/1604/tracklet_1", 1604, 1, 0, [1, 2]),
        (f"{CASE2}/query/1605/tracklet_1", 1605, 2, 0, [4, 5]),
    ],
    "gallery_case2": [
        (f"{CASE2}/gallery/1604/tracklet_1", 1604, 4, 15, [1, 2]),
        (f"{CASE2}/gallery/1605/tracklet_1", 1605, 5, 30, [1, 2, 3]),
        (f"{CASE2}/gallery/6675/tracklet_1", 6675, 4, 120, [1, 2, 3, 4]),  # nobody looks for this one
    ],
}
PLATFORMS = ["cctv", "cctv", "wearable", "wearable", "uav", "uav"]


def table(*rows):
    return "\n".join([f"id,{','.join(listing.ATTRIBUTES)}", *rows]) + "\n"


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "AG-VPReID"
    write(root, [file for members in TRACKLETS.values() for f, p, c, a, n in members for file in names(f, p, c, n, a)])
    (root / "attributes" / CASE1).mkdir(parents=True)
    (root / "attributes/train.csv").write_text(
        table("3,0,3,2,1,3,0,1,1,1,0,3,0,2,0,6", "20,1,2,1,0,3,1,3,,1,-1,3,8,0,1,1.0", "100" + ",2" * 15)
    )
    (root / "attributes" / CASE1 / "query.csv").write_text(table("1604" + ",1" * 15, "1605" + ",0" * 15))
    return root


def check(splits, root, marks, by=lambda split: split):
    """Every field of every record, against the layout."""
    attributes = {
        3: [0, 3, 2, 1, 3, 0, 1, 1, 1, 0, 3, 0, 2, 0, 6],
        20: [1, 2, 1, 0, 3, 1, 3, -1, 1, -1, 3, 8, 0, 1, 1],
        100: [2] * 15,
        1604: [1] * 15,
        1605: [0] * 15,
        6675: [-2] * 15,
    }
    for split, records in splits.items():
        expected = TRACKLETS[by(split)]
        assert ids(records) == [folder for folder, *_ in expected]
        labels = {3: 0, 20: 1, 100: 2} if split == "train" else {}
        for record, (folder, pid, camera, altitude, frames) in zip(records, expected, strict=True):
            files = names(folder, pid, camera, frames, altitude)
            assert record["frames"] == [(root / file).read_bytes() for file in files]
            assert frame_names(record) == files
            assert list(record["frame_index"]) == list(range(len(files))) and record["num_frames_source"] == len(files)
            assert record["pid"] == pid and record["label"] == labels.get(pid, -1)
            assert record["camid"] == camera and record["cam_name"].decode() == f"C{camera}"
            assert schema.PLATFORMS[record["platform"]] == PLATFORMS[camera]
            if camera >= 4:
                assert record["altitude"] == altitude
            else:
                assert math.isnan(record["altitude"])
            assert math.isnan(record["distance"]) and math.isnan(record["angle"]) and record["point_id"] == -1
            assert list(record["attributes"]) == attributes[pid] + [-2] * 9
            assert record["case_mask"] == marks[split] and record["is_distractor"] == (pid == 6675)
            assert schema.ROLES[record["role"]] == split.split("_")[0]
            assert schema.MODALITIES[record["modality"]] == "rgb" and record["session"] == record["clothes_id"] == -1
            assert record["source"].endswith(b", tracklets thinned to 64 frames")


def test_every_field_by_identity_and_name(tree, tmp_path):
    path, splits = prepare("ag_vpreid", tree, tmp_path)
    assert path.parent.name == "cases_unchecked" and list(splits) == SPLITS
    marks = {"train": 0, "query_case1": 1, "gallery_case1": 1, "query_case2": 2, "gallery_case2": 2}
    check(splits, tree, marks)
    for split, index, first, last in (
        ("train", 0, "P0003T230811A30C0E1K1F001.jpg", "P0003T230811A30C0E1K1F003.jpg"),
        ("train", 1, "P0003T230811A80C5E1K1F998.jpg", "P0003T230811A80C5E1K1F1000.jpg"),
        ("train", 3, "P0020T230811A0C2E1K1F005.jpg", "P0020T230811A0C2E1K1F008.jpg"),
        ("train", 5, "P0100T230811A0C1E1K1F001.jpg", "P0100T230811A0C1E1K1F002.jpg"),
        ("gallery_case2", 2, "P6675T230811A120C4E1K1F001.jpg", "P6675T230811A120C4E1K1F004.jpg"),
    ):
        assert tuple(name.rpartition("/")[2] for name in ends(splits[split][index])) == (first, last)


@pytest.mark.parametrize(("case", "bit"), [(1, 1), (2, 2)])
def test_one_case_has_plain_splits(tree, tmp_path, case, bit):
    path, splits = prepare("ag_vpreid", tree, tmp_path, config=f"case{case}_unchecked")
    assert list(splits) == ["train", "query", "gallery"]
    check(
        splits, tree, {"train": 0, "query": bit, "gallery": bit},
        by=lambda split: split if split == "train" else f"{split}_case{case}",
    )  # fmt: skip
    assert read_metadata(path)["cases"] == {f"case{case}": (CASE1, CASE2)[case - 1].partition("_")[2]}


def test_what_is_noted_of_the_set(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "COUNTS", {
        "train": {"identities": 3, "cameras": 6},
        **{split: {"identities": 2} for split in SPLITS[1:4]},
        "gallery_case2": {"identities": 3},
    })  # fmt: skip
    path = build("ag_vpreid", source=tree, data_dir=tmp_path / "data")
    assert path == tmp_path / "data" / "ag_vpreid" / "cases" / "1.0.0"
    facts = read_metadata(path)
    assert facts["protocols"] == ["market"] and facts["train_pids"] == [3, 20, 100]
    assert facts["cases"] == {"case1": "aerial_to_ground", "case2": "ground_to_aerial"}
    assert facts["attribute_names"] == list(listing.ATTRIBUTES) and len(facts["attribute_names"]) == 15
    assert [camera["name"] for camera in facts["cameras"]] == ["C0", "C1", "C2", "C3", "C4", "C5"]
    assert facts["altitudes"] == [15, 30, 80, 120]
    assert facts["counts"]["gallery_case2"] == {"tracklets": 3, "frames": 9, "identities": 3, "cameras": 2, "rgb": 3}
    assert facts["differences"] == facts["warnings"] == facts["excluded_frames"] == []
    plan = planned("ag_vpreid")  # by hand: of 3,332 shares two for each of 689 people
    assert plan is not None and plan["train"]["tracklets"]["rgb"] == 13_500 * 2 * 689 // 3_332


def test_counts_that_are_not_the_published_ones(tree, tmp_path):
    message = error("ag_vpreid", tree, tmp_path, config="cases")
    says(message, "train", "expected", 689, "identities", 3)
    says(message, "query_case1", "expected", 645, "identities", 2)
    says(message, "gallery_case1", "expected", 645, "identities", 2)
    says(message, "query_case2", "expected", 645, "identities", 2)
    says(message, "gallery_case2", "expected", 1309, "identities", 3)
    says(error("ag_vpreid", tree, tmp_path, config="case2"), "gallery", "expected", 1309, "identities", 3)


def test_hidden_identities_make_no_distractors(tree, tmp_path, caplog):
    home = tree / CASE1 / "gallery"
    (home / "1604").rename(home / "1")
    (home / "1605").rename(home / "2")
    _, splits = prepare("ag_vpreid", tree, tmp_path)
    assert [record["pid"] for record in splits["gallery_case1"]] == [1, 2]
    assert not any(record["is_distractor"] for record in splits["gallery_case1"])
    says(caplog.text, "case", 1, 2, "query", "identities", "gallery", 1604, 1605)
    says(caplog.text, 2, "tracklet", "frames", "name", "another", "person")


def test_altitudes_may_be_codes(tree, tmp_path, caplog):
    folder = tree / "train/20/tracklet_1"
    for file in list(folder.iterdir()):
        file.rename(folder / file.name.replace("A120", "A4"))
    _, splits = prepare("ag_vpreid", tree, tmp_path)
    assert splits["train"][2]["altitude"] == 4
    says(caplog.text, "altitudes", 4, 15, 30, 80, 120, "metres")


def test_names_that_cannot_be_read(tree, tmp_path):
    folder = tree / "train/20/tracklet_10"
    (folder / "P0020T230811A0C9E1K1F006.jpg").write_bytes(picture(0))  # no such camera
    (folder / "006.jpg").write_bytes(picture(0))
    with open(os.fsencode(folder) + b"/\xff\xfe.jpg", "wb") as file:
        file.write(picture(0))
    path, splits = prepare("ag_vpreid", tree, tmp_path, max_excluded=0.1)
    assert len(splits["train"][3]["frames"]) == 4
    faults = {item["path"].rpartition("/")[2]: item["fault"] for item in read_metadata(path)["excluded_frames"]}
    unlike = "is not named like P0001T230811A1C2E1K1F001.jpg, camera 0 to 5"
    assert faults == {
        r"\xff\xfe.jpg": "has a name that is not UTF-8",
        "006.jpg": unlike,
        "P0020T230811A0C9E1K1F006.jpg": unlike,
    }
    says(error("ag_vpreid", tree, tmp_path / "other"), "3 of 38", "frames", "7.9%")


def test_folders_that_are_not_what_they_should_be(tree, tmp_path):
    (tree / "train/20/tracklet_3").mkdir()
    (tree / CASE1 / "query/1605/tracklet_4").mkdir()
    (tree / CASE1 / "query/1605/tracklet_4/frame.jpg").write_bytes(picture(0))
    (tree / "train/100/tracklet_1/P0100T230811A0C5E1K1F003.jpg").write_bytes(picture(0))
    shutil.copytree(tree / "train/3", tree / CASE2 / "gallery/3")
    differences = listing.list_dataset(tree, "cases").differences
    says(differences, f"{tree}/train/20/tracklet_3", "frame", "*.jpg", "*.jpeg", "*.png")
    says(differences, f"{tree}/{CASE1}/query/1605/tracklet_4", "frame", "name")
    says(differences, 1, "identities", "train", "test", "splits", 3)
    line = "1 tracklet folders hold frames of several people or cameras, e.g. train/100/tracklet_1"
    assert line in differences
    message = error("ag_vpreid", tree, tmp_path, strict_counts=True)
    says(message, "tracklet_3", "frame")
    _, splits = prepare("ag_vpreid", tree, tmp_path, max_excluded=0.1)
    assert len(splits["train"]) == 6 and len(splits["query_case1"]) == 2  # both left out
    (tree / "train/unknown").mkdir()
    (tree / "train/20/loose.jpg").write_bytes(picture(0))
    (tree / "train" / os.fsdecode(b"\xff")).mkdir()
    message = error("ag_vpreid", tree, tmp_path / "other")
    says(message, f"{tree}/train/unknown", "identity")
    says(message, f"{tree}/train/20", "images", "tracklet", "loose.jpg")
    says(message, f"{tree}/train/\\xff", "name", "UTF-8")
    shutil.rmtree(tree / CASE2 / "query")
    message = error("ag_vpreid", tree, tmp_path / "other")
    says(message, f"{CASE2}/query", "missing", tree)
    says(message, "expected")


def test_damaged_and_thinned(tree, tmp_path):
    cut = tree / names("train/3/tracklet_1", 3, 0, [2], 30)[0]
    cut.write_bytes(cut.read_bytes()[:-30])
    _, splits = prepare("ag_vpreid", tree, tmp_path, max_frames=2)
    first, fourth = splits["train"][0], splits["train"][3]
    assert list(first["frame_index"]) == [0] and first["num_frames_source"] == 3  # of 0 and 1, the second is cut
    assert list(fourth["frame_index"]) == [0, 2] and [name[-7:] for name in frame_names(fourth)] == [
        "005.jpg",
        "007.jpg",
    ]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("3,0,3", "3,male,3", ("train.csv", "row 2", "whole numbers")),
        ("3,0,3", ",0,3", ("train.csv", "row 2")),
        ("footwear", "shoes", ("train.csv", "footwear")),
    ],
)
def test_attribute_tables_that_are_none(tree, old, new, named):
    edit(tree / "attributes/train.csv", old, new)
    with refuses(DataSetError, *named):
        listing.list_dataset(tree, "case1")


def test_attributes_may_be_missing_or_contradict(tree, tmp_path):
    (tree / "attributes/again.csv").write_text(table("1604" + ",5" * 15))
    (warning,) = listing.list_dataset(tree, "case1").warnings
    says(warning, "query.csv", "row", 2, "attributes", "identity", 1604, "table")
    shutil.rmtree(tree / "attributes")
    says(listing.list_dataset(tree, "case1").warnings, "attributes", f"{tree}/attributes", "table")


def test_neither_prepared_nor_a_source(tmp_path, capsys):
    assert main(["ag_vpreid/case1", "--data_dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    says(message, "ag_vpreid", "source")
    says(message, "agvpreid25")
    says(message, "academic use")
    says(message, "DIR/case2_ground_to_aerial/")
    says(message, "jaxreid build ag_vpreid --source DIR")
    with refuses(DataSetError, "'case3'", "case1", "case2"):
        build("ag_vpreid/case3", data_dir=tmp_path)
