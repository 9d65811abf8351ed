"""Checkpoint formats as tables: which key holds which parameters, and how its axes lie there.

A format is a `Layout`. Its rows are written as `part(key, path, kind)`: a layer's key in the checkpoint, its path in
our tree, and its kind, which says what tensors such a layer has. Several paths are parameters stacked under one key.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxreid.backbones.mask_branch import MaskBranchConfig
from jaxreid.backbones.positions import Interpolation, bicubic, bicubic_antialiased, bicubic_offset, bilinear
from jaxreid.backbones.resnet import STEMS, ResNetConfig
from jaxreid.backbones.skeleton_graph import SkeletonConfig
from jaxreid.backbones.text import TextConfig
from jaxreid.backbones.transformer import TransformerConfig
from jaxreid.backbones.vit import ViTConfig
from jaxreid.errors import UserError

T = TypeVar("T")


class Arrangement(NamedTuple):
    """How a stored tensor maps to each of a number of parameters, and back. `read` raises ValueError where the tensor
    can't hold them."""

    read: Callable[[np.ndarray, int], Iterable[np.ndarray]]
    write: Callable[..., np.ndarray]


def _one(read: Callable[[np.ndarray], np.ndarray], write: Callable[[np.ndarray], np.ndarray]) -> Arrangement:
    """One tensor for one parameter; where several are asked for, each gets a copy."""
    return Arrangement(lambda x, count: (read(x),) * count, lambda *parameters: write(parameters[0]))


