"""One flag-driven vision transformer: CLIP's image tower, DINOv2, the ImageNet ViT, small towers of that form.

Parameter tree (unstacked; `D` width, `E` joint dimension, `R` registers, `h·w` the patch grid):

    patch_embedding/{kernel [p, p, 3, D], bias [D]}      class_token [D]      register_tokens [R, D]
    position_embedding [1 + h·w, D], row 0 for the class token, the patches row-major
    norm_pre/{scale, bias}     block_00, block_01, …     norm_post/{scale, bias}     projection/kernel [D, E]
    block_XX as `jaxreid.backbones.transformer` says

Sources: openai/CLIP and facebookresearch/dinov2 (order of operations), CLIP-ReID (rectangular inputs and strides).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.backbones.transformer import Hooks, LayerNorm, Tower, TransformerConfig, fan_in
from jaxreid.errors import UserError

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(TransformerConfig):
    """What a tower is made of. The defaults are CLIP's; `clip`, `dinov2` and `imagenet` name the published sizes.

    `image_size` is (height, width) in pixels; `stride` None means the patch size (no overlap). Rows and columns
    of pixels that fill no whole patch are not seen. Position table and class token are float32 whatever `dtype` is.
    """

    patch: int
    image_size: tuple[int, int]
    stride: int | None = None
    conv_bias: bool = False
    pre_norm_embeddings: bool = True  # CLIP's ln_pre
    register_tokens: int = 0
    position_init: str = "sincos"  # or "normal"
    position_std: float = 0.5  # smaller tables keep a tower that starts from nothing on its first plateau

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "image_size", tuple(self.image_size))
        if self.position_init not in ("sincos", "normal"):
            raise UserError(f"ViTConfig: position_init {self.position_init!r}; 'sincos' or 'normal'")
        if self.position_init == "sincos" and self.width % 4:
            raise UserError(f"ViTConfig: width {self.width} must be a multiple of 4 for sin-cos positions")
        if min(self.image_size) < self.patch:
            raise UserError(f"ViTConfig: image_size {self.image_size} is smaller than one patch ({self.patch})")

    @property
    def patch_stride(self) -> int:
        """Pixels from one patch to the next."""
        return self.stride or self.patch

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across)."""
        height, width = self.image_size
        return (height - self.patch) // self.patch_stride + 1, (width - self.patch) // self.patch_stride + 1

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Length of the sequence: class token, registers, patches."""
        return 1 + self.register_tokens + self.patches


def sincos_positions(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed 2-D sine-cosine table, float32 [h·w, width], unit mean square.

    A quarter of the columns each for sine and cosine of the row and of the column, at wavelengths from 2π to
    2π·10⁴ patches (the form of ViT-MAE).
    """
    frequency = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (rows, columns)]
    table = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
    return (np.sqrt(2.0) * table).astype(np.float32)


def _position_init(config: ViTConfig) -> Callable[..., Array]:
    def init(key: Array, shape: tuple[int, int]) -> Array:
        if config.position_init == "normal":
            return config.position_std * jax.random.normal(key, shape)
        table = sincos_positions(config.grid, config.width)
        return config.position_std * jnp.concatenate([jnp.zeros((1, config.width)), table])

    return init


def named_config(
    towers: Mapping[str, ViTConfig],
    kind: str,
    name: str,
    image_size: tuple[int, int] | None = None,
    stride: int | None = None,
    **changes: Any,
) -> ViTConfig:
    """The tower of that name, with another input size, stride (pixels; None: the patch size) or other fields.

    Raises UserError on an unknown name; `kind` says in it what is named, "CLIP image tower".
    """
    if name not in towers:
        raise UserError(f"no {kind} is called {name!r}; known: {', '.join(towers)}")
    native = towers[name]
    return dataclasses.replace(native, image_size=image_size or native.image_size, stride=stride, **changes)


