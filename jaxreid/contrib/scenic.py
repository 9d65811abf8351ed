"""google-research/scenic: our CLIP towers in its layers and back, and our data sets in the shape of its `Dataset`.

Converting and reading need nothing of scenic; only `tower` and `clip`, which make its modules, import it, from a source
checkout on PYTHONPATH (the package of that name on PyPI is another project). How to use it: docs/scenic.md.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxreid.backbones.layouts import SAME, TENSOR, Arrangement, Entry, Kind, Layout, part, where
from jaxreid.backbones.positions import bilinear
from jaxreid.backbones.pretrained import to_variables
from jaxreid.backbones.saving import to_tensors
from jaxreid.backbones.tensors import CheckpointError
from jaxreid.backbones.text import TextConfig
from jaxreid.backbones.transformer import TransformerConfig
from jaxreid.backbones.vit import ViTConfig
from jaxreid.data.batch import Batch
from jaxreid.data.clips import ClipPlan, plan_tracklets
from jaxreid.data.dataset import open_dataset
from jaxreid.data.loader import LoaderOptions, batches
from jaxreid.data.pieces import plan_epoch
from jaxreid.data.samplers import Columns, Sampler, ShuffleSampler
from jaxreid.data.split import Split
from jaxreid.errors import MissingPackageError, UserError

# ------------------------------------------------------------------------------------------------- towers: the format

LINEAR: Kind = (("/kernel", "/kernel", SAME), ("/bias", "/bias", SAME))
NORM: Kind = (("/scale", "/scale", SAME), ("/bias", "/bias", SAME))
KERNEL: Kind = (("/kernel", "/kernel", SAME),)
EMBEDDING: Kind = (("/embedding", "", SAME),)


def _split_heads(stored: tuple[int, ...], ours: tuple[int, ...]) -> Arrangement:
    """A parameter whose heads are an axis of their own there. Another number of heads must not pass as a reshape."""

    def read(x: np.ndarray, count: int) -> Iterable[np.ndarray]:
        if x.shape != stored:
            raise UserError(f"{x.shape} instead of {stored}")
        return (x.reshape(ours),)

    return Arrangement(read, lambda x: x.reshape(stored))


def _blocks(c: TransformerConfig, prefix: str) -> list[Entry]:
    width, heads = c.width, (c.heads, c.width // c.heads)
    bias = ("/bias", "/bias", _split_heads(heads, (width,)))
    inward: Kind = (("/kernel", "/kernel", _split_heads((width, *heads), (width, width))), bias)
    outward: Kind = (("/kernel", "/kernel", _split_heads((*heads, width), (width, width))), LINEAR[1])
    rows = (
        ("ln_1", "norm_1", NORM),
        *((f"attn/{name}", f"attention/{name}", inward) for name in ("query", "key", "value")),
        ("attn/out", "attention/out", outward),
        ("ln_2", "norm_2", NORM),
        ("mlp/c_fc", "mlp/up", LINEAR),
        ("mlp/c_proj", "mlp/down", LINEAR),
    )
    return [
        entry
        for i in range(c.depth)
        for key, path, kind in rows
        for entry in part(f"{prefix}transformer/resblocks.{i}/{key}", f"block_{i:02d}/{path}", kind)
    ]


def _image(c: ViTConfig, prefix: str) -> list[Entry]:
    return [
        *part(f"{prefix}conv1", "patch_embedding", KERNEL),
        *part(f"{prefix}class_embedding", "class_token", TENSOR),
        *part(f"{prefix}positional_embedding", "position_embedding", TENSOR),
        *part(f"{prefix}ln_pre", "norm_pre", NORM),
        *_blocks(c, prefix),
        *part(f"{prefix}ln_post", "norm_post", NORM),
        *where(c.projection, part(f"{prefix}proj", "projection", KERNEL)),
    ]


def _text(c: TextConfig, prefix: str) -> list[Entry]:
    return [
        *part(f"{prefix}token_embedding", "token_embedding", EMBEDDING),
        *part(f"{prefix}positional_embedding", "position_embedding", TENSOR),
        *_blocks(c, prefix),
        *part(f"{prefix}ln_final", "norm_final", NORM),
        *part(f"{prefix}text_projection", "projection", KERNEL),
    ]


UNDERSCORES = ((r"resblocks_(\d+)/", r"resblocks.\1/"),)  # its `use_underscore_module_name`

IMAGE = Layout(
    name="scenic CLIP",
    prefixes=("visual/", ""),
    markers=("conv1/kernel", "ln_pre/scale"),
    entries=_image,
    ignored=(r"text/.*", "logit_scale"),
    renamed=UNDERSCORES,
    interpolation=lambda c: bilinear,
)
TEXT = Layout(
    name="scenic CLIP",
    prefixes=("text/", ""),
    markers=("token_embedding/embedding", "ln_final/scale"),
    entries=_text,
    ignored=(r"visual/.*", "logit_scale"),
    renamed=UNDERSCORES,
)

# What its layers are made of, whatever a configuration says, and what no shape of a parameter shows.
FIXED = {"activation": "quick_gelu", "eps": 1e-5, "mlp_ratio": 4.0}


def _layout(config: ViTConfig | TextConfig) -> Layout:
    """The tower's format; CheckpointError where scenic's layers would compute something else from its weights."""
    differing = [
        f"{name} is {fixed!r} there and {getattr(config, name)!r} here"
        for name, fixed in FIXED.items()
        if getattr(config, name) != fixed
    ]
    if isinstance(config, ViTConfig) and config.patch_stride != config.patch:
        differing.append(f"patches of {config.patch} pixels do not overlap there and have stride {config.stride} here")
    if differing:
        raise CheckpointError(f"scenic's CLIP layers are not this {type(config).__name__}: {'; '.join(differing)}")
    return TEXT if isinstance(config, TextConfig) else IMAGE


# ----------------------------------------------------------------------------------------------- towers: there and back


def from_scenic(
    params: Mapping[str, Any], config: ViTConfig | TextConfig, *, source_grid: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Our parameters of the tower that `config` describes, float32 NumPy arrays.

    `params` is the "params" collection of scenic's `CLIP`, or of its `VisionTransformer` or `TextEncoder` alone. The
    position table of an image tower is resized to `config.grid` as `pretrained.to_variables` says. Raises
    CheckpointError with every missing, unused and misshapen key.
    """
    tensors = {key: np.asarray(leaf) for key, leaf in flatten_dict(params, sep="/").items()}
    how: dict[str, Any] = {"source_grid": source_grid, "source": "the tree of scenic", "layout": _layout(config)}
    return to_variables(tensors, config, **how)["params"]


