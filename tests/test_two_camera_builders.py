"""The builders of iLIDS-VID and PRID2011, sets of two cameras in ten splits, on small trees of the true layout."""

import importlib
import json
import os
import shutil

import numpy as np
import pytest
from builder_trees import check_fields, ends, error, ids, prepare, write
from messages import refuses, says
from scipy.io import savemat

from jaxreid.data.build import build
from jaxreid.data.builders import builder_class
from jaxreid.data.prepared import read_metadata
from jaxreid.errors import DataSetError

SPLITS_FILE = "train_test_splits_ilidsvid.mat"
# Folders of people, whose numbers have gaps, and the numbers of their frames before both cameras.
PEOPLE = {
    "person001": ([317, 318, 320], [1, 2]),
    "person002": ([9, 10, 11, 12, 13], [5, 6]),
    "person014": ([100, 101], [7, 8, 9]),
    "person300": ([1, 2], [1, 2, 3, 4]),
    "person317": ([4, 5, 6], [3, 4]),
    "person319": ([99, 100], [1, 2, 3, 4, 5]),
}
# People by their place in the sorted list of folders, from 1; the first half is the test.
LS_SET = [[5, 1, 3, 2, 6, 4], [1, 2, 3, 4, 5, 6], *([2, 4, 6, 1, 3, 5] for _ in range(8))]


def module(name, part):
    return importlib.import_module(f"{builder_class(name).__module__.rsplit('.', 1)[0]}.{part}")


def ilids_files(person, camera):
    return [f"cam{camera}/{person}/cam{camera}_{person}_{frame:05d}.png" for frame in PEOPLE[person][camera - 1]]


def write_ilids(root, outer="i-LIDS-VID/"):
    home = root / f"{outer}sequences"
    write(home, [file for person in PEOPLE for camera in (1, 2) for file in ilids_files(person, camera)], suffix=".png")
    folder = root / "train-test people splits"
    folder.mkdir()
    savemat(folder / SPLITS_FILE, {"ls_set": np.array(LS_SET, np.float64)})
    return home


@pytest.fixture
def ilids(tmp_path):
    root = tmp_path / "ilids-vid"
    write_ilids(root)
    return root


def check(records, files, home, role, source, labels):
    """Every field; `files` gives each expected tracklet's frames by its name."""
    assert ids(records) == list(files)
    for record, (name, frames) in zip(records, files.items(), strict=True):
        camera, _, person = name.partition("_person")
        pid = int(person.removeprefix("_"))
        check_fields(
            record,
            frames=[(home / file).read_bytes() for file in frames],
            frame_names=frames,
            frame_index=range(len(frames)),
            num_frames_source=len(frames),
            tracklet_id=name,
            pid=pid,
            label=labels[pid] if role == "train" else -1,
            camid=2 if camera in ("cam2", "cam_b") else 1,
            cam_name=camera,
            modality="rgb",
            platform="ground",
            role=role,
            source=source,
        )


@pytest.mark.parametrize("outer", ["i-LIDS-VID/", ""])
def test_ilids_vid_every_field(tmp_path, outer):
    root = tmp_path / "ilids-vid"
    home = write_ilids(root, outer)
    path, splits = prepare("ilids_vid", root, tmp_path)
    assert path == tmp_path / "data" / "ilids_vid" / "split_0_unchecked" / "1.0.0"
    facts = read_metadata(path)
    assert facts["protocols"] == ["single_match"] and facts["train_pids"] == [2, 300, 319]
    source = f"ilids_vid/split_0_unchecked 1.0.0 lists {facts['lists']}"
    # Row 0: places 5, 1, 3 are the test; 2, 6, 4 the training.
    test, train = ("person317", "person001", "person014"), ("person002", "person319", "person300")
    labels = {2: 0, 300: 1, 319: 2}
    both = {f"cam{c}_{person}": ilids_files(person, c) for person in train for c in (1, 2)}
    check(splits["train"], both, home, "train", source, labels)
    check(splits["query"], {f"cam1_{p}": ilids_files(p, 1) for p in test}, home, "query", source, labels)
    check(splits["gallery"], {f"cam2_{p}": ilids_files(p, 2) for p in test}, home, "gallery", source, labels)
    for split, index, first, last in (
        ("train", 0, "cam1/person002/cam1_person002_00009.png", "cam1/person002/cam1_person002_00013.png"),
        ("train", 3, "cam2/person319/cam2_person319_00001.png", "cam2/person319/cam2_person319_00005.png"),
        ("train", 5, "cam2/person300/cam2_person300_00001.png", "cam2/person300/cam2_person300_00004.png"),
        ("query", 1, "cam1/person001/cam1_person001_00317.png", "cam1/person001/cam1_person001_00320.png"),
        ("gallery", 2, "cam2/person014/cam2_person014_00007.png", "cam2/person014/cam2_person014_00009.png"),
    ):
        assert ends(splits[split][index]) == (first, last)


