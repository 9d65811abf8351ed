"""SportsVReID and DanceVReID: tracklets cut from tracking annotations, and the sets that are built of such folders."""

import json

import cv2
import numpy as np
import pytest
from builder_trees import check_fields, ends, error, picture, prepare
from messages import refuses, says

from jaxreid.data.build import main
from jaxreid.data.prepared import read_metadata
from jaxreid.data.sidecars import Sidecar, sidecar_kinds
from jaxreid.footage.mot import MotError
from jaxreid.footage.mot_making import MotSettings, make_mot_tracklets
from jaxreid.tools import mot_tracklets

NAMES = ("sports_vreid", "dance_vreid")


# pid, camera, sequence, track: frames, whose numbers do not sort as text.
TREE = {
    "train": {(2, 1, 1, 1): 3, (2, 2, 1, 2): 2, (17, 1, 3, 1): 4, (17, 2, 3, 2): 5, (5, 1, 1, 1): 2, (5, 2, 1, 2): 2},
    "query": {(30, 1, 4, 1): 3, (31, 1, 4, 1): 2},
    "gallery": {(30, 2, 4, 2): 2, (31, 2, 4, 2): 5, (32, 1, 4, 1): 2},
}


def folder(pid, camera, sequence, track):
    return f"{pid:04d}_c{camera}_s{sequence}_t{track:04d}"


def files(split, key):
    return [f"{split}/{key[0]:04d}/{folder(*key)}/{frame}.jpg" for frame in (9, 10, 100, 101, 1000)[: TREE[split][key]]]


CAPTIONS = [
    {"tracklet": "0017_c1_s3_t0001", "pid": 17, "caption": "Number  9 in red.", "model": "Phi-4-multimodal"},
    {"tracklet": "0030_c1_s4_t0001", "pid": 30, "caption": "White shoes.", "model": "Phi-4-multimodal"},
    {"tracklet": "0099_c1_s4_t0001", "pid": 99, "caption": "Not here.", "model": "Phi-4-multimodal"},
]


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "sports"
    for split, members in TREE.items():
        for key in members:
            for number, file in enumerate(files(split, key)):
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (root / file).write_bytes(picture((*key, number)))
    (root / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in CAPTIONS))
    return root


@pytest.mark.parametrize("name", NAMES)
def test_every_field_and_the_captions(name, tree, tmp_path, caplog):
    path, splits = prepare(name, tree, tmp_path, "own")
    assert path == tmp_path / "data" / name / "own" / "1.0.0"
    for split, records in splits.items():
        keys = sorted(TREE[split])
        assert [record["tracklet_id"].decode() for record in records] == [folder(*key) for key in keys]
        for record, key in zip(records, keys, strict=True):
            pid, camera, sequence, _ = key
            check_fields(
                record,
                frames=[(tree / file).read_bytes() for file in files(split, key)],
                frame_names=files(split, key),
                frame_index=range(TREE[split][key]),
                num_frames_source=TREE[split][key],
                tracklet_id=folder(*key),
                pid=pid,
                label={2: 0, 5: 1, 17: 2}[pid] if split == "train" else -1,
                camid=camera,
                cam_name=f"C{camera}",
                modality="rgb",
                session=sequence,
                recording=f"{pid:04d}_c{camera}_s{sequence}",
                role=split,
                platform="ground",
                source=f"{name}/own 1.0.0 lists {read_metadata(path)['lists']}",
            )
    # First and last frame of the first, the middle and the last tracklet, written out.
    for split, row, first, last in (
        ("train", 0, "train/0002/0002_c1_s1_t0001/9.jpg", "train/0002/0002_c1_s1_t0001/100.jpg"),
        ("train", 3, "train/0005/0005_c2_s1_t0002/9.jpg", "train/0005/0005_c2_s1_t0002/10.jpg"),
        ("gallery", 2, "gallery/0032/0032_c1_s4_t0001/9.jpg", "gallery/0032/0032_c1_s4_t0001/10.jpg"),
    ):
        assert ends(splits[split][row]) == (first, last)
    facts = read_metadata(path)
    assert facts["protocols"] == ["market"] and "own construction" in facts["construction"] and facts["captions"]
    assert facts["counts"]["train"] == {"tracklets": 6, "frames": 18, "identities": 3, "cameras": 2, "rgb": 6}
    captions = Sidecar.open(path, "captions")
    assert captions.tracklets == ["0017_c1_s3_t0001", "0030_c1_s4_t0001"]
    assert captions.texts("0017_c1_s3_t0001") == ["Number 9 in red."] and captions.meta["model"] == "Phi-4-multimodal"
    says(caplog.text, 1, "captions", "tracklets", "set", "0099_c1_s4_t0001", "line", 3)
    says(caplog.text, 5, "tracklets", "caption", "0002_c1_s1_t0001")


