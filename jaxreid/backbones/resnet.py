"""ResNet-50 for frames of two modalities: a stem for each, shared bottlenecks, generalised-mean pooling.

Parameter tree (`batch_stats` holds {mean, var} at the place of every norm's {scale, bias}):

    stem/{conv/kernel [7, 7, 3, 64], norm/{scale, bias}}          stem_infrared, the same for the second modality
    layer1_0, layer1_1, …, layer4_2/{conv1, norm1, conv2, norm2, conv3, norm3}
    layerX_0/{downsample_conv, downsample_norm}, the projection of the shortcut

Kernels are [height, width, inputs, outputs] without biases; maps are [N, H, W, C].
Sources: torchvision's ResNet v1.5 (the stride of a bottleneck on its 3×3 convolution), the two-stem ResNet-50 of
ADCA, PGM and DinoGRL.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.errors import UserError

Array = jax.Array

STEMS = ("stem", "stem_infrared")
EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """What a trunk is made of; the defaults are ResNet-50 as the re-identification methods use it.

    `stems` 2 gives every modality its own, 0 leaves a trunk of bottlenecks that is fed with maps. `dtype` is the
    type of the convolutions and of the maps: parameters and batch norms are float32 whatever it is.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)  # bottlenecks per layer
    width: int = 64  # channels of the stem; layer i has 4·width·2^i
    last_stride: int = 1  # of the last layer; ImageNet classifiers have 2
    stems: int = 1
    stem_relu: bool = True  # DinoGRL's release has no ReLU between norm and pooling
    dtype: Any = jnp.float32
    remat: bool = False  # recompute each bottleneck in the backward pass instead of keeping its activations

    def __post_init__(self):
        object.__setattr__(self, "depths", tuple(self.depths))
        if self.last_stride not in (1, 2):
            raise UserError(f"ResNetConfig: last_stride {self.last_stride}; 1 or 2")
        if not 0 <= self.stems <= len(STEMS):
            raise UserError(f"ResNetConfig: {self.stems} stems; 0, 1 or {len(STEMS)}")

    @property
    def channels(self) -> int:
        """Channels of the last map, and length of the pooled feature."""
        return EXPANSION * self.width * 2 ** (len(self.depths) - 1)


class Convolution(nn.Module):
    """[N, H, W, I] → [N, ⌈H/s⌉, ⌈W/s⌉, O], padded by half the kernel on every side as PyTorch does, without bias."""

    outputs: int
    size: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # Fan-out scaling keeps the variance of gradients, not of maps: what the ImageNet weights started from.
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.outputs))
        padding = [(self.size // 2, self.size // 2)] * 2
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Stem(nn.Module):
    """Frames [N, H, W, 3] → [N, H/4, W/4, width]."""

    config: ResNetConfig

    @nn.compact
    def __call__(self, frames: Array, mask: Array | None, train: bool) -> Array:
        c = self.config
        x = Convolution(c.width, 7, 2, c.dtype, name="conv")(frames)
        x = MaskedBatchNorm(name="norm")(x, mask, use_running_average=not train).astype(c.dtype)
        x = nn.relu(x) if c.stem_relu else x
        return nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])  # pyright: ignore[reportArgumentType]


class Bottleneck(nn.Module):
    """1×1 to `width`, 3×3 with the stride, 1×1 to 4·width; plus the input, projected where the shape changes."""

    width: int
    stride: int
    project: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, mask: Array | None, train: bool) -> Array:
        def convolve(x: Array, outputs: int, size: int, stride: int, conv: str, norm: str) -> Array:
            x = Convolution(outputs, size, stride, self.dtype, name=conv)(x)
            return MaskedBatchNorm(name=norm)(x, mask, use_running_average=not train).astype(self.dtype)

        outputs = EXPANSION * self.width
        y = nn.relu(convolve(x, self.width, 1, 1, "conv1", "norm1"))
        y = nn.relu(convolve(y, self.width, 3, self.stride, "conv2", "norm2"))
        y = convolve(y, outputs, 1, 1, "conv3", "norm3")
        if self.project:
            x = convolve(x, outputs, 1, self.stride, "downsample_conv", "downsample_norm")
        return nn.relu(x + y)


def gem(maps: Array, p: int = 3, epsilon: float = 1e-12) -> Array:
    """Generalised-mean pooling with a fixed exponent: maps [N, H, W, C], not negative → f32[N, C],
    (mean xᵖ + ε)^(1/p) over positions (hitpro.md 3.1)."""
    return (jnp.mean(maps.astype(jnp.float32) ** p, axis=(1, 2)) + epsilon) ** (1 / p)


class ResNet(nn.Module):
    """The network: `__call__` is `run_stems`, then `run_layers`, then `gem`."""

    config: ResNetConfig

    def setup(self):
        c = self.config
        self.stems = [Stem(c, name=name) for name in STEMS[: c.stems]]
        bottleneck = nn.remat(Bottleneck, static_argnums=(3,)) if c.remat else Bottleneck
        self.layers = [
            bottleneck(c.width * 2**i, self._stride(i) if j == 0 else 1, j == 0, c.dtype, name=f"layer{i + 1}_{j}")
            for i, depth in enumerate(c.depths)
            for j in range(depth)
        ]

    def _stride(self, layer: int) -> int:
        if layer == len(self.config.depths) - 1:
            return self.config.last_stride
        return 1 if layer == 0 else 2

    def __call__(
        self, frames: Array, mask: Array | None = None, modality: Array | None = None, train: bool = False
    ) -> dict[str, Array]:
        """Normalized frames [N, H, W, 3] → "map" [N, h, w, C] of the last layer and "pooled" f32[N, C].

        Frames where `mask` bool[N] is False influence nothing, and their maps are 0. `modality` i32[N] chooses the
        stem where there are two: 0 (visible) the first, anything else the second. With `train` the batch norms take
        the statistics of the batch and the collection "batch_stats" must be mutable.
        """
        maps = self.run_layers(self.run_stems(frames, mask, modality, train), mask, train)
        return {"map": maps, "pooled": gem(maps)}

    def run_stems(
        self, frames: Array, mask: Array | None = None, modality: Array | None = None, train: bool = False
    ) -> Array:
        """Frames [N, H, W, 3] → maps [N, H/4, W/4, width], each by its modality's stem."""
        if not self.stems:
            raise UserError("ResNet: this trunk has no stem (ResNetConfig.stems is 0); call run_layers on maps")
        if len(self.stems) == 1:
            return self.stems[0](frames, mask, train)
        if modality is None:
            raise UserError("ResNet: two stems, but no modality [N] that says which frame goes through which")
        # Both see all frames, so that shapes never change (2 % of the work); each takes its statistics from its own.
        mask = jnp.ones(frames.shape[0], bool) if mask is None else mask
        first = modality == 0
        maps = [stem(frames, mask & own, train) for stem, own in zip(self.stems, (first, ~first), strict=True)]
        return jnp.where(first[:, None, None, None], *maps)

    def run_layers(self, maps: Array, mask: Array | None = None, train: bool = False) -> Array:
        """Maps [N, h, w, width] → [N, h', w', C] through all bottlenecks."""
        for layer in self.layers:
            maps = layer(maps, mask, train)
        return maps
