"""Batch normalization that does not see the rows that only fill a batch: of feature vectors and of feature maps; and
the neck made of it."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class MaskedBatchNorm(nn.Module):
    """Batch norm over the valid rows of [N, …, C], in fp32, with PyTorch's conventions.

    The statistics are per channel, over rows and positions: BatchNorm1d for [N, C], BatchNorm2d for [N, H, W, C].
    A batch is normalized with its biased variance; the running variance takes the unbiased one:
    running ← (1 − momentum) · running + momentum · batch. Under `jax.jit` the batch is the global one, so the
    statistics are those of all devices.

    Attributes:
      momentum: share of the batch in the running statistics (PyTorch's momentum; Flax's is 1 minus it).
      epsilon: added to the variance.
      use_scale, use_bias: whether the learnt scale and shift exist.
      scale_init, bias_init: their initializers; 1 and 0 by default.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(
        self, features: Array, mask: Array | None = None, *, use_running_average: bool, instead: Array | None = None
    ) -> Array:
        """Normalizes features; in training also updates the collection "batch_stats", which must be mutable then.

        Args:
          features: [N, …, C].
          mask: bool[N], valid rows; None = all.
          use_running_average: True in evaluation; False in training. With a single valid value per channel the
            running variance takes the biased one (0); without any the running statistics do not change.
          instead: [..., C], what is normalized in place of the features, all of it, with their statistics: what
            linear maps make the features of, say, which is less.

        Returns:
          f32[N, …, C], zero rows where not valid; or that of `instead`.
        """
        dim = features.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (dim,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (dim,), jnp.float32)
        mask = jnp.ones(features.shape[0], bool) if mask is None else mask
        valid = mask.reshape(-1, *(1,) * (features.ndim - 1))
        features = jnp.where(valid, features.astype(jnp.float32), 0.0)
        if use_running_average:
            mean, variance = running_mean.value, running_var.value
        else:
            axes = tuple(range(features.ndim - 1))
            number = mask.sum().astype(jnp.float32) * math.prod(features.shape[1:-1])
            mean = features.sum(axis=axes) / jnp.maximum(number, 1)
            square = jnp.where(valid, jnp.square(features - mean), 0.0).sum(axis=axes)
            variance = square / jnp.maximum(number, 1)
            if not self.is_initializing():
                share = jnp.where(number > 0, self.momentum, 0.0)
                unbiased = square / jnp.maximum(number - 1, 1)
                running_mean.value = (1 - share) * running_mean.value + share * mean
                running_var.value = (1 - share) * running_var.value + share * unbiased
        features = features if instead is None else instead.astype(jnp.float32)
        normalized = (features - mean) * jax.lax.rsqrt(variance + self.epsilon)
        if self.use_scale:
            normalized = normalized * self.param("scale", self.scale_init, (dim,))
        if self.use_bias:
            normalized = normalized + self.param("bias", self.bias_init, (dim,))
        return normalized if instead is not None else jnp.where(valid, normalized, 0.0)


def calibrate_norm(params: dict[str, Array], features: Array, mask: Array) -> tuple[Array, dict[str, Array]]:
    """A batch norm whose running statistics are those of all rows that are there, instead of an average over batches.

    Args:
      params: of a `MaskedBatchNorm` with the default epsilon: "scale" and "bias", where it has them.
      features: [N, C].
      mask: bool[N], valid rows; with a single one the variance is 0.

    Returns:
      (f32[N, C], the features normalized in evaluation mode, and {"mean", "var"} f32[C], the variance unbiased).
    """
    norm = MaskedBatchNorm(momentum=1.0, use_scale="scale" in params, use_bias="bias" in params)
    dim = features.shape[-1]
    start = {"mean": jnp.zeros(dim), "var": jnp.ones(dim)}
    _, changed = norm.apply(
        {"params": params, "batch_stats": start}, features, mask, use_running_average=False, mutable=["batch_stats"]
    )
    statistics: Any = changed["batch_stats"]  # pyright: ignore[reportIndexIssue]
    variables = {"params": params, "batch_stats": statistics}
    normalized: Array = norm.apply(variables, features, mask, use_running_average=True)  # pyright: ignore
    return normalized, statistics
