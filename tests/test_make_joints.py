"""The sidecar of 3-D joints: every joint from the points of its name, and key points laid into a plane."""

import numpy as np
import pytest
from messages import refuses
from test_make_sidecars import BLAZEPOSE, COCO

from jaxreid.data.build import build
from jaxreid.data.sidecars import Sidecar, sidecar_dir
from jaxreid.errors import UserError
from jaxreid.footage import joints
from jaxreid.tools import make_sidecars

HUMAN36M = {
    0: ("left_hip", "right_hip"), 1: ("right_hip",), 2: ("right_knee",), 3: ("right_ankle",), 4: ("left_hip",),
    5: ("left_knee",), 6: ("left_ankle",), 7: ("left_hip", "right_hip", "left_shoulder", "right_shoulder"),
    8: ("left_shoulder", "right_shoulder"), 9: ("nose",), 10: ("left_eye", "right_eye"), 11: ("left_shoulder",),
    12: ("left_elbow",), 13: ("left_wrist",), 14: ("right_shoulder",), 15: ("right_elbow",), 16: ("right_wrist",),
}  # fmt: skip


def test_each_joint_is_the_mean_of_its_landmarks():
    landmarks = np.random.default_rng(0).normal(size=(39, 3)).astype(np.float32)
    found = joints.blazepose_joints(lambda pixels: (landmarks, 0.5), np.zeros((90, 40, 3), np.uint8))
    for joint, names in HUMAN36M.items():
        wanted = landmarks[[BLAZEPOSE.index(name) for name in names]].mean(0)
        np.testing.assert_allclose(found[joint], wanted, atol=1e-6)
    assert not joints.blazepose_joints(lambda pixels: (landmarks, 0.49), np.zeros((9, 4, 3), np.uint8)).any()


def figure(scale, frames=3):
    """Key points of a body that stands upright: hips at y = 50, shoulders at y = 20."""
    x = {"left": 8.0, "right": -8.0}
    y = {"eye": 5, "ear": 6, "shoulder": 20, "elbow": 35, "wrist": 48, "hip": 50, "knee": 70, "ankle": 90}
    place = {name: (x[name.split("_")[0]], y[name.split("_")[1]]) for name in COCO if name != "nose"} | {"nose": (0, 8)}
    points = np.array([[*place[name], 1.0] for name in COCO], np.float32) * [scale, scale, 1]
    return np.repeat(points[None], frames, axis=0)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_key_points_in_a_plane(scale):
    found, mask = joints.lift(figure(scale))
    assert mask.all() and (found[..., 2] == 0).all()
    # From pelvis (y = 50) to thorax (y = 20) is half a metre, whatever the size of the picture.
    np.testing.assert_allclose(found[:, 0, :2], np.tile([0, 50 / 60], (3, 1)), atol=1e-6)
    np.testing.assert_allclose(found[:, 8, :2], np.tile([0, 20 / 60], (3, 1)), atol=1e-6)
    np.testing.assert_allclose(found[:, 6, :2], np.tile([8 / 60, 90 / 60], (3, 1)), atol=1e-6)


def test_points_that_nobody_found():
    points = figure(1.0, 4)
    wrist, ankle, knee = (COCO.index(f"left_{name}") for name in ("wrist", "ankle", "knee"))
    points[1, wrist] = 0  # stays at the elbow
    points[2, [knee, ankle]] = 0  # both stay at the hip
    points[3, COCO.index("right_hip")] = 0  # no pelvis, no skeleton
    found, mask = joints.lift(points)
    assert mask.tolist() == [True, True, True, False] and not found[3].any()
    np.testing.assert_array_equal(found[1, 13], found[1, 12])
    np.testing.assert_array_equal(found[2, [5, 6]], found[2, [4, 4]])
    np.testing.assert_array_equal(np.delete(found[2], [5, 6], 0), np.delete(found[0], [5, 6], 0))
    assert not joints.lift(np.zeros((2, 17, 3), np.float32))[1].any()


def test_the_command_lays_a_data_set_s_key_points_into_a_plane(tmp_path, capsys):
    directory = build("walkers", "tiny", data_dir=tmp_path)
    line = [str(directory), "--kind", "joints3d", "--backend", "lift0"]
    assert make_sidecars.main(line) == 2  # walkers has its own
    assert make_sidecars.main([*line, "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert str(sidecar_dir(directory, "joints3d")) in out
    points, lifted = Sidecar.open(directory, "keypoints"), Sidecar.open(directory, "joints3d")
    assert lifted.meta["shape"] == [17, 3] and "lift0" in lifted.meta["model"]
    index = np.arange(np.load(points.directory / "offsets.npy")[1])  # of the first tracklet
    name = points.tracklets[0]
    there, _ = points.read(name, index)
    wanted, mask = joints.lift(there)
    found, seen = lifted.read(name, index)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(seen, mask)


def test_a_backend_of_another_kind_is_refused():
    with refuses(UserError, "'stripes' is unknown for joints3d", "lift0"):
        joints.make_joint_estimator("stripes")
