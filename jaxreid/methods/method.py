"""The interface of a method: what a paper's file provides, and what training does with it.

Everything that a method computes is a pure function of arrays; its object holds the config, the data set's tables
and the Flax modules. Training calls, for each stage,

    init_memory → [extract → refresh → sampling_labels → steps] per epoch

and no method knows a device, a host or a file.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any, ClassVar

import flax.struct
import jax
import numpy as np

from jaxreid.augment import UNCHANGED, Augmentation
from jaxreid.backbones.batch_norm import calibrate_norm
from jaxreid.data.batch import Batch
from jaxreid.data.clips import ClipPlan, plan_all_parts, plan_tracklets
from jaxreid.data.pieces import plan_epoch
from jaxreid.data.samplers import Columns, Sampler
from jaxreid.data.split import Labels
from jaxreid.dataset_info import DatasetInfo
from jaxreid.devices.parallel import register_batch
from jaxreid.errors import UserError
from jaxreid.optimizers import Optimizer, Progress, Schedule
from jaxreid.values import Table

Variables = Any  # nested dicts {"params": …, "batch_stats": …}
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Update:
    """One optimizer and what it trains; most methods have one per stage."""

    name: str
    optimizer: Optimizer
    schedule: Schedule


@dataclasses.dataclass(frozen=True)
class Extraction:
    """A pass over the training split in evaluation mode: `parts` clips of `seq_len` frames per tracklet, or with
    `clip_sampling` those of test tracklets (jaxreid.data.clips.RULES)."""

    every: int  # epochs; 0 = once before the stage
    parts: int
    seq_len: int
    clip_sampling: str = ""
    augment: Augmentation = UNCHANGED  # of the clips; the same draws in every pass

    def plan(self, length: np.ndarray) -> ClipPlan:
        """The clips, tracklet by tracklet; `length` i32[N], frames of every tracklet."""
        if self.clip_sampling:
            return plan_tracklets(length, self.clip_sampling, self.seq_len)
        return plan_all_parts(length, parts=self.parts, seq_len=self.seq_len)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of training in which shapes, trained parameters and compiled steps do not change."""

    name: str
    epochs: int
    sampler: Sampler
    seq_len: int  # frames per clip; 0 = none is read, the stage learns from what `refresh` put into memory
    augment: Augmentation
    updates: tuple[Update, ...]
    extraction: Extraction | None = None
    refresh_after: bool = False  # whether `refresh` is also called after every epoch, without features
    calibrate: bool = False  # whether the first extraction sets batch statistics, before anything else is done with it
    clip_sampling: str = "chunk"  # which frames make a training clip (jaxreid.data.clips.TRAINING_CLIPS)
    clip_stride: int = 1  # of "strided"
    piece_len: int = 0  # frames of the pieces that longer tracklets are cut into, each drawn as a tracklet; 0 = whole

    def plan(self, labels: np.ndarray, columns: Columns, length: np.ndarray, rng: np.random.Generator) -> ClipPlan:
        """The clips of an epoch, batch by batch; see `jaxreid.data.pieces.plan_epoch`."""
        return plan_epoch(
            self.sampler,
            labels,
            columns,
            length,
            rng,
            seq_len=self.seq_len,
            piece_len=self.piece_len,
            clip_sampling=self.clip_sampling,
            stride=self.clip_stride,
        )


POOLS = ("before", "after")  # how the clips of a tracklet are pooled


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How test tracklets become features: which clips (jaxreid.data.clips.RULES) of how many frames, and pooling of a
    tracklet's clips "before" or "after" normalizing; `flip` averages with the mirrored clip. `stride` is that of
    "recombine". With `reranking` "k_reciprocal" every result has a second one beside it, of distances re-ranked
    with `rerank_k1`, `rerank_k2` and `rerank_lambda` (see jaxreid.retrieval.rerank)."""

    clip_sampling: str
    seq_len: int
    pool: str = "after"
    flip: bool = False
    distance: str = "cosine"
    stride: int = 4
    reranking: str = ""
    rerank_k1: int = 20
    rerank_k2: int = 6
    rerank_lambda: float = 0.3

    @property
    def clip_description(self) -> str:
        """The clip sampling in a result record."""
        return f"recombine, stride {self.stride}" if self.clip_sampling == "recombine" else self.clip_sampling

    def plan(self, length: np.ndarray) -> ClipPlan:
        """The test clips of tracklets of these lengths."""
        return plan_tracklets(length, self.clip_sampling, self.seq_len, stride=self.stride)


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone: where in the variables its parameters (and batch statistics) are, which weights it starts from (a
    name of `jaxreid.backbones.hub`, or a path; "" for random numbers)."""

    path: tuple[str, ...]
    name: str
    config: Any  # the network's configuration, which decides shapes and positions


