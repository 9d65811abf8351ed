"""What a run's data set holds: tracklets by split, modality and camera, and how long they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxreid.data.split import Split, modality_name
from jaxreid.report import plots
from jaxreid.report.page import DataTable, SplitCounts
from jaxreid.report.plots import Plot

BINS = 24


def data_table(splits: Sequence[Split]) -> DataTable:
    """Counts of every split and modality, and of every camera in them; a split given twice is counted once."""
    splits = list({split.name: split for split in splits}.values())
    cameras = np.unique(np.concatenate([split.table.camera for split in splits]))
    counts = []
    for split, modality, rows in _parts(splits):
        table, person = split.table, split.labels.pid[rows]
        counts.append(
            SplitCounts(
                split=split.name,
                modality=modality,
                tracklets=len(rows),
                frames=int(table.length[rows].sum()),
                persons=len(np.unique(person[person >= 0])),
                median_length=float(np.median(table.length[rows])),
                per_camera=tuple(int((table.camera[rows] == camera).sum()) for camera in cameras),
            )
        )
    return DataTable(tuple(cameras.tolist()), tuple(counts))


def length_histograms(splits: Sequence[Split]) -> list[Plot]:
    """A figure of tracklet lengths for each split, over the same bins; modalities are stacked."""
    splits = list({split.name: split for split in splits}.values())
    edges, shortened = length_bins(np.concatenate([split.table.length for split in splits]))
    figures = []
    for split in splits:
        parts = [(modality, rows) for part, modality, rows in _parts(splits) if part is split]
        length = split.table.length
        counts = {modality: np.histogram(np.minimum(length[rows], edges[-1]), edges)[0] for modality, rows in parts}
        codes = [int(split.table.modality[rows[0]]) for _, rows in parts]
        caption = f"Frames in a tracklet: {length.min()} to {length.max()}, median {np.median(length):g}."
        if shortened and length.max() > edges[-1]:
            caption += f" The last bar also holds the {int((length > edges[-1]).sum())} longer ones."
        figures.append(
            plots.histogram(f"Tracklet length, {split.name}", caption, edges, counts, "frames", series=codes)
        )
    return figures


def length_bins(length: np.ndarray) -> tuple[np.ndarray, bool]:
    """Borders of at most `BINS` bins around whole numbers, and whether a long tail is left to the last of them."""
    longest, usual = int(length.max()), int(np.quantile(length, 0.99))
    shortened = longest > 2 * usual
    first, last = int(length.min()), usual if shortened else longest
    width = -(-(last - first + 1) // BINS)
    count = -(-(last - first + 1) // width)
    return first - 0.5 + width * np.arange(count + 1), shortened


def _parts(splits: Sequence[Split]) -> list[tuple[Split, str, np.ndarray]]:
    """(split, modality, its rows) of every modality that a split holds."""
    return [
        (split, modality_name(int(code)), np.flatnonzero(split.table.modality == code))
        for split in splits
        for code in np.unique(split.table.modality)
    ]
