"""Values that every run has, which of them do not make it another run, and where config files are found."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from jaxreid.errors import UserError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

# How a run is carried out and where its data lie: may change whenever a run resumes. On another mesh, or with another
# compiled program, results agree to rounding only. Whether data are the same is checked by `Dataset.fingerprint`.
EXECUTION = (
    *("mesh", "loading.threads", "loading.workers", "loading.prefetch", "loading.cache", "keep_checkpoints"),
    *("backbone.remat", "backbone.scan", "dataset.path", "dataset.sixteen_bit"),
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


def base_config(file: str, method: str, preset: str) -> Any:
    """What `configs/*.py` start from; a value that a method reads is set there or in its preset.

    Args:
      file: `__file__` of the config, which names its runs: several configs may share a method.
    """
    config = ml_collections.ConfigDict()
    config.name = Path(file).stem
    config.method = method
    config.preset = preset
    config.seed = 1
    config.precision = "float32"  # compute type of the network; parameters, norms and losses are always float32
    config.extraction_batch_size = 128  # clips per step where no gradient is needed
    config.evaluate_every = 0  # epochs; 0 = after training only
    config.evaluate_start = True  # also score the features that training starts from, and the free controls
    config.log_every = 10  # steps per row of metrics.jsonl
    config.keep_checkpoints = 2
    config.keep_best = False  # report the epoch with the best test score instead of the last; the results say so

    config.dataset = ml_collections.ConfigDict()
    config.dataset.name = "walkers"
    config.dataset.config = ""
    config.dataset.path = ""  # folder of the original data, for data sets that are not drawn
    config.dataset.sixteen_bit = "scale"  # 16-bit pictures to 8 bits, by the range of their tracklet; or "refuse"
    config.dataset.train = "train"
    config.dataset.query = "query"
    config.dataset.gallery = "gallery"
    config.dataset.protocols = ()  # keys of jaxreid.retrieval.PROTOCOLS, headline first; () = the data set's own

    config.frames = ml_collections.ConfigDict({"height": 256, "width": 128, **IMAGENET})
    config.loading = ml_collections.ConfigDict(
        {"interpolation": "bilinear", "threads": 2, "workers": 0, "prefetch": 2, "cache": False}
    )
    # "k_reciprocal" adds re-ranked results; k1, k2 and λ as its authors chose them.
    config.evaluation = ml_collections.ConfigDict(
        {"reranking": "", "rerank_k1": 20, "rerank_k2": 6, "rerank_lambda": 0.3}
    )
    config.mesh = ml_collections.ConfigDict({"devices": 0, "fsdp": 1})
    return config


def fill(config: Any, table: dict[str, Any], column: int) -> Any:
    """The config with the values of one preset: of a list its entry `column`, anything else as it is."""
    for name, value in table.items():
        *path, key = name.split(".")
        place = config
        for part in path:
            if part not in place:
                place[part] = ml_collections.ConfigDict()
            place = place[part]
        place[key] = value[column] if isinstance(value, list) else value
    return config


def preset_config(file: str, method: str, preset: str, presets: tuple[str, ...], table: dict[str, Any]) -> Any:
    """The config of a preset, the first of `presets` where none is named; `file` as for `base_config`, `table` as for
    `fill`.

    Raises:
      UserError: there is no such preset.
    """
    preset = preset or presets[0]
    if preset not in presets:
        raise unknown_preset(preset, presets)
    return fill(base_config(file, method, preset), table, presets.index(preset))


def is_config(value: Any) -> bool:
    """Whether JSON is a run's config; other programs have files of that name, too."""
    return isinstance(value, dict) and {"method", "seed", "dataset"} <= set(value)


def unknown_preset(preset: str, known: tuple[str, ...]) -> UserError:
    return UserError(f"unknown preset {preset!r}; this config has {', '.join(known)}")


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