class Features(flax.struct.PyTreeNode):
    """What an extraction pass found: named arrays with one row per clip, padded to a fixed count."""

    arrays: dict[str, jax.Array]  # name → [M, …]
    tracklet: jax.Array  # i32[M], row in the split
    part: jax.Array  # i32[M]
    valid: jax.Array  # bool[M]


class Method:
    """Base class; a method overrides what its paper says.

    Args:
      config: the run's resolved config.
      info: the data set's tables.
    """

    uses_identity = False
    uses_captions = False
    values: ClassVar[Table] = {}  # conditions of the keys that only this method reads

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        register_batch()
        self.config, self.info = config, info

    # --- on the host, called once -------------------------------------------------------------------------------

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        """A sentence for each set of values that do not go together; called before anything is opened."""
        del config
        yield from ()

    def stages(self) -> tuple[Stage, ...]:
        raise NotImplementedError

    def evaluation(self) -> Evaluation:
        """How test tracklets are embedded and compared; the values of `config.evaluation`."""
        return Evaluation(**self.config.evaluation)

    def backbones(self) -> tuple[Backbone, ...]:
        return ()

    def init_memory(self) -> Any:
        """State beside the parameters (prototypes, banks); capacities are fixed here."""
        return {}

    def assumptions(self) -> dict[str, str]:
        """What training may use, by name (labels, captions, …); results that differ here never share a table."""
        told = {"identity labels": "yes" if self.uses_identity else "no"}
        return told | ({"captions": "yes"} if self.uses_captions else {})

    def notes(self) -> tuple[str, ...]:
        """What a reader of the results must know about this run."""
        return ()

    # --- jitted -------------------------------------------------------------------------------------------------

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """Parameters and batch statistics, {"params": …, "batch_stats": …}."""
        raise NotImplementedError

    def loss(
        self,
        variables: Variables,
        memory: Any,
        batch: Batch,
        rng: jax.Array,
        progress: Progress,
        stage: Stage,
        update: str,
    ) -> tuple[jax.Array, tuple[Metrics, Any, Any]]:
        """The scalar to minimise, with (metrics, new batch statistics, new memory)."""
        raise NotImplementedError

    def embed(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, jax.Array]:
        """Clips → features by name, [B, D]; "feature" is what retrieval uses, before normalizing."""
        raise NotImplementedError

    def extract(self, variables: Variables, memory: Any, batch: Batch, stage: Stage) -> dict[str, jax.Array]:
        """What `refresh` needs of each clip."""
        del stage
        return self.embed(variables, memory, batch)

    def calibrate(self, variables: Variables, features: Features) -> tuple[Any, Features]:
        """(batch statistics of what was extracted, the features under these statistics), where the stage asks for it.

        As written here, for encoders whose batch norm "neck" makes "feature" of "tower".
        """
        feature, neck = calibrate_norm(variables["params"]["neck"], features.arrays["tower"], features.valid)
        batch_stats = {**variables["batch_stats"], "neck": neck}
        return batch_stats, features.replace(arrays=features.arrays | {"feature": feature})

    def refresh(
        self,
        variables: Variables,
        memory: Any,
        features: Features | None,
        rng: jax.Array,
        progress: Progress,
        stage: Stage,
    ) -> Any:
        """Memory for the coming epoch from an extraction pass; or, where the stage asks for it after every epoch
        (features None), what in memory has to follow the parameters."""
        del variables, features, rng, progress, stage
        return memory

    def sampling_labels(self, memory: Any) -> jax.Array | None:
        """i32[N], which group each training tracklet is drawn with (−1 never); None = identity labels."""
        del memory
        return None

    # --- for the log only ---------------------------------------------------------------------------------------

    def diagnose(self, memory: Any, labels: Labels) -> dict[str, float]:
        """Figures of merit against the labels, on the host; never fed back into training."""
        del memory, labels
        return {}


def find_method(name: str) -> type[Method]:
    """The method class that a module calls `METHOD`.

    Args:
      name: of a module in `jaxreid/methods`, or the dotted path of one elsewhere ("mypackage.mymethod").

    Raises:
      UserError: there is no such module, or no such class in it.
    """
    path = name if "." in name else f"jaxreid.methods.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # it is there, and imports what is not
        where = f"module {path}" if "." in name else f"jaxreid/methods/{name}.py"
        raise UserError(f"config.method={name!r}: there is no {where}") from None
    method = getattr(module, "METHOD", None)
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"config.method={name!r}: {path} has no METHOD, a subclass of jaxreid.methods.method.Method")
    return method
