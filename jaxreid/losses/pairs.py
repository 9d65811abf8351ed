"""Clips of a batch that meet in pairs: who meets whom, and the loss of a score that pairs have."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.shapes import Array, Bool, Float, Int


def draw_pairs(rng: Array, label: Int[Array, " clips"], valid: Bool[Array, " clips"]) -> Int[Array, " clips"]:
    """Whom each clip meets, at random: i32[B] that is its own inverse. Half of the clips meet one of their own label
    and half one of another, as far as there are any; rows that do not count, and one that is left over, meet
    themselves.
    """
    size = len(label)
    first_key, second_key = jax.random.split(rng)
    rank = jax.random.permutation(first_key, size)
    pair = valid[:, None] & valid
    same = pair & (label[:, None] == label)
    group = jnp.where(valid, jnp.where(same, rank, size).min(axis=1), size)  # labels in random order
    order = jnp.argsort(group * size + rank)  # in it clips of one label follow each other, those that don't count last
    group, counts, place = group[order], valid[order], jnp.arange(size)

    # Neighbours 0 and 1, 2 and 3, … of a label may meet: a quarter as many pairs as clips do.
    turn = place - jnp.searchsorted(group, group)
    may = (turn % 2 == 0) & counts & (group == jnp.roll(group, -1)) & (place < size - 1)
    drawn = jnp.argsort(jnp.where(may, jax.random.uniform(second_key, (size,)), 2.0))
    chosen = may & (jnp.argsort(drawn) < counts.sum() // 4)
    taken = jnp.roll(chosen, 1)

    # The others, still label by label, meet those half of their number further on: of another label unless one label
    # has more than half of them.
    left = counts & ~chosen & ~taken
    number, half = jnp.cumsum(left) - 1, left.sum() // 2
    where = jnp.argsort(~left, stable=True)
    across = where[jnp.where(number < half, number + half, number - half) % size]
    partner = jnp.where(left & (number < 2 * half), across, place)
    partner = jnp.where(chosen, place + 1, jnp.where(taken, place - 1, partner))
    return jnp.zeros(size, jnp.int32).at[order].set(order[partner])


def pair_loss(
    cosine: Float[Array, " clips"],
    same: Bool[Array, " clips"],
    counted: Bool[Array, " clips"],
    threshold: Float[Array, ""],
    scale: float = 10.0,
) -> Float[Array, ""]:
    """Mean of softplus(−(2s − 1)·(scale · cos − b)), s: whether the two are one person; 0 where no pair counts."""
    sign = jnp.where(same, 1.0, -1.0)
    return masked_mean(jax.nn.softplus(-sign * (scale * cosine - threshold)), counted)
