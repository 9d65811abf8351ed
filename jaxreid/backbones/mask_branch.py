"""The mask branch of BigGait (Ye et al., CVPR 2024): which of two kinds of cells each one is, learned without a label.

An auto-encoder whose bottleneck are two shares: tokens of a frozen DINOv2 are rebuilt from them, and what that finds is
the person against what is behind. Which of the two is the person, nothing here decides (`jaxreid.layers.silhouettes`).

Parameters: down/{kernel [D, 2], bias}, up/{kernel [2, D], bias}; `batch_stats` has norm/{mean, var}.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.backbones.torch_linear import TORCH_LINEAR


@dataclasses.dataclass(frozen=True)
class MaskBranchConfig:
    """`width`: of the tokens; `dropout`: of their entries, in training."""

    width: int
    dropout: float = 0.5


class MaskBranch(nn.Module):
    """d = softmax(W BN(dropout(x)) + b), and x̂ of d."""

    config: MaskBranchConfig

    @nn.compact
    def __call__(
        self, cells: jax.Array, mask: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens [N, h, w, D], and which rows count bool[N] → shares f32[N, h, w, 2], rebuilt tokens f32[N, h, w, D].

        Training needs the random key "dropout", and changes the collection "batch_stats".
        """
        u = nn.Dropout(self.config.dropout, deterministic=not train)(cells.astype(jnp.float32))
        norm = MaskedBatchNorm(use_scale=False, use_bias=False, name="norm")
        u = norm(u, mask, use_running_average=not train)
        shares = jax.nn.softmax(nn.Dense(2, kernel_init=TORCH_LINEAR, name="down")(u))
        return shares, nn.Dense(self.config.width, kernel_init=TORCH_LINEAR, name="up")(shares)
