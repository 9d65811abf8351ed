"""Sidecars from files of other codes: found by the frames' names, what is missing counted and named."""

import hashlib
import json

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from builder_trees import prepare
from mars_trees import Row, write_tree
from messages import refuses, says

from jaxreid.data.build import build
from jaxreid.data.sidecar_files import FRAME_FORMATS, FrameFiles, read_captions
from jaxreid.data.sidecar_import import import_sidecar
from jaxreid.data.sidecars import MissingSidecar, Sidecar, sidecar_kinds
from jaxreid.errors import DataSetError
from jaxreid.tools.import_sidecar import main

# Tracklet: its frames, in MARS's way of naming; folders stand for cameras here.
TRACKLETS = {
    "bbox_train/0001": [f"0001C1T0001F{frame:03d}" for frame in (1, 2, 3)],
    "bbox_train/0002": [f"0002C2T0001F{frame:03d}" for frame in (9, 10)],
    "bbox_test/0000": ["0000C1T0001F001"],
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    image = cv2.imencode(".jpg", np.zeros((16, 8, 3), np.uint8))[1].tobytes()
    for folder, frames in TRACKLETS.items():
        (root / folder).mkdir(parents=True)
        for frame in frames:
            (root / folder / f"{frame}.jpg").write_bytes(image)
    return build("folder", source=root, data_dir=tmp_path_factory.mktemp("data"))


@pytest.fixture
def prepared(built, tmp_path):
    """A copy, to which sidecars can be added."""
    copy = tmp_path / "folder" / built.parent.name / "1.0.0"
    copy.parent.mkdir(parents=True)
    copy.mkdir()
    for file in built.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def values_of(frame):
    return np.random.default_rng([*frame.encode()]).normal(size=(17, 3)).astype(np.float32)


def write(root, suffix, wrap, folders=TRACKLETS):
    for folder, frames in folders.items():
        (root / folder).mkdir(parents=True)
        for frame in frames:
            (root / folder / f"{frame}{suffix}").write_text(json.dumps(wrap(values_of(frame).tolist())))
    return root


@pytest.fixture
def skeletons(tmp_path):
    return write(tmp_path / "skeleton_3d_hmr2.0", ".json", lambda rows: {"keypoints": rows})


@pytest.fixture
def poses(tmp_path):
    return write(tmp_path / "keypoints", ".pose", lambda rows: rows)


@pytest.mark.parametrize("kind", ["joints3d", "keypoints"])
def test_every_frame_gets_its_own_values(kind, prepared, skeletons, poses, capsys):
    source = {"joints3d": skeletons, "keypoints": poses}[kind]
    assert main([kind, "--dataset", str(prepared), "--source", str(source)]) == 0
    says(capsys.readouterr().out, 3, "tracklets", 6, "frames", 0)
    sidecar = Sidecar.open(prepared, kind)
    for tracklet, frames in TRACKLETS.items():
        values, mask = sidecar.read(tracklet, range(len(frames)))
        wanted = np.stack([values_of(frame) for frame in frames])
        if kind == "keypoints":  # the centre of the first pixel, 0 in these files, is 0.5 in a sidecar
            wanted = wanted + np.array([0.5, 0.5, 0.0])
        np.testing.assert_array_equal(values, wanted.astype(np.float32))
        assert values.dtype == np.float32 and mask.all()
    assert sidecar.meta["order"] == {"joints3d": "Human3.6M-17", "keypoints": "COCO-17"}[kind]
    assert sidecar.meta["model"] == {"joints3d": "HMR2.0", "keypoints": "OpenPifPaf"}[kind]
    assert sidecar.meta["imported_from"] == str(source) and sidecar.meta["missing_frames"] == 0
    records = tfds.builder_from_directory(str(prepared)).as_data_source("train")
    assert len(records) == 3  # the records are as before


def test_what_is_missing_or_damaged_is_masked_counted_and_named(prepared, skeletons, capsys):
    first, second = skeletons / "bbox_train/0001", skeletons / "bbox_train/0002"
    (first / "0001C1T0001F001.json").unlink()
    (first / "0001C1T0001F002.json").write_text(json.dumps({"keypoints": np.zeros((17, 3)).tolist()}))
    (second / "0002C2T0001F010.json").write_text('{"keypoints": [[1, 2, 3')
    (skeletons / "bbox_test/0000/0000C1T0001F001.json").unlink()
    assert main(["joints3d", "--dataset", str(prepared), "--source", str(skeletons)]) == 0
    told = capsys.readouterr().out
    says(told, 2, "tracklets", 5, "frames", 1)
    says(told, 1, "frames")
    says(told, "bbox_train/0001", "bbox_train/0001/0001C1T0001F001.jpg")
    says(told, 1, "files")
    says(told, f"{second}/0002C2T0001F010.json")
    says(told, 1, "tracklets")
    says(told, "bbox_test/0000", "bbox_test/0000/0000C1T0001F001.jpg")
    sidecar = Sidecar.open(prepared, "joints3d")
    values, mask = sidecar.read("bbox_train/0001", [0, 1, 2])
    assert mask.tolist() == [False, False, True] and not values[:2].any()
    assert sidecar.read("bbox_train/0002", [0, 1])[1].tolist() == [True, False]
    with refuses(MissingSidecar, "bbox_test/0000"):
        sidecar.read("bbox_test/0000", [0])
    meta = sidecar.meta
    assert (meta["undetected_frames"], meta["missing_frames"], meta["missing_tracklets"]) == (1, 1, 1)
    assert len(meta["faults"]) == 1


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"joints": []}', ("'keypoints'",)),
        ("[1, 2]", ("'keypoints'",)),
        (json.dumps({"keypoints": [[1, 2]] * 17}), ("[17, 2]", "[17, 3]")),
        (json.dumps({"keypoints": [[1, 2, 3]] * 16 + [[1, 2]]}), ()),
        (json.dumps({"keypoints": [["x", 2, 3]] * 17}), ("'x'",)),
        (json.dumps({"keypoints": {"a": 1}}), ()),
        (json.dumps({"keypoints": [[float("nan"), 2, 3]] * 17}), ("finite",)),
        ("", ()),
    ],
)
def test_files_of_another_form(tmp_path, content, named):
    (tmp_path / "f.json").write_text(content)
    with refuses(ValueError, *named):
        FRAME_FORMATS["joints3d"].read(tmp_path / "f.json")