def to_scenic(params: Mapping[str, Any], config: ViTConfig | TextConfig) -> dict[str, Any]:
    """The inverse of `from_scenic`: {"visual": tree} or {"text": tree}, the same numbers.

    A whole CLIP is `to_scenic(image, …) | to_scenic(text, …) | {"logit_scale": scale}`. Raises CheckpointError for a
    tower that scenic's layers can't hold, or a tree that is not that of `config`.
    """
    return unflatten_dict(to_tensors(params, config, _layout(config)), sep="/")


def tower(config: ViTConfig | TextConfig) -> Any:
    """scenic's module of one tower: `VisionTransformer`, whose results are (projected, tokens before the last norm),
    or `TextEncoder`.

    Its text tower takes whole rows of `config.context` ids, and hides id 0 from every token. That is the filling of a
    row; in CLIP's vocabulary it is also a "!" inside of a word, and texts with one differ from ours and OpenAI's.
    Raises ImportError without scenic.
    """
    layers = _layers()
    _layout(config)
    sizes: dict[str, Any] = {"features": config.width, "num_layers": config.depth, "num_heads": config.heads}
    sizes["out_features"] = config.projection
    if isinstance(config, TextConfig):
        return layers.TextEncoder(vocab_size=config.vocabulary, **sizes)
    return layers.VisionTransformer(patch_size=config.patch, **sizes)


def clip(image: ViTConfig, text: TextConfig) -> Any:
    """scenic's `CLIP` of two towers. Raises UserError where their joint dimensions differ, ImportError without
    scenic."""
    layers = _layers()
    for config in (image, text):
        _layout(config)
    if image.projection != text.projection:
        raise UserError(f"a CLIP of joint dimensions {image.projection} and {text.projection}")
    return layers.CLIP(
        vocab_size=text.vocabulary,
        embed_dim=text.projection,
        text_features=text.width,
        text_num_layers=text.depth,
        text_num_heads=text.heads,
        vision_features=image.width,
        vision_num_layers=image.depth,
        vision_head_dim=image.width // image.heads,
        vision_patch_size=image.patch,
    )


def _layers() -> Any:
    try:
        from scenic.projects.baselines.clip import layers
    except ImportError as error:
        raise MissingPackageError(
            "scenic.projects.baselines.clip can't be imported. Clone https://github.com/google-research/scenic and put "
            "the checkout on PYTHONPATH; `pip install scenic` installs another project of that name"
        ) from error
    return layers


# ------------------------------------------------------------------------------------------------------------- data


class ScenicDataset(NamedTuple):
    """The fields of scenic's `dataset_utils.Dataset` that its trainers read; `Dataset(**found._asdict())` is one.

    All iterators are endless. A batch is a dict of arrays [shards, rows, …], rows = batch size / shards:

        inputs      [shards, rows, T, H, W, 3], normalized
        label       i32, identity 0 … C − 1 in training; in the two others the data set's own number of the person
        batch_mask  f32, 0 on rows that only fill the last batch of a pass
        frame_mask  bool[shards, rows, T]; tracklet (row in the split), camera, modality i32
    """

    train_iter: Iterator[dict[str, np.ndarray]]
    valid_iter: Iterator[dict[str, np.ndarray]]  # queries, every clip of the rule once a pass
    test_iter: Iterator[dict[str, np.ndarray]]  # gallery
    meta_data: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """What `config.dataset_configs` may hold. The first seven are those of `open_dataset`."""

    name: str = "walkers"
    config: str = ""
    path: str = ""  # folder of the original data, for sets that are not built yet
    train: str = "train"
    query: str = "query"
    gallery: str = "gallery"
    protocols: tuple[str, ...] = ()
    data_dir: str | None = None  # where built sets live
    seq_len: int = 8  # frames of a clip
    clip_sampling: str = "chunk_first"  # which clips of a test tracklet (jaxreid.data.clips)
    height: int = 256
    width: int = 128
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    sampler: Sampler | None = None  # None: all training tracklets in random order
    piece_len: int = 0  # frames of the pieces that longer training tracklets are cut into; 0 = whole
    threads: int = 2


