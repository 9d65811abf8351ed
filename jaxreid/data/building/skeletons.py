"""Skeleton-only data sets: sequences of 3-D joints, one text file per frame, and the clips that are cut from them.

Needs no TFDS; the builders' base is in `skeleton_builder.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxreid.data.building import listed
from jaxreid.data.building.contents import NOT_UTF8
from jaxreid.data.building.listed import DEFAULT_MAX_EXCLUDED, UNCHECKED, ExcludedFrames, Listing, Tracklet, choose
from jaxreid.data.building.progress import progress
from jaxreid.data.names import is_utf8, printable
from jaxreid.errors import DataSetError, UserError

CLIP_FRAMES = 6  # of all published results
WHOLE = "sequences"  # the configuration whose records are not cut into clips


@dataclasses.dataclass(frozen=True)
class SkeletonRows:
    """What a frame's file holds: a joint per line, `index, x, y, z, u, v, tracking state, …`, metres.

    Attributes:
      joints: the lines that are read.
      exact: whether there may be no others (more than one person makes more lines).
      tracked: whether lines have a tracking state, and a frame with an untracked joint is dropped.
    """

    joints: int
    exact: bool
    tracked: bool

    def parse(self, text: str) -> np.ndarray | None:
        """The joints f32[J, 3] of a frame, None if one of them is not tracked.

        Raises:
          UserError: the text is no such frame; says why.
        """
        lines = text.splitlines()
        if len(lines) < self.joints or (self.exact and len(lines) > self.joints):
            raise UserError(f"has {len(lines)} lines, not {self.joints}")
        cells = [line.split(",") for line in lines[: self.joints]]
        least = 7 if self.tracked else 4
        short = next((number for number, row in enumerate(cells, 1) if len(row) < least), None)
        if short is not None:
            raise UserError(f"line {short} has {len(cells[short - 1])} fields, at least {least} are needed")
        if self.tracked and any(float(row[6]) == 0 for row in cells):
            return None
        joints = np.array([[float(cell) for cell in row[1:4]] for row in cells], np.float32)
        if not np.isfinite(joints).all():
            raise UserError("holds coordinates that are not finite")
        return joints


@dataclasses.dataclass(frozen=True)
class SkeletonSequence:
    """One recording of a person: frames in order, none of which was opened."""

    name: str
    split: str
    pid: int
    files: tuple[str, ...]
    camera: int = 1
    cam_name: str = "kinect"
    session: int = -1
    trim: tuple[int, int] = (0, 0)  # frames cut from start and end, after untracked ones were dropped


def clip_starts(length: int, frames: int, training: bool) -> Iterator[tuple[int, int]]:
    """(start offset, first frame) of the clips of a sequence.

    Training clips overlap by half, once for each start offset 0 … frames − 1; test clips do not overlap and start at
    0. A remainder makes no clip.
    """
    for offset in range(frames if training else 1):
        for start in range(offset, length - frames + 1, max(frames // 2, 1) if training else frames):
            yield offset, start


@dataclasses.dataclass(frozen=True)
class Configurations:
    """The configurations of a skeleton set whose splits are not drawn: what its builder's package offers."""

    dataset: str
    version: str

    def settings(
        self, config: str | None, clip_frames: int | None = None, strict_counts: bool | None = None
    ) -> dict[str, Any]:
        """`name`, `clip_frames` and `strict_counts` of a configuration; see the function `settings`."""
        return settings(self.dataset, config, clip_frames, strict_counts)

    def locate(
        self,
        config: str | None,
        source: Path | None,
        clip_frames: int | None = None,
        strict_counts: bool | None = None,
        max_excluded: float = DEFAULT_MAX_EXCLUDED,
    ) -> tuple[str, str]:
        """Configuration directory and version; a set that is there is found without its source.

        `max_excluded` decides whether a build succeeds, not what it holds.
        """
        return self.settings(config, clip_frames, strict_counts)["name"], self.version


