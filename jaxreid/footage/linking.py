"""Boxes of successive frames → tracks, by overlap alone.

Every track expects its next box where its last one would be after another step of its mean velocity; the box that
overlaps most with the expected one continues it. The velocity is what keeps two people apart who walk past each other.
Nothing here looks at the pixels, so people who meet, or stop while hidden, can still swap tracks.
"""

from __future__ import annotations

import numpy as np


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of boxes.

    Args:
      a, b: f[N, 4] and f[M, 4], boxes (x, y, width, height) in pixels.

    Returns:
      f64[N, M] in [0, 1]; 0 where both boxes are empty.
    """
    a, b = np.asarray(a, np.float64).reshape(-1, 1, 4), np.asarray(b, np.float64).reshape(1, -1, 4)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    intersection = np.prod(np.maximum(high - low, 0), axis=-1)
    union = np.prod(a[..., 2:], axis=-1) + np.prod(b[..., 2:], axis=-1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def greedy_matches(overlap: np.ndarray, minimum: float) -> list[tuple[int, int]]:
    """One-to-one (row, column) pairs, the largest overlap first, none below `minimum`; ties by row, then column."""
    rows, columns = np.nonzero(overlap >= minimum)
    order = np.argsort(-overlap[rows, columns], kind="stable")
    matches, used_rows, used_columns = [], set(), set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            matches.append((row, column))
            used_rows.add(row)
            used_columns.add(column)
    return matches


class Linker:
    """Numbers the boxes of one video by track.

    Args:
      min_iou: a box continues a track when it overlaps the box that the track expects by at least this much.
      max_missed: looked-at frames in a row that a track survives without a box.
      velocity_rate: weight of the newest step in a track's mean velocity, in [0, 1]; with 0 tracks expect their last
        box.
    """

    def __init__(self, min_iou: float = 0.3, max_missed: int = 3, velocity_rate: float = 0.3):
        self.min_iou, self.max_missed, self.velocity_rate = min_iou, max_missed, velocity_rate
        self._boxes = np.zeros((0, 4))  # the last box of each open track
        self._velocities = np.zeros((0, 2))  # of box centres, pixels per looked-at frame
        self._tracks = np.zeros(0, np.int64)
        self._missed = np.zeros(0, np.int64)
        self._next = 0

    def update(self, boxes: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Takes the boxes of the next looked-at frame.

        Args:
          boxes: f[N, 4], (x, y, width, height) in pixels.

        Returns:
          (i64[N] the track of each box, the tracks that ended with this frame).
        """
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        tracks = np.full(len(boxes), -1, np.int64)
        self._missed += 1
        expected = self._boxes.copy()
        expected[:, :2] += self._velocities * self._missed[:, None]
        for row, column in greedy_matches(iou(expected, boxes), self.min_iou):
            tracks[column] = self._tracks[row]
            velocity = (_centre(boxes[column]) - _centre(self._boxes[row])) / self._missed[row]
            self._velocities[row] += self.velocity_rate * (velocity - self._velocities[row])
            self._boxes[row] = boxes[column]
            self._missed[row] = 0

        new = np.flatnonzero(tracks < 0)
        tracks[new] = self._next + np.arange(len(new))
        self._next += len(new)

        ended = self._missed > self.max_missed
        ended_tracks = self._tracks[ended].tolist()
        self._boxes = np.concatenate([self._boxes[~ended], boxes[new]])
        self._velocities = np.concatenate([self._velocities[~ended], np.zeros((len(new), 2))])
        self._tracks = np.concatenate([self._tracks[~ended], tracks[new]])
        self._missed = np.concatenate([self._missed[~ended], np.zeros(len(new), np.int64)])
        return tracks, ended_tracks


def _centre(box: np.ndarray) -> np.ndarray:
    return box[:2] + box[2:] / 2
