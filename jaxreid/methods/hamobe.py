"""HAMoBE: experts on the last blocks of a frozen CLIP, and gates that look at one video or at both of a pair.

Su, Shi, Liu and Liu (2025), "HAMoBE: Hierarchical and Adaptive Mixture of Biometric Experts for Video-based Person
ReID", ICCV 2025, arXiv 2508.05038; the temporal modules are EVL's (arXiv 2208.03550). Of the paper the abstract could
be read, of its code the model and the losses: modules, losses and recipe are the code's. That code describes gates of
two videos and never calls them: how these are trained and what they score is ours (docs/hamobe.md).

The network is `jaxreid.layers.hamobe`, in the same order as here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import path_aware_map

from jaxreid.arrays import row_cosines
from jaxreid.augment import Augmentation
from jaxreid.backbones.frame_encoder import backbone_config
from jaxreid.backbones.vit import ViTConfig
from jaxreid.data.batch import Batch
from jaxreid.data.samplers import RandomIdentitySampler
from jaxreid.dataset_info import DatasetInfo
from jaxreid.errors import UserError
from jaxreid.layers.hamobe import EXPERTS, HAMoBEConfig, HAMoBENetwork, pair_cost
from jaxreid.losses.consistency import between_clips, from_mean, within_clips
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.pairs import draw_pairs, pair_loss
from jaxreid.losses.triplet import batch_hard_triplet
from jaxreid.methods.clip_xfd import CAST
from jaxreid.methods.method import Backbone, Context, Examined, LossOutput, Method, Stage, Update, Variables
from jaxreid.methods.released import hamobe
from jaxreid.optimizers import Schedule, make_optimizer
from jaxreid.values import flag, fraction, non_negative, number, one_of, positive, some_of, under, whole

GATES = ("learned", "uniform")
MODES = ("pair_gate2", "pair_full")  # which gates see both videos of a pair: the second, or both
FROZEN = "^image_tower/"

VALUES = {
    **under("decoder", {"blocks": whole(1), "conv": flag, "position": flag, "bias": flag}),
    **under("experts", {"count": whole(1), "used": some_of(EXPERTS, least=1), "shared": flag}),
    **under("experts", {"normalize": flag, "dropout": number(0, below=1), "gait_heads": whole(1)}),
    **under("gates", {"first": one_of(GATES), "second": one_of(GATES), "heads": whole(1)}),
    "scale": positive,
    **under("weights", dict.fromkeys(("intra_canonical", "inter", "intra_appearance", "gait"), non_negative)),
    **under("weights", dict.fromkeys(("clothes", "triplet"), non_negative)),
    "triplet.margin": non_negative,
    **under("pair", {"probability": fraction, "weight": non_negative, "mode": one_of(MODES)}),
}


class HAMoBE(Method):
    """See the module's docstring."""

    uses_identity = True
    values = VALUES
    released = hamobe.RELEASED

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        if config.evaluation.seq_len != config.batch.seq_len:
            yield (
                f"config.evaluation.seq_len={config.evaluation.seq_len} must be "
                f"config.batch.seq_len={config.batch.seq_len}: frames have places in the decoder and in the second gate"
            )
        if config.weights.clothes and "appearance" not in config.experts.used:
            yield "config.weights.clothes tells outfits apart by the appearance expert, which config.experts.used lacks"

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        name, decoder, experts = config.backbone.name, config.decoder, config.experts
        tower = backbone_config(config.backbone, info.frame_size, config.precision)
        if not isinstance(tower, ViTConfig) or tower.register_tokens:
            raise UserError(
                f"config.backbone.name={name!r}: experts look at the class token and the patches of a ViT without "
                "registers, such as a CLIP's"
            )
        d = tower.width // 2
        for key, heads, width in (
            ("gates.heads", config.gates.heads, d),
            ("experts.gait_heads", experts.gait_heads, 3 * d // 2),
        ):
            if width % heads:
                raise UserError(f"config.{key}={heads} does not divide {width} channels, which {name!r} leads to")
        if decoder.blocks > tower.depth:
            raise UserError(f"config.decoder.blocks={decoder.blocks}, but {name!r} has {tower.depth} blocks")
        self.network_config = HAMoBEConfig(
            tower=tower,
            frames=config.batch.seq_len,
            num_classes=info.num_classes,
            blocks=decoder.blocks,
            conv=decoder.conv,
            position=decoder.position,
            bias=decoder.bias,
            count=experts.count,
            experts=tuple(name for name in EXPERTS if name in experts.used),
            shared=experts.shared,
            normalize=experts.normalize,
            gate1=config.gates.first == "learned",
            gate2=config.gates.second == "learned",
            scale=config.scale,
            outfits=self._outfits(),
            dropout=experts.dropout,
            gate_heads=config.gates.heads,
            gait_heads=experts.gait_heads,
        )
        self.network = HAMoBENetwork(self.network_config)

    def _outfits(self) -> int:
        """Classes of clothes, 0 where they are not told apart."""
        if not self.config.weights.clothes:
            return 0
        count = 0 if self.info.labels is None else int(self.info.labels.clothes.max()) + 1
        if not count:
            raise UserError(
                f"config.weights.clothes={self.config.weights.clothes}: {self.info.name} does not know which clothes "
                "its training tracklets show; set it to 0"
            )
        return count

    # --- 3.1: the tower, frozen -----------------------------------------------------------------------------------

    def backbones(self) -> tuple[Backbone, ...]:
        return (Backbone(("image_tower",), self.config.backbone.checkpoint, self.network_config.tower),)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """What the frozen tower uses in the compute type alone is held in it, once: the same numbers."""
        keys: dict[str, jax.Array] = dict(zip(("params", "dropout"), jax.random.split(rng), strict=True))
        variables = self.network.init(keys, batch, method="train_outputs")

        def held(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            name = "/".join(path)
            frozen = re.search(FROZEN, name) and re.search(CAST, name)
            return leaf.astype(self.network_config.tower.dtype) if frozen else leaf

        return {**variables, "params": path_aware_map(held, variables["params"])}

    # --- 5: training ----------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        config, batch = self.config, self.config.batch
        return (
            Stage(
                name="hamobe",
                epochs=config.epochs,
                loss=self.loss,
                sampler=RandomIdentitySampler(batch.num_identities, batch.num_instances),
                seq_len=batch.seq_len,
                piece_len=batch.piece_len,
                clip_sampling=batch.clip_sampling,
                augment=Augmentation(**config.augment),
                updates=(Update("all", make_optimizer(config.optimizer, FROZEN), Schedule(**config.schedule)),),
            ),
        )

    def partners(self, batch: Batch, rng: jax.Array) -> jax.Array | None:
        """Whom each clip meets in this step, i32[B]: with `pair.probability` as `draw_pairs` has it, otherwise itself,
        which is the same as nobody. None: never anybody else."""
        if not self.config.pair.probability:
            return None
        keys = jax.random.split(rng)
        drawn = draw_pairs(keys[0], batch.identity, batch.valid)
        meet = jax.random.bernoulli(keys[1], self.config.pair.probability)
        return jnp.where(meet, drawn, jnp.arange(len(drawn)))

    # --- 4: losses ------------------------------------------------------------------------------------------------

    def loss(self, variables: Variables, memory: Any, batch: Batch, context: Context) -> LossOutput:
        """L_id + L_intra(c) + L_inter(C) + L_intra(a) + L_gait(G), and ½ · L_pair of clips that meet another."""
        config, w, label, valid = self.config, self.config.weights, batch.identity, batch.valid
        pair_key, dropout_key = jax.random.split(context.rng)
        partner = self.partners(batch, pair_key)
        (found, logits), changed = self.network.apply(
            variables, batch, partner, method="train_outputs", mutable=["batch_stats"], rngs={"dropout": dropout_key}
        )
        frames, clips, feature = found["frames"], found["clips"], found["feature"]
        losses: dict[str, tuple[Any, jax.Array]] = {"identity": (1.0, cross_entropy(logits["identity"], label, valid))}
        if "canonical" in frames:
            losses["intra_canonical"] = w.intra_canonical, within_clips(frames["canonical"], valid)
            losses["inter"] = w.inter, between_clips(clips["canonical"], label, valid)
        if "appearance" in frames:
            losses["intra_appearance"] = w.intra_appearance, within_clips(frames["appearance"], valid)
        if "gait" in frames:
            losses["gait"] = w.gait, from_mean(frames["gait"], label, valid)
        if w.triplet:
            losses["triplet"] = w.triplet, batch_hard_triplet(feature, label, valid, config.triplet.margin, "cosine")
        if w.clothes:
            known = valid & (batch.clothes >= 0)
            outfit = jnp.maximum(batch.clothes, 0)
            losses["clothes"] = w.clothes, cross_entropy(logits["clothes"], outfit, known)
        if partner is not None:
            cosine = row_cosines(feature, feature[partner])
            met = valid & (partner != jnp.arange(len(partner)))
            losses["pair"] = config.pair.weight, pair_loss(cosine, label == label[partner], met, found["threshold"])
        out = LossOutput.weighted(losses, changed["batch_stats"], memory)
        return out.replace(metrics=out.metrics | self._sizes(clips, found["weights"], valid))

    def _sizes(self, clips: Mapping[str, jax.Array], weights: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
        """For the log: the mean length of each expert's features, which the consistency losses could shrink, and the
        mean weight that it has."""
        count = jnp.maximum(valid.sum(), 1)
        found = {}
        for place, (name, x) in enumerate(clips.items()):
            found[f"length_{name}"] = jnp.where(valid, jnp.linalg.norm(x, axis=-1), 0.0).sum() / count
            found[f"weight_{name}"] = jnp.where(valid, weights[:, place], 0.0).sum() / count
        return found

    # --- 7: inference ---------------------------------------------------------------------------------------------

    def embed(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, jax.Array]:
        """The embedding of clips that meet nobody, "feature" f32[B, 4·d]; of each expert alone f32[B, d] by its name;
        "tower", the mean of the frames' class tokens."""
        found: Any = self.network.apply(variables, batch, False)
        return {"tower": found["tower"], "feature": found["feature"], **found["clips"]}

    def pair_features(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, jax.Array]:
        """What `pair_score` needs of each clip, [B, …] by name: in mode "pair_gate2" the experts' features and what the
        second gate attends to, in mode "pair_full" the low-level experts' tokens and that of the first."""
        both = self.config.pair.mode == "pair_full"
        found: Any = self.network.apply(variables, batch, both, method="pair_features")
        return found

    def pair_score(self, variables: Variables, memory: Any, queries: Any, gallery: Any) -> jax.Array:
        """Pair features of N clips and of N others → f32[N]: the cosine of the embeddings of row i of the one and of
        row i of the other, each seen with the other."""
        embeddings, _ = self._of_pairs(variables, queries, gallery)
        return row_cosines(*jnp.split(embeddings, 2))

    def examine_pairs(self, variables: Variables, memory: Any, queries: Any, gallery: Any) -> dict[str, jax.Array]:
        """How much each expert counts in clips that see each other, in the mean of both."""
        _, weights = self._of_pairs(variables, queries, gallery)
        one, other = jnp.split(weights, 2)
        return {f"weight of the {name} expert": (one + other)[:, i] / 2 for i, name in enumerate(self.experts)}

    def _of_pairs(self, variables: Variables, queries: Any, gallery: Any) -> tuple[jax.Array, jax.Array]:
        found: Any = self.network.apply(variables, queries, gallery, method="pair_embeddings")
        return found

    @property
    def experts(self) -> tuple[str, ...]:
        return self.network_config.experts

    @property
    def pair_cost(self) -> int:
        """Operations of `pair_score` for one pair."""
        return pair_cost(self.network_config, self.config.pair.mode == "pair_full")

    @property
    def examines(self) -> bool:
        return True

    def examine(self, variables: Variables, memory: Any, batch: Batch) -> Examined:
        """How much each expert counts in a clip that meets nobody, and each low-level expert in its streams."""
        found: Any = self.network.apply(variables, batch, False)
        load = found["shares"].mean(axis=(1, 2, 4))
        figures = {f"weight of the {name} expert": found["weights"][:, i] for i, name in enumerate(self.experts)}
        figures |= {f"share of low-level expert {k + 1}": load[:, k] for k in range(load.shape[1])}
        return Examined(figures, (), batch.valid, ())


METHOD = HAMoBE
