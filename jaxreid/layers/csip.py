"""CSIP-ReID's modules beside the tower and the skeleton encoder: prototypes of two modalities made one and changed for
each clip, and a branch over time that skeletons guide while it learns.

Lin et al., "Skeletons Speak Louder than Text: A Motion-Aware Pretraining Paradigm for Video-Based Person
Re-Identification", AAAI 2026, in the form of the released code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.backbones.torch_linear import TORCH_LINEAR, torch_dense
from jaxreid.backbones.transformer import LayerNorm, exact_gelu
from jaxreid.layers.prompt_decoder import PromptDecoder
from jaxreid.shapes import AnyArray, Array, Bool, Float

Layout = Literal["paper", "released"]  # of the joint tokens beside a frame's

EPS = 1e-5
XAVIER = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")  # of three maps that PyTorch draws as one
SEQUENCE, MESSAGE, JOINT, JOINT_MESSAGE = range(4)  # types of tokens


class Skeletons(NamedTuple):
    """Tokens of a clip's joints, and which frames have a skeleton."""

    tokens: Float[Array, "clips frames joints joint"]
    seen: Bool[AnyArray, "clips frames"]


class PrototypeFusion(nn.Module):
    """Prototype Fusion Updater: one prototype of each identity from two, then what a clip's tokens change in it.

    Attributes:
      width: of the prototypes.
      decoder: makes the change, of prototypes, tokens and a mask of these.
    """

    width: int
    decoder: Callable[[], nn.Module] = PromptDecoder

    def setup(self):
        self.gate_in = torch_dense(2 * self.width, self.width)
        self.gate_out = torch_dense(self.width, 1)
        self.updater = self.decoder()

    def fused(
        self,
        skeletons: Float[Array, "classes joint"],
        images: Float[Array, "classes joint"],
        seen: Bool[Array, " classes"],
    ) -> Float[Array, "classes joint"]:
        """α p_s + (1 − α) p_v with α = σ(W₂ ReLU(W₁ [p_s; p_v])) of every identity; p_v where no skeleton was seen."""
        both = jnp.concatenate([skeletons, images], axis=-1)
        share = jax.nn.sigmoid(self.gate_out(nn.relu(self.gate_in(both))))
        share = jnp.where(seen[:, None], share, 0.0)
        return share * skeletons + (1.0 - share) * images

    def __call__(
        self,
        prototypes: Float[Array, "classes joint"],
        tokens: Float[Array, "clips tokens joint"],
        skeletons: Skeletons,
        frame_mask: Bool[AnyArray, "clips frames"],
        train: bool,
    ) -> Float[Array, "clips classes joint"]:
        """What every clip changes in the fused prototypes.

        Args:
          tokens: of its images, the mean over frames; those of its skeletons are averaged here.
        """
        seen = jnp.asarray(skeletons.seen) & jnp.asarray(frame_mask)
        clips, frames, joints, width = skeletons.tokens.shape
        flat = masked_mean(skeletons.tokens.reshape(clips, frames, -1), seen)
        memory = jnp.concatenate([tokens, flat.reshape(clips, joints, width)], axis=1)
        some = jnp.repeat(seen.any(axis=1, keepdims=True), joints, axis=1)
        mask = jnp.concatenate([jnp.ones(tokens.shape[:2], bool), some], axis=1)
        return self.updater(prototypes, memory, train, mask)


