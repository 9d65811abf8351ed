"""SwinIR: a picture of more pixels, by windows of self-attention on the small picture and one enlargement at the end.

Liang et al., "SwinIR: Image Restoration Using Swin Transformer", ICCV Workshops 2021. Here it takes clips, so that a
module over frames can stand behind the last group.

Parameter tree (kernels [height, width, inputs, outputs]):

    first                                                   3×3 convolution, 3 → C
    patch_norm
    group_00/block_00/{norm_1, attention, norm_2, mlp}, …   attention: query, key, value, out, position_bias
    group_00/conv, …                                        3×3, behind the blocks of a group
    norm, after_body
    light: last; classical: before, up_0, …, last; real: before, up_0, …, high, last
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.backbones.torch_linear import TORCH_LINEAR
from jaxreid.errors import UserError
from jaxreid.shapes import AnyArray, Array, Bool, Float

MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K's colours; taken out first and put back last
HEADS = ("light", "classical", "real")
MLP_RATIO, HEAD_WIDTH = 2, 64
OUT_OF_SIGHT = -100.0  # what is added to the score of a pixel from the other side of a shifted window


@dataclasses.dataclass(frozen=True)
class SwinIRConfig:
    """What a network is made of.

    `size` are the rows and columns of the pictures that windows are laid out for: a side that is no longer than a
    window makes the windows as small as it is, and none is shifted. `head` enlarges by `scale`: "light" in one
    convolution, "classical" in steps of 2 with shuffled pixels, "real" in steps of 2 with repeated ones. With
    `residual` the network says what the bicubic picture lacks, at the start nothing; the published ones do without.
    """

    width: int = 60
    groups: int = 4
    depth: int = 6  # blocks of a group
    heads: int = 6
    window: int = 8
    head: str = "light"
    scale: int = 4
    size: tuple[int, int] = (64, 32)
    residual: bool = False
    drop_path: float = 0.1  # of the last block; from 0 for the first, evenly
    dtype: Any = jnp.float32
    remat: bool = False  # recompute each group in the backward pass

    def __post_init__(self):
        object.__setattr__(self, "size", tuple(self.size))
        if self.head not in HEADS:
            raise UserError(f"SwinIRConfig: head {self.head!r}; one of {', '.join(HEADS)}")
        if self.width % self.heads:
            raise UserError(f"SwinIRConfig: width {self.width} is not a multiple of {self.heads} heads")
        if self.head != "light" and self.scale not in (2, 4, 8):
            raise UserError(f"SwinIRConfig: scale {self.scale}; the head {self.head!r} enlarges by 2, 4 or 8")

    @property
    def cell(self) -> tuple[int, int]:
        """(side of the windows, by how much every other block shifts them)."""
        least = min(self.size)
        return (self.window, self.window // 2) if least > self.window else (least, 0)

    @property
    def doublings(self) -> int:
        return self.scale.bit_length() - 1


VARIANTS = {
    "swinir_tiny": SwinIRConfig(width=32, groups=2, depth=2, heads=4, drop_path=0.0),
    "swinir_light": SwinIRConfig(),
    "swinir_m": SwinIRConfig(width=180, groups=6, head="classical"),
    "swinir_real": SwinIRConfig(width=180, groups=6, head="real"),
}


def position_index(window: int) -> np.ndarray:
    """i64[w², w²], for each pair of pixels of a window the row of the table that their offset has."""
    place = np.indices((window, window)).reshape(2, -1)
    down, right = place[:, :, None] - place[:, None] + window - 1
    return down * (2 * window - 1) + right


def shift_mask(rows: int, columns: int, window: int, shift: int) -> np.ndarray:
    """f32[windows, w², w²] of a map that was rolled by −shift: 0 between pixels that were neighbours before, −100
    between those from both sides of the seam."""
    bands = [np.searchsorted([n - window, n - shift], np.arange(n), side="right") for n in (rows, columns)]
    region = (3 * bands[0][:, None] + bands[1]).reshape(rows // window, window, columns // window, window)
    region = region.swapaxes(1, 2).reshape(-1, window * window)
    return np.where(region[:, :, None] == region[:, None], 0.0, OUT_OF_SIGHT).astype(np.float32)


def partition(x: Array, window: int) -> Array:
    """Maps [N, H, W, C] → windows [N, H·W / w², w², C], row by row."""
    n, rows, columns, channels = x.shape
    x = x.reshape(n, rows // window, window, columns // window, window, channels)
    return x.swapaxes(2, 3).reshape(n, -1, window * window, channels)


def reverse(windows: Array, rows: int, columns: int, window: int) -> Array:
    """Windows → maps [N, H, W, C]: `partition` undone."""
    n, channels = len(windows), windows.shape[-1]
    x = windows.reshape(n, rows // window, columns // window, window, window, channels)
    return x.swapaxes(2, 3).reshape(n, rows, columns, channels)


def pixel_shuffle(x: Array, scale: int) -> Array:
    """Maps [N, H, W, C·r²] → [N, H·r, W·r, C]: r² channels in a row are the pixels that one becomes, row by row."""
    n, rows, columns, channels = x.shape
    x = x.reshape(n, rows, columns, channels // scale**2, scale, scale)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(n, rows * scale, columns * scale, -1)


def _normal() -> Any:
    return nn.initializers.truncated_normal(0.02)


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned number for each offset of two pixels in each head."""

    config: SwinIRConfig

    @nn.compact
    def __call__(self, windows: Array, mask: np.ndarray | None) -> Array:
        """Windows [N, M, w², C] → the same shape; mask f32[M, w², w²], added to the scores."""
        c, (side, _) = self.config, self.config.cell
        dense = functools.partial(nn.Dense, c.width, dtype=c.dtype, kernel_init=_normal())
        q, k, v = (
            dense(name=name)(windows).reshape(*windows.shape[:3], c.heads, -1) for name in ("query", "key", "value")
        )
        table = self.param("position_bias", _normal(), ((2 * side - 1) ** 2, c.heads))
        bias = table[position_index(side)].transpose(2, 0, 1)[None]
        bias = (bias if mask is None else bias + mask[:, None]).astype(c.dtype)
        attend = functools.partial(jax.nn.dot_product_attention, bias=bias, implementation="xla")
        return dense(name="out")(jax.vmap(attend)(q, k, v).reshape(windows.shape))