def test_files_may_lie_a_level_above_or_below(tmp_path):
    write(tmp_path / "a", ".json", lambda rows: rows, {"0001": ["f1"], "0002": ["f1"]})
    write(tmp_path / "b", ".json", lambda rows: rows, {"train/cam1/0001": ["f1"], "test/cam1/0002": ["f1"]})
    below = FrameFiles(tmp_path / "a", ".json")
    assert below.path("sequences/cam1/0001/f1.png") == tmp_path / "a" / "0001" / "f1.json"
    assert below.path("sequences/cam1/0001/f2.png") is None and below.path("sequences/cam1/0003/f1.png") is None
    with refuses(DataSetError, "0001", "sequences/cam1/0001", "sequences/cam2/0001"):
        below.path("sequences/cam2/0001/f1.png")
    above = FrameFiles(tmp_path / "b", ".json")
    assert above.path("cam1/0002/f1.png") == tmp_path / "b" / "test" / "cam1" / "0002" / "f1.json"
    write(tmp_path / "b" / "more", ".json", lambda rows: rows, {"cam1/0001": ["f1"]})
    with refuses(DataSetError, "cam1/0001", "more/cam1/0001", "train/cam1/0001"):
        FrameFiles(tmp_path / "b", ".json").path("cam1/0001/f1.png")


def test_the_layout_of_mars(tmp_path, capsys):
    """Its records name frames below bbox_train and bbox_test, its skeletons have these folders."""
    train, test = [Row("0001", 1, 1, 3), Row("0001", 2, 1, 2)], [Row("0002", 1, 1, 2), Row("0002", 2, 1, 4)]
    write_tree(tmp_path / "mars", train, test, [1])
    path, splits = prepare("mars", tmp_path / "mars", tmp_path)
    home = {
        "bbox_train/0001": [n for row in train for n in row.names],
        "bbox_test/0002": [n for row in test for n in row.names],
    }
    stems = {folder: [name.removesuffix(".jpg") for name in names] for folder, names in home.items()}
    write(tmp_path / "mars" / "skeleton_3d_hmr2.0", ".json", lambda rows: {"keypoints": rows}, stems)
    name = f"mars/{path.parent.name}"
    source = str(tmp_path / "mars" / "skeleton_3d_hmr2.0")
    assert main(["joints3d", "--dataset", name, "--source", source, "--data_dir", str(tmp_path / "data")]) == 0
    says(capsys.readouterr().out, "4 tracklets", "11 frames")
    sidecar = Sidecar.open(path, "joints3d")
    for records, rows in ((splits["train"], train), (splits["query"], test[:1]), (splits["gallery"], test[1:])):
        for record, row in zip(records, rows, strict=True):
            values, mask = sidecar.read(record["tracklet_id"].decode(), record["frame_index"])
            expected = np.stack([values_of(frame.removesuffix(".jpg")) for frame in row.names])
            np.testing.assert_array_equal(values, expected)
            assert mask.all()


