"""The interface of a method: what a paper's file provides, and what training does with it.

Everything that a method computes is a pure function of arrays; its object holds the config, the data set's tables
and the Flax modules. Training calls

    init_memory, then for each stage: begin_stage → [extract → refresh → sampling_labels → steps] per epoch

where a stage names the functions that are its own: its loss, and what its extraction finds and refreshes. No method
knows a device, a host or a file. docs/methods.md writes one from an empty file.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from types import ModuleType
from typing import Any, ClassVar, Literal

import flax.struct
import jax
import numpy as np

from jaxreid.augment import UNCHANGED, Augmentation
from jaxreid.backbones import hub
from jaxreid.backbones.batch_norm import calibrate_norm
from jaxreid.data.batch import Batch
from jaxreid.data.clips import ClipPlan, plan_all_parts, plan_tracklets
from jaxreid.data.extras import Extra
from jaxreid.data.pieces import plan_epoch
from jaxreid.data.samplers import Columns, Sampler
from jaxreid.data.split import Labels
from jaxreid.dataset_info import DatasetInfo
from jaxreid.devices.parallel import register_batch
from jaxreid.errors import UserError
from jaxreid.methods.released import Released
from jaxreid.optimizers import Optimizer, Progress, Schedule
from jaxreid.values import Table

Variables = Any  # nested dicts {"params": …, "batch_stats": …}
Metrics = dict[str, jax.Array]


# ----------------------------------------------------------------------------------------------------------------
# What the functions of a stage take and give
# ----------------------------------------------------------------------------------------------------------------


class Context(flax.struct.PyTreeNode):
    """What a function of a stage knows besides its arrays."""

    rng: jax.Array
    progress: Progress
    update: str = flax.struct.field(pytree_node=False, default="")  # which of the stage's updates wants the loss


class LossOutput(flax.struct.PyTreeNode):
    """What a loss gives: the scalar to minimize, figures for the log, and the state that the step leaves."""

    total: jax.Array  # f32[]
    metrics: Metrics
    batch_stats: Any
    memory: Any

    @classmethod
    def weighted(cls, losses: Mapping[str, tuple[Any, jax.Array]], batch_stats: Any, memory: Any) -> LossOutput:
        """The sum of {name: (weight, value)}; the log shows the values, as "loss_" and the name."""
        total: Any = sum(weight * value for weight, value in losses.values())
        return cls(total, {f"loss_{name}": value for name, (_, value) in losses.items()}, batch_stats, memory)


class Features(flax.struct.PyTreeNode):
    """What an extraction pass found: named features with one row per clip, padded to a fixed count."""

    arrays: dict[str, Any]  # name → [M, …], or a pytree of such
    tracklet: jax.Array  # i32[M], row in the split
    part: jax.Array  # i32[M]
    valid: jax.Array  # bool[M]


class Examined(flax.struct.PyTreeNode):
    """What `Method.examine` finds in B clips: figures f32[B] by name, and of one frame of each the pictures
    [B, h, w, 3] of values in 0…1 that are shown beside each other, with their captions. `valid` bool[B]: of which clips
    there are any."""

    figures: dict[str, Any]
    pictures: tuple[Any, ...]
    valid: jax.Array
    captions: tuple[str, ...] = flax.struct.field(pytree_node=False)


Loss = Callable[[Variables, Any, Batch, Context], LossOutput]  # variables, memory, …
Extract = Callable[[Variables, Any, Batch], dict[str, Any]]  # variables, memory, clips → pytrees of [B, …] by name
Refresh = Callable[[Variables, Any, Features, Context], Any]  # variables, memory, … → memory
RefreshAfter = Callable[[Variables, Any, Context], Any]  # variables, memory, … → memory


# ----------------------------------------------------------------------------------------------------------------
# Stages
# ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Update:
    """One optimizer and what it trains; most methods have one per stage."""

    name: str
    optimizer: Optimizer
    schedule: Schedule


@dataclasses.dataclass(frozen=True)
class Extraction:
    """A pass over the training split in evaluation mode, and what is made of it: `parts` clips of `seq_len` frames per
    tracklet, or with `clip_sampling` those of test tracklets (jaxreid.data.clips.RULES)."""

    every: int  # epochs; 0 = once before the stage
    parts: int
    seq_len: int
    refresh: Refresh | None = None  # the memory of the coming epoch; None = as it is
    extract: Extract | None = None  # what is kept of each clip; None = `Method.embed`
    clip_sampling: str = ""
    augment: Augmentation = UNCHANGED  # of the clips; the same draws in every pass

    def plan(self, length: np.ndarray) -> ClipPlan:
        """The clips, tracklet by tracklet; `length` i32[N], frames of every tracklet."""
        if self.clip_sampling:
            return plan_tracklets(length, self.clip_sampling, self.seq_len)
        return plan_all_parts(length, parts=self.parts, seq_len=self.seq_len)


@dataclasses.dataclass(frozen=True)
class Cached:
    """Features of the training split that a stage learns from, found once before it: of `parts` clips of `seq_len`
    frames per tracklet or, with parts 0, of every frame. Its losses find them in `batch.extras` under the names that
    `extract` gives, [B, …]; those of frames [B, T, …], for which `Method.extras("train")` must name "frame_place"."""

    extract: Extract
    parts: int = 0
    seq_len: int = 1
    augment: Augmentation = UNCHANGED  # of the clips


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of training in which shapes, trained parameters and compiled steps do not change.

    It is `epochs` long; extraction, evaluation and checkpoints stand between epochs. An epoch is a pass of the sampler
    or, where the stage's length is given in `steps`, its even share of them, in as many passes as that takes.
    """

    name: str
    epochs: int
    loss: Loss
    sampler: Sampler
    seq_len: int  # frames per clip; 0 = none is read, the stage learns from what is cached or in memory
    augment: Augmentation
    updates: tuple[Update, ...]
    extraction: Extraction | None = None
    cached: Cached | None = None
    refresh_after: RefreshAfter | None = None  # after every epoch: what in memory has to follow the parameters
    calibrate: bool = False  # whether the first extraction sets batch statistics, before anything else is done with it
    clip_sampling: str = "chunk"  # which frames make a training clip (jaxreid.data.clips.TRAINING_CLIPS)
    clip_stride: int = 1  # of "strided"
    piece_len: int = 0  # frames of the pieces that longer tracklets are cut into, each drawn as a tracklet; 0 = whole
    steps: int = 0  # of the whole stage; 0 = as many as the sampler draws
    ema_decay: float = 0.0  # per step, of the average of weights that extractions and tests see; 0 = of the newest
    pictures: bool = (
        True  # whether frames are read; else they are 0 × 0, and extras and what is cached are all there is
    )

    def __post_init__(self) -> None:
        if 0 < self.steps < self.epochs:
            raise UserError(f"stage {self.name!r}: {self.steps} steps in {self.epochs} epochs leave some without any")

    def plan(
        self, labels: np.ndarray, columns: Columns, length: np.ndarray, rng: np.random.Generator, epoch: int = 0
    ) -> ClipPlan:
        """The clips of an epoch, batch by batch; see `jaxreid.data.pieces.plan_epoch`."""

        def one_pass() -> ClipPlan:
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

        plan = one_pass()
        if not self.steps:
            return plan
        share = (epoch + 1) * self.steps // self.epochs - epoch * self.steps // self.epochs
        clips = share * self.sampler.batch_size(columns)
        while len(plan) < clips:
            plan = plan.followed_by(one_pass())
        return plan.first(clips)


