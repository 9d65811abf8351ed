"""Key points of a data set's own frames: every conversion by hand-made points, and the command that goes on."""

import json
import types
import zipfile

import cv2
import numpy as np
import pytest
from messages import refuses, says

from jaxreid.data.build import build, named_set
from jaxreid.data.sidecars import Sidecar, sidecar_kinds
from jaxreid.errors import UserError
from jaxreid.footage import pose_sidecar, poses
from jaxreid.footage.pose_sidecar import make_poses
from jaxreid.report.pictures import LEFT, RIGHT, with_keypoints
from jaxreid.tools import make_sidecars, show_dataset

SIDES = ("left", "right")
COCO = ["nose", *(f"{side}_{joint}" for joint in ("eye", "ear", "shoulder", "elbow", "wrist") for side in SIDES)]
COCO += [f"{side}_{joint}" for joint in ("hip", "knee", "ankle") for side in SIDES]
# As mediapipe's documentation numbers them.
BLAZEPOSE = ["nose", *(f"{side}_{part}" for side in SIDES for part in ("eye_inner", "eye", "eye_outer"))]
BLAZEPOSE += ["left_ear", "right_ear", "mouth_left", "mouth_right"]
BLAZEPOSE += [
    f"{side}_{joint}"
    for joint in (
        "shoulder", "elbow", "wrist", "pinky", "index", "thumb", "hip", "knee", "ankle", "heel", "foot_index",
    )
    for side in SIDES
]  # fmt: skip
SIZES = [(90, 40), (91, 37), (256, 128), (600, 250), (30, 80), (7, 3)]


# --- BlazePose -------------------------------------------------------------------------------------------------------


def landmarks(places, visible=0.0):
    """What the network gives for landmarks at `places` f32[33, 2], in pixels of its square."""
    found = np.zeros((39, 5), np.float32)
    found[:33, :2], found[:33, 2], found[:, 3], found[:, 4] = places, 77, visible, -5
    return found


def test_each_of_cocos_points_is_the_landmark_of_its_name():
    assert len(BLAZEPOSE) == 33 and len(COCO) == 17
    places = np.stack([np.arange(33), 100 + np.arange(33)], axis=1)
    crop = np.zeros((160, 40, 3), np.uint8)  # a square of 200: 80 columns on the left, 20 rows above
    points = poses.blazepose_points(lambda pixels: (landmarks(places, np.log(3)), 1.0), crop)
    for name, (x, y, score) in zip(COCO, points, strict=True):
        number = BLAZEPOSE.index(name)
        assert (x, y) == pytest.approx((number * 200 / 256 - 80, (100 + number) * 200 / 256 - 20), abs=1e-4)
        assert score == pytest.approx(0.75)  # 1 / (1 + 1/3)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_square_is_five_fourths_of_the_longer_side_with_the_crop_in_its_middle(height, width):
    crop = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    square, left, top = poses.in_square(crop)
    side = len(square)
    assert square.shape == (side, side, 3) and abs(side - 1.25 * max(height, width)) <= 0.5
    assert abs(left - (side - width) / 2) <= 0.5 and abs(top - (side - height) / 2) <= 0.5
    np.testing.assert_array_equal(square[top : top + height, left : left + width], crop)
    np.testing.assert_array_equal(square[0, 0], crop[0, 0])  # its edges go on outwards
    np.testing.assert_array_equal(square[top + height // 2, -1], crop[height // 2, -1])


@pytest.mark.parametrize(("height", "width"), SIZES[:5])
def test_a_spot_comes_back_where_it_is(height, width):
    """A network that sees a red spot tells where: through the square and back, x before y."""
    x, y = 0.7 * width, 0.2 * height
    rows, columns = np.mgrid[:height, :width] + 0.5
    spot = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * (0.05 * height) ** 2))
    crop = np.zeros((height, width, 3), np.uint8)
    crop[..., 0] = np.round(255 * spot)

    def network(pixels):
        assert pixels.shape == (1, 3, 256, 256) and pixels.dtype == np.float32 and 0.5 < pixels.max() <= 1
        red = pixels[0, 0].astype(np.float64)
        assert not pixels[0, 1:].any()
        red[red < 0.4] = 0  # not what the edges carry on outwards
        down, right = np.mgrid[:256, :256] + 0.5
        seen = [(red * right).sum() / red.sum(), (red * down).sum() / red.sum()]
        return landmarks(np.tile(seen, (33, 1)), 20.0), 1.0

    points = poses.PoseEstimator(lambda crops: np.stack([poses.blazepose_points(network, c) for c in crops]), {})
    found = points([crop, crop[:, ::-1].copy()])
    np.testing.assert_allclose(found[0], np.tile([x, y, 1], (17, 1)), atol=0.02 * height)
    np.testing.assert_allclose(found[1], np.tile([width - x, y, 1], (17, 1)), atol=0.02 * height)


