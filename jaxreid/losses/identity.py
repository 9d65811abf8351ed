"""Identity classification loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.shapes import Array, Bool, Float, Int


def cross_entropy(
    logits: Float[Array, "clips classes"],
    label: Int[Array, " clips"],
    valid: Bool[Array, " clips"],
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Softmax cross entropy with label smoothing, the mean over valid rows.

    The target is 1 − ε on the label plus ε/C on every class (Szegedy et al. 2016, section 7), as in
    `torch.nn.CrossEntropyLoss(label_smoothing=ε)`.

    Args:
      label: i32[B], 0…C−1. A valid row with a label outside this range makes the loss NaN rather than wrong.
      valid: bool[B], rows that count.
      smoothing: ε in [0, 1].

    Returns:
      f32[], 0 when no row is valid.
    """
    classes = logits.shape[-1]
    # Rows that only fill the batch may hold anything.
    log_probability = jax.nn.log_softmax(jnp.where(valid[:, None], logits.astype(jnp.float32), 0.0))
    known = (label >= 0) & (label < classes)
    of_label = jnp.take_along_axis(log_probability, jnp.clip(label, 0, classes - 1)[:, None], axis=-1)[:, 0]
    loss = -(1.0 - smoothing) * of_label - smoothing * log_probability.mean(axis=-1)
    loss = jnp.where(known, loss, jnp.nan)
    return masked_mean(loss, valid)
