"""Gated recurrent units over time, with PyTorch's gates (its reset gate acts behind the matrix of the state)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.shapes import AnyArray, Array, Bool, Float


class GRU(nn.Module):
    """One or more layers, from a state of 0, in float32:

        r, z = σ(W_r x + U_r h), σ(W_z x + U_z h)      all with biases
        n    = tanh(W_n x + r ⊙ (U_n h))
        h    = (1 − z) ⊙ n + z ⊙ h

    Parameters of a layer: input_kernel [D, 3H], state_kernel [H, 3H], and a bias [3H] of each, gates r, z, n.

    Attributes:
      width: H.
      depth: layers, each on the states of the one before.
    """

    width: int
    depth: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "rows length dim"], mask: Bool[AnyArray, "rows length"]
    ) -> Float[Array, "rows length width"]:
        """A sequence → the last layer's state after each of its places; those that do not count change no state."""
        counts = jnp.asarray(mask).T[..., None]
        for layer in range(self.depth):
            x = self._layer(x, counts, f"layer_{layer}")
        return x

    def _layer(self, x: Array, counts: Array, name: str) -> Array:
        bound = self.width**-0.5

        def init(rng: jax.Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(rng, shape, minval=-bound, maxval=bound)

        gates = 3 * self.width
        kernel = self.param(f"{name}_input_kernel", init, (x.shape[-1], gates))
        bias = self.param(f"{name}_input_bias", init, (gates,))
        state_kernel = self.param(f"{name}_state_kernel", init, (self.width, gates))
        state_bias = self.param(f"{name}_state_bias", init, (gates,))
        exactly = jax.lax.Precision.HIGHEST
        given = jnp.matmul(x.astype(jnp.float32), kernel, precision=exactly) + bias  # of all places at once

        def step(state: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            given, counts = inputs
            own = jnp.matmul(state, state_kernel, precision=exactly) + state_bias
            (r, z, n), (own_r, own_z, own_n) = (jnp.split(y, 3, axis=-1) for y in (given, own))
            z = nn.sigmoid(z + own_z)
            n = jnp.tanh(n + nn.sigmoid(r + own_r) * own_n)
            state = jnp.where(counts, (1 - z) * n + z * state, state)
            return state, state

        start = jnp.zeros((x.shape[0], self.width), jnp.float32)
        return jax.lax.scan(step, start, (given.swapaxes(0, 1), counts))[1].swapaxes(0, 1)