def test_nobody_is_all_zero_and_points_outside_score_nothing():
    crop = np.zeros((160, 40, 3), np.uint8)
    inside = np.full((33, 2), 128.0)
    assert not poses.blazepose_points(lambda pixels: (landmarks(inside), 0.49), crop).any()
    places = inside.copy()
    places[[0, 15, 28]] = (128, 24), (101, 128), (128, 232)  # y of −1.25, x of −1.1, y of 161.25
    network = lambda pixels: (landmarks(places), 0.51)  # noqa: E731
    estimator = poses.PoseEstimator(lambda crops: np.stack([poses.blazepose_points(network, c) for c in crops]), {})
    (points,) = estimator([crop])
    out = [COCO.index(name) for name in ("nose", "left_wrist", "right_ankle")]
    assert np.flatnonzero(points[:, 2] == 0).tolist() == out
    np.testing.assert_allclose(points[out, :2], [(20, -1.25), (-1.09375, 80), (20, 161.25)])
    assert np.all(points[points[:, 2] > 0] == (20, 80, 0.5))


def test_another_file_is_refused_with_where_to_get_it(tmp_path):
    wanted = ("mediapipe==0.10.14", "pip download")
    with refuses(UserError, "none.tflite", *wanted):
        poses.make_estimator(f"blazepose:{tmp_path / 'none.tflite'}")
    (tmp_path / "a.tflite").write_bytes(b"TFL3")
    with refuses(UserError, "a.tflite", "sha256", *wanted):
        poses.make_estimator(f"blazepose:{tmp_path / 'a.tflite'}")
    for name, inner in (("new.whl", "mediapipe/other.txt"), ("old.whl", f"mediapipe/modules/{poses.MODEL_FILE}")):
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            wheel.writestr(inner, b"TFL3")
    with refuses(UserError, "new.whl", poses.MODEL_FILE, *wanted):
        poses.make_estimator(f"blazepose:{tmp_path / 'new.whl'}")
    with refuses(UserError, f"old.whl, mediapipe/modules/{poses.MODEL_FILE}", "sha256", *wanted):
        poses.make_estimator(f"blazepose:{tmp_path / 'old.whl'}")


def test_the_model_may_lie_in_a_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(poses, "SHA256", "185f8db32271fe25f561a6fc938b2e264306ec304eda518007d1764826381969")  # Hello
    (tmp_path / "plain").write_bytes(b"Hello")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr(f"mediapipe/modules/pose_landmark/{poses.MODEL_FILE}", b"Hello")
    assert poses._model_bytes(tmp_path / "plain") == poses._model_bytes(tmp_path / "a.whl") == b"Hello"


@pytest.mark.parametrize("name", ["", "hog", "blazepose", "vitpose:", "stripes:x"])
def test_an_unknown_backend_names_those_there_are(name):
    with refuses(UserError, repr(name), "blazepose:FILE", "vitpose:MODEL", "stripes"):
        poses.make_estimator(name)


# --- the prior -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_stripes_lie_in_their_parts_of_the_body(height, width):
    estimator = poses.make_estimator("stripes")
    (points,) = estimator([np.zeros((height, width, 3), np.uint8)])
    at = {name: (x / width, y / height) for name, (x, y, _) in zip(COCO, points, strict=True)}
    assert np.all(points[:, 2] == 1) and estimator.meta["prior"] is True
    for name, (x, y) in at.items():
        side, _, joint = name.partition("_")
        low, high = {
            "shoulder": (0.16, 0.50), "hip": (0.16, 0.50), "elbow": (0.16, 0.55), "wrist": (0.16, 0.55),
            "knee": (0.5, 1), "ankle": (0.5, 1),
        }.get(joint, (0, 0.16))  # fmt: skip
        assert low <= y <= high, name
        if joint:  # somebody who faces the camera has the left on the right side of the picture
            assert (x > 0.5) == (side == "left"), name
            other = {"left": "right", "right": "left"}[side]
            assert x == pytest.approx(1 - at[f"{other}_{joint}"][0])
    assert at["left_elbow"][0] > at["left_shoulder"][0] > at["left_hip"][0]


# --- ViTPose ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_vitpose(tmp_path_factory):
    """A folder with a randomly initialised ViTPose of a few thousand parameters."""
    import torch
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessor

    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, out_indices=[1],
    )  # fmt: skip
    config = VitPoseConfig(backbone_config=backbone, num_labels=17, use_simple_decoder=True)
    folder = tmp_path_factory.mktemp("vitpose")
    VitPoseForPoseEstimation(config).save_pretrained(folder)
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


