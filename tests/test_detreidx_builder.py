"""The DetReIDX builder on small trees of the true layout: names outdoors and indoors, capture points, three cases."""

import importlib
import math
import os
import shutil

import numpy as np
import pytest
from builder_trees import edit, ends, error, frame_names, ids, picture, prepare, write
from messages import refuses, says

from jaxreid.data import schema
from jaxreid.data.build import main
from jaxreid.data.builders import builder_class
from jaxreid.data.planned import published as planned
from jaxreid.data.prepared import read_metadata
from jaxreid.errors import DataSetError

_builder = builder_class("detreidx").__module__.rsplit(".", 1)[0]
listing = importlib.import_module(f"{_builder}.listing")
names = importlib.import_module(f"{_builder}.names")

CASES = ["case1_aerial_to_ground", "case2_ground_to_aerial", "case3_aerial_to_aerial"]
WORN = "0_1_1_0_-1_-1_6_0_0_6_152"  # hair colour … action
WORN_SLOTS = [-2] * 5 + [0, 1, 1, 0, -1, -1, 6, 0, 0, 6, 152] + [-2] * 8
LOOKS_SLOTS = [0, 1, 1, 1, 0] + [-2] * 19  # gender … ethnicity


def aerial(pid, place, session, frames):
    """Names as in the challenge's release: the last two fields are session and frame."""
    return [f"{pid:04d}_23_10_2024_09_18_{place}_3_{WORN}_{session}_{frame:04d}.jpg" for frame in frames]


def ground(pid, frames):
    return [f"{pid:04d}_0_1_1_1_0_F{f'_{frame}' if frame else ''}.jpg" for frame in frames]


# Folder, identity, frames' names, what they mean: platform, altitude, distance, angle, slant range, point, session.
GROUND = ("ground", math.nan, math.nan, math.nan, math.nan, -1, -1)
NEAR = ("uav", 5.8, 10, 30, math.hypot(5.8, 10), 1, 1)
FAR = ("uav", 90, 120, 60, 150, 12, 2)
TOP = ("uav", 120, 0, 90, 120, 18, 1)
QUERY1 = [
    ("0024/0024_1000", 24, aerial(24, "5.8_10_30", 1, [1, 2, 3]), NEAR),
    ("0024/0024_5453", 24, aerial(24, "90_120_60", 2, [1, 2]), FAR),
    ("0025/0025_7", 25, aerial(25, "120_0_90", 1, [5, 6]), TOP),
]
GALLERY1 = [
    ("0024/0024_9", 24, ground(24, [1, 2, 3]), GROUND),
    ("0025/0025_8", 25, ground(25, [0]), GROUND),
]
MORE = [("0025/0025_70", 25, aerial(25, "90_120_60", 2, [1, 2]), FAR)]
TRAIN = [
    ("0004/0004_10", 4, aerial(4, "5.8_10_30", 1, [1, 2, 10, 100]), NEAR),
    ("0004/0004_2", 4, ground(4, [1, 2, 10]), GROUND),  # sorted as text, 10 would come before 2
    ("0010/0010_1", 10, aerial(10, "90.0_120.0_60", 2, [3, 4]), FAR),
    ("0010/0010_2", 10, ground(10, [1, 2]), GROUND),
    ("0106/0106_1", 106, aerial(106, "120_0_90", 1, [1, 2]), TOP),
    ("0106/0106_2", 106, aerial(106, "90_120_60", 2, [1, 2, 3, 4, 5]), FAR),
]
SPLITS = {
    "train": ("train", TRAIN),
    "query_case1": (f"{CASES[0]}/query", QUERY1),
    "gallery_case1": (f"{CASES[0]}/gallery", GALLERY1),
    "query_case2": (f"{CASES[1]}/query", GALLERY1),
    "gallery_case2": (f"{CASES[1]}/gallery", [*QUERY1, *MORE]),
    "query_case3": (f"{CASES[2]}/query", QUERY1),
    "gallery_case3": (f"{CASES[2]}/gallery", [*QUERY1, *MORE]),
}
# Bits 1, 2, 4 of the cases that a tracklet takes part in.
MASKS = {"0024_1000": 7, "0024_5453": 7, "0025_7": 7, "0024_9": 3, "0025_8": 3, "0025_70": 6}


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "DetReIDX"
    write(
        root,
        [f"{home}/{folder}/{name}" for home, rows in SPLITS.values() for folder, _, found, _ in rows for name in found],
    )
    return root


