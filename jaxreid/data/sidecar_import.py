"""Makes a sidecar of a built data set from the files of other codes.

    joints3d     one .json per frame, key `keypoints`, 17 × 3 (HMR2.0, as CSIP-ReID reads them)
    keypoints    one .pose per frame, 17 × (x, y, score) (OpenPifPaf, as KeyRe-ID makes them)
    captions     JSON lines, {"tracklet": …, "caption": …}

Files are found by the names of the frames in the records; the data set is not built anew. See docs/sidecars.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxreid.data.building.listed import shorten
from jaxreid.data.building.progress import progress
from jaxreid.data.sidecar_files import FRAME_FORMATS, FrameFiles, FrameFormat, read_captions
from jaxreid.data.sidecars import SidecarWriter
from jaxreid.data.split import split_names
from jaxreid.errors import DataSetError

KINDS = (*FRAME_FORMATS, "captions")


@dataclasses.dataclass
class Report:
    """What an import found, and what it did not find."""

    tracklets: int = 0  # that have an entry now
    frames: int = 0
    undetected: int = 0  # frames whose file says that nobody was found
    missing_frames: list[str] = dataclasses.field(default_factory=list)  # of tracklets that have an entry
    missing_tracklets: list[str] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        frames = f", {self.frames} frames, {self.undetected} of them without a detection" if self.frames else ""
        named = (
            ("files cannot be used", self.faults),
            ("frames have no file and are masked", self.missing_frames),
            ("tracklets have no file and no entry", self.missing_tracklets),
        )
        return [
            f"{self.tracklets} tracklets{frames}",
            *self.remarks,
            *(f"{len(lines)} {what}:\n{shorten(lines, 5)}" for what, lines in named if lines),
        ]


def import_sidecar(kind: str, directory: Path, name: str, source: Path, overwrite: bool = False) -> Report:
    """Writes the sidecar of a kind beside a prepared set.

    A frame whose values are all zero, or that has no file while its tracklet has some, is masked.

    Args:
      kind: one of `KINDS`.
      directory: the prepared set.
      name: of the data set, as caption files name it.
      source: folder of the frames' files, or the file of captions.
      overwrite: replace a sidecar of this kind.

    Raises:
      DataSetError: no tracklet has an entry, or the source is not of the expected form.
      UserError: there is one already and `overwrite` is false.
    """
    report = Report()
    with SidecarWriter(directory, kind, {"imported_from": str(source)}, overwrite) as writer:
        if kind == "captions":
            _captions(writer, directory, name, source, report)
        else:
            _frames(writer, directory, FRAME_FORMATS[kind], source, report)
        if not report.tracklets:
            raise DataSetError(
                f"{kind}: nothing in {source} belongs to a tracklet of {directory}:\n" + "\n".join(report.lines())
            )
    return report


def _frames(writer: SidecarWriter, directory: Path, form: FrameFormat, source: Path, report: Report) -> None:
    if not source.is_dir():
        raise DataSetError(f"{source} is not a directory")
    files = FrameFiles(source, form.suffix)

    def read(name: str) -> tuple[np.ndarray | None, str | None]:
        path = files.path(name)
        if path is None:
            return None, None
        try:
            return form.read(path), None
        except (OSError, ValueError) as error:
            return None, f"{path}: {error}"

    with ThreadPoolExecutor() as pool:
        for record in _tracklets(directory):
            tracklet = record["tracklet_id"].decode()
            names = [frame.decode() for frame in record["frame_names"]]
            found = list(pool.map(read, names))
            report.faults += [fault for _, fault in found if fault]
            if all(values is None for values, _ in found):
                report.missing_tracklets.append(f"{tracklet} ({names[0]})" if names else tracklet)
                continue
            report.missing_frames += [
                f"{tracklet}: {name}"
                for name, (values, fault) in zip(names, found, strict=True)
                if values is None and not fault
            ]
            values = np.stack([np.zeros(form.shape, np.float32) if rows is None else rows for rows, _ in found])
            mask = np.array([frame.any() for frame in values])
            report.tracklets += 1
            report.frames += len(names)
            report.undetected += sum(rows is not None and not rows.any() for rows, _ in found)
            writer.add(tracklet, values, record["frame_index"], mask)
    writer.note(
        **form.meta,
        undetected_frames=report.undetected,
        missing_frames=len(report.missing_frames),
        missing_tracklets=len(report.missing_tracklets),
        faults=report.faults[:100],
    )


def _captions(writer: SidecarWriter, directory: Path, name: str, source: Path, report: Report) -> None:
    tracklets = [(record["tracklet_id"].decode(), int(record["pid"])) for record in _tracklets(directory)]
    captions = read_captions(source, name, tracklets)
    for tracklet, texts in captions.texts.items():
        writer.add_text(tracklet, texts)
    writer.note(**captions.meta)
    report.tracklets = len(captions.texts)
    report.missing_tracklets, report.remarks = captions.missing, captions.remarks


def _tracklets(directory: Path) -> Iterator[dict[str, Any]]:
    """The record of every tracklet, once: some are in two splits."""
    import tensorflow_datasets as tfds

    seen: set[bytes] = set()
    builder = tfds.builder_from_directory(str(directory))
    for split in split_names(directory):
        source: Any = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
        for row in progress(range(len(source)), split):
            record = source[row]
            if record["tracklet_id"] not in seen:
                seen.add(record["tracklet_id"])
                yield record
