"""DinoGRL's network: from frames to the parts of a clip, in a gait and an appearance stream (see
`jaxreid.methods.dinogrl`)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.backbones.mask_branch import MaskBranch, MaskBranchConfig
from jaxreid.backbones.resnet import ResNet, ResNetConfig, gem
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.data.batch import Batch
from jaxreid.layers.gait_maps import AttentionFusion, CellBranch, GaitStem
from jaxreid.layers.pbmge import Exchange
from jaxreid.layers.pyramid import PartNecks, SeparateFC, largest, pyramid_pool
from jaxreid.layers.silhouettes import cleaned, kept_maps, person, resized

STREAMS = ("appearance", "gait")
FINER = 2  # cells of the silhouette for a token, each way


@dataclasses.dataclass(frozen=True)
class DinoGRLConfig:
    """What the network is made of.

    Attributes:
      dino: the frozen tower, of the size in pixels that frames are brought to for it.
      resnet: of the appearance stream, with two stems; without them, of the gait stream.
      streams: of `STREAMS`.
      gait_input: what the gait stream sees, the two "maps", or the "silhouette" alone.
      channels: of either map.
      bins: of the pyramid; width: of a part.
      map_drop, dropout: shares of clips that lose a map, and of entries of tokens that the mask branch does not see.
      granularities: of PBMGE, () = without; enriched: the streams whose global part it enriches.
      mask_grad: whether identity losses reach the mask branch.
      fast: whether products of cells are taken of tokens.
    """

    dino: ViTConfig
    resnet: ResNetConfig
    num_classes: int
    streams: tuple[str, ...] = STREAMS
    gait_input: str = "maps"
    channels: int = 16
    bins: tuple[int, ...] = (1, 2, 4, 8, 16)
    width: int = 256
    granularities: tuple[int, ...] = (2, 4, 8, 16)
    enriched: tuple[str, ...] = STREAMS
    map_drop: float = 0.2
    dropout: float = 0.5
    mask_grad: bool = False
    fast: bool = True

    @property
    def taps(self) -> tuple[int, ...]:
        """The blocks behind each quarter of the tower."""
        return tuple(self.dino.depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.dino.grid
        return FINER * rows, FINER * columns

    @property
    def mask_branch(self) -> MaskBranchConfig:
        return MaskBranchConfig(self.dino.width, self.dropout)

    @property
    def trunk(self) -> ResNetConfig:
        """The ResNet of the gait stream."""
        return dataclasses.replace(self.resnet, stems=0)


class DinoGRLNetwork(nn.Module):
    """Both streams up to the parts of a clip, and a neck for each."""

    config: DinoGRLConfig

    def setup(self):
        c = self.config
        if "gait" in c.streams:
            dtype = c.resnet.dtype
            self.dinov2 = ViT(c.dino)
            self.mask_branch = MaskBranch(c.mask_branch)
            if c.gait_input == "maps":
                self.part_branch = CellBranch("parts", c.channels, c.dino.dtype, c.fast)
                self.texture_branch = CellBranch("texture", c.channels, c.dino.dtype, c.fast)
            self.part_stem, self.texture_stem = (GaitStem(c.resnet.width, dtype) for _ in range(2))
            self.fusion = AttentionFusion(dtype)
            self.gait_trunk = ResNet(c.trunk)
        if "appearance" in c.streams:
            self.appearance_trunk = ResNet(c.resnet)
        self.parts = {name: SeparateFC(c.width, c.resnet.dtype, name=f"{name}_parts") for name in c.streams}
        self.necks = {name: PartNecks(c.num_classes, name=f"{name}_necks") for name in c.streams}
        exchanges = c.enriched if c.granularities and len(c.streams) == 2 else ()
        self.exchanges = {name: Exchange(c.bins, c.granularities, name=f"{name}_exchange") for name in exchanges}

    # SASGL: the gait stream

    def tokens(self, frames: jax.Array, all_blocks: bool = True) -> tuple[jax.Array, jax.Array]:
        """Frames [N, H, W, 3] → on the tower's grid, the last block's tokens behind its norm [N, a, b, D], and those of
        four blocks, normed together [N, a, b, 4·D]. No gradient."""
        c = self.config
        taps = c.taps if all_blocks else c.taps[-1:]
        found = self.dinov2(resized(frames, c.dino.image_size), taps=taps)
        patches = slice(1 + c.dino.register_tokens, None)
        blocks = jnp.concatenate([tap.tokens[:, patches] for tap in found["taps"]], axis=-1).astype(jnp.float32)
        centred = blocks - blocks.mean(-1, keepdims=True)
        blocks = centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-6)
        maps = (x.astype(c.dino.dtype).reshape(-1, *c.dino.grid, x.shape[-1]) for x in (found["patch_tokens"], blocks))
        last, four = map(jax.lax.stop_gradient, maps)
        return last, four

    def shares(self, last: jax.Array, mask: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Tokens of the last block → the mask branch's shares f32[N, h, w, 2]; and its reconstruction loss and how far
        it is from smooth, for training."""
        cells = resized(jnp.where(mask[:, None, None, None], last, 0), self.config.grid)
        shares, rebuilt = self.mask_branch(cells, mask, train)
        error = jnp.mean((rebuilt - cells.astype(jnp.float32)) ** 2, axis=(1, 2, 3))
        return shares, {"mse": masked_mean(error, mask)}

    def gait_maps(
        self, four: jax.Array, shares: jax.Array, mask: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(silhouette f32[N, h, w], and the two maps f32[N, h, w, ·] inside of it)."""
        own = person(shares)
        silhouette = cleaned(jax.lax.stop_gradient(own)) * mask[:, None, None]
        active = silhouette > 0
        if self.config.gait_input == "silhouette":
            parts = texture = silhouette[..., None]
        else:
            four = jnp.where(mask[:, None, None, None], four, 0)
            parts, texture = (branch(four, active, train) for branch in (self.part_branch, self.texture_branch))
        if self.config.mask_grad:  # the same values; where a cell is active, its share has a slope
            passed = (1 + own - jax.lax.stop_gradient(own))[..., None]
            parts, texture = parts * passed, texture * passed
        return silhouette, parts, texture

    def gait(self, batch: Batch, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(map [N, h, w, C] of every frame; "mse", and what the losses of maps are made of)."""
        mask = batch.seen.reshape(-1)
        last, four = self.tokens(flat(batch.frames), self.config.gait_input == "maps")
        shares, found = self.shares(last, mask, train)
        silhouette, parts, texture = self.gait_maps(four, shares, mask, train)
        found |= {"shares": shares, "parts": parts, "silhouette": silhouette}
        maps = parts, texture
        if train and self.config.map_drop:
            kept = kept_maps(self.make_rng("maps"), batch.valid, self.config.map_drop)
            kept = jnp.repeat(kept, batch.frames.shape[1], axis=0)
            maps = (x * kept[:, i, None, None, None] for i, x in enumerate(maps))
        first, second = (
            stem(x, mask, train) for stem, x in zip((self.part_stem, self.texture_stem), maps, strict=True)
        )
        return self.gait_trunk.run_layers(self.fusion(first, second, mask, train), mask, train), found

    # Both streams

    def __call__(self, batch: Batch, train: bool) -> dict[str, Any]:
        """frames [B, T, H, W, 3] → parts of the streams f32[B, P, width] by name; "tower" f32[B, C], what a stream
        begins with; in a gait stream also what `gait` finds."""
        clips, length = batch.frames.shape[:2]
        maps, found = {}, {}
        if "gait" in self.config.streams:
            maps["gait"], found = self.gait(batch, train)
        if "appearance" in self.config.streams:
            modality = jnp.repeat(batch.modality, length)
            maps["appearance"] = self.appearance_trunk(flat(batch.frames), flat(batch.seen), modality, train)["map"]
        first = maps["appearance" if "appearance" in maps else "gait"]
        found["tower"] = masked_mean(gem(first).reshape(clips, length, -1), batch.frame_mask)
        for name, x in maps.items():  # maps are not negative, and 0 where a frame does not count
            over_time = largest(x.reshape(clips, length, *x.shape[1:]), axis=1)
            found[name] = self.parts[name](pyramid_pool(over_time, self.config.bins))
        plain = {name: found[name] for name in self.config.streams}
        for name, exchange in self.exchanges.items():
            (other,) = set(STREAMS) - {name}
            more = exchange(plain[name], plain[other], batch.valid, train)
            found[name] = jnp.concatenate([plain[name], more], axis=1)
        return found

    def train_outputs(self, batch: Batch) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """(features, cosines [B, P, classes] of each stream), in training."""
        found = self(batch, train=True)
        return found, {name: self.necks[name](found[name], batch.valid, True) for name in self.config.streams}


def flat(frames: jax.Array) -> jax.Array:
    """[B, T, …] → [B·T, …]"""
    return frames.reshape(-1, *frames.shape[2:])
