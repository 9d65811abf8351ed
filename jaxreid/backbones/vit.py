"""One flag-driven vision transformer: CLIP's image tower, DINOv2, the ImageNet ViT, small towers of that form.

Parameter tree (unstacked; `D` width, `E` joint dimension, `R` registers, `h·w` the patch grid):

    patch_embedding/{kernel [p, p, 3, D], bias [D]}      class_token [D]      register_tokens [R, D]
    position_embedding [1 + h·w, D], row 0 for the class token, the patches row-major
    norm_pre/{scale, bias}     block_00, block_01, …     norm_post/{scale, bias}     projection/kernel [D, E]
    block_XX/{norm_1, attention/{query, key, value, out}, norm_2, mlp/{up, down}, layer_scale_1, layer_scale_2}

Every linear kernel is a matrix [inputs, outputs]; heads are consecutive columns of query, key and value.
Sources: openai/CLIP and facebookresearch/dinov2 (order of operations), CLIP-ReID (rectangular inputs and strides).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def quick_gelu(x: Array) -> Array:
    """x·σ(1.702 x), the activation of OpenAI's CLIP; differs from the exact GELU by up to 0.02."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Array) -> Array:
    """x·Φ(x) with the error function; the tanh form, JAX's default, is another function (up to 4.7e-4 off)."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """What a tower is made of. The defaults are CLIP's; `jaxreid.backbones.clip` names the published sizes.

    `image_size` is (height, width) in pixels; `stride` None means the patch size (no overlap). Rows and columns
    of pixels that fill no whole patch are not seen. `dtype` is the type of the matrix products and of the
    residual stream: parameters, position table, class token, norms and softmax are float32 whatever it is.
    """

    width: int
    depth: int
    heads: int
    patch: int
    image_size: tuple[int, int]
    stride: int | None = None
    mlp_ratio: float = 4.0
    activation: str = "quick_gelu"  # a key of ACTIVATIONS
    eps: float = 1e-5  # of every LayerNorm: 1e-5 in CLIP, 1e-6 in DINOv2 and timm
    conv_bias: bool = False
    pre_norm_embeddings: bool = True  # CLIP's ln_pre
    layer_scale: float | None = None  # starting value γ, None for no LayerScale
    register_tokens: int = 0
    projection: int | None = None  # joint dimension
    drop_path: float = 0.0  # stochastic depth of the last block; grows linearly from 0 at the first
    position_init: str = "sincos"  # or "normal"
    position_std: float = 0.5  # smaller tables keep a tower that starts from nothing on its first plateau
    dtype: Any = jnp.float32
    remat: bool = False  # recompute each block in the backward pass instead of keeping its activations

    def __post_init__(self):
        object.__setattr__(self, "image_size", tuple(self.image_size))
        if self.width % self.heads:
            raise ValueError(f"ViTConfig: width {self.width} is not a multiple of heads {self.heads}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"ViTConfig: activation {self.activation!r}; one of {sorted(ACTIVATIONS)}")
        if self.position_init not in ("sincos", "normal"):
            raise ValueError(f"ViTConfig: position_init {self.position_init!r}; 'sincos' or 'normal'")
        if self.position_init == "sincos" and self.width % 4:
            raise ValueError(f"ViTConfig: width {self.width} must be a multiple of 4 for sin-cos positions")
        if min(self.image_size) < self.patch:
            raise ValueError(f"ViTConfig: image_size {self.image_size} is smaller than one patch ({self.patch})")

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


_fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def _residual_init(config: ViTConfig) -> Callable[..., Array]:
    """Layers that write to the residual stream start smaller by sqrt(2·depth): its variance stays O(1)."""
    return nn.initializers.variance_scaling(1.0 / (2 * config.depth), "fan_in", "normal")


class LayerNorm(nn.Module):
    """Norm over the last axis, [..., D] → float32 [..., D], whatever the type of x."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        # Two passes: E[x²] − E[x]² loses digits on the large activations of pretrained towers. Written out, the
        # backward pass is a fifth faster on CPU than that of flax's two-pass form.
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps) * scale + bias


class PatchEmbedding(nn.Module):
    """Frames [N, H, W, 3] → patch embeddings [N, h, w, D] in the compute type: a convolution without padding."""

    config: ViTConfig

    @nn.compact
    def __call__(self, frames: Array) -> Array:
        c = self.config
        kernel = self.param("kernel", _fan_in, (c.patch, c.patch, 3, c.width)).astype(c.dtype)
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


