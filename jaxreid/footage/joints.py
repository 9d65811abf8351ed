"""3-D joints of people in Human3.6M's order: from crops by BlazePose, or key points laid into a plane.

Both orders name the person's own left and right. Joints are metres in a camera's coordinates: x to the right, y down, z
away from it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxreid.backbones.skeleton_graph import TREES
from jaxreid.data.sidecars import Sidecar, SidecarWriter, free_place
from jaxreid.errors import UserError
from jaxreid.files import expand
from jaxreid.footage.pose_sidecar import Made, tracklets_of
from jaxreid.footage.poses import (
    COCO_OF_BLAZEPOSE,
    JOINTS,
    PRESENT,
    Network,
    PoseEstimator,
    blazepose_net,
    blazepose_pixels,
    in_square,
)

KIND, LIFT = "joints3d", "lift0"
BACKENDS = f"blazepose:FILE or {LIFT}"

# Of COCO-17's points, those that a joint is the mean of: pelvis, right leg, left leg, spine, thorax, nose, head, left
# arm, right arm.
_HIPS, _SHOULDERS = (11, 12), (5, 6)
H36M_OF_COCO = (
    _HIPS, (12,), (14,), (16,), (11,), (13,), (15,), _HIPS + _SHOULDERS, _SHOULDERS, (0,), (1, 2),
    (5,), (7,), (9,), (6,), (8,), (10,),
)  # fmt: skip
PELVIS, THORAX = 0, 8
TORSO = 0.5  # metres from pelvis to thorax, that a lifted tracklet has in the middle


def h36m_of_coco(points: np.ndarray) -> np.ndarray:
    """COCO-17 [..., 17, D] → Human3.6M-17 [..., 17, D]."""
    return np.stack([points[..., list(sources), :].mean(axis=-2) for sources in H36M_OF_COCO], axis=-2)


# --- BlazePose -------------------------------------------------------------------------------------------------------


class JointEstimator(PoseEstimator):
    """As a `PoseEstimator`, of joints f32[N, 17, 3] in metres, which no edge of a crop cuts."""

    def __call__(self, crops: list[np.ndarray]) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return np.asarray(self.locate(crops), np.float32)


def make_joint_estimator(name: str) -> JointEstimator:
    """The estimator that a command line names: `blazepose:` and a file, as `jaxreid.footage.poses.make_estimator`.

    Raises:
      UserError: no such backend, or its model cannot be had.
    """
    kind, _, model = name.partition(":")
    if kind != "blazepose" or not model:
        raise UserError(f"--backend {name!r} is unknown for {KIND}; use {BACKENDS}")
    net, facts = blazepose_net(expand(model))

    def world(pixels: np.ndarray) -> tuple[np.ndarray, float]:
        net.setInput(pixels)
        landmarks, presence = net.forward(("Identity_4", "Identity_1"))
        return landmarks.reshape(-1, 3), float(presence[0, 0])

    return JointEstimator(
        lambda crops: np.stack([blazepose_joints(world, crop) for crop in crops]),
        {
            "model": "BlazePose GHUM full",
            "order": "Human3.6M-17",
            "units": "metres as the model guesses them, from the middle of the hips; x right, y down, z away",
            **facts,
        },
    )


def blazepose_joints(world: Network, crop: np.ndarray) -> np.ndarray:
    """Joints f32[17, 3] of a crop u8[H, W, 3], zeros where nobody is seen.

    Args:
      world: pixels f32[1, 3, SIDE, SIDE] → landmarks in metres f32[39, 3], probability that somebody is there.
    """
    landmarks, presence = world(blazepose_pixels(in_square(crop)[0]))
    if presence < PRESENT:
        return np.zeros((JOINTS, 3), np.float32)
    return h36m_of_coco(landmarks[list(COCO_OF_BLAZEPOSE)]).astype(np.float32)


# --- Key points in a plane -------------------------------------------------------------------------------------------


def lift(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Key points of a tracklet f32[T, 17, 3] (x, y in pixels, score; COCO-17) → (joints f32[T, 17, 3] with z = 0, which
    frames have any bool[T]).

    Half a metre is the middle distance from pelvis to thorax. A point that nobody found (all zeros) leaves its joint
    where the joint's parent is; a frame without pelvis or thorax has none.
    """
    known = np.asarray(points.any(axis=-1))
    found = np.stack([known[:, list(sources)].all(axis=1) for sources in H36M_OF_COCO], axis=1)
    joints = h36m_of_coco(points) * [1.0, 1.0, 0.0]
    for parent, joint in TREES[JOINTS]:  # in the order from the root
        joints[:, joint] = np.where(found[:, joint, None], joints[:, joint], joints[:, parent])
    mask = found[:, PELVIS] & found[:, THORAX]
    torso = np.linalg.norm(joints[mask, THORAX] - joints[mask, PELVIS], axis=-1)
    middle = float(np.median(torso)) if len(torso) else 0.0
    if not middle:
        return np.zeros_like(points), np.zeros_like(mask)
    return np.where(mask[:, None, None], joints * (TORSO / middle), 0.0).astype(np.float32), mask


def make_lifted(directory: Path, command: str, *, overwrite: bool = False) -> Made:
    """Writes the joints3d sidecar of a prepared set from its key points; tracklets without these have no entry.

    Raises:
      UserError: there is a sidecar already and `overwrite` is false.
      MissingSidecar: there are no key points.
    """
    free_place(directory, KIND, overwrite)
    keypoints = Sidecar.open(directory, "keypoints")
    meta = {
        "model": f"{LIFT}, key points in a plane",
        "keypoints": keypoints.source,
        "order": "Human3.6M-17",
        "units": f"metres if the torso has {TORSO}; x right, y down, z = 0",
        "command": command,
    }
    tracklets = frames = undetected = 0
    with SidecarWriter(directory, KIND, meta, overwrite) as writer:
        for name, (split, _, row) in tracklets_of(directory).items():
            if name not in keypoints:
                continue
            index = split.frame_index(row)
            points, there = keypoints.read_known(name, index)
            joints, mask = lift(np.where(there[:, None, None], points, 0.0))
            writer.add(name, joints, index, mask)
            tracklets, frames, undetected = tracklets + 1, frames + len(mask), undetected + int((~mask).sum())
        writer.note(undetected_frames=undetected)
    return Made(tracklets, frames, undetected, 0)
