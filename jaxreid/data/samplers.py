"""Which tracklets make a batch: an epoch's order as a pure function of the labels and a random generator.

A sampler is a small frozen description; `draw` returns the (tracklet, part) of every row of every batch, so an
epoch needs no state beyond (seed, epoch) and is the same on any number of hosts and workers.
"""

from __future__ import annotations

import dataclasses

import numpy as np


def _wrapped(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` values: permutations one after the other, so that all occur before one repeats."""
    rounds = [rng.permutation(values) for _ in range(-(-count // len(values)))]
    return np.concatenate(rounds)[:count]


def _rows_by_label(labels: np.ndarray, keep: np.ndarray) -> dict[int, np.ndarray]:
    rows = np.flatnonzero(keep & (labels >= 0))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    values, starts = np.unique(labels[rows], return_index=True)
    return dict(zip(values.tolist(), np.split(rows, starts)[1:], strict=True))


@dataclasses.dataclass(frozen=True)
class SlotSampler:
    """Batches balanced over modalities, then over slots (groups of tracklets that one label stands for).

    `slots` slots of each modality present in the split, `clips` clips from different (tracklet, part) pairs of
    each slot. An epoch has `steps` batches; with 0, as many as show every slot of the larger modality once. What runs
    out of slots earlier wraps.
    """

    slots: int
    clips: int
    parts: int
    steps: int = 0

    def batch_size(self, modality: np.ndarray) -> int:
        return len(np.unique(modality)) * self.slots * self.clips

    def draw(self, labels: np.ndarray, modality: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(tracklet, part), each i64[steps, batch]. `labels` i32[N], −1 = never drawn.

        Raises:
          ValueError: a modality has no tracklet that may be drawn.
        """
        codes = np.unique(modality)
        groups = [_rows_by_label(labels, modality == code) for code in codes]
        if not all(groups):
            empty = codes[[not group for group in groups]][0]
            raise ValueError(
                f"modality {empty} of the training split has no slot to draw from: all its "
                f"{np.sum(modality == empty)} tracklets are labelled -1 (noise, if labels are clusters)"
            )
        steps = self.steps or -(-max(map(len, groups)) // self.slots)
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