class Attention(nn.Module):
    """Multi-head self-attention, x [N, L, D] → the first Q tokens' outputs [N, Q, D]; softmax in float32."""

    config: ViTConfig

    def setup(self):
        c = self.config
        for name in ("query", "key", "value"):
            setattr(self, name, nn.Dense(c.width, dtype=c.dtype, kernel_init=_fan_in))
        self.out = nn.Dense(c.width, dtype=c.dtype, kernel_init=_residual_init(c))

    def __call__(self, x: Array, queries: int) -> Array:
        n, _, width = x.shape
        heads = self.config.heads

        def split_heads(x: Array) -> Array:
            return x.reshape(n, -1, heads, width // heads).transpose(0, 2, 1, 3)

        q, k, v = (split_heads(y) for y in (self.query(x[:, :queries]), self.key(x), self.value(x)))
        q = q * (width // heads) ** -0.5
        scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
        mixed = jax.nn.softmax(scores, axis=-1).astype(v.dtype) @ v
        return self.out(mixed.transpose(0, 2, 1, 3).reshape(n, queries, width))


class Mlp(nn.Module):
    """Two linear layers with the configured activation between, [..., D] → [..., D]."""

    config: ViTConfig

    def setup(self):
        c = self.config
        self.up = nn.Dense(int(c.mlp_ratio * c.width), dtype=c.dtype, kernel_init=_fan_in)
        self.down = nn.Dense(c.width, dtype=c.dtype, kernel_init=_residual_init(c))

    def __call__(self, x: Array) -> Array:
        return self.down(ACTIVATIONS[self.config.activation](self.up(x)))


class Block(nn.Module):
    """Pre-norm transformer block: x += γ₁·Attention(norm_1(x)); x += γ₂·MLP(norm_2(x)).

    With `outputs`, only the first so many tokens are computed; all of them are attended to.
    """

    config: ViTConfig
    drop_rate: float = 0.0

    def setup(self):
        c = self.config
        self.norm_1, self.norm_2 = LayerNorm(c.eps), LayerNorm(c.eps)
        self.attention, self.mlp = Attention(c), Mlp(c)
        if c.layer_scale is not None:
            gamma = nn.initializers.constant(c.layer_scale)
            self.layer_scale_1 = self.param("layer_scale_1", gamma, (c.width,))
            self.layer_scale_2 = self.param("layer_scale_2", gamma, (c.width,))

    def __call__(self, x: Array, train: bool = False, outputs: int | None = None) -> Array:
        scaled = self.config.layer_scale is not None
        outputs = outputs or x.shape[1]
        change = self.attention(self.norm_1(x), outputs)
        x = x[:, :outputs] + self._drop(change * self.layer_scale_1.astype(x.dtype) if scaled else change, train)
        change = self.mlp(self.norm_2(x))
        return x + self._drop(change * self.layer_scale_2.astype(x.dtype) if scaled else change, train)

    def _drop(self, change: Array, train: bool) -> Array:
        if not train or self.drop_rate == 0.0:
            return change
        keep = jax.random.bernoulli(self.make_rng("drop_path"), 1.0 - self.drop_rate, (change.shape[0], 1, 1))
        return jnp.where(keep, change / (1.0 - self.drop_rate), 0).astype(change.dtype)


class ViT(nn.Module):
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
        block = nn.remat(Block, static_argnums=(2, 3)) if c.remat else Block
        rates = np.linspace(0.0, c.drop_path, c.depth)
        self.blocks = [block(c, float(rate), name=f"block_{i:02d}") for i, rate in enumerate(rates)]
        self.norm_post = LayerNorm(c.eps)
        if c.projection is not None:
            self.projection = nn.Dense(
                c.projection,
                use_bias=False,
                dtype=jnp.float32,
                kernel_init=nn.initializers.normal(c.width**-0.5),
            )

    def __call__(self, frames: Array, train: bool = False, class_token_only: bool = False) -> dict[str, Array]:
        """Normalised frames [N, H, W, 3] → the arrays of `finish`.

        With `class_token_only` those of them that need the class token alone: the last block then computes no other
        token (a twelfth less work in ViT-B/16, the same numbers). `train` switches stochastic depth on where the
        tower has it; it then needs the random key "drop_path".
        """
        outputs = 1 if class_token_only else None
        found = self.finish(self.run_blocks(self.embed(frames), 0, self.config.depth, train, outputs))
        return {name: x for name, x in found.items() if not class_token_only or name in ("class_token", "projected")}

    def embed(self, frames: Array, class_bias: Array | None = None, token_bias: Array | None = None) -> Array:
        """Frames [N, H, W, 3] → residual stream before the first block, [N, 1 + R + P, D] in the compute type.

        `class_bias` [N, D] is added to the class token before positions (camera embedding of the CLIP family),
        `token_bias` [N, D] to class token and patches after positions (that of TransReID); §4.
        """
        c = self.config
        if frames.ndim != 4 or frames.shape[1:] != (*c.image_size, 3):
            height, width = c.image_size
            raise ValueError(
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

    def run_blocks(self, x: Array, start: int, stop: int, train: bool = False, outputs: int | None = None) -> Array:
        """Blocks start … stop − 1 on the residual stream x [N, L, D] (any L: prompts may be appended); with
        `outputs`, only the first so many tokens come out of the last of them, [N, outputs, D]."""
        if not 0 <= start <= stop <= self.config.depth:
            raise ValueError(f"ViT.run_blocks: blocks {start}:{stop} of a tower of {self.config.depth}")
        for number in range(start, stop):
            x = self.blocks[number](x, train, outputs if number == stop - 1 else None)
        return x

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
            raise ValueError("ViT.project: this tower has no projection (ViTConfig.projection is None)")
        return self.projection(tokens)