def test_without_captions(tree, tmp_path):
    (tree / "captions.jsonl").unlink()
    path, _ = prepare("sports_vreid", tree, tmp_path, "own")
    assert sidecar_kinds(path) == [] and read_metadata(path)["captions"] is False


def test_captions_that_contradict_the_folders(tree, tmp_path):
    (tree / "captions.jsonl").write_text(json.dumps({**CAPTIONS[0], "pid": 18}) + "\n")
    says(error("sports_vreid", tree, tmp_path, "own"), "line", 1, "0017_c1_s3_t0001", "identity", 18, "set", 17)


def test_damaged_frames(tree, tmp_path):
    (tree / "gallery/0031/0031_c2_s4_t0002/100.jpg").write_bytes(picture(0)[:-30])
    message = error("sports_vreid", tree, tmp_path, "own", max_excluded=0.0)
    says(message, "gallery/0031/0031_c2_s4_t0002/100.jpg", "truncated")
    path, splits = prepare("sports_vreid", tree, tmp_path, "own")  # one of 32
    record = splits["gallery"][1]
    assert list(record["frame_index"]) == [0, 1, 3, 4] and record["num_frames_source"] == 5
    assert read_metadata(path)["excluded_frames"][0]["fault"] == "truncated: no end-of-image marker"


def test_folders_that_are_not_as_expected(tree, tmp_path):
    (tree / "train/0005/0005_c1_s1_t0001").rename(tree / "train/0005/0006_c1_s1_t0001")
    (tree / "train/0005/0005_c2_s1_t0002").rename(tree / "train/0005/second")
    (tree / "train/0007/0007_c1_s1_t0001").mkdir(parents=True)
    (tree / "train/people").mkdir()
    (tree / "gallery/0030/0030_c1_s4_t0001").mkdir()
    (tree / "gallery/0030/0030_c1_s4_t0001/1.jpg").write_bytes(picture(0))
    (tree / "query/0002/0002_c3_s1_t0003").mkdir(parents=True)
    (tree / "query/0002/0002_c3_s1_t0003/1.jpg").write_bytes(picture(0))
    message = error("sports_vreid", tree, tmp_path, "own")
    says(message, f"{tree}/train/0005/0006_c1_s1_t0001", "0005_c<cam>_s<seq>_t<track>")
    says(message, f"{tree}/train/0005/second", "0005_c<cam>")
    says(message, f"{tree}/train/0007/0007_c1_s1_t0001", "frame")
    says(message, f"{tree}/train/people", "identity")
    says(message, 1, "tracklets", "0030_c1_s4_t0001")
    says(message, 1, "identities", "train", "test", "splits", 2)
    (tree / "gallery").rename(tree / "rest")
    message = error("sports_vreid", tree, tmp_path, "own")
    says(message, "gallery", "missing", tree)
    says(message, "expected")
    says(message, "DIR/train/0017/0017_c1_s3_t0002/")


def test_a_frame_whose_name_is_no_utf8(tree, tmp_path):
    home = tree / "train/0017/0017_c2_s3_t0002"
    try:
        (home / "10.jpg").rename(home / b"10-\xe4.jpg".decode("utf-8", "surrogateescape"))
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    path, splits = prepare("sports_vreid", tree, tmp_path, "own")
    assert read_metadata(path)["excluded_frames"] == [
        {"path": "train/0017/0017_c2_s3_t0002/10-\\xe4.jpg", "fault": "has a name that is not UTF-8"}
    ]
    assert len(splits["train"][5]["frames"]) == 4