def test_ilids_vid_splits_and_halves(ilids, tmp_path):
    _, splits = prepare("ilids_vid", ilids, tmp_path, "split_1_unchecked")
    assert ids(splits["query"]) == ["cam1_person001", "cam1_person002", "cam1_person014"]
    path, splits = prepare("ilids_vid", ilids, tmp_path, halves="swapped")
    assert path.parent.name == "split_0_swapped_unchecked"
    assert ids(splits["gallery"]) == ["cam2_person002", "cam2_person319", "cam2_person300"]
    assert ids(splits["train"])[::2] == ["cam1_person317", "cam1_person001", "cam1_person014"]
    path, splits = prepare("ilids_vid", ilids, tmp_path, "split_9_unchecked", halves="swapped")
    assert path.parent.name == "split_9_swapped_unchecked"
    assert ids(splits["query"]) == ["cam1_person001", "cam1_person014", "cam1_person317"]
    shutil.rmtree(ilids)
    assert build("ilids_vid/split_9_swapped_unchecked", data_dir=tmp_path / "data", halves="swapped") == path


@pytest.mark.parametrize(
    ("name", "config", "options", "named"),
    [
        ("ilids_vid", "split_10", {}, ("'split_10'",)),
        ("ilids_vid", None, {"halves": "zheng"}, ("halves", "'wang'", "'swapped'", "'zheng'")),
        ("ilids_vid", "split_3_swapped", {"halves": "wang"}, ("halves=wang", "split_3_swapped")),
        ("ilids_vid", "split_3", {"strict_counts": False}, ("strict_counts=False", "split_3")),
        ("prid2011", "split_10", {}, ("'split_10'",)),
        ("prid2011", None, {"halves": "swapped"}, ("prid2011", "halves")),
    ],
)
def test_configurations_that_are_refused(ilids, tmp_path, name, config, options, named):
    with refuses(DataSetError, *named):
        build(name, config, source=ilids, data_dir=tmp_path / "data", **options)


def test_ilids_vid_published_counts(ilids, tmp_path, monkeypatch, caplog):
    message = error("ilids_vid", ilids, tmp_path, strict_counts=True)
    says(message, "train", "expected", 300, "tracklets", 6)
    says(message, "train", "expected", 150, "identities", 3)
    says(message, "query", "expected", 150, "tracklets", 3)
    says(message, "gallery", "expected", 150, "identities", 3)
    counts = {
        "train": {"tracklets": 6, "identities": 3, "cameras": 2},
        "query": {"tracklets": 3, "identities": 3},
        "gallery": {"tracklets": 3, "identities": 3},
    }
    monkeypatch.setattr(module("ilids_vid", "listing"), "COUNTS", counts)
    path, _ = prepare("ilids_vid", ilids, tmp_path, strict_counts=True)
    assert path.parent.name == "split_0" and read_metadata(path)["differences"] == []
    says(caplog.text, "tracklets", 2, 5, "frames", 23, 192)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ([5, 1, 3, 5, 6, 4], ("row 1", "name", 6, "people", "once")),  # in both halves
        ([5, 1, 3, 2, 7, 4], ("row 1", "name", 6, "people", "once")),
        ([0, 1, 2, 3, 4, 5], ("row 1", "name", 6, "people", "once")),
    ],
)
def test_ilids_vid_split_files_that_contradict_the_folders(ilids, tmp_path, row, named):
    path = ilids / "train-test people splits" / SPLITS_FILE
    savemat(path, {"ls_set": np.array([row, *LS_SET[1:]])})
    says(error("ilids_vid", ilids, tmp_path), path, *named)


