"""HAMoBE's network: a frozen tower's last blocks, experts on them, and gates that look at both videos (see
`jaxreid.methods.hamobe`). Widths follow the tower's: with C of ViT-L/14 they are the published ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean, unit_rows
from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.backbones.torch_linear import torch_dense
from jaxreid.backbones.transformer import Tap
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.data.batch import Batch
from jaxreid.layers.biometric_experts import FrameExpert, GaitExpert, LowExperts, TokenPool, mixed
from jaxreid.layers.cross_frame import TemporalDecoder, TemporalLayer
from jaxreid.layers.neck import CosineClassifier
from jaxreid.layers.pair_gate import PairGate, Prepared, alone, together
from jaxreid.shapes import Array, Bool

EXPERTS = ("canonical", "appearance", "gait")
LEAK = 0.01


@dataclasses.dataclass(frozen=True)
class HAMoBEConfig:
    """What the network is made of.

    Attributes:
      tower: the frozen ViT.
      frames: T of every clip.
      blocks: how many of the tower's last blocks are looked at.
      conv, position, bias: the temporal modules of each.
      count: low-level experts.
      experts: of `EXPERTS`, those that there are.
      shared: one stream of tokens for all of them.
      normalize: whether what they find in a clip counts by its direction alone in the embedding.
      gate1, gate2: whether the gates are learned; else all weights are equal.
      scale: of the cosines that identity is told by.
      outfits: classes of clothes that the appearance expert is to tell apart, 0 = none.
      dropout: inside of the gait expert.
      gate_heads, gait_heads: of the attention in the gates, and in the gait expert, which is half as wide again.
    """

    tower: ViTConfig
    frames: int
    num_classes: int
    blocks: int = 4
    conv: bool = True
    position: bool = True
    bias: bool = True
    count: int = 8
    experts: tuple[str, ...] = EXPERTS
    shared: bool = False
    normalize: bool = False
    gate1: bool = True
    gate2: bool = True
    scale: float = 16.0
    outfits: int = 0
    dropout: float = 0.5
    gate_heads: int = 8
    gait_heads: int = 12

    @property
    def width(self) -> int:
        """d, channels of experts and gates."""
        return self.tower.width // 2

    @property
    def embedding(self) -> int:
        return 4 * self.width

    @property
    def streams(self) -> int:
        return 1 if self.shared else len(self.experts)

    @property
    def weighs(self) -> bool:
        """Whether there is anything for gate 2 to learn."""
        return self.gate2 and len(self.experts) > 1


class HAMoBENetwork(nn.Module):
    """Everything up to the embedding of a clip, and the classifiers behind it."""

    config: HAMoBEConfig

    def setup(self):
        c, dtype = self.config, self.config.tower.dtype
        d, tokens = c.width, c.tower.tokens
        self.image_tower = ViT(c.tower)
        layer = functools.partial(TemporalLayer, c.tower.grid, c.frames, c.conv, c.position, c.bias, dtype)
        self.decoder = TemporalDecoder(layer, dtype)
        self.low_experts = LowExperts(c.count, d, dtype)
        if c.gate1:
            self.gate1 = PairGate(c.tower.width, d, c.count * c.streams, tokens, c.gate_heads, dtype=dtype)
        for name in c.experts:
            setattr(self, name, GaitExpert(c.gait_heads, c.dropout, dtype) if name == "gait" else FrameExpert(dtype))
        if c.weighs:
            self.gate2 = PairGate(c.streams * d, d, len(c.experts), tokens, c.gate_heads, LEAK, dtype)
            self.gate2_tokens = TokenPool(d // 4)
            self.gate2_frames = [torch_dense(c.frames, 4), torch_dense(4, 1)]
        self.fc = torch_dense(d, c.embedding)
        self.norm = MaskedBatchNorm(scale_init=_near_one)
        self.classifier = CosineClassifier(c.num_classes, c.scale)
        if c.outfits:
            self.clothes_classifier = CosineClassifier(c.outfits, c.scale)
        self.pair_threshold = self.param("pair_threshold", nn.initializers.constant(5.0), ())

    # 3.1, 3.2: tokens

    def tokens(self, batch: Batch) -> tuple[Array, Array]:
        """Frames [B, T, H, W, 3] → (F [B, T, L, C] of the decoder, the tower's own feature f32[B, C]).

        Clips that are not full are filled up with their own frames from the first on.
        """
        mask = jnp.asarray(batch.frame_mask)
        frames = filled_up(batch.frames, mask)
        lead = frames.shape[:2]
        found = self.image_tower(frames.reshape(-1, *frames.shape[2:]), taps=range(-self.config.blocks, 0))
        taps = [Tap(*(x.reshape(*lead, *x.shape[1:]) for x in tap)) for tap in found["taps"]]
        tower = found["class_token"].reshape(*lead, -1)
        once = jnp.arange(lead[1]) < mask.sum(axis=1, keepdims=True)
        return self.decoder(taps), masked_mean(tower, once)

    # 3.3: level 1

    def shares(self, logits: Array | None, lead: tuple[int, ...]) -> Array:
        """Logits of gate 1 [B, T, L, K·J] → the share of each low-level expert in each stream [B, T, L, K, J]."""
        c = self.config
        if logits is None:
            return jnp.full((*lead, c.count, c.streams), 1 / c.count)
        return jax.nn.softmax(logits.reshape(*lead, c.count, c.streams), axis=-2)

    # 3.4: level 2

    def level2(self, streams: Array, train: bool) -> dict[str, Array]:
        """Streams [B, T, L, J, d] → of the canonical and the appearance expert features of frames f32[B, T, d], of the
        gait expert one of the clip f32[B, d]."""
        found = {}
        for place, name in enumerate(self.config.experts):
            stream, expert = streams[..., 0 if self.config.shared else place, :], getattr(self, name)
            found[name] = expert(stream, train) if name == "gait" else expert(stream)
        return found

    # 3.5: gate 2

    def weights(self, logits: Array | None, rows: int) -> Array:
        """Logits of gate 2 [B, T, L, E] → the weight of each expert f32[B, E]."""
        if logits is None:
            return jnp.full((rows, len(self.config.experts)), 1 / len(self.config.experts))
        x = self.gate2_tokens(logits).swapaxes(1, 2)  # [B, E, T]
        first, second = self.gate2_frames
        return jax.nn.softmax(second(nn.leaky_relu(first(x), LEAK))[..., 0], axis=-1)

    # 3.6: the embedding

    def embedding(self, weights: Array, clips: Mapping[str, Array], valid: Array, train: bool) -> Array:
        """Features of the experts by name f32[B, d], and their weights → f32[B, 4·d]."""
        x = jnp.stack([clips[name] for name in self.config.experts], axis=1)
        x = unit_rows(x) if self.config.normalize else x
        x = self.fc(jnp.einsum("be,bed->bd", weights, x, precision=jax.lax.Precision.HIGHEST))
        return self.norm(x, jnp.asarray(valid), use_running_average=not train)

    def __call__(self, batch: Batch, train: bool, partner: Array | None = None) -> dict[str, Any]:
        """The embedding "feature" f32[B, 4·d]; of the experts "frames" as `level2` gives them, and "clips" f32[B, d] by
        name; "weights" f32[B, E], "shares" f32[B, T, L, K, J], "tower" f32[B, C]. `partner` i32[B]: whom each row
        meets."""
        f, tower = self.tokens(batch)
        shares = self.shares(self.gate1(f, partner) if self.config.gate1 else None, f.shape[:3])
        streams = mixed(self.low_experts(f), shares)
        frames = self.level2(streams, train)
        seen = self.gate2(_joined(streams), partner) if self.config.weighs else None
        weights = self.weights(seen, len(tower))
        clips = of_clips(frames)
        feature = self.embedding(weights, clips, batch.valid, train)
        found = {"feature": feature, "frames": frames, "clips": clips, "weights": weights, "shares": shares}
        return found | {"tower": tower}

    def train_outputs(self, batch: Batch, partner: Array | None = None) -> tuple[dict[str, Any], dict[str, Array]]:
        """(what `__call__` gives, logits of "identity" and, where clothes are told apart, of "clothes"), in training;
        and b of the pair loss among the former, as "threshold"."""
        found = self(batch, True, partner)
        logits = {"identity": self.classifier(found["feature"])}
        if self.config.outfits:
            logits["clothes"] = self.clothes_classifier(found["clips"]["appearance"])
        return found | {"threshold": self.pair_threshold}, logits

    # 7: pairs, row by row

    def pair_features(self, batch: Batch, both_gates: bool) -> dict[str, Array]:
        """What is kept of clips for `pair_embeddings`: where both gates see the pair, tokens of the low-level experts
        and gate 1; else the experts' features and gate 2."""
        c = self.config
        f, _ = self.tokens(batch)
        experts = self.low_experts(f)
        prepared = self.gate1.prepared(f) if c.gate1 else {}
        if both_gates:
            return {"experts": experts, **_named("gate1", prepared)}
        shares = self.shares(alone(prepared) if c.gate1 else None, f.shape[:3])
        streams = mixed(experts, shares)
        second = self.gate2.prepared(_joined(streams)) if c.weighs else {}
        return {**of_clips(self.level2(streams, False)), **_named("gate2", second)}

    def pair_embeddings(self, one: Mapping[str, Array], other: Mapping[str, Array]) -> tuple[Array, Array]:
        """Rows of `pair_features` that meet, row i of one and row i of the other → (embeddings f32[2·N, 4·d] of the
        one and then of the other, weights f32[2·N, E])."""
        c = self.config
        both: dict[str, Array] = {name: jnp.concatenate([one[name], other[name]]) for name in one}
        partner = jax.tree.map(lambda x: jnp.roll(x, len(x) // 2, axis=0), both)

        def meet(gate: str) -> Array:
            return together(_of(gate, both), _of(gate, partner))

        clips, rows = both, len(next(iter(both.values())))
        if "experts" in both:
            experts = both["experts"]
            streams = mixed(experts, self.shares(meet("gate1") if c.gate1 else None, experts.shape[:3]))
            clips = of_clips(self.level2(streams, False))
            second = _named("gate2", self.gate2.prepared(_joined(streams))) if c.weighs else {}
            both, partner = second, jax.tree.map(lambda x: jnp.roll(x, rows // 2, axis=0), second)
        weights = self.weights(meet("gate2") if c.weighs else None, rows)
        return self.embedding(weights, clips, jnp.ones(rows, bool), False), weights


def pair_cost(config: HAMoBEConfig, both_gates: bool) -> int:
    """Operations of `pair_embeddings` for one pair, in matrix products: a multiply and an add are two."""
    c, d = config, config.width
    frames, tokens = 2 * c.frames, 2 * c.frames * c.tower.tokens  # of both clips

    def attention(outputs: int) -> int:
        return tokens * c.tower.tokens * (d + c.gate_heads * outputs)

    pool = c.tower.tokens * d // 4 + d // 4
    embedding = 2 * (len(c.experts) * d + d * c.embedding)
    second = attention(len(c.experts)) + frames * len(c.experts) * pool + 2 * len(c.experts) * 4 * (c.frames + 1)
    total = embedding + (second if c.weighs else 0)
    if not both_gates:
        return 2 * total
    if c.gate1:
        total += attention(c.count * c.streams)
    total += tokens * c.count * c.streams * d  # streams
    total += sum(tokens * 2 * d * d + (0 if name == "gait" else frames * d * pool) for name in c.experts)
    if "gait" in c.experts:
        inner = 3 * d // 2
        total += tokens * 2 * inner * (d + 1) + 2 * (2 * d * inner + 8 * d * d)
    if c.weighs:  # gate 2 before the two meet
        outputs = len(c.experts)
        prepared = d * (c.streams * d + 3 * d + outputs) + d * outputs
        total += tokens * prepared + d * d * outputs + attention(outputs)
    return 2 * total


def filled_up(frames: Array, mask: Bool[Array, "clips frames"]) -> Array:
    """[B, T, …]: the frames that count, and again from the first on until the clip is full."""
    order = jnp.argsort(~mask, axis=1, stable=True)
    place = jnp.arange(mask.shape[1]) % jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    index = jnp.take_along_axis(order, place, axis=1)
    return jnp.take_along_axis(frames, index.reshape(*index.shape, *(1,) * (frames.ndim - 2)), axis=1)


def of_clips(frames: Mapping[str, Array]) -> dict[str, Array]:
    """C, A and G: of features of frames the mean over time."""
    return {name: x.mean(axis=1) if x.ndim == 3 else x for name, x in frames.items()}


def _near_one(key: Array, shape: Any) -> Array:
    return 1 + 0.02 * jax.random.normal(key, shape)


def _joined(streams: Array) -> Array:
    """[..., J, d] → [..., J·d]"""
    return streams.reshape(*streams.shape[:-2], -1)


def _named(gate: str, prepared: Prepared) -> dict[str, Array]:
    return {f"{gate}_{name}": x for name, x in prepared.items()}


def _of(gate: str, features: Mapping[str, Array]) -> Prepared:
    return {name.removeprefix(f"{gate}_"): x for name, x in features.items() if name.startswith(f"{gate}_")}
