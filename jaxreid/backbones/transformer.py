"""Pre-norm transformer blocks as all towers stack them, and the ways in for what a method adds.

Parameter tree of a block (`block_00`, `block_01`, … of a tower):

    norm_1/{scale, bias}   attention/{query, key, value, out}/{kernel [D, D], bias}   layer_scale_1 [D]
    norm_2/{scale, bias}   mlp/{up, down}/{kernel, bias}, and mlp/gate in towers with SwiGLU   layer_scale_2 [D]
    beside_attention, after_attention, beside_mlp, after_mlp: the adapters of a method, where it gives any

Every linear kernel is a matrix [inputs, outputs]; heads are consecutive columns of query, key and value.
Sources: openai/CLIP and facebookresearch/dinov2 (order of operations).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.backbones.attention import Attend, attend
from jaxreid.errors import UserError

Array = jax.Array


def quick_gelu(x: Array) -> Array:
    """x·σ(1.702 x), the activation of OpenAI's CLIP; differs from the exact GELU by up to 0.02."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Array) -> Array:
    """x·Φ(x) with the error function; the tanh form, JAX's default, is another function (up to 4.7e-4 off)."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": exact_gelu,
    "silu": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What a stack of blocks is made of. The defaults are CLIP's.

    `dtype` is the type of the matrix products and of the residual stream: parameters, norms and softmax are float32
    whatever it is. `scan` and `remat` change no number and no parameter tree. `scan` needs a copy of the weights and
    of their gradients during a step, and pays from about 24 blocks.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    activation: str = "quick_gelu"  # a key of ACTIVATIONS
    gated_mlp: bool = False  # SwiGLU: the activation of one linear layer times another, both 2/3 as wide
    eps: float = 1e-5  # of every LayerNorm: 1e-5 in CLIP, 1e-6 in DINOv2 and timm
    layer_scale: float | None = None  # starting value γ, None for no LayerScale
    projection: int | None = None  # joint dimension
    drop_path: float = 0.0  # stochastic depth of the last block; grows linearly from 0 at the first
    dtype: Any = jnp.float32
    remat: bool = False  # recompute each block in the backward pass instead of keeping its activations
    scan: bool = False  # compile one block and loop over it, instead of compiling every block

    def __post_init__(self):
        if self.width % self.heads:
            raise UserError(f"{type(self).__name__}: width {self.width} is not a multiple of heads {self.heads}")
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"{type(self).__name__}: activation {self.activation!r}; one of {', '.join(sorted(ACTIVATIONS))}"
            )

    @property
    def hidden(self) -> int:
        """Width between the linear layers of the MLP."""
        if self.gated_mlp:  # as many parameters as the plain MLP, rounded up to a multiple of 8
            return -(-int(2 * self.mlp_ratio * self.width / 3) // 8) * 8
        return int(self.mlp_ratio * self.width)


Change = Callable[[Array], Array]
Adapter = Callable[[], nn.Module]


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Modules that a method adds to the blocks: `functools.partial(TemporalAdapter, 256)`, one made for each block.

    An adapter maps tokens [B, T, L, D] and frame_mask bool[B, T] to tokens of the same shape. Those beside a branch
    get what it gets, the residual stream before its norm, and their output is added to its own; those after it get
    its output and replace it. `blocks` numbers the blocks that have them, None for all.
    """

    beside_attention: Adapter | None = None
    after_attention: Adapter | None = None
    beside_mlp: Adapter | None = None
    after_mlp: Adapter | None = None
    blocks: tuple[int, ...] | None = None

    def of(self, block: int) -> Adapters:
        return self if self.blocks is None or block in self.blocks else Adapters()


class Hooks(NamedTuple):
    """What a method puts into the blocks of one pass; N = B·T sequences.

    frame_mask: bool[B, T], for the adapters: which sequences are frames of one clip and which of them count; None
      for clips of one frame.
    prompts: [K, N or 1, P, D]; block i < K attends to its P rows too, as they are: they pass no norm, and nothing
      comes out for them. (For prompts that are tokens like others, append them to the residual stream and call
      `run_blocks` block by block.)
    attention: by block number, a function in place of `attend`, [N, L, H, d] in and out. One that changes queries,
      keys or values is `lambda q, k, v: attend(*change(q, k, v))`. Where only some outputs are computed, q holds
      only theirs; keys and values of prompts stand last.
    adapt: False passes by the adapters.
    normed: by block number, a function of the tokens [N, L, D] that queries, keys and values are made of.
    """

    frame_mask: Array | None = None
    prompts: Array | None = None
    attention: Mapping[int, Attend] = {}
    adapt: bool = True
    normed: Mapping[int, Change] = {}


class Tap(NamedTuple):
    """What comes out of a block: tokens [N, L, D], the residual stream after it; queries (not yet divided by √d) and
    keys of its attention [N, L, H, d]. What is not used is not computed."""

    tokens: Array
    queries: Array
    keys: Array


fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def residual_init(config: TransformerConfig) -> Callable[..., Array]:
    """Layers that write to the residual stream start smaller by sqrt(2·depth): its variance stays O(1)."""
    return nn.initializers.variance_scaling(1.0 / (2 * config.depth), "fan_in", "normal")


