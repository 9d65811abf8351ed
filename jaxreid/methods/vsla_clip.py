"""VSLA-CLIP: CLIP-ReID on clips, where adapters, platform prompts and heads train and the tower stays.

Zhang et al., "Cross-Platform Video Person ReID: A New Benchmark Dataset and Adaptation Approach", ECCV 2024. Every
block has two adapters, over a clip's frames and for every token; prompts of the camera or platform stand in the first
blocks. Beside CLIP-ReID's losses, the sentences of a batch are contrasted with its clips in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxreid.backbones.clip import VISION_TOWERS
from jaxreid.backbones.transformer import Adapters
from jaxreid.data.batch import Batch
from jaxreid.layers.adapters import TemporalAdapter, TokenAdapter
from jaxreid.layers.clip_tower import PlatformPrompts
from jaxreid.layers.conditions import COLUMNS
from jaxreid.losses.image_text import supervised_contrastive
from jaxreid.methods.class_banks import SENTENCE_VALUES, Bank, BankMemory
from jaxreid.methods.clip_family import ClipFamily, ClipNetwork, family_values, prompt_faults, prompted
from jaxreid.methods.released import vsla_clip
from jaxreid.values import flag, non_negative, some_of, under, whole

VALUES = {
    **family_values(),
    **SENTENCE_VALUES,
    **under("adapters", {"width": whole(0), "temporal": flag, "zero_init": flag}),
    **under("platform_prompts", {"blocks": whole(0), "length": whole(1), "columns": some_of(COLUMNS)}),
    **under("weights", dict.fromkeys(("image_to_text", "text_to_image"), non_negative)),
}


class VslaClip(ClipFamily):
    """See the module's docstring."""

    values = VALUES
    released = vsla_clip.RELEASED

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        yield from super().contradictions(config)
        yield from prompt_faults(config)
        width, heads = config.adapters.width, TemporalAdapter.heads
        if config.adapters.temporal and width % heads:
            yield f"config.adapters.width={width} must be a multiple of {heads}: the heads of config.adapters.temporal"
        depth = VISION_TOWERS[config.backbone.name].depth
        if config.platform_prompts.blocks > depth:
            yield f"config.platform_prompts.blocks={config.platform_prompts.blocks} of a tower of {depth} blocks"

    def make_network(self) -> ClipNetwork:
        return ClipNetwork(
            **self.shared(),
            adapters=self.adapters(),
            prompts=self.prompts(),
            text=prompted(self.config, self.info, self.text),
        )

    def adapters(self) -> Adapters:
        """x + attention(norm(x)) + over frames(x), then x + MLP(norm(x)) + of tokens(x)."""
        options = self.config.adapters
        if not options.width:
            return Adapters()
        made = partial(partial, zero_init=options.zero_init, dtype=self.image.dtype)
        over_frames = made(TemporalAdapter, options.width) if options.temporal else None
        return Adapters(beside_attention=over_frames, beside_mlp=made(TokenAdapter, options.width))

    def prompts(self) -> PlatformPrompts | None:
        deep = self.config.platform_prompts
        if not deep.blocks:
            return None
        return PlatformPrompts(tuple(deep.columns), len(self.info.cameras), deep.blocks, deep.length)

    def make_bank(self) -> Bank:
        return self.prompt_bank()

    def more_losses(
        self, found: Mapping[str, Any], logits: Mapping[str, jax.Array], memory: BankMemory, batch: Batch
    ) -> dict[str, tuple[Any, jax.Array]]:
        """L_i2t and L_t2i inside the batch; the sentences are constants."""
        w, y, valid = self.config.weights, batch.identity, batch.valid
        if not (w.image_to_text or w.text_to_image):
            return {}
        v, t = found["projected"], memory.bank[jnp.maximum(y, 0)]
        return {
            "image_to_text": (w.image_to_text, supervised_contrastive(v, t, y, valid)),
            "text_to_image": (w.text_to_image, supervised_contrastive(t, v, y, valid)),
        }


METHOD = VslaClip