# ----------------------------------------------------------------------------------------------------------------
# Evaluation, backbones, extras
# ----------------------------------------------------------------------------------------------------------------


POOLS = ("before", "after")  # how the clips of a tracklet are pooled
OWN = "own"  # of distances: the method's


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How test tracklets become features: which clips (jaxreid.data.clips.RULES) of how many frames, and pooling of a
    tracklet's clips "before" or "after" normalizing, or without it; `flip` averages with the mirrored clip. `stride` is
    that of "recombine".

    `outputs` of `Method.embed` are scored, each with a result of its own; the first is the headline. `distance` is one
    of jaxreid.retrieval.DISTANCES or, with "own", `Method.distance`. With `reranking` "k_reciprocal" the headline's
    results have second ones beside them, of distances re-ranked with `rerank_k1`, `rerank_k2` and `rerank_lambda`
    (see jaxreid.retrieval.rerank); `rerank_raw`: from Euclidean distances of features as they are, for which they must
    not be normalized. `open_set` adds the rates of a search for persons who may not be in the gallery
    (jaxreid.retrieval.open_set).

    With a `rescore_size` K above 0 the headline's results have second ones beside them as well, for which the K nearest
    gallery tracklets of each query are put in the order of `rescore_mix` · `Method.pair_score` + (1 − `rescore_mix`) ·
    cosine, `rescore_block` pairs at a time over all devices (see jaxreid.evaluation.rescoring)."""

    clip_sampling: str
    seq_len: int
    pool: str = "after"
    normalize: bool = True
    flip: bool = False
    outputs: tuple[str, ...] = ("feature",)
    distance: str = "cosine"
    stride: int = 4
    reranking: str = ""
    rerank_k1: int = 20
    rerank_k2: int = 6
    rerank_lambda: float = 0.3
    rerank_raw: bool = False
    rescore_size: int = 0
    rescore_mix: float = 0.5
    rescore_block: int = 64
    open_set: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", tuple(self.outputs))  # a config that was read holds a list

    @property
    def headline(self) -> str:
        """The output that a run is judged by."""
        return self.outputs[0]

    @property
    def rerank_options(self) -> dict[str, Any]:
        """Arguments of a re-ranking, but for the distance of a method's own."""
        distance = "euclidean" if self.rerank_raw else self.distance
        return {"k1": self.rerank_k1, "k2": self.rerank_k2, "lambda_": self.rerank_lambda, "distance": distance}

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