class LayerNorm(nn.Module):
    """Norm over the last axis, [..., D] → float32 [..., D], whatever the type of x."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        # Two passes: E[x²] − E[x]² loses digits on the large activations of pretrained towers. Written out, the
        # backward pass is a fifth faster on CPU than that of flax's two-pass form.
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps) * scale + bias


class Attention(nn.Module):
    """Multi-head attention from tokens [N, Q, D] to tokens [N, L, D] → ([N, Q, D], queries, keys)."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        for name in ("query", "key", "value"):
            setattr(self, name, nn.Dense(c.width, dtype=c.dtype, kernel_init=fan_in))
        self.out = nn.Dense(c.width, dtype=c.dtype, kernel_init=residual_init(c))

    def __call__(self, x: Array, context: Array, attention: Attend) -> tuple[Array, Array, Array]:
        heads = self.config.heads
        q, k, v = (y.reshape(*y.shape[:2], heads, -1) for y in (self.query(x), self.key(context), self.value(context)))
        return self.out(attention(q, k, v).reshape(x.shape)), q, k


class Mlp(nn.Module):
    """Two linear layers with the configured activation between, [..., D] → [..., D]; or three, gated."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        self.up = nn.Dense(c.hidden, dtype=c.dtype, kernel_init=fan_in)
        if c.gated_mlp:
            self.gate = nn.Dense(c.hidden, dtype=c.dtype, kernel_init=fan_in)
        self.down = nn.Dense(c.width, dtype=c.dtype, kernel_init=residual_init(c))

    def __call__(self, x: Array) -> Array:
        activation = ACTIVATIONS[self.config.activation]
        if self.config.gated_mlp:
            return self.down(activation(self.gate(x)) * self.up(x))
        return self.down(activation(self.up(x)))


class Block(nn.Module):
    """Pre-norm transformer block: x += γ₁·Attention(norm_1(x)); x += γ₂·MLP(norm_2(x)); with a method's adapters."""

    config: TransformerConfig
    adapters: Adapters = Adapters()

    def setup(self):
        c = self.config
        self.norm_1, self.norm_2 = LayerNorm(c.eps), LayerNorm(c.eps)
        self.attention, self.mlp = Attention(c), Mlp(c)
        self.layer_scale_1 = self.layer_scale_2 = None
        if c.layer_scale is not None:
            gamma = nn.initializers.constant(c.layer_scale)
            self.layer_scale_1 = self.param("layer_scale_1", gamma, (c.width,))
            self.layer_scale_2 = self.param("layer_scale_2", gamma, (c.width,))
        for name in ("beside_attention", "after_attention", "beside_mlp", "after_mlp"):
            make = getattr(self.adapters, name)
            setattr(self, name, make and make())

    def __call__(
        self,
        x: Array,
        outputs: int | None = None,
        attention: Attend = attend,
        adapt: bool = True,
        change_normed: Change | None = None,
        frame_mask: Array | None = None,
        prompts: Array | None = None,
        drop: tuple[Array, Any] | None = None,
    ) -> Tap:
        """x [N, L, D] → the block's `Tap`.

        With `outputs`, only the first so many tokens are computed; all of them are attended to. `attention`,
        `adapt`, `change_normed`, `frame_mask` and `prompts` [N or 1, P, D] are those of `Hooks`. `drop`: key and rate
        of stochastic depth, which leaves out either branch of whole sequences.
        """

        def complete(change: Array, scale: Array | None, beside: Any, after: Any, branch: int) -> Array:
            """What a branch adds to the stream x, from what its layers give."""
            if scale is not None:
                change = change * scale.astype(x.dtype)
            if adapt and after is not None:
                change = _per_clip(after, change, frame_mask)
            if adapt and beside is not None:  # of all tokens, then those wanted: an adapter may look across them
                change = change + _per_clip(beside, x, frame_mask)[:, : change.shape[1]]
            return change if drop is None else _drop(change, jax.random.fold_in(drop[0], branch), drop[1])

        normed = self.norm_1(x)
        if change_normed is not None:
            normed = change_normed(normed)
        context = normed
        if prompts is not None:
            rows = jnp.broadcast_to(prompts, (x.shape[0], *prompts.shape[1:]))
            context = jnp.concatenate([normed, rows.astype(normed.dtype)], axis=1)
        change, q, k = self.attention(normed[:, :outputs], context, attention)
        change = complete(change, self.layer_scale_1, self.beside_attention, self.after_attention, 0)
        x = x[:, :outputs] + change
        change = self.mlp(self.norm_2(x))
        return Tap(x + complete(change, self.layer_scale_2, self.beside_mlp, self.after_mlp, 1), q, k)


def _per_clip(adapter: Callable[..., Array], x: Array, frame_mask: Array | None) -> Array:
    mask = jnp.ones((x.shape[0], 1), bool) if frame_mask is None else frame_mask
    return adapter(x.reshape(*mask.shape, *x.shape[1:]), mask).reshape(x.shape).astype(x.dtype)


