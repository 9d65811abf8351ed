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
import numpy as np
from jax.sharding import AbstractMesh

from jaxreid.backbones.flops import count
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
    """A paper that a preset describes, but for the values in `changes`; `unknown` is what it leaves open."""

    paper: str
    preset: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    unknown: str = ""


PAPERS: tuple[OfPreset, ...] = (
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
    OfPreset(
        "HAMoBE",
        "hamobe:mevid",
        unknown="clips are per process in the release, which names two; tracklets are counted with the mean length",
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
        work.append(step_work(again, same, state, frozen, batch))
        kept.append(kept_for_backward(again, same, state, frozen, batch))
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
        trained=state.params,
        moments=state.opt_state,
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


@functools.cache
def workloads() -> tuple[Workload, ...]:
    return tuple(workload_of_preset(paper) for paper in PAPERS)
