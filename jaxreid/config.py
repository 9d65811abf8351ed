"""Configs: what every run has, how presets are composed, which values do not make another run, and where files are."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from jaxreid.errors import UserError
from jaxreid.overlays import DATASETS, TOWERS

# How a run is carried out and where its data lie: may change whenever a run resumes. On another mesh, or with another
# compiled program, results agree to rounding only. Whether data are the same is checked by `Dataset.fingerprint`.
EXECUTION = (
    *("mesh", "loading.threads", "loading.workers", "loading.prefetch", "loading.cache", "keep_checkpoints"),
    *("backbone.remat", "backbone.scan", "dataset.path", "dataset.sixteen_bit"),
    "evaluation.open_set",  # more rates of the same run
    *("evaluation.rescore_size", "evaluation.rescore_mix", "evaluation.rescore_block"),  # and scores, which say so
)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf of nested dicts, in order."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def among(key: str, chosen: Iterable[str]) -> bool:
    """Whether a dotted key is one of the chosen, or below one."""
    return any(key == one or key.startswith(f"{one}.") for one in chosen)


# What every run has, and what it is where nothing else says so.
BASE: dict[str, Any] = {
    "seed": 1,
    "precision": "float32",  # compute type of the network; parameters, norms and losses are always float32
    "extraction_batch_size": 128,  # clips per step where no gradient is needed
    "evaluate_every": 0,  # epochs; 0 = after training only
    "evaluate_start": True,  # also score the features that training starts from, and the free controls
    "log_every": 10,  # steps per row of metrics.jsonl
    "keep_checkpoints": 2,
    "keep_best": False,  # report the epoch with the best test score instead of the last; the results say so
    "dataset.name": "walkers",
    "dataset.config": "",
    "dataset.path": "",  # folder of the original data, for data sets that are not drawn
    "dataset.sixteen_bit": "scale",  # 16-bit pictures to 8 bits, by the range of their tracklet; or "refuse"
    "dataset.train": "train",
    "dataset.query": "query",
    "dataset.gallery": "gallery",
    "dataset.protocols": (),  # keys of jaxreid.retrieval.PROTOCOLS, headline first; () = the data set's own
    "loading.interpolation": "bilinear",
    "loading.test_interpolation": "",  # "" = the same
    "loading.resize": "stretch",  # or "pad": black around a picture of another aspect
    "loading.threads": 2,
    "loading.workers": 0,
    "loading.prefetch": 2,
    "loading.cache": False,
    "backbone.name": "",
    "backbone.checkpoint": "",  # towers and vocabulary; "" = random numbers
    "backbone.remat": False,  # True: less memory, a quarter more work
    "backbone.scan": False,  # True: compiles one block for all, at the price of a copy of the weights
    "backbone.stride": 0,  # pixels from patch to patch, 12 in CLIP-ReID's overlapping variant; 0 = the patch's size
    "optimizer.name": "adam",
    "optimizer.weight_decay": 0.0,
    # Rows (pattern, factor on lr, weight decay or None for weight_decay): the first that is found in a parameter's path
    # counts, a factor of 0 freezes; what none matches has lr and weight_decay.
    "optimizer.groups": (),
    "optimizer.clip_norm": 0.0,  # 0 = off
    "optimizer.b1": 0.9,  # of Adam, with b2 and eps
    "optimizer.b2": 0.999,
    "optimizer.eps": 1e-8,
    "optimizer.momentum": 0.9,  # of SGD, with nesterov
    "optimizer.nesterov": False,
    # What `Schedule` and `Augmentation` are without any value.
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 0.0,
    "schedule.warmup_factor": 0.01,
    "schedule.warmup_lr": None,
    "schedule.milestones": (),
    "schedule.min_factor": 0.05,
    "schedule.cosine_includes_warmup": False,
    "schedule.epoch_offset": None,
    "schedule.min_lr": 0.0,
    "augment.crop": 0,
    "augment.flip": 0.0,
    "augment.erase": 0.0,
    "augment.erase_area": 0.4,
    "augment.erase_fill": "mean",
    "augment.erase_constant": (0.0, 0.0, 0.0),
    "augment.channel_exchange": 0.0,
    "augment.infrared_mix": False,
    "augment.brightness": 0.0,
    "augment.contrast": 0.0,
    "augment.gamma": 0.0,
    "augment.negative": 0.0,
    "augment.saturation": 0.0,
    "augment.hue": 0.0,
    "augment.jitter": 1.0,
    "augment.per_frame": (),
    "evaluation.pool": "after",
    "evaluation.normalize": True,
    "evaluation.flip": False,
    "evaluation.outputs": ("feature",),
    "evaluation.distance": "cosine",
    # "k_reciprocal" adds re-ranked results; k1, k2 and λ as its authors chose them.
    "evaluation.reranking": "",
    "evaluation.rerank_k1": 20,
    "evaluation.rerank_k2": 6,
    "evaluation.rerank_lambda": 0.3,
    "evaluation.rerank_raw": False,
    # Of methods that score pairs: K nearest gallery tracklets of each query that are re-scored, 0 = none; the weight of
    # the pair's score beside the cosine; pairs at a time over all devices.
    "evaluation.rescore_size": 0,
    "evaluation.rescore_mix": 0.5,
    "evaluation.rescore_block": 64,
    "evaluation.open_set": False,  # True: also rates where a tenth of the persons is not in the gallery
    "mesh.devices": 0,
    "mesh.fsdp": 1,
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A method on a data set: names of `TOWERS` and `DATASETS`, and what differs from the method's own values."""

    tower: str
    dataset: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def compose(
    file: str, method: str, preset: str, values: Mapping[str, Any], presets: Mapping[str, Preset]
) -> ml_collections.ConfigDict:
    """The config of a preset: base ← tower ← data set ← method ← preset, by dotted keys; what comes later wins.

    Args:
      file: `__file__` of the config, which names its runs: several configs may share a method.
      preset: the first of `presets` where empty.
      values: of the method.

    Raises:
      UserError: there is no such preset.
    """
    preset = preset or next(iter(presets))
    if preset not in presets:
        raise UserError(f"unknown preset {preset!r}; this config has {', '.join(presets)}")
    chosen, name = presets[preset], Path(file).stem
    layers = {
        "base": BASE,
        f"tower {chosen.tower}": TOWERS[chosen.tower],
        f"data set {chosen.dataset}": DATASETS[chosen.dataset],
        f"method {name}": {"name": name, "method": method, **values},
        f"preset {preset}": {"preset": preset, **chosen.changes},
    }
    config, sources = ml_collections.ConfigDict(), {}
    for source, layer in layers.items():
        sources |= dict.fromkeys(layer, source)
    for key in sources:
        *path, leaf = key.split(".")
        place: Any = config
        for part in path:
            if part not in place:
                place[part] = ml_collections.ConfigDict()
            place = place[part]
        place[leaf] = next(layer[key] for layer in reversed(layers.values()) if key in layer)
    object.__setattr__(config, "sources", sources)  # beside the values, for `origins`
    return config


