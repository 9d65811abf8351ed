"""Builders of skeleton-only sets on small trees of the true layouts: joints, splits, clips, and what is wrong named."""

import hashlib
import importlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from builder_trees import check_fields, error, ids, prepare
from messages import refuses, says

from jaxreid.data import schema
from jaxreid.data.build import build, main
from jaxreid.data.builders import builder_class
from jaxreid.data.building import skeletons
from jaxreid.data.clips import ClipPlan
from jaxreid.data.extras import Extra, ExtraReader
from jaxreid.data.loader import LoaderOptions, batches
from jaxreid.data.prepared import read_metadata
from jaxreid.data.split import join, open_split
from jaxreid.errors import DataSetError

FOLDERS = {
    "biwi": {"train": "Training", "query": "Testing/Walking", "gallery": "Testing/Still"},
    "ias_lab": {"train": "Training", "query": "TestingA", "gallery": "TestingB"},
}
PEOPLE = ("002", "007", "010")
FRAMES = {"train": 29, "query": 33, "gallery": 27}  # 9 or 19, 13 and 7 are left after trimming
TRIM = {"biwi": {"train": (10, 10)}, "ias_lab": {"train": (10, 0)}}
SESSIONS = {"biwi": (-1, -1, -1), "ias_lab": (0, 1, 2)}
VIEWS = ("frontal", "left_diagonal", "left_lateral", "right_diagonal", "right_lateral")


def joints_of(place, frame, count):
    """Numbers that tell person, split, frame and joint, exact in a file of six decimals."""
    return np.random.default_rng([*place.encode(), frame]).integers(-4000, 4000, (count, 3)) / 1000


def skeleton(joints, state=2, person=1):
    return "".join(
        f"{person},{x:.6f},{y:.6f},{z:.6f},{100 + i},{200 + i},{state},0,{i},{i},0.0,0.0,0.0,1.0\n"
        for i, (x, y, z) in enumerate(joints)
    )


def write_sequence(root, place, count, joints=20):
    (root / place).mkdir(parents=True)
    for frame in range(count):
        # As text, 9_skel.txt sorts behind 10_skel.txt.
        (root / place / f"{frame}-a_{frame * 33}_skel.txt").write_text(skeleton(joints_of(place, frame, joints)))
    (root / place / "0-a_0_rgb.jpg").write_bytes(b"beside it, and not looked at")


@pytest.fixture(params=["biwi", "ias_lab"])
def kinect(request, tmp_path):
    name, root = request.param, tmp_path / "raw"
    for split, folder in FOLDERS[name].items():
        for person in PEOPLE:
            write_sequence(root, f"{folder}/{person}", FRAMES[split])
    return name, root


@pytest.fixture
def biwi(tmp_path):
    for split, folder in FOLDERS["biwi"].items():
        for person in PEOPLE:
            write_sequence(tmp_path / "raw", f"{folder}/{person}", FRAMES[split])
    return tmp_path / "raw"


def test_every_field_of_whole_sequences(kinect, tmp_path):
    name, root = kinect
    path, splits = prepare(name, root, tmp_path, clip_frames=0)
    assert path == tmp_path / "data" / name / "sequences_unchecked" / "1.0.0"
    assert list(splits) == ["train", "query", "gallery"]
    for (split, folder), session in zip(FOLDERS[name].items(), SESSIONS[name], strict=True):
        first, last = TRIM[name].get(split, (10, 10))
        assert ids(splits[split]) == [f"{folder}/{person}" for person in PEOPLE]
        for label, (record, person) in enumerate(zip(splits[split], PEOPLE, strict=True)):
            place, frames = f"{folder}/{person}", list(range(first, FRAMES[split] - last))
            check_fields(
                record,
                frames=[],
                frame_index=frames,
                num_frames_source=FRAMES[split],
                frame_names=[f"{place}/{frame}-a_{frame * 33}_skel.txt" for frame in frames],
                tracklet_id=place,
                joints3d=np.stack([joints_of(place, frame, 20) for frame in frames]).astype(np.float32),
                joints_valid=[True] * len(frames),
                pid=int(person),
                label=label if split == "train" else -1,
                camid=1,
                cam_name="kinect",
                modality="skeleton",
                recording=place,
                role=split,
                platform="ground",
                session=session,
                source=f"{name}/sequences_unchecked 1.0.0 lists {read_metadata(path)['lists']}",
            )
            assert record["joints3d"].dtype == np.float32
    facts = read_metadata(path)
    assert facts["protocols"] == ["skeleton"] and facts["joints"] == 20 and facts["joint_order"] == "kinect20"
    assert facts["train_pids"] == [2, 7, 10] and facts["sequences"] == {"train": 3, "query": 3, "gallery": 3}
    assert facts["excluded_files"] == [] and facts["untracked_frames"] == 0
    assert not any("in train and in the test splits" in line for line in facts["warnings"])


