"""HAMoBE's gates: attention over the tokens of a clip, beside those of another clip where there is one.

Su et al. (2025), arXiv 2508.05038. Tokens of equal frame number are attended to together. Neither clip is marked as the
first, so that to swap them swaps what comes out, and a clip that meets itself sees what it sees alone.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.backbones.attention import attend
from jaxreid.backbones.torch_linear import TORCH_LINEAR, torch_dense
from jaxreid.shapes import Array, Float, Int

Prepared = dict[str, Array]  # what a clip brings to a pair: see `PairGate.prepared`


class PairGate(nn.Module):
    """z = act(W x) + P/√width, z += Attention(z → z of both), logits V z of every token.

    Attributes:
      inputs: channels of x; width: of z.
      outputs: logits of a token.
      heads: of the attention, which has no biases.
      slope: of act below 0; 0 = ReLU.
      dtype: of the products.
    """

    inputs: int
    width: int
    outputs: int
    tokens: int
    heads: int
    slope: float = 0.0
    dtype: Any = jnp.float32

    def setup(self):
        self.before = torch_dense(self.inputs, self.width, dtype=self.dtype)
        self.places = self.param("places", nn.initializers.normal(1.0), (self.tokens, self.width))
        for name in ("query", "key", "value", "out"):
            setattr(self, name, nn.Dense(self.width, use_bias=False, dtype=self.dtype, kernel_init=TORCH_LINEAR))
        self.after = torch_dense(self.width, self.outputs, dtype=self.dtype)

    def _looks(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """z [N, T, L, D], and its queries, keys and values [N, T, L, H, c]."""
        z = self.before(x)
        z = jnp.where(z > 0, z, self.slope * z) + (self.places * self.width**-0.5).astype(self.dtype)
        q, k, v = (y(z).reshape(*z.shape[:-1], self.heads, -1) for y in (self.query, self.key, self.value))
        return z, q, k, v

    def __call__(
        self, x: Float[Array, "clips frames tokens dim"], partner: Int[Array, " clips"] | None = None
    ) -> Float[Array, "clips frames tokens outputs"]:
        """Logits in float32; `partner`: the row that each clip meets, which may be its own; None = nobody."""
        z, q, k, v = self._looks(x)
        if partner is not None:
            k, v = (jnp.concatenate([y, y[partner]], axis=2) for y in (k, v))
        q, k, v = (y.reshape(-1, *y.shape[2:]) for y in (q, k, v))
        z = z + self.out(attend(q, k, v).reshape(z.shape))
        return self.after(z).astype(jnp.float32)

    def prepared(self, x: Float[Array, "clips frames tokens dim"]) -> Prepared:
        """All of a clip that does not depend on whom it meets.

        What comes of attention goes through linear layers alone, V W_out, which are applied to the values here: what
        is mixed in a pair has `outputs` channels a head in place of width / H. "queries", "keys" [N, T, L, H, c],
        "values" [N, T, L, H, o] in `dtype`; "plain" [N, T, L, o], logits without attention; of the attention to the
        clip itself "own" [N, T, L, H, o] and the logarithm of its denominator "log_sum" [N, T, L, H], in float32.
        """
        z, q, k, v = self._looks(x)
        out, after = (layer.variables["params"]["kernel"] for layer in (self.out, self.after))
        kernel = (out @ after).reshape(self.heads, -1, self.outputs)
        values = jnp.einsum("ntlhc,hco->ntlho", v, kernel.astype(self.dtype))
        plain = self.after(z).astype(jnp.float32)
        own, log_sum = _attended(q, k, values)
        return {"queries": q, "keys": k, "values": values, "plain": plain, "own": own, "log_sum": log_sum}


def alone(gate: Prepared) -> Float[Array, "clips frames tokens outputs"]:
    """Logits of clips that meet nobody."""
    return gate["plain"] + gate["own"].sum(axis=-2)


def together(mine: Prepared, other: Prepared) -> Float[Array, "clips frames tokens outputs"]:
    """Logits of clips, row i of which meets row i of the other."""
    across, log_sum = _attended(mine["queries"], other["keys"], other["values"])
    share = jax.nn.sigmoid(mine["log_sum"] - log_sum)[..., None]  # of the clip's own tokens in the softmax over both
    return mine["plain"] + (share * mine["own"] + (1 - share) * across).sum(axis=-2)


def _attended(
    q: Float[Array, "clips frames tokens heads channels"],
    k: Float[Array, "clips frames tokens heads channels"],
    v: Float[Array, "clips frames tokens heads outputs"],
) -> tuple[Float[Array, "clips frames tokens heads outputs"], Float[Array, "clips frames tokens heads"]]:
    """softmax(q·k/√c)·v, and the logarithm of the softmax's denominator; in float32."""
    scores = jnp.einsum("ntlhc,ntmhc->nthlm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    log_sum = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    found = jnp.einsum("nthlm,ntmho->ntlho", jnp.exp(scores - log_sum), v.astype(jnp.float32))
    return found, log_sum[..., 0].transpose(0, 1, 3, 2)
