"""From the features of a clip's frames to one feature."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean, unit_rows
from jaxreid.backbones.torch_linear import TORCH_LINEAR
from jaxreid.errors import UserError
from jaxreid.shapes import AnyArray, Array, Bool, Float


class TemporalAggregation(nn.Module):
    """Temporal attention pooling that starts as the mean of the frames (docs/hitpro.md, section 3.2).

        h_t = f_t + depthwise convolution of f over time (kernel 3, zero padding, bias; starts at zero)
        e_t = u · tanh(W LayerNorm(h_t) + b)             (u starts at zero)
        v   = Σ_t softmax(e)_t h_t                       over valid frames

    Prototypes of the first epoch are made before any training, so the layer must not disturb the frame features
    when it is new. The batch norm that follows is not part of it.

    Attributes:
      reduction: W maps D to D / reduction.
    """

    reduction: int = 8

    @nn.compact
    def __call__(
        self, features: Float[Array, "clips frames dim"], mask: Bool[AnyArray, "clips frames"]
    ) -> Float[Array, "clips dim"]:
        """Features of frames → of clips; masked frames have no influence, 0 without a valid one."""
        dim = features.shape[-1]
        if dim % self.reduction:
            raise UserError(f"TemporalAggregation: width {dim} is not a multiple of reduction {self.reduction}")
        features = jnp.where(mask[..., None], features.astype(jnp.float32), 0.0)
        kernel = self.param("conv_kernel", nn.initializers.zeros, (3, dim))
        bias = self.param("conv_bias", nn.initializers.zeros, (dim,))
        padded = jnp.pad(features, ((0, 0), (1, 1), (0, 0)))
        length = features.shape[1]
        convolved = sum(kernel[k] * padded[:, k : k + length] for k in range(3)) + bias
        hidden = features + convolved

        hidden_norm = nn.LayerNorm(epsilon=1e-5, name="norm")(hidden)
        energy = jnp.tanh(nn.Dense(dim // self.reduction, name="reduce")(hidden_norm))
        energy = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.zeros, name="score")(energy)[..., 0]
        attention = jax.nn.softmax(jnp.where(mask, energy, -1e9), axis=-1)
        attention = jnp.where(mask, attention, 0.0)
        return jnp.einsum("bt,btd->bd", attention, hidden, precision=jax.lax.Precision.HIGHEST)


class MeanPooling(nn.Module):
    """The mean of the frames that count."""

    @nn.compact
    def __call__(
        self, features: Float[Array, "clips frames dim"], mask: Bool[AnyArray, "clips frames"]
    ) -> Float[Array, "clips dim"]:
        """Features of frames → of clips, 0 without a valid one."""
        return masked_mean(features, jnp.asarray(mask))


class AttentionPooling(nn.Module):
    """Σ_t softmax_t(v·x_t / temperature)·x_t over the frames that count; with `unit`, v·x_t / |x_t|.

    v starts at 0, so that a new one is the mean; without `zero_init`, as PyTorch's linear layers do.
    """

    temperature: float = 1.0
    unit: bool = False
    zero_init: bool = True

    def setup(self):
        self.score = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.zeros if self.zero_init else TORCH_LINEAR)

    def weights(
        self, features: Float[Array, "clips frames dim"], mask: Bool[AnyArray, "clips frames"]
    ) -> Float[Array, "clips frames"]:
        """How much each frame counts: 1 in all, 0 for what the mask leaves out."""
        x = features.astype(jnp.float32)
        score = self.score(unit_rows(x) if self.unit else x)[..., 0] / self.temperature
        return jnp.where(mask, jax.nn.softmax(jnp.where(mask, score, -1e9), axis=-1), 0.0)

    def __call__(
        self, features: Float[Array, "clips frames dim"], mask: Bool[AnyArray, "clips frames"]
    ) -> Float[Array, "clips dim"]:
        """Features of frames → of clips, 0 without a valid one."""
        x = features.astype(jnp.float32)
        return jnp.einsum("bt,btd->bd", self.weights(x, mask), x, precision=jax.lax.Precision.HIGHEST)


POOLINGS = {"mean": MeanPooling, "attention": AttentionPooling}
