"""The LS-VID builder on small trees of both layouts: every field, and how what is wrong is named."""

import dataclasses
import importlib
import os

import h5py
import numpy as np
import pytest
from builder_trees import check_fields, edit, ends, error, ids, prepare, write
from messages import says

from jaxreid.data.build import build, main
from jaxreid.data.builders import builder_class
from jaxreid.data.prepared import read_metadata

listing = importlib.import_module(f"{builder_class('ls_vid').__module__.rsplit('.', 1)[0]}.listing")


@dataclasses.dataclass
class Row:
    """A line of a list as the test lays it out: the frames of a prefix count on from 1."""

    split: str
    pid: int
    camera: int
    number: int
    length: int

    @property
    def name(self):
        return f"{self.pid % 10000:04d}_{self.number:04d}_{self.camera:02d}_{self.number}"

    @property
    def prefix(self):
        return f"tracklet_{self.split}/{self.pid % 10000:04d}/{self.name}"

    def files(self, home="", first=1):
        return [f"{home or self.prefix}_{frame:04d}.jpg" for frame in range(first, first + self.length)]


# One prefix is the beginning of another: …_1 and …_10.
TRAIN = [
    Row("train", 7, 1, 1, 3), Row("train", 7, 1, 10, 2), Row("train", 7, 15, 2, 2), Row("train", 7, 15, 3, 2),
    Row("train", 2, 1, 1, 4), Row("train", 2, 1, 2, 2), Row("train", 2, 9, 3, 5), Row("train", 2, 9, 4, 2),
    Row("train", 30, 1, 1, 2), Row("train", 30, 15, 2, 2),
]  # fmt: skip
VAL = [Row("val", 40, 1, 1, 2), Row("val", 41, 2, 1, 3)]
TEST = [
    Row("test", 50, 1, 1, 2), Row("test", 50, 15, 2, 5), Row("test", 50, 15, 3, 2),
    Row("test", -1, 4, 4, 2),  # left out
    Row("test", 51, 1, 1, 2), Row("test", 51, 2, 2, 3), Row("test", 52, 9, 1, 2), Row("test", 52, 1, 2, 4),
]  # fmt: skip
QUERIES = [2, 5, 8]
LABELS = {2: 0, 7: 1, 30: 2}


