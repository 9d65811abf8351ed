"""LSMRL: language-driven sequence-level modal-invariant representations for video visible-infrared re-identification.

Yang et al., "Learning Language-Driven Sequence-Level Modal-Invariant Representations for Video-Based Visible-Infrared
Person Re-Identification", arXiv 2601.12062 (2026).

Of the paper only the abstract could be read. The paper's, from there: three modules in the order STFL → SD → CMI; STFL
is CLIP's image encoder as a basic, then a spatial-temporal grouped, then a temporal patch shift encoder; SD diffuses
modality-shared language prompts into visible and infrared features; CMI is bidirectional cross-modal self-attention;
identity-level and two modality-level losses, one for discriminative power, one for unseen people.
Its ancestors': prompts, batches, clips, base losses and optimiser are VLD's (arXiv 2506.02439), grouped heads are
ZeroI2V's, the mosaic of shifted patches is TPS's (pattern C), retrieval without the partner and its consistency loss
follow X-ReID, the modality probe DIRL and MITML.
Ours: where the blocks are split, two heads a direction, SD as attention to the bank of all training identities, CMI's
"solo" pass that inference can repeat, the weights of all losses but VLD's, and the embedding. Results of this module
are not a reproduction of the paper's figures.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.augment import Augmentation
from jaxreid.backbones.frame_encoder import encoder_config
from jaxreid.backbones.text import TextConfig, load_text_tokenizer, text_config
from jaxreid.backbones.transformer import Attend, Hooks, LayerNorm, attend
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.data.batch import Batch
from jaxreid.data.samplers import PairSampler
from jaxreid.data.schema import INFRARED, VISIBLE
from jaxreid.layers.batch_norm import Neck
from jaxreid.layers.cross_attention import ContextBlock
from jaxreid.layers.prompts import PromptedText, PromptTemplate
from jaxreid.layers.temporal import masked_mean
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.modality import hetero_centre_triplet, modality_confusion
from jaxreid.losses.triplet import weighted_triplet
from jaxreid.memory.prototypes import unit_rows
from jaxreid.methods.clip_reid import parameter_groups
from jaxreid.methods.method import (
    Backbone,
    DatasetInfo,
    Features,
    Method,
    Optimiser,
    Progress,
    Schedule,
    Stage,
    Update,
    Variables,
)

# --- STFL: spatial-temporal feature learning ------------------------------------------------------------------------


def grouped_attention(frames: int, heads: int, mode: str) -> Attend:
    """Attention in which some heads look at other frames; no new parameter.

    "shift": `heads` of them take keys and values from the frame before, as many from the frame after, the clip's ends
    from themselves; on frames that are all the same this is CLIP. "tube": 2 · `heads` attend over all frames at their
    own position.
    """

    def shifted(x: jax.Array) -> jax.Array:
        clip = x.reshape(-1, frames, *x.shape[1:])  # [B, T, L, H, d]
        before = jnp.concatenate([clip[:, :1], clip[:, :-1]], axis=1)[..., :heads, :]
        after = jnp.concatenate([clip[:, 1:], clip[:, -1:]], axis=1)[..., heads : 2 * heads, :]
        return jnp.concatenate([before, after, clip[..., 2 * heads :, :]], axis=-2).reshape(x.shape)

    def tubes(x: jax.Array, tokens: int) -> jax.Array:
        clip = x[:, :tokens, : 2 * heads].reshape(-1, frames, tokens, 2 * heads, x.shape[-1])
        return clip.swapaxes(1, 2).reshape(-1, frames, 2 * heads, x.shape[-1])

    def shift(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, shifted(k), shifted(v))

    def tube(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        tokens = q.shape[1]
        over_time = attend(*(tubes(x, tokens) for x in (q, k, v))).reshape(-1, tokens, frames, 2 * heads, q.shape[-1])
        over_time = over_time.swapaxes(1, 2).reshape(-1, tokens, 2 * heads, q.shape[-1])
        return jnp.concatenate([over_time, attend(*(x[:, :, 2 * heads :] for x in (q, k, v)))], axis=2)

    if mode not in ("shift", "tube"):
        raise ValueError(f"grouped_mode={mode!r} is neither 'shift' nor 'tube'")
    return shift if mode == "shift" else tube


SHIFTS = np.array([[-4, 1, 2], [-1, 0, 3], [-2, -3, 4]])  # frames by which patches of a 3×3 mosaic move (TPS, C)


def shift_table(frames: int, grid: tuple[int, int]) -> np.ndarray:
    """i32[T, P]: the frame from which patch (i, j) of frame t comes, (t − s(i, j)) mod T; patches row-major."""
    rows, columns = np.indices(grid)
    return ((np.arange(frames)[:, None] - SHIFTS[rows % 3, columns % 3].reshape(-1)) % frames).astype(np.int32)


def shift_patches(x: jax.Array, table: np.ndarray) -> jax.Array:
    """Tokens [N, 1 + P, ...] of clips of T frames with every patch taken from its frame in the table; the class token
    stays, and so does everything where there are no patches."""
    if x.shape[1] == 1:
        return x
    frames, patches = table.shape
    clip = x[:, 1:].reshape(-1, frames, patches, int(np.prod(x.shape[2:])))
    moved = jnp.take_along_axis(clip, jnp.asarray(table)[None, :, :, None], axis=1)
    return jnp.concatenate([x[:, :1], moved.reshape(x.shape[0], patches, *x.shape[2:])], axis=1)


def patch_shift_attention(frames: int, grid: tuple[int, int]) -> Attend:
    """Temporal patch shift: attention within mosaics of patches from all frames, whose result moves back."""
    there = shift_table(frames, grid)
    back = (2 * np.arange(frames)[:, None] - there) % frames  # (t + s) mod T

    def shifted(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return shift_patches(attend(*(shift_patches(x, there) for x in (q, k, v))), back)

    return shifted


def stfl_attention(image: ViTConfig, split: tuple[int, int, int], mode: str, frames: int) -> dict[int, Attend]:
    """What stands in place of attention, by block: `split` numbers the blocks of the three encoders."""
    basic, grouped, shifted = split
    if sum(split) != image.depth:
        raise ValueError(f"stfl_split={split} for a tower of {image.depth} blocks")
    heads = max(1, image.heads // 6)  # 2 of 12 in each direction
    by_group = grouped_attention(frames, heads, mode)
    by_shift = patch_shift_attention(frames, image.grid)
    return dict.fromkeys(range(basic, basic + grouped), by_group) | dict.fromkeys(
        range(basic + grouped, basic + grouped + shifted), by_shift
    )


# --- SD: semantic diffusion -----------------------------------------------------------------------------------------


class SemanticDiffusion(nn.Module):
    """Every frame describes itself as a mixture of all training identities' sentences. Its own identity's sentence is
    no input, so nothing leaks in training and nothing is missing at test; new, it changes nothing."""

    heads: int

    @nn.compact
    def __call__(self, p: jax.Array, bank: jax.Array) -> jax.Array:
        """Projected frames p [B, T, E], bank [C, E] → h f32[B, T, E]."""
        z = LayerNorm(1e-5, name="norm_bank")(unit_rows(jax.lax.stop_gradient(bank)))
        flat = p.reshape(1, -1, p.shape[-1])
        q = LayerNorm(1e-5, name="norm_query")(flat)
        return ContextBlock(self.heads, name="attention")(flat, q, z[None]).reshape(p.shape)


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
      image, split, grouped_mode: the image tower and its three encoders.
      text: text tower and template.
      identities: C.
      heads: of SD and CMI.
      use_sd, use_cmi: whether these modules exist.
      modality_classes: outputs of the modality probe.
    """

    image: ViTConfig
    split: tuple[int, int, int]
    grouped_mode: str
    text: tuple[TextConfig, PromptTemplate]
    identities: int
    heads: int
    use_sd: bool
    use_cmi: bool
    modality_classes: int

    def setup(self):
        self.image_tower = ViT(self.image)
        self.prompted_text = PromptedText(*self.text, self.identities, name="text")
        if self.use_sd:
            self.diffusion = SemanticDiffusion(self.heads)
        if self.use_cmi:
            self.interaction = CrossModalInteraction(self.heads)
        self.necks = {name: Neck(self.identities, use_bias=True) for name in ("last", "projected", "sequence")}
        width, classes = self.image.projection, self.modality_classes
        self.modality_kernel = self.param("modality_kernel", nn.initializers.normal(0.001), (width, classes))
        self.modality_bias = self.param("modality_bias", nn.initializers.zeros, (classes,))

    def __call__(self, batch: Batch) -> dict[str, jax.Array]:
        """Everything once, which makes the parameters."""
        found = self.encode(batch, self.prompted_text.bank(), train=False)
        for name, neck in self.necks.items():
            neck(found["solo" if name == "sequence" else name], batch.valid, False)
        return found

    def bank(self, multiple: int) -> jax.Array:
        """Z [C, E]: the sentences of all identities, shared by the modalities (section 3.2)."""
        return self.prompted_text.bank(multiple)

    def encode(self, batch: Batch, bank: jax.Array, train: bool, pairs: bool = False) -> dict[str, jax.Array]:
        """frames [B, T, H, W, 3] → a "penultimate", f "last", p "projected", r "solo", each f32[B, ·]; with `pairs`,
        where rows 2k and 2k + 1 show one person in both modalities, also r "pair"."""
        clips, length = batch.frames.shape[:2]
        mask = batch.frame_mask
        out = self.image_tower(
            batch.frames.reshape(clips * length, *batch.frames.shape[2:]),
            train=train,
            class_token_only=True,
            taps=(-2,),
            hooks=Hooks(attention=stfl_attention(self.image, self.split, self.grouped_mode, length)),
        )
        frame_features = {
            "penultimate": out["taps"][0].tokens[:, 0],
            "last": out["class_token"],
            "projected": out["projected"],
        }
        by_clip = {name: x.reshape(clips, length, -1) for name, x in frame_features.items()}
        found = {name: masked_mean(x, mask) for name, x in by_clip.items()}
        h = by_clip["projected"].astype(jnp.float32)
        if self.use_sd:
            h = self.diffusion(h, bank)
        found["solo"] = masked_mean(self.interaction(h, mask) if self.use_cmi else h, mask)
        if pairs and self.use_cmi:
            u = self.interaction(h.reshape(clips // 2, 2 * length, -1), mask.reshape(clips // 2, -1))
            found["pair"] = masked_mean(u.reshape(h.shape), mask)
        return found

    def normed(self, f: jax.Array, r: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """f and r as the batch norms of their necks leave them, with running statistics."""
        f = self.necks["last"].norm(f, batch.valid, use_running_average=True)
        return f, self.necks["sequence"].norm(r, batch.valid, use_running_average=True)


class LSMRLMemory(flax.struct.PyTreeNode):
    text_bank: jax.Array  # f32[C, E], Z of the parameters after the last epoch: test clips need no text tower


# --- The method -----------------------------------------------------------------------------------------------------


class LSMRL(Method):
    """See the module's docstring."""

    uses_identity = True

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        backbone, prompt = config.backbone, config.prompt
        image = encoder_config(backbone.name, info.frame_size, config.precision, backbone.remat)
        if not isinstance(image, ViTConfig) or image.projection is None:
            raise ValueError(f"backbone.name={backbone.name!r} has no joint space with a text tower; take a CLIP")
        if config.evaluation.rule == "packed":
            raise ValueError("evaluation.rule='packed' leaves clips unfilled, and this tower mixes a clip's frames")
        if config.embedding_neck not in ("before", "after"):
            raise ValueError(f"embedding_neck={config.embedding_neck!r} is neither 'before' nor 'after'")
        missing = {VISIBLE, INFRARED} - set(np.unique(info.table.modality).tolist())
        if missing:
            raise ValueError(f"{info.name}: training needs visible and infrared tracklets of the same people")
        self.image, self.text = image, text_config(backbone.name, dtype=image.dtype, remat=backbone.remat)
        tokenizer = load_text_tokenizer(backbone.name, config.text.tokenizer or None)
        self.network = LSMRLNetwork(
            image=image,
            split=tuple(config.stfl_split),
            grouped_mode=config.grouped_mode,
            text=(self.text, PromptTemplate.of_text(prompt.template, tokenizer, prompt.n_ctx)),
            identities=info.num_identities,
            heads=config.heads,
            use_sd=config.use_sd and config.use_text,
            use_cmi=config.use_cmi,
            modality_classes=3 if config.mod_mode == "third" else 2,
        )

    def stages(self) -> tuple[Stage, ...]:
        config, batch = self.config, self.config.batch
        groups = parameter_groups(config.optimiser, frozen=r"^(text/tower|image_tower/patch_embedding)/")
        optimiser = Optimiser("adamw", groups, config.optimiser.clip_norm)
        return (
            Stage(
                name="lsmrl",
                epochs=config.epochs,
                sampler=PairSampler(batch.identities, batch.clips, batch.steps),
                frames=batch.frames,
                augment=Augmentation(**config.augment),
                updates=(Update("all", optimiser, Schedule(**config.schedule)),),
                refresh_after=True,
            ),
        )

    def backbones(self) -> tuple[Backbone, ...]:
        return (
            Backbone(("image_tower",), self.config.backbone.checkpoint, self.image),
            Backbone(("text", "tower"), self.config.text.checkpoint, self.text),
        )

    def notes(self) -> tuple[str, ...]:
        return (
            "Supervised: identity labels of the training tracklets were used.",
            "Below the level of the paper's abstract the method is a design after its ancestors (docs/lsmrl.md).",
        )

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        return self.network.init(rng, batch)

    def init_memory(self) -> LSMRLMemory:
        return LSMRLMemory(jnp.zeros((self.info.num_identities, self.image.projection)))

    def refresh(
        self,
        variables: Variables,
        memory: LSMRLMemory,
        features: Features | None,
        rng: jax.Array,
        progress: Progress,
        stage: Stage,
    ) -> LSMRLMemory:
        """The text bank of the parameters as they are now."""
        bank: Any = self.network.apply(variables, self.config.prompt.multiple, method="bank")
        return memory.replace(text_bank=bank)

    def loss(
        self,
        variables: Variables,
        memory: LSMRLMemory,
        batch: Batch,
        rng: jax.Array,
        progress: Progress,
        stage: Stage,
        update: str,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any, LSMRLMemory]]:
        """Section 4: VLD's losses, those of the sequence features r, and the modality-level losses."""
        config, y, valid, stable = self.config, batch.identity, batch.valid, self.config.wrt_stable

        def forward(network: LSMRLNetwork) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]:
            bank = network.bank(config.prompt.multiple) if config.use_text else memory.text_bank
            found = network.encode(batch, bank, train=True, pairs=True)
            of = {"last": "last", "projected": "projected", "pair": "sequence", "solo": "sequence"}
            heads = {name: network.necks[neck](found[name], valid, True) for name, neck in of.items() if name in found}
            return found, heads, bank

        (found, logits, bank), changed = self.network.apply(
            variables, method=forward, mutable=["batch_stats"], rngs={"dropout": rng}
        )
        a, f, p, r = (found[name] for name in ("penultimate", "last", "projected", "solo"))
        probe = variables["params"]["modality_kernel"], variables["params"]["modality_bias"]

        def ce(scores: jax.Array) -> jax.Array:
            return cross_entropy(scores, y, valid)

        def wrt(x: jax.Array) -> jax.Array:
            return weighted_triplet(x, y, valid, stable)

        losses = {"ce": (1.0, ce(logits["last"]) + ce(logits["projected"])), "wrt": (1.0, wrt(a) + wrt(f) + wrt(p))}
        if config.use_text:
            of_text = ce(jnp.matmul(p, bank.T, precision=jax.lax.Precision.HIGHEST))  # not normalised, as in VLD
            losses["text"] = (config.lambda_text, of_text)
        if self.network.use_sd or self.network.use_cmi:
            losses["sequence"] = (1.0, ce(logits["solo"]) + wrt(r))
        if "pair" in found:
            losses["pair"] = (1.0, ce(logits["pair"]))
            apart = unit_rows(r) - jax.lax.stop_gradient(unit_rows(found["pair"]))
            losses["cons"] = (config.lambda_cons, _mean(jnp.sum(apart**2, axis=-1), valid))
        if config.lambda_hct:
            hct = hetero_centre_triplet(unit_rows(r), y, batch.modality, valid, config.hct_margin)
            losses["hct"] = (config.lambda_hct, hct)
        if config.lambda_mod:
            on = config.lambda_mod * (progress.fraction >= config.mod_from)
            confusion, probing = modality_confusion(r, *probe, batch.modality, valid, config.mod_mode)
            losses |= {"mod": (on, confusion), "probe": (on, probing)}
        total = sum(weight * value for weight, value in losses.values())
        metrics = {f"loss_{name}": value for name, (_, value) in losses.items()}
        return total, (metrics, changed["batch_stats"], memory)  # pyright: ignore[reportReturnType]

    def embed(self, variables: Variables, memory: LSMRLMemory, batch: Batch) -> dict[str, jax.Array]:
        """ "feature": f and r of the tracklet alone, before or after their batch norms (`config.embedding_neck`), both
        of unit length, side by side; the same function for both modalities (section 7). "tower": f."""
        found: Any = self.network.apply(variables, batch, memory.text_bank, False, method="encode")
        parts: Any = found["last"], found["solo"]
        if self.config.embedding_neck == "after":
            parts = self.network.apply(variables, *parts, batch, method="normed")
        return {"tower": found["last"], "feature": jnp.concatenate([unit_rows(x) for x in parts], axis=-1)}


def _mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    return jnp.where(valid, values, 0.0).sum() / jnp.maximum(valid.sum(), 1)


METHOD = LSMRL