def test_ilids_vid_folders_that_are_wrong(ilids, tmp_path):
    home = ilids / "i-LIDS-VID" / "sequences"
    (home / "cam1" / "person400").mkdir()
    (home / "cam2" / "visitor").mkdir()
    message = error("ilids_vid", ilids, tmp_path)
    says(message, "'visitor'", "person001")
    says(message, "'person400'", "camera")
    assert "7 people that are there" not in message and "has 10 rows of 6 people" not in message
    (home / "cam2" / "visitor").rmdir()
    (home / "cam2" / "person400").mkdir()
    says(error("ilids_vid", ilids, tmp_path), 10, "rows", 7, "people")
    for camera in ("cam1", "cam2"):
        (home / camera / "person400").rmdir()
    (home / "cam1" / "person014" / "cam1_person002_00001.png").write_bytes(b"")
    shutil.rmtree(home / "cam2" / "person300")
    (home / "cam2" / "person300").mkdir()
    message = error("ilids_vid", ilids, tmp_path)
    says(message, f"{home}/cam1/person014", "'cam1_person002_00001.png'")
    says(message, f"{home}/cam2/person300", "frame")
    shutil.rmtree(home / "cam2")
    says(error("ilids_vid", ilids, tmp_path), "i-LIDS-VID/sequences/cam2", "missing")
    (ilids / "train-test people splits" / SPLITS_FILE).unlink()
    says(error("ilids_vid", ilids, tmp_path), SPLITS_FILE, "missing")


def test_ilids_vid_damaged_frames_are_named_and_counted(ilids, tmp_path):
    home = ilids / "i-LIDS-VID" / "sequences"
    cut = home / ilids_files("person002", 1)[1]
    cut.write_bytes(cut.read_bytes()[:-9])
    (home / os.fsdecode(b"cam2/person319/cam2_person319_0000\xff.png")).write_bytes(b"")
    (home / "cam2" / "person319" / "Thumbs.db").write_bytes(b"")
    path, splits = prepare("ilids_vid", ilids, tmp_path, max_excluded=0.1)
    assert list(splits["train"][0]["frame_index"]) == [0, 2, 3, 4] and len(splits["train"][3]["frames"]) == 5
    facts = read_metadata(path)
    assert [entry["fault"] for entry in facts["excluded_frames"]] == [
        "has a name that is not UTF-8",
        "truncated: no IEND chunk",
    ]
    assert any("Thumbs.db" in line for line in facts["warnings"])


PRID_PEOPLE = (1, 2, 3, 4, 5, 7)  # of the video protocol, which has no person 6
PRID_SPLITS = [
    {"train": ["person_0004", "person_0001", "person_0007"], "test": ["person_0003", "person_0002", "person_0005"]},
    *(
        {"train": [f"person_{n:04d}" for n in (1, 2, 3)], "test": [f"person_{n:04d}" for n in (4, 5, 7)]}
        for _ in range(9)
    ),
]


def prid_files(person, camera):
    length = 2 + (person + (camera == "cam_b")) % 4
    return [f"{camera}/person_{person:04d}/{frame:04d}.png" for frame in range(1, length + 1)]


@pytest.fixture
def prid(tmp_path):
    home = tmp_path / "source" / "prid_2011" / "multi_shot"
    people = (*PRID_PEOPLE, 6)
    write(home, [f for person in people for c in ("cam_a", "cam_b") for f in prid_files(person, c)], suffix=".png")
    write(home, prid_files(385, "cam_a"), suffix=".png")  # cameras saw many people alone
    (tmp_path / "source" / "splits_prid2011.json").write_text(json.dumps(PRID_SPLITS))
    return tmp_path / "source"


def test_prid2011_every_field(prid, tmp_path):
    path, splits = prepare("prid2011", prid, tmp_path)
    facts = read_metadata(path)
    assert path.parent.name == "split_0_unchecked" and facts["protocols"] == ["single_match"]
    assert facts["own_split"] is False and facts["train_pids"] == [1, 4, 7]
    source = f"prid2011/split_0_unchecked 1.0.0 lists {facts['lists']}"
    home = prid / "prid_2011" / "multi_shot"
    labels = {1: 0, 4: 1, 7: 2}

    def files(people, *cameras):
        return {f"{c}_person_{person:04d}": prid_files(person, c) for person in people for c in cameras}

    check(splits["train"], files((4, 1, 7), "cam_a", "cam_b"), home, "train", source, labels)
    check(splits["query"], files((3, 2, 5), "cam_a"), home, "query", source, labels)
    check(splits["gallery"], files((3, 2, 5), "cam_b"), home, "gallery", source, labels)
    assert ends(splits["train"][0]) == ("cam_a/person_0004/0001.png", "cam_a/person_0004/0002.png")
    assert ends(splits["query"][1]) == ("cam_a/person_0002/0001.png", "cam_a/person_0002/0004.png")
    assert ends(splits["gallery"][2]) == ("cam_b/person_0005/0001.png", "cam_b/person_0005/0004.png")
    _, splits = prepare("prid2011", prid / "prid_2011", tmp_path / "inner", "split_9_unchecked")
    assert len(splits["query"]) == 3  # an own split: the file lies elsewhere
    shutil.copy(prid / "splits_prid2011.json", prid / "prid_2011")
    _, splits = prepare("prid2011", prid / "prid_2011", tmp_path / "beside", "split_9_unchecked")
    assert ids(splits["query"]) == ["cam_a_person_0004", "cam_a_person_0005", "cam_a_person_0007"]