def settings(
    name: str, config: str | None, clip_frames: int | None, strict_counts: bool | None, **drawn: int | None
) -> dict[str, Any]:
    """`name`, `clip_frames` (0: whole sequences), `strict_counts` and whole numbers that splits are drawn with.

    A configuration is called `f6` or `sequences`, with `-seed0` behind it for a number `seed`, and `_unchecked`.

    Raises:
      DataSetError: there is no such configuration.
    """
    named: dict[str, Any] = {}
    if config is not None:
        numbers = "".join(rf"-{option}(?P<{option}>\d+)" for option in drawn)
        match = re.fullmatch(rf"(?:f(?P<clip_frames>[1-9]\d*)|{WHOLE}){numbers}({UNCHECKED})?", config)
        if match is None:
            suffix = "".join(f"-{option}0" for option in drawn)
            raise DataSetError(
                f"{name}: no configuration {config!r}; there are f{CLIP_FRAMES}{suffix} (default: clips of "
                f"{CLIP_FRAMES} frames), f<N>{suffix}, {WHOLE}{suffix}, and these with {UNCHECKED} at the end for raw "
                "data that are not the published ones"
            )
        named = {option: int(value or 0) for option, value in match.groupdict().items()}
        named["strict_counts"] = not config.endswith(UNCHECKED)
    chosen = choose(
        name,
        config,
        named,
        given={"clip_frames": clip_frames, "strict_counts": strict_counts, **drawn},
        defaults={"clip_frames": CLIP_FRAMES, "strict_counts": True, **dict.fromkeys(drawn, 0)},
    )
    if min(value for value in chosen.values()) < 0:
        raise DataSetError(f"{name}: no option may be negative, got {chosen}")
    clips = f"f{chosen['clip_frames']}" if chosen["clip_frames"] else WHOLE
    numbers = "".join(f"-{option}{chosen[option]}" for option in drawn)
    return {"name": clips + numbers + ("" if chosen["strict_counts"] else UNCHECKED), **chosen}


def find_directory(name: str, source: Path, folders: Sequence[str], inner: str, expected: str) -> str:
    """The folder of `source` that holds `folders`: none (the empty name) or `inner`.

    Raises:
      DataSetError: neither does.
    """
    missing: list[str] = []
    for directory in (inner, ""):
        missing = [folder for folder in folders if not (source / directory / folder).is_dir()]
        if not missing:
            return directory
    raise DataSetError(f"{name}: {', '.join(missing)} missing in {source} or {source / inner}\n{expected}")


