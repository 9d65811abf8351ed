"""From video to tracklets: linking, the folder that is made, bad input, and one clip of real people."""

from __future__ import annotations

import collections
import csv
import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from messages import refuses, says

from jaxreid.footage import making, people
from jaxreid.footage.detectors import hog_detector, make_detector, shrink
from jaxreid.footage.linking import Linker, greedy_matches, iou
from jaxreid.footage.making import make_tracklets
from jaxreid.footage.motion import MotionModel
from jaxreid.footage.settings import Settings, TrackletError
from jaxreid.footage.video import FrameReader, Video, VideoError
from jaxreid.tools import tracklets as tool

FPS = 10
RED, BLUE = (40, 40, 220), (220, 40, 40)  # BGR


# --- linking -----------------------------------------------------------------------------------------------------


def test_iou_equals_counted_pixels():
    rng = np.random.default_rng(0)
    a, b = (np.concatenate([rng.integers(0, 12, (9, 2)), rng.integers(0, 12, (9, 2))], 1) for _ in range(2))

    def mask(box):
        picture = np.zeros((24, 24), bool)
        picture[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
        return picture

    def counted(p, q):
        either = (mask(p) | mask(q)).sum()
        return (mask(p) & mask(q)).sum() / either if either else 0.0

    np.testing.assert_allclose(iou(a, b), [[counted(p, q) for q in b] for p in a], atol=1e-12)


def test_greedy_takes_the_largest_overlap_first():
    overlap = np.array([[0.6, 0.5], [0.9, 0.0]])
    # Row 0 would like column 0 as well, but row 1 overlaps it more.
    assert greedy_matches(overlap, 0.3) == [(1, 0), (0, 1)]
    assert greedy_matches(overlap, 0.55) == [(1, 0)]
    assert greedy_matches(np.zeros((0, 3)), 0.3) == []


def test_linker_follows_two_walkers_through_shuffled_boxes():
    linker = Linker()
    rng = np.random.default_rng(1)
    seen = collections.defaultdict(set)
    for step in range(20):
        boxes = np.array([[10 + 4 * step, 50, 30, 80], [300 - 4 * step, 140, 30, 80]])
        order = rng.permutation(2)
        tracks, ended = linker.update(boxes[order])
        assert ended == []
        for person, track in zip(order, tracks, strict=True):
            seen[int(person)].add(int(track))
    assert sorted(map(sorted, seen.values())) == [[0], [1]]


@pytest.mark.parametrize(("gap", "same"), [(0, True), (3, True), (4, False)])
def test_linker_bridges_exactly_the_tolerated_gap(gap, same):
    linker = Linker(max_missed=3)
    box, nothing = np.array([[10, 10, 30, 80]]), np.zeros((0, 4))
    (first,), _ = linker.update(box)
    ended = [track for _ in range(gap) for track in linker.update(nothing)[1]]
    (second,), _ = linker.update(box)
    assert (second == first) == same
    assert ended == ([] if same else [0])


def test_linker_starts_a_new_track_below_the_overlap():
    linker = Linker(min_iou=0.3, velocity_rate=0)
    linker.update(np.array([[0, 0, 10, 10]]))
    # Shifted by 5: overlap 1/3. By 6: 1/4.
    assert linker.update(np.array([[5, 0, 10, 10]]))[0].tolist() == [0]
    assert linker.update(np.array([[11, 0, 10, 10]]))[0].tolist() == [1]


def test_velocity_keeps_people_apart_who_walk_past_each_other():
    def tracks_of(velocity_rate):
        """Tracks of the walker to the right and of the one to the left; one hides the other on four frames."""
        linker = Linker(velocity_rate=velocity_rate)
        right, left = [], []
        for step in range(30):
            boxes = [[10 + 8 * step, 50, 40, 80], [250 - 8 * step, 50, 40, 80]]
            hidden = abs(boxes[0][0] - boxes[1][0]) < 30
            tracks, _ = linker.update(np.array(boxes[:1] if hidden else boxes))
            right.append(int(tracks[0]))
            left += [] if hidden else [int(tracks[1])]
        return set(right), set(left)

    assert tracks_of(0.3) == ({0}, {1})
    # Without it, the hidden walker's track waits where they met, and takes the wrong one.
    assert tracks_of(0.0) != ({0}, {1})


def test_velocity_bridges_a_gap_of_a_walker():
    linker = Linker(max_missed=3)
    for step in range(10):
        linker.update(np.array([[12 * step, 0, 30, 80]]))
    for _ in range(3):
        linker.update(np.zeros((0, 4)))
    # 48 pixels on: the last box lies wholly behind.
    assert linker.update(np.array([[12 * 13, 0, 30, 80]]))[0].tolist() == [0]


def test_shrink_keeps_the_centre():
    np.testing.assert_allclose(shrink(np.array([[10, 20, 100, 200]], np.float32), 0.7, 0.84), [[25, 36, 70, 168]])


# --- a drawn video and a detector that sees its figures ----------------------------------------------------------


def draw_video(path: Path, figures, frames: int = 60, size=(160, 120), codec="MJPG") -> Path:
    """figures: (colour, first frame, last frame + 1, x(frame), y); each is 16 × 40 pixels; grey rises by frame."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), FPS, size)
    assert writer.isOpened()
    for index in range(frames):
        image = np.full((size[1], size[0], 3), 60 + 2 * index, np.uint8)
        for colour, first, end, x, y in figures:
            if first <= index < end:
                cv2.rectangle(image, (x(index), y), (x(index) + 15, y + 39), colour, -1)
        writer.write(image)
    writer.release()
    return path


WALKERS = (
    (RED, 0, 60, lambda t: 10 + 2 * t, 10),  # visible in all 60 frames
    (BLUE, 20, 50, lambda t: 120 - 2 * t, 70),  # visible in frames 20 … 49
)


def colour_detector(image):
    """Stands in for HOG, which does not see rectangles: boxes of the saturated areas."""
    saturated = (image.max(2).astype(int) - image.min(2) > 90).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(saturated)
    boxes = [stats[i, :4] for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] > 100]
    return np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), 0.75, np.float32)


def make(videos, out, settings=None, detector=colour_detector, **options):
    return make_tracklets(videos, out, settings, detector=detector, show_progress=False, **options)


def rows(out: Path, name: str = "tracklets.csv") -> list[dict[str, str]]:
    with (out / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return draw_video(tmp_path_factory.mktemp("video") / "door.avi", WALKERS)


def test_tracklets_of_a_drawn_video(video, tmp_path):
    out = tmp_path / "out"
    run = make([video], out)
    red, blue = rows(out)
    # Every second frame from frame 0; 10 frames per second.
    assert red == {
        "camera": "door", "tracklet": "t00001", "identity": "", "modality": "rgb", "split": "",
        "start_time": "0.000", "end_time": "5.800", "recording": "door_r00000",
        "frames": "30", "start_frame": "0", "end_frame": "58",
    }  # fmt: skip
    assert (blue["start_time"], blue["end_time"], blue["frames"]) == ("2.000", "4.800", "15")
    assert red["recording"] != blue["recording"]
    for row, colour in ((red, RED), (blue, BLUE)):
        files = sorted((out / "door" / row["tracklet"]).iterdir())
        numbers = range(int(row["start_frame"]), int(row["end_frame"]) + 1, 2)
        assert [file.name for file in files] == [f"{number:06d}.jpg" for number in numbers]
        for file in files:
            image = cv2.imread(str(file))
            assert abs(image.shape[0] - 40) <= 2 and abs(image.shape[1] - 16) <= 2
            assert np.abs(image[10:-10, 4:-4].mean((0, 1)) - colour).max() < 25
    boxes = rows(out, "boxes.csv")
    assert len(boxes) == 45
    box = boxes[5]
    assert (box["camera"], box["tracklet"], box["frame"], box["time"]) == ("door", "t00001", "10", "1.000")
    # The figure stands at x = 10 + 2·10 in frame 10; JPEG blurs its edge by a pixel.
    np.testing.assert_allclose([float(box[k]) for k in "xywh"], [30, 10, 16, 40], atol=1.5)
    entry = run["videos"][0]
    assert (entry["frames_read"], entry["boxes"], entry["tracklets"], entry["damage"]) == (60, 45, 2, None)
    assert json.loads((out / "tracklets.json").read_text()) == json.loads(json.dumps(run))
    assert sorted(path.name for path in out.iterdir()) == ["boxes.csv", "door", "tracklets.csv", "tracklets.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_short_tracklets_are_left_out_and_counted(video, tmp_path):
    run = make([video], tmp_path / "out", Settings(min_frames=16))
    assert [row["frames"] for row in rows(tmp_path / "out")] == ["30"]
    assert run["videos"][0]["tracklets_too_short"] == 1
    assert len(list((tmp_path / "out" / "door").iterdir())) == 1


def test_what_never_moves_is_left_out_and_counted(tmp_path):
    poster = (BLUE, 0, 60, lambda t: 120, 70)
    stops = (RED, 0, 60, lambda t: 10 + 3 * min(t, 12), 10)  # walks for a fifth of the time, then stands
    video = draw_video(tmp_path / "hall.avi", (poster, stops))
    run = make([video], tmp_path / "moving")
    assert [row["recording"] for row in rows(tmp_path / "moving")] == ["hall_r00000"]
    assert run["videos"][0]["tracklets_still"] == 1
    says(tool.summary(run, "moving"), 1, "moves")
    assert [path.name for path in (tmp_path / "moving" / "hall").iterdir()] == ["t00001"]
    make([video], tmp_path / "all", Settings(min_motion=0))
    assert len(rows(tmp_path / "all")) == 2
    only_poster = draw_video(tmp_path / "poster.avi", (poster,))
    with refuses(TrackletError, "moves"):
        make([only_poster], tmp_path / "none")


def test_motion_is_the_share_of_changed_pixels():
    model = MotionModel()
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 120, (192, 384, 3), dtype=np.uint8)
    boxes = np.array([[100, 40, 40, 80], [300, 40, 40, 80]], np.float32)
    assert model.update(scene, boxes).tolist() == [0, 0]
    for _ in range(20):
        model.update(scene, boxes)
    changed = scene.copy()
    changed[40:100, 100:140] = 255  # 60 of the 80 rows of the first box
    np.testing.assert_allclose(model.update(changed, boxes), [0.75, 0])


def test_long_tracklets_are_cut_within_one_recording(video, tmp_path):
    make([video], tmp_path / "out", Settings(max_frames=12, min_frames=6))
    cut = rows(tmp_path / "out")
    lengths = collections.defaultdict(list)
    for row in cut:
        lengths[row["recording"]].append(int(row["frames"]))
    # 30 = 12 + 12 + 6; 15 = 12 + a rest of 3, too short.
    assert sorted(lengths.values()) == [[12], [12, 12, 6]]


def test_windows_act_as_cameras_and_keep_the_recording(video, tmp_path):
    run = make([video], tmp_path / "out", Settings(stride=1, min_frames=5), windows=3)
    spans = [(r["camera"], int(r["start_frame"]), int(r["end_frame"]), r["recording"]) for r in rows(tmp_path / "out")]
    red, blue = "door_r00000", "door_r00001"
    assert spans == [
        ("door_w1", 0, 19, red),
        ("door_w2", 20, 39, red),
        ("door_w2", 20, 39, blue),
        ("door_w3", 40, 59, red),
        ("door_w3", 40, 49, blue),
    ]
    says(tool.summary(run, "out"), "windows", "cameras")


def test_margin_and_size_of_crops(video, tmp_path):
    make([video], tmp_path / "wide", Settings(crop_margin=0.5, seconds=2))
    image = cv2.imread(str(tmp_path / "wide" / "door" / "t00001" / "000010.jpg"))
    # x 30 … 46 with 8 on each side; y 10 … 50 with 20 on each side, of which 10 lie outside the picture.
    assert abs(image.shape[1] - 32) <= 3 and abs(image.shape[0] - 70) <= 3
    make([video], tmp_path / "sized", Settings(height=64, width=32, seconds=2))
    assert cv2.imread(str(tmp_path / "sized" / "door" / "t00001" / "000010.jpg")).shape == (64, 32, 3)
    assert rows(tmp_path / "sized")[0]["end_frame"] == "18"  # frames 0 … 19 lie in the first two seconds


def test_cameras_are_named_after_videos_and_made_unique(video, tmp_path):
    paths = []
    for name in ("a/cam.avi", "b/cam.avi", "b/Yard 2!.avi"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(video.read_bytes())
        paths.append(path)
    run = make(paths, tmp_path / "out", modality={"cam_2": "ir"})
    assert [(v["cameras"], v["modality"]) for v in run["videos"]] == [
        ({"cam": 2}, "rgb"),
        ({"cam_2": 2}, "ir"),
        ({"Yard_2": 2}, "rgb"),
    ]
    assert {(r["camera"], r["modality"]) for r in rows(tmp_path / "out")} == {
        ("cam", "rgb"), ("cam_2", "ir"), ("Yard_2", "rgb"),
    }  # fmt: skip
    assert any("'cam_2'" in note for note in run["notes"]) and any("'Yard 2!'" in note for note in run["notes"])


def test_a_stopped_run_goes_on_behind_the_last_finished_video(video, tmp_path):
    second = tmp_path / "second.avi"
    second.write_bytes(video.read_bytes())
    calls = 0

    def stopping(image):
        nonlocal calls
        calls += 1
        if calls == 30 + 20:
            raise KeyboardInterrupt
        return colour_detector(image)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make([video, second], out, detector=stopping)
    assert not out.exists()
    calls = 100
    run = make([video, second], out, detector=stopping)
    assert calls == 130  # the second video's 30 looked-at frames only
    make([video, second], tmp_path / "whole")
    assert (out / "tracklets.csv").read_bytes() == (tmp_path / "whole" / "tracklets.csv").read_bytes()
    assert any("door" in note for note in run["notes"])

    def crops(folder):
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.jpg")}

    assert crops(out) == crops(tmp_path / "whole")


def test_changed_settings_are_not_mixed_with_a_stopped_run(video, tmp_path):
    second = tmp_path / "second.avi"
    second.write_bytes(video.read_bytes())

    def stopping(image):
        stopping.calls += 1
        if stopping.calls == 40:
            raise KeyboardInterrupt
        return colour_detector(image)

    stopping.calls = 0
    with pytest.raises(KeyboardInterrupt):
        make([video, second], tmp_path / "out", detector=stopping)
    make([video, second], tmp_path / "out", Settings(stride=3))
    assert {row["frames"] for row in rows(tmp_path / "out")} == {"20", "10"}


def test_a_used_folder_is_refused_unless_overwritten(video, tmp_path):
    out = tmp_path / "out"
    make([video], out)
    with refuses(TrackletError, out, "--overwrite"):
        make([video], out)
    make([video], out, Settings(min_frames=16), overwrite=True)
    assert len(rows(out)) == 1 and sorted(p.name for p in tmp_path.iterdir()) == ["out"]

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    with refuses(TrackletError, precious):
        make([video], precious, overwrite=True)
    assert (precious / "thesis.txt").read_text() == "mine"


# --- bad input ---------------------------------------------------------------------------------------------------


def test_unusable_videos_are_all_named_at_once(video, tmp_path):
    (tmp_path / "text.avi").write_bytes(b"no video" * 100)
    (tmp_path / "void.mp4").touch()
    cv2.VideoWriter(str(tmp_path / "zero.avi"), cv2.VideoWriter_fourcc(*"MJPG"), FPS, (160, 120)).release()
    bad = [tmp_path / name for name in ("gone.avi", "text.avi", "void.mp4", "zero.avi")]
    with pytest.raises(VideoError) as error:
        make([video, *bad], tmp_path / "out")
    for path, why in zip(bad, ("no such video", "not a video", "0 bytes", ""), strict=True):
        assert any(str(path) in line and why in line for line in str(error.value).splitlines())
    assert not (tmp_path / "out").exists()


def test_a_video_that_ends_early_is_used_only_when_told(video, tmp_path):
    content = video.read_bytes()
    broken = tmp_path / "broken.avi"
    broken.write_bytes(content[: len(content) // 2])
    reader = FrameReader(Video.open(broken))
    count = sum(1 for _ in reader)
    assert 20 < count < 40 and reader.broken_at == count

    seen = []

    def counting(image):
        seen.append(1)
        return colour_detector(image)

    out = tmp_path / "out"
    with refuses(VideoError, "broken.avi", count, f"{count} of 60", "--keep_broken"):
        make([broken, video], out, detector=counting)
    assert not out.exists() and len(seen) == (count + 1) // 2 + 30
    run = make([broken, video], out, detector=counting, keep_broken=True)
    assert len(seen) == (count + 1) // 2 + 30  # nothing is detected twice
    says(tool.summary(run, out), "BROKEN", count)
    assert max(int(row["end_frame"]) for row in rows(out) if row["camera"] == "broken") < count


def test_the_first_missing_frame_in_the_middle_is_named(tmp_path):
    whole = draw_video(tmp_path / "whole.mkv", WALKERS, codec="mp4v")
    content = bytearray(whole.read_bytes())
    middle, length = len(content) // 2, len(content) // 6
    content[middle : middle + length] = bytes(length)
    holed = tmp_path / "holed.mkv"
    holed.write_bytes(content)
    reader = FrameReader(Video.open(holed))
    pairs = zip(FrameReader(Video.open(whole)), reader, strict=False)
    differs = [not np.array_equal(a, b) for (_, _, a), (_, _, b) in pairs]
    first = differs.index(True)
    list(reader)
    assert 10 < reader.read < 60
    # The decoder may still put together one frame out of what is left of it.
    assert reader.broken_at in (first, first + 1)


def test_a_whole_video_is_not_called_broken(video, tmp_path):
    for path in (video, draw_video(tmp_path / "whole.mkv", WALKERS, codec="mp4v")):
        reader = FrameReader(Video.open(path), stride=7)
        assert [index for index, _, _ in reader] == list(range(0, 60, 7))
        assert (reader.read, reader.broken_at) == (60, None)
    reader = FrameReader(Video.open(video), seconds=1.0)
    assert [index for index, _, _ in reader] == list(range(10)) and reader.broken_at is None


def test_nobody_found(video, tmp_path):
    empty = draw_video(tmp_path / "empty.avi", ())
    with refuses(TrackletError, "1 video", "0 people"):
        make([empty], tmp_path / "none")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.avi"]
    run = make([empty, video], tmp_path / "some")
    assert [entry["tracklets"] for entry in run["videos"]] == [0, 2]
    assert "NOBODY FOUND" in tool.summary(run, "some")
    assert not (tmp_path / "some" / "empty").exists()


def test_folders_that_cannot_be_made(video, tmp_path):
    (tmp_path / "file").write_text("")
    with refuses(TrackletError, tmp_path / "file"):
        make([video], tmp_path / "file")
    with refuses(TrackletError, tmp_path / "file" / "below"):
        make([video], tmp_path / "file" / "below")
    (tmp_path / "out.partial").mkdir()
    with refuses(TrackletError, tmp_path / "out.partial"):
        make([video], tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"stride": 0}, ("--stride",)),
        ({"min_iou": 0.0}, ("--min_iou",)),
        ({"min_frames": 8, "max_frames": 4}, ("--max_frames",)),
        ({"height": 64}, ("--height", "--width")),
        ({"crop_margin": -0.1}, ("--crop_margin",)),
    ],
)
def test_settings_out_of_range(change, options):
    with refuses(TrackletError, *options):
        Settings(**change)


def test_modality_and_windows_that_do_not_fit(video, tmp_path):
    with refuses(TrackletError, "'gate'", "door"):
        make([video], tmp_path / "out", modality={"gate": "ir"})
    with refuses(TrackletError, "'thermal'"):
        make([video], tmp_path / "out", modality="thermal")
    with pytest.raises(TrackletError, match="--windows 2"):
        make([video, video], tmp_path / "out", windows=2)


# --- command line ------------------------------------------------------------------------------------------------


def test_command_line(video, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(making, "make_detector", lambda name, **options: colour_detector)
    out = tmp_path / "out"
    assert tool.main([str(video), "--out", str(out), "--stride", "3", "--modality", "ir"]) == 0
    printed = capsys.readouterr().out
    says(printed, 2, "tracklets", 30, 1, out)
    says(printed, f"jaxreid train --config=hitpro:folder --config.dataset.path={out}")
    assert {row["modality"] for row in rows(out)} == {"ir"}
    assert tool.main([str(video), "--out", str(out)]) == 2
    says(capsys.readouterr().err, out, "--overwrite")
    assert tool.main([str(video), "--out", str(out), "--overwrite", "--modality", "door=ir", "--modality", "rgb"]) == 2
    assert "--modality" in capsys.readouterr().err


def test_import_stays_light():
    code = (
        "import sys, jaxreid.tools.tracklets; print([m for m in ('jax', 'torch', 'transformers') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"
    )


# --- detectors ---------------------------------------------------------------------------------------------------


def test_unknown_detector_is_named():
    with refuses(ValueError, "'yolo'"):
        make_detector("yolo")


def test_hog_without_room_for_its_window_finds_nothing():
    boxes, scores = hog_detector(1.0)(np.zeros((100, 50, 3), np.uint8))
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_opencv_without_hog_says_what_to_install(monkeypatch):
    monkeypatch.delattr(cv2, "HOGDescriptor")
    with pytest.raises(ImportError, match=r"opencv-python-headless>=4\.11,<5"):
        make_detector("hog")


def tiny_yolos(folder: Path, names: dict[int, str]) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.YolosConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=[64, 96],
        patch_size=16, num_detection_tokens=12, id2label=names, label2id={n: i for i, n in names.items()},
    )  # fmt: skip
    network = transformers.YolosForObjectDetection(config)
    # Unlike random weights alone, this makes detections differ, in class as well.
    torch.nn.init.normal_(network.vit.embeddings.detection_tokens)
    network.save_pretrained(folder)
    transformers.YolosImageProcessor(size={"height": 64, "width": 96}).save_pretrained(folder)
    return folder


@pytest.mark.parity
def test_huggingface_detector_keeps_people_in_pixels(tmp_path):
    import torch
    import transformers

    folder = tiny_yolos(tmp_path / "model", {0: "dog", 1: "Person", 2: "car"})
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    boxes, scores = make_detector(f"hf:{folder}", min_score=0.0)(image)

    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    network = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        out = network(**processor(images=image[..., ::-1].copy(), return_tensors="pt"))
    probability, label = out.logits[0].softmax(-1)[:, :-1].max(-1)
    people = (label == 1).numpy()
    assert 0 < people.sum() < 12
    centre_x, centre_y, width, height = out.pred_boxes[0].numpy()[people].T
    expected = np.stack([(centre_x - width / 2) * 160, (centre_y - height / 2) * 120, width * 160, height * 120], 1)
    np.testing.assert_allclose(boxes, expected, atol=1e-3)
    np.testing.assert_allclose(scores, probability.numpy()[people], atol=1e-6)
    assert len(make_detector(f"hf:{folder}", min_score=0.999)(image)[0]) == 0


@pytest.mark.parity
def test_huggingface_detector_without_people_or_model(tmp_path, monkeypatch):
    folder = tiny_yolos(tmp_path / "model", {0: "dog", 1: "car"})
    with refuses(ValueError, "person", "car", "dog"):
        make_detector(f"hf:{folder}")
    (tmp_path / "empty").mkdir()
    with refuses(ValueError, tmp_path / "empty"):
        make_detector(f"hf:{tmp_path / 'empty'}")


@pytest.mark.parity
def test_huggingface_model_id_offline_says_which_folder_to_give():
    code = "from jaxreid.footage.detectors import make_detector; make_detector('hf:nobody/no-such-detector')"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=offline)
    assert done.returncode != 0
    says(done.stderr, "--detector", "hf:nobody/no-such-detector", "--local-dir FOLDER")


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxreid\[tools\]'"):
        make_detector("hf:anything")


# --- real people: vtest.avi of OpenCV's samples ---------------------------------------------------------------------

REAL_CLIP = Path(os.environ.get("JAXREID_REAL_CLIP") or "/usr/share/doc/opencv-doc/examples/data/vtest.avi")
needs_clip = pytest.mark.skipif(
    not REAL_CLIP.is_file(), reason="no vtest.avi: set JAXREID_REAL_CLIP, or install Debian's opencv-doc"
)


@pytest.mark.extended
@needs_clip
def test_real_clip_decodes_whole():
    video = Video.open(REAL_CLIP)
    reader = FrameReader(video)
    shapes = {image.shape for _, _, image in reader}
    assert (reader.read, shapes, video.frames, video.fps) == (795, {(576, 768, 3)}, 795, 10.0)
    assert reader.broken_at is None


@pytest.mark.extended
@needs_clip
def test_hog_sees_the_people_of_the_real_clip():
    wanted = set(np.linspace(0, 794, 20).astype(int).tolist())
    detect = hog_detector(1.5)
    assert sum(len(detect(image)[0]) for index, _, image in FrameReader(Video.open(REAL_CLIP)) if index in wanted) >= 80


@pytest.fixture(scope="module")
def real_boxes() -> list[tuple[np.ndarray, np.ndarray]]:
    """What HOG finds in frames 0, 2, … 198."""
    detect = hog_detector(1.5)
    return [detect(image) for _, _, image in FrameReader(Video.open(REAL_CLIP), stride=2, seconds=20)]


def hsv_histogram(files: list[Path]) -> np.ndarray:
    """Mean over crops of the joint 8 × 8 × 8 HSV histograms of the three body thirds, f64[1536]."""
    parts = [
        [cv2.calcHist([part], [0, 1, 2], None, [8] * 3, [0, 180, 0, 256, 0, 256]).ravel() / part[..., 0].size]
        for file in files
        for part in np.array_split(cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2HSV), 3)
    ]
    return np.reshape(parts, (len(files), -1)).astype(np.float64).mean(0)


@pytest.mark.extended
@needs_clip
@pytest.mark.parametrize("how", ["by overlap alone", "as the tool does"])
def test_real_tracklets_can_be_told_apart(real_boxes, how, tmp_path, monkeypatch):
    """First half of each tracklet against the second halves, in one camera; overlap alone is what the notes measured
    (632 boxes, 10 tracklets, rank-1 0.7 with some scenery among them)."""
    settings = Settings(min_frames=16, seconds=20)
    if how == "by overlap alone":
        monkeypatch.setattr(people, "Linker", functools.partial(Linker, velocity_rate=0))
        settings = dataclasses.replace(settings, min_motion=0)
    replay = iter(real_boxes)
    out = tmp_path / "out"
    run = make([REAL_CLIP], out, settings, detector=lambda image: next(replay))
    long = rows(out)
    assert len(long) >= 5
    query, gallery = [], []
    for row in long:
        files = sorted((out / row["camera"] / row["tracklet"]).iterdir())
        query.append(hsv_histogram(files[: len(files) // 2]))
        gallery.append(hsv_histogram(files[len(files) // 2 :]))
        height, width = np.median([cv2.imread(str(file)).shape[:2] for file in files], axis=0)
        assert 60 < height < 130 and 20 < width < 60
    distances = np.abs(np.array(query)[:, None] - np.array(gallery)).sum(-1)
    rank1 = np.mean(distances.argmin(1) == np.arange(len(long)))
    print(f"{how}: {run['videos'][0]['boxes']} boxes, {len(long)} tracklets, histogram rank-1 {rank1:.2f}")
    assert rank1 > 0.3
