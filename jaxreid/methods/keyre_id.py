"""KeyRe-ID: key points of a person say which patches make the parts that are compared.

Kim et al. (2025), "KeyRe-ID: Keypoint-Guided Person Re-Identification using Part-Aware Representation in Videos",
arXiv 2507.07393, on VID-Trans-ReID (BMVC 2022). A ViT runs but for its last block; a global branch attends over the
frames of the clip, a local branch looks at the patches of all frames once for every part of the body, weighted by heat
maps of key points. Key points are needed in training and at test time. In the published code the weights miss their
patches and the sign of a weight is all that reaches the features; `local.layout="released"` reproduces that, the
default does what the paper's figure shows (docs/keyre_id.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import masked_mean
from jaxreid.augment import Augmentation
from jaxreid.backbones.frame_encoder import backbone_config
from jaxreid.backbones.transformer import TransformerConfig
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.data.batch import Batch
from jaxreid.data.extras import Extra
from jaxreid.data.samplers import IdentitySampler
from jaxreid.dataset_info import DatasetInfo
from jaxreid.errors import UserError
from jaxreid.geometry import COCO17
from jaxreid.layers.keypoint_parts import PARTS, Layout, clip_tokens, heat_maps, outside, patch_weights, shuffled
from jaxreid.layers.neck import Necks
from jaxreid.layers.part_attention import Gate, PartAttention
from jaxreid.losses.center import center_loss
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.triplet import Metric, batch_hard_triplet
from jaxreid.methods.method import Backbone, Context, Evaluation, LossOutput, Method, Phase, Stage, Update, Variables
from jaxreid.methods.released import keyre_id
from jaxreid.optimizers import Schedule, make_optimizer
from jaxreid.values import flag, fraction, non_negative, number, one_of, under

POINTS = 2 * len(COCO17) + 1
BRANCHES = ("both", "global", "local")


# --- The network ------------------------------------------------------------------------------------------------------


class TemporalAttention(nn.Module):
    """Frames weigh by what a convolution over time makes of them: a = ReLU(conv₃(ReLU(W g))), softmax over the clip."""

    @nn.compact
    def __call__(self, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """g f32[B, T, D] → the clip's feature f32[B, D], and a f32[B, T] before the softmax."""
        he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        hidden = nn.relu(nn.Dense(frames.shape[-1] // 3, kernel_init=he, name="reduce")(frames))
        a = nn.relu(nn.Conv(1, (3,), padding=1, kernel_init=he, name="score")(hidden))[..., 0]
        return jnp.einsum("bt,btd->bd", jax.nn.softmax(a, axis=-1), frames, precision=jax.lax.Precision.HIGHEST), a


class KeyReIDNetwork(nn.Module):
    """Tower, global branch, local branch, a neck and a classifier for the clip and for every part.

    Attributes:
      tower: the ViT; its last block and norm are the global branch's.
      seq_len: T; the local branch is T times as wide as the tower.
      cameras: of the training split, each with a row that is added to all tokens, `camera_scale` times.
    """

    tower: ViTConfig
    seq_len: int
    num_classes: int
    cameras: int
    camera_scale: float
    branches: str
    parts: int
    layout: Layout
    gate: Gate
    tcss: bool
    fast: bool

    def setup(self):
        c = self.tower
        self.image_tower = ViT(c)
        self.camera_table = self.param("camera_table", nn.initializers.truncated_normal(0.02), (self.cameras, c.width))
        names: tuple[str, ...] = ()
        if self.branches != "local":
            self.temporal, names = TemporalAttention(), ("global",)
        if self.branches != "global":
            wide = TransformerConfig(
                width=self.seq_len * c.width, depth=1, heads=c.heads, activation="gelu", eps=1e-6, dtype=c.dtype
            )
            self.local_branch = PartAttention(wide, self.gate, self.fast)
            names += tuple(PARTS[self.parts])
        self.necks = Necks(self.num_classes, names)

    def __call__(self, batch: Batch, weights: jax.Array | None, train: bool) -> dict[str, jax.Array]:
        """frames [B, T, H, W, 3] and weights of patches f32[B, P, N] → "tower" f32[B, D]; of the global branch
        "global" f32[B, D] and "attention" f32[B, T], of the local one "parts" f32[B, P, T·D]."""
        clips, length = batch.frames.shape[:2]
        depth = self.tower.depth
        camera = jnp.repeat(batch.camera_index, length)[:, None]
        row = jnp.where(camera >= 0, self.camera_table[camera[:, 0]], self.camera_table.mean(0))  # unknown: the mean
        x = self.image_tower.embed(
            batch.frames.reshape(clips * length, *batch.frames.shape[2:]), token_bias=self.camera_scale * row
        )
        x = self.image_tower.run_blocks(x, 0, depth - 1, train)
        last = self.image_tower.run_blocks(x, depth - 1, depth, train, outputs=1)
        frames = self.image_tower.finish(last)["class_token"].reshape(clips, length, -1)
        found = {"tower": masked_mean(frames, batch.frame_mask)}
        if self.branches != "local":
            found["global"], found["attention"] = self.temporal(frames)
        if self.branches != "global":
            assert weights is not None
            found["parts"] = self.local(x.reshape(clips, length, *x.shape[1:]), weights)
        return found

    def local(self, tokens: jax.Array, weights: jax.Array) -> jax.Array:
        """Tokens [B, T, 1 + N, D] before the last block → parts f32[B, P, T·D]."""
        tokens = clip_tokens(tokens, self.layout)
        if self.tcss:  # where weights follow their patches, a change of order changes nothing but the last digits
            order = shuffled(tokens.shape[1] - 1)
            tokens = jnp.concatenate([tokens[:, :1], tokens[:, 1:][:, order]], axis=1)
            weights = weights[:, :, order] if self.layout == "paper" else weights
        return self.local_branch(tokens, weights)

    def of_necks(self, found: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The features that have a neck, by its name."""
        own = {"global": found["global"]} if "global" in found else {}
        if "parts" in found:
            own |= {name: found["parts"][:, i] for i, name in enumerate(PARTS[self.parts])}
        return own

    def train_outputs(self, batch: Batch, weights: jax.Array | None) -> tuple[dict[str, jax.Array], Any]:
        """(features, identity logits of each neck), in training."""
        found = self(batch, weights, train=True)
        return found, self.necks(self.of_necks(found), batch.valid, True)

    def test_outputs(self, batch: Batch, weights: jax.Array | None) -> tuple[dict[str, jax.Array], Any]:
        """(features, and those of necks behind their batch norms)."""
        found = self(batch, weights, train=False)
        return found, self.necks.normed(self.of_necks(found), batch.valid)


# --- The method -------------------------------------------------------------------------------------------------------


VALUES = {
    "branches": one_of(BRANCHES),
    "camera_scale": non_negative,
    "drop_path": number(0, below=1),
    "label_smoothing": number(0, below=1),
    "global_share": fraction,
    **under("keypoints", {"use": flag, "threshold": fraction, "noise": non_negative, "shuffle": flag}),
    **under("local", {"parts": one_of(PARTS), "layout": one_of(get_args(Layout)), "gate": one_of(get_args(Gate))}),
    **under("local", {"tcss": flag, "fast": flag}),
    **under("center", {"weight": non_negative, "lr": non_negative, "local": flag}),
    "attention_weight": non_negative,
    **under("triplet", {"margin": non_negative, "soft_margin": flag, "metric": one_of(get_args(Metric))}),
}


class KeyReID(Method):
    """See the module's docstring."""

    uses_identity = True
    assumes: ClassVar[Mapping[str, str]] = {"key points in training and at test time": "keypoints.use"}
    values = VALUES
    released = keyre_id.RELEASED

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        rule, stride = config.evaluation, config.backbone.stride
        if rule.seq_len != config.batch.seq_len:
            yield (
                f"config.evaluation.seq_len={rule.seq_len} must be config.batch.seq_len={config.batch.seq_len}: the "
                "local branch is as wide as a clip is long"
            )
        if rule.clip_sampling == "packed":
            yield "config.evaluation.clip_sampling='packed' leaves clips unfilled, which the local branch cannot take"
        if stride:
            yield f"config.backbone.stride={stride}: weights are those of patches that do not overlap; set it to 0"

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        super().__init__(config, info)
        tower = backbone_config(config.backbone, info.frame_size, config.precision)
        if not isinstance(tower, ViTConfig):
            raise UserError(
                f"config.backbone.name={config.backbone.name!r} has no patches: key points weigh those of a ViT"
            )
        self.tower = dataclasses.replace(tower, drop_path=config.drop_path)
        local = config.local
        self.network = KeyReIDNetwork(
            tower=self.tower,
            seq_len=config.batch.seq_len,
            num_classes=info.num_classes,
            cameras=max(len(info.cameras), 1),
            camera_scale=config.camera_scale,
            branches=config.branches,
            parts=local.parts,
            layout=local.layout,
            gate=local.gate,
            tcss=local.tcss,
            fast=local.fast,
        )

    def stages(self) -> tuple[Stage, ...]:
        config, batch = self.config, self.config.batch
        return (
            Stage(
                name="keyre_id",
                epochs=config.epochs,
                loss=self.loss,
                sampler=IdentitySampler(batch.num_identities, batch.num_instances),
                seq_len=batch.seq_len,
                piece_len=batch.piece_len,
                clip_sampling=batch.clip_sampling,
                augment=Augmentation(**config.augment),
                updates=(Update("all", make_optimizer(config.optimizer), Schedule(**config.schedule)),),
            ),
        )

    def evaluation(self) -> Evaluation:
        """Of the outputs that the config names, those that the branches give."""
        rule = super().evaluation()
        missing = {"both": (), "global": ("local",), "local": ("global",)}[self.config.branches]
        return dataclasses.replace(rule, outputs=tuple(name for name in rule.outputs if name not in missing))

    def backbones(self) -> tuple[Backbone, ...]:
        return (Backbone(("image_tower",), self.config.backbone.checkpoint, self.tower),)

    @property
    def guided(self) -> bool:
        """Whether anything is made of key points."""
        return self.config.keypoints.use and self.config.branches != "global"

    def extras(self, phase: Phase) -> Mapping[str, Extra]:
        found = {"keypoints": Extra((POINTS, 3), missing="mask")} if self.guided else {}
        if phase == "train":
            found |= {"erased": Extra(dtype="bool"), "erased_box": Extra((4,))}
        return found

    def init_memory(self) -> Any:
        """Centres of identities, of the clip and of its parts, which share theirs; drawn from N(0, 1)."""
        widths = {"global": self.tower.width, "local": self.network.seq_len * self.tower.width}
        if self.config.branches != "both":
            widths = {self.config.branches: widths[self.config.branches]}
        rng = np.random.default_rng((self.config.seed, 1))
        return {
            name: jnp.asarray(rng.standard_normal((self.info.num_classes, width), np.float32))
            for name, width in widths.items()
        }

    # --- jitted -------------------------------------------------------------------------------------------------

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        weights = self.weights(batch, rng)
        variables = self.network.init(rng, batch, weights, method="train_outputs")
        if "local_branch" in variables["params"]:
            local = variables["params"]["local_branch"]
            local["block"] = _as_torch_draws(local["block"], jax.random.fold_in(rng, 1))
        return variables

    def weights(self, batch: Batch, rng: jax.Array) -> jax.Array | None:
        """Weights of patches f32[B, P, N]; equal ones where key points are not used."""
        config, parts = self.config.keypoints, self.config.local.parts
        if self.config.branches == "global":
            return None
        if not self.guided:
            return jnp.ones((len(batch.tracklet), parts, self.tower.patches))
        points, size = jnp.asarray(batch.extras["keypoints"]), self.tower.image_size
        if config.noise:
            spread = config.noise * jnp.array([1.0, size[1] / size[0]])  # in widths of the frame
            points = points.at[..., :2].add(spread * jax.random.normal(rng, (*points.shape[:3], 2)))
        if config.shuffle:  # which point is which, another order for every tracklet
            order = jax.vmap(lambda row: jax.random.permutation(jax.random.fold_in(jax.random.PRNGKey(0), row), POINTS))
            points = jnp.take_along_axis(points, order(batch.tracklet)[:, None, :, None], axis=2)
        maps = heat_maps(points, size, parts, config.threshold)
        if "erased_box" in batch.extras:
            maps = maps * outside(batch.extras["erased_box"], size)
        return patch_weights(maps, self.tower.grid, self.config.local.layout)

    def loss(self, variables: Variables, memory: Any, batch: Batch, context: Context) -> LossOutput:
        """ID + Tri + weight · Center + L_att, each but the last 0.75 of the clip's and 0.25 of the parts' mean."""
        config, label, valid = self.config, batch.identity, batch.valid
        weights = self.weights(batch, jax.random.fold_in(context.rng, 1))
        (found, logits), changed = self.network.apply(
            variables,
            batch,
            weights,
            method="train_outputs",
            mutable=["batch_stats"],
            rngs={"drop_path": context.rng},
        )
        share = {"both": config.global_share, "global": 1.0, "local": 0.0}[config.branches]

        def shared(of: Any, local: Any) -> jax.Array:
            """The clip's loss and the mean of the parts', each with its share."""
            total = jnp.zeros(())
            if "global" in found:
                total += share * of("global")
            if "parts" in found:
                total += (1 - share) * jnp.mean(jnp.stack([local(i) for i in range(found["parts"].shape[1])]))
            return total

        def identity(name: str) -> jax.Array:
            return cross_entropy(logits[name], label, valid, config.label_smoothing)

        options, names = config.triplet, tuple(PARTS[config.local.parts])

        def triplet(features: jax.Array) -> jax.Array:
            return batch_hard_triplet(features, label, valid, options.margin, options.metric, options.soft_margin)

        def center(centers: Any, features: Mapping[str, jax.Array]) -> jax.Array:
            return shared(
                lambda name: center_loss(features[name], centers[name], label, valid),
                lambda i: center_loss(features["parts"][:, i], centers["local"], label, valid),
            )

        losses = {
            "identity": (1.0, shared(identity, lambda i: identity(names[i]))),
            "triplet": (1.0, shared(lambda name: triplet(found[name]), lambda i: triplet(found["parts"][:, i]))),
            "center": (config.center.weight, center(memory, found)),
        }
        if "attention" in found:  # frames with an erased box should not be looked at
            erased = jnp.sum(found["attention"] * batch.extras["erased"], axis=-1)
            losses["attention"] = (config.attention_weight, masked_mean(erased, valid))
        moved = jax.grad(center)(memory, jax.lax.stop_gradient(found))
        if not config.center.local and "local" in moved:
            moved["local"] = jnp.zeros_like(moved["local"])
        memory = jax.tree.map(lambda c, change: c - config.center.lr * change, memory, moved)
        return LossOutput.weighted(losses, changed["batch_stats"], memory)

    def embed(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, jax.Array]:
        """ "global" f32[B, D] and "local" f32[B, P·T·D], the parts divided by their number, behind their batch norms;
        "feature" is both. "tower": the mean of the frames' class tokens."""
        key = jax.random.fold_in(jax.random.PRNGKey(self.config.seed), batch.tracklet[0])
        applied: Any = self.network.apply(variables, batch, self.weights(batch, key), method="test_outputs")
        found, normed = applied
        outputs: dict[str, jax.Array] = {"global": normed["global"]} if "global" in normed else {}
        if "parts" in found:
            names = tuple(PARTS[self.config.local.parts])
            outputs["local"] = jnp.concatenate([normed[name] / len(names) for name in names], axis=-1)
        return {"tower": found["tower"], "feature": jnp.concatenate(list(outputs.values()), axis=-1), **outputs}


def _as_torch_draws(block: Any, rng: jax.Array) -> Any:
    """Linear layers of a block with weights and biases from U(−1/√inputs, 1/√inputs), PyTorch's own start."""
    found = {}
    for place, (name, child) in enumerate(sorted(block.items())):
        key = jax.random.fold_in(rng, place)
        if "kernel" not in child:
            found[name] = _as_torch_draws(child, key) if isinstance(child, Mapping) and "scale" not in child else child
            continue
        bound = child["kernel"].shape[0] ** -0.5
        keys = jax.random.split(key)
        found[name] = {
            leaf: jax.random.uniform(k, child[leaf].shape, minval=-bound, maxval=bound)
            for k, leaf in zip(keys, ("kernel", "bias"), strict=True)
        }
    return found


METHOD = KeyReID