def check(splits, root, masks, by=lambda split: split):
    """Every field of every record, against the layout."""
    for split, records in splits.items():
        home, rows = SPLITS[by(split)]
        assert ids(records) == [folder.partition("/")[2] for folder, *_ in rows]
        labels = {4: 0, 10: 1, 106: 2} if split == "train" else {}
        for record, (folder, pid, found, view) in zip(records, rows, strict=True):
            files = [f"{home}/{folder}/{name}" for name in found]
            assert record["frames"] == [(root / file).read_bytes() for file in files]
            assert frame_names(record) == files
            assert list(record["frame_index"]) == list(range(len(files))) and record["num_frames_source"] == len(files)
            assert record["pid"] == pid and record["label"] == labels.get(pid, -1)
            platform, altitude, distance, angle, slant, point, session = view
            assert schema.PLATFORMS[record["platform"]] == platform
            geometry = [record[name] for name in ("altitude", "distance", "angle", "slant_range")]
            np.testing.assert_allclose(geometry, [altitude, distance, angle, slant], rtol=1e-6)
            assert record["point_id"] == point and record["session"] == session
            camera = 0 if platform == "ground" else session
            assert record["camid"] == camera
            assert record["cam_name"].decode() == ("ground" if platform == "ground" else f"uav_S{session}")
            assert list(record["attributes"]) == (LOOKS_SLOTS if platform == "ground" else WORN_SLOTS)
            assert record["case_mask"] == masks.get(record["tracklet_id"].decode(), 0)
            assert schema.ROLES[record["role"]] == split.split("_")[0]
            assert schema.MODALITIES[record["modality"]] == "rgb" and record["clothes_id"] == -1
            assert not record["is_distractor"] and record["source"].endswith(b", tracklets thinned to 64 frames")


def test_every_field_by_identity_and_name(tree, tmp_path):
    path, splits = prepare("detreidx", tree, tmp_path)
    assert path.parent.name == "cases_unchecked" and list(splits) == list(SPLITS)
    check(splits, tree, MASKS)
    for split, index, first, last in (
        ("train", 0, "0004_23_10_2024_09_18_5.8_10_30_3_0_1_1_0_-1_-1_6_0_0_6_152_1_0001.jpg",
         "0004_23_10_2024_09_18_5.8_10_30_3_0_1_1_0_-1_-1_6_0_0_6_152_1_0100.jpg"),
        ("train", 1, "0004_0_1_1_1_0_F_1.jpg", "0004_0_1_1_1_0_F_10.jpg"),
        ("train", 5, "0106_23_10_2024_09_18_90_120_60_3_0_1_1_0_-1_-1_6_0_0_6_152_2_0001.jpg",
         "0106_23_10_2024_09_18_90_120_60_3_0_1_1_0_-1_-1_6_0_0_6_152_2_0005.jpg"),
        ("gallery_case1", 1, "0025_0_1_1_1_0_F.jpg", "0025_0_1_1_1_0_F.jpg"),
    ):  # fmt: skip
        assert tuple(name.rpartition("/")[2] for name in ends(splits[split][index])) == (first, last)
    facts = read_metadata(path)
    assert facts["protocols"] == ["xfd", "xfd_train"] and facts["train_pids"] == [4, 10, 106]
    assert facts["cases"] == {
        "case1": "aerial_to_ground", "case2": "ground_to_aerial", "case3": "aerial_to_aerial",
    }  # fmt: skip
    assert (
        len(facts["attribute_names"]) == 16
        and facts["attribute_names"][0] == "gender"
        and facts["attribute_names"][15] == "action"
    )
    assert [camera["name"] for camera in facts["cameras"]] == ["ground", "uav_S1", "uav_S2"]
    assert facts["counts"]["gallery_case3"] == {"tracklets": 4, "frames": 9, "identities": 2, "cameras": 2, "rgb": 4}
    assert (len(facts["differences"]), len(facts["warnings"])) == (1, 3)
    says(facts["differences"], "expected", 371, "identities", 5)
    says(facts["warnings"], "case 1", "expected", 3204, "queries", 3)
    says(facts["warnings"], "case 2", "expected", 89, "queries", 2)
    says(facts["warnings"], "case 3", "expected", 2789, "queries", 3)
    assert sum(planned("detreidx")[split]["tracklets"]["rgb"] for split in ("train", "query", "gallery")) == 11_288


