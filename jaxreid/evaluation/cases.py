"""What an evaluation ranks: the queries, the gallery and the protocol of each case."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxreid import retrieval
from jaxreid.data.schema import INFRARED, VISIBLE
from jaxreid.data.split import Split, join, modality_name
from jaxreid.errors import UserError
from jaxreid.retrieval.protocols import Protocol, check, explain_no_match, has_match


@dataclasses.dataclass(frozen=True)
class Side:
    """Tracklets that take part in a direction: rows of one split, in the order of the data set's list."""

    split: Split
    rows: np.ndarray  # i64[n]
    tracklet: np.ndarray  # i32[n], one number per tracklet id, the same on both sides of a case

    def of(self, features: Mapping[str, Any]) -> Any:
        """This side's rows of the features of splits, by name; of a split that joins others, from theirs."""
        if not self.split.parts:
            everything = np.array_equal(self.rows, np.arange(len(self.split)))
            return jax.tree.map(lambda x: x if everything else x[self.rows], features[self.split.name])

        def picked(*arrays: np.ndarray) -> np.ndarray:
            found, start = np.empty((len(self.rows), *arrays[0].shape[1:]), arrays[0].dtype), 0
            for x in arrays:
                mine = (self.rows >= start) & (self.rows < start + len(x))
                found[mine] = x[self.rows[mine] - start]
                start += len(x)
            return found

        return jax.tree.map(picked, *(features[part.name] for part in self.split.parts))

    def columns(self) -> retrieval.Rows:
        table, labels = self.split.table, self.split.labels
        return retrieval.Rows(
            identity=labels.pid[self.rows],
            camera=table.camera[self.rows],
            modality=table.modality[self.rows],
            clothes=labels.clothes[self.rows],
            tracklet=self.tracklet,
            location=table.location[self.rows],
            scale=table.scale[self.rows],
        )


@dataclasses.dataclass(frozen=True)
class Case:
    """One ranking problem: queries, gallery, and the protocol that scores them."""

    direction: str
    protocol: Protocol
    query: Side
    gallery: Side

    def check(self) -> None:
        """Refuses what cannot be scored.

        Raises:
          UserError: the message says why, and what to do.
        """
        query, gallery = self.query.columns(), self.gallery.columns()
        try:
            check(query, gallery, self.protocol)
            if not has_match(query, gallery, self.protocol):
                raise UserError(f"protocol {self.protocol.key!r}: {explain_no_match(query, gallery, self.protocol)}")
        except ValueError as error:
            raise UserError(f"{self.direction}: {error} (--config.dataset.protocols chooses)") from error


def numbered(splits: Sequence[Split]) -> dict[str, np.ndarray]:
    """Split name → a number for each of its tracklets i64[N], from 0 on through all splits."""
    starts = np.cumsum([0, *map(len, splits)])
    return {split.name: start + np.arange(len(split)) for split, start in zip(splits, starts, strict=False)}


def cases(protocol: Protocol, query: Split, gallery: Split, name: str = "") -> tuple[Case, ...]:
    """What a protocol scores; `name` distinguishes the cases of several pairs of splits.

    Across modalities there are two directions; where the query split holds one modality only, the gallery split
    gives the queries of the other (as on HITSZ-VCM, where the two sets swap). Junk takes no part, a distractor is
    never a query.

    Raises:
      UserError: the protocol is cross-modality and a modality is missing.
    """
    # Of every tracklet that takes part: once, whatever the number of directions.
    everything = [np.array(split.labels.names) for split in (query, gallery)]
    numbers = np.unique(np.concatenate(everything), return_inverse=True)[1].astype(np.int32)
    tracklet = {id(query): numbers[: len(query)], id(gallery): numbers[len(query) :]}
    whole = gallery
    if protocol.queries_in_gallery:
        whole = join((query, gallery))
        tracklet[id(whole)] = numbers

    def listed(split: Split, wanted: np.ndarray) -> Side:
        rows = np.flatnonzero(wanted & ~split.labels.junk)
        rows = rows[np.argsort(split.record[rows], kind="stable")]
        return Side(split, rows, tracklet[id(split)][rows])

    def searched(split: Split, wanted: np.ndarray) -> Side:
        return listed(split, wanted & ~split.labels.distractor)

    if not protocol.other_modality:
        sides = searched(query, np.ones(len(query), bool)), listed(whole, np.ones(len(whole), bool))
        return (Case(name or "query_to_gallery", protocol, *sides),)

    def holder(first: Split, second: Split, code: int) -> tuple[Split, np.ndarray]:
        for split in (first, second):
            if np.any(split.table.modality == code):
                return split, split.table.modality == code
        raise UserError(
            f"{first.directory}: the protocol compares visible with infrared, but no test tracklet is "
            f"{modality_name(code)}; choose another with --config.dataset.protocols"
        )

    return tuple(
        Case(
            f"{name}/{modality_name(one)}_to_{modality_name(other)}".lstrip("/"),
            protocol,
            searched(*holder(query, gallery, one)),
            listed(*holder(gallery, query, other)),
        )
        for one, other in ((VISIBLE, INFRARED), (INFRARED, VISIBLE))
    )