@pytest.mark.parity
def test_vitpose_takes_crops_of_any_sizes_together(tiny_vitpose):
    estimator = poses.make_estimator(f"vitpose:{tiny_vitpose}")
    rng = np.random.default_rng(0)
    crops = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((90, 40), (64, 64), (128, 30))]
    together = estimator(crops)
    assert together.shape == (3, 17, 3) and together.dtype == np.float32 and np.isfinite(together).all()
    np.testing.assert_allclose(together, np.concatenate([estimator([crop]) for crop in crops]), rtol=1e-3, atol=1e-3)
    assert np.abs(together[0] - estimator([255 - crops[0]])[0]).max() > 1e-3  # it looks at the picture
    assert str(tiny_vitpose) in estimator.meta["model"] and estimator.meta["order"] == "COCO-17"
    json.dumps(dict(estimator.meta))


@pytest.mark.parity
@pytest.mark.parametrize(("height", "width"), [(256, 128), (120, 90), (64, 32)])
def test_vitposes_points_are_pixels_of_the_crop(height, width):
    """A model whose heat maps are the picture's red, in quarter size, finds a red spot: where it is, each its own."""
    import torch
    from transformers import VitPoseImageProcessor

    crops, spots = [], [(0.25, 0.3), (0.6, 0.8)]
    rows, columns = np.mgrid[:height, :width] + 0.5
    for x, y in spots:
        spot = np.exp(-((columns - x * width) ** 2 + (rows - y * height) ** 2) / (2 * (0.05 * height) ** 2))
        crops.append(np.round(255 * spot)[..., None].astype(np.uint8) * np.array([1, 0, 0], np.uint8))

    def forward(pixels):
        red = pixels[:, :1] - pixels[:, :1].amin((2, 3), keepdim=True)
        # Heat maps share the corners' centres with the picture (unbiased data processing).
        small = torch.nn.functional.interpolate(red / red.amax(), size=(64, 48), mode="bilinear", align_corners=True)
        return types.SimpleNamespace(heatmaps=small.repeat(1, 17, 1, 1))

    found = poses.vitpose_points(VitPoseImageProcessor(), forward, crops)
    for points, (x, y) in zip(found, spots, strict=True):
        np.testing.assert_allclose(points[:, :2], np.tile([x * width, y * height], (17, 1)), atol=0.1)
        assert np.all(points[:, 2] > 0.7)


@pytest.mark.parity
def test_a_folder_without_a_model_is_named(tmp_path):
    with refuses(UserError, str(tmp_path), "hf download"):
        poses.make_estimator(f"vitpose:{tmp_path}")


# --- the command -----------------------------------------------------------------------------------------------------

TRACKLETS = {"door/t1": [(40, 16)] * 5, "door/t2": [(48, 20), (50, 24)], "yard/t1": [(30, 30)] * 3}
FRAMES = 10


@pytest.fixture
def people(tmp_path):
    """A folder of tracklets; the first pixel of a frame tells which it is."""
    for number, (name, sizes) in enumerate(TRACKLETS.items()):
        (tmp_path / "people" / name).mkdir(parents=True)
        for frame, size in enumerate(sizes):
            image = np.full((*size, 3), 10 * number + frame, np.uint8)
            cv2.imwrite(str(tmp_path / "people" / name / f"{frame:03d}.png"), image)
    return tmp_path / "people"


def made(people, *more):
    return make_sidecars.main([str(people), "--kind=keypoints", f"--data_dir={people.parent / 'data'}", *more])


class Counted:
    """An estimator that tells which frame it saw, finds nobody in frame 11, and breaks off when told to."""

    def __init__(self, breaks=None):
        self.seen, self.breaks, self.meta = [], breaks, {"model": "counted"}

    def __call__(self, crops):
        assert len(crops) <= 2
        for crop in crops:
            if len(self.seen) == self.breaks:
                raise KeyboardInterrupt
            self.seen.append(int(crop[0, 0, 0]))
        numbers = np.array([int(crop[0, 0, 0]) for crop in crops])
        return np.tile(np.where(numbers == 11, 0, 1 + numbers)[:, None, None], (17, 3)).astype(np.float32)


def test_every_frame_of_a_folder_gets_its_points(people, capsys):
    assert made(people, "--backend=stripes") == 0
    told = capsys.readouterr().out
    says(told, 3, "tracklets", FRAMES, "frames", 0)
    directory = named_set(str(people), people.parent / "data")
    assert told.splitlines()[-1] == str(directory / "sidecars" / "keypoints")
    sidecar = Sidecar.open(directory, "keypoints")
    assert sorted(sidecar.tracklets) == sorted(TRACKLETS) and sidecar.meta["frames"] == FRAMES
    assert sidecar.meta["order"] == "COCO-17" and sidecar.meta["prior"] is True
    for name, sizes in TRACKLETS.items():
        values, mask = sidecar.read(name, range(len(sizes)))
        assert mask.all()
        for points, (height, width) in zip(values, sizes, strict=True):
            np.testing.assert_allclose(points[:, :2].max(0), [0.84 * width, 0.94 * height], rtol=1e-6)
    assert made(people, "--backend=stripes") == 2
    says(capsys.readouterr().err, "keypoints", "--overwrite")
    assert sidecar.meta["command"].split()[:3] == ["jaxreid", "make-sidecars", str(directory)]
    assert make_sidecars.main(sidecar.meta["command"].split()[2:]) == 0  # as a message would tell to type