@pytest.mark.parametrize(("case", "bit"), [(1, 1), (2, 2), (3, 4)])
def test_one_case_has_plain_splits(tree, tmp_path, case, bit):
    path, splits = prepare("detreidx", tree, tmp_path, config=f"case{case}_unchecked")
    assert path.parent.name == f"case{case}_unchecked" and list(splits) == ["train", "query", "gallery"]
    check(
        splits, tree, dict.fromkeys(MASKS, bit),
        by=lambda split: split if split == "train" else f"{split}_case{case}",
    )  # fmt: skip


def test_all_cases_are_needed_for_all_cases_only(tree, tmp_path):
    shutil.rmtree(tree / CASES[2])
    message = error("detreidx", tree, tmp_path)
    says(message, f"{CASES[2]}/query", f"{CASES[2]}/gallery", "missing", tree)
    says(message, "expected")
    path, splits = prepare("detreidx", tree, tmp_path, config="case1")
    assert len(splits["query"]) == 3 and read_metadata(path)["differences"] == []


def test_identities_are_counted_over_all_folders(tree, tmp_path, monkeypatch):
    says(error("detreidx", tree, tmp_path, config="case2"), "expected", 371, "identities", 5)
    monkeypatch.setattr(listing, "IDENTITIES", 5)  # 4, 10, 106, 24, 25
    path, _ = prepare("detreidx", tree, tmp_path, config="case2")
    assert read_metadata(path)["differences"] == []


def test_people_held_out_of_the_training(tree, tmp_path):
    """Chosen by zlib.crc32 of the number modulo 5: 3 for 4, 1 for 10, 0 for 106."""
    write(tree, [f"train/0106/0106_3/{name}" for name in ground(106, [1, 2])])
    for case in CASES:
        shutil.rmtree(tree / case)
    path, splits = prepare("detreidx", tree, tmp_path, config="dev")
    assert path.parent.name == "dev" and list(splits) == list(SPLITS)
    assert {record["pid"] for record in splits["train"]} == {4, 10} and len(splits["train"]) == 4
    seen = {split: ids(records) for split, records in splits.items()}
    assert seen["query_case1"] == seen["gallery_case2"] == seen["query_case3"] == seen["gallery_case3"]
    assert seen["query_case1"] == ["0106_1", "0106_2"]
    assert seen["gallery_case1"] == seen["query_case2"] == ["0106_3"]
    assert [record["case_mask"] for record in splits["query_case3"]] == [7, 7]
    assert [record["case_mask"] for record in splits["query_case2"]] == [3]
    assert {record["label"] for record in splits["query_case1"]} == {-1}
    assert {record["label"] for record in splits["train"]} == {0, 1}


def test_about_a_fifth_is_held_out():
    people = [listing.Tracklet(str(pid), pid, 0, "", "rgb", (), features={"platform": "uav"}) for pid in range(1, 372)]
    kept = listing._hold_out(people, {1: ("a", "b"), 2: ("c", "d"), 3: ("e", "f")})["train"]
    assert 0.75 < len(kept) / 371 < 0.85


def write_answers(tree, rows):
    lines = [",".join(map(str, row)) for row in [("case", "split", "tracklet", "pid", "session"), *rows]]
    (tree / "gt.csv").write_text("\n".join(lines) + "\n")


def test_answers_give_hidden_identities(tree, tmp_path):
    answers = [(1, "query", "0024_1000", 300, 2), (1, "query", "0024_5453", 301, ""), (1, "query", "0025_7", 301, 1),
               (1, "gallery", "0024_9", 301, 1), (1, "gallery", "0025_8", 300, "")]  # fmt: skip
    write_answers(tree, answers)
    _, splits = prepare("detreidx", tree, tmp_path, config="case1_unchecked")
    found = [(record["pid"], record["session"], record["camid"]) for record in splits["query"]]
    assert found == [(300, 2, 2), (301, 2, 2), (301, 1, 1)]
    assert [(record["pid"], record["session"], record["camid"]) for record in splits["gallery"]] == [
        (301, -1, 0),
        (300, -1, 0),
    ]
    assert ids(splits["query"]) == ["0024_1000", "0024_5453", "0025_7"]
    write_answers(tree, answers[1:])
    says(error("detreidx", tree, tmp_path / "a", config="case1"), "gt.csv", "row", 1, "case", "query", "0024_1000")
    write_answers(tree, [(1, "probe", "0024_1000", 300, 2)])
    says(error("detreidx", tree, tmp_path / "a", config="case1"), "gt.csv", "row", 2, "case", "query", "gallery")
    edit(tree / "gt.csv", "pid", "person")
    says(error("detreidx", tree, tmp_path / "a"), "gt.csv", "table", "columns", "case", "split", "tracklet", "session")


