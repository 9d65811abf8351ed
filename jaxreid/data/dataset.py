"""A built data set as a run needs it: training, query and gallery splits and the protocol that scores them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxreid.data import build
from jaxreid.data.planned import origin, planned_split, published
from jaxreid.data.prepared import SCALE, read_metadata
from jaxreid.data.schema import INFRARED, VISIBLE
from jaxreid.data.split import Split, modality_name, open_split, split_names
from jaxreid.errors import DataSetError, UserError


@dataclasses.dataclass(frozen=True)
class QueryGallery:
    """A query and a gallery split that belong together; `name` is empty where a data set has one such pair."""

    name: str
    query: Split
    gallery: Split


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Splits and facts of one built data set. `protocols` are keys of `jaxreid.retrieval.PROTOCOLS`, headline first."""

    name: str
    directory: Path
    train: Split
    tests: tuple[QueryGallery, ...]
    protocols: tuple[str, ...]
    cameras: np.ndarray  # sorted training camera numbers

    @property
    def built(self) -> bool:
        """Whether it is there; else it is planned."""
        return self.directory.is_dir()

    @property
    def query(self) -> Split:
        return self.tests[0].query

    @property
    def gallery(self) -> Split:
        return self.tests[0].gallery

    @property
    def test_splits(self) -> tuple[Split, ...]:
        """Every split that is tested on, once."""
        return tuple({split.name: split for test in self.tests for split in (test.query, test.gallery)}.values())

    @property
    def splits(self) -> tuple[Split, ...]:
        return self.train, *self.test_splits

    def fingerprint(self) -> dict[str, Any]:
        """Sizes, and digests of all that is known of the tracklets but their pictures; where they lie plays no part."""
        counts = {split.name: len(split) for split in self.splits}
        frames = {split.name: int(split.table.length.sum()) for split in self.splits}
        contents = {split.name: _digest(split) for split in self.splits}
        facts = {"name": self.name, "version": self.directory.name}
        return facts | {"tracklets": counts, "frames": frames, "contents": contents}


def _digest(split: Split) -> str:
    """Sixteen hex digits that change with any row of the split's tables."""
    digest = hashlib.sha256(json.dumps(split.labels.names).encode())
    for name, column in sorted({**vars(split.table), **vars(split.labels)}.items()):
        if name != "names" and column.dtype.kind != "f":  # measured numbers may round differently where a set is built
            digest.update(name.encode() + column.tobytes())
    return digest.hexdigest()[:16]


def open_dataset(options: Any, data_dir: Path | None) -> Dataset:
    """Opens (and, where it can be made without a download, first builds) the data set that a config names.

    A data set that is tested in several cases has splits `query_case1`, `gallery_case1`, …: where there is no split
    `query`, that name stands for all of them.

    Args:
      options: `config.dataset`: name, config, path (source folder), sixteen_bit, train/query/gallery split names,
        protocols.
      data_dir: where built data sets live.
    """
    directory = build.build(
        options.name,
        options.config or None,
        data_dir=data_dir,
        source=options.path or None,
        sixteen_bit=getattr(options, "sixteen_bit", SCALE),  # earlier runs have no such key
    )
    return _open(directory, options)


def _open(directory: Path, options: Any) -> Dataset:
    train = open_split(directory, options.train)
    cameras = np.unique(train.table.camera)
    facts = read_metadata(directory)
    opened = functools.cache(lambda name: open_split(directory, name, cameras))
    pairs = pair_splits(split_names(directory), options.query, options.gallery, facts.get("cases", {}))
    return Dataset(
        name=f"{options.name}/{options.config}" if options.config else options.name,
        directory=Path(directory),
        train=train,
        tests=tuple(QueryGallery(name, opened(query), opened(gallery)) for name, query, gallery in pairs),
        protocols=tuple(options.protocols) or tuple(facts.get("protocols", ["market"])),
        cameras=cameras,
    )


@contextlib.contextmanager
def foreseen_dataset(
    options: Any, data_dir: Path | None, everywhere: Callable[[bool], bool] = bool
) -> Iterator[Dataset]:
    """The data set that a config names, where nothing may be written: as it is built, else as large as published, else
    drawn into a folder that lasts as long as the context.

    Args:
      options, data_dir: as for `open_dataset`.
      everywhere: whether what is true here is true for all processes of the run, which have to take the same.

    Raises:
      UserError: it has to be built from its own files first.
    """
    directory, planned, failure = None, plan_dataset(options), None
    try:
        directory = build.find(options.name, options.config or None, data_dir, options.path or None)
    except DataSetError as error:
        failure = error
    there = everywhere(directory is not None)
    if there and directory is not None:
        yield _open(directory, options)
    elif planned is not None:
        reason = str(failure).splitlines()[0] if failure else "the data set is not there"
        print(f"planned on {origin(options.name)}: {reason}", flush=True)
        yield planned
    elif failure:
        raise failure
    elif options.path:
        raise UserError(
            f"{options.name} is not built yet, and a dry run builds nothing: jaxreid build "
            f"{options.name} --source {options.path} does"
        )
    else:
        print(f"{options.name} is made for this dry run, and not kept", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            yield open_dataset(options, Path(folder))


def plan_dataset(options: Any) -> Dataset | None:
    """The data set that a config names as large as published, without its data; None where nothing is published."""
    counts = published(options.name)
    if counts is None:
        return None
    splits = {
        role: planned_split(options.name, split, counts[split])
        for role, split in (("train", options.train), ("query", options.query), ("gallery", options.gallery))
    }
    cameras = np.unique(splits["train"].table.camera)
    tests = (QueryGallery("", splits["query"], splits["gallery"]),)
    return Dataset(options.name, splits["train"].directory, splits["train"], tests, tuple(options.protocols), cameras)


def pair_splits(known: Sequence[str], query: str, gallery: str, words: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(name, query split, gallery split) of every case; `words` are a data set's own names for its cases.

    Raises:
      UserError: a case has queries but no gallery.
    """
    if query in known and gallery in known:
        return [("", query, gallery)]
    cases = [name.removeprefix(query) for name in known if name.startswith(f"{query}_case")]
    if query in known:  # one case was asked for by name
        cases = [f"_case{query.partition('_case')[2]}"] if "_case" in query else [""]
        query = query.removesuffix(cases[0])
    pairs = []
    for case in sorted(cases, key=lambda case: (len(case), case)) or [""]:
        ranked = gallery if gallery in known else gallery + case
        for split in (query + case, ranked):
            if split not in known:
                raise UserError(f"there is no split {split!r}; the data set has {', '.join(known)}")
        name = case.removeprefix("_")
        pairs.append((words.get(name, name), query + case, ranked))
    return pairs


def describe(split: Split) -> str:
    """One line for people: tracklets, frames, cameras and modalities."""
    table = split.table
    parts = [f"{len(split)} tracklets", f"{int(table.length.sum())} frames", f"{len(np.unique(table.camera))} cameras"]
    for code in (VISIBLE, INFRARED):
        if np.any(table.modality == code):
            parts.append(f"{int(np.sum(table.modality == code))} {modality_name(code)}")
    return ", ".join(parts)
