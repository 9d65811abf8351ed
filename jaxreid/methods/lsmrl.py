"""LSMRL: language-driven sequence-level modal-invariant representations for video visible-infrared re-identification.

Yang et al., "Learning Language-Driven Sequence-Level Modal-Invariant Representations for Video-Based Visible-Infrared
Person Re-Identification", arXiv 2601.12062 (2026).

Of the paper only the abstract could be read. The paper's, from there: three modules in the order STFL → SD → CMI; STFL
is CLIP's image encoder as a basic, then a spatial-temporal grouped, then a temporal patch shift encoder; SD diffuses
modality-shared language prompts into visible and infrared features; CMI is bidirectional cross-modal self-attention;
identity-level and two modality-level losses, one for discriminative power, one for unseen people.
Its ancestors': prompts, batches, clips, base losses and optimizer are VLD's (arXiv 2506.02439), grouped heads are
ZeroI2V's, the mosaic of shifted patches is TPS's (pattern C), retrieval without the partner and its consistency loss
follow X-ReID, the modality probe DIRL and MITML.
Ours: where the blocks are split, two heads a direction, SD as attention to the bank of all training identities, CMI's
"solo" pass that inference can repeat, the weights of all losses but VLD's, and the embedding. Results of this module
are not a reproduction of the paper's figures. STFL is `jaxreid.layers.stfl`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import masked_mean, unit_rows
from jaxreid.augment import Augmentation
from jaxreid.backbones.clip import VISION_TOWERS
from jaxreid.backbones.frame_encoder import clip_configs
from jaxreid.backbones.text import TEXT_TOWERS, TextConfig
from jaxreid.backbones.transformer import LayerNorm
from jaxreid.backbones.vit import ViTConfig
from jaxreid.data.batch import Batch
from jaxreid.data.samplers import PairSampler
from jaxreid.data.schema import INFRARED, VISIBLE
from jaxreid.dataset_info import DatasetInfo
from jaxreid.errors import UserError
from jaxreid.layers.clip_tower import ClipTower
from jaxreid.layers.cross_attention import ContextBlock
from jaxreid.layers.neck import NECKS, Necks
from jaxreid.layers.prompts import PromptedText, PromptTemplate, template_faults
from jaxreid.layers.stfl import GROUPED_MODES, SHIFT_MODES, stfl_hooks
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.image_text import FIRST_SCALE, LARGEST_SCALE
from jaxreid.losses.modality import (
    hetero_centre_triplet,
    modality_confusion,
    modality_discrepancy,
    modality_margin,
)
from jaxreid.losses.triplet import weighted_triplet
from jaxreid.methods.class_banks import PROMPT_VALUES, BankMemory, PromptBank
from jaxreid.methods.method import Backbone, Context, LossOutput, Method, Stage, Update, Variables
from jaxreid.methods.released import vld
from jaxreid.optimizers import Schedule, make_optimizer
from jaxreid.values import flag, fraction, non_negative, one_of, series, whole

PROBES = {"uniform": 2, "third": 3, "mmd": 0}  # mod_gen → outputs of the modality probe

VALUES = {
    **PROMPT_VALUES,
    "backbone.name": one_of(TEXT_TOWERS),
    "stfl_split": series(whole(0), length=3),
    "grouped_mode": one_of(GROUPED_MODES),
    "tps_mode": one_of(SHIFT_MODES),
    "neck_feat": one_of(NECKS),
    "sd_mode": one_of(("attend", "append")),
    "sd_tokens": one_of(("cls", "all")),
    "cmi_test": one_of(("solo", "skip")),
    "mod_disc": one_of(("hct", "mma")),
    "mod_gen": one_of(PROBES),
    "mod_start_fraction": fraction,
    **dict.fromkeys(("sd_top", "heads"), whole(1)),
    **dict.fromkeys(("use_text", "use_sd", "use_cmi", "v2t_norm", "two_stage", "wrt_stable"), flag),
    **dict.fromkeys(("lambda_text", "lambda_cons", "lambda_hct", "lambda_mod", "hct_margin"), non_negative),
}

# --- SD: semantic diffusion -----------------------------------------------------------------------------------------


class SemanticDiffusion(nn.Module):
    """Every frame attends to the sentences of all training identities. Its own label is no input, so nothing leaks in
    training and nothing is missing in tests. A new module changes nothing.

    Attributes:
      heads: of the attention.
      mode: "attend" to the whole bank; or "append": the frame attends to its tokens and to the `top` sentences that are
        most like it (after TF-CLIP).
      tokens: "cls", or "all": all tokens attend, and the mean of what that adds is added to the frame's feature.
    """

    heads: int
    mode: str = "attend"
    tokens: str = "cls"
    top: int = 8

    @nn.compact
    def __call__(self, tokens: jax.Array, bank: jax.Array) -> jax.Array:
        """Projected tokens of frames, the class token first [N, L, E], bank [C, E] → h f32[N, E]."""
        bank = unit_rows(jax.lax.stop_gradient(bank))
        block, norm_query = ContextBlock(self.heads, name="attention"), LayerNorm(1e-5, name="norm_query")
        z = LayerNorm(1e-5, name="norm_bank")(bank)
        x = tokens if self.tokens == "all" else tokens[:, :1]
        if self.mode == "append":
            likeness = jnp.matmul(unit_rows(tokens[:, 0]), bank.T, precision=jax.lax.Precision.HIGHEST)
            _, nearest = jax.lax.top_k(likeness, min(self.top, len(bank)))
            h = block(x, norm_query(x), jnp.concatenate([norm_query(tokens), z[nearest]], axis=1))
        else:
            flat = x.reshape(1, -1, x.shape[-1])
            h = block(flat, norm_query(flat), z[None]).reshape(x.shape)
        return h[:, 0] if self.tokens == "cls" else tokens[:, 0] + (h - tokens).mean(axis=1)


# --- CMI: cross-modal interaction -----------------------------------------------------------------------------------


class CrossModalInteraction(nn.Module):
    """Self-attention over the frames of a visible and an infrared tracklet of one person ("pair"), or of one tracklet
    alone ("solo"), with the same weights; no order in time."""

    heads: int

    @nn.compact
    def __call__(self, u: jax.Array, mask: jax.Array) -> jax.Array:
        """Frames [N, L, E], mask bool[N, L] of frames that count → f32[N, L, E]."""
        n = LayerNorm(1e-5, name="norm_input")(u)
        return ContextBlock(self.heads, name="attention")(u, n, n, mask[:, None, None, :])


# --- The network ----------------------------------------------------------------------------------------------------


class LSMRLNetwork(nn.Module):
    """STFL, the language side, SD, CMI, and the heads.

    Attributes:
      image, split, grouped_mode, tps_mode: the image tower and its three encoders.
      text: text tower and template.
      num_classes: C, training identities.
      num_heads: of SD and CMI.
      use_sd, use_cmi: whether these modules exist.
      sd_mode, sd_tokens, sd_top: SD's.
      modality_classes: outputs of the modality probe, 0 = none.
      text_scale: whether similarities to sentences are cosines with a learned scale.
    """

    image: ViTConfig
    split: tuple[int, int, int]
    grouped_mode: str
    tps_mode: str
    text: tuple[TextConfig, PromptTemplate]
    num_classes: int
    num_heads: int
    use_sd: bool
    use_cmi: bool
    sd_mode: str
    sd_tokens: str
    sd_top: int
    modality_classes: int
    text_scale: bool

    def setup(self):
        # Parts share the network's scope: parameters are named as if they were its own.
        self.tower = ClipTower(self.image)
        nn.share_scope(self, self.tower)
        self.heads = Necks(self.num_classes, ("last", "projected", "sequence"), use_bias=True)
        nn.share_scope(self, self.heads)
        self.prompted_text = PromptedText(*self.text, self.num_classes, name="text")
        if self.use_sd:
            self.diffusion = SemanticDiffusion(self.num_heads, self.sd_mode, self.sd_tokens, self.sd_top)
        if self.use_cmi:
            self.interaction = CrossModalInteraction(self.num_heads)
        width, classes = self.image.projection, self.modality_classes
        if classes:
            self.modality_kernel = self.param("modality_kernel", nn.initializers.normal(0.001), (width, classes))
            self.modality_bias = self.param("modality_bias", nn.initializers.zeros, (classes,))
        if self.text_scale:  # the logarithm, from where CLIP's own started
            self.logit_scale = self.param("logit_scale", nn.initializers.constant(FIRST_SCALE), ())

    def __call__(self, batch: Batch) -> dict[str, jax.Array]:
        """Everything once, which makes the parameters."""
        found = self.encode(batch, self.prompted_text.bank(), train=False)
        self.heads(found | {"sequence": found["solo"]}, batch.valid, False)
        return found

    def bank(self, multiple: int) -> jax.Array:
        """Z [C, E]: the sentences of all identities, shared by the modalities."""
        return self.prompted_text.bank(multiple)

    def sentences(self, identity: jax.Array) -> jax.Array:
        return self.prompted_text(identity)

    def text_logits(self, p: jax.Array, bank: jax.Array) -> jax.Array:
        """Similarities f32[B, C] of p [B, E] to Z [C, E]: dot products as in VLD, or scaled cosines."""
        if self.text_scale:
            p, bank = jnp.exp(jnp.minimum(self.logit_scale, LARGEST_SCALE)) * unit_rows(p), unit_rows(bank)
        return jnp.matmul(p, bank.T, precision=jax.lax.Precision.HIGHEST)

    def encode(self, batch: Batch, bank: jax.Array, train: bool, pairs: bool = False) -> dict[str, jax.Array]:
        """frames [B, T, H, W, 3] → a "penultimate", f "last", p "projected", h "diffused", r "solo", each f32[B, ·];
        with `pairs`, where rows 2k and 2k + 1 show one person in both modalities, also r "pair"."""
        clips, length = batch.frames.shape[:2]
        mask = batch.frame_mask
        all_tokens = self.use_sd and (self.sd_tokens == "all" or self.sd_mode == "append")
        hooks = stfl_hooks(self.image, self.split, self.grouped_mode, self.tps_mode, length)
        frames = self.tower(batch, train, all_tokens=all_tokens, hooks=hooks)
        found: dict[str, jax.Array] = frames.pooled(masked_mean, masked_mean, mask)
        h = frames.projected.astype(jnp.float32)
        if self.use_sd:
            tokens = frames.projected[:, :, None] if frames.tokens is None else self.tower.project(frames.tokens)
            tokens = tokens.reshape(clips * length, *tokens.shape[2:])
            h = self.diffusion(tokens.astype(jnp.float32), bank).reshape(h.shape)
        found["diffused"] = masked_mean(h, mask)
        found["solo"] = masked_mean(self.interaction(h, mask), mask) if self.use_cmi else found["diffused"]
        if pairs and self.use_cmi:
            u = self.interaction(h.reshape(clips // 2, 2 * length, -1), mask.reshape(clips // 2, -1))
            found["pair"] = masked_mean(u.reshape(h.shape), mask)
        return found

    def logits(self, found: dict[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """Identity logits of f, p and both forms of r, which share a neck, in training."""
        of = {"last": "last", "projected": "projected", "pair": "sequence", "solo": "sequence"}
        return {
            name: self.heads.neck(neck)(found[name], batch.valid, True) for name, neck in of.items() if name in found
        }

    def normed(self, f: jax.Array, r: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """f and r as the batch norms of their necks leave them, with running statistics."""
        of = self.heads.normed({"last": f, "sequence": r}, batch.valid)
        return of["last"], of["sequence"]


# --- The method -----------------------------------------------------------------------------------------------------


class LSMRL(Method):
    """See the module's docstring."""

    uses_identity = True
    values = VALUES
    released = vld.RELEASED  # its ancestor's: of its own, nothing was released

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        name, split = config.backbone.name, tuple(config.stfl_split)
        tower = VISION_TOWERS[name]
        if config.evaluation.clip_sampling == "packed":
            yield "config.evaluation.clip_sampling='packed' leaves clips unfilled, and this tower mixes a clip's frames"
        if config.two_stage and not config.use_text:
            yield "config.two_stage=True learns words that config.use_text=False does not use: change one of them"
        if sum(split) != tower.depth:
            yield f"config.stfl_split={split} must add up to the {tower.depth} blocks of config.backbone.name={name!r}"
        if tower.projection and tower.projection % config.heads:
            yield f"config.heads={config.heads} must divide the {tower.projection} channels of {name!r}'s joint space"
        yield from template_faults(config.prompt.template, config.prompt.n_ctx)

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        prompt = config.prompt
        image, text = clip_configs(config.backbone, info.frame_size, config.precision)
        missing = {VISIBLE, INFRARED} - set(np.unique(info.table.modality).tolist())
        if missing:
            raise UserError(f"{info.name}: training needs visible and infrared tracklets of the same people")
        self.image, self.text = image, text
        assert info.tokenize is not None
        self.network = LSMRLNetwork(
            image=image,
            split=tuple(config.stfl_split),
            grouped_mode=config.grouped_mode,
            tps_mode=config.tps_mode,
            text=(self.text, PromptTemplate.of_text(prompt.template, info.tokenize, prompt.n_ctx)),
            num_classes=info.num_classes,
            num_heads=config.heads,
            use_sd=config.use_sd and config.use_text,
            use_cmi=config.use_cmi,
            sd_mode=config.sd_mode,
            sd_tokens=config.sd_tokens,
            sd_top=config.sd_top,
            modality_classes=PROBES[config.mod_gen],
            text_scale=config.v2t_norm,
        )
        multiple = config.prompt.pad_to_multiple_of
        self.bank = PromptBank(
            config,
            info,
            text.projection,
            self.features,
            sentences=lambda variables, identity: self.network.apply(variables, identity, method="sentences"),  # pyright: ignore
            rows=lambda variables: self.network.apply(variables, multiple, method="bank"),  # pyright: ignore
        )

    def stages(self) -> tuple[Stage, ...]:
        config, batch = self.config, self.config.batch
        words = "text" if config.two_stage else "text/tower"
        optimizer = make_optimizer(config.optimizer, frozen=rf"^({words}|image_tower/patch_embedding)/")
        main = Stage(
            name="lsmrl",
            epochs=config.epochs,
            loss=self.loss,
            sampler=PairSampler(batch.num_identities, batch.num_pairs, batch.steps_per_epoch, aligned=batch.aligned),
            seq_len=batch.seq_len,
            clip_sampling=batch.clip_sampling,
            augment=Augmentation(**config.augment),
            updates=(Update("all", optimizer, Schedule(**config.schedule)),),
            refresh_after=None if config.two_stage else self.bank.fill,  # otherwise the sentences are constants
        )
        return self.bank.stages(main) if config.two_stage else (main,)

    def backbones(self) -> tuple[Backbone, ...]:
        weights = self.config.backbone.checkpoint
        return Backbone(("image_tower",), weights, self.image), Backbone(("text", "tower"), weights, self.text)

    def notes(self) -> tuple[str, ...]:
        return (
            *super().notes(),
            "Below the level of the paper's abstract the method is a design after its ancestors (docs/lsmrl.md).",
        )

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        return self.network.init(rng, batch)

    def init_memory(self) -> BankMemory:
        """Z of the parameters after the last epoch: test clips need no text tower."""
        return self.bank.init()

    def features(self, variables: Variables, memory: BankMemory, batch: Batch) -> dict[str, jax.Array]:
        """p of the starting tower, with STFL, for words that have a stage of their own."""
        found: Any = self.network.apply(variables, batch, memory.bank, False, method="encode")
        return {"projected": found["projected"]}

    def loss(self, variables: Variables, memory: BankMemory, batch: Batch, context: Context) -> LossOutput:
        """VLD's losses, those of the sequence features r, and the modality-level losses."""
        config, y, valid, stable = self.config, batch.identity, batch.valid, self.config.wrt_stable

        learns_words = config.use_text and not config.two_stage

        def forward(network: LSMRLNetwork) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]:
            bank = network.bank(config.prompt.pad_to_multiple_of) if learns_words else memory.bank
            found = network.encode(batch, bank, train=True, pairs=True)
            return found, network.logits(found, batch), network.text_logits(found["projected"], bank)

        (found, logits, of_text), changed = self.network.apply(
            variables, method=forward, mutable=["batch_stats"], rngs={"dropout": context.rng}
        )
        a, f, p, r = (found[name] for name in ("penultimate", "last", "projected", "solo"))

        def ce(scores: jax.Array) -> jax.Array:
            return cross_entropy(scores, y, valid)

        def wrt(x: jax.Array) -> jax.Array:
            return weighted_triplet(x, y, valid, stable)

        losses = {"ce": (1.0, ce(logits["last"]) + ce(logits["projected"])), "wrt": (1.0, wrt(a) + wrt(f) + wrt(p))}
        if config.use_text:
            losses["text"] = (config.lambda_text, ce(of_text))
        if self.network.use_sd or self.network.use_cmi:
            losses["sequence"] = (1.0, ce(logits["solo"]) + wrt(r))
        if "pair" in found:
            losses["pair"] = (1.0, ce(logits["pair"]))
            apart = unit_rows(r) - jax.lax.stop_gradient(unit_rows(found["pair"]))
            losses["cons"] = (config.lambda_cons, masked_mean(jnp.sum(apart**2, axis=-1), valid))
        if config.lambda_hct and config.mod_disc == "hct":
            hct = hetero_centre_triplet(unit_rows(r), y, batch.modality, valid, config.hct_margin)
            losses["hct"] = (config.lambda_hct, hct)
        elif config.lambda_hct:
            losses["mma"] = (config.lambda_hct, modality_margin(r, y, batch.modality, valid))
        on = config.lambda_mod * (context.progress.fraction >= config.mod_start_fraction)
        if config.lambda_mod and config.mod_gen == "mmd":
            losses["mmd"] = (on, modality_discrepancy(unit_rows(r), batch.modality, valid))
        elif config.lambda_mod:
            probe = variables["params"]["modality_kernel"], variables["params"]["modality_bias"]
            confusion, probing = modality_confusion(r, *probe, batch.modality, valid, config.mod_gen)
            losses |= {"mod": (on, confusion), "probe": (on, probing)}
        return LossOutput.weighted(losses, changed["batch_stats"], memory)

    def embed(self, variables: Variables, memory: BankMemory, batch: Batch) -> dict[str, jax.Array]:
        """ "feature": f and r of the tracklet alone, or with `cmi_test="skip"` f and h, before or after their batch
        norms (`config.neck_feat`), both of unit length, side by side; the same function for both modalities.
        "tower": f."""
        found: Any = self.network.apply(variables, batch, memory.bank, False, method="encode")
        parts: Any = found["last"], found["solo" if self.config.cmi_test == "solo" else "diffused"]
        if self.config.neck_feat == "after":
            parts = self.network.apply(variables, *parts, batch, method="normed")
        return {"tower": found["last"], "feature": jnp.concatenate([unit_rows(x) for x in parts], axis=-1)}


METHOD = LSMRL