def _drop(change: Array, key: Array, rate: Any) -> Array:
    kept = 1.0 - rate
    keep = jax.random.bernoulli(key, kept, (change.shape[0], 1, 1))
    return jnp.where(keep, change / kept, 0).astype(change.dtype)


class Tower(nn.Module):
    """What the towers have in common: blocks, whole or in parts. A base class."""

    config: Any  # a TransformerConfig
    adapters: Adapters = Adapters()

    attention: ClassVar[Attend] = staticmethod(attend)

    def make_blocks(self) -> list[nn.Module]:
        """For `setup`, under the name `self.blocks`."""
        block = nn.remat(Block, static_argnums=(2, 3, 4, 5)) if self.config.remat else Block
        return [block(self.config, self.adapters.of(i), name=f"block_{i:02d}") for i in range(self.config.depth)]

    def run_blocks(
        self,
        x: Array,
        start: int,
        stop: int,
        train: bool = False,
        outputs: int | None = None,
        hooks: Hooks = Hooks(),  # noqa: B008 (immutable)
    ) -> Array:
        """Blocks start … stop − 1 on the residual stream x [N, L, D] (any L: prompts may be appended); with
        `outputs`, only the first so many tokens come out of the last of them, [N, outputs, D]."""
        return self.tap_blocks(x, start, stop, (), train, outputs, hooks)[0]

    def tap_blocks(
        self,
        x: Array,
        start: int,
        stop: int,
        taps: Sequence[int],
        train: bool = False,
        outputs: int | None = None,
        hooks: Hooks = Hooks(),  # noqa: B008
    ) -> tuple[Array, tuple[Tap, ...]]:
        """`run_blocks`, and what comes out of the blocks numbered `taps` (negative numbers count from the last).

        `train` switches stochastic depth on where the tower has it; it then needs the random key "drop_path".
        """
        c = self.config
        if not 0 <= start <= stop <= c.depth:
            raise UserError(f"{type(self).__name__}.run_blocks: blocks {start}:{stop} of a tower of {c.depth}")
        wanted = [tap + c.depth if tap < 0 else tap for tap in taps]
        if not all(start <= tap < stop for tap in wanted):
            raise UserError(f"{type(self).__name__}: taps {tuple(taps)} are not all among blocks {start}:{stop}")
        prompted = 0 if hooks.prompts is None else len(hooks.prompts)
        unknown = {*hooks.attention, *hooks.normed, *(self.adapters.blocks or ()), *range(prompted)} - {*range(c.depth)}
        if unknown:
            what = f"hooks, prompts or adapters for blocks {sorted(unknown)}"
            raise UserError(f"{type(self).__name__}: {what} of a tower of {c.depth}")
        key = self.make_rng("drop_path") if train and c.drop_path else None
        rates = np.linspace(0.0, c.drop_path, c.depth, dtype=np.float32)

        found: dict[int, Tap] = {}
        for run in self._runs(start, stop, wanted, outputs, prompted, hooks):
            first = run[0]
            static = (hooks.attention.get(first, self.attention), hooks.adapt, hooks.normed.get(first))
            prompts = hooks.prompts[run[0] : run[-1] + 1] if hooks.prompts is not None and first < prompted else None
            drop = None if key is None else (jax.vmap(lambda i: jax.random.fold_in(key, i))(np.array(run)), rates[run])
            if len(run) == 1:
                prompts, drop = jax.tree.map(lambda y: y[0], (prompts, drop))
                tap = self.blocks[first](
                    x, outputs if first == stop - 1 else None, *static, hooks.frame_mask, prompts, drop
                )
                x, found[first] = tap.tokens, tap
            else:
                x = self._scan(x, run, static, hooks.frame_mask, prompts, drop)
        return x, tuple(found[tap] for tap in wanted)

    def _runs(
        self, start: int, stop: int, wanted: list[int], outputs: int | None, prompted: int, hooks: Hooks
    ) -> Iterator[list[int]]:
        """Block numbers in groups that one compiled block can compute in a loop; one by one without `scan`."""

        def kind(number: int) -> Hashable:
            alone = number in wanted or (outputs is not None and number == stop - 1)
            if alone or not self.config.scan or self.is_initializing():
                return number
            return hooks.attention.get(number), hooks.normed.get(number), number < prompted, self.adapters.of(number)

        for _, run in itertools.groupby(range(start, stop), kind):
            yield list(run)

    def _scan(
        self, x: Array, run: list[int], static: tuple, frame_mask: Array | None, prompts: Array | None, drop: Any
    ) -> Array:
        params = [self.blocks[number].variables["params"] for number in run]
        block = Block(self.config, self.adapters.of(run[0]), parent=None)

        def step(x: Array, parts: tuple) -> tuple[Array, None]:
            params, prompts, drop = parts
            tap: Any = block.apply({"params": params}, x, None, *static, frame_mask, prompts, drop)
            return tap.tokens, None

        if self.config.remat:
            step = jax.checkpoint(step, prevent_cse=False)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        return jax.lax.scan(step, x, (stacked, prompts, drop))[0]
