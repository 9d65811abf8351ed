"""Fills a gallery with the features of tracklets: data sets, folders, videos.

    jaxreid embed door.mp4 --checkpoint runs/hitpro-folder-seed1 --gallery people.gallery
    jaxreid embed people --checkpoint runs/hitpro-folder-seed1 --gallery people.gallery
    jaxreid embed walkers/vvi --split query --checkpoint runs/hitpro-walkers-seed1 --gallery all.gallery

A folder has the sidecars that `jaxreid make-sidecars` made for it.

Every tracklet becomes one row: a feature as the run's evaluation computes it, what is known of the tracklet, and a
thumbnail (128 pixels high, 2 to 4 kB). What is in the gallery already is left out, so that an interrupted line can be
typed again. `jaxreid search` looks for somebody in it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

import jaxreid
from jaxreid.data.prepared import SCALE, SIXTEEN_BIT
from jaxreid.data.schema import MODALITIES
from jaxreid.devices.compiled import cache_compilations
from jaxreid.embedder import Embedder
from jaxreid.errors import UserError, command
from jaxreid.files import Held, expand, held
from jaxreid.footage.sources import RESCORE, Source, SourceOptions, open_source
from jaxreid.retrieval import DISTANCES, Gallery, add_to_gallery
from jaxreid.retrieval.gallery import MANIFEST

CROPS = "crops"  # folder in a gallery: tracklets of videos
TRACKLETS_AT_ONCE = 512  # between two additions to the gallery
PAIR_BYTES = 1 << 30  # of what they have for a score of pairs, at most


def fill(
    directory: Path, source: Source, embedder: Embedder, show_progress: bool = True, pairs: bool | None = None
) -> tuple[int, int]:
    """Adds the tracklets of a source that are not in the gallery yet: (how many were added, how many were there).

    What was added before an interruption stays, whole.

    Args:
      pairs: whether to keep what a score of pairs needs of each; None = as the gallery does, a new one where the
        evaluation of the run re-scores.

    Raises:
      UserError: the gallery is another model's, a frame cannot be decoded, a tracklet is in the gallery with another
        number of frames, or another process adds tracklets of this source at the moment.
    """
    with _alone(directory, source):
        return _fill(directory, source, embedder, show_progress, pairs)


@contextlib.contextmanager
def _alone(directory: Path, source: Source) -> Iterator[None]:
    """Two processes that both add what is missing of a source would add it twice. A lock goes with its process."""
    directory.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(source.name.encode()).hexdigest()[:8]
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(directory / f".source-{key}.lock"))
        except Held as other:
            raise UserError(f"{other.holder} is adding tracklets of {source.name} to {directory}") from None
        yield


def _fill(
    directory: Path, source: Source, embedder: Embedder, show_progress: bool, pairs: bool | None
) -> tuple[int, int]:
    if embedder.distance not in DISTANCES:
        raise UserError(
            f"{embedder.workdir} compares tracklets by a distance of its method's own, and a gallery can be searched "
            f"by {', '.join(DISTANCES)} only"
        )
    known = _known(directory, source, embedder)
    names, lengths = source.split.labels.names, source.split.table.length
    changed = [name for name, length in zip(names, lengths, strict=True) if known.get(name, length) != length]
    if changed:
        raise UserError(
            f"{len(changed)} tracklets of {source.name} are in {directory} with another number of frames, the first of "
            f"them {changed[0]}: fill a new gallery, or give the changed tracklets other names"
        )
    todo = np.array([row for row, name in enumerate(names) if name not in known], np.int64)
    pairs, at_once = _keeps_pairs(directory, embedder, pairs), TRACKLETS_AT_ONCE
    if pairs:
        size = embedder.pair_bytes()
        at_once = max(min(at_once, PAIR_BYTES // size), 1)
        print(f"for pairs: {size * len(todo) / 2**20:,.1f} MiB of {len(todo):,} tracklets in {directory}", flush=True)
    with tqdm(total=len(todo), unit=" tracklets", disable=not show_progress or not len(todo)) as bar:
        for start in range(0, len(todo), at_once):
            rows, features, pictures = todo[start : start + at_once], [], []
            for few in np.split(rows, range(embedder.batch_size, len(rows), embedder.batch_size)):
                features.append(embedder.embed_split(source.split, source.reader, few))
                if not isinstance(features[-1], np.ndarray):
                    raise UserError(f"{embedder.workdir} embeds parts with visibilities, which a gallery cannot hold")
                pictures += [source.pictures(row)[0] for row in few]
                bar.update(len(few))
            metadata = [source.metadata(row) for row in rows]
            found = np.concatenate(features)
            kept = embedder.embed_pairs(source.split, source.reader, rows) if pairs else None
            add_to_gallery(directory, found, metadata, pictures, embedder.identity, embedder.distance, kept)
    return len(todo), len(names) - len(todo)


def _keeps_pairs(directory: Path, embedder: Embedder, asked: bool | None) -> bool:
    """What `pairs` of `fill` means for a gallery."""
    there = bool(Gallery(directory).pairs) if (directory / MANIFEST).exists() else None
    if None not in (there, asked) and there != asked:
        raise UserError(
            f"{directory} was filled {'with' if there else 'without'} features for pairs: fill a new gallery, or leave "
            f"--rescore={'always' if asked else 'never'} out"
        )
    known = asked if there is None else there
    pairs = embedder.rescoring[0] > 0 if known is None else known
    if pairs and not (embedder.scores_pairs and embedder.distance == "cosine"):
        raise UserError(f"{embedder.workdir} has no score of pairs beside a cosine: leave --rescore=always out")
    return pairs


def _known(directory: Path, source: Source, embedder: Embedder) -> dict[str, int]:
    """Tracklet name → frames of what the gallery has of a source."""
    if not (directory / MANIFEST).exists():
        return {}
    gallery = Gallery(directory)
    gallery.check_model(embedder.identity)
    own = [row for row, name in enumerate(gallery.columns["source"]) if name == source.name]
    return {known["tracklet"]: known["frames"] for known in map(gallery.metadata, own)}


@command("what was added stays, and the same line goes on behind it")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 not done: the reason is on stderr)."""
    parser = argparse.ArgumentParser(prog="jaxreid embed", description="Fill a gallery with the features of tracklets.")
    add = parser.add_argument
    add("sources", metavar="SOURCE", nargs="+",
        help="a folder <camera>/<tracklet>/*.jpg, pictures, a video, a data set's NAME[/CONFIG] or a built one's "
        "directory")  # fmt: skip
    add("--checkpoint", type=expand, required=True, metavar="WORKDIR", help="of a trained run; its newest checkpoint")
    add("--gallery", type=expand, required=True, metavar="DIR", help="made where there is none, else added to")
    add("--split", default="", help="of a data set (gallery where not given), or of a folder's table (all)")
    add("--modality", default="rgb", choices=MODALITIES[:2], help="of videos (default %(default)s)")
    add("--sixteen_bit", choices=SIXTEEN_BIT, default=SCALE,
        help="16-bit pictures: to 8 bits by the range of their tracklet, or none (default %(default)s)")  # fmt: skip
    add("--data_dir", type=expand, help="where built data sets live")
    add(
        "--rescore",
        choices=[*RESCORE],
        default="auto",
        help="whether to keep what a score of pairs needs of each tracklet, too; auto: where the run's evaluation "
        "re-scores",
    )
    add("--batch", type=int, help="clips in a step; the run's own where not given")
    options = parser.parse_args(arguments)
    cache_compilations()
    embedder = jaxreid.load(options.checkpoint, options.data_dir, options.batch)
    how = SourceOptions(
        split=options.split,
        modality=options.modality,
        sixteen_bit=options.sixteen_bit,
        data_dir=options.data_dir,
        info=embedder.info,
        sidecars=embedder.sidecars,
    )
    for text in options.sources:
        source = open_source(text, options.gallery / CROPS, how)
        added, there = fill(options.gallery, source, embedder, pairs=RESCORE[options.rescore])
        print(f"{source.name}: {added} tracklets added" + (f", {there} were there already" if there else ""))
    print(f"{len(Gallery(options.gallery))} tracklets in {options.gallery}")
    return 0