SAME = _one(lambda x: x, lambda x: x)
TRANSPOSED = _one(lambda x: x.T, lambda x: x.T)
OIHW = _one(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # ours are HWIO
BATCHED = _one(lambda x: np.squeeze(x, 0), lambda x: x[None])  # [1, …]
BATCHED_TOKEN = _one(lambda x: np.squeeze(x, (0, 1)), lambda x: x[None, None])  # [1, 1, …]
STACKED = Arrangement(  # along the first axis
    lambda x, count: [part.T for part in np.split(x, count)],
    lambda *parameters: np.concatenate([p.T for p in parameters]),
)


class Entry(NamedTuple):
    """One tensor of a checkpoint: its key, the parameters it holds (paths joined by /), and its arrangement.

    Without paths it is a tensor that belongs to the format but holds nothing of ours, and may be absent.
    """

    key: str
    paths: tuple[str, ...]
    arrangement: Arrangement


# Kinds of layers: ending of the key, ending of the path, arrangement.
Kind = tuple[tuple[str, str, Arrangement], ...]
TENSOR: Kind = (("", "", SAME),)
TABLE: Kind = ((".weight", "", SAME),)
MATRIX: Kind = (("", "/kernel", SAME),)  # [inputs, outputs]
PROJECTION: Kind = ((".weight", "/kernel", TRANSPOSED),)
LINEAR: Kind = ((".weight", "/kernel", TRANSPOSED), (".bias", "/bias", SAME))
NORM: Kind = ((".weight", "/scale", SAME), (".bias", "/bias", SAME))
CONVOLUTION: Kind = ((".weight", "/kernel", OIHW),)
CONVOLUTION_BIAS: Kind = (*CONVOLUTION, (".bias", "/bias", SAME))
BATCH_NORM: Kind = (*NORM, (".running_mean", "/mean", SAME), (".running_var", "/var", SAME))
PLAIN_BATCH_NORM: Kind = ((".running_mean", "/mean", SAME), (".running_var", "/var", SAME))  # no scale, no shift
BATCHED_TENSOR: Kind = (("", "", BATCHED),)
BATCHED_TOKEN_TENSOR: Kind = (("", "", BATCHED_TOKEN),)
STACKED_LINEAR: Kind = ((".weight", "/kernel", STACKED), (".bias", "/bias", STACKED))
STACKED_ATTENTION: Kind = (("_weight", "/kernel", STACKED), ("_bias", "/bias", STACKED))

QKV = ("attention/query", "attention/key", "attention/value")

Row = tuple[str, str | tuple[str, ...], Kind]


def part(key: str, paths: str | tuple[str, ...], kind: Kind) -> list[Entry]:
    paths = (paths,) if isinstance(paths, str) else paths
    return [Entry(key + ending, tuple(path + leaf for path in paths), how) for ending, leaf, how in kind]


def zeros(key: str, shape: tuple[int, ...]) -> Entry:
    """A tensor that we leave out because it is zero: anything else is an error."""

    def read(x: np.ndarray, count: int) -> Iterable[np.ndarray]:
        if x.any():
            raise UserError(f"{key} is not zero")
        return ()

    return Entry(key, (), Arrangement(read, lambda: np.zeros(shape, np.float32)))


def unused(key: str, shape: tuple[int, ...]) -> Entry:
    """A tensor for which we have no use: passed over when read, written as zeros."""
    return Entry(key, (), Arrangement(lambda x, count: (), lambda: np.zeros(shape, np.float32)))


def blocks(config: TransformerConfig | SkeletonConfig, key: str, rows: Iterable[Row]) -> list[Entry]:
    """The rows of every block: `key`.0, `key`.1, … hold block_00, block_01, …"""
    return [
        entry
        for i in range(config.depth)
        for name, paths, kind in rows
        for entry in part(
            f"{key}.{i}.{name}",
            tuple(f"block_{i:02d}/{path}" for path in ((paths,) if isinstance(paths, str) else paths)),
            kind,
        )
    ]


def where(condition: object, entries: Iterable[T]) -> list[T]:
    """The entries or rows of something that a network may have or not."""
    return list(entries) if condition else []


@dataclasses.dataclass(frozen=True)
class Layout:
    """A checkpoint format of one sort of network.

    `entries(config, prefix)` lists its tensors. The format, and the prefix in front of its keys (one of `prefixes`),
    are recognised by `markers`: keys that it has after the prefix. `ignored` are patterns of keys that may be there
    but do not belong to this network. `renamed` are (pattern, replacement) for keys that have more than one form.
    `interpolation(config)` is the rule for position tables of another grid.
    """

    name: str
    prefixes: tuple[str, ...]
    markers: tuple[str, ...]
    entries: Callable[[Any, str], list[Entry]]
    ignored: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    interpolation: Callable[[Any], Interpolation] | None = None

    def canonical(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors under the names that `entries` uses."""

        def rename(key: str) -> str:
            for pattern, replacement in self.renamed:
                key = re.sub(pattern, replacement, key)
            return key

        return {rename(key): tensor for key, tensor in tensors.items()}

    def find_prefix(self, keys: Mapping[str, Any]) -> str | None:
        return next((p for p in self.prefixes if all(p + marker in keys for marker in self.markers)), None)

    def ignores(self, key: str) -> bool:
        return any(re.fullmatch(pattern, key) for pattern in self.ignored)


# -------------------------------------------------------------------------------------------- CLIP, Hugging Face

HUGGING_FACE_BLOCK: tuple[Row, ...] = (
    ("layer_norm1", "norm_1", NORM),
    ("self_attn.q_proj", "attention/query", LINEAR),
    ("self_attn.k_proj", "attention/key", LINEAR),
    ("self_attn.v_proj", "attention/value", LINEAR),
    ("self_attn.out_proj", "attention/out", LINEAR),
    ("layer_norm2", "norm_2", NORM),
    ("mlp.fc1", "mlp/up", LINEAR),
    ("mlp.fc2", "mlp/down", LINEAR),
)


def _hugging_face_image(c: ViTConfig, prefix: str) -> list[Entry]:
    return [
        *part(f"{prefix}embeddings.patch_embedding", "patch_embedding", CONVOLUTION),
        *part(f"{prefix}embeddings.class_embedding", "class_token", TENSOR),
        *part(f"{prefix}embeddings.position_embedding", "position_embedding", TABLE),
        *part(f"{prefix}pre_layrnorm", "norm_pre", NORM),  # spelt so
        *blocks(c, f"{prefix}encoder.layers", HUGGING_FACE_BLOCK),
        *part(f"{prefix}post_layernorm", "norm_post", NORM),
        *where(c.projection, part("visual_projection", "projection", PROJECTION)),
    ]


def _hugging_face_text(c: TextConfig, prefix: str) -> list[Entry]:
    return [
        *part(f"{prefix}embeddings.token_embedding", "token_embedding", TABLE),
        *part(f"{prefix}embeddings.position_embedding", "position_embedding", TABLE),
        *blocks(c, f"{prefix}encoder.layers", HUGGING_FACE_BLOCK),
        *part(f"{prefix}final_layer_norm", "norm_final", NORM),
        *part("text_projection", "projection", PROJECTION),
    ]


POSITION_IDS = r"(.*\.)?embeddings\.position_ids"

HUGGING_FACE_IMAGE = Layout(
    name="Hugging Face CLIP",
    prefixes=("vision_model.", ""),
    markers=("embeddings.patch_embedding.weight", "pre_layrnorm.weight"),
    entries=_hugging_face_image,
    ignored=(r"text_model\..*", r"text_projection\.weight", "logit_scale", POSITION_IDS, r"skeleton\..*"),
    interpolation=lambda c: bilinear,
)
HUGGING_FACE_TEXT = Layout(
    name="Hugging Face CLIP",
    prefixes=("text_model.", ""),
    markers=("embeddings.token_embedding.weight", "final_layer_norm.weight"),
    entries=_hugging_face_text,
    ignored=(r"vision_model\..*", r"visual_projection\.weight", "logit_scale", POSITION_IDS),
)

# ----------------------------------------------------------------------------------------- CLIP, OpenAI, OpenCLIP

OPENAI_BLOCK: tuple[Row, ...] = (
    ("ln_1", "norm_1", NORM),
    ("attn.in_proj", QKV, STACKED_ATTENTION),
    ("attn.out_proj", "attention/out", LINEAR),
    ("ln_2", "norm_2", NORM),
    ("mlp.c_fc", "mlp/up", LINEAR),
    ("mlp.c_proj", "mlp/down", LINEAR),
)
OPEN_CLIP_SCALES: tuple[Row, ...] = (
    ("ls_1.gamma", "layer_scale_1", TENSOR),
    ("ls_2.gamma", "layer_scale_2", TENSOR),
)


def _openai_image(c: ViTConfig, prefix: str) -> list[Entry]:
    rows = [*OPENAI_BLOCK, *where(c.layer_scale is not None, OPEN_CLIP_SCALES)]
    return [
        *part(f"{prefix}conv1", "patch_embedding", CONVOLUTION),
        *part(f"{prefix}class_embedding", "class_token", TENSOR),
        *part(f"{prefix}positional_embedding", "position_embedding", TENSOR),
        *part(f"{prefix}ln_pre", "norm_pre", NORM),
        *blocks(c, f"{prefix}transformer.resblocks", rows),
        *part(f"{prefix}ln_post", "norm_post", NORM),
        *where(c.projection, part(f"{prefix}proj", "projection", MATRIX)),
    ]


def _openai_text(c: TextConfig, prefix: str) -> list[Entry]:
    rows = [*OPENAI_BLOCK, *where(c.layer_scale is not None, OPEN_CLIP_SCALES)]
    return [
        *part(f"{prefix}token_embedding", "token_embedding", TABLE),
        *part(f"{prefix}positional_embedding", "position_embedding", TENSOR),
        *blocks(c, f"{prefix}transformer.resblocks", rows),
        *part(f"{prefix}ln_final", "norm_final", NORM),
        *part(f"{prefix}text_projection", "projection", MATRIX),
    ]


OF_THE_WHOLE = ("logit_scale|logit_bias|input_resolution|context_length|vocab_size", r"(.*\.)?attn_mask")

OPENAI_IMAGE = Layout(
    name="OpenAI / OpenCLIP",
    prefixes=("visual.",),
    markers=("conv1.weight", "ln_pre.weight"),
    entries=_openai_image,
    ignored=(
        r"(text\.)?(transformer|token_embedding|ln_final)\..*",
        r"(text\.)?(positional_embedding|text_projection)",
        *OF_THE_WHOLE,
    ),
    interpolation=lambda c: bilinear,
)
OPENAI_TEXT = Layout(
    name="OpenAI / OpenCLIP",
    prefixes=("text.", ""),  # the former where OpenCLIP's model has a text tower of its own class
    markers=("token_embedding.weight", "ln_final.weight"),
    entries=_openai_text,
    ignored=(r"visual\..*", *OF_THE_WHOLE),
)

# -------------------------------------------------------------------------------------------------- DINOv2, timm

TIMM_BLOCK: tuple[Row, ...] = (
    ("norm1", "norm_1", NORM),
    ("attn.qkv", QKV, STACKED_LINEAR),
    ("attn.proj", "attention/out", LINEAR),
    ("norm2", "norm_2", NORM),
)
TIMM_MLP: tuple[Row, ...] = (("mlp.fc1", "mlp/up", LINEAR), ("mlp.fc2", "mlp/down", LINEAR))
TIMM_GATED_MLP: tuple[Row, ...] = (("mlp.w12", ("mlp/gate", "mlp/up"), STACKED_LINEAR), ("mlp.w3", "mlp/down", LINEAR))
TIMM_SCALES: tuple[Row, ...] = (("ls1.gamma", "layer_scale_1", TENSOR), ("ls2.gamma", "layer_scale_2", TENSOR))


def _timm(c: ViTConfig, prefix: str) -> list[Entry]:
    rows = [
        *TIMM_BLOCK,
        *(TIMM_GATED_MLP if c.gated_mlp else TIMM_MLP),
        *where(c.layer_scale is not None, TIMM_SCALES),
    ]
    return [
        *part(f"{prefix}patch_embed.proj", "patch_embedding", CONVOLUTION_BIAS if c.conv_bias else CONVOLUTION),
        *part(f"{prefix}cls_token", "class_token", BATCHED_TOKEN_TENSOR),
        *part(f"{prefix}pos_embed", "position_embedding", BATCHED_TENSOR),
        *where(c.register_tokens, part(f"{prefix}register_tokens", "register_tokens", BATCHED_TENSOR)),
        *where(c.pre_norm_embeddings, part(f"{prefix}norm_pre", "norm_pre", NORM)),
        *blocks(c, f"{prefix}blocks", rows),
        *part(f"{prefix}norm", "norm_post", NORM),
        # CLIP's image tower as timm keeps it: the projection as a classifier of so many classes, without a bias.
        *where(c.projection, part(f"{prefix}head", "projection", PROJECTION)),
        *where(c.projection, [zeros(f"{prefix}head.bias", (c.projection or 0,))]),
    ]


DINOV2 = Layout(
    name="DINOv2",
    prefixes=("", "backbone."),  # the latter in checkpoints of its training
    markers=("patch_embed.proj.weight", "blocks.0.ls1.gamma"),
    entries=_timm,
    ignored=(r"(.*\.)?mask_token", r"(dino|ibot)_head\..*"),
    renamed=((r"\bblocks\.\d+\.(\d+)\.", r"blocks.\1."),),  # in chunks, whose blocks are numbered through
    interpolation=lambda c: bicubic_antialiased if c.register_tokens else bicubic_offset,
)
TIMM = Layout(
    name="timm ViT",
    prefixes=("",),
    markers=("patch_embed.proj.weight", "blocks.0.norm1.weight"),
    entries=_timm,
    ignored=(r"(head|head_dist|pre_logits|fc_norm)\..*",),
    interpolation=lambda c: bilinear,
)

HUGGING_FACE_DINOV2_BLOCK: tuple[Row, ...] = (
    ("norm1", "norm_1", NORM),
    ("attention.attention.query", "attention/query", LINEAR),
    ("attention.attention.key", "attention/key", LINEAR),
    ("attention.attention.value", "attention/value", LINEAR),
    ("attention.output.dense", "attention/out", LINEAR),
    ("layer_scale1.lambda1", "layer_scale_1", TENSOR),
    ("norm2", "norm_2", NORM),
    ("layer_scale2.lambda1", "layer_scale_2", TENSOR),
)
HUGGING_FACE_DINOV2_GATED_MLP: tuple[Row, ...] = (
    ("mlp.weights_in", ("mlp/gate", "mlp/up"), STACKED_LINEAR),
    ("mlp.weights_out", "mlp/down", LINEAR),
)


def _hugging_face_dinov2(c: ViTConfig, prefix: str) -> list[Entry]:
    rows = [*HUGGING_FACE_DINOV2_BLOCK, *(HUGGING_FACE_DINOV2_GATED_MLP if c.gated_mlp else TIMM_MLP)]
    embeddings = f"{prefix}embeddings"
    return [
        *part(f"{embeddings}.patch_embeddings.projection", "patch_embedding", CONVOLUTION_BIAS),
        *part(f"{embeddings}.cls_token", "class_token", BATCHED_TOKEN_TENSOR),
        unused(f"{embeddings}.mask_token", (1, c.width)),  # of its training
        *part(f"{embeddings}.position_embeddings", "position_embedding", BATCHED_TENSOR),
        *where(c.register_tokens, part(f"{embeddings}.register_tokens", "register_tokens", BATCHED_TENSOR)),
        *blocks(c, f"{prefix}encoder.layer", rows),
        *part(f"{prefix}layernorm", "norm_post", NORM),
    ]


HUGGING_FACE_DINOV2 = Layout(
    name="Hugging Face DINOv2",
    prefixes=("", "dinov2.", "dinov2_with_registers."),  # the latter in classifiers
    markers=("embeddings.patch_embeddings.projection.weight", "encoder.layer.0.layer_scale1.lambda1"),
    entries=_hugging_face_dinov2,
    ignored=(r"classifier\..*",),
    interpolation=lambda c: bicubic_antialiased if c.register_tokens else bicubic,
)

# -------------------------------------------------------------------------------------------------------- ResNet

Pair = tuple[str, str]  # a convolution and its norm
Pairs = tuple[Pair, ...]

# Of a bottleneck: in torchvision's names, in transformers' names, and in ours.
TORCHVISION_BOTTLENECK: Pairs = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("downsample.0", "downsample.1"))
HUGGING_FACE_BOTTLENECK: Pairs = tuple(
    (f"{layer}.convolution", f"{layer}.normalization") for layer in ("layer.0", "layer.1", "layer.2", "shortcut")
)
BOTTLENECK: Pairs = (("conv1", "norm1"), ("conv2", "norm2"), ("conv3", "norm3"), ("downsample_conv", "downsample_norm"))


def _resnet(c: ResNetConfig, prefix: str, stem: Pair, layer: str, first: int, bottleneck: Pairs) -> list[Entry]:
    """`layer` is the key of a bottleneck, with {} for its layer, counted from `first`, and its number in it, from 0."""
    stems = STEMS[: c.stems]  # all start with the same weights
    entries = part(prefix + stem[0], tuple(f"{s}/conv" for s in stems), CONVOLUTION)
    entries += part(prefix + stem[1], tuple(f"{s}/norm" for s in stems), BATCH_NORM)
    for i, depth in enumerate(c.depths):
        for j in range(depth):
            key, path = prefix + layer.format(i + first, j), f"layer{i + 1}_{j}"
            pairs = list(zip(bottleneck, BOTTLENECK, strict=True))
            for theirs, ours in pairs if j == 0 else pairs[:-1]:  # the first one's shortcut is projected
                entries += part(f"{key}.{theirs[0]}", f"{path}/{ours[0]}", CONVOLUTION)
                entries += part(f"{key}.{theirs[1]}", f"{path}/{ours[1]}", BATCH_NORM)
    return entries


def _torchvision_resnet(c: ResNetConfig, prefix: str) -> list[Entry]:
    return _resnet(c, prefix, ("conv1", "bn1"), "layer{}.{}", 1, TORCHVISION_BOTTLENECK)


def _hugging_face_resnet(c: ResNetConfig, prefix: str) -> list[Entry]:
    stem = ("embedder.embedder.convolution", "embedder.embedder.normalization")
    return _resnet(c, prefix, stem, "encoder.stages.{}.layers.{}", 0, HUGGING_FACE_BOTTLENECK)


TORCHVISION_RESNET = Layout(
    name="torchvision / timm ResNet",
    prefixes=("",),
    markers=("conv1.weight", "layer1.0.conv3.weight"),
    entries=_torchvision_resnet,
    ignored=(r"fc\..*", r".*\.num_batches_tracked"),
)
HUGGING_FACE_RESNET = Layout(
    name="Hugging Face ResNet",
    prefixes=("", "resnet."),
    markers=("embedder.embedder.convolution.weight", "encoder.stages.0.layers.0.layer.2.convolution.weight"),
    entries=_hugging_face_resnet,
    ignored=(r"classifier\..*", r".*\.num_batches_tracked"),
)

# ------------------------------------------------------------------------------------------ skeletons, a format of ours

SKELETON_BLOCK: tuple[Row, ...] = (
    *((name, name, LINEAR) for name in ("query", "key", "value", "out", "up", "down")),
    *((name, name, NORM) for name in ("norm_1", "norm_2")),
)


def _skeleton(c: SkeletonConfig, prefix: str) -> list[Entry]:
    return [
        *(entry for name in ("embed_in", "embed_out", "embed_code") for entry in part(prefix + name, name, LINEAR)),
        *blocks(c, f"{prefix}blocks", SKELETON_BLOCK),
        *where(c.projection, part(f"{prefix}projection", "projection", PROJECTION)),
    ]


SKELETON = Layout(
    name="skeleton encoder",
    prefixes=("skeleton.",),
    markers=("embed_in.weight", "embed_code.weight"),
    entries=_skeleton,
    ignored=(r"(?!skeleton\.).*",),
)

# --------------------------------------------------------------------------------------------------- mask branch


def _mask_branch(c: MaskBranchConfig, prefix: str) -> list[Entry]:
    return [
        *part(f"{prefix}bn_s", "norm", PLAIN_BATCH_NORM),
        *part(f"{prefix}down_sampling", "down", LINEAR),
        *part(f"{prefix}up_sampling", "up", LINEAR),
    ]


BIG_GAIT = Layout(
    name="BigGait",
    prefixes=("", "Mask_Branch."),
    markers=("down_sampling.weight", "up_sampling.weight", "bn_s.running_mean"),
    entries=_mask_branch,
    ignored=(r".*\.num_batches_tracked", r"(Mask_Branch\.)?bn_t\..*"),  # a norm that is never called
)

LAYOUTS: dict[type, tuple[Layout, ...]] = {
    ViTConfig: (HUGGING_FACE_IMAGE, OPENAI_IMAGE, DINOV2, TIMM, HUGGING_FACE_DINOV2),
    TextConfig: (HUGGING_FACE_TEXT, OPENAI_TEXT),
    ResNetConfig: (TORCHVISION_RESNET, HUGGING_FACE_RESNET),
    SkeletonConfig: (SKELETON,),
    MaskBranchConfig: (BIG_GAIT,),
}
