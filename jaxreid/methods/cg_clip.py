"""CG-CLIP: captions of the training people refine the memory that features are compared with.

Hamano, Wakasugi, Sato and Nakamura (2026), caption-guided CLIP for video person re-identification, arXiv 2604.07740.

Of the paper only the abstract could be read. The paper's, from there: Caption-guided Memory Refinement (CMR), where
captions that a multi-modal language model wrote refine features of identities; Token-based Feature Extraction (TFE),
where a fixed number of learned tokens gathers features over space and time by cross-attention; sets of people who look
alike. Layers, losses and recipe are this library's design on TF-CLIP (Yu et al., AAAI 2024), the method that the paper
compares with: CMR takes the place of its Sequence-Specific Prompt, TFE that of its Temporal Memory Diffusion. Results
of this module are not a reproduction of the paper's figures (docs/cg_clip.md).

Captions are read in training alone: a test clip has none, and its features need no text tower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.backbones.text import TEXT_TOWERS, TextConfig
from jaxreid.data.batch import Batch
from jaxreid.devices.parallel import constrain
from jaxreid.layers.captions import CaptionTower
from jaxreid.layers.prompt_decoder import PromptDecoder
from jaxreid.layers.token_extraction import TokenExtraction
from jaxreid.losses.image_text import supervised_contrastive
from jaxreid.methods.caption_bank import LEVELS, SOURCES, CaptionBank, CaptionMemory, draw
from jaxreid.methods.class_banks import IMAGE_VALUES, Bank, BankMemory
from jaxreid.methods.clip_family import ClipFamily, family_values
from jaxreid.methods.method import Context, Variables
from jaxreid.methods.tf_clip import TFClipNetwork
from jaxreid.values import flag, fraction, non_negative, one_of, under, whole

CONTEXTS = ("caption", "caption+video")

# --- The network ------------------------------------------------------------------------------------------------------


class CGClipNetwork(TFClipNetwork):
    """The family's network with CMR and TFE; SSP (`sequence_prompt`) where clips, too, change the rows.

    Attributes:
      caption_refinement: CMR, None = none.
      token_extraction: TFE, None = none.
      caption_tower: the text tower on captions, None = no captions.
    """

    frames: bool = False
    sequence_prompt: Callable[[], nn.Module] | None = None
    caption_refinement: Callable[[], nn.Module] | None = None
    token_extraction: Callable[[], nn.Module] | None = None
    caption_tower: TextConfig | None = None

    def setup(self):
        super().setup()
        if self.caption_refinement:
            self.refinement = self.caption_refinement()
        if self.token_extraction:
            self.extraction = self.token_extraction()
        if self.caption_tower:
            self.caption_text = CaptionTower(self.caption_tower, name="text")

    def __call__(self, batch: Batch) -> dict[str, jax.Array]:
        """Everything once, which makes the parameters."""
        found = super().__call__(batch)
        if self.caption_tower:
            self.caption_text(jnp.zeros((1, 2), jnp.int32))
        if self.caption_refinement:
            rows = jnp.zeros((1, found["projected"].shape[-1]))
            self.refined(rows, rows[:, None], jnp.ones((1, 1), bool), train=False)
        return found

    def caption_tokens(self, ids: jax.Array) -> jax.Array:
        """Ids i32[N, L] → f32[N, L, E]."""
        return self.caption_text(ids)

    def refined(self, bank: jax.Array, tokens: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        """CMR: M̃ = M + α·Δ f32[C, E], where every row of M alone is the query, and the keys are the tokens of its own
        captions [R, S, E] with R ≥ C, of which bool[R, S] count; a row without any stays as it is. The work is split
        over devices by identity."""
        queries = jnp.pad(bank, ((0, len(tokens) - len(bank)), (0, 0)))[:, None]
        queries, tokens, mask = constrain((queries, tokens, mask), "rows")
        change = constrain(self.refinement(queries, tokens, train, mask), "replicated")
        return bank + change[: len(bank), 0]

    def encode(self, batch: Batch, train: bool) -> dict[str, Any]:
        """Clip features by name: "last", "projected", of TFE "temporal"; also "tokens" [B, T, L, D]."""
        looked_at = self.token_extraction is not None or self.sequence_prompt is not None
        frames = self.tower(batch, train, all_tokens=looked_at)
        found = self.clips(frames, batch) | {"tokens": frames.tokens}
        if self.token_extraction:
            found["temporal"] = self.extraction(frames.tokens, batch.frame_mask)
        return found


# --- The method -------------------------------------------------------------------------------------------------------

VALUES = {
    **family_values("temporal"),
    **IMAGE_VALUES,
    "memory.momentum": fraction,
    **under("captions", {"source": one_of(SOURCES), "level": one_of(LEVELS)}),
    **under("captions", dict.fromkeys(("per_identity", "pad_to_multiple_of"), whole(1)) | {"length": whole(3)}),
    **under("cmr", {"depth": whole(0), "alpha": non_negative, "context": one_of(CONTEXTS)}),
    **under("tfe", {"layers": whole(0), "queries": whole(1), "temporal_embed": flag, "stop_grad": flag}),
    "weights.caption_contrast": non_negative,
}


def looks_at_captions(config: Any) -> bool:
    """Whether a part of the method needs captions, be they of people or the template; else there is no text tower."""
    return bool(config.cmr.depth or config.weights.caption_contrast)


class CGClip(ClipFamily):
    """See the module's docstring."""

    uses_captions = True
    values = VALUES

    @classmethod
    def reads_captions(cls, config: Any) -> bool:
        return looks_at_captions(config) and config.captions.source != "template"

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        yield from super().contradictions(config)
        tfe, rule, context = config.tfe, config.evaluation, TEXT_TOWERS[config.backbone.name].context
        for key, names in (("triplet.features", config.triplet.features), ("embedding", config.embedding)):
            if "temporal" in names and not tfe.layers:
                yield f"config.{key} has 'temporal', the feature of TFE, which config.tfe.layers=0 takes out"
        if tfe.layers and tfe.temporal_embed and rule.seq_len > config.batch.seq_len:
            yield (
                f"config.evaluation.seq_len={rule.seq_len} is more than config.batch.seq_len={config.batch.seq_len}: "
                "frames beyond have no place in the clip; make them equal, or config.tfe.temporal_embed=False"
            )
        if config.captions.length > context:
            yield f"config.captions.length={config.captions.length}: this text tower takes up to {context} tokens"
        if config.cmr.context == "caption+video" and not config.cmr.depth:
            yield "config.cmr.context='caption+video' adds to what config.cmr.depth=0 takes out"

    def make_network(self) -> CGClipNetwork:
        config, cmr, tfe = self.config, self.config.cmr, self.config.tfe
        frames = config.batch.seq_len if tfe.temporal_embed else 0
        extraction = partial(TokenExtraction, self.image.heads, tfe.queries, tfe.layers, frames, tfe.stop_grad)
        return CGClipNetwork(
            **self.shared(),
            classified=("last", "projected", *(("temporal",) if tfe.layers else ())),
            sequence_prompt=PromptDecoder if cmr.context == "caption+video" else None,
            caption_refinement=partial(PromptDecoder, cmr.depth, alpha=cmr.alpha) if cmr.depth else None,
            token_extraction=extraction if tfe.layers else None,
            caption_tower=self.text if looks_at_captions(config) else None,
        )

    @property
    def has_text_tower(self) -> bool:
        return looks_at_captions(self.config)

    def make_bank(self) -> Bank:
        return CaptionBank(
            self.config,
            self.info,
            self.joint_width,
            self.plain_features,
            texts=self.caption_tokens,
            captions=looks_at_captions(self.config),
        )

    def caption_tokens(self, variables: Variables, ids: jax.Array) -> jax.Array:
        """Captions i32[N, L] in the joint space, token by token f32[N, L, E]; a few at a time."""

        def of_one(row: jax.Array) -> Any:
            return self.network.apply(variables, row[None], method="caption_tokens")[0]

        return jax.lax.map(of_one, ids, batch_size=64)

    def notes(self) -> tuple[str, ...]:
        notes = (
            *super().notes(),
            "Below the level of the paper's abstract the method is a design on TF-CLIP (docs/cg_clip.md).",
        )
        if not looks_at_captions(self.config):
            return (*notes, "No caption was used.")
        if not self.reads_captions(self.config):
            return (*notes, "Everybody had the same sentence in place of a caption.")
        of = "those of another person" if self.config.captions.source == "shuffled" else "their own"
        return (*notes, f"Captions were {of}; {self.coverage()}.")

    def coverage(self) -> str:
        """How many training people have captions, and how many."""
        if self.info.captions is None:
            return "how many people have some is not known"
        count = [len(texts) for texts in self.bank.of_identities]  # pyright: ignore[reportAttributeAccessIssue]
        silent = count.count(0)
        return f"{sum(count)} captions of {len(count) - silent} of {len(count)} training people, {silent} have none"

    def rows(self, network: Any, memory: Any, context: Context) -> jax.Array:
        """M̃: the memory as CMR refines it, the same for all clips; captions are drawn anew in every step."""
        bank = jax.lax.stop_gradient(memory.bank)
        if not self.config.cmr.depth:
            return bank
        tokens, mask = self.seen(memory, jax.random.fold_in(context.rng, 1))
        return network.refined(bank, jax.lax.stop_gradient(tokens), mask, train=True)

    def seen(self, memory: CaptionMemory, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens [R, S, E] that CMR looks at, and which of them there are bool[R, S]: all tokens of one caption of
        every identity or, at level "sentence", the end tokens of all of them."""
        if self.config.captions.level == "sentence":
            return memory.captions[:, :, 0], memory.length > 0
        chosen, count = draw(rng, memory.length)[:, None], self.bank.tokens  # pyright: ignore[reportAttributeAccessIssue]
        tokens = jnp.take_along_axis(memory.captions, chosen[..., None, None], axis=1)[:, 0, :count]
        return tokens, jnp.arange(count) < jnp.take_along_axis(memory.length, chosen, axis=1)

    def more_losses(
        self, found: Mapping[str, Any], logits: Mapping[str, jax.Array], memory: BankMemory, batch: Batch
    ) -> dict[str, tuple[Any, jax.Array]]:
        """Contrast of clips and captions, an option of ours: "projected" against the mean of its person's captions."""
        weight = self.config.weights.caption_contrast
        if not weight or not isinstance(memory, CaptionMemory):
            return {}
        y = jnp.maximum(batch.identity, 0)
        t = jax.lax.stop_gradient(memory.mean_end())[y]
        v, valid = found["projected"], batch.valid & (memory.length[y] > 0).any(axis=1)
        both = supervised_contrastive(v, t, batch.identity, valid) + supervised_contrastive(t, v, batch.identity, valid)
        return {"caption_contrast": (weight, both)}


METHOD = CGClip