def test_prid2011_published_counts(prid, tmp_path):
    message = error("prid2011", prid, tmp_path, strict_counts=True)
    says(message, "train", "expected", 178, "tracklets", 6)
    says(message, "query", "expected", 89, "tracklets", 3)
    says(message, "gallery", "expected", 89, "identities", 3)
    says(message, "names", "people", 178)
    people = module("prid2011", "published").PEOPLE
    assert len(people) == 178 and people[0] == "person_0001" and people[-1] == "person_0198"
    assert not {"person_0006", "person_0190", "person_0199"} & set(people)


def test_prid2011_without_its_split_file(prid, tmp_path, caplog):
    (prid / "splits_prid2011.json").unlink()
    message = error("prid2011", prid, tmp_path, strict_counts=True)
    says(message, "splits_prid2011.json", "missing", "people", "split")
    drawn = []
    for fold in range(4):
        path, splits = prepare("prid2011", prid, tmp_path, f"split_{fold}_unchecked")
        assert read_metadata(path)["own_split"] is True
        people = {split: {record["pid"] for record in records} for split, records in splits.items()}
        assert people["query"] == people["gallery"] and len(people["train"]) == 3
        assert people["train"] | people["query"] == set(PRID_PEOPLE) and not people["train"] & people["query"]
        drawn.append(frozenset(people["train"]))
    assert len(set(drawn)) > 1
    says(caplog.text, "split", "own")
    # The same every time.
    _, splits = prepare("prid2011", prid, tmp_path / "again", "split_0_unchecked")
    assert {record["pid"] for record in splits["train"]} == drawn[0]


@pytest.mark.parametrize(
    ("splits", "named"),
    [
        ([{**PRID_SPLITS[0], "test": ["person_0004"]}, *PRID_SPLITS[1:]],
         ("split 0", 1, "people", "train", "test", "person_0004")),
        ([{**PRID_SPLITS[0], "test": ["person_0002"] * 2}, *PRID_SPLITS[1:]], ("split 0", "names", "twice")),
        ([{**PRID_SPLITS[0], "test": ["person_0500"]}, *PRID_SPLITS[1:]], ("cam_a/person_0500", "missing")),
        ([{**PRID_SPLITS[0], "test": ["person_0385"]}, *PRID_SPLITS[1:]], ("cam_b/person_0385", "missing")),
        ([{"train": ["person_0001"]}, *PRID_SPLITS[1:]], ("JSON", "splits", "'train'", "'test'")),
        ([{"train": ["0001"], "test": []}, *PRID_SPLITS[1:]], ("names", "person_0001")),
        (PRID_SPLITS[:9], (9, "splits", 10)),
        (7, ("JSON", "splits")),
    ],
)  # fmt: skip
def test_prid2011_split_files_that_are_wrong(prid, tmp_path, splits, named):
    (prid / "splits_prid2011.json").write_text(json.dumps(splits))
    says(error("prid2011", prid, tmp_path), *named)


def test_prid2011_folders_that_are_wrong(prid, tmp_path):
    home = prid / "prid_2011" / "multi_shot"
    (home / "cam_a" / "person_0004" / "frame.png").write_bytes(b"")
    shutil.rmtree(home / "cam_b" / "person_0003")
    (home / "cam_b" / "person_0003").mkdir()
    message = error("prid2011", prid, tmp_path)
    says(message, "cam_a/person_0004", "'frame.png'", "frames")
    says(message, "cam_b/person_0003", "frame")
    (prid / "splits_prid2011.json").write_bytes(b"\xff\xfe[")
    says(error("prid2011", prid, tmp_path), "JSON", "splits")
