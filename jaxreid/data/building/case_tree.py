"""Aerial and ground sets: `train`, and test cases that are each a folder of queries and one of their gallery."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from jaxreid.data.building import listed
from jaxreid.data.building.listed import Tracklet
from jaxreid.data.building.tree import Tree

ALL_CASES = "cases"  # the variant with every case, as splits query_case1, gallery_case1, query_case2, …
Splits = dict[str, list[Tracklet]]


def variants(cases: Mapping[int, str]) -> tuple[str, ...]:
    """Names of the variants: all cases, or one of them as plain `query` and `gallery`."""
    return (ALL_CASES, *(f"case{number}" for number in cases))


def case_splits(variant: str, cases: Mapping[int, str]) -> dict[int, tuple[str, str]]:
    """Names of the query and of the gallery split of each case that a variant holds."""
    if variant == ALL_CASES:
        return {number: (f"query_case{number}", f"gallery_case{number}") for number in cases}
    return {int(variant.removeprefix("case")): ("query", "gallery")}


def read_cases(
    tree: Tree,
    variant: str,
    cases: Mapping[int, str],
    describe: Callable[[int, str, list[str]], Tracklet | None],
    max_frames: int,
    expected: str,
) -> Splits:
    """The tracklets of `train` and of the cases of a variant, by identity and tracklet name, thinned at once.

    Args:
      tree: what is read, and gathers what is wrong.
      variant: one of `variants(cases)`.
      cases: number and directory of each case.
      describe: the tracklet of an identity, a folder and its frames' names; None leaves it out.
      max_frames: longer tracklets are thinned; 0 is never.
      expected: the tree, for messages.

    Raises:
      DataSetError: a directory is missing or cannot be read.
    """
    directories = {"train": "train"}
    for number, (query, gallery) in case_splits(variant, cases).items():
        directories |= {query: f"{cases[number]}/query", gallery: f"{cases[number]}/gallery"}
    tree.require(directories.values(), expected)
    return {split: read_tracklets(tree, directory, describe, max_frames) for split, directory in directories.items()}


def read_tracklets(
    tree: Tree, directory: str, describe: Callable[[int, str, list[str]], Tracklet | None], max_frames: int
) -> list[Tracklet]:
    """The tracklets of one directory, see `read_cases`."""
    described = (describe(*folder) for folder in tree.tracklets(directory))
    return [found.thinned(max_frames) if max_frames else found for found in described if found]


def mark_cases(splits: Splits, named: Mapping[int, tuple[str, str]]) -> Splits:
    """The splits with `case_mask`: bit n − 1 is set if the tracklet id takes part in case n of `named`."""
    masks: Counter[str] = Counter()
    for number, names in named.items():
        for tracklet_id in {tracklet.tracklet_id for name in names for tracklet in splits[name]}:
            masks[tracklet_id] += 1 << (number - 1)
    tested = {name for names in named.values() for name in names}
    return {
        split: [with_features(t, case_mask=masks[t.tracklet_id]) for t in members] if split in tested else members
        for split, members in splits.items()
    }


def case_remarks(splits: Splits, named: Mapping[int, tuple[str, str]]) -> list[str]:
    """`listed.identity_remarks` of each case; the builder makes those of splits called query and gallery itself."""
    return [
        f"case {number}: {remark}"
        for number, (query, gallery) in named.items()
        if query != "query"
        for remark in listed.identity_remarks(
            {"train": splits["train"], "query": splits[query], "gallery": splits[gallery]}
        )
    ]


def with_features(tracklet: Tracklet, **features: object) -> Tracklet:
    """A tracklet with further features of its record."""
    return dataclasses.replace(tracklet, features={**tracklet.features, **features})


def pids(tracklets: Sequence[Tracklet]) -> set[int]:
    """The identities of tracklets."""
    return {tracklet.pid for tracklet in tracklets}
