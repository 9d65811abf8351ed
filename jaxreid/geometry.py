"""Where a crop, a flip and an erased box leave what lies on a frame: key points, joints, a second stream of frames.

Points are in unit coordinates of the frame (`jaxreid.data.extras`).
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.data.batch import Batch
from jaxreid.errors import UserError

Array = jax.Array

# Joints of the left side and their partners on the right, by the number of joints.
COCO17 = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
HUMAN36M17 = ((4, 1), (5, 2), (6, 3), (11, 14), (12, 15), (13, 16))
KINECT20 = ((4, 8), (5, 9), (6, 10), (7, 11), (12, 16), (13, 17), (14, 18), (15, 19))
KINECT25 = (*KINECT20, (21, 23), (22, 24))
JOINTS = {17: HUMAN36M17, 20: KINECT20, 25: KINECT25}


def swapped(pairs: tuple[tuple[int, int], ...], count: int) -> np.ndarray:
    """i32[count]: each joint's partner on the other side, itself where it has none."""
    order = np.arange(count)
    for left, right in pairs:
        order[[left, right]] = right, left
    return order


class Geometry(flax.struct.PyTreeNode):
    """What was drawn for every frame, [B, T]: the offset of the crop, the flip that follows it, the erased box."""

    down: Array  # f32, of the crop's upper edge from the frame's, in heights
    right: Array  # f32, of its left edge, in widths
    flipped: Array  # bool
    erased: Array  # bool
    box: Array  # f32[B, T, 4]: top, left, bottom, right of the erased box in unit coordinates; 0 where none is
    flips: bool = flax.struct.field(pytree_node=False, default=True)  # whether any frame can be flipped

    def points(self, x: Array) -> Array:
        """Key points f32[B, T, 17, 3] (x, y, score) after crop and flip; those that have left the frame score 0."""
        across, down, score = (x[..., i] for i in range(3))
        across, down = across - self.right[..., None], down - self.down[..., None]
        flipped = self.flipped[..., None]
        moved = jnp.stack([jnp.where(flipped, 1.0 - across, across), down, score], axis=-1)
        moved = jnp.where(flipped[..., None], moved[:, :, swapped(COCO17, x.shape[2])], moved)
        inside = jnp.all((moved[..., :2] >= 0.0) & (moved[..., :2] <= 1.0), axis=-1)
        return moved.at[..., 2].set(jnp.where(inside, moved[..., 2], 0.0))

    def joints(self, x: Array) -> Array:
        """3-D joints f32[B, T, J, 3] (x to the right) as those of the mirrored person where the frame is flipped.

        Raises:
          UserError: it is not known which of J joints are left and right.
        """
        count = x.shape[2]
        if not self.flips:
            return x
        if count not in JOINTS:
            known = ", ".join(map(str, JOINTS))
            raise UserError(f"left and right of {count} joints are not known ({known} are): set config.augment.flip=0")
        mirrored = (x * jnp.array([-1.0, 1.0, 1.0]))[:, :, swapped(JOINTS[count], count)]
        return jnp.where(self.flipped[..., None, None], mirrored, x)

    def applied(self, extras: dict[str, Array]) -> dict[str, Array]:
        """All extras that lie on the frame; "second_frames" are moved with the frames themselves."""
        found = dict(extras)
        if "keypoints" in found:
            known = found["keypoints_mask"][..., None, None]
            found["keypoints"] = jnp.where(known, self.points(found["keypoints"]), 0.0)
        if "joints3d" in found:
            found["joints3d"] = self.joints(found["joints3d"])
        if "erased" in found:
            found["erased"] = self.erased
        if "erased_box" in found:
            found["erased_box"] = self.box
        return found


def mirror(batch: Batch) -> Batch:
    """A batch as a mirror shows it: its frames and all that lies on them."""
    shape = batch.frame_mask.shape
    zero, never = jnp.zeros(shape), jnp.zeros(shape, bool)
    turned = Geometry(zero, zero, jnp.ones(shape, bool), never, jnp.zeros((*shape, 4))).applied(batch.extras)
    if "second_frames" in turned:
        turned["second_frames"] = turned["second_frames"][:, :, :, ::-1]
    return batch.replace(frames=batch.frames[:, :, :, ::-1], extras=turned)
