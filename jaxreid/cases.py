"""What an evaluation ranks: which test tracklets are looked for among which, under which rules."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxreid import retrieval
from jaxreid.data.schema import INFRARED, VISIBLE
from jaxreid.data.split import Split, modality_name
from jaxreid.retrieval.protocols import Protocol, check, explain_no_match, has_match


@dataclasses.dataclass(frozen=True)
class Side:
    """Tracklets that take part in a direction: rows of one split, in the order of the data set's list."""

    split: Split
    rows: np.ndarray  # i64[n]

    def columns(self) -> retrieval.Rows:
        table, labels = self.split.table, self.split.labels
        every = retrieval.Rows(
            identity=labels.pid,
            camera=table.camera,
            modality=table.modality,
            clothes=labels.clothes,
            tracklet=np.arange(len(self.split)),
        )
        return every[self.rows]


@dataclasses.dataclass(frozen=True)
class Case:
    """One ranking problem: which tracklets are looked for among which, under which rules."""

    direction: str
    protocol: Protocol
    query: Side
    gallery: Side

    def check(self) -> None:
        """Refuses what cannot be scored.

        Raises:
          ValueError: the message names the rule, and what to do.
        """
        query, gallery = self.query.columns(), self.gallery.columns()
        try:
            check(query, gallery, self.protocol)
            if not has_match(query, gallery, self.protocol):
                raise ValueError(f"protocol {self.protocol.key!r}: {explain_no_match(query, gallery, self.protocol)}")
        except ValueError as error:
            raise ValueError(f"{self.direction}: {error} (--config.dataset.protocols chooses)") from error


def cases(protocol: Protocol, query: Split, gallery: Split) -> tuple[Case, ...]:
    """What a protocol scores.

    Across modalities there are two directions; where the query split holds one modality only, the gallery split
    gives the queries of the other (as on HITSZ-VCM, where the two sets swap).

    Raises:
      ValueError: the protocol is cross-modality and a modality is missing.
    """

    def listed(split: Split, wanted: np.ndarray) -> Side:
        rows = np.flatnonzero(wanted)
        return Side(split, rows[np.argsort(split.record[rows], kind="stable")])

    if not protocol.other_modality:
        every = (listed(split, np.ones(len(split), bool)) for split in (query, gallery))
        return (Case("query_to_gallery", protocol, *every),)

    def side(first: Split, second: Split, code: int) -> Side:
        for split in (first, second):
            if np.any(split.table.modality == code):
                return listed(split, split.table.modality == code)
        raise ValueError(
            f"{first.directory}: the protocol compares visible with infrared, but no test tracklet is "
            f"{modality_name(code)}; choose another with --config.dataset.protocols"
        )

    return tuple(
        Case(
            f"{modality_name(one)}_to_{modality_name(other)}",
            protocol,
            side(query, gallery, one),
            side(gallery, query, other),
        )
        for one, other in ((VISIBLE, INFRARED), (INFRARED, VISIBLE))
    )