class PatchEmbedding(nn.Module):
    """Frames [N, H, W, 3] → patch embeddings [N, h, w, D] in the compute type: a convolution without padding."""

    config: ViTConfig

    @nn.compact
    def __call__(self, frames: Array) -> Array:
        c = self.config
        kernel = self.param("kernel", fan_in, (c.patch, c.patch, 3, c.width)).astype(c.dtype)
        frames = frames.astype(c.dtype)
        if c.patch_stride == c.patch:
            # Patches that do not overlap are the rows of one matrix product.
            (h, w), p = c.grid, c.patch
            x = frames[:, : h * p, : w * p].reshape(-1, h, p, w, p, 3).transpose(0, 1, 3, 2, 4, 5)
            x = x.reshape(-1, h, w, p * p * 3) @ kernel.reshape(-1, c.width)
        else:
            x = jax.lax.conv_general_dilated(
                frames, kernel, (c.patch_stride, c.patch_stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        if c.conv_bias:
            x = x + self.param("bias", nn.initializers.zeros, (c.width,)).astype(c.dtype)
        return x


class ViT(Tower):
    """The tower: `__call__` is `embed`, then `run_blocks` over all blocks, then `finish`.

    Methods that put something between blocks, or stop early, call these parts themselves, for example
    `model.apply(variables, x, 0, 3, method="run_blocks")`.
    """

    config: ViTConfig

    def setup(self):
        c = self.config
        self.patch_embedding = PatchEmbedding(c)
        self.class_token = self.param("class_token", nn.initializers.normal(c.width**-0.5), (c.width,))
        self.position_embedding = self.param("position_embedding", _position_init(c), (1 + c.patches, c.width))
        if c.register_tokens:
            self.register_tokens = self.param(
                "register_tokens", nn.initializers.normal(0.02), (c.register_tokens, c.width)
            )
        if c.pre_norm_embeddings:
            self.norm_pre = LayerNorm(c.eps)
        self.blocks = self.make_blocks()
        self.norm_post = LayerNorm(c.eps)
        if c.projection is not None:
            self.projection = nn.Dense(
                c.projection,
                use_bias=False,
                dtype=jnp.float32,
                kernel_init=nn.initializers.normal(c.width**-0.5),
            )

    def __call__(
        self,
        frames: Array,
        train: bool = False,
        class_token_only: bool = False,
        *,
        taps: Sequence[int] = (),
        class_bias: Array | None = None,
        token_bias: Array | None = None,
        hooks: Hooks = Hooks(),  # noqa: B008 (immutable)
    ) -> dict[str, Any]:
        """Normalized frames [N, H, W, 3] → the arrays of `finish`; and "taps", a `Tap` for each block of `taps`.

        With `class_token_only` those of them that need the class token alone: the last block then computes no other
        token (a twelfth less work in ViT-B/16, the same numbers). `train` switches stochastic depth on where the
        tower has it; it then needs the random key "drop_path". The biases are those of `embed`.
        """
        x = self.embed(frames, class_bias, token_bias)
        outputs = 1 if class_token_only else None
        x, tapped = self.tap_blocks(x, 0, self.config.depth, taps, train, outputs, hooks)
        found: dict[str, Any] = self.finish(x)
        if class_token_only:
            found = {name: x for name, x in found.items() if name in ("class_token", "projected")}
        return found | {"taps": tapped} if taps else found

    def embed(self, frames: Array, class_bias: Array | None = None, token_bias: Array | None = None) -> Array:
        """Frames [N, H, W, 3] → residual stream before the first block, [N, 1 + R + P, D] in the compute type.

        `class_bias` [N, D] is added to the class token before positions (camera embedding of the CLIP family),
        `token_bias` [N, D] to class token and patches after positions (that of TransReID).
        """
        c = self.config
        if frames.ndim != 4 or frames.shape[1:] != (*c.image_size, 3):
            height, width = c.image_size
            raise UserError(
                f"ViT: frames of shape {frames.shape}, but this tower takes [N, {height}, {width}, 3]; "
                "resize the frames, or build the tower (and load its weights) with their image_size"
            )
        n = frames.shape[0]
        patches = self.patch_embedding(frames).reshape(n, c.patches, c.width).astype(jnp.float32)
        first = jnp.broadcast_to(self.class_token, (n, c.width))
        if class_bias is not None:
            first = first + class_bias
        x = jnp.concatenate([first[:, None], patches], axis=1) + self.position_embedding
        if token_bias is not None:
            x = x + token_bias[:, None]
        if c.register_tokens:  # they have no position
            registers = jnp.broadcast_to(self.register_tokens, (n, c.register_tokens, c.width))
            x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
        if c.pre_norm_embeddings:
            x = self.norm_pre(x)
        return x.astype(c.dtype)

    def finish(self, x: Array) -> dict[str, Array]:
        """Residual stream [N, 1 + R + P, D] → named float32 arrays.

        `tokens` [N, 1 + R + P, D] after the final norm, on all tokens as the ReID forks of CLIP do; of these
        `class_token` [N, D] and `patch_tokens` [N, P, D] (no registers); and, where the tower has a projection,
        `projected` [N, E], the class token in the joint space.
        """
        tokens = self.norm_post(x)
        outputs = {
            "tokens": tokens,
            "class_token": tokens[:, 0],
            "patch_tokens": tokens[:, 1 + self.config.register_tokens :],
        }
        if self.config.projection is not None:
            outputs["projected"] = self.projection(tokens[:, 0])
        return outputs

    def project(self, tokens: Array) -> Array:
        """Normed tokens [..., D] → joint space [..., E], float32 (the ReID forks project all tokens)."""
        if self.config.projection is None:
            raise UserError("ViT.project: this tower has no projection (ViTConfig.projection is None)")
        return self.projection(tokens)
