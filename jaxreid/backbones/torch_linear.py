"""Linear layers that start as PyTorch's do, for networks whose papers train them so."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

TORCH_LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(±1/√inputs), of kernels


def torch_dense(inputs: int, outputs: int, name: str | None = None, dtype: Any = jnp.float32) -> nn.Dense:
    """A linear layer whose weights and biases start from U(−1/√inputs, 1/√inputs)."""

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(inputs**-0.5), inputs**-0.5)

    return nn.Dense(outputs, dtype=dtype, kernel_init=init, bias_init=init, name=name)