def get_dataset(
    *,
    batch_size: int,
    eval_batch_size: int,
    num_shards: int,
    dtype_str: str = "float32",
    shuffle_seed: int | None = 0,
    rng: Any = None,
    dataset_configs: Mapping[str, Any] | None = None,
    dataset_service_address: str | None = None,
) -> ScenicDataset:
    """A built data set as a Scenic project reads it, with the signature of its registry:
    `datasets.add_dataset("jaxreid")(get_dataset)`.

    Frames are normalized and not augmented. Batch sizes are those of this host. Training order is a function of the
    seed, the same on any number of hosts; `rng` is not used, tf.data's service neither.

    Raises:
      UserError: the sampler makes batches of another size, or a batch does not divide over the shards.
      TypeError: an unknown field of `dataset_configs`.
    """
    del rng, dataset_service_address
    for size in (batch_size, eval_batch_size):
        if size % num_shards:
            raise UserError(f"a batch of {size} clips does not divide over {num_shards} shards")
    options = DatasetOptions(**dict(dataset_configs or {}))
    dataset = open_dataset(options, Path(options.data_dir) if options.data_dir else None)
    columns = Columns.of(dataset.train.table, dataset.train.labels)
    processes = jax.process_count()
    sampler = options.sampler or ShuffleSampler(batch_size * processes)
    if sampler.batch_size(columns) != batch_size * processes:
        made = f"{sampler} makes batches of {sampler.batch_size(columns)} clips"
        raise UserError(f"{made}, config.batch_size is {batch_size * processes}")

    dtype = jnp.dtype(dtype_str)
    reading = _Reading(options, num_shards, dtype)
    query, gallery = (
        plan_tracklets(split.table.length, clip_sampling=options.clip_sampling, seq_len=options.seq_len)
        for split in (dataset.query, dataset.gallery)
    )
    return ScenicDataset(
        train_iter=reading.training(dataset.train, sampler, columns, batch_size, shuffle_seed or 0),
        valid_iter=reading.passes(dataset.query, query, eval_batch_size),
        test_iter=reading.passes(dataset.gallery, gallery, eval_batch_size),
        meta_data={
            "num_classes": int(dataset.train.labels.identity.max()) + 1,
            "input_shape": (-1, options.seq_len, options.height, options.width, 3),
            "num_train_examples": len(dataset.train),
            "num_eval_examples": len(query),
            "num_test_examples": len(gallery),
            "input_dtype": dtype,
            "target_is_onehot": False,
        },
    )


@dataclasses.dataclass(frozen=True)
class _Reading:
    options: DatasetOptions
    shards: int
    dtype: Any

    def training(
        self, split: Split, sampler: Sampler, columns: Columns, size: int, seed: int
    ) -> Iterator[dict[str, np.ndarray]]:
        for epoch in itertools.count():
            rng = np.random.default_rng((seed, epoch))
            labels, options = split.labels.identity, self.options
            plan = plan_epoch(
                sampler, labels, columns, split.table.length, rng, seq_len=options.seq_len, piece_len=options.piece_len
            )
            yield from self._read(split, plan, size, labels)

    def passes(self, split: Split, plan: ClipPlan, size: int) -> Iterator[dict[str, np.ndarray]]:
        while True:
            yield from self._read(split, plan, size, split.labels.pid)

    def _read(self, split: Split, plan: ClipPlan, size: int, label: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        loading = LoaderOptions(self.options.height, self.options.width, threads=self.options.threads)
        count = jax.process_count()
        share: dict[str, Any] = {"process_index": jax.process_index(), "process_count": count}
        for batch in batches(split, plan, size * count, loading, uses_identity=False, **share):
            yield self._arrays(batch, label)

    def _arrays(self, batch: Batch, label: np.ndarray) -> dict[str, np.ndarray]:
        mean, std = (np.asarray(x, np.float32) for x in (self.options.mean, self.options.std))
        arrays = {
            "inputs": ((batch.frames / np.float32(255) - mean) / std).astype(self.dtype),
            "label": np.where(batch.valid, label[batch.tracklet], 0).astype(np.int32),
            "batch_mask": batch.valid.astype(np.float32),
            "frame_mask": batch.frame_mask,
            "tracklet": batch.tracklet,
            "camera": batch.camera,
            "modality": batch.modality,
        }
        return {name: x.reshape(self.shards, -1, *x.shape[1:]) for name, x in arrays.items()}
