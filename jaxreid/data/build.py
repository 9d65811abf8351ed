"""Find the builder of a data set and prepare the data set once: `python -m jaxreid.data.build NAME[/CONFIG]`.

TensorFlow is not needed, neither here nor by the builders: everything is written as ArrayRecord. `build` is called
at every start of a run, so asking for a set that is already there imports no builder and no TFDS: a builder folder
whose `__init__.py` is light may offer

    locate(config, source, **options) -> (config directory, version)     where TFDS puts the set under DATA_DIR/NAME
    fingerprint() -> str                                                  what the set was made with

and a builder class may offer `make_config(config, source, **options) -> tfds.core.BuilderConfig`. A builder without
them is an ordinary TFDS builder that reads `source` as its manual directory.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxreid.errors import UserError, command

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

DATA_DIR_VARIABLE = "JAXREID_DATA_DIR"
_LOG = logging.getLogger(__name__)


class DataSetError(UserError):
    """A data set cannot be found, read or built; the message says what, where and what to do."""


def default_data_dir() -> Path:
    """`$JAXREID_DATA_DIR`, or `~/.cache/jaxreid/data`."""
    chosen = os.environ.get(DATA_DIR_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "jaxreid" / "data"


def _builders() -> tuple[str, Path]:
    """The package that holds the builder folders, and its directory: packaged in a wheel, else beside `jaxreid`."""
    package = Path(__file__).resolve().parents[1]
    if (package / "data_builders").is_dir():
        return f"{package.name}.data_builders", package / "data_builders"
    return "data_builders", package.parent / "data_builders"


def builder_names() -> list[str]:
    """Names that `build` knows, sorted."""
    return sorted(path.parent.name for path in _builders()[1].glob("*/*_dataset_builder.py"))


def builder_package(name: str) -> ModuleType:
    """Imports the folder of a builder, but no module in it."""
    if name not in builder_names():
        raise DataSetError(
            f"no data set is called {name!r}; there are {', '.join(builder_names())} (in {_builders()[1]}). "
            "One's own pictures are built with the name 'folder' and --source DIR"
        )
    package, directory = _builders()
    root = str(directory.parent)
    if "." not in package and root not in sys.path:
        sys.path.append(root)
    module = importlib.import_module(f"{package}.{name}")
    found = Path(next(iter(module.__path__))).resolve()
    if found != directory / name:
        raise DataSetError(
            f"{package}.{name} was imported from {found}, not from {directory}: another package called "
            f"{package!r} comes first on sys.path; start from another directory"
        )
    return module


def builder_class(name: str) -> type:
    """The TFDS builder class of a data set.

    Raises:
      DataSetError: no builder has this name; the message lists those that exist.
    """
    package = builder_package(name)
    return importlib.import_module(f"{package.__name__}.{name}_dataset_builder").Builder


def progress(
    items: Iterable[Any], description: str, total: int | None = None, unit: str = "tracklets"
) -> Iterable[Any]:
    """Iterates with a progress bar on stderr that shows the rate and the time left; for builders."""
    from tqdm import tqdm

    return tqdm(items, desc=description, total=total, unit=f" {unit}", mininterval=0.5, leave=False)


def build(
    name: str,
    config: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | None = None,
    beam: Sequence[str] | None = None,
    **options: Any,
) -> Path:
    """Prepares a data set if it is not there yet.

    Several processes may ask for one set at once: one builds, the others wait for it. A set appears under its final
    name only when it is whole.

    Args:
      name: folder name in `data_builders/`, or "NAME/CONFIG".
      config: the builder's configuration; None is its first.
      data_dir: where prepared sets live; None is `default_data_dir()`.
      source: directory with the raw data, for sets that have any.
      beam: build through Apache Beam (`jaxreid.data.building.beam_build`) with these pipeline options, e.g.
        ["runner=FlinkRunner"]; None is without.
      **options: further settings of the builder.

    Returns:
      The prepared TFDS directory, for `tfds.builder_from_directory`.

    Raises:
      DataSetError: unknown name, configuration or option; the raw data are not as expected; a prepared directory
        lacks files.
    """
    if config is None and "/" in name:
        name, config = name.split("/", 1)
    root = Path(data_dir if data_dir is not None else default_data_dir()).expanduser().absolute()
    raw = Path(os.path.abspath(Path(source).expanduser())) if source is not None else None
    folder = builder_package(name)
    builder = None
    if hasattr(folder, "locate"):
        try:
            inspect.signature(folder.locate).bind(config, raw, **options)
        except TypeError as error:
            raise DataSetError(f"{name}: does not take these options: {error}") from error
        prepared = root.joinpath(name, *folder.locate(config, raw, **options))
    else:
        builder = _open_builder(name, config, root, raw, options)
        prepared = Path(builder.data_dir)
    wanted = folder.fingerprint() if hasattr(folder, "fingerprint") else None
    if _is_current(prepared, wanted):
        return prepared
    try:
        builder = builder or _open_builder(name, config, root, raw, options)
    except DataSetError as error:
        others = sorted({path.parent.parent.name for path in (root / name).glob("*/[0-9]*/dataset_info.json")})
        if raw is not None or not others:
            raise
        raise DataSetError(f"{error}\nPrepared in {root / name}: {', '.join(others)}") from error
    with _lock(prepared) as locked:
        if _is_current(prepared, wanted):  # another process built it while this one waited
            return prepared
        if prepared.exists():
            _LOG.warning("%s was drawn by another version of its builder: building it anew", prepared)
            prepared.rename(prepared.with_name(f"incomplete.replaced_{prepared.name}"))
            builder = _open_builder(name, config, root, raw, options)  # it had read what was there
        # TFDS's name for unfinished sets; without a lock one may be another process's work.
        for leftover in prepared.parent.glob(f"incomplete.*_{prepared.name}") if locked else ():
            shutil.rmtree(leftover)
        if Path(builder.data_dir) != prepared:
            raise DataSetError(
                f"{name}: expected to be prepared at {prepared}, but its builder would write {builder.data_dir}; "
                "did the raw data change just now? Run again"
            )
        try:
            _prepare(builder, raw, beam)
        except OSError:
            if locked or not _is_current(prepared, wanted):  # else another process was first to give it its name
                raise
    return prepared


def _open_builder(name: str, config: str | None, root: Path, source: Path | None, options: dict[str, Any]) -> Any:
    cls = builder_class(name)
    if hasattr(cls, "make_config"):
        with _quiet_tfds():  # it warns of configurations that are made for the occasion
            return cls(data_dir=os.fspath(root), config=cls.make_config(config, source, **options))
    if options:
        raise DataSetError(f"{name}: takes no options, got {sorted(options)}")
    known = list(getattr(cls, "builder_configs", {}))
    if config is not None and config not in known:
        raise DataSetError(f"{name}: no configuration {config!r}; there are {known}")
    return cls(data_dir=os.fspath(root), config=config)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def unfinished_directory(prepared: Path) -> Path:
    """Where a build through Beam keeps the files of a set until all of them are whole."""
    return prepared.with_name(f"unfinished.{prepared.name}")


def _prepare(builder: Any, source: Path | None, beam: Sequence[str] | None) -> None:
    import tensorflow_datasets as tfds

    beam_options = None
    if beam is not None:
        from jaxreid.data.building import beam_build

        beam_options = beam_build.pipeline_options(builder, beam)
    download_config = tfds.download.DownloadConfig(
        manual_dir=os.fspath(source) if source is not None else None,
        try_download_gcs=False,
        compute_stats=tfds.download.ComputeStatsMode.SKIP,
        beam_options=beam_options,
    )
    tfds.disable_progress_bar()  # builders show their own, which knows the total
    print(f"building {builder.data_dir} (once)", file=sys.stderr)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download, which there is not
            builder.download_and_prepare(download_config=download_config, file_format="array_record")
    finally:
        tfds.enable_progress_bar()
    shutil.rmtree(unfinished_directory(Path(builder.data_dir)), ignore_errors=True)


def read_metadata(prepared: Path) -> dict[str, Any]:
    """What a builder noted of its set (protocol, cameras, identities, counts, …); read without TFDS."""
    path = prepared / "metadata.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def split_counts(prepared: Path) -> dict[str, int]:
    """Tracklets per split of a prepared set, in the order of the splits."""
    info = json.loads((prepared / "dataset_info.json").read_text(encoding="utf-8"))
    return {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}


def _is_current(prepared: Path, fingerprint: str | None) -> bool:
    """Whether a set is there, whole, and made with what would make it now."""
    if not prepared.exists():
        return False
    missing = _missing_files(prepared)
    if missing:
        raise DataSetError(
            f"{prepared} is not a whole data set: {', '.join(missing[:5])} missing or empty "
            f"({len(missing)} files). Was it copied in part? Delete the directory and run again"
        )
    file_format = json.loads((prepared / "dataset_info.json").read_text(encoding="utf-8"))["fileFormat"]
    if file_format != "array_record":
        raise DataSetError(
            f"{prepared} was written as {file_format}, which cannot be read here: delete the directory and run again "
            "(or `tfds build` with --file_format=array_record)"
        )
    return fingerprint is None or read_metadata(prepared).get("fingerprint") == fingerprint


def _missing_files(prepared: Path) -> list[str]:
    description = ["dataset_info.json", "features.json"]
    missing = [file for file in description if not (prepared / file).is_file()]
    if missing:
        return missing
    info = json.loads((prepared / "dataset_info.json").read_text(encoding="utf-8"))
    shards = []
    for split in info["splits"]:
        count = len(split["shardLengths"])
        stem = f"{info['name']}-{split['name']}.{info['fileFormat']}"
        shards += [f"{stem}-{shard:05d}-of-{count:05d}" for shard in range(count)]
    return [file for file in shards if not (prepared / file).is_file() or not (prepared / file).stat().st_size]


@contextlib.contextmanager
def _lock(prepared: Path) -> Iterator[bool]:
    """One builder at a time per set; yields whether that is so (a file system may know no locks).

    The kernel gives the lock back when its holder dies, so none goes stale.
    """
    try:
        prepared.parent.mkdir(parents=True, exist_ok=True)
        handle = (prepared.parent / f".{prepared.name}.lock").open("w")
    except OSError as error:
        raise DataSetError(
            f"cannot write to {prepared.parent} ({error}); choose another place with --data_dir or ${DATA_DIR_VARIABLE}"
        ) from error
    with handle:
        locked = fcntl is not None
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _LOG.warning("another process is building %s: waiting for it", prepared)
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                _LOG.warning("%s cannot be locked (%s): build it in one process only", prepared.parent, error)
                locked = False
        yield locked


def option(text: str) -> tuple[str, Any]:
    """NAME=VALUE; a value that is no Python literal is a string."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