def test_nothing_found_leaves_nothing(prepared, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["joints3d", "--dataset", str(prepared), "--source", str(tmp_path / "empty")]) == 2
    told = capsys.readouterr().err
    assert "0001C1T0001F001.jpg" in told
    says(told, f"{tmp_path}/empty", "tracklet")
    assert sidecar_kinds(prepared) == [] and list((prepared / "sidecars").iterdir()) == []
    assert main(["keypoints", "--dataset", str(prepared), "--source", str(tmp_path / "nowhere")]) == 2
    says(capsys.readouterr().err, tmp_path / "nowhere")
    assert main(["keypoints", "--dataset", "nosuchset", "--source", str(tmp_path)]) == 2
    says(capsys.readouterr().err, "'nosuchset'")


def test_replacing_needs_to_be_asked_for(prepared, poses, capsys):
    line = ["keypoints", "--dataset", str(prepared), "--source", str(poses)]
    assert main(line) == 0 and main(line) == 2
    says(capsys.readouterr().err, "keypoints", "--overwrite")
    assert main([*line, "--overwrite"]) == 0


# --- captions --------------------------------------------------------------------------------------------------------


def lines(*entries):
    return "".join(f"{entry if isinstance(entry, str) else json.dumps(entry)}\n" for entry in entries)


def test_captions(prepared, tmp_path, capsys):
    file = tmp_path / "captions.jsonl"
    file.write_text(
        lines(
            {"tracklet": "bbox_train/0001", "caption": " A man\n in a  cafe\u0301. ", "model": "Phi-4-multimodal"},
            {"tracklet": "bbox_train/0001", "caption": "Red shoes.", "dataset": "folder", "frame": 2},
            {"tracklet": "bbox_train/0001", "caption": "Red  shoes."},
            {"tracklet": "bbox_train/0002", "caption": "  "},
            {"tracklet": "bbox_train/0009", "caption": "Nobody here."},
            "",
        )
    )
    assert main(["captions", "--dataset", str(prepared), "--source", str(file)]) == 0
    told = capsys.readouterr().out
    says(told, 1, "tracklets")
    says(told, 1, "captions", "empty")
    says(told, 1, "captions")
    says(told, 1, "captions", "tracklets", "set", "bbox_train/0009", "line", 5)
    says(told, 2, "tracklets")
    says(told, "bbox_test/0000")
    says(told, "bbox_train/0002")
    sidecar = Sidecar.open(prepared, "captions")
    assert sidecar.texts("bbox_train/0001") == ["A man in a caf\u00e9.", "Red shoes."]
    assert sidecar.meta["model"] == "Phi-4-multimodal" and sidecar.meta["missing_tracklets"] == 2
    assert sidecar.meta["file"] == hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def test_a_caption_may_be_of_a_person(tmp_path):
    file = tmp_path / "captions.jsonl"
    file.write_text(lines({"pid": 7, "caption": "Tall."}, {"pid": 9, "caption": "Short."}))
    captions = read_captions(file, "mars", [("a", 7), ("b", 8), ("c", 7)])
    assert captions.texts == {"a": ["Tall."], "c": ["Tall."]} and captions.missing == ["b"]
    assert len(captions.remarks) == 1
    says(captions.remarks, "1 captions", 9, "line 2")


def test_captions_that_contradict_the_data_set(tmp_path):
    file = tmp_path / "captions.jsonl"
    good = {"tracklet": "a", "caption": "x"}
    bad = [
        ({**good, "dataset": "mars"}, ("line 2", "'mars'", "'folder'")),
        ({**good, "pid": 8}, ("line 3", "identity 8", 7)),
        ({"tracklet": "a"}, ("line 4", "caption")),
        ({"caption": "x"}, ("line 5", "tracklet", "pid")),
        ('{"tracklet": "a"', ("line 6", "JSON")),
        ("[]", ("line 7", "caption")),
    ]
    file.write_text(lines(good, *(line for line, _ in bad)))
    with file.open("ab") as end:
        end.write(b'{"tracklet": "a", "caption": "\xff"}\n')
    with pytest.raises(DataSetError) as raised:
        read_captions(file, "folder", [("a", 7)])
    for named in [*(named for _, named in bad), ("line 8", "UTF-8")]:
        says(str(raised.value), *named)
    with refuses(DataSetError, "none.jsonl"):
        read_captions(tmp_path / "none.jsonl", "folder", [])


def test_a_tracklet_in_two_splits_is_written_once(prepared, poses):
    """Without a table, `folder` puts every tracklet into three splits."""
    assert import_sidecar("keypoints", prepared, "folder", poses).tracklets == 3
    assert sorted(Sidecar.open(prepared, "keypoints").tracklets) == sorted(TRACKLETS)
