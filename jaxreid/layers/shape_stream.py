"""The shape stream: body shape from the tokens of frames, without a body model or its file.

Yang et al., "SAS-VPReID", arXiv 2601.05535, module PRSD; the network from a sequence to SMPL's numbers is VIBE's (a
recurrent encoder and HMR's iterative regressor).
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import masked_mean
from jaxreid.backbones.attention import attend
from jaxreid.backbones.torch_linear import TORCH_LINEAR
from jaxreid.backbones.transformer import Attention, LayerNorm, TransformerConfig
from jaxreid.layers.gru import GRU
from jaxreid.shapes import AnyArray, Array, Bool, Float

JOINTS, SHAPES = 24, 10  # of SMPL: joints, each with a rotation of six numbers, and numbers of its shape
# The mean shape of people (HMR's), which the prior draws to; a mean pose comes with SMPL's licensed files alone.
MEAN_SHAPE = np.array([0.2056, 0.3356, -0.3507, 0.3561, 0.4175, 0.0309, 0.3048, 0.2361, 0.2091, 0.3121], np.float32)
UPRIGHT = np.tile(np.array([1, 0, 0, 1, 0, 0], np.float32), JOINTS)  # no rotation, the first two columns row by row
CAMERA = np.array([0.9, 0, 0], np.float32)


def _constant(value: np.ndarray) -> nn.initializers.Initializer:
    return lambda rng, shape, dtype=jnp.float32: jnp.asarray(value, dtype)


class ShapeRegressor(nn.Module):
    """HMR's regressor: from the mean pose, shape and camera on, three times what a linear network of features and of
    the present values says that they lack.

    The means (`mean_pose`, `mean_shape`, `mean_camera`) are parameters that never train; without SMPL's file they are
    upright, `MEAN_SHAPE` and `CAMERA`.

    Attributes:
      hidden: width between its layers; iterations; dropout: behind each of the two layers.
    """

    hidden: int
    iterations: int = 3
    dropout: float = 0.5

    @nn.compact
    def __call__(
        self, features: Float[Array, "clips frames dim"], train: bool
    ) -> tuple[Float[Array, "clips frames shapes"], Float[Array, "clips frames hidden"]]:
        """(β of every frame, the hidden features that it was read from last)."""
        means = {"pose": UPRIGHT, "shape": MEAN_SHAPE, "camera": CAMERA}
        found = {
            name: jnp.broadcast_to(
                self.param(f"mean_{name}", _constant(value), value.shape), (*features.shape[:2], value.size)
            )
            for name, value in means.items()
        }
        first, second = (nn.Dense(self.hidden, kernel_init=TORCH_LINEAR, name=f"layer_{i}") for i in (1, 2))
        small = nn.initializers.variance_scaling(0.01**2, "fan_avg", "uniform")
        heads = {name: nn.Dense(value.size, kernel_init=small, name=name) for name, value in means.items()}
        drop = nn.Dropout(self.dropout, deterministic=not train)
        hidden = features
        for _ in range(self.iterations):
            hidden = drop(second(drop(first(jnp.concatenate([features, *found.values()], axis=-1)))))
            found = {name: value + heads[name](hidden) for name, value in found.items()}
        return found["shape"], hidden


class PostNormLayer(nn.Module):
    """x = norm_1(x + Attention(x)); x = norm_2(x + MLP(x)), with ReLU and dropout: a layer of the first transformer."""

    heads: int
    dropout: float = 0.2

    @nn.compact
    def __call__(
        self, x: Float[Array, "clips frames dim"], mask: Bool[AnyArray, "clips frames"], train: bool
    ) -> Float[Array, "clips frames dim"]:
        width = x.shape[-1]
        config = TransformerConfig(width=width, depth=1, heads=self.heads)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        keys = jnp.asarray(mask)[:, None, None, :]
        found = Attention(config, name="attention")(x, x, lambda q, k, v: attend(q, k, v, keys))[0]
        x = LayerNorm(config.eps, name="norm_1")(x + drop(found))
        dense = functools.partial(nn.Dense, kernel_init=TORCH_LINEAR)
        found = dense(width, name="down")(drop(nn.relu(dense(4 * width, name="up")(x))))
        return LayerNorm(config.eps, name="norm_2")(x + drop(found))


class ShapeAggregation(nn.Module):
    """ASA: shapes of frames over time → the shape of the clip.

    Attributes:
      hidden, depth, heads: of the transformer behind the two recurrent layers.
      released: as the released code by mistake, recurrent over the clips of a batch, for every place in time apart; of
        tests, where the clips of a batch have nothing to do with each other, as with one clip at a time.
    """

    hidden: int
    depth: int = 4
    heads: int = 8
    released: bool = False

    @nn.compact
    def __call__(
        self, features: Float[Array, "clips frames dim"], mask: Bool[AnyArray, "clips frames"], train: bool
    ) -> tuple[Float[Array, "clips shapes"], Float[Array, "clips frames shapes"]]:
        """Hidden features of frames → (shape of the clip, shapes of frames)."""
        dense = functools.partial(nn.Dense, SHAPES, kernel_init=TORCH_LINEAR)
        shapes, mask = dense(name="of_frames")(features), jnp.asarray(mask)
        recurrent = GRU(self.hidden, depth=2, name="recurrent")
        if self.released and train:
            x = recurrent(shapes.swapaxes(0, 1), mask.T).swapaxes(0, 1)
        elif self.released:
            x = recurrent(shapes.reshape(-1, 1, SHAPES), mask.reshape(-1, 1)).reshape(*mask.shape, -1)
        else:
            x = recurrent(shapes, mask)
        for layer in range(self.depth):
            x = PostNormLayer(self.heads, name=f"block_{layer:02d}")(x, mask, train)
        return dense(name="of_clip")(masked_mean(x, mask)), shapes


class ShapeStream(nn.Module):
    """PRSD: the mean token of every frame → wide features → recurrent encoder, added to them → regressor → ASA.

    The tokens are taken as constants: nothing that is learned here reaches the tower.

    Attributes:
      width: of the features that the encoder is given, 2048 in VIBE; hidden: of all behind it, 1024.
      depth, heads: of ASA's transformer.
      iterations: of the regressor.
      released: as the released code, which takes what the regressor gives as constants too, so that projection, encoder
        and regressor never learn; and with ASA's recurrence over the batch.
    """

    width: int = 2048
    hidden: int = 1024
    depth: int = 4
    heads: int = 8
    iterations: int = 3
    released: bool = False

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "clips frames tokens dim"], frame_mask: Bool[AnyArray, "clips frames"], train: bool
    ) -> dict[str, Any]:
        """ "shape" f32[B, 10] of the clip; "shapes" f32[B, T, 10] of frames; "betas" f32[B, T, 10], the regressor's."""
        mask = jnp.asarray(frame_mask)
        mean = jax.lax.stop_gradient(tokens).astype(jnp.float32).mean(axis=2)
        dense = functools.partial(nn.Dense, self.width, kernel_init=TORCH_LINEAR)
        x = dense(use_bias=False, name="project")(jnp.where(mask[..., None], mean, 0.0))
        y = nn.relu(GRU(self.hidden, depth=2, name="encoder")(x, mask))
        x = x + dense(name="encoder_out")(y)
        betas, hidden = ShapeRegressor(self.hidden, self.iterations, name="regressor")(x, train)
        if self.released:
            betas, hidden = jax.lax.stop_gradient((betas, hidden))
        aggregation = ShapeAggregation(self.hidden, self.depth, self.heads, self.released, name="aggregation")
        shape, shapes = aggregation(hidden, mask, train)
        return {"shape": shape, "shapes": shapes, "betas": betas}


class PlaceClassifiers(nn.Module):
    """A linear classifier for each place of a frame in its clip.

    Attributes:
      num_classes: C, training identities; places: T, frames of a training clip.
    """

    num_classes: int
    places: int

    @nn.compact
    def __call__(self, shapes: Float[Array, "clips frames dim"]) -> Float[Array, "clips frames classes"]:
        """Features of frames → logits, row t by the classifier of place t."""
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=0)
        kernel = self.param("kernel", init, (self.places, shapes.shape[-1], self.num_classes))
        bias = self.param("bias", nn.initializers.zeros, (self.places, self.num_classes))
        return jnp.einsum("btd,tdc->btc", shapes, kernel, precision=jax.lax.Precision.HIGHEST) + bias
