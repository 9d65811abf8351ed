"""HAMoBE's consistency losses: squared distances of features as they are, inside of clips and between clips of a label.

Su et al. (2025), arXiv 2508.05038, as released.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.shapes import Array, Bool, Float, Int


def within_clips(features: Float[Array, "clips frames dim"], valid: Bool[Array, " clips"]) -> Float[Array, ""]:
    """L_intra: mean of ‖u_t − u_t'‖² over clips and pairs of different frames; 0 for clips of one.

    Twice the variance over frames, divided by T − 1: all pairs without making any.
    """
    u = jnp.where(valid[:, None, None], features.astype(jnp.float32), 0.0)
    apart = jnp.square(u - u.mean(axis=1, keepdims=True)).sum(axis=(1, 2))
    return masked_mean(2 * apart / max(u.shape[1] - 1, 1), valid)


def between_clips(
    features: Float[Array, "clips dim"], label: Int[Array, " clips"], valid: Bool[Array, " clips"]
) -> Float[Array, ""]:
    """L_inter: mean of ‖u_n − u_m‖² over the pairs (n, m) of equal label, a clip with itself among them."""
    apart, count = _from_own_mean(features, label, valid)
    return jnp.sum(2 * count * apart) / jnp.maximum(count.sum(), 1)


def from_mean(
    features: Float[Array, "clips dim"], label: Int[Array, " clips"], valid: Bool[Array, " clips"]
) -> Float[Array, ""]:
    """L_gait: mean over clips of ‖G_n − mean of its label's clips‖²."""
    apart, _ = _from_own_mean(features, label, valid)
    return masked_mean(apart, valid)


def _from_own_mean(
    features: Float[Array, "clips dim"], label: Int[Array, " clips"], valid: Bool[Array, " clips"]
) -> tuple[Float[Array, " clips"], Float[Array, " clips"]]:
    """(squared distance to the mean of the clips of one's label, how many these are); 0 where a clip does not count."""
    u = jnp.where(valid[:, None], features.astype(jnp.float32), 0.0)
    same = ((label[:, None] == label) & valid & valid[:, None]).astype(jnp.float32)
    count = same.sum(axis=1)
    mean = jnp.matmul(same, u, precision=jax.lax.Precision.HIGHEST) / jnp.maximum(count, 1)[:, None]
    return jnp.square(u - mean).sum(axis=1), count