Phase = Literal["train", "extract", "test"]  # of a run, for which extras are asked


# ----------------------------------------------------------------------------------------------------------------
# The method
# ----------------------------------------------------------------------------------------------------------------


class Method:
    """Base class; a method overrides what its paper says.

    Class attributes declare what a run may learn from, before anything is opened: `uses_identity` and `uses_captions`
    decide what data the method is given, and with `assumes` what results state. Results that differ in what they state
    never share a table.

    Args:
      config: the run's resolved config.
      info: the data set's tables.
    """

    uses_identity = False
    uses_captions = False
    sees_pictures = True  # False: no pass reads any, frames are 0 × 0, and the config names no tower
    assumes: ClassVar[Mapping[str, str]] = {}  # name of an assumption → the config key whose value is stated
    values: ClassVar[Table] = {}  # conditions of the keys that only this method reads
    released: ClassVar[Released | None] = None  # checkpoints of its authors

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        register_batch()
        self.config, self.info = config, info

    # --- on the host, called once -------------------------------------------------------------------------------

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        """A sentence for each set of values that do not go together; called before anything is opened."""
        del config
        yield from ()

    @classmethod
    def tower_size(cls, config: Any) -> tuple[int, int]:
        """Height and width in pixels of what the tower of `config.backbone` is given: the frames, unless a method
        brings them to another size for it."""
        return config.frames.height, config.frames.width

    @classmethod
    def reads_captions(cls, config: Any) -> bool:
        """Whether a run of this config is given the captions of its training split: of a class with `uses_captions`,
        unless some values do without them."""
        del config
        return cls.uses_captions

    def stages(self) -> tuple[Stage, ...]:
        raise NotImplementedError

    def evaluation(self) -> Evaluation:
        """How test tracklets are embedded and compared; the values of `config.evaluation`."""
        return Evaluation(**self.config.evaluation)

    def backbones(self) -> tuple[Backbone, ...]:
        return ()

    def extras(self, phase: Phase) -> Mapping[str, Extra]:
        """What `Batch.extras` holds in training, in extraction passes and at test time, by name (see
        `jaxreid.data.extras`)."""
        del phase
        return {}

    def init_memory(self) -> Any:
        """State beside the parameters (prototypes, banks); capacities are fixed here."""
        return {}

    def begin_stage(self, memory: Any, stage: Stage) -> Any:
        """Memory at the border of a stage, where its structure may change; also called before the first. Pure: a
        restored run takes the shapes from here, and `embed` sees memory as the last stage begins with it.
        """
        del stage
        return memory

    def assumptions(self) -> dict[str, str]:
        """What training may use, by name (labels, captions, …), from what the class declares."""
        stated = {"identity labels": "yes" if self.uses_identity else "no"}
        stated |= {"captions": "yes"} if self.reads_captions(self.config) else {}
        return stated | {name: str(attrgetter(key)(self.config)) for name, key in self.assumes.items()}

    def notes(self) -> tuple[str, ...]:
        """What a reader of the results must know of this run: supervision, starting weights, what a method adds."""
        supervised = "Supervised: identity labels of the training tracklets were used."
        notes = [supervised if self.uses_identity else "No identity label was used."]
        notes += ["Captions of the training tracklets were used."] if self.reads_captions(self.config) else []
        cards = dict.fromkeys(hub.card(backbone.name) for backbone in self.backbones())
        return (*notes, *filter(None, cards))

    # --- jitted -------------------------------------------------------------------------------------------------

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """Parameters and batch statistics, {"params": …, "batch_stats": …}."""
        raise NotImplementedError

    def embed(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, Any]:
        """Clips → features by name, before normalizing: [B, D]; [B, P, D] of body parts, or
        `jaxreid.retrieval.Parts`; or any pytree of arrays [B, …] that `distance` understands. `Evaluation.outputs` says
        which of them retrieval uses: "feature", unless a method says otherwise."""
        raise NotImplementedError

    @property
    def examines(self) -> bool:
        """Whether there is something to `examine`."""
        return False

    def examine(self, variables: Variables, memory: Any, batch: Batch) -> Examined:
        """What can be said of test clips beside their features, for the results and the report of a finished run."""
        raise NotImplementedError

    def calibrate(self, variables: Variables, features: Features) -> tuple[Any, Features]:
        """(batch statistics of what was extracted, the features under these statistics), where the stage asks for it.

        As written here, for encoders whose batch norm "neck" makes "feature" of "tower".
        """
        feature, neck = calibrate_norm(variables["params"]["neck"], features.arrays["tower"], features.valid)
        batch_stats = {**variables["batch_stats"], "neck": neck}
        return batch_stats, features.replace(arrays=features.arrays | {"feature": feature})

    def sampling_labels(self, memory: Any) -> jax.Array | None:
        """i32[N], which group each training tracklet is drawn with (−1 never); None = identity labels."""
        del memory
        return None

    # --- retrieval of a method's own ----------------------------------------------------------------------------

    def distance(self, queries: Any, gallery: Any) -> jax.Array:
        """Features of Q query and G gallery tracklets, in the form in which `embed` gives them → f32[Q, G], smaller is
        nearer; in place of the distances that `Evaluation.distance` names."""
        raise NotImplementedError

    @classmethod
    def scores_pairs(cls) -> bool:
        """Whether it has a score of pairs, so that `Evaluation.rescore_size` may ask for it."""
        return cls.pair_score is not Method.pair_score

    def pair_features(self, variables: Variables, memory: Any, batch: Batch) -> dict[str, jax.Array]:
        """What `pair_score` needs of each clip, [B, …] by name; kept for every tracklet in the types that it has here
        (bfloat16 takes half the room)."""
        raise NotImplementedError

    def pair_score(self, variables: Variables, memory: Any, queries: Any, gallery: Any) -> jax.Array:
        """Pair features of N queries and of N gallery tracklets, row i against row i → f32[N], larger is nearer: a
        network that looks at both sides. It need not be symmetric."""
        raise NotImplementedError

    @classmethod
    def examines_pairs(cls) -> bool:
        """Whether there is something to `examine_pairs`."""
        return cls.examine_pairs is not Method.examine_pairs

    def examine_pairs(self, variables: Variables, memory: Any, queries: Any, gallery: Any) -> dict[str, jax.Array]:
        """What can be said of pairs beside their score, f32[N] by name, for the results and the report of a finished
        run; arguments as of `pair_score`."""
        raise NotImplementedError

    # --- for the log only ---------------------------------------------------------------------------------------

    def diagnose(self, memory: Any, labels: Labels) -> dict[str, float]:
        """Figures of merit against the labels, on the host; never fed back into training."""
        del memory, labels
        return {}


def find_method(name: str) -> type[Method]:
    """The method class that a module calls `METHOD`.

    Args:
      name: of a module in `jaxreid/methods`, or of one elsewhere that Python finds ("mymethod", "mypackage.mymethod").

    Raises:
      UserError: there is no such module, or no such class in it.
    """
    paths = [name] if "." in name else [f"jaxreid.methods.{name}", name]
    module = next(filter(None, map(_imported, paths)), None)
    if module is None:
        packaged = "" if "." in name else f"jaxreid/methods/{name}.py, and no "
        raise UserError(f"config.method={name!r}: there is no {packaged}module {name} where Python looks")
    method = getattr(module, "METHOD", None)
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(
            f"config.method={name!r}: {module.__name__} has no METHOD, a subclass of jaxreid.methods.method.Method"
        )
    return method


def _imported(path: str) -> ModuleType | None:
    """A module, None where there is none; what it imports in vain is not hidden."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        return None
