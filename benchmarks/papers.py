"""What the ten papers' configurations ask of a machine: shapes of the state, work of a step, activations, frames.

Nothing is computed on a device and no data set is read: work is counted in traced programs (`jaxreid.backbones.flops`),
arrays are shapes. Where a preset of configs/ is a paper's configuration, or differs from it in a few values, method,
batch and epochs are the preset's own. Texts are tokenized with the vocabulary of an installed open_clip.
benchmarks/planning.py makes tables of it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from jaxreid.backbones.flops import count
from jaxreid.backbones.frame_encoder import encoder_config
from jaxreid.backbones.resnet import ResNet, ResNetConfig
from jaxreid.backbones.vit import ViT
from jaxreid.config import find_config
from jaxreid.data.dataset import Dataset, plan_dataset
from jaxreid.data.planned import planned_split
from jaxreid.dataset_info import dataset_info
from jaxreid.methods.method import Stage, Update, find_method
from jaxreid.optimizers import split_trained
from jaxreid.run.model import Run, abstract_batch, make_model
from jaxreid.training.dry_run import kept_for_backward
from jaxreid.training.start import abstract_train_state
from jaxreid.training.steps import loss_of, progress_at, variables_of

AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Workload:
    """What one stage of a configuration asks for, over all devices.

    `trained`, `moments`, `held` (frozen weights, statistics, memory) are trees of shapes. `work` is FLOP of a step and
    `kept` bytes of activations that its backward pass needs, `…_remat` the same where blocks are computed again for
    it. `other_work` is FLOP per epoch outside of steps, `decoded` frames read per epoch.
    """

    paper: str
    origin: str
    data: str
    tower: str
    size: tuple[int, int]
    clips: int
    frames: int
    epochs: int
    steps: int
    trained: Any
    moments: Any
    held: Any
    work: float
    work_remat: float
    other_work: float
    kept: float
    kept_remat: float
    decoded: float
    unknown: str = ""


# All that is published of VReID-XFD is what both halves hold together.
XFD = {"tracklets": {"rgb": 11_288}, "frames": {"rgb": 11_750_000}, "identities": 371, "cameras": 3}
XFD_THINNED = 64 * 11_288  # frames, where the builder keeps at most 64 of a tracklet
ALL_XFD = "the data set's training half is not published: an epoch over both halves is an upper bound"


@dataclasses.dataclass(frozen=True)
class OfPreset:
    """A paper that a preset describes, but for the values in `changes` and what the library does not have (yet).

    `times` is how many such steps one of the paper's needs, `kept_times` how many of their activations it holds at
    once, `extra` forward-and-backward FLOP of the missing parts, `parameters` what these train.
    """

    paper: str
    preset: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    times: float = 1.0
    kept_times: float = 1.0
    extra: float = 0.0
    parameters: int = 0
    unknown: str = ""


@dataclasses.dataclass(frozen=True)
class OfTowers:
    """A paper that no preset resembles: its towers (name, size, copies, trained), and its other layers as numbers."""

    paper: str
    data: str
    towers: tuple[tuple[str, tuple[int, int], int, bool], ...]
    clips: int
    frames: int
    epochs: int
    steps: int
    extra: float  # forward-and-backward FLOP of a step
    parameters: int  # trained, outside of the towers
    unknown: str = ""


PAPERS: tuple[OfPreset | OfTowers, ...] = (
    OfPreset("HiTPro", "hitpro:hitsz_vcm"),
    OfPreset(
        "LSMRL",
        "lsmrl:hitsz_vcm",
        unknown="below the abstract the method is a design, batch and epochs an ancestor's",
    ),
    OfPreset(
        "CG-CLIP",
        "cg_clip:mars",
        unknown="below the abstract the method is a design, frames, batch, epochs and learning rates are TF-CLIP's; "
        "captions are counted as long as they may be, 77 tokens",
    ),
    OfPreset("VReID-XFD baseline", "vreid_xfd:detreidx", unknown=ALL_XFD),
    OfPreset(
        "CLIP-XFD",
        "clip_xfd:detreidx",
        unknown=f"batch (24 in the release of an earlier form) and how many blocks train (4 of 24 here); {ALL_XFD}",
    ),
    OfPreset(
        "SAS-VPReID",
        "sas_vpreid:detreidx",
        {"precision": "bfloat16"},
        unknown=f"planned in bfloat16, the release computes in float32; {ALL_XFD}",
    ),
    OfPreset(
        "S3-CLIP",
        "s3_clip:detreidx",
        unknown=f"everything but the idea: networks, batch and epochs are a design; {ALL_XFD}",
    ),
    OfPreset(
        "CSIP-ReID",
        "csip_reid:mars",
        unknown="its second stage; the first learns from features that are computed once",
    ),
    OfPreset("KeyRe-ID", "keyre_id:mars"),
    OfTowers(
        "HAMoBE",
        "mevid",
        (("ViT-L/14", (224, 224), 1, False),),
        clips=24,
        frames=16,
        epochs=200,
        steps=6_338 * (590 // 64) // 24,  # pieces of 64 frames of tracklets of 590
        extra=3 * 24 * 0.17e12,
        parameters=28_544_487,
        unknown="clips are per process in the release, which names two; the head's activations are not counted",
    ),
    OfPreset(
        "DinoGRL",
        "dinogrl:hitsz_vcm",
        unknown="epochs (120, 200 or 300 in the release)",
    ),
)


def workload_of_preset(paper: OfPreset) -> Workload:
    """The stage of a preset that trains its tower, with what the paper has beside it."""
    run, stage = preset_run(paper.preset, paper.changes)
    config, columns = run.config, run.method.info.columns
    state, frozen = abstract_train_state(run, stage)
    clips = stage.sampler.batch_size(columns)
    labels = run.method.sampling_labels(run.method.init_memory())
    labels = run.dataset.train.labels.identity if labels is None else np.asarray(labels)
    length = run.dataset.train.table.length
    steps = len(stage.plan(labels, columns, length, np.random.default_rng(0))) // clips
    other_work, decoded = 0.0, float(clips * stage.seq_len * steps)
    if stage.extraction:
        passes = -(-stage.epochs // stage.extraction.every) if stage.extraction.every else 1
        read = len(stage.extraction.plan(length)) * stage.extraction.seq_len
        other_work = passes / stage.epochs * read * _extraction_work(run, stage, state, frozen)
        decoded += passes / stage.epochs * read
    work, kept = [], []
    for remat in (False, True):
        again, same = preset_run(paper.preset, paper.changes | {"backbone.remat": remat})
        batch = abstract_batch(again, clips, stage.seq_len, "train")
        work.append(paper.times * step_work(again, same, state, frozen, batch) + paper.extra)
        kept.append(paper.kept_times * kept_for_backward(again, same, state, frozen, batch))
    extra = _flat(paper.parameters)
    told = {key: value for key, value in paper.changes.items() if key != "precision" and not key.startswith("dataset.")}
    changed = ", ".join(f"`{key}={value}`" for key, value in told.items()).replace("|", "\\|")
    return Workload(
        paper=paper.paper,
        origin=f"`{paper.preset}`" + (f" with {changed}" if told else ""),
        data=config.dataset.name,
        tower=config.backbone.name,
        size=(config.frames.height, config.frames.width),
        clips=clips,
        frames=stage.seq_len,
        epochs=stage.epochs,
        steps=steps,
        trained=(state.params, extra),
        moments=(state.opt_state, extra, extra),
        held=(frozen, state.batch_stats, state.memory),
        work=work[0],
        work_remat=work[1],
        other_work=other_work,
        kept=kept[0],
        kept_remat=kept[1],
        decoded=decoded,
        unknown=paper.unknown,
    )


def preset_run(preset: str, changes: dict[str, Any]) -> tuple[Run, Stage]:
    """A run of a preset on a data set of the published size, and its last stage, which trains the tower."""
    name, _, column = preset.partition(":")
    spec = importlib.util.spec_from_file_location(name, find_config(name))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(column)
    config.update_from_flattened_dict(changes)
    dataset = _xfd() if config.dataset.name == "detreidx" else plan_dataset(config.dataset)
    assert dataset
    info = dataset_info(dataset, find_method(config.method), (config.frames.height, config.frames.width))
    model = make_model(config, Path(), AbstractMesh((1, 1), AXES), info, dry=True)  # pyright: ignore[reportArgumentType]
    run = Run(**vars(model), dataset=dataset)
    return run, run.method.stages()[-1]


def _xfd() -> Dataset:
    split = planned_split("detreidx", "train", XFD)
    return Dataset("detreidx", split.directory, split, (), (), np.unique(split.table.camera))


def step_work(run: Run, stage: Stage, state: Any, frozen: Any, batch: Any) -> int:
    """FLOP of a step on a batch of these shapes: of all its updates, each with the gradient of what it trains."""
    state, frozen, batch = map(_shapes, (state, frozen, batch))
    batch = batch.replace(frames=jax.ShapeDtypeStruct(batch.frames.shape, run.pixels.dtype))

    def of(update: Update) -> int:
        def gradients(own: Any, others: Any, state: Any, frozen: Any, batch: Any) -> Any:
            progress = progress_at(stage, 0, 0, 1)
            loss = loss_of(stage, update, others, frozen, state.batch_stats, state.memory, batch, state.rng, progress)
            return jax.value_and_grad(loss, has_aux=True)(own)

        return count(gradients, *split_trained(state.params, update.optimizer), state, frozen, batch)

    return sum(map(of, stage.updates))


def _extraction_work(run: Run, stage: Stage, state: Any, frozen: Any) -> float:
    """FLOP per frame."""
    assert stage.extraction
    clips, frames = run.config.extraction_batch_size, stage.extraction.seq_len
    batch = _shapes(abstract_batch(run, clips, frames, "extract"))
    batch = batch.replace(frames=jax.ShapeDtypeStruct(batch.frames.shape, run.pixels.dtype))

    def extract(state: Any, frozen: Any, batch: Any) -> Any:
        found = stage.extraction.extract or run.method.embed
        return found(variables_of(state, frozen), state.memory, batch.without_identity())

    return count(extract, state, frozen, batch) / (clips * frames)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _flat(parameters: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Parameters whose shapes do not matter: as one array that every mesh here divides."""
    rounded = -(-parameters // 96) * 96
    return (jax.ShapeDtypeStruct((rounded,), jnp.float32),) if parameters else ()


def workload_of_towers(paper: OfTowers) -> Workload:
    count_frames = paper.clips * paper.frames
    work, repeated, kept, kept_remat = paper.extra, 0.0, 0.0, 0.0
    trained: list[Any] = [_flat(paper.parameters)]
    held: list[Any] = []
    for name, size, copies, trains in paper.towers:
        forward, params = _tower(name, size)
        work += copies * count_frames * forward * (3 if trains else 1)
        (trained if trains else held).extend([params] * copies)
        if trains:
            repeated += copies * count_frames * forward
            kept += copies * _tower_activations(name, size, count_frames, remat=False)
            kept_remat += copies * _tower_activations(name, size, count_frames, remat=True)
    name, size, *_ = paper.towers[0]
    return Workload(
        paper=paper.paper,
        origin="by towers: " + ", ".join(f"{copies} × {n}" for n, _, copies, _ in paper.towers),
        data=paper.data,
        tower=name,
        size=size,
        clips=paper.clips,
        frames=paper.frames,
        epochs=paper.epochs,
        steps=paper.steps,
        trained=trained,
        moments=(trained, trained),
        held=held,
        work=work,
        work_remat=work + repeated,
        other_work=0.0,
        kept=kept,
        kept_remat=kept_remat,
        decoded=float(paper.steps * count_frames),
        unknown=paper.unknown,
    )


def _module(name: str, size: tuple[int, int], frames: int, remat: bool = False) -> tuple[Any, tuple[Any, ...]]:
    """A tower and shapes of the arguments of a pass over some frames."""
    config = encoder_config(name, size, "bfloat16", remat)
    pixels = jax.ShapeDtypeStruct((frames, *size, 3), jnp.bfloat16)
    if isinstance(config, ResNetConfig):
        number = jax.ShapeDtypeStruct((frames,), jnp.int32)
        return ResNet(config), (pixels, None, number)
    return ViT(config), (pixels,)


def _tower(name: str, size: tuple[int, int]) -> tuple[int, Any]:
    """(FLOP per frame of a forward pass, shapes of the parameters)."""
    module, arguments = _module(name, size, 1)
    variables = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    return count(lambda v, a: module.apply(v, *a), variables, arguments), variables["params"]


def _tower_activations(name: str, size: tuple[int, int], frames: int, remat: bool) -> float:
    """Bytes that differentiation keeps, as `jaxreid.training.dry_run.kept_for_backward` counts them."""
    module, arguments = _module(name, size, frames, remat)
    variables = jax.eval_shape(module.init, jax.random.key(0), *arguments)

    def pullback(variables: Any, arguments: Any) -> Any:
        def forward(params: Any) -> Any:
            found = module.apply({**variables, "params": params}, *arguments, train=True, mutable=["batch_stats"])[0]
            return found

        return jax.vjp(forward, variables["params"])[1]

    leaves = jax.tree.leaves(jax.eval_shape(pullback, variables, arguments))
    return float(
        sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.shape[:1] and leaf.shape[0] % frames == 0)
    )


@functools.cache
def workloads() -> tuple[Workload, ...]:
    return tuple(
        workload_of_preset(paper) if isinstance(paper, OfPreset) else workload_of_towers(paper) for paper in PAPERS
    )
