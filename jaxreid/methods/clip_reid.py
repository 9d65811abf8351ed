"""The CLIP-ReID family: image features classified against a bank in CLIP's joint space, beside identity and triplet.

CLIP-ReID   Li et al., "CLIP-ReID: Exploiting Vision-Language Model for Image Re-Identification without Concrete Text
            Labels", AAAI 2023: the bank is the text tower on prompts that a first stage learns.
VSLA-CLIP   Zhang et al., "Cross-Platform Video Person ReID: A New Benchmark Dataset and Adaptation Approach", ECCV
            2024: adapters, platform prompts and heads train, the tower stays.
TF-CLIP     Yu et al., "TF-CLIP: Learning Text-free CLIP for Video-based Person Re-Identification", AAAI 2024: the
            bank is made of image features, changed for each clip; a temporal branch.
CLIMB-ReID  Yu et al., "CLIMB-ReID: A Hybrid CLIP-Mamba Framework for Person Re-Identification", AAAI 2025: of it the
            bank, two rows per identity that follow the image features; its Mamba branch is not here.

One class: the members differ in where the rows of the bank come from and in what is trained, which their configs say.
A clip's features are means over its frames: "penultimate" (class token before the last block), "last"
(after the last norm), "projected" (in the joint space); with the temporal branch also "temporal".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, get_args

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean, unit_rows
from jaxreid.augment import Augmentation
from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.backbones.clip import VISION_TOWERS
from jaxreid.backbones.frame_encoder import clip_configs
from jaxreid.backbones.text import TEXT_TOWERS, TextConfig
from jaxreid.backbones.transformer import Adapters, Hooks
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.data.batch import Batch
from jaxreid.data.clips import RULES
from jaxreid.data.samplers import IdentitySampler, RandomIdentitySampler
from jaxreid.dataset_info import DatasetInfo
from jaxreid.devices.parallel import constrain
from jaxreid.layers.adapters import TemporalAdapter, TokenAdapter
from jaxreid.layers.conditions import COLUMNS, condition, condition_rows
from jaxreid.layers.neck import NECKS, Neck
from jaxreid.layers.prompt_decoder import PromptDecoder
from jaxreid.layers.prompts import DeepPrompts, PromptedText, PromptTemplate, template_faults
from jaxreid.layers.tf_clip import TemporalMemoryDiffusion
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.image_text import proxy_contrast, supervised_contrastive
from jaxreid.losses.triplet import Metric, batch_hard_triplet
from jaxreid.memory.class_bank import build_proxies, image_memory, move_proxies
from jaxreid.methods import prompt_learning
from jaxreid.methods.method import Backbone, Extraction, Features, Method, Stage, Update, Variables
from jaxreid.methods.prompt_learning import feature_rows, kept_features, prompt_losses, prompt_stage
from jaxreid.optimizers import Progress, Schedule, make_optimizer
from jaxreid.values import flag, non_negative, number, one_of, positive, series, some_of, under, whole, word

BANKS = ("prompt", "image_memory", "ema_memory")
SAMPLERS = {"groups": RandomIdentitySampler, "balanced": IdentitySampler}
FEATURES = ("penultimate", "last", "projected")  # of every frame


class ClipReIDNetwork(nn.Module):
    """The image tower with what the family adds to it, the necks, and the text tower where the bank is made of text.

    Attributes:
      image: the image tower.
      num_classes: C, training identities.
      classified: features that have a neck and a classifier.
      adapters: of the image tower's blocks.
      side_information: rows of the table that is added to the class token (SIE), 0 = none.
      side_strength: what it is multiplied with.
      deep_prompts: (blocks, rows) of the prompts of the first blocks, (0, 0) = none.
      diffusion: whether there is the temporal branch.
      sequence_prompt: depth of the module that changes the bank for each clip, 0 = none; and its self-attention.
      text: text tower and template, where the bank is made of text.
    """

    image: ViTConfig
    num_classes: int
    classified: tuple[str, ...]
    adapters: Adapters = Adapters()
    side_information: int = 0
    side_strength: float = 1.0
    deep_prompts: tuple[int, int] = (0, 0)
    diffusion: bool = False
    sequence_prompt: int = 0
    sequence_self_attention: bool = False
    text: tuple[TextConfig, PromptTemplate] | None = None

    def setup(self):
        self.image_tower = ViT(self.image, self.adapters)
        self.necks = {name: Neck(self.num_classes) for name in self.classified}
        if self.side_information:
            init, shape = nn.initializers.truncated_normal(0.02), (self.side_information, self.image.width)
            self.side_table = self.param("side_table", init, shape)
        if any(self.deep_prompts):
            blocks, rows = self.deep_prompts
            self.platform_prompts = DeepPrompts(blocks, rows, 1, self.image.width)
        if self.diffusion:
            self.temporal = TemporalMemoryDiffusion(self.image.heads)
            self.frame_norm = MaskedBatchNorm(use_bias=False)
        if self.sequence_prompt:
            self.sequence = PromptDecoder(self.sequence_prompt, self_attention=self.sequence_self_attention)
        if self.text:
            self.prompted_text = PromptedText(*self.text, self.num_classes, name="text")

    def __call__(self, batch: Batch, rows: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        """Everything once, which makes the parameters."""
        found = self.encode(batch, rows, train=False)
        self.logits(found, batch, train=False)
        self.bank_logits(found, jnp.zeros((self.num_classes, found["projected"].shape[-1])), batch, train=False)
        if self.text:
            self.prompted_text(jnp.zeros(1, jnp.int32))
        return found

    def encode(
        self, batch: Batch, rows: tuple[jax.Array, jax.Array], train: bool, plain: bool = False
    ) -> dict[str, jax.Array]:
        """frames [B, T, H, W, 3] → clip features by name f32[B, ·]; for the modules that need them also "tokens"
        [B, T, L, D] and "frames" f32[B, T, D].

        Args:
          rows: i32[B] each, rows of the side information's table and of the deep prompts; −1 = unknown.
          plain: CLIP's tower as it was: no adapters, prompts or side information, and no temporal branch.
        """
        clips, length = batch.frames.shape[:2]
        side, prompt = (jnp.repeat(row, length) for row in rows)
        bias = prompts = None
        if self.side_information and not plain:
            bias = jnp.where(side[:, None] >= 0, self.side_strength * self.side_table[side], 0.0)
        if any(self.deep_prompts) and not plain:
            prompts = self.platform_prompts(prompt)
        needs_tokens = (self.diffusion or self.sequence_prompt > 0) and not plain
        out = self.image_tower(
            batch.frames.reshape(clips * length, *batch.frames.shape[2:]),
            train=train,
            class_token_only=not needs_tokens,
            taps=(-2,),
            class_bias=bias,
            hooks=Hooks(frame_mask=batch.frame_mask, prompts=prompts, adapt=not plain),
        )
        values = out["taps"][0].tokens[:, 0], out["class_token"], out["projected"]
        frame_features = dict(zip(FEATURES, values, strict=True))
        found = {
            name: masked_mean(x.reshape(clips, length, -1), batch.frame_mask) for name, x in frame_features.items()
        }
        if needs_tokens:
            found["tokens"] = out["tokens"].reshape(clips, length, *out["tokens"].shape[1:])
        if self.diffusion and not plain:
            found["temporal"], found["frames"] = self.temporal(found["tokens"], batch.frame_mask)
        return found

    def logits(self, found: dict[str, jax.Array], batch: Batch, train: bool) -> dict[str, jax.Array]:
        """Clip features → identity logits f32[B, C] by name; "frames" f32[B·T, C] share the clip's classifier."""
        logits = {name: neck(found[name], batch.valid, train) for name, neck in self.necks.items()}
        if self.diffusion:
            seen = (batch.frame_mask & batch.valid[:, None]).reshape(-1)
            frames = found["frames"].reshape(len(seen), -1)
            frames = self.frame_norm(frames, seen, use_running_average=not train)
            logits["frames"] = self.necks["temporal"].classifier(frames)
        return logits

    def normed(self, found: dict[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """Clip features by name as the batch norms of the necks leave them, with their running statistics."""
        return {
            name: neck.norm(found[name], batch.valid, use_running_average=True) for name, neck in self.necks.items()
        }

    def bank_logits(self, found: dict[str, jax.Array], bank: jax.Array, batch: Batch, train: bool) -> jax.Array:
        """Dot products of "projected" with the rows of the bank [C, E], f32[B, C]; neither is normalized."""
        v, precision = found["projected"], jax.lax.Precision.HIGHEST
        logits = jnp.matmul(v, bank.T, precision=precision)
        if self.sequence_prompt:
            tokens = found["tokens"]
            flat = tokens.reshape(*tokens.shape[:2], -1)
            mean = masked_mean(flat, batch.frame_mask).reshape(tokens.shape[0], *tokens.shape[2:])
            change = self.sequence(bank, self.image_tower.project(mean), train)
            logits = logits + jnp.einsum("be,bce->bc", v, change, precision=precision)
        return logits

    def texts(self, identity: jax.Array) -> jax.Array:
        return self.prompted_text(identity)

    def text_bank(self, multiple: int) -> jax.Array:
        return self.prompted_text.bank(multiple)


class BankMemory(flax.struct.PyTreeNode):
    bank: jax.Array  # f32[C, E], a row per identity; of "ema_memory" f32[2C, E], mean and hard proxies
    features: jax.Array | None  # f32[N·parts, E], what the prompt stage learns from


VALUES = {
    **prompt_learning.VALUES,
    "member": word,
    "bank": one_of(BANKS),
    "label_smoothing": number(0, below=1),
    "backbone.name": one_of(TEXT_TOWERS),
    "batch.sampler": one_of(SAMPLERS),
    "prompt.shared_ctx": series(whole(0), length=2),
    **under("memory", {"seq_len": whole(1), "clip_sampling": one_of(RULES), "per_sample": flag}),
    **under("memory", {"momentum": number(0, below=1), "temperature": positive}),
    **under("ssp", {"depth": whole(0), "self_attention": flag}),
    "temporal.diffusion": flag,
    **under("adapters", {"width": whole(0), "temporal": flag, "zero_init": flag}),
    **under("sie", {"columns": some_of(COLUMNS), "strength": non_negative}),
    **under("platform_prompts", {"blocks": whole(0), "columns": some_of(COLUMNS)}),
    **dict.fromkeys(("triplet.features", "embedding"), some_of((*FEATURES, "temporal"), least=1)),
    "neck_feat": one_of(NECKS),
    **under("triplet", {"metric": one_of(get_args(Metric)), "margin": non_negative, "soft_margin": flag}),
    **under("weights", dict.fromkeys(("identity", "triplet", "bank", "frame_identity"), non_negative)),
    **under("weights", dict.fromkeys(("image_to_text", "text_to_image"), non_negative)),
}


class ClipReID(Method):
    """See the module's docstring."""

    uses_identity = True
    values = VALUES

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        if config.neck_feat == "after" and "penultimate" in config.embedding:
            yield "config.embedding has 'penultimate', which has no neck: take config.neck_feat='before'"
        for key, names in (("triplet.features", config.triplet.features), ("embedding", config.embedding)):
            if "temporal" in names and not config.temporal.diffusion:
                yield f"config.{key} has 'temporal', the feature of the branch that config.temporal.diffusion=True adds"
        width, heads = config.adapters.width, TemporalAdapter.heads
        if config.adapters.temporal and width % heads:
            yield f"config.adapters.width={width} must be a multiple of {heads}: the heads of config.adapters.temporal"
        depth = VISION_TOWERS[config.backbone.name].depth
        if config.platform_prompts.blocks > depth:
            yield f"config.platform_prompts.blocks={config.platform_prompts.blocks} of a tower of {depth} blocks"
        if config.bank == "prompt":
            yield from template_faults(config.prompt.template, config.prompt.n_ctx + sum(config.prompt.shared_ctx))

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        image, text = clip_configs(config.backbone, info.frame_size, config.precision)
        self.image, self.text = image, None
        self.moves_bank = config.bank == "ema_memory"
        if config.bank == "prompt":
            self.text = text
            assert info.tokenize is not None
            prompt = config.prompt
            template = PromptTemplate.of_text(prompt.template, info.tokenize, prompt.n_ctx, prompt.shared_ctx)
        side, deep = config.sie, config.platform_prompts
        width = config.adapters.width
        self.network = ClipReIDNetwork(
            image=image,
            num_classes=info.num_classes,
            classified=("last", "projected", *(("temporal",) if config.temporal.diffusion else ())),
            adapters=Adapters(
                beside_attention=_adapter(TemporalAdapter, width, config, image) if config.adapters.temporal else None,
                beside_mlp=_adapter(TokenAdapter, width, config, image),
            )
            if width
            else Adapters(),
            side_information=condition_rows(side.columns, len(info.cameras)) if side.columns else 0,
            side_strength=side.strength,
            deep_prompts=(deep.blocks, condition_rows(deep.columns, len(info.cameras))) if deep.blocks else (0, 0),
            diffusion=config.temporal.diffusion,
            sequence_prompt=config.ssp.depth if config.bank == "image_memory" else 0,
            sequence_self_attention=config.ssp.self_attention,
            text=(self.text, template) if self.text else None,
        )

    def rows(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Rows i32[B] of the side information's table and of the deep prompts."""
        config, cameras = self.config, len(self.info.cameras)
        side = condition(batch, config.sie.columns, cameras)
        return side, condition(batch, config.platform_prompts.columns, cameras)

    # --- the run ------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        config, batch = self.config, self.config.batch
        main = Stage(
            name="main",
            epochs=config.epochs,
            sampler=SAMPLERS[batch.sampler](batch.num_identities, batch.num_instances),
            seq_len=batch.seq_len,
            clip_sampling=batch.clip_sampling,
            piece_len=batch.piece_len,
            augment=Augmentation(**config.augment),
            updates=(Update("all", make_optimizer(config.optimizer, frozen=r"^text/"), Schedule(**config.schedule)),),
            extraction=None if self.text else self.bank_extraction(),
        )
        if not self.text:
            return (main,)
        return prompt_stage(config.stage1, main.augment), main

    def bank_extraction(self) -> Extraction:
        """The clips that a bank of image features is made of: once, or of the tower as it is before every epoch."""
        memory = self.config.memory
        return Extraction(1 if self.moves_bank else 0, 0, memory.seq_len, clip_sampling=memory.clip_sampling)

    def backbones(self) -> tuple[Backbone, ...]:
        weights = self.config.backbone.checkpoint
        image = Backbone(("image_tower",), weights, self.image)
        return (image, Backbone(("text", "tower"), weights, self.text)) if self.text else (image,)

    def notes(self) -> tuple[str, ...]:
        return ("Supervised: identity labels of the training tracklets were used.",)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        return self.network.init(rng, batch, self.rows(batch))

    # --- the bank -----------------------------------------------------------------------------------------------

    def init_memory(self) -> BankMemory:
        width, rows = self.image.projection, len(self.info.table) * self.config.stage1.clips_per_tracklet
        features = jnp.zeros((rows, width)) if self.text else None
        proxies = 2 if self.moves_bank else 1
        return BankMemory(jnp.zeros((proxies * self.info.num_classes, width)), features)

    def extract(self, variables: Variables, memory: BankMemory, batch: Batch, stage: Stage) -> dict[str, jax.Array]:
        """Features in the joint space: of the tower as it was or, where the bank follows training, as it is."""
        found: Any = self.network.apply(
            variables, batch, self.rows(batch), False, plain=not self.moves_bank, method="encode"
        )
        return {"projected": found["projected"]}

    def refresh(
        self,
        variables: Variables,
        memory: BankMemory,
        features: Features | None,
        rng: jax.Array,
        progress: Progress,
        stage: Stage,
    ) -> BankMemory:
        """The bank from image features, or from the prompts as they are now."""
        if features is None:
            bank: Any = self.network.apply(variables, self.config.prompt.pad_to_multiple_of, method="text_bank")
            return memory.replace(bank=bank)
        if memory.features is not None:
            return memory.replace(
                features=kept_features(features, memory.features, self.config.stage1.clips_per_tracklet)
            )
        assert self.info.labels is not None
        identity = jnp.asarray(self.info.labels.identity)
        build = build_proxies if self.moves_bank else image_memory
        bank = build(features.arrays["projected"], features.tracklet, features.valid, identity, self.info.num_classes)
        return memory.replace(bank=bank)

    # --- the losses ---------------------------------------------------------------------------------------------

    def loss(
        self,
        variables: Variables,
        memory: BankMemory,
        batch: Batch,
        rng: jax.Array,
        progress: Progress,
        stage: Stage,
        update: str,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any, BankMemory]]:
        if stage.name == "prompts":
            assert memory.features is not None
            v = memory.features[feature_rows(batch, self.config.stage1.clips_per_tracklet)]
            t: Any = self.network.apply(variables, jnp.maximum(batch.identity, 0), method="texts")
            losses, stats = prompt_losses(v, t, batch), variables["batch_stats"]
        else:
            losses, stats, memory = self.main_losses(variables, memory, batch, rng)
        metrics = {f"loss_{name}": value for name, (_, value) in losses.items()}
        return sum(weight * value for weight, value in losses.values()), (metrics, stats, memory)  # pyright: ignore

    def main_losses(
        self, variables: Variables, memory: BankMemory, batch: Batch, rng: jax.Array
    ) -> tuple[dict[str, tuple[Any, Any]], Any, BankMemory]:
        """Stage 2: ({name: (weight, value)}, new batch statistics, new memory)."""
        config, w, y, valid = self.config, self.config.weights, batch.identity, batch.valid

        def forward(network: ClipReIDNetwork) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]:
            found = network.encode(batch, self.rows(batch), train=True)
            return found, network.logits(found, batch, True), network.bank_logits(found, memory.bank, batch, True)

        (found, logits, bank_logits), changed = self.network.apply(
            variables, method=forward, mutable=["batch_stats"], rngs={"dropout": rng}
        )
        smoothing, triplet = config.label_smoothing, config.triplet
        of_identity = [cross_entropy(logits[name], y, valid, smoothing) for name in self.network.classified]
        of_triplets = [
            batch_hard_triplet(found[name], y, valid, triplet.margin, triplet.metric, triplet.soft_margin)
            for name in triplet.features
        ]
        losses = {
            "identity": (w.identity, sum(of_identity)),
            "triplet": (w.triplet, sum(of_triplets)),
            "bank": (w.bank, cross_entropy(bank_logits, y, valid, smoothing)),
        }
        if w.image_to_text or w.text_to_image:
            t = memory.bank[jnp.maximum(y, 0)]
            losses["image_to_text"] = (w.image_to_text, supervised_contrastive(found["projected"], t, y, valid))
            losses["text_to_image"] = (w.text_to_image, supervised_contrastive(t, found["projected"], y, valid))
        if "frames" in logits:
            frames = batch.frame_mask.shape[1]
            seen = (batch.frame_mask & valid[:, None]).reshape(-1)
            of_frames = cross_entropy(logits["frames"], jnp.repeat(y, frames), seen, smoothing)
            losses["frame_identity"] = (w.frame_identity / frames, of_frames)
        if self.moves_bank:
            x, options = constrain(unit_rows(found["projected"]), "replicated"), config.memory
            losses["bank"] = (w.bank, proxy_contrast(x, memory.bank, y, valid, options.temperature))
            moved = move_proxies(memory.bank, x, y, valid, options.momentum, options.per_sample)
            memory = memory.replace(bank=jax.lax.stop_gradient(moved))
        return losses, changed["batch_stats"], memory

    def embed(self, variables: Variables, memory: BankMemory, batch: Batch) -> dict[str, jax.Array]:
        """ "feature": the parts of `config.embedding` side by side, before or after their batch norms as
        `config.neck_feat` says; the longer part weighs more. "tower": the class token alone."""
        found: Any = self.network.apply(variables, batch, self.rows(batch), False, method="encode")
        of: Any = found
        if self.config.neck_feat == "after":
            of = self.network.apply(variables, found, batch, method="normed")
        parts = [of[name] for name in self.config.embedding]
        return {"tower": found["last"], "feature": jnp.concatenate(parts, axis=-1)}


def _adapter(kind: Any, width: int, config: Any, image: ViTConfig) -> Any:
    return partial(kind, width, zero_init=config.adapters.zero_init, dtype=image.dtype)


METHOD = ClipReID
