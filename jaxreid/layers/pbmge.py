"""PBMGE, DinoGRL's progressive bidirectional exchange between streams: the global part of one, enriched strip by strip
by those of the other, at one granularity after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.backbones.torch_linear import TORCH_LINEAR
from jaxreid.shapes import AnyArray, Array, Bool, Float

NORMS = ("shared", "specific")  # of relu(f) and of relu(−f)


class Exchange(nn.Module):
    """The globals of one stream, enriched by the strips of the other.

    X(v, c) = y⁺ − y⁻, where every number of v and of c is a token of one number, lifted to D:
    f_ij = (θ v_i + θ') · (φ c_j + φ') / D and y^± = BN(W Σ_j relu(±f_ij) (g c_j + g') + b). Products of the lifted
    numbers are four scalars, and W g and W g' two more: f and y are made of these and nothing is D times as wide. A new
    module adds nothing, for its batch norms begin with scale and shift 0. Its running statistics move with every strip.
    """

    bins: tuple[int, ...]
    granularities: tuple[int, ...]

    @nn.compact
    def __call__(
        self,
        own: Float[Array, "clips parts dim"],
        other: Float[Array, "clips parts dim"],
        valid: Bool[AnyArray, " clips"],
        train: bool,
    ) -> Float[Array, "clips granularities dim"]:
        """Parts of both streams in the order of the pyramid, the whole first → a global for each granularity."""
        dim = own.shape[-1]
        norm = MaskedBatchNorm(parent=None)  # a function of what it is given: its numbers are those below
        weights = self._weights(dim)
        start = {name: {"mean": jnp.zeros(1), "var": jnp.ones(1)} for name in NORMS}
        running = {name: self.variable("batch_stats", name, lambda name=name: start[name]) for name in NORMS}
        alpha, beta, gamma, delta = _contracted(weights, dim)

        def added(v: jax.Array, c: jax.Array, statistics: Any) -> tuple[jax.Array, Any]:
            """X(v, c) of [B, D] each, and the statistics after it."""
            f = alpha * v[:, :, None] * c[:, None] + beta * v[:, :, None] + gamma * c[:, None] + delta
            found, changed = [], {}
            for name, sign in zip(NORMS, (1, -1), strict=True):
                w = weights[name]
                p, q = (_dot(w["kernel"], weights["value"][leaf]) for leaf in ("kernel", "bias"))
                y = jnp.einsum("bij,bj->bi", nn.relu(sign * f), p * c + q, precision=jax.lax.Precision.HIGHEST)
                normed, new = norm.apply(
                    {"params": w["norm"], "batch_stats": statistics[name]},
                    y[..., None] + w["bias"],
                    valid,
                    use_running_average=not train,
                    mutable=["batch_stats"],
                )
                found.append(normed[..., 0])
                changed[name] = new.get("batch_stats", statistics[name])
            return found[0] - found[1], changed

        @jax.checkpoint  # its [B, D, D] are cheap to make again
        def step(carry: Any, strip: Any) -> Any:
            v, statistics = carry
            context, begins = strip
            v = jnp.where(begins, own[:, 0], v)
            more, statistics = added(v, context, statistics)
            return (v + more, statistics), v + more

        rows, begins, ends = _order(self.bins, self.granularities)
        first = (own[:, 0], {name: each.value for name, each in running.items()})
        contexts = jnp.swapaxes(other[:, rows], 0, 1)
        (_, statistics), found = jax.lax.scan(step, first, (contexts, jnp.asarray(begins)))
        if train and not self.is_initializing():
            for name, each in running.items():
                each.value = statistics[name]
        return jnp.swapaxes(found[ends], 0, 1)

    def _weights(self, dim: int) -> dict[str, Any]:
        """Of the four lifts, over-parameterized as they are trained, and of the norms."""

        def uniform(key: Any, shape: Any) -> jax.Array:  # PyTorch's own start of a convolution with one input
            return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)

        def linear(key: Any, shape: Any) -> jax.Array:
            return TORCH_LINEAR(key, (*shape, 1))[:, 0]

        found: dict[str, Any] = {
            name: {leaf: self.param(f"{name}_{leaf}", uniform, (dim,)) for leaf in ("kernel", "bias")}
            for name in ("query", "context", "value")
        }
        zero = nn.initializers.zeros
        for name in NORMS:
            found[name] = {
                "kernel": self.param(f"{name}_kernel", linear, (dim,)),
                "bias": self.param(f"{name}_bias", zero, (1,)),
                "norm": {leaf: self.param(f"{name}_norm_{leaf}", zero, (1,)) for leaf in ("scale", "bias")},
            }
        return found


def _contracted(weights: Any, dim: int) -> tuple[jax.Array, ...]:
    """α, β, γ, δ, already divided by D: f = α v c + β v + γ c + δ."""
    query, context = weights["query"], weights["context"]
    pairs = (("kernel", "kernel"), ("kernel", "bias"), ("bias", "kernel"), ("bias", "bias"))
    return tuple(_dot(query[one], context[other]) / dim for one, other in pairs)


def _dot(one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.vdot(one, other, precision=jax.lax.Precision.HIGHEST)


def _order(bins: Sequence[int], granularities: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the pyramid in the order of the strips, which of them begin a granularity, and the last of each."""
    starts = dict(zip(bins, np.cumsum([0, *bins]), strict=False))
    rows = np.concatenate([starts[count] + np.arange(count) for count in granularities])
    ends = np.cumsum(granularities) - 1
    begins = np.isin(np.arange(len(rows)), [0, *(ends[:-1] + 1)])
    return rows, begins, ends
