"""TF-CLIP: the bank is made of image features and changed for each clip, and a branch looks over time; no text.

Yu et al., "TF-CLIP: Learning Text-free CLIP for Video-based Person Re-Identification", AAAI 2024, in the form of its
released code. CLIP-Memory is the mean image feature of every identity; the Sequence-Specific Prompt (SSP) adds to its
rows what a clip's own tokens change in them; Temporal Memory Diffusion (TMD) makes a third feature, "temporal", whose
losses reach no other part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.data.batch import Batch
from jaxreid.layers.prompt_decoder import PromptDecoder
from jaxreid.layers.tf_clip import TemporalMemoryDiffusion
from jaxreid.methods.class_banks import IMAGE_VALUES, SENTENCE_VALUES, Bank, ImageBank
from jaxreid.methods.clip_family import ClipFamily, ClipNetwork, family_values, prompt_faults, prompted
from jaxreid.methods.released import tf_clip
from jaxreid.values import flag, non_negative, one_of, under, whole

BANKS = ("image", "prompt")  # the second as the paper's ablation
FORMS = ("full", "simple")  # of SSP: the published code's, and that of the weights released for LS-VID and iLIDS-VID


class TFClipNetwork(ClipNetwork):
    """The family's network with SSP and TMD.

    Attributes:
      frames: whether there is TMD.
      sequence_prompt: SSP, None = none.
    """

    frames: bool = True
    sequence_prompt: Callable[[], nn.Module] | None = PromptDecoder

    def setup(self):
        super().setup()
        if self.frames:
            self.temporal = TemporalMemoryDiffusion(self.image.heads)
        if self.sequence_prompt:
            self.sequence = self.sequence_prompt()

    def encode(self, batch: Batch, train: bool) -> dict[str, Any]:
        """Clip features by name; also "tokens" [B, T, L, D] and, of TMD, "frames" f32[B, T, D]."""
        frames = self.tower(batch, train, all_tokens=self.frames or self.sequence_prompt is not None)
        found = self.clips(frames, batch) | {"tokens": frames.tokens}
        if self.frames:
            assert frames.tokens is not None
            found["temporal"], found["frames"] = self.temporal(frames.tokens, batch.frame_mask)
        return found

    def similar(self, found: Mapping[str, Any], bank: jax.Array, batch: Batch, train: bool) -> jax.Array:
        """v·(M + Δ)ᵀ: dot products with the rows of the bank as SSP changes them for each clip."""
        logits = super().similar(found, bank, batch, train)
        if not self.sequence_prompt:
            return logits
        tokens = found["tokens"]
        flat = tokens.reshape(*tokens.shape[:2], -1)
        mean = masked_mean(flat, batch.frame_mask).reshape(tokens.shape[0], *tokens.shape[2:])
        change = self.sequence(bank, self.tower.project(mean), train)
        return logits + jnp.einsum("be,bce->bc", found["projected"], change, precision=jax.lax.Precision.HIGHEST)


VALUES = {
    **family_values("temporal"),
    **SENTENCE_VALUES,
    **IMAGE_VALUES,
    "bank": one_of(BANKS),
    **under("ssp", {"form": one_of(FORMS), "depth": whole(0), "self_attention": flag}),
    "temporal.diffusion": flag,
    "weights.frame_identity": non_negative,
}


class TFClip(ClipFamily):
    """See the module's docstring."""

    values = VALUES
    released = tf_clip.RELEASED

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        yield from super().contradictions(config)
        for key, names in (("triplet.features", config.triplet.features), ("embedding", config.embedding)):
            if "temporal" in names and not config.temporal.diffusion:
                yield f"config.{key} has 'temporal', the feature of the branch that config.temporal.diffusion=True adds"
        if config.ssp.form == "simple" and config.ssp.self_attention:
            yield "config.ssp.self_attention=True is not in the simple form: set config.ssp.form='full'"
        if config.bank == "prompt":
            yield from prompt_faults(config)

    def make_network(self) -> TFClipNetwork:
        config, ssp = self.config, self.config.ssp
        decoder = partial(PromptDecoder, ssp.depth, self_attention=ssp.self_attention, simple=ssp.form == "simple")
        return TFClipNetwork(
            **self.shared(),
            classified=("last", "projected", *(("temporal",) if config.temporal.diffusion else ())),
            text=prompted(config, self.info, self.text) if config.bank == "prompt" else None,
            frames=config.temporal.diffusion,
            sequence_prompt=decoder if ssp.depth else None,
        )

    def make_bank(self) -> Bank:
        if self.config.bank == "prompt":
            return self.prompt_bank()
        return ImageBank(self.config, self.info, self.joint_width, self.plain_features)


METHOD = TFClip