class SkeletonGuidedTemporal(nn.Module):
    """Skeleton Guided Temporal Modeling: messages of frames look at each other and, in training, at those of skeletons;
    then the tokens of every frame look at each other and are summed with learned weights.

    Tokens of images and skeletons are constants: what is learned here reaches neither encoder. Nothing knows the order
    of frames, unless `time_embedding` gives each place of a clip a learned vector.

    Attributes:
      layout: which joint tokens stand beside a frame's: its own, or with "released" those that a wrong view of the
        memory gives, of other joints, frames and clips.
      time_embedding: frames of a clip whose places are told apart, 0 = none are.
    """

    heads: int = 8
    dropout: float = 0.1
    layout: Layout = "paper"
    time_embedding: int = 0

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "clips frames tokens dim"],
        frame_mask: Bool[AnyArray, "clips frames"],
        skeletons: Skeletons | None,
        train: bool,
    ) -> tuple[Float[Array, "clips dim"], Float[Array, "clips frames dim"]]:
        """(clip features, frame features); `skeletons` None = without."""
        clips, frames, _, width = tokens.shape
        tokens, shown = jax.lax.stop_gradient(tokens).astype(jnp.float32), jnp.asarray(frame_mask)

        def norm(x: Array, name: str) -> Array:
            return LayerNorm(EPS, name=name)(x)

        def attend(x: Array, context: Array, seen: Array, name: str) -> Array:
            """Attention from x to those of the context that are seen, bool[N, L]; 0 where none is."""
            module = nn.MultiHeadDotProductAttention(
                self.heads,
                dropout_rate=self.dropout,
                broadcast_dropout=False,
                deterministic=not train,
                kernel_init=XAVIER,
                out_kernel_init=TORCH_LINEAR,
                name=name,
            )
            found = module(x, context, mask=seen[:, None, None])
            return jnp.where(seen.any(axis=-1)[:, None, None], found, 0.0)

        place = jnp.zeros(width)
        if self.time_embedding:
            place = self.param("time", nn.initializers.normal(0.02), (self.time_embedding, width))[:frames]

        # Message token encoding, and distillation from the messages of skeletons.
        messages = torch_dense(width, width, "message")(tokens.mean(axis=2)) + place
        n = norm(messages, "message_norm")
        messages = messages + attend(n, n, shown, "over_frames")
        types = self.param("types", nn.initializers.normal(1.0), (4, width))
        sequence = [tokens + types[SEQUENCE], messages[:, :, None] + types[MESSAGE]]
        seen = [jnp.ones((clips, frames, 1 + tokens.shape[2]), bool)]
        if skeletons is not None:
            joints, known = jax.lax.stop_gradient(skeletons.tokens), jnp.asarray(skeletons.seen) & shown
            joints = torch_dense(joints.shape[-1], width, "joints")(joints)
            guides = joints.mean(axis=2) + place
            n = norm(guides, "guide_norm")
            guides = guides + attend(n, n, known, "over_skeletons")
            guide = norm(guides, "distil_context_norm")
            messages = messages + attend(norm(messages, "distil_norm"), guide, known, "distil")
            sequence[1] = messages[:, :, None] + types[MESSAGE]
            of_joints = jnp.broadcast_to(known[..., None, None], (*joints.shape[:3], 1))
            if self.layout == "released":
                joints, of_joints = released_view(joints), released_view(of_joints)
            sequence += [joints + types[JOINT], guides[:, :, None] + types[JOINT_MESSAGE]]
            seen += [of_joints[..., 0], known[..., None]]

        # Temporal aggregation: a block over the tokens of a frame, then their weighted sum.
        x = jnp.concatenate(sequence, axis=2).reshape(clips * frames, -1, width)
        looked_at = jnp.concatenate(seen, axis=2).reshape(clips * frames, -1)
        n = norm(x, "norm_1")
        x = x + attend(n, n, looked_at, "over_tokens")
        n = exact_gelu(torch_dense(width, 4 * width, "up")(norm(x, "norm_2")))
        n = nn.Dropout(self.dropout, deterministic=not train)(n)
        x = x + nn.Dropout(self.dropout, deterministic=not train)(torch_dense(4 * width, width, "down")(n))
        weights = jnp.where(looked_at, jax.nn.sigmoid(torch_dense(width, 1, "weight")(x)[..., 0]), 0.0)
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-6)
        z = jnp.einsum("nl,nld->nd", weights, x, precision=jax.lax.Precision.HIGHEST).reshape(clips, frames, width)
        return masked_mean(z, frame_mask), z


def released_view(tokens: Array) -> Array:
    """Joint tokens [B, T, J, D] as the released code takes them: their memory read as [J, B·T] and turned over."""
    clips, frames, joints, width = tokens.shape
    return tokens.reshape(joints, clips * frames, width).swapaxes(0, 1).reshape(clips, frames, joints, width)