def test_clips(kinect, tmp_path, capsys):
    """Of 9 and 19 training frames (trimmed), 13 and 7 test frames, in clips of 6."""
    name, root = kinect
    path, splits = prepare(name, root, tmp_path)
    assert path.parent.name == "f6_unchecked"
    # Starts 0 and 3 for offset 0, one start for offsets 1, 2, 3; with 19 frames (19 − s − 6) // 3 + 1 for each offset.
    expected = {"biwi": 2 + 1 + 1 + 1, "ias_lab": 5 + 5 + 4 + 4 + 4 + 3}[name]
    assert len(splits["train"]) == 3 * expected
    assert len(splits["query"]) == 3 * 2 and len(splits["gallery"]) == 3 * 1
    first, second = splits["query"][:2]
    assert list(first["frame_index"]) == list(range(10, 16)) and list(second["frame_index"]) == list(range(16, 22))
    place = FOLDERS[name]["query"] + "/002"
    assert ids([first, second]) == [f"{place}/00010", f"{place}/00016"]
    np.testing.assert_array_equal(second["joints3d"][-1], joints_of(place, 21, 20).astype(np.float32))
    middle, last = splits["train"][len(splits["train"]) // 2], splits["train"][-1]
    assert middle["pid"] == 7 and last["pid"] == 10
    stop = {"biwi": 19, "ias_lab": 27}[name]  # offsets 3 and 5 leave 0 and 2 frames behind the last clip
    assert last["frame_index"][-1] == {"biwi": 18, "ias_lab": 26}[name] and last["frame_index"][-1] < stop
    assert {record["num_frames_source"] for record in splits["train"]} == {29}
    assert splits["train"][0]["recording"] == splits["train"][1]["recording"] == b"Training/002"
    assert main([name + "/f6_unchecked", "--data_dir", str(tmp_path / "data")]) == 0
    says(capsys.readouterr().out, "query", 6, "tracklets", 36, "frames", 3, "identities", 1, "cameras", "skeleton")


def test_clip_starts_by_hand():
    assert list(skeletons.clip_starts(13, 6, False)) == [(0, 0), (0, 6)]
    assert list(skeletons.clip_starts(10, 6, True)) == [(0, 0), (0, 3), (1, 1), (1, 4), (2, 2), (3, 3), (4, 4)]
    assert list(skeletons.clip_starts(5, 6, True)) == list(skeletons.clip_starts(5, 6, False)) == []


def test_frames_with_an_untracked_joint_are_dropped_before_trimming(biwi, tmp_path):
    file = biwi / "Testing/Walking/002/12-a_396_skel.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:19], lines[19].replace(",2,0,", ",0,0,")]))  # the last joint
    inferred = biwi / "Testing/Walking/002/13-a_429_skel.txt"
    inferred.write_text(inferred.read_text().replace(",2,0,", ",1,0,"))
    path, splits = prepare("biwi", biwi, tmp_path, clip_frames=0)
    assert list(splits["query"][0]["frame_index"]) == [10, 11, *range(13, 23)]
    assert splits["query"][0]["num_frames_source"] == 33 and read_metadata(path)["untracked_frames"] == 1


def test_only_the_first_person_of_a_frame_counts_and_nobody_is_masked(kinect, tmp_path):
    name, root = kinect
    place = FOLDERS[name]["query"] + "/002"
    two = root / place / "15-a_495_skel.txt"
    two.write_text(two.read_text() + skeleton(joints_of("x", 0, 20), state=0, person=2))
    nobody = root / place / "16-a_528_skel.txt"
    nobody.write_text(skeleton(np.zeros((20, 3))))
    path, splits = prepare(name, root, tmp_path, clip_frames=0)
    record, faults = splits["query"][0], read_metadata(path)["excluded_files"]
    if name == "biwi":
        np.testing.assert_array_equal(record["joints3d"][5], joints_of(place, 15, 20).astype(np.float32))
        assert faults == []
    else:  # all of its lines must be of one tracked person
        assert faults == [{"path": f"{place}/15-a_495_skel.txt", "fault": "has 40 lines, not 20"}]
    there = dict(zip(record["frame_index"], record["joints_valid"], strict=True))
    assert [frame for frame, valid in there.items() if not valid] == [16]


def test_damaged_files_are_named_counted_and_left_out(biwi, tmp_path, caplog):
    home = biwi / "Training/007"
    text = (home / "11-a_363_skel.txt").read_text()
    (home / "11-a_363_skel.txt").write_text(text[: len(text) // 2])
    (home / "12-a_396_skel.txt").write_text(text.replace("1,", "one,", 1).replace(",2,0,", ",x,0,", 1))
    (home / "13-a_429_skel.txt").write_bytes(b"\xff\xfe" * 50)
    (home / "14-a_462_skel.txt").write_text(text.replace(text.split(",")[1], "nan", 1))
    (home / "15-a_495_skel.txt").write_bytes(b"")
    (home / "16-a_528_skel.txt").write_text(text.replace(",", ";"))
    path, splits = prepare("biwi", biwi, tmp_path, clip_frames=0, max_excluded=0.1)
    faults = {entry["path"].split("/")[-1]: entry["fault"] for entry in read_metadata(path)["excluded_files"]}
    assert list(faults) == [f"{frame}-a_{frame * 33}_skel.txt" for frame in range(11, 17)]
    assert "lines, not 20" in faults["11-a_363_skel.txt"] and "could not convert" in faults["12-a_396_skel.txt"]
    assert "utf-8" in faults["13-a_429_skel.txt"] and "not finite" in faults["14-a_462_skel.txt"]
    assert faults["15-a_495_skel.txt"] == "has 0 lines, not 20"
    assert faults["16-a_528_skel.txt"] == "line 1 has 1 fields, at least 7 are needed"
    assert list(splits["train"][1]["frame_index"]) == [10, 17, 18]  # of 23 that are whole, ten are cut on each side
    says(caplog.text, "6 of 267", "frames")
    says(caplog.text, f"{biwi}/Training/007/11-a_363_skel.txt")
    message = error("biwi", biwi, tmp_path / "other", max_excluded=0.02)
    says(message, "6 of 267", "frames", "2.2%", "2.0%")


def test_a_file_whose_name_is_no_utf8_is_named_and_left_out(biwi, tmp_path):
    home = biwi / "Training/010"
    source = home / "15-a_495_skel.txt"
    try:
        source.rename(home / b"15-\xe4_skel.txt".decode("utf-8", "surrogateescape"))
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    path, splits = prepare("biwi", biwi, tmp_path, clip_frames=0)
    faults = read_metadata(path)["excluded_files"]
    assert len(faults) == 1 and faults[0]["path"] == "Training/010/15-\\xe4_skel.txt"
    assert faults[0]["fault"] == "has a name that is not UTF-8" and splits["train"][2]["num_frames_source"] == 29


def test_folders_that_are_not_as_expected(biwi, tmp_path):
    for file in (biwi / "Training/002").glob("*skel.txt"):
        file.unlink()
    (biwi / "Testing/Still/010").rename(biwi / "Testing/Still/somebody")
    message = error("biwi", biwi, tmp_path)
    says(message, f"{biwi}/Training/002", "*skel.txt")
    says(message, f"{biwi}/Testing/Still/somebody", "person's")
    (biwi / "Testing/Walking").rename(biwi / "Walking")
    message = error("biwi", biwi, tmp_path)
    says(message, "Testing/Walking", "missing", biwi, f"{biwi}/BIWI")
    says(message, "expected")
    says(message, "DIR/Training/000/*skel.txt")


def test_short_sequences_are_named(biwi, tmp_path, caplog):
    for frame in range(20, 33):
        (biwi / f"Testing/Walking/007/{frame}-a_{frame * 33}_skel.txt").unlink()
    path, splits = prepare("biwi", biwi, tmp_path)
    assert {record["pid"] for record in splits["query"]} == {2, 10}
    says(caplog.text, 1, "sequences", "Testing/Walking/007", 0, "frames")
    assert read_metadata(path)["short_sequences"] == ["Testing/Walking/007 (0 frames)"]


def test_counts_that_are_asserted_and_counts_that_are_remembered(biwi, tmp_path, caplog):
    # Without the path, in which pytest numbers its runs.
    message = error("biwi", biwi, tmp_path, strict_counts=True).replace(str(tmp_path), "")
    assert "28" not in message
    says(message, "train", "expected", 50, "identities", 3)
    prepare("biwi", biwi, tmp_path)
    says(caplog.text, "query", "expected", 28, "identities", 3)
    with refuses(DataSetError, "biwi", "robotics.dei.unipd.it/reid"):
        build("biwi", data_dir=tmp_path / "data")


def test_the_archive_may_have_a_folder_around_it(biwi, tmp_path):
    (tmp_path / "outer").mkdir()
    biwi.rename(tmp_path / "outer" / "BIWI")
    _, splits = prepare("biwi", tmp_path / "outer", tmp_path, clip_frames=0)
    assert splits["train"][0]["frame_names"][0] == b"Training/002/10-a_330_skel.txt"


def test_a_skeleton_set_is_opened_and_pixels_are_refused(biwi, tmp_path):
    path, _ = prepare("biwi", biwi, tmp_path)
    train, query = open_split(path, "train"), open_split(path, "query")
    assert len(query) == 6 and query.table.length.tolist() == [6] * 6
    assert set(query.table.modality.tolist()) == {schema.MODALITIES.index("skeleton")}
    assert sorted(set(train.labels.identity.tolist())) == [0, 1, 2] and set(query.labels.identity.tolist()) == {-1}
    for reader, row in ((pickle.loads(pickle.dumps(query.reader(cache=True))), 5),
                        (join([train, query]).reader(cache=False), len(train) + 5)):  # fmt: skip
        joints, valid = reader.joints(row)
        assert joints.shape == (6, 20, 3) and valid.all()
        np.testing.assert_array_equal(joints[0], joints_of("Testing/Walking/010", 16, 20).astype(np.float32))
        with refuses(ValueError, "'Testing/Walking/010/00016'", "skeletons"):
            reader.decode(row, 0)


# --- KS20 ------------------------------------------------------------------------------------------------------------


def test_joints_of_the_records_are_an_extra_and_no_picture_is_read(biwi, tmp_path):
    path, splits = prepare("biwi", biwi, tmp_path, clip_frames=0)
    train = open_split(path, "train")
    assert train.skeletons
    frames = np.array([[0, 2, 4], [1, 3, 3]], np.int32)
    plan = ClipPlan(np.arange(2, dtype=np.int32), np.zeros(2, np.int32), frames, np.array([[1, 1, 1], [1, 1, 0]], bool))

    def read(joints):
        extras = ExtraReader(train, train.reader(cache=False), {"joints3d": Extra((joints, 3))})
        return next(batches(train, plan, 2, LoaderOptions(8, 4), uses_identity=False, extras=extras))

    batch = read(20)
    by_name = {record["tracklet_id"].decode(): record for record in splits["train"]}
    for clip in range(2):
        record, kept = by_name[train.labels.names[clip]], plan.mask[clip]
        wanted = record["joints3d"][frames[clip, kept]]
        np.testing.assert_array_equal(batch.extras["joints3d"][clip, kept], wanted)
    np.testing.assert_array_equal(batch.extras["joints3d_mask"], plan.mask)
    assert not batch.frames.any() and not batch.extras["joints3d"][1, 2].any()
    with refuses(ValueError, train.labels.names[0], [20, 3], [25, 3]):
        read(25)


@pytest.fixture
def ks20(tmp_path):
    """People 1, 2, 24 in five views, three recordings each, of 13 frames; one has a fourth recording."""
    root = tmp_path / "ks"
    for view in VIEWS:
        (root / view).mkdir(parents=True)
        for body, recording in [(b, r) for b in (1, 2, 24) for r in (1, 2, 3)] + [(24, 4)]:
            for frame in range(13):
                place = f"{view}/gc{recording}_body{body}"
                lines = [f"{i},{x:.6f},{y:.6f},{z:.6f}\n" for i, (x, y, z) in enumerate(joints_of(place, frame, 25))]
                (root / f"{place}_{95 + frame}_skel.txt").write_text("".join(lines))
    return root


def drawn_by_hand(seed, body, recordings):
    order = sorted(recordings, key=lambda r: hashlib.sha256(f"{seed} {body} {r}".encode()).hexdigest())
    return {"gallery": f"gc{order[0]}", "query": f"gc{order[1]}"}


def test_ks20_every_field(ks20, tmp_path, caplog):
    path, splits = prepare("ks20", ks20, tmp_path, clip_frames=0)
    assert path.parent.name == "sequences-seed0_unchecked"
    drawn = read_metadata(path)["drawn"]
    assert drawn == {str(b): drawn_by_hand(0, b, range(1, 5 if b == 24 else 4)) for b in (1, 2, 24)}
    assert [len(splits[split]) for split in ("train", "query", "gallery")] == [5 * (1 + 1 + 2), 15, 15]
    seen = set()
    for split, records in splits.items():
        for record in records:
            view, body, recording = record["tracklet_id"].decode().split("/")
            pid, camera = int(body.removeprefix("body")), VIEWS.index(view) + 1
            seen.add((view, pid, recording))
            place = f"{view}/{recording}_body{pid}"
            check_fields(
                record,
                frames=[],
                frame_index=range(13),
                num_frames_source=13,
                # 95 … 107: the times, not the texts, give the order.
                frame_names=[f"{place}_{time}_skel.txt" for time in range(95, 108)],
                tracklet_id=f"{view}/body{pid:02d}/{recording}",
                joints3d=np.stack([joints_of(place, frame, 25) for frame in range(13)]).astype(np.float32),
                joints_valid=[True] * 13,
                pid=pid,
                label={1: 0, 2: 1, 24: 2}[pid] if split == "train" else -1,
                camid=camera,
                cam_name=view,
                modality="skeleton",
                recording=f"{view}/body{pid:02d}/{recording}",
                role={v: k for k, v in drawn[str(pid)].items()}.get(recording, "train"),
                platform="ground",
                source=f"ks20/sequences-seed0_unchecked 1.0.0 lists {read_metadata(path)['lists']}",
            )
            assert schema.ROLES[record["role"]] == split
    assert len(seen) == 50
    facts = read_metadata(path)
    assert facts["joint_order"] == "kinect25" and facts["seed"] == 0
    assert [camera["name"] for camera in facts["cameras"]] == list(VIEWS)
    says(caplog.text, "expected", 300, "sequences", 50)
    says(error("ks20", ks20, tmp_path / "2", strict_counts=True), "train", "expected", 20, "identities", 3)


def test_ks20_seed_is_part_of_the_name(ks20, tmp_path):
    path, splits = prepare("ks20", ks20, tmp_path, seed=3)
    assert path.parent.name == "f6-seed3_unchecked" and len(splits["query"]) == 15 * 2
    assert read_metadata(path)["drawn"]["2"] == drawn_by_hand(3, 2, (1, 2, 3))
    assert build("ks20/f6-seed3_unchecked", data_dir=tmp_path / "data") == path


def test_ks20_bad_input(ks20, tmp_path):
    (ks20 / "frontal" / "rename.py").write_text("beside them, and not looked at")
    (ks20 / "frontal" / "gc1_body1_95_skel.txt").rename(ks20 / "frontal" / "gc1_person1_95_skel.txt")
    for file in ks20.rglob("gc3_body2_*"):
        file.unlink()
    message = error("ks20", ks20, tmp_path)
    says(message, f"{ks20}/frontal/gc1_person1_95_skel.txt", "name", "gc1_body12_TIMESTAMP_")
    assert "rename.py" not in message
    says(message, "body2", 2, "recordings", 3)


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "options", "named"),
    [
        ("biwi", "all", {}, ("'all'", "f6")),
        ("biwi", "f0", {}, ("'f0'",)),
        ("biwi", "f6", {"clip_frames": 4}, ("clip_frames=4", "'f6'")),
        ("ias_lab", "f6", {"strict_counts": False}, ("strict_counts=False",)),
        ("ias_lab", None, {"clip_frames": -1}, ("clip_frames", "negative")),
        ("ias_lab", None, {"clip_frames": "6"}, ("clip_frames", "whole", "number", "'6'")),
        ("ks20", "f6", {}, ("f6-seed0",)),
        ("ks20", "f6-seed1", {"seed": 2}, ("seed=2",)),
        ("ks20", None, {"max_excluded": 5}, ("max_excluded", "share", 0, 1, 5)),
        ("biwi", None, {"seed": 1}, ("seed",)),
    ],
)
def test_configurations_and_options_that_are_refused(tmp_path, name, config, options, named):
    with refuses(DataSetError, *named):
        build(name, config, source=tmp_path, data_dir=tmp_path / "data", **options)


def test_a_prepared_set_is_found_without_heavy_imports(biwi, tmp_path):
    path, _ = prepare("biwi", biwi, tmp_path)
    code = """
import sys
from jaxreid.data.build import build
print(build("biwi/f6_unchecked", data_dir=sys.argv[1]))
print([m for m in ("tensorflow_datasets", "jax", "cv2", "tensorflow") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(path), "[]"]


def test_as_an_ordinary_tfds_builder(biwi, tmp_path, monkeypatch):
    """`tfds build --manual_dir` opens the class without a configuration of ours."""
    cls = builder_class("biwi")
    monkeypatch.setattr(cls, "ASSERTED", {"train": {"identities": 3}})
    builder = cls(data_dir=str(tmp_path / "data"))
    builder.download_and_prepare(
        file_format="array_record", download_config=tfds.download.DownloadConfig(manual_dir=str(biwi))
    )
    assert builder.info.splits["gallery"].num_examples == 3
    assert importlib.import_module(cls.__module__.rsplit(".", 1)[0]).VERSION == "1.0.0"
