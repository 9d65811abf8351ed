"""Find the builder of a data set and prepare the data set once: `jaxreid build NAME[/CONFIG]`.

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
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxreid.data.builders import DATA_DIR_VARIABLE, builder_class, builder_names, builder_package, default_data_dir
from jaxreid.data.names import is_utf8, printable
from jaxreid.data.prepared import (
    REFUSE,
    SCALE,
    SIXTEEN_BIT,
    is_current,
    is_prepared,
    read_metadata,
    split_counts,
    unfinished_directory,
)
from jaxreid.errors import DataSetError, command, writing
from jaxreid.files import Held, expand, held

_LOG = logging.getLogger(__name__)


def build(
    name: str,
    config: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | None = None,
    beam: Sequence[str] | None = None,
    sixteen_bit: str = SCALE,
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
      sixteen_bit: "scale" makes 8-bit pictures of those of 16, by the range of their tracklet; "refuse" takes none.
      **options: further settings of the builder.

    Returns:
      The prepared TFDS directory, for `tfds.builder_from_directory`.

    Raises:
      DataSetError: unknown name, configuration or option; the raw data are not as expected; a prepared directory
        lacks files.
      UserError: there are 16-bit pictures, which were to be refused.
    """
    if sixteen_bit not in SIXTEEN_BIT:
        raise DataSetError(f"sixteen_bit={sixteen_bit!r}; it is one of {', '.join(SIXTEEN_BIT)}")
    name, config, root, raw = _asked(name, config, data_dir, source)
    prepared, wanted = _place(name, config, root, raw, options)
    if is_current(prepared, wanted):
        return _checked(prepared, sixteen_bit)
    for path in filter(None, (raw, root)):
        if not is_utf8(path):
            raise DataSetError(f"{name}: the path {printable(path)} is not UTF-8; rename the folder")
    try:
        builder = _open_builder(name, config, root, raw, options)
    except DataSetError as error:
        others = sorted({path.parent.parent.name for path in (root / name).glob("*/[0-9]*/dataset_info.json")})
        if raw is not None or not others:
            raise
        raise DataSetError(f"{error}\nPrepared in {root / name}: {', '.join(others)}") from error
    with _lock(prepared) as locked:
        if is_current(prepared, wanted):  # another process built it while this one waited
            return _checked(prepared, sixteen_bit)
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
            with writing(prepared):
                _prepare(builder, raw, beam, sixteen_bit)
        except OSError:
            if locked or not is_current(prepared, wanted):  # else another process was first to give it its name
                raise
    return prepared


def named_set(text: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The directory of the set that a word of a command line names; what is not built yet is built.

    Args:
      text: the directory of a built set, a data set's NAME[/CONFIG], or a folder of tracklets (the data set `folder`),
        which is written ./NAME where it is called like a data set.
      data_dir: as for `build`.

    Raises:
      DataSetError: as `build`.
    """
    path = expand(text)
    if is_prepared(path):
        return path
    if path.is_dir() and text.partition("/")[0] not in builder_names():
        return build("folder", data_dir=data_dir, source=path)
    return build(text, data_dir=data_dir)


def find(
    name: str,
    config: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Path | None:
    """The directory that `build` would return, None where it would build; writes nothing."""
    name, config, root, raw = _asked(name, config, data_dir, source)
    prepared, wanted = _place(name, config, root, raw, options)
    return prepared if is_current(prepared, wanted) else None


def _asked(name: str, config: str | None, data_dir: Any, source: Any) -> tuple[str, str | None, Path, Path | None]:
    """(name, configuration, folder of all sets, folder of the raw data) as `build` was asked for them."""
    if config is None and "/" in name:
        name, config = name.split("/", 1)
    root = expand(data_dir if data_dir is not None else default_data_dir()).absolute()
    return name, config, root, Path(os.path.abspath(expand(source))) if source is not None else None


def _place(name: str, config: str | None, root: Path, raw: Path | None, options: Any) -> tuple[Path, str | None]:
    """Where a set is kept, and the fingerprint of what would make it now (None: not known)."""
    folder = builder_package(name)
    if hasattr(folder, "locate"):
        try:
            inspect.signature(folder.locate).bind(config, raw, **options)
        except TypeError as error:
            raise DataSetError(f"{name}: does not take these options: {error}") from error
        prepared = root.joinpath(name, *folder.locate(config, raw, **options))
    else:
        prepared = Path(_open_builder(name, config, root, raw, options).data_dir)
    return prepared, folder.fingerprint() if hasattr(folder, "fingerprint") else None


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


def _prepare(builder: Any, source: Path | None, beam: Sequence[str] | None, sixteen_bit: str) -> None:
    import tensorflow_datasets as tfds

    builder.sixteen_bit = sixteen_bit  # decides whether a build succeeds, not what it holds: no builder's own option
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


def _checked(prepared: Path, sixteen_bit: str) -> Path:
    """A set that is there. Raises UserError where it was made of 16-bit pictures and these are refused."""
    found = read_metadata(prepared).get("sixteen_bit") if sixteen_bit == REFUSE else None
    if found:
        raise DataSetError(
            f"{prepared} was made of 16-bit pictures, and sixteen_bit={REFUSE} takes none: {found['remark']}"
        )
    return prepared


@contextlib.contextmanager
def _lock(prepared: Path) -> Iterator[bool]:
    """One builder at a time per set; yields whether that is so (a file system may know no locks)."""
    with contextlib.ExitStack() as stack:
        try:
            prepared.parent.mkdir(parents=True, exist_ok=True)
            path = prepared.parent / f".{prepared.name}.lock"
            try:
                locked = stack.enter_context(held(path))
            except Held as other:
                _LOG.warning("%s is building %s: waiting for it", other.holder, prepared)
                locked = stack.enter_context(held(path, wait=-1))
        except OSError as error:
            raise DataSetError(
                f"cannot write to {prepared.parent} ({error}); choose another place with --data_dir or "
                f"${DATA_DIR_VARIABLE}"
            ) from error
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
        prog="jaxreid build",
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
    parser.add_argument(
        "--sixteen_bit",
        choices=SIXTEEN_BIT,
        default=SCALE,
        help="16-bit pictures: make 8 bits of them, by the range of their tracklet, or take none (default %(default)s)",
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
    options = {"sixteen_bit": parsed.sixteen_bit, **dict(parsed.option)}
    prepared = build(parsed.name, data_dir=parsed.data_dir, source=parsed.source, beam=beam, **options)
    counts = read_metadata(prepared).get("counts", {})
    for split, tracklets in split_counts(prepared).items():
        details = [f"{value} {key}" for key, value in counts.get(split, {}).items() if key != "tracklets"]
        print(f"{split:>10}: {', '.join([f'{tracklets} tracklets', *details])}")
    print(prepared)
    return 0


if __name__ == "__main__":
    # Builders import this module by its name: its exceptions must be those that `main` catches.
    sys.exit(importlib.import_module("jaxreid.data.build").main())