def test_hidden_identities_are_said_of_each_case(tree, tmp_path, caplog):
    (tree / CASES[0] / "gallery/0024").rename(tree / CASES[0] / "gallery/0900")
    _, splits = prepare("detreidx", tree, tmp_path)
    says(caplog.text, "case", 1, "query", "identities", "gallery", 24)
    assert ids(splits["gallery_case1"]) == ["0025_8", "0900_0024_9"]  # the name begins with its folder's number
    shutil.copytree(tree / "train/0004", tree / CASES[2] / "gallery/0004")
    says(listing.list_dataset(tree, "cases").warnings, "case", 3, 1, "identities", "train", "test", "splits", 4)


def test_long_tracklets_are_thinned(tree, tmp_path):
    _, splits = prepare("detreidx", tree, tmp_path, max_frames=2)
    record = splits["train"][5]
    assert list(record["frame_index"]) == [0, 2] and record["num_frames_source"] == 5
    assert [name[-8:] for name in frame_names(record)] == ["0001.jpg", "0003.jpg"]
    assert listing.list_dataset(tree, "cases", 2).digest == listing.list_dataset(tree, "cases", 0).digest


def test_doubtful_names_are_counted(tree, tmp_path, caplog):
    def replace(folder, files):
        shutil.rmtree(tree / folder)
        write(tree, [f"{folder}/{file}" for file in files])

    replace("train/0004/0004_10", ["0004_23_10_2024_09_18_high_10_30_3_1_0001.jpg"])  # neither
    replace("train/0010/0010_1", [f"0010_23_10_2024_09_18_90_120_60_3_{WORN}_x_0001.jpg"])  # no session
    replace("train/0106/0106_1", aerial(106, "41_80_30", 1, [1, 2]))  # no such point
    replace("train/0106/0106_2", [*aerial(106, "5.8_10_30", 1, [1]), *aerial(106, "90_120_60", 2, [1])])  # a mixture
    _, splits = prepare("detreidx", tree, tmp_path)
    records = splits["train"]
    unknown = records[0]
    assert schema.PLATFORMS[unknown["platform"]] == "unknown" and unknown["camid"] == unknown["session"] == -1
    assert all(math.isnan(unknown[name]) for name in ("altitude", "distance", "angle", "slant_range"))
    assert unknown["point_id"] == -1 and unknown["cam_name"] == b"" and list(unknown["attributes"]) == [-2] * 24
    assert records[2]["camid"] == records[2]["session"] == -1 and records[2]["point_id"] == 12
    assert records[4]["point_id"] == -1 and records[4]["altitude"] == 41
    assert records[5]["point_id"] == 1 and len(records[5]["frames"]) == 2
    says(caplog.text, 1, "tracklets", "names", "0004_23_10_2024_09_18_high")
    says(caplog.text, 1, "tracklets", "session", "camera", "0010_23_10_2024")
    says(caplog.text, 1, "tracklets", 18, "points", "0106_23_10_2024_09_18_41_80_30")
    says(caplog.text, 1, "tracklets", "frames", "one's", "train/0106/0106_2")


def test_damaged_empty_and_misnamed(tree, tmp_path):
    cut = tree / "train/0004/0004_10" / aerial(4, "5.8_10_30", 1, [2])[0]
    cut.write_bytes(cut.read_bytes()[:-30])
    with open(os.fsencode(tree / "train/0010/0010_1") + b"/\xff.jpg", "wb") as file:
        file.write(picture(0))
    (tree / CASES[0] / "query/0025/0025_9").mkdir()
    message = error("detreidx", tree, tmp_path, config="cases")
    says(message, f"{tree}/{CASES[0]}/query/0025/0025_9", "frame")
    path, splits = prepare("detreidx", tree, tmp_path, max_excluded=0.1)
    assert list(splits["train"][0]["frame_index"]) == [0, 2, 3] and len(splits["train"][2]["frames"]) == 2
    assert ids(splits["query_case1"]) == ["0024_1000", "0024_5453", "0025_7"]
    assert [item["fault"] for item in read_metadata(path)["excluded_frames"]] == [
        "has a name that is not UTF-8",
        "truncated: no end-of-image marker",
    ]
    (tree / "train/P0004").mkdir()
    says(error("detreidx", tree, tmp_path / "other"), "train/P0004", "identity")


