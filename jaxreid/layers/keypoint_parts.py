"""Key points that weigh the patches of a frame, part by part of the body; and clip tokens, the patches of all frames.

KeyRe-ID (Kim et al. 2025, "Keypoint-Guided Person Re-Identification using Part-Aware Representation in Videos").
Shapes: B clips of T frames, P parts, 17 key points in COCO's order, N patches of a frame, D the tower's width.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxreid.shapes import AnyArray, Array, Float, Int

# The key points of each part. Six are the paper's; three and four join theirs.
PARTS: dict[int, dict[str, tuple[int, ...]]] = {
    6: {
        "head": (0, 1, 2, 3, 4),
        "torso": (5, 6, 11, 12),
        "left_arm": (7, 9),
        "right_arm": (8, 10),
        "left_leg": (13, 15),
        "right_leg": (14, 16),
    },
    4: {"head": (0, 1, 2, 3, 4), "torso": (5, 6, 11, 12), "arms": (7, 8, 9, 10), "legs": (13, 14, 15, 16)},
    3: {"head": (0, 1, 2, 3, 4), "torso_and_arms": (5, 6, 7, 8, 9, 10, 11, 12), "legs": (13, 14, 15, 16)},
}
Layout = Literal["paper", "released"]

SHIFT, GROUPS = 5, 2  # of TCSS


def heat_maps(
    keypoints: Float[AnyArray, "clips frames points 3"],
    size: tuple[int, int],
    parts: int = 6,
    threshold: float = 0.1,
) -> Float[Array, "clips frames {parts} height width"]:
    """What each part's key points light up: the largest of Gaussian kernels with a peak of 1.

    Radius r = ⌊w / 11⌋, standard deviation (2r + 1) / 4, centred on the pixel that a point lies in, nothing beyond the
    square of 2r + 1 pixels. Points that score no more than the threshold, or lie outside, show nothing.

    Args:
      keypoints: x and y in unit coordinates of the frame, and score.
      size: (height, width) of the maps in pixels.
      parts: a key of `PARTS`.
    """
    height, width = size
    radius = width // 11
    spread = 2.0 * ((2 * radius + 1) / 4) ** 2

    def profile(position: Array, length: int) -> Array:
        """Along one axis, f32[B, T, 17, length]."""
        apart = jnp.arange(length) - jnp.floor(position * length)[..., None]
        return jnp.where(jnp.abs(apart) <= radius, jnp.exp(-(apart**2) / spread), 0.0)

    x, y, score = (jnp.asarray(keypoints[..., i], jnp.float32) for i in range(3))
    inside = (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
    seen = jnp.where(inside & (score > threshold), 1.0, 0.0)
    down, across = profile(y, height) * seen[..., None], profile(x, width)

    def lit(points: tuple[int, ...]) -> Array:
        kernels = [down[:, :, i, :, None] * across[:, :, i, None, :] for i in points]
        return jnp.stack(kernels).max(0)

    return jnp.stack([lit(points) for points in PARTS[parts].values()], axis=2)


def outside(box: Float[AnyArray, "clips frames 4"], size: tuple[int, int]) -> Float[Array, "clips frames 1 h w"]:
    """1 where a pixel is not in the erased box (top, left, bottom, right in unit coordinates), else 0."""
    top, left, bottom, right = (box[..., i, None] for i in range(4))
    y, x = ((jnp.arange(length) + 0.5) / length for length in size)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return 1.0 - (rows[..., :, None] & columns[..., None, :])[:, :, None].astype(jnp.float32)


def patch_weights(
    maps: Float[AnyArray, "clips frames parts height width"], grid: tuple[int, int], layout: Layout = "paper"
) -> Float[Array, "clips parts patches"]:
    """The mean of each map over every patch and over the frames of the clip; patches row-major.

    In [0, 1] as the paper draws it, 0 for a part that is not seen. With "released" every map of a frame is first
    stretched to [0, 1] and then to [−1, 1], so that the background weighs −1.
    """
    (down, across), (height, width) = grid, maps.shape[-2:]
    if layout == "released":
        low, high = (jnp.asarray(edge(maps, (-2, -1)))[..., None, None] for edge in (jnp.min, jnp.max))
        maps = ((maps - low) / (high - low + 1e-6) - 0.5) / 0.5
    patch = height // down, width // across
    of_patch = maps[..., : down * patch[0], : across * patch[1]].reshape(
        *maps.shape[:3], down, patch[0], across, patch[1]
    )
    return of_patch.mean((1, 4, 6)).reshape(maps.shape[0], maps.shape[2], down * across)


def shuffled(patches: int) -> Int[np.ndarray, " patches"]:
    """TCSS, the temporal clip shift and shuffle of a clip's patches: which patch comes to each place.

    All are shifted by five, then those of the first and the second half come by turns.
    """
    shifted = np.roll(np.arange(patches), 1 - SHIFT)
    return shifted.reshape(GROUPS, -1).T.reshape(-1)


def clip_tokens(
    tokens: Float[Array, "clips frames tokens dim"], layout: Layout = "paper"
) -> Float[Array, "clips tokens wide"]:
    """Tokens of frames [B, T, 1 + N, D], class token first → of clips [B, 1 + N, T·D].

    Row i is the i-th token of all frames, one after the other. With "released" it is what the published code makes by a
    view of the memory: the T tokens from T·i on, of all tokens of the clip in the order of frames; row 0 is then the
    class token of the first frame with its first patches.
    """
    clips, frames, count, dim = tokens.shape
    if layout == "paper":
        tokens = jnp.swapaxes(tokens, 1, 2)
    return tokens.reshape(clips, count, frames * dim)