def test_a_run_that_was_stopped_goes_on_behind_the_last_whole_tracklet(people):
    directory = build("folder", source=people, data_dir=people.parent / "data")
    order = [0, 1, 2, 3, 4, 10, 11, 20, 21, 22]
    first = Counted(breaks=8)
    with pytest.raises(KeyboardInterrupt):
        make_poses(directory, first, "again", batch=2, show_progress=False)
    assert first.seen == order[:8] and sidecar_kinds(directory) == []
    # A kill in the middle of a file leaves it under another name; another backend has a folder of its own.
    (partial,) = (directory / "sidecars").glob("keypoints.partial-*")
    assert len(list(partial.iterdir())) == 2
    (partial / f"{'0' * 24}.npy.part").write_bytes(b"\x93NUMPY")
    second = Counted()
    report = make_poses(directory, second, "again", batch=2, show_progress=False)
    assert second.seen == order[7:]
    assert (report.tracklets, report.frames, report.undetected, report.taken_over) == (3, FRAMES, 1, 2)
    sidecar = Sidecar.open(directory, "keypoints")
    assert sidecar.meta["undetected_frames"] == 1 and sidecar.meta["command"] == "again"
    for number, (name, sizes) in enumerate(TRACKLETS.items()):
        values, mask = sidecar.read(name, range(len(sizes)))
        expected = [0 if 10 * number + frame == 11 else 1 + 10 * number + frame for frame in range(len(sizes))]
        assert values[:, 3, 1].tolist() == expected and mask.tolist() == [value > 0 for value in expected]
    assert list((directory / "sidecars").glob("keypoints.*")) == []


def test_another_backend_takes_nothing_over(people):
    directory = build("folder", source=people, data_dir=people.parent / "data")
    with pytest.raises(KeyboardInterrupt):
        make_poses(directory, Counted(breaks=6), "", batch=2, show_progress=False)
    other = Counted()
    other.meta = {"model": "other"}
    assert make_poses(directory, other, "", batch=2, show_progress=False).taken_over == 0
    assert len(other.seen) == FRAMES


def test_two_processes_do_not_make_it_at_once(people):
    directory = build("folder", source=people, data_dir=people.parent / "data")
    (directory / "sidecars").mkdir()
    with pose_sidecar.held(directory / "sidecars" / ".keypoints.lock"), refuses(UserError, "process", "keypoints"):
        make_poses(directory, Counted(), "", batch=2, show_progress=False)


def test_a_data_sets_name_comes_before_a_folder(people, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    people.rename(tmp_path / "mars")
    with refuses(UserError, "mars", "--source"):
        named_set("mars", tmp_path / "data")
    directory = named_set("./mars", tmp_path / "data")
    assert directory.parent.parent.name == "folder" and named_set(str(directory)) == directory


# --- looking at them -------------------------------------------------------------------------------------------------


def test_left_and_right_are_drawn_in_their_colours():
    points = np.zeros((17, 3), np.float32)
    points[9], points[10] = (8, 20, 1), (24, 60, 1)  # wrists
    points[15] = (8, 60, 0.05)  # an ankle that is not drawn
    picture = cv2.imdecode(np.frombuffer(with_keypoints(np.zeros((80, 32, 3), np.uint8), points), np.uint8), 1)
    assert picture.shape == (320, 128, 3)
    for (x, y), colour in (((8, 20), LEFT), ((24, 60), RIGHT), ((8, 60), (0, 0, 0))):
        np.testing.assert_allclose(picture[4 * y, 4 * x, ::-1], colour, atol=30)


def test_the_page_of_a_data_set_shows_them(people, tmp_path, capsys):
    line = ["folder", "--source", str(people), "--data_dir", str(tmp_path / "data"), "--out", str(tmp_path / "p.html")]
    assert show_dataset.main([*line, "--keypoints"]) == 2
    says(capsys.readouterr().err, "keypoints", "make-sidecars")
    assert show_dataset.main(line) == 0
    assert "Key points of" not in (tmp_path / "p.html").read_text()
    assert made(people, "--backend=stripes") == 0
    assert show_dataset.main([*line, "--keypoints"]) == 0
    text = (tmp_path / "p.html").read_text()
    assert "Key points of stripes" in text and text.count("data:image/jpeg") == 3 * (4 + 2 + 3)