@pytest.mark.parametrize(
    ("name", "view", "point", "camera"),
    [
        # As documented, without and with what the challenge's release appends.
        ("0004_23_10_2024_09_18_5.8_10_30_3_0_1_1_0_-1_-1_6_0_0_6_152_178_S1.jpg", ("uav", 5.8, 10, 30, 1), 1, 1),
        ("0004_23_10_2024_09_18_5.8_10_30_3_0_1_1_0_-1_-1_6_0_0_6_152_1_0001.jpg", ("uav", 5.8, 10, 30, 1), 1, 1),
        ("0004_23_10_2024_09_18_40_80_30_3_0_1_1_0_-1_-1_6_0_0_6_152_7_S2.jpg", ("uav", 40, 80, 30, 2), 5, 2),
        ("0004_23_10_2024_09_18_40_80_30_3_0_1_1_0_-1_-1_6_0_0_6_152_S2_0113.jpg", ("uav", 40, 80, 30, 2), 5, 2),
        ("0004_23_10_2024_09_18_40_80_30_3_0_1_1_0_-1_-1_6_0_0_6_152_178_2.jpg", ("uav", 40, 80, 30, 2), 5, 2),
        ("0004_23_10_2024_09_18_41_80_30_3_0_1_1_0_-1_-1_6_0_0_6_152_178_S9_F.jpg", ("uav", 41, 80, 30, 9), -1, 9),
        ("0001_0_1_1_1_0_F.jpg", ("ground", math.nan, math.nan, math.nan, -1), -1, 0),
        ("0001_0_1_1_1_0_45_F.jpg", ("ground", math.nan, math.nan, math.nan, -1), -1, 0),
        ("00017.jpg", ("ground", math.nan, math.nan, math.nan, -1), -1, 0),
        ("0004_a_b_c_d_e_f_g_h.jpg", ("unknown", math.nan, math.nan, math.nan, -1), -1, -1),
    ],
)
def test_what_names_say(name, view, point, camera):
    found = names.parse(name)
    assert repr((found.platform, found.altitude, found.distance, found.angle)) == repr(
        (view[0], *map(float, view[1:4]))
    )
    assert (found.session, found.point, found.camera) == (view[4], point, camera)


def test_capture_points():
    """The authors' numbers of the points, and √(height² + distance²)."""
    assert len(names.POINTS) == 18
    for place, point, slant in (((120, 0, 90), 18, 120), ((60, 120, 30), 6, 134.164), ((90, 120, 60), 12, 150)):
        view = names.View("uav", *map(float, place))
        assert view.point == point and view.slant_range == pytest.approx(slant, abs=1e-3)
    assert names.View("uav", 40.05, 79.95, 30).point == 5 and names.View("uav", 40.2, 80, 30).point == -1
    assert names.View("ground").point == -1 and math.isnan(names.View("ground").slant_range)


def test_attributes_that_are_no_numbers_are_unknown():
    found = names.parse("0004_23_10_2024_09_18_40_80_30_3_0_1_1_?_-1_-1_6_0_0_6_walk_178_S2.jpg").attributes
    assert found == (*[-2] * 5, 0, 1, 1, -1, -1, -1, 6, 0, 0, 6, -1, *[-2] * 8)
    assert names.parse("0001_0_7_-1_2_3_L.jpg").attributes == (0, 7, -1, 2, 3, *[-2] * 19)


def test_neither_prepared_nor_a_source(tmp_path, capsys):
    assert main(["detreidx", "--data_dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    says(message, "source")
    says(message, "www.it.ubi.pt/DetReIDX")
    says(message, "agreement")
    says(message, "DIR/case3_aerial_to_aerial/")
    says(message, "jaxreid build detreidx --source DIR")
    with refuses(DataSetError, "case1", "case2", "case3", "dev"):
        prepare("detreidx", tmp_path, tmp_path, config="case4")