class Block(nn.Module):
    """x + attention(norm(x)) in windows, then x + MLP(norm(x)); each may be dropped for a whole picture in training."""

    config: SwinIRConfig
    shifted: bool
    drop: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        c = self.config
        rows, columns = x.shape[1:3]
        side, shift = c.cell
        shift = shift if self.shifted else 0
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=c.dtype)
        drop = nn.Dropout(self.drop, broadcast_dims=(1, 2, 3), deterministic=not train)

        y = norm(name="norm_1")(x)
        y = jnp.roll(y, (-shift, -shift), (1, 2)) if shift else y
        mask = shift_mask(rows, columns, side, shift) if shift else None
        y = reverse(WindowAttention(c, name="attention")(partition(y, side), mask), rows, columns, side)
        x = x + drop(jnp.roll(y, (shift, shift), (1, 2)) if shift else y)

        return x + drop(Mlp(c, name="mlp")(norm(name="norm_2")(x)))


class Mlp(nn.Module):
    config: SwinIRConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        dense = functools.partial(nn.Dense, dtype=c.dtype, kernel_init=_normal())
        return dense(c.width, name="down")(nn.gelu(dense(MLP_RATIO * c.width, name="up")(x), approximate=False))


class Group(nn.Module):
    """x + convolution(blocks(x)); `first`: how many blocks stand before it."""

    config: SwinIRConfig
    first: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        c, y = self.config, x
        last = max(c.groups * c.depth - 1, 1)
        for i in range(c.depth):
            drop = c.drop_path * (self.first + i) / last
            y = Block(c, shifted=i % 2 == 1, drop=drop, name=f"block_{i:02d}")(y, train)
        return x + _convolution(c, c.width, "conv")(y)


def _convolution(c: SwinIRConfig, outputs: int, name: str) -> nn.Conv:
    init: Any = TORCH_LINEAR
    if name == "last" and c.residual:
        init = nn.initializers.zeros
    return nn.Conv(outputs, (3, 3), padding=1, dtype=c.dtype, kernel_init=init, name=name)


class SwinIR(nn.Module):
    """The network.

    Attributes:
      over_frames: makes a module (maps [B, T, H, W, C], frame_mask) → what is added to them, behind the last group.
    """

    config: SwinIRConfig
    over_frames: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self,
        frames: Float[Array, "clips frames rows columns 3"],
        frame_mask: Bool[AnyArray, "clips frames"] | None = None,
        train: bool = False,
    ) -> Float[Array, "clips frames high wide 3"]:
        """Frames of values in 0…1 → `scale` times as many rows and columns, f32; not clipped.

        Args:
          frame_mask: frames that others may look at; all where not given.
          train: whether blocks are dropped, with the key "dropout".
        """
        c = self.config
        clips, length, rows, columns, _ = frames.shape
        mean = jnp.array(MEAN)
        x = (frames.astype(jnp.float32) - mean).astype(c.dtype).reshape(-1, rows, columns, 3)
        side, _ = c.cell
        beyond = [(0, 0), *((0, -n % side) for n in (rows, columns)), (0, 0)]
        x = jnp.pad(x, beyond, mode="reflect") if any(more for _, more in beyond) else x
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=c.dtype)
        group = nn.remat(Group, static_argnums=(2,)) if c.remat else Group

        shallow = _convolution(c, c.width, "first")(x)
        x = norm(name="patch_norm")(shallow)
        for i in range(c.groups):
            x = group(c, i * c.depth, name=f"group_{i:02d}")(x, train)
        if self.over_frames is not None:
            maps = x.reshape(clips, length, *x.shape[1:])
            mask = jnp.ones((clips, length), bool) if frame_mask is None else jnp.asarray(frame_mask)
            x = (maps + self.over_frames(name="over_frames")(maps, mask)).reshape(x.shape)
        x = _convolution(c, c.width, "after_body")(norm(name="norm")(x)) + shallow

        x = self._enlarged(x)[:, : rows * c.scale, : columns * c.scale].astype(jnp.float32)
        x = x.reshape(clips, length, *x.shape[1:])
        if c.residual:
            return x + jax.image.resize(frames.astype(jnp.float32), x.shape, "cubic")
        return x + mean

    def _enlarged(self, x: Array) -> Array:
        c = self.config
        if c.head == "light":
            return pixel_shuffle(_convolution(c, 3 * c.scale**2, "last")(x), c.scale)
        x = nn.leaky_relu(_convolution(c, HEAD_WIDTH, "before")(x), 0.01)
        for i in range(c.doublings):
            if c.head == "classical":
                x = pixel_shuffle(_convolution(c, 4 * HEAD_WIDTH, f"up_{i}")(x), 2)
            else:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = nn.leaky_relu(_convolution(c, HEAD_WIDTH, f"up_{i}")(x), 0.2)
        if c.head == "real":
            x = nn.leaky_relu(_convolution(c, HEAD_WIDTH, "high")(x), 0.2)
        return _convolution(c, 3, "last")(x)