def write_hdf5(path, key, table):
    """As MATLAB 7.3 does: HDF5 behind a header of its own, columns first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        file[key] = np.asarray(table, np.float64).T
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def write_lists(folder, val=True, **changed):
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in {"train": TRAIN, "val": VAL, "test": TEST, **changed}.items():
        if part != "val" or val:
            text = "".join(f"{row.prefix} {row.pid}\n" for row in rows)
            (folder / f"list_seq_{part}.txt").write_text(text)


def write_arrays(root, queries=QUERIES, cameras=None):
    cameras = [row.camera for row in TEST] if cameras is None else cameras
    (root / "test").mkdir(exist_ok=True)
    np.save(root / "test" / "query.npy", np.array(queries, np.float64))
    np.save(root / "test" / "info_test.npy", np.array([[1, 2, row, camera] for row, camera in enumerate(cameras)]))


@pytest.fixture
def tree(tmp_path):
    """The newer layout."""
    root = tmp_path / "LS-VID"
    write_lists(root / "list_sequence")
    write_arrays(root)
    write(root, [file for row in (*TRAIN, *VAL, *TEST) for file in row.files()])
    return root


def check(records, rows, role, root, source, merged=False):
    assert ids(records) == [row.name for row in rows]
    for record, row in zip(records, rows, strict=True):
        files = row.files(row.prefix.replace(f"tracklet_{row.split}", "tracklet") if merged else "")
        check_fields(
            record,
            frames=[(root / file).read_bytes() for file in files],
            frame_names=files,
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
            source=source,
        )


def check_splits(path, splits, root, merged=False):
    limit = ", tracklets thinned to 128 frames"
    source = f"ls_vid/standard_unchecked 1.0.0 lists {read_metadata(path)['lists']}{limit}"
    gallery = [TEST[row] for row in (0, 2, 5, 6)]
    check(splits["train"], TRAIN, "train", root, source, merged)
    check(splits["query"], [TEST[row] for row in (1, 4, 7)], "query", root, source, merged)
    check(splits["gallery"], gallery, "gallery", root, source, merged)


def test_every_field_of_the_newer_layout(tree, tmp_path):
    path, splits = prepare("ls_vid", tree, tmp_path)
    assert path == tmp_path / "data" / "ls_vid" / "standard_unchecked" / "1.0.0"
    assert list(splits) == ["train", "query", "gallery", "val"] and ids(splits["val"]) == [row.name for row in VAL]
    check_splits(path, splits, tree)
    for split, index, first, last in (
        ("train", 0, "tracklet_train/0007/0007_0001_01_1_0001.jpg", "tracklet_train/0007/0007_0001_01_1_0003.jpg"),
        ("train", 1, "tracklet_train/0007/0007_0010_01_10_0001.jpg", "tracklet_train/0007/0007_0010_01_10_0002.jpg"),
        ("train", 6, "tracklet_train/0002/0002_0003_09_3_0001.jpg", "tracklet_train/0002/0002_0003_09_3_0005.jpg"),
        ("train", 9, "tracklet_train/0030/0030_0002_15_2_0001.jpg", "tracklet_train/0030/0030_0002_15_2_0002.jpg"),
        ("query", 0, "tracklet_test/0050/0050_0002_15_2_0001.jpg", "tracklet_test/0050/0050_0002_15_2_0005.jpg"),
        ("query", 2, "tracklet_test/0052/0052_0002_01_2_0001.jpg", "tracklet_test/0052/0052_0002_01_2_0004.jpg"),
        ("gallery", 3, "tracklet_test/0052/0052_0001_09_1_0001.jpg", "tracklet_test/0052/0052_0001_09_1_0002.jpg"),
    ):
        assert ends(splits[split][index]) == (first, last)
    facts = read_metadata(path)
    assert facts["protocols"] == ["market", "market_full"] and facts["train_pids"] == [2, 7, 30]
    assert facts["dropped_tracklets"] == {"train": 0, "val": 0, "test": 1}
    says(facts["warnings"], "splits", "expected", 2982685, "frames", 51)


@pytest.mark.parametrize("lists", ["list_sequence", "info/list_sequence"])
def test_every_field_of_the_older_layout(tmp_path, lists):
    """A MATLAB file of version 7.3, one folder of tracklets, no validation."""
    root = tmp_path / "LS-VID"
    write_lists(root / lists, val=False)
    home = "info/data" if lists.startswith("info") else "test/data"
    write_hdf5(root / home / "info_test.mat", "query", np.array(QUERIES)[:, None])
    rows = [(row, row.prefix.replace(f"tracklet_{row.split}", "tracklet")) for row in (*TRAIN, *TEST)]
    write(root, [file for row, prefix in rows for file in row.files(prefix)])
    path, splits = prepare("ls_vid", root, tmp_path)
    assert list(splits) == ["train", "query", "gallery"]
    check_splits(path, splits, root, merged=True)


def test_prefixes_that_begin_like_another(tree, tmp_path):
    rows = [Row("train", 7, 1, 1, 2), dataclasses.replace(TRAIN[0], number=10)]
    assert rows[0].name == "0007_0001_01_1" and rows[1].name == "0007_0010_01_10"
    write(tree, ["tracklet_train/0007/0007_0001_01_10_0001.jpg"])  # not a frame of 0007_0001_01_1
    _, splits = prepare("ls_vid", tree, tmp_path)
    assert len(splits["train"][0]["frames"]) == 3
    edit(tree / "list_sequence" / "list_seq_train.txt", TRAIN[1].prefix, f"{TRAIN[0].prefix}_0001")
    message = error("ls_vid", tree, tmp_path / "other")
    says(message, "row", 1)
    says(message, "frames", f"{TRAIN[0].prefix}_0001")


def test_long_tracklets_are_thinned(tree, tmp_path):
    write(tree, [f"{TEST[0].prefix}_{frame:04d}.jpg" for frame in range(1, 257)])
    path, splits = prepare("ls_vid", tree, tmp_path)
    record = splits["gallery"][0]
    assert len(record["frames"]) == 128 and record["num_frames_source"] == 256
    assert list(record["frame_index"]) == list(range(0, 256, 2))
    assert ends(record) == (f"{TEST[0].prefix}_0001.jpg", f"{TEST[0].prefix}_0255.jpg")
    path, splits = prepare("ls_vid", tree, tmp_path, max_frames=0)
    assert path.parent.name == "standard_max0_unchecked" and len(splits["gallery"][0]["frames"]) == 256


def test_published_counts(tree, tmp_path, monkeypatch):
    message = error("ls_vid", tree, tmp_path, strict_counts=True)
    says(message, "train", "expected", 842, "identities", 3)
    says(message, "train", "expected", 2831, "tracklets", 10)
    says(message, "query", "expected", 3504, "tracklets", 3)
    says(message, "gallery", "expected", 7829, "tracklets", 4)
    says(message, "test", "expected", 2730, "identities", 3)
    says(message, "test", "expected", 11333, "tracklets", 7)
    says(message, "splits", "expected", 15, "cameras", 4)
    counts = {"train": {"tracklets": 10, "identities": 3, "cameras": 4}, "test": {"tracklets": 7, "identities": 3}}
    monkeypatch.setattr(listing, "COUNTS", counts)
    path = build("ls_vid", source=tree, data_dir=tmp_path / "data")
    assert path.parent.name == "standard" and read_metadata(path)["differences"] == []


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (f"{TRAIN[1].prefix} 7\n", f"{TRAIN[1].prefix}\n", ("row 2", "'prefix identity'")),
        (f"{TRAIN[1].prefix} 7\n", f"{TRAIN[1].prefix} seven\n", ("row 2", "'prefix identity'")),
        (TRAIN[1].prefix, "tracklet_train/0007/0007_0009_01_9",
         ("row 2", "frame", "tracklet_train/0007/0007_0009_01_9_*.jpg")),
        (TRAIN[1].prefix, "tracklet_train/0099/0099_0009_01_9", ("tracklet_train/0099", "missing")),
        (TRAIN[1].prefix, TRAIN[0].prefix, (1, "tracklets", "several", "rows", "0007_0001_01_1")),
        (TRAIN[1].prefix, "tracklet_train/0007/0007", ("row 2", "frames", TRAIN[0].prefix)),
    ],
)  # fmt: skip
def test_lists_that_are_wrong(tree, tmp_path, old, new, named):
    edit(tree / "list_sequence" / "list_seq_train.txt", old, new)
    message = error("ls_vid", tree, tmp_path)
    says(message, *named)


def test_cameras_that_are_not_told(tree, tmp_path):
    write_arrays(tree, cameras=[row.camera if row is not TEST[1] else 3 for row in TEST])
    message = error("ls_vid", tree, tmp_path)
    says(message, "name", "camera", 1, 15, 3)
    write_arrays(tree, cameras=[1])
    says(error("ls_vid", tree, tmp_path), 8, "rows", "cameras", 1)
    write_arrays(tree)
    for wrong in ("cam1", "16"):
        row = f"tracklet_train/0007/0007_0001_{wrong}_1"
        write(tree, [f"{row}_0001.jpg"])
        write_lists(tree / "list_sequence")
        edit(tree / "list_sequence" / "list_seq_train.txt", TRAIN[0].prefix, row)
        says(error("ls_vid", tree, tmp_path), "name", "camera", 1, 15)


@pytest.mark.parametrize(
    ("queries", "named"),
    [
        ([0, 2], ("row 0", "test", 8, "rows")),
        ([9], ("row 9",)),
        ([2, 2], ("names", 1, "rows", "once")),
        ([1.5], ("whole", "numbers")),
    ],
)
def test_query_lists_that_are_wrong(tree, tmp_path, queries, named):
    write_arrays(tree, queries=queries)
    says(error("ls_vid", tree, tmp_path), *named)
    if queries != [1.5]:
        for file in (tree / "test").iterdir():
            file.unlink()
        write_hdf5(tree / "test" / "data" / "info_test.mat", "query", np.array(queries)[:, None])
        says(error("ls_vid", tree, tmp_path), *named)


def test_query_files_that_cannot_be_read(tree, tmp_path, monkeypatch):
    array, table = tree / "test" / "query.npy", tree / "test" / "data" / "info_test.mat"
    array.write_bytes(b"\x93NUMPY")
    says(error("ls_vid", tree, tmp_path), array)
    array.unlink()
    says(error("ls_vid", tree, tmp_path), "info_test.mat", "missing")
    write_hdf5(table, "other", [[1]])
    says(error("ls_vid", tree, tmp_path), table, "'query'")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    says(error("ls_vid", tree, tmp_path), "h5py", "pip install 'jaxreid[hdf5]'")


def test_damaged_frames_and_names_that_are_not_utf8(tree, tmp_path):
    cut = tree / TRAIN[0].files()[1]
    cut.write_bytes(cut.read_bytes()[:-30])
    (tree / "tracklet_train" / "0007" / os.fsdecode(b"0007_0001_01_1_\xff.jpg")).write_bytes(b"")
    path, splits = prepare("ls_vid", tree, tmp_path, max_excluded=0.1)
    assert list(splits["train"][0]["frame_index"]) == [0, 2]
    assert [entry["fault"] for entry in read_metadata(path)["excluded_frames"]] == [
        "has a name that is not UTF-8",
        "truncated: no end-of-image marker",
    ]


def test_neither_prepared_nor_a_source(tmp_path, capsys):
    assert main(["ls_vid", "--data_dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "PKU-VMC" in message and "DIR/list_sequence/list_seq_train.txt" in message and "h5py" in message
