"""Clothes-changing sets: numbers for outfits, which mean something only together with the person who wears them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxreid.data.building.listed import Tracklet

Wearing = tuple[int, str]  # identity and outfit
_FAMILIES = {"train": ("train",), "test": ("query", "gallery")}


def worn(tracklets: Sequence[Tracklet]) -> list[Wearing]:
    """The different (identity, outfit) pairs of tracklets, sorted."""
    return sorted({(tracklet.pid, tracklet.features["outfit"]) for tracklet in tracklets})


def number_outfits(
    splits: Mapping[str, Sequence[Tracklet]],
) -> tuple[dict[str, list[Tracklet]], dict[str, list[Wearing]]]:
    """The splits with `clothes_id` beside their `outfit`, and the tables that these numbers are rows of.

    There is one table for `train` and one that `query` and `gallery` share.
    """
    numbered: dict[str, list[Tracklet]] = {}
    tables: dict[str, list[Wearing]] = {}
    for family, names in _FAMILIES.items():
        tables[family] = worn([tracklet for name in names for tracklet in splits[name]])
        numbers = {pair: number for number, pair in enumerate(tables[family])}
        for name in names:
            numbered[name] = [
                dataclasses.replace(
                    tracklet,
                    features={**tracklet.features, "clothes_id": numbers[tracklet.pid, tracklet.features["outfit"]]},
                )
                for tracklet in splits[name]
            ]
    return numbered, tables


def outfit_differences(
    published: Mapping[str, Mapping[str, Any]], splits: Mapping[str, Sequence[Tracklet]]
) -> list[str]:
    """Where outfits are not as many as `published[split]["outfits"]`: a line per split; "test" is both test splits."""
    found = {**{split: worn(members) for split, members in splits.items()}, "test": []}
    found["test"] = sorted({*found["query"], *found["gallery"]})
    return [
        f"{split}: expected {figures['outfits']} outfits, found {len(found[split])}"
        for split, figures in published.items()
        if figures.get("outfits") not in (None, len(found[split]))
    ]