def person_folders(root: Path, folder: str, errors: list[str]) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Innermost folders below `root`/`folder`: name and files relative to `root`, and the person's number.

    The number is the one in the folder's name; folders and files come in the order of their numbers. What is no such
    folder, or cannot be read, is added to `errors`.
    """

    def unreadable(error: OSError) -> None:
        errors.append(f"{printable(error.filename)}: cannot be read: {error.strerror}")

    for directory, inner, files in os.walk(root / folder, onerror=unreadable, followlinks=True):
        inner.sort(key=listed.natural_key)
        place = printable(directory)
        skeletons = sorted((file for file in files if file.endswith("skel.txt")), key=listed.natural_key)
        lost = [file for file in {*files} - {*skeletons} if not os.path.exists(os.path.join(directory, file))]
        errors += [f"{place}/{printable(file)}: is a link to nothing" for file in sorted(lost)]
        if inner:
            errors += [f"{place}: {printable(file)} lies beside the folders of people" for file in skeletons[:1]]
            continue
        if not is_utf8(directory):
            errors.append(f"{place}: {NOT_UTF8}")
            continue
        name = Path(directory).relative_to(root).as_posix()
        number = re.fullmatch(r"\D*(\d+)\D*", Path(directory).name)
        if number is None:
            errors.append(f"{directory}: a folder is called after a person's number")
        elif not skeletons:
            errors.append(f"{directory}: holds no *skel.txt")
        else:
            yield name, int(number[1]), tuple(f"{name}/{file}" for file in skeletons)


def list_clips(
    name: str,
    source: Path,
    directory: str,
    sequences: Sequence[SkeletonSequence],
    rows: SkeletonRows,
    *,
    clip_frames: int,
    max_excluded: float,
    published: Mapping[str, Mapping[str, Any]],
    recalled: Mapping[str, Mapping[str, Any]],
    recalled_sequences: int | None,
    facts: Mapping[str, Any],
) -> Listing:
    """Reads the sequences and cuts them: a tracklet per clip, or per sequence where `clip_frames` is 0.

    Args:
      name, source, directory: the data set, the raw data, and what in them the files are relative to.
      sequences: what there is.
      rows: what a file holds.
      clip_frames: see `clip_starts`.
      max_excluded: the largest share of damaged files.
      published: counts that the set must have.
      recalled, recalled_sequences: counts that nobody verified: a difference is only a warning.
      facts: further metadata.

    Raises:
      DataSetError: too many files are damaged.
    """
    excluded = ExcludedFrames(name, source, sum(len(sequence.files) for sequence in sequences), max_excluded)
    content = hashlib.sha256()
    untracked, short = 0, []
    splits: dict[str, list[Tracklet]] = {split: [] for split in ("train", "query", "gallery")}

    def read(file: str) -> bytes | OSError:
        try:
            return (source / directory / file).read_bytes()
        except OSError as error:
            return error

    with ThreadPoolExecutor() as pool:
        for sequence in progress(sequences, "reading skeletons", unit="sequences"):
            kept: list[tuple[int, np.ndarray]] = []
            for index, (file, data) in enumerate(zip(sequence.files, pool.map(read, sequence.files), strict=True)):
                printed = printable(file)
                content.update(printed.encode())
                try:
                    if printed != file:
                        raise UserError(NOT_UTF8)
                    if isinstance(data, OSError):
                        raise UserError(data.strerror)
                    content.update(data)
                    joints = rows.parse(data.decode())
                except ValueError as error:  # also of text that is no UTF-8
                    excluded.add([(str(Path(directory, printed)), str(error))])
                    continue
                if joints is None:
                    untracked += 1
                else:
                    kept.append((index, joints))
            first, last = sequence.trim
            kept = kept[first : len(kept) - last]
            clips = list(_cut(sequence, directory, kept, clip_frames))
            splits[sequence.split] += clips
            if not clips:
                short.append(f"{sequence.name} ({len(kept)} frames)")
    excluded.warn()
    unequal = listed.differences(recalled, splits)
    if recalled_sequences not in (None, len(sequences)):
        unequal.append(f"all splits: expected {recalled_sequences} sequences, found {len(sequences)}")
    warnings = [f"{line} (this number was not verified)" for line in unequal]
    if short:
        warnings.append(f"{len(short)} sequences are too short for a clip, e.g. {', '.join(short[:3])}")
    return Listing(
        splits=splits,
        digest=content.hexdigest()[:12],
        differences=listed.differences(published, splits),
        warnings=warnings,
        facts={
            "clip_frames": clip_frames,
            "joints": rows.joints,
            "sequences": {split: sum(s.split == split for s in sequences) for split in splits},
            "untracked_frames": untracked,
            "short_sequences": short,
            "excluded_files": excluded.metadata(),
            **facts,
        },
    )


def _cut(
    sequence: SkeletonSequence, directory: str, kept: list[tuple[int, np.ndarray]], frames: int
) -> Iterator[Tracklet]:
    training = sequence.split == "train"
    if not frames:
        spans = [(sequence.name, 0, len(kept))] if kept else []
    else:
        spans = [
            (f"{sequence.name}/{f'o{offset}_' if training else ''}{kept[start][0]:05d}", start, start + frames)
            for offset, start in clip_starts(len(kept), frames, training)
        ]
    for tracklet_id, start, stop in spans:
        index = [position for position, _ in kept[start:stop]]
        joints = np.stack([joints for _, joints in kept[start:stop]])
        yield Tracklet(
            tracklet_id=tracklet_id,
            pid=sequence.pid,
            camera=sequence.camera,
            cam_name=sequence.cam_name,
            modality="skeleton",
            frames=tuple(sequence.files[position] for position in index),
            directory=directory,
            recording=sequence.name,
            features={
                "frames": [],
                "session": sequence.session,
                "joints3d": joints,
                "joints_valid": joints.any(axis=(1, 2)),
            },
            frame_index=tuple(index),
            source_frames=len(sequence.files),
        )
