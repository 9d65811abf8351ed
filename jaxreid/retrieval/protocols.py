"""Evaluation protocols: which gallery rows match a query, which are left out, and which average precision is meant.

A protocol is a few rules over integer columns. A *match* (positive) of a query is a gallery row of the same
identity that also differs, or agrees, in the columns the protocol names. *Junk* is left out of the ranking: rows
of the same identity that are not a match, and rows of identities that the protocol throws away. All others are
negatives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxreid.errors import UserError

Array = Any  # NumPy or jax
UNKNOWN = -1
MODALITY_WORDS = ("visible", "infrared")  # of codes 0 and 1, as in jaxreid.data.schema


def _fits_int32(value: Any) -> bool:
    return np.iinfo(np.int32).min <= value <= np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is known about N features, as host arrays i32[N]; −1 is unknown, a column left out is all unknown.

    Raises:
      UserError: a column is not a vector of integers, or the columns' lengths differ.
    """

    identity: np.ndarray
    camera: np.ndarray = None  # type: ignore[assignment]
    modality: np.ndarray = None  # type: ignore[assignment]
    clothes: np.ndarray = None  # type: ignore[assignment]
    tracklet: np.ndarray = None  # type: ignore[assignment]
    location: np.ndarray = None  # type: ignore[assignment]
    scale: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self):
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if values is None:
                values = np.full(len(self.identity), UNKNOWN)
            values = np.asarray(values)
            if values.ndim != 1 or len(values) != len(self.identity):
                raise UserError(
                    f"Rows.{field.name} has shape {values.shape}; one value per feature is needed, as in "
                    f"identity ({len(self.identity)})"
                )
            if len(values) and not np.issubdtype(values.dtype, np.integer):
                raise UserError(f"Rows.{field.name} holds {values.dtype}; integers are needed")
            if len(values) and not (_fits_int32(values.min()) and _fits_int32(values.max())):
                raise UserError(f"Rows.{field.name} does not fit int32: number its values from 0")
            object.__setattr__(self, field.name, values.astype(np.int32))

    def __len__(self) -> int:
        return len(self.identity)

    def __getitem__(self, rows: Any) -> Rows:
        """The chosen rows: a slice, row numbers or a boolean mask."""
        return Rows(**{name: column[rows] for name, column in vars(self).items()})

    def columns(self, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The rules of one evaluation protocol.

    Attributes:
      key: its name in configs and result records.
      different: columns of `Rows` in which a match differs from the query.
      same: columns, besides identity, in which a match agrees with the query.
      junk_identities: gallery identities that are left out of every ranking.
      precision: 'standard', 'trapezoid' or 'tied', see `precision.average_precision`.
      other_modality: the gallery must hold no row of the query's modality.
      whole_batches: (modality, size) pairs: of the rows of that modality, in the order given, those after the last
        whole group of `size` are left out, as queries and from the gallery.
      queries_in_gallery: the gallery is the whole test set; each query is junk to itself.
      count_unmatched: queries without a match count as misses in rank-k (never in mAP and mINP).
      scored: False where a data set has no identities to score by.

    Raises:
      UserError: a column that `Rows` does not have, or an identity that does not fit int32.
    """

    key: str
    different: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    junk_identities: tuple[int, ...] = ()
    precision: str = "standard"
    other_modality: bool = False
    whole_batches: tuple[tuple[int, int], ...] = ()
    queries_in_gallery: bool = False
    count_unmatched: bool = False
    scored: bool = True

    def __post_init__(self):
        for name in ("different", "same", "junk_identities"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        known = [field.name for field in dataclasses.fields(Rows)]
        if wrong := [name for name in (*self.different, *self.same) if name not in known]:
            raise UserError(f"protocol {self.key!r}: Rows have no column {wrong[0]!r}; they have {', '.join(known)}")
        if wrong := [identity for identity in self.junk_identities if not _fits_int32(identity)]:
            raise UserError(f"protocol {self.key!r}: the junk identity {wrong[0]} does not fit int32, as Rows' must")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of `Rows` that the rules read."""
        return ("identity", *self.different, *self.same)

    def masks(self, query: Mapping[str, Array], gallery: Mapping[str, Array]) -> tuple[Array, Array]:
        """(positive, junk), bool[Q, G] each, from the `columns` of a block of queries and of the gallery.

        Plain array arithmetic: NumPy in, NumPy out; traceable by jax.
        """

        def equal(name: str) -> Array:
            return query[name][:, None] == gallery[name][None, :]

        same_identity = equal("identity") & (query["identity"] != UNKNOWN)[:, None]
        positive, junk = same_identity, same_identity & False
        for name in self.different:
            positive = positive & ~equal(name)
        for name in self.same:
            positive = positive & equal(name)
        for identity in self.junk_identities:
            junk = junk | (gallery["identity"] == identity)[None, :]
        return positive & ~junk, junk | (same_identity & ~positive)

    def junk(self, query: Rows, gallery: Rows) -> np.ndarray:
        """bool[Q, G]: the gallery rows to leave out of each query's ranked list (see `metrics.nearest`)."""
        found = self.masks(query.columns(self.columns), gallery.columns(self.columns))[1]
        looked_at = np.zeros(len(gallery), bool)
        looked_at[self.kept(gallery)] = True
        return found | ~looked_at

    def kept(self, rows: Rows) -> np.ndarray | slice:
        """The rows that `whole_batches` leaves, as an index: i64[n], ascending, or a slice of all of them."""
        if not self.whole_batches:
            return slice(None)
        keep = np.ones(len(rows), bool)
        for modality, size in self.whole_batches:
            found = np.flatnonzero(rows.modality == modality)
            keep[found[len(found) - len(found) % size :]] = False
        return np.flatnonzero(keep)

    def gallery_size(self, gallery: Rows) -> int:
        """Gallery rows that can be ranked at all."""
        return int(np.sum(~np.isin(gallery[self.kept(gallery)].identity, self.junk_identities)))

    def describe(self) -> str:
        """The rules in one English sentence, for reports."""
        if not self.scored:
            return "not scored: the data set names no identities"
        rules = ["same identity"]
        rules += [f"other {name}" for name in self.different] + [f"same {name}" for name in self.same]
        text = "a match has the " + ", ".join(rules)
        if self.different or self.same:
            text += "; other rows of the query's identity are left out"
        for modality, size in self.whole_batches:
            text += f"; {MODALITY_WORDS[modality]} tracklets after the last whole {size} of the list are not looked at"
        if self.queries_in_gallery:
            text += "; the queries stand in the gallery, too"
        if self.precision != "standard":
            text += f"; {self.precision} average precision"
        return text


PROTOCOLS: dict[str, Protocol] = {
    protocol.key: protocol
    for protocol in (
        Protocol("market", different=("camera",), junk_identities=(UNKNOWN,)),
        # MARS as its authors score it: the gallery is the whole test set, the queries with it.
        *(
            Protocol(
                key, different=("camera",), junk_identities=(UNKNOWN,), precision=precision, queries_in_gallery=True
            )
            for key, precision in (
                ("mars_full", "trapezoid"),
                ("mars_full_std", "standard"),
                ("market_full", "standard"),  # the same for LS-VID, as some codes score it
            )
        ),
        # Query and gallery are two cameras that share no tracklet, so nothing has to be left out.
        Protocol("single_match"),
        Protocol("cross_modal_cam", different=("camera",), other_modality=True),
        # BUPTCampus also scores a modality against itself, so the gallery's modality is the caller's choice.
        Protocol("cross_modal_nocam"),
        # Its two directions as papers report them. The authors' own test sampler loses the visible tracklets that do
        # not fill a batch of 64 (540 queries become 512, 2,422 gallery tracklets 2,368); most printed figures are so.
        Protocol("bupt_full", other_modality=True),
        Protocol("bupt_reduced64", other_modality=True, whole_batches=((0, 64),)),
        Protocol("xfd", different=("tracklet",), precision="trapezoid"),
        # The repository's own test: "camera" is 0 for the ground and 1 or 2 for a drone session.
        Protocol("xfd_train", different=("camera",)),
        *(
            Protocol(key, different=("camera", *different), same=same, junk_identities=(UNKNOWN,))
            for key, different, same in (
                ("clothes_sc", (), ("clothes",)),
                ("clothes_cc", ("clothes",), ()),
                ("location_sl", (), ("location",)),
                ("location_dl", ("location",), ()),
                ("scale_ss", (), ("scale",)),
                ("scale_ds", ("scale",), ()),
            )
        ),
        Protocol("skeleton", precision="tied", count_unmatched=True),
        Protocol("none", scored=False),
    )
}


def resolve(protocol: str | Protocol) -> Protocol:
    """The protocol of a key; a `Protocol` is returned as it is.

    Raises:
      UserError: there is no such key.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]


def check(query: Rows, gallery: Rows, protocol: Protocol) -> None:
    """Refuses rows that the protocol cannot be applied to; `whole_batches` is taken into account.

    Raises:
      UserError: nothing to score, a column that decides over a match is unknown, or modalities are mixed.
    """
    name = f"protocol {protocol.key!r}"
    if not protocol.scored:
        raise UserError(f"{name} is not scored: use `nearest` to look at ranked lists")
    query, gallery = query[protocol.kept(query)], gallery[protocol.kept(gallery)]
    if not len(query) or not len(gallery):
        raise UserError(f"{name}: {len(query)} queries and {len(gallery)} gallery rows; both are needed")
    if protocol.other_modality:
        shared = set(query.modality.tolist()) & set(gallery.modality.tolist()) - {UNKNOWN}
        if shared:
            raise UserError(
                f"{name}: query and gallery share modality codes {sorted(shared)}; score one direction at a "
                f"time, with a gallery of the other modality"
            )
    # A column matters only where identities meet: what is unknown of a distractor changes nothing.
    common = np.intersect1d(query.identity, gallery.identity)
    common = common[(common != UNKNOWN) & ~np.isin(common, protocol.junk_identities)]
    for column in protocol.columns[1:]:
        for side, rows in (("query", query), ("gallery", gallery)):
            unknown = np.flatnonzero((getattr(rows, column) == UNKNOWN) & np.isin(rows.identity, common))
            if len(unknown):
                raise UserError(
                    f"{name} needs the {column} of every row, but {len(unknown)} of {len(rows)} {side} rows "
                    f"have none (first: row {unknown[0]}); give it, or choose a protocol that does not ask it"
                )


def has_match(query: Rows, gallery: Rows, protocol: Protocol) -> bool:
    """Whether any query has a match at all."""
    query, gallery = query[protocol.kept(query)], gallery[protocol.kept(gallery)]
    columns, blocks = protocol.columns, np.array_split(np.arange(len(query)), -(-len(query) // 256))
    return any(protocol.masks(query[rows].columns(columns), gallery.columns(columns))[0].any() for rows in blocks)


def explain_no_match(query: Rows, gallery: Rows, protocol: Protocol) -> str:
    """Why no query has a match: the first rule that leaves none, and what to do."""
    if not np.any(query.identity != UNKNOWN):
        return "no query has a known identity (all are -1)"
    rules = dataclasses.replace(protocol, different=(), same=())

    def matched(rules: Protocol) -> bool:
        return has_match(query, gallery, rules)

    if not matched(rules):
        return "no identity of the queries is in the gallery; were the two splits built from the same people?"
    for word, kind, names in (("other", "different", protocol.different), ("same", "same", protocol.same)):
        for name in names:
            rules = dataclasses.replace(rules, **{kind: (*getattr(rules, kind), name)})
            if not matched(rules):
                phrase = f"another {name}" if word == "other" else f"the same {name}"
                seen = np.unique(np.concatenate([getattr(query, name), getattr(gallery, name)]))
                listed = ", ".join(map(str, seen[:8])) + (", …" if len(seen) > 8 else "")
                return (
                    f"no query has a match with {phrase} ({name} numbers seen: {listed}); choose a protocol "
                    f"without that rule, such as 'cross_modal_nocam', or 'none' to skip scoring"
                )
    return "the rules leave no match"
