"""STFL, spatial-temporal feature learning: an image tower whose last blocks look at other frames; no new parameter.

Of LSMRL (arXiv 2601.12062). The first blocks stay as they are ("basic"); in the next ("grouped") some heads look at
other frames, after ZeroI2V; in the last ("shifted") patches or channels come from other frames, after TPS or X-ReID.
Tokens of N = B·T frames lie clip by clip, the class token first.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxreid.backbones.attention import Attend, attend
from jaxreid.backbones.transformer import Change, Hooks
from jaxreid.backbones.vit import ViTConfig
from jaxreid.errors import UserError
from jaxreid.shapes import Array, Float, Int

Keys = Float[Array, "rows tokens heads channels"]  # and values
Queries = Float[Array, "rows queries heads channels"]  # the last block has those of the class token alone
GROUPED_MODES, SHIFT_MODES = ("shift", "tube"), ("patch", "channel")


def neighbours(
    clip: Float[Array, "clips frames *rest"],
) -> tuple[Float[Array, "clips frames *rest"], Float[Array, "clips frames *rest"]]:
    """The values of the frame before and of the frame after; a clip's ends are their own neighbours."""
    return jnp.concatenate([clip[:, :1], clip[:, :-1]], axis=1), jnp.concatenate([clip[:, 1:], clip[:, -1:]], axis=1)


def grouped_attention(frames: int, heads: int, mode: str) -> Attend:
    """Attention in which some heads look at other frames.

    "shift": `heads` of them take keys and values from the frame before, as many from the frame after, the clip's ends
    from themselves; on frames that are all the same this is CLIP. "tube": 2 · `heads` attend over all frames at their
    own position.
    """

    def shifted(x: Keys) -> Keys:
        clip = x.reshape(-1, frames, *x.shape[1:])  # [B, T, L, H, d]
        before, after = neighbours(clip)
        parts = before[..., :heads, :], after[..., heads : 2 * heads, :], clip[..., 2 * heads :, :]
        return jnp.concatenate(parts, axis=-2).reshape(x.shape)

    def tubes(x: Keys, tokens: int) -> Float[Array, "tubes frames grouped channels"]:
        clip = x[:, :tokens, : 2 * heads].reshape(-1, frames, tokens, 2 * heads, x.shape[-1])
        return clip.swapaxes(1, 2).reshape(-1, frames, 2 * heads, x.shape[-1])

    def shift(q: Queries, k: Keys, v: Keys) -> Queries:
        return attend(q, shifted(k), shifted(v))

    def tube(q: Queries, k: Keys, v: Keys) -> Queries:
        tokens = q.shape[1]
        over_time = attend(*(tubes(x, tokens) for x in (q, k, v))).reshape(-1, tokens, frames, 2 * heads, q.shape[-1])
        over_time = over_time.swapaxes(1, 2).reshape(-1, tokens, 2 * heads, q.shape[-1])
        if q.shape[2] == 2 * heads:
            return over_time
        return jnp.concatenate([over_time, attend(*(x[:, :, 2 * heads :] for x in (q, k, v)))], axis=2)

    return dict(zip(GROUPED_MODES, (shift, tube), strict=True))[mode]


SHIFTS = np.array([[-4, 1, 2], [-1, 0, 3], [-2, -3, 4]])  # frames by which patches of a 3×3 mosaic move (TPS, C)


def shift_table(frames: int, grid: tuple[int, int]) -> Int[np.ndarray, "{frames} patches"]:
    """The frame from which patch (i, j) of frame t comes, (t − s(i, j)) mod T; patches row-major."""
    rows, columns = np.indices(grid)
    return ((np.arange(frames)[:, None] - SHIFTS[rows % 3, columns % 3].reshape(-1)) % frames).astype(np.int32)


def shift_patches(
    x: Float[Array, "rows tokens *rest"], table: Int[np.ndarray, "frames patches"]
) -> Float[Array, "rows tokens *rest"]:
    """Tokens [N, 1 + P, ...] of clips of T frames with every patch taken from its frame in the table; the class token
    stays, and so does everything where there are no patches."""
    if x.shape[1] == 1:
        return x
    frames, patches = table.shape
    clip = x[:, 1:].reshape(-1, frames, patches, int(np.prod(x.shape[2:])))
    moved = jnp.take_along_axis(clip, jnp.asarray(table)[None, :, :, None], axis=1)
    return jnp.concatenate([x[:, :1], moved.reshape(x.shape[0], patches, *x.shape[2:])], axis=1)


def patch_shift_attention(frames: int, grid: tuple[int, int]) -> Attend:
    """Temporal patch shift: attention within mosaics of patches from all frames, whose result moves back."""
    there = shift_table(frames, grid)
    back = (2 * np.arange(frames)[:, None] - there) % frames  # (t + s) mod T

    def shifted(q: Queries, k: Keys, v: Keys) -> Queries:
        return shift_patches(attend(*(shift_patches(x, there) for x in (q, k, v))), back)

    return shifted


def channel_shift(frames: int) -> Change:
    """Patch tokens [N, 1 + P, D] of which the first quarter of the channels comes from the frame before and the second
    from the frame after (X-ReID); on frames that are all the same nothing changes."""

    def shifted(x: Float[Array, "rows tokens dim"]) -> Float[Array, "rows tokens dim"]:
        clip, quarter = x[:, 1:].reshape(-1, frames, x.shape[1] - 1, x.shape[2]), x.shape[2] // 4
        before, after = neighbours(clip)
        parts = before[..., :quarter], after[..., quarter : 2 * quarter], clip[..., 2 * quarter :]
        return jnp.concatenate([x[:, :1], jnp.concatenate(parts, axis=-1).reshape(x[:, 1:].shape)], axis=1)

    return shifted


def stfl_hooks(image: ViTConfig, split: tuple[int, int, int], grouped_mode: str, tps_mode: str, frames: int) -> Hooks:
    """What makes the tower STFL: `split` numbers the blocks of the three encoders, `tps_mode` says whether "patch"es
    or "channel"s shift in the last.

    Raises:
      UserError: the split is not that of the tower.
    """
    basic, grouped, shifted = split
    if sum(split) != image.depth:
        raise UserError(f"stfl_split={split} for a tower of {image.depth} blocks")
    if tps_mode not in SHIFT_MODES:
        raise ValueError(f"tps_mode={tps_mode!r} is not one of {', '.join(SHIFT_MODES)}")
    heads = max(1, image.heads // 6)  # 2 of 12 in each direction
    by_group = dict.fromkeys(range(basic, basic + grouped), grouped_attention(frames, heads, grouped_mode))
    last = range(basic + grouped, basic + grouped + shifted)
    if tps_mode == "channel":
        return Hooks(attention=by_group, normed=dict.fromkeys(last, channel_shift(frames)))
    return Hooks(attention=by_group | dict.fromkeys(last, patch_shift_attention(frames, image.grid)))
