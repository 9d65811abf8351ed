"""Which tracklets of several splits are the same: what the drones saw is the query of one test and the gallery of
another, and is embedded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxreid.data.split import FrameReader, Split


def distinct(splits: Sequence[Split], readers: Sequence[FrameReader]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each split (a number for each of its tracklets i64[N], rows of those that are in no split before it).

    Different tracklets are numbered from 0 on as they come, the same have the same number: those of the same name and
    table row and, byte for byte, the same frames (of a set of skeletons: the same joints). Frames are read of tracklets
    whose name comes again, and of no other.
    """
    count, first, found = 0, {}, []
    for split, reader in zip(splits, readers, strict=True):
        numbers, new = np.full(len(split), -1), []
        for row, name in enumerate(split.labels.names):
            known = first.get(name)
            if known and _same(known[:3], (split, reader, row)):
                numbers[row] = known[3]
                continue
            numbers[row] = count + len(new)
            first.setdefault(name, (split, reader, row, numbers[row]))
            new.append(row)
        count += len(new)
        found.append((numbers, np.array(new, np.int64)))
    return found


def _same(one: tuple[Split, FrameReader, int], other: tuple[Split, FrameReader, int]) -> bool:
    """Whether these rows of two splits are the same tracklet."""
    (split, reader, row), (another, its_reader, its_row) = one, other
    for name in (field.name for field in dataclasses.fields(split.table)):
        values = getattr(split.table, name)[row], getattr(another.table, name)[its_row]
        if name != "recording" and not np.array_equal(*values, equal_nan=True):  # which each split numbers by itself
            return False
    if split.skeletons != another.skeletons or not np.array_equal(split.frame_index(row), another.frame_index(its_row)):
        return False
    if split.skeletons:
        pairs = zip(reader.joints(row), its_reader.joints(its_row), strict=True)
        return all(np.array_equal(*pair) for pair in pairs)
    return list(reader.encoded(row)) == list(its_reader.encoded(its_row))
