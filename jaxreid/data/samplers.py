"""Which tracklets make a batch: an epoch's order as a pure function of the labels and a random generator.

A sampler is a small frozen description; `draw` returns the (tracklet, part) of every row of every batch, so an
epoch needs no state beyond (seed, epoch) and is the same on any number of hosts and workers.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np


class Sampler(Protocol):
    """What a stage draws its batches with."""

    @property
    def parts(self) -> int: ...

    def batch_size(self, modality: np.ndarray) -> int: ...

    def draw(
        self, labels: np.ndarray, modality: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]: ...


def _wrapped(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` values: permutations one after the other, so that all occur before one repeats."""
    rounds = [rng.permutation(values) for _ in range(-(-count // len(values)))]
    return np.concatenate(rounds)[:count]


def _rows_by_label(labels: np.ndarray, keep: np.ndarray) -> dict[int, np.ndarray]:
    rows = np.flatnonzero(keep & (labels >= 0))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    values, starts = np.unique(labels[rows], return_index=True)
    return dict(zip(values.tolist(), np.split(rows, starts[1:]), strict=True))


@dataclasses.dataclass(frozen=True)
class SlotSampler:
    """Batches balanced over modalities, then over slots (groups of tracklets that one label stands for).

    `slots` slots of each modality present in the split, `clips` clips from different (tracklet, part) pairs of
    each slot. An epoch shows every slot of the larger modality once; the smaller one wraps.
    """

    slots: int
    clips: int
    parts: int

    def batch_size(self, modality: np.ndarray) -> int:
        return len(np.unique(modality)) * self.slots * self.clips

    def draw(self, labels: np.ndarray, modality: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(tracklet, part), each i64[steps, batch]. `labels` i32[N], −1 = never drawn."""
        groups = [_rows_by_label(labels, modality == code) for code in np.unique(modality)]
        if not all(groups):
            raise ValueError("a modality of the training split has no slot to draw from")
        steps = -(-max(map(len, groups)) // self.slots)
        tracklets, parts = [], []
        for group in groups:
            order = _wrapped(np.array(list(group)), steps * self.slots, rng)
            pieces = np.stack([_wrapped(np.arange(len(group[s]) * self.parts), self.clips, rng) for s in order])
            rows = np.stack([group[s][piece // self.parts] for s, piece in zip(order, pieces, strict=True)])
            tracklets.append(rows.reshape(steps, -1))
            parts.append((pieces % self.parts).reshape(steps, -1))
        return np.concatenate(tracklets, 1), np.concatenate(parts, 1)


@dataclasses.dataclass(frozen=True)
class IdentitySampler:
    """P identities × K clips, the K clips spread over modalities and then over tracklets (needs labels).

    An epoch has as many batches as it takes to draw each tracklet once on average.
    """

    identities: int
    clips: int
    parts: int = 1

    def batch_size(self, modality: np.ndarray) -> int:
        del modality
        return self.identities * self.clips

    def draw(self, labels: np.ndarray, modality: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(tracklet, part), each i64[steps, batch]. `labels` i32[N], −1 = never drawn.

        Raises:
          ValueError: fewer identities than a batch needs.
        """
        groups = _rows_by_label(labels, np.ones_like(labels, bool))
        if len(groups) < self.identities:
            raise ValueError(
                f"the split has {len(groups)} identities, a batch needs {self.identities}: lower batch.identities"
            )
        size = self.identities * self.clips
        steps = max(1, round(int(np.sum(labels >= 0)) / size))
        order = np.concatenate(self._rounds(np.array(list(groups)), steps, rng))
        rows = []
        for identity in order:
            mine = groups[int(identity)]
            codes = np.unique(modality[mine])
            share = np.array_split(np.arange(self.clips), len(codes))
            picked = [
                _wrapped(mine[modality[mine] == code], len(part), rng)
                for code, part in zip(rng.permutation(codes), share, strict=True)
                if len(part)
            ]
            rows.append(np.concatenate(picked))
        tracklet = np.stack(rows).reshape(steps, size)
        return tracklet, rng.integers(0, self.parts, tracklet.shape)

    def _rounds(self, identities: np.ndarray, steps: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Batches cut from permutations; a permutation's remainder is dropped so that no batch repeats one."""
        batches: list[np.ndarray] = []
        while len(batches) < steps:
            order = rng.permutation(identities)
            batches += [
                order[i : i + self.identities] for i in range(0, len(order) - self.identities + 1, self.identities)
            ]
        return batches[:steps]


@dataclasses.dataclass(frozen=True)
class GroupSampler:
    """P identities × K items, no item twice in an epoch (CLIP-ReID, TF-CLIP).

    The tracklets of each identity are shuffled and cut into groups of K, a remainder is left out; an identity with
    fewer than K makes one group, drawn with replacement. Batches take one group of each of P different identities,
    until fewer than P identities have any left.
    """

    identities: int
    clips: int
    parts: int = 1

    def batch_size(self, modality: np.ndarray) -> int:
        del modality
        return self.identities * self.clips

    def draw(self, labels: np.ndarray, modality: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(tracklet, part), each i64[steps, batch]. `labels` i32[N], −1 = never drawn.

        Raises:
          ValueError: fewer identities than a batch needs.
        """
        del modality
        left = {}
        for identity, rows in _rows_by_label(labels, np.ones_like(labels, bool)).items():
            rows = rng.permutation(rows) if len(rows) >= self.clips else rng.choice(rows, self.clips)
            left[identity] = list(rows[: len(rows) // self.clips * self.clips].reshape(-1, self.clips))
        if len(left) < self.identities:
            raise ValueError(
                f"the split has {len(left)} identities, a batch needs {self.identities}: lower batch.identities"
            )
        batches = []
        while len(left) >= self.identities:
            chosen = rng.choice(list(left), self.identities, replace=False).tolist()
            batches.append(np.concatenate([left[identity].pop() for identity in chosen]))
            left = {identity: groups for identity, groups in left.items() if groups}
        tracklet = np.stack(batches)
        return tracklet, rng.integers(0, self.parts, tracklet.shape)


@dataclasses.dataclass(frozen=True)
class PairSampler:
    """P identities × K pairs of a visible and an infrared tracklet: rows 2k and 2k + 1 show one person (VLD).

    A tracklet of a drawn identity repeats only where it has fewer than K of a modality. An epoch has `steps` batches;
    0 = as many as it takes to draw each tracklet once on average.
    """

    identities: int
    clips: int
    steps: int = 0
    parts: int = 1

    def batch_size(self, modality: np.ndarray) -> int:
        del modality
        return 2 * self.identities * self.clips

    def draw(self, labels: np.ndarray, modality: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(tracklet, part), each i64[steps, batch]. `labels` i32[N], −1 = never drawn.

        Raises:
          ValueError: fewer identities with tracklets of both modalities than a batch needs.
        """
        visible, infrared = (_rows_by_label(labels, modality == code) for code in (0, 1))
        both = np.array(sorted(visible.keys() & infrared.keys()))
        if len(both) < self.identities:
            raise ValueError(
                f"the split has {len(both)} identities with visible and infrared tracklets, a batch needs "
                f"{self.identities}: lower batch.identities"
            )
        steps = self.steps or max(1, round(int(np.sum(labels >= 0)) / self.batch_size(modality)))
        batches = []
        while len(batches) < steps:
            order = rng.permutation(both)
            for start in range(0, len(order) - self.identities + 1, self.identities):
                people = order[start : start + self.identities].tolist()
                sides = [np.stack([_wrapped(side[p], self.clips, rng) for p in people]) for side in (visible, infrared)]
                batches.append(np.stack(sides, axis=-1).reshape(-1))
        tracklet = np.stack(batches[:steps])
        return tracklet, rng.integers(0, self.parts, tracklet.shape)


@dataclasses.dataclass(frozen=True)
class PassSampler:
    """Every (tracklet, part) once an epoch, in random order; the last batch is filled with rows of tracklet −1."""

    size: int
    parts: int

    def batch_size(self, modality: np.ndarray) -> int:
        del modality
        return self.size

    def draw(self, labels: np.ndarray, modality: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(tracklet, part), each i64[steps, batch]. `labels` i32[N], −1 = never drawn."""
        del modality
        rows = np.flatnonzero(labels >= 0)
        piece = rng.permutation(len(rows) * self.parts)
        piece = np.pad(piece, (0, -len(piece) % self.size), constant_values=-1).reshape(-1, self.size)
        return np.where(piece >= 0, rows[piece // self.parts], -1), piece % self.parts
