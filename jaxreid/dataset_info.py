"""What a method is told of its data set: taken from the data set, and kept in a workdir for use without it."""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxreid.data.dataset import Dataset
from jaxreid.data.samplers import Columns
from jaxreid.data.sidecars import Sidecar
from jaxreid.data.split import Labels, TrackletTable
from jaxreid.errors import UserError
from jaxreid.files import written_aside

INFO = "dataset_info.npz"


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a method may know of its data set before training.

    `table` has one row per training tracklet and carries no identity; `num_classes` is 0 and `labels` is None for
    methods that do not declare that they use identity, `captions` (the texts of each training tracklet, none
    where nobody described it) for those that do not declare that they use them, and where a data set is only planned.
    `tokenize` makes ids of texts (i32[N, L]: start, the text, end, zeros) for the text
    tower that belongs to the config's image tower.
    """

    name: str
    table: TrackletTable
    cameras: np.ndarray  # sorted training camera numbers; camera_index points here
    frame_size: tuple[int, int]
    num_classes: int = 0
    labels: Labels | None = None
    captions: tuple[tuple[str, ...], ...] | None = None
    tokenize: Callable[..., np.ndarray] | None = None

    @property
    def columns(self) -> Columns:
        """What samplers draw by."""
        return Columns.of(self.table, self.labels)


def dataset_info(
    dataset: Dataset, method: type[Any], frame_size: tuple[int, int], captions: bool | None = None
) -> DatasetInfo:
    """The tables of the training split, with labels and captions only where the method declares that it uses them.

    Args:
      method: a subclass of `jaxreid.methods.method.Method`.
      captions: whether a run is given captions; None = where its method declares that it uses them.

    Raises:
      UserError: the method needs labels or captions that the data set does not have.
    """
    info = DatasetInfo(dataset.name, dataset.train.table, dataset.cameras, frame_size)
    labels = dataset.train.labels
    if method.uses_identity:
        if labels.identity.max() < 0:
            name = method.__module__.rpartition(".")[2]
            raise UserError(
                f"{name} learns from identity labels, and {dataset.name} has none in training: choose a method that "
                "learns without labels, such as hitpro, or a data set with labels (a folder's own stand in its "
                "tracklets.csv, columns identity and split; docs/datasets.md)"
            )
        info = dataclasses.replace(info, num_classes=int(labels.identity.max()) + 1, labels=labels)
    if (method.uses_captions if captions is None else captions) and dataset.built:
        sidecar = Sidecar.open(dataset.directory, "captions")
        texts = (tuple(sidecar.texts(name)) if name in sidecar else () for name in labels.names)
        info = dataclasses.replace(info, captions=tuple(texts))
    return info


def save_info(workdir: Path, info: DatasetInfo) -> None:
    """Writes `dataset_info.npz` into the workdir, whole or not at all."""
    facts = {"name": info.name, "frame_size": info.frame_size, "num_classes": info.num_classes}
    arrays: dict[str, Any] = {"facts": np.array(json.dumps(facts)), "cameras": info.cameras}
    for part, columns in (("table", info.table), ("labels", info.labels)):
        if columns is not None:
            arrays |= {f"{part}.{name}": np.asarray(values) for name, values in vars(columns).items()}
    if info.captions is not None:
        arrays["captions"] = np.array(json.dumps(info.captions))
    with written_aside(workdir / INFO) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_info(workdir: Path) -> DatasetInfo | None:
    """What `save_info` wrote; None where the workdir does not hold it. Raises UserError where it is damaged."""
    path = workdir / INFO
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            arrays = dict(file)
        facts = json.loads(str(arrays["facts"]))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} is empty or damaged ({error}): delete it, and where the data set is at hand it is made again"
        ) from error

    def columns(part: str) -> dict[str, Any]:
        return {name.removeprefix(f"{part}."): values for name, values in arrays.items() if name.startswith(f"{part}.")}

    labels = columns("labels")
    names = tuple(labels.pop("names", np.array([])).tolist())
    return DatasetInfo(
        name=facts["name"],
        table=TrackletTable(**columns("table")),
        cameras=arrays["cameras"],
        frame_size=tuple(facts["frame_size"]),
        num_classes=facts["num_classes"],
        labels=Labels(**labels, names=names) if labels else None,
        captions=tuple(map(tuple, json.loads(str(arrays["captions"])))) if "captions" in arrays else None,
    )