def test_neither_prepared_nor_a_source(tmp_path, capsys):
    assert main(["dance_vreid", "--data_dir", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    says(told, "source")
    says(told, "DanceTrack")
    says(told, "jaxreid mot-tracklets")
    says(told, "dance_vreid")
    assert main(["dance_vreid/other", "--data_dir", str(tmp_path), "--source", str(tmp_path)]) == 2
    says(capsys.readouterr().err, "'other'")


# --- from tracking annotations ---------------------------------------------------------------------------------------


def image(sequence, frame):
    """Noise of 40 × 60 pixels, so that a crop is found in no other place."""
    return np.random.default_rng([sequence, frame]).integers(0, 255, (40, 60, 3), np.uint8)


def write_sequence(root, number, rows, length=20, frame_rate=None, suffix=".png"):
    (root / "img1").mkdir(parents=True)
    (root / "gt").mkdir()
    for frame in range(1, length + 1):
        cv2.imwrite(str(root / "img1" / f"{frame:06d}{suffix}"), image(number, frame))
    (root / "gt" / "gt.txt").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    if frame_rate:
        (root / "seqinfo.ini").write_text(f"[Sequence]\nname={root.name}\nframeRate={frame_rate}\nseqLength={length}\n")


def track(number, frames, x=2, tail=(1, 1, 1)):
    return [(frame, number, x + frame % 3, 5, 8, 16, *tail) for frame in frames]


@pytest.fixture
def mot(tmp_path):
    """v_2 and v_10 are training (10 after 2), v_3 is test; 20 frames, so that windows are 1–10 and 11–20."""
    train, test = tmp_path / "mot" / "train", tmp_path / "mot" / "val"
    write_sequence(train / "v_10", 10, track(1, range(1, 11)))
    write_sequence(train / "v_2", 2, [
        *track(7, range(1, 21), x=20),
        *track(3, [1, 2, 3, 9, 10, 11, 12, 13], x=40),  # unseen for 6 frames, 1.2 seconds at 5 per second
        *track(4, range(1, 4), tail=(0, 1, 1)),  # not to be considered
        *track(5, range(1, 4), tail=(1, 8, 1)),  # of another class
    ], frame_rate=5)  # fmt: skip
    write_sequence(test / "v_3", 3, [
        *track(1, range(5, 16)), *track(2, range(1, 4), x=50, tail=()), *track(9, [2, 3, 4, 18, 19, 20], x=-3),
    ], frame_rate=5)  # fmt: skip
    return train, test


def test_tracks_are_cut_at_gaps_and_windows(mot, tmp_path):
    train, test = mot
    out = tmp_path / "out"
    run = make_mot_tracklets([train], [test], out, MotSettings(min_frames=2))
    found = {
        path.parent.relative_to(out).as_posix(): sorted(int(p.stem) for p in path.parent.glob("*.jpg"))
        for path in out.rglob("*.jpg")
    }
    # Sequence 1 is v_2 with identities 1 (track 3) and 2 (track 7), 2 is v_10 with 3, 3 is v_3 with 4 to 6.
    assert found == {
        "train/0001/0001_c1_s1_t0001": [1, 2, 3],
        "train/0001/0001_c1_s1_t0002": [9, 10],
        "train/0001/0001_c2_s1_t0003": [11, 12, 13],
        "train/0002/0002_c1_s1_t0001": list(range(1, 11)),
        "train/0002/0002_c2_s1_t0002": list(range(11, 21)),
        "train/0003/0003_c1_s2_t0001": list(range(1, 11)),
        "query/0004/0004_c1_s3_t0001": list(range(5, 11)),
        "gallery/0004/0004_c2_s3_t0002": list(range(11, 16)),
        "gallery/0005/0005_c1_s3_t0001": [1, 2, 3],
        "query/0006/0006_c1_s3_t0001": [2, 3, 4],
        "gallery/0006/0006_c2_s3_t0002": [18, 19, 20],
    }
    assert run["counts"]["query"] == {"identities": 2, "tracklets": 2, "frames": 9}
    assert json.loads((out / "tracklets.json").read_text()) == run and not (tmp_path / "out.partial").exists()
    assert [entry["fps"] for entry in run["sequences"]] == [5, 25, 5]


def test_crops_are_the_boxes(mot, tmp_path):
    make_mot_tracklets([mot[0]], [mot[1]], tmp_path / "out", MotSettings(min_frames=2))
    crop = cv2.imread(str(tmp_path / "out/train/0002/0002_c2_s1_t0002/000011.jpg"))
    expected = image(2, 11)[5:21, 22:30]  # x is 20 + 11 % 3
    assert crop.shape == (16, 8, 3)
    written = cv2.imencode(".jpg", expected, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    np.testing.assert_array_equal(crop, cv2.imdecode(written, cv2.IMREAD_COLOR))
    outside = cv2.imread(str(tmp_path / "out/query/0006/0006_c1_s3_t0001/000002.jpg"))
    assert outside.shape == (16, 7, 3)  # x is −3 + 2: one column is outside


def test_settings(mot, tmp_path):
    """Windows 1–5, 6–10, 11–15, 16–20, of which every second frame is kept, and no gap is too long."""
    out = tmp_path / "out"
    make_mot_tracklets([mot[0]], [mot[1]], out, MotSettings(min_frames=2, segments=4, stride=2, max_gap=10))
    found = {path.parent.name: [] for path in sorted(out.rglob("*.jpg"))}
    for path in sorted(out.rglob("*.jpg")):
        found[path.parent.name].append(int(path.stem))
    assert {name: frames for name, frames in found.items() if name[:4] in ("0001", "0002", "0004")} == {
        "0001_c1_s1_t0001": [1, 3],
        "0001_c3_s1_t0002": [11, 13],
        "0002_c1_s1_t0001": [1, 3, 5],
        "0002_c2_s1_t0002": [7, 9],
        "0002_c3_s1_t0003": [11, 13, 15],
        "0002_c4_s1_t0004": [17, 19],
        "0004_c2_s3_t0001": [7, 9],
        "0004_c3_s3_t0002": [11, 13, 15],
    }
    for wrong in ({"segments": 0}, {"stride": 0}, {"min_frames": 0}, {"max_gap": -1.0}, {"fps": 0.0}):
        with refuses(MotError, "--segments", "--min_frames"):
            MotSettings(**wrong)


def test_what_is_cut_can_be_built(mot, tmp_path):
    line = ["--train", str(mot[0]), "--test", str(mot[1]), "--out", str(tmp_path / "out"), "--min_frames", "2"]
    assert mot_tracklets.main(line) == 0
    _, splits = prepare("dance_vreid", tmp_path / "out", tmp_path, "own")
    assert [len(splits[split]) for split in ("train", "query", "gallery")] == [6, 2, 3]
    assert mot_tracklets.main(line) == 2  # it is there already


def test_bad_annotations_and_images(mot, tmp_path, capsys):
    train, test = mot

    def refused(*more):
        arguments = ["--train", str(train), "--test", str(test), "--out", str(tmp_path / "out"), *more]
        assert mot_tracklets.main(arguments) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    good = (train / "v_10/gt/gt.txt").read_text()
    (train / "v_10/gt/gt.txt").write_text(good + "1,1,2,3,4,5,1,1,1\n2,x,2,3,4,5\n3,9,2,3,0,5,1,1,1\n1,2\n")
    told = refused()
    says(told, "row", 11, "1,1,2,3,4,5,1,1,1", 1, "frame")
    says(told, "row", 12, "2,x,2,3,4,5", "frame")
    says(told, "row", 13, "3,9,2,3,0,5,1,1,1", "box")
    says(told, "row", 14, "1,2", "frame")
    (train / "v_10/gt/gt.txt").write_text(good)
    says(refused("--min_frames", "11"), "tracklet", 11, "frames")
    says(refused("--test", str(tmp_path / "nothing")), f"{tmp_path}/nothing")
    assert "is given more than once" in refused("--test", str(train))
    (train / "v_10/img1/000004.png").write_bytes(b"no picture")
    (test / "v_3/img1/000019.png").unlink()
    says(refused("--min_frames", "2", "--max_excluded", "0.01"), "images", "1.0%")
    line = ["--train", str(train), "--test", str(test), "--out", str(tmp_path / "out"), "--min_frames", "2"]
    assert mot_tracklets.main(line) == 0
    told = capsys.readouterr().out
    says(told, f"{train}/v_10/img1/000004.png", "decoded")
    says(told, "v_3/img1/000019.jpg", "missing")
