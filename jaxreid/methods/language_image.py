"""Contrastive language-image training of two towers on tracklets and their captions: how the small CLIP is made.

Radford et al. (2021), "Learning Transferable Visual Models From Natural Language Supervision", on clips: the mean of a
clip's frames in the joint space against its tracklet's caption, symmetric cross entropy with a learned temperature.
With a learning rate of 0 for the image tower's blocks only its projection learns (Zhai et al. (2022), "LiT:
Zero-Shot Transfer with Locked-image text Tuning"). Tracklets with the same caption are matches of each other.

No identity label is used: captions say what people wear, and two people may be dressed alike.
"""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import masked_mean, unit_rows
from jaxreid.augment import Augmentation
from jaxreid.backbones.frame_encoder import clip_configs
from jaxreid.backbones.text import TEXT_TOWERS, TextConfig, TextTower
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.data.batch import Batch
from jaxreid.data.samplers import LabelSampler
from jaxreid.dataset_info import DatasetInfo
from jaxreid.devices.parallel import constrain
from jaxreid.errors import UserError
from jaxreid.losses.image_text import FIRST_SCALE, LARGEST_SCALE, matching_loss
from jaxreid.methods.method import Backbone, Context, LossOutput, Method, Stage, Update, Variables
from jaxreid.optimizers import Schedule, make_optimizer
from jaxreid.values import flag, fraction, one_of, under, whole


class TwoTowers(nn.Module):
    """An image and a text tower with a common space."""

    image: ViTConfig
    text: TextConfig

    def setup(self):
        self.image_tower, self.text_tower = ViT(self.image), TextTower(self.text)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(FIRST_SCALE), ())

    def embed_clips(self, batch: Batch, train: bool) -> jax.Array:
        """frames [B, T, H, W, 3] → f32[B, E], the mean of the frames in the joint space."""
        clips, length = batch.frames.shape[:2]
        frames = batch.frames.reshape(clips * length, *batch.frames.shape[2:])
        projected = self.image_tower(frames, train=train, class_token_only=True)["projected"]
        return masked_mean(projected.reshape(clips, length, -1), batch.frame_mask)

    def embed_texts(self, ids: jax.Array, train: bool) -> jax.Array:
        """Ids i32[B, L] → f32[B, E]."""
        return self.text_tower(ids, train=train)["projected"]

    def __call__(self, batch: Batch, ids: jax.Array, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        return self.embed_clips(batch, train), self.embed_texts(ids, train), self.logit_scale


class Captions(flax.struct.PyTreeNode):
    """Every different caption as ids, in several wordings, and which one each tracklet has."""

    ids: jax.Array  # i32[C, V, L]
    caption: jax.Array  # i32[N]


VALUES = {
    "backbone.name": one_of(TEXT_TOWERS),
    "batch.batch_size": whole(1),
    **under("text", {"pretrained": flag, "wordings": whole(1), "keep": fraction}),
}


class LanguageImage(Method):
    """See the module's docstring."""

    uses_captions = True
    values = VALUES

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        image, text = clip_configs(config.backbone, info.frame_size, config.precision)
        self.network = TwoTowers(image, text)

    def stages(self) -> tuple[Stage, ...]:
        config = self.config
        return (
            Stage(
                name="language_image",
                epochs=config.epochs,
                loss=self.loss,
                sampler=LabelSampler(config.batch.batch_size, num_instances=1, parts=1),
                seq_len=config.batch.seq_len,
                augment=Augmentation(**config.augment),
                updates=(Update("all", make_optimizer(config.optimizer), Schedule(**config.schedule)),),
            ),
        )

    def backbones(self) -> tuple[Backbone, ...]:
        weights = self.config.backbone.checkpoint
        return (
            Backbone(("image_tower",), weights, self.network.image),
            Backbone(("text_tower",), weights if self.config.text.pretrained else "", self.network.text),
        )

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        return self.network.init(rng, batch, jnp.zeros((1, 2), jnp.int32), train=False)

    def init_memory(self) -> Captions:
        assert self.info.captions is not None and self.info.tokenize is not None
        if silent := self.info.captions.count(()):
            raise UserError(
                f"{self.info.name}: {silent} of {len(self.info.captions)} training tracklets have no caption, and this "
                "method learns from one of each: complete the sidecar (jaxreid import-sidecar captions)"
            )
        texts, caption = np.unique([first for first, *_ in self.info.captions], return_inverse=True)
        options, rng = self.config.text, np.random.default_rng(self.config.seed)
        wordings = [shortened(text, options.wordings, options.keep, rng) for text in texts.tolist()]
        ids = self.info.tokenize(list(itertools.chain(*wordings)), context=self.network.text.context)
        longest = int((ids != 0).sum(1).max())  # what follows the end changes nothing
        ids = ids[:, :longest].reshape(len(texts), options.wordings, longest)
        return Captions(jnp.asarray(ids), jnp.asarray(caption.reshape(-1).astype(np.int32)))

    def sampling_labels(self, memory: Captions) -> jax.Array:
        return jnp.arange(len(memory.caption), dtype=jnp.int32)

    def loss(self, variables: Variables, memory: Captions, batch: Batch, context: Context) -> LossOutput:
        caption = memory.caption[jnp.maximum(batch.tracklet, 0)]
        wording = jax.random.randint(context.rng, caption.shape, 0, memory.ids.shape[1])
        found: Any = self.network.apply(variables, batch, memory.ids[caption, wording], train=True)
        image, text, scale = found
        image, text, caption, valid = constrain((image, text, caption, batch.valid), "replicated")
        logits = jnp.exp(jnp.minimum(scale, LARGEST_SCALE)) * unit_rows(image) @ unit_rows(text).T
        match = caption[:, None] == caption[None, :]
        by_image = matching_loss(logits, match, valid)
        by_text = matching_loss(logits.T, match, valid)
        metrics = {"loss_image_to_text": by_image, "loss_text_to_image": by_text}
        return LossOutput(0.5 * (by_image + by_text), metrics, variables.get("batch_stats", {}), memory)

    def embed(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, jax.Array]:
        """ "feature" is the mean of the frames in the joint space."""
        found = self.network.apply(variables, batch, False, method="embed_clips")
        return {"feature": found}  # pyright: ignore[reportReturnType]


def shortened(text: str, count: int, keep: float, rng: np.random.Generator) -> list[str]:
    """`count` wordings of a caption: itself, then ones in which every part between commas stays with probability
    `keep` (the first always does, it names the person)."""
    first, *others = text.split(", ")
    wordings = [text]
    for _ in range(count - 1):
        wordings.append(", ".join([first, *(part for part in others if rng.random() < keep)]))
    return wordings


METHOD = LanguageImage
