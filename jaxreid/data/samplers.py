"""Which tracklets make a batch: an epoch's order as a pure function of the labels and a random generator.

A sampler is a small frozen description; `draw` returns the (tracklet, part) of every row of every batch, so an
epoch needs no state beyond (seed, epoch) and is the same on any number of hosts and workers. Labels may be others
in every epoch (clusters, prototypes); −1 is never drawn.

| sampler | a batch | an epoch |
|---|---|---|
| `ShuffleSampler` | any clips | every tracklet once |
| `RandomIdentitySampler` | P identities × K clips | no tracklet twice (CLIP-ReID, torchreid) |
| `IdentitySampler` | P identities × K clips, spread over modalities or platforms | as many clips as tracklets |
| `PairSampler` | row-aligned pairs of one person in two modalities | a fixed number of batches |
| `LabelSampler` | of each modality (platform, camera) as many labels × clips | every label of the largest once |
| `CameraSampler` | as many clips from each of some cameras, no labels | as many clips as tracklets |
| `ClusterSampler` | P clusters × K clips from different cameras | a fixed number of batches |
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

from jaxreid.data.schema import INFRARED, VISIBLE
from jaxreid.data.split import UNKNOWN, Labels, TrackletTable
from jaxreid.errors import UserError

Draw = tuple[np.ndarray, np.ndarray]  # (tracklet, part), each i64[steps, batch]


class NothingToDraw(UserError):
    """Labels leave a part of every batch empty; those of another epoch may not."""


class Columns(NamedTuple):
    """What a sampler knows of each of N tracklets beside its label, i32[N]."""

    modality: np.ndarray
    platform: np.ndarray
    camera_index: np.ndarray
    pair: np.ndarray  # as in `Labels`; −1 where identity may not be seen

    @classmethod
    def of(cls, table: TrackletTable, labels: Labels | None) -> Columns:
        """The columns of a split, with `labels` only for methods that may see identity."""
        pair = np.full(len(table), UNKNOWN, np.int32) if labels is None else labels.pair
        return cls(table.modality, table.platform, table.camera_index, pair)


class Sampler(Protocol):
    """What training asks of a sampler. `parts`: in how many parts tracklets are divided, each drawn for itself."""

    @property
    def parts(self) -> int: ...

    def batch_size(self, columns: Columns) -> int: ...

    def draw(self, labels: np.ndarray, columns: Columns, rng: np.random.Generator) -> Draw: ...


def _wrapped(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` values: permutations one after the other, so that all occur before one repeats."""
    rounds = [rng.permutation(values) for _ in range(-(-count // len(values)))]
    return np.concatenate(rounds)[:count]


def _distinct(values: np.ndarray, size: int, steps: int, rng: np.random.Generator) -> np.ndarray:
    """[steps, size], cut from permutations; a permutation's remainder is dropped so that no row repeats a value."""
    rows: list[np.ndarray] = []
    while len(rows) < steps:
        order = rng.permutation(values)
        rows += [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    return np.stack(rows[:steps])


def _rows_by_label(labels: np.ndarray, keep: np.ndarray) -> dict[int, np.ndarray]:
    rows = np.flatnonzero(keep & (labels >= 0))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    values, starts = np.unique(labels[rows], return_index=True)
    return dict(zip(values.tolist(), np.split(rows, starts)[1:], strict=True))


def _by_label(labels: np.ndarray) -> dict[int, np.ndarray]:
    return _rows_by_label(labels, np.ones_like(labels, bool))


def _enough(groups: dict[int, np.ndarray], needed: int, what: str, field: str) -> None:
    if len(groups) < needed:
        raise UserError(f"the split has {len(groups)} {what}, a batch needs {needed}: lower {field}")


@dataclasses.dataclass(frozen=True)
class ShuffleSampler:
    """All labelled tracklets in random order; those that fill no whole batch are left out."""

    size: int
    parts: int = 1

    def batch_size(self, columns: Columns) -> int:
        del columns
        return self.size

    def draw(self, labels: np.ndarray, columns: Columns, rng: np.random.Generator) -> Draw:
        """Raises UserError where there are fewer tracklets than a batch needs."""
        del columns
        rows = rng.permutation(np.flatnonzero(labels >= 0))
        steps = len(rows) // self.size
        if not steps:
            raise UserError(f"the split has {len(rows)} labelled tracklets, a batch needs {self.size}")
        tracklet = rows[: steps * self.size].reshape(steps, self.size)
        return tracklet, rng.integers(0, self.parts, tracklet.shape)


@dataclasses.dataclass(frozen=True)
class LabelSampler:
    """Batches balanced over modalities, then over labels: each is a group of tracklets (a prototype, a cluster).

    `num_labels` labels of each modality present in the split, `num_instances` clips from different (tracklet, part)
    pairs of each. An epoch has `steps` batches; with 0, as many as show every label of the larger modality once; the
    other repeats its own. `balance` names another column to balance over: "platform", or "camera_index" for
    batches with as many labels from every camera.
    """

    num_labels: int
    num_instances: int
    parts: int
    balance: str = "modality"
    steps: int = 0

    def batch_size(self, columns: Columns) -> int:
        return len(np.unique(getattr(columns, self.balance))) * self.num_labels * self.num_instances

    def draw(self, labels: np.ndarray, columns: Columns, rng: np.random.Generator) -> Draw:
        """Raises NothingToDraw where a modality has no tracklet that may be drawn."""
        column = getattr(columns, self.balance)
        codes = np.unique(column)
        groups = [_rows_by_label(labels, column == code) for code in codes]
        if not all(groups):
            empty = codes[[not group for group in groups]][0]
            raise NothingToDraw(
                f"{self.balance} {empty} of the training split has no label to draw from: all its "
                f"{np.sum(column == empty)} tracklets are labelled -1 (noise, if labels are clusters)"
            )
        steps = self.steps or -(-max(map(len, groups)) // self.num_labels)
        tracklets, parts = [], []
        for group in groups:
            order = _wrapped(np.array(list(group)), steps * self.num_labels, rng)
            pieces = np.stack([_wrapped(np.arange(len(group[s]) * self.parts), self.num_instances, rng) for s in order])
            rows = np.stack([group[s][piece // self.parts] for s, piece in zip(order, pieces, strict=True)])
            tracklets.append(rows.reshape(steps, -1))
            parts.append((pieces % self.parts).reshape(steps, -1))
        return np.concatenate(tracklets, 1), np.concatenate(parts, 1)


@dataclasses.dataclass(frozen=True)
class IdentitySampler:
    """P identities × K clips, the K clips spread over modalities and then over tracklets (needs labels).

    An epoch has as many batches as it takes to draw each tracklet once on average. `balance` names another column to
    spread over: "platform", "camera_index".
    """

    num_identities: int
    num_instances: int
    parts: int = 1
    balance: str = "modality"

    def batch_size(self, columns: Columns) -> int:
        del columns
        return self.num_identities * self.num_instances

    def draw(self, labels: np.ndarray, columns: Columns, rng: np.random.Generator) -> Draw:
        """Raises UserError where there are fewer identities than a batch needs."""
        column, groups = getattr(columns, self.balance), _by_label(labels)
        _enough(groups, self.num_identities, "identities", "batch.num_identities")
        size = self.num_identities * self.num_instances
        steps = max(1, round(int(np.sum(labels >= 0)) / size))
        rows = []
        for identity in _distinct(np.array(list(groups)), self.num_identities, steps, rng).reshape(-1):
            mine = groups[int(identity)]
            codes = np.unique(column[mine])
            share = np.array_split(np.arange(self.num_instances), len(codes))
            picked = [
                _wrapped(mine[column[mine] == code], len(part), rng)
                for code, part in zip(rng.permutation(codes), share, strict=True)
                if len(part)
            ]
            rows.append(np.concatenate(picked))
        tracklet = np.stack(rows).reshape(steps, size)
        return tracklet, rng.integers(0, self.parts, tracklet.shape)


@dataclasses.dataclass(frozen=True)
class RandomIdentitySampler:
    """P identities × K clips as CLIP-ReID and torchreid draw them: an epoch is at most one pass over the data.

    An identity's tracklets are shuffled and cut into groups of K, the rest is left out; one that has fewer
    than K repeats some. Batches take a group from each of P identities until fewer than P have any left, so that
    their number differs from epoch to epoch.
    """

    num_identities: int
    num_instances: int
    parts: int = 1

    def batch_size(self, columns: Columns) -> int:
        del columns
        return self.num_identities * self.num_instances

    def draw(self, labels: np.ndarray, columns: Columns, rng: np.random.Generator) -> Draw:
        """Raises UserError where there are fewer identities than a batch needs."""
        del columns
        members = _by_label(labels)
        _enough(members, self.num_identities, "identities", "batch.num_identities")
        groups = {}
        for identity, mine in members.items():
            order = _wrapped(mine, max(len(mine), self.num_instances), rng)
            count = len(order) // self.num_instances
            groups[identity] = list(order[: count * self.num_instances].reshape(count, self.num_instances))
        batches = []
        while len(groups) >= self.num_identities:
            chosen = rng.choice(np.array(list(groups)), self.num_identities, replace=False)
            batches.append(np.concatenate([groups[identity].pop() for identity in chosen.tolist()]))
            groups = {identity: left for identity, left in groups.items() if left}
        tracklet = np.stack(batches)
        return tracklet, rng.integers(0, self.parts, tracklet.shape)


@dataclasses.dataclass(frozen=True)
class PairSampler:
    """Row-aligned cross-modality pairs: rows 2k and 2k + 1 show one person, first as `sides[0]`, then as `sides[1]`.

    P identities that have both, `num_pairs` pairs of each, `steps` batches an epoch; 0 = as many as it takes to
    draw each labelled tracklet once on average. The rows of a pair follow each other, so that hosts and devices with
    even shares hold whole pairs. With `aligned`, both show the same moment (equal `Columns.pair`, BUPTCampus), from
    different cameras as far as there are any; otherwise they are drawn independently. `sides` are codes of the column
    `balance`.
    """

    num_identities: int
    num_pairs: int
    steps: int = 0
    parts: int = 1
    aligned: bool = False
    balance: str = "modality"
    sides: tuple[int, int] = (VISIBLE, INFRARED)

    def batch_size(self, columns: Columns) -> int:
        del columns
        return 2 * self.num_identities * self.num_pairs

    def draw(self, labels: np.ndarray, columns: Columns, rng: np.random.Generator) -> Draw:
        """Raises UserError where fewer identities than a batch needs have both sides (of one moment)."""
        column = getattr(columns, self.balance)
        labels = np.where(columns.pair >= 0, labels, UNKNOWN) if self.aligned else labels
        first, second = (_rows_by_label(labels, column == code) for code in self.sides)
        if self.aligned:
            first, second = _same_moment(first, second, columns.pair)
        groups = {identity: first[identity] for identity in first.keys() & second.keys()}
        what, field = f"identities with both sides of {self.balance}", "batch.num_identities"
        if self.aligned:
            what, field = f"{what} in one pair", f"{field}, or set batch.aligned=False"
        _enough(groups, self.num_identities, what, field)
        steps = self.steps or max(1, round(int(np.sum(labels >= 0)) / self.batch_size(columns)))
        rows, parts = [], []
        for identity in _distinct(np.array(sorted(groups)), self.num_identities, steps, rng).reshape(-1):
            one, two = first[int(identity)], second[int(identity)]
            if self.aligned:
                order = _spread(columns.camera_index[one], self.num_pairs, rng)
                pair = np.stack([one[order], two[order]], 1)
                part = np.repeat(rng.integers(0, self.parts, (self.num_pairs, 1)), 2, 1)
            else:
                pair = np.stack([_wrapped(side, self.num_pairs, rng) for side in (one, two)], 1)
                part = rng.integers(0, self.parts, pair.shape)
            rows.append(pair)
            parts.append(part)
        shape = (steps, self.batch_size(columns))
        return np.stack(rows).reshape(shape), np.stack(parts).reshape(shape)


def _same_moment(
    first: dict[int, np.ndarray], second: dict[int, np.ndarray], pair: np.ndarray
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Of both sides the rows whose pair the other has too, in the order of the pairs."""
    one, two = {}, {}
    for identity in first.keys() & second.keys():
        a, b = first[identity], second[identity]
        common, left, right = np.intersect1d(pair[a], pair[b], return_indices=True)
        if len(common):
            one[identity], two[identity] = a[left], b[right]
    return one, two


def _spread(camera: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` positions in random order, but one of every camera before a second of any, and all before one repeats."""
    order = rng.permutation(len(camera))
    by_camera = order[np.argsort(camera[order], kind="stable")]
    _, starts, counts = np.unique(camera[by_camera], return_index=True, return_counts=True)
    turn = np.empty(len(camera), int)
    turn[by_camera] = np.arange(len(camera)) - np.repeat(starts, counts)
    return np.resize(order[np.argsort(turn[order], kind="stable")], count)


@dataclasses.dataclass(frozen=True)
class CameraSampler:
    """As many clips from each of `num_cameras` cameras, for training without labels: a label only says what is drawn.

    All cameras have their turn before one has it again, and all tracklets of a camera before one of them repeats. An
    epoch has as many batches as it takes to draw each tracklet once on average, so that cameras with few tracklets
    are drawn more often. For batches with every camera, and labels, see `LabelSampler`.
    """

    num_cameras: int
    num_instances: int  # of each camera
    parts: int = 1

    def batch_size(self, columns: Columns) -> int:
        del columns
        return self.num_cameras * self.num_instances

    def draw(self, labels: np.ndarray, columns: Columns, rng: np.random.Generator) -> Draw:
        """Raises UserError where there are fewer cameras than a batch needs."""
        groups = _by_label(np.where(labels >= 0, columns.camera_index, UNKNOWN))
        _enough(groups, self.num_cameras, "cameras", "batch.num_cameras")
        size = self.num_cameras * self.num_instances
        steps = max(1, round(sum(map(len, groups.values())) / size))
        order = _distinct(np.array(list(groups)), self.num_cameras, steps, rng).reshape(-1)
        rows = np.empty((len(order), self.num_instances), int)
        for camera, mine in groups.items():
            turns = np.flatnonzero(order == camera)
            rows[turns] = _wrapped(mine, len(turns) * self.num_instances, rng).reshape(len(turns), self.num_instances)
        tracklet = rows.reshape(steps, size)
        return tracklet, rng.integers(0, self.parts, tracklet.shape)


@dataclasses.dataclass(frozen=True)
class ClusterSampler:
    """P clusters × K clips, for labels that change every epoch: batch and epoch stay the same size.

    Clips of a cluster come from different cameras as far as it has any, and none repeats before all were drawn. Where
    there are fewer clusters than P, some stand in a batch more than once. Outliers have label −1.
    """

    num_clusters: int
    num_instances: int
    steps: int
    parts: int = 1

    def batch_size(self, columns: Columns) -> int:
        del columns
        return self.num_clusters * self.num_instances

    def draw(self, labels: np.ndarray, columns: Columns, rng: np.random.Generator) -> Draw:
        """Raises NothingToDraw where there is no cluster."""
        groups = _by_label(labels)
        if not groups:
            raise NothingToDraw("the split has 0 clusters, a batch needs 1: raise the threshold of clustering")
        values = np.array(list(groups))
        if len(values) < self.num_clusters:
            order = np.concatenate([_wrapped(values, self.num_clusters, rng) for _ in range(self.steps)])
        else:
            order = _distinct(values, self.num_clusters, self.steps, rng).reshape(-1)
        members = [groups[label] for label in order.tolist()]
        rows = [mine[_spread(columns.camera_index[mine], self.num_instances, rng)] for mine in members]
        tracklet = np.stack(rows).reshape(self.steps, self.num_clusters * self.num_instances)
        return tracklet, rng.integers(0, self.parts, tracklet.shape)


@dataclasses.dataclass(frozen=True)
class PassSampler:
    """Every (tracklet, part) once an epoch, in random order; the last batch is filled with rows of tracklet −1."""

    size: int
    parts: int

    def batch_size(self, columns: Columns) -> int:
        del columns
        return self.size

    def draw(self, labels: np.ndarray, columns: Columns, rng: np.random.Generator) -> Draw:
        del columns
        rows = np.flatnonzero(labels >= 0)
        piece = rng.permutation(len(rows) * self.parts)
        piece = np.pad(piece, (0, -len(piece) % self.size), constant_values=-1).reshape(-1, self.size)
        return np.where(piece >= 0, rows[piece // self.parts], -1), piece % self.parts