def origins(config: Any, defaults: Any) -> Iterator[tuple[str, Any, str]]:
    """(dotted key, value, which overlay set it) of every value of a config.

    Args:
      defaults: the config as `compose` made it; what differs from it was set on the command line.
    """
    sources, usual = getattr(defaults, "sources", {}), dict(flatten(defaults.to_dict()))
    for key, value in flatten(config.to_dict()):
        changed = key not in usual or usual[key] != value
        yield key, value, "command line" if changed else sources.get(key, "config file")


def is_config(value: Any) -> bool:
    """Whether JSON is a run's config; other programs have files of that name, too."""
    return isinstance(value, dict) and {"method", "seed", "dataset"} <= set(value)


def sibling(file: str, name: str) -> ModuleType:
    """The config `name`.py beside the config `file`: members of a family share one table."""
    return config_module(Path(file).with_name(f"{name}.py"))


def config_module(path: Path) -> ModuleType:
    """The module of a config file: `get_config(preset)`, and in `PRESETS` the names of all presets."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packaged_configs() -> list[Path]:
    """The config files that come with the package, by name: inside of an installed one, else beside it."""
    here = Path(__file__).parent
    folder = here / "configs"
    return sorted((folder if folder.is_dir() else here.parent / "configs").glob("*.py"))


def find_config(name: str) -> str:
    """`--config` value → path of an existing file, preset kept: a path, or the name of a packaged config.

    Raises:
      UserError: there is no such file.
    """
    path, separator, preset = name.partition(":")
    packaged = {file.stem: file for file in packaged_configs()}
    for candidate in (Path(path), packaged.get(Path(path).stem)):
        if candidate and candidate.is_file():
            return f"{candidate}{separator}{preset}"
    raise UserError(
        f"--config={name}: there is no such file, and no packaged config of that name ({', '.join(packaged)})"
    )