@command()
def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxreid.data.build",
        description="Prepare a data set (once) and print where it is.",
        epilog=f"data sets: {', '.join(builder_names())}",
    )
    parser.add_argument("name", metavar="NAME[/CONFIG]", help="data set, with its configuration if it has several")
    parser.add_argument("--data_dir", help=f"where prepared sets live (default ${DATA_DIR_VARIABLE} or the cache)")
    parser.add_argument("--source", help="directory with the raw data")
    parser.add_argument(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        type=option,
        help="a further setting of the builder (repeatable), e.g. max_excluded=0.1 for folder",
    )
    parser.add_argument("--beam", action="store_true", help="build through Apache Beam, for sets with raw data by hand")
    parser.add_argument(
        "--beam_options",
        metavar="NAME=VALUE,…",
        help="options of the pipeline, e.g. runner=DirectRunner,direct_num_workers=4 (means --beam)",
    )
    parsed = parser.parse_args(arguments)
    beam = None
    if parsed.beam or parsed.beam_options:
        beam = [word for word in (parsed.beam_options or "").split(",") if word]
    logging.basicConfig(format="%(levelname)s: %(message)s")
    prepared = build(parsed.name, data_dir=parsed.data_dir, source=parsed.source, beam=beam, **dict(parsed.option))
    counts = read_metadata(prepared).get("counts", {})
    for split, tracklets in split_counts(prepared).items():
        details = [f"{value} {key}" for key, value in counts.get(split, {}).items() if key != "tracklets"]
        print(f"{split:>10}: {', '.join([f'{tracklets} tracklets', *details])}")
    print(prepared)
    return 0


if __name__ == "__main__":
    # Builders import this module by its name: its exceptions must be those that `main` catches.
    sys.exit(importlib.import_module("jaxreid.data.build").main())
