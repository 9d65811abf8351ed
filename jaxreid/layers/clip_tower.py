"""CLIP's image tower on clips, with what the CLIP-ReID family puts into it: side information, prompts and adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxreid.backbones.transformer import Adapters, Hooks
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.data.batch import Batch
from jaxreid.layers.conditions import condition, condition_rows
from jaxreid.layers.prompts import DeepPrompts, GeometryPrompts
from jaxreid.shapes import AnyArray, Array, Bool, Float

Pooling = Callable[..., Array]  # features [B, T, D] and which frames count bool[B, T] → [B, D]
FEATURES = ("penultimate", "last", "projected")


@dataclasses.dataclass(frozen=True)
class SideInformation:
    """SIE: a row of a table, added to the class token with a strength; which one the columns of a clip say
    (`jaxreid.layers.conditions.COLUMNS`), none where one is unknown. `cameras`: of the training split."""

    columns: tuple[str, ...]
    cameras: int
    strength: float = 1.0


@dataclasses.dataclass(frozen=True)
class PlatformPrompts:
    """VSLA-CLIP's prompts: `length` tokens that each of the first `blocks` blocks attends to, for every value of the
    columns another; changed by what `geometry` names of where a clip was taken from (`GEOMETRY`)."""

    columns: tuple[str, ...]
    cameras: int
    blocks: int
    length: int = 1
    geometry: tuple[str, ...] = ()


class FrameFeatures(NamedTuple):
    """Of every frame: the class token before the last block, after the last norm, and in the joint space; and all
    tokens after the last norm, where they were asked for."""

    penultimate: Float[Array, "clips frames dim"]
    last: Float[Array, "clips frames dim"]
    projected: Float[Array, "clips frames joint"]
    tokens: Float[Array, "clips frames tokens dim"] | None = None

    def pooled(
        self, own: Pooling, joint: Pooling, mask: Bool[AnyArray, "clips frames"]
    ) -> dict[str, Float[Array, "clips _"]]:
        """Clip features by name, by a pooling of the tower's own space and one of the joint space."""
        spaces = {"penultimate": own, "last": own, "projected": joint}
        return {name: pool(getattr(self, name), mask) for name, pool in spaces.items()}


class ClipTower(nn.Module):
    """The tower on clips.

    Attributes:
      image: the tower.
      adapters: of its blocks.
      side, prompts: side information and platform prompts, None = none.
    """

    image: ViTConfig
    adapters: Adapters = Adapters()
    side: SideInformation | None = None
    prompts: PlatformPrompts | None = None

    def setup(self):
        self.image_tower = ViT(self.image, self.adapters)
        if side := self.side:
            init, rows = nn.initializers.truncated_normal(0.02), condition_rows(side.columns, side.cameras)
            self.side_table = self.param("side_table", init, (rows, self.image.width))
        if deep := self.prompts:
            rows = condition_rows(deep.columns, deep.cameras)
            self.platform_prompts = DeepPrompts(deep.blocks, rows, deep.length, self.image.width)
            if deep.geometry:
                self.geometry_prompts = GeometryPrompts(deep.geometry, deep.blocks, deep.length, self.image.width)

    def __call__(
        self,
        batch: Batch,
        train: bool,
        *,
        plain: bool = False,
        all_tokens: bool = False,
        hooks: Hooks = Hooks(),  # noqa: B008 (immutable)
    ) -> FrameFeatures:
        """frames [B, T, H, W, 3] → features of frames.

        Args:
          plain: CLIP's tower as it was: no adapters, prompts or side information.
          all_tokens: whether all tokens are wanted; else the last block computes the class token alone.
          hooks: what a method puts into the blocks beside adapters and prompts.
        """
        clips, length = batch.frames.shape[:2]
        bias = prompts = None
        if self.side and not plain:
            row = jnp.repeat(condition(batch, self.side.columns, self.side.cameras), length)
            bias = jnp.where(row[:, None] >= 0, self.side.strength * self.side_table[row], 0.0)
        if self.prompts and not plain:
            row = jnp.repeat(condition(batch, self.prompts.columns, self.prompts.cameras), length)
            prompts = self.platform_prompts(row)
            if self.prompts.geometry:
                prompts = prompts + jnp.repeat(self.geometry_prompts(batch.geometry), length, axis=1)
        out = self.image_tower(
            batch.frames.reshape(clips * length, *batch.frames.shape[2:]),
            train=train,
            class_token_only=not all_tokens,
            taps=(-2,),
            class_bias=bias,
            hooks=hooks._replace(frame_mask=batch.frame_mask, prompts=prompts, adapt=not plain),
        )
        values = out["taps"][0].tokens[:, 0], out["class_token"], out["projected"]
        penultimate, last, projected = (x.reshape(clips, length, -1) for x in values)
        tokens = out["tokens"].reshape(clips, length, *out["tokens"].shape[1:]) if all_tokens else None
        return FrameFeatures(penultimate, last, projected, tokens)

    def project(self, tokens: Float[Array, "*rows dim"]) -> Float[Array, "*rows joint"]:
        """Tokens in the joint space."""
        return self.image_tower.project(tokens)
