"""The part that TFDS builders of listed data sets have in common: frames are read once, checked and written in order.

A builder of such a set says what its lists say (`_list`); see `data_builders/hitsz_vcm` for one.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, cast

import tensorflow_datasets as tfds

from jaxreid.data import schema
from jaxreid.data.building import listed
from jaxreid.data.building.images import read_image
from jaxreid.data.building.listed import DEFAULT_MAX_EXCLUDED, ExcludedFrames, Listing
from jaxreid.data.building.progress import progress
from jaxreid.data.building.recorder import ReadFrame, Recorder, SeeFrames, shards_of
from jaxreid.data.building.sixteen_bit import SixteenBit
from jaxreid.data.prepared import SCALE
from jaxreid.errors import DataSetError

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class ListedConfig(tfds.core.BuilderConfig):
    """Where the raw data are, and what is accepted of them."""

    source: Path | None = dataclasses.field(default=None, repr=False)
    strict_counts: bool = True
    max_excluded: float = DEFAULT_MAX_EXCLUDED
    max_frames: int = 0  # longer tracklets are thinned evenly to so many frames; 0 = never


class ListedBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes the tracklets of a `Listing`, split by split, in the order of the lists.

    Shard by shard, because `GeneratorBasedBuilder` would sort a whole split in memory (with shuffling off, all of
    its temporary records lie in one file).
    """

    PROTOCOLS: ClassVar[tuple[str, ...]]  # keys of jaxreid.retrieval.PROTOCOLS; the first is the data set's own
    LICENCE: ClassVar[str]
    EXPECTED: ClassVar[str]  # the tree of the raw data, for messages
    CLOSED_SET: ClassVar[bool] = False  # people of the test are people of the training
    READ_FRAME: ClassVar[ReadFrame] = staticmethod(read_image)
    SEE_FRAMES: ClassVar[SeeFrames | None] = None
    CONFIG: ClassVar[type[ListedConfig]] = ListedConfig
    lists_tracklets: ClassVar[bool] = True  # so that Apache Beam can build it (beam_build.py)
    sixteen_bit: str = SCALE  # what is done with 16-bit pictures; `jaxreid.data.build.build` sets it
    SETTINGS: ClassVar[Callable[..., dict[str, Any]]]  # the builder folder's: fields of a CONFIG by name and options

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "SETTINGS"):
            cls.BUILDER_CONFIGS = [cls.CONFIG(**cls.SETTINGS(None))]  # what `tfds build` builds if not told otherwise

    @classmethod
    def make_config(
        cls, config: str | None, source: Path | None, max_excluded: float = DEFAULT_MAX_EXCLUDED, **options: Any
    ) -> ListedConfig:
        """The configuration of a name or of options; see `settings` of the builder's folder.

        Raises:
          DataSetError: there is none, or no raw data to build it from.
        """
        chosen = cls.SETTINGS(config, **options)
        cls.check_source(source, max_excluded)
        return cls.CONFIG(**chosen, source=source, max_excluded=max_excluded)

    def _create_builder_config(self, builder_config: Any, version: Any) -> ListedConfig:
        """TFDS would know no names but those of BUILDER_CONFIGS, and refuse one of them with a source."""
        if isinstance(builder_config, ListedConfig):
            return builder_config
        return self.CONFIG(**self.SETTINGS(builder_config))

    @abc.abstractmethod
    def _list(self, source: Path, config: Any) -> Listing:
        """What the lists below `source` say under a configuration.

        Raises:
          DataSetError: a list is missing, or contradicts itself or another.
        """

    @classmethod
    def check_source(cls, source: Path | None, max_excluded: Any) -> None:
        """Refuses to begin without raw data, or with a share that is none.

        Raises:
          DataSetError: so it is; says where the raw data come from.
        """
        if source is None:
            raise DataSetError(
                f"{cls.name}: is not prepared yet, and there is no source\n{cls.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        if not source.is_dir():
            raise DataSetError(
                f"{cls.name}: is not prepared yet, and {source} is not a directory\n{cls.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        if isinstance(max_excluded, bool) or not isinstance(max_excluded, int | float) or not 0 <= max_excluded <= 1:
            raise DataSetError(f"{cls.name}: max_excluded must be a share between 0 and 1, got {max_excluded!r}")

    @property
    def _config(self) -> ListedConfig:
        return cast(ListedConfig, self.builder_config)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(type(self).__doc__ or "").splitlines()[0],
            features=schema.features(),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        # Until this returns the directory has another name and is removed with what is in it if an error comes.
        config = self._config
        source = config.source or Path(dl_manager.manual_dir)
        listing = self._list(source, config)
        self._refuse_differences(source, listing)
        if config.max_frames:
            thinned = {
                split: [tracklet.thinned(config.max_frames) for tracklet in members]
                for split, members in listing.splits.items()
            }
            listing = dataclasses.replace(listing, splits=thinned)
        tracklets = [tracklet for members in listing.splits.values() for tracklet in members]
        total = sum(len(tracklet.frames) for tracklet in tracklets)
        excluded = ExcludedFrames(self.name, source, total, config.max_excluded)
        unusable = [*listing.faults, *listed.missing_frames(source, tracklets, len(tracklets))]
        excluded.add(unusable, hint=self.EXPECTED)
        remarks = [*listing.warnings, *listed.identity_remarks(listing.splits, self.CLOSED_SET)]
        _warn(remarks)
        recorder = Recorder(
            name=self.name,
            source=source,
            labels={pid: label for label, pid in enumerate(_train_pids(listing))},
            description=self._describe_source(listing),
            strict=config.strict_counts,
            read_frame=type(self).READ_FRAME,
            see_frames=type(self).SEE_FRAMES,
            sixteen_bit=self.sixteen_bit,
        )
        deep = SixteenBit()
        if download_config is not None and download_config.beam_options is not None:
            from jaxreid.data.building import beam_build

            beam_build.write(self, recorder, listing, excluded, deep, download_config.beam_options)
        else:
            self._work = recorder, listing, excluded, deep
            super()._download_and_prepare(dl_manager, download_config)
            del self._work  # builders are pickled
        excluded.warn()
        _warn(deep.remarks())
        counts = {split: listed.counts(members, excluded) for split, members in listing.splits.items()}
        lost = [split for split, numbers in counts.items() if not numbers["tracklets"]]
        if lost:
            raise DataSetError(f"{self.name}: no frame of {', '.join(lost)} can be used:\n{excluded.named()}")
        cast(dict, self.info.metadata).update(
            protocols=list(self.PROTOCOLS),
            cameras=listed.camera_table(tracklets),
            train_pids=_train_pids(listing),
            counts=counts,
            differences=listing.differences,
            excluded_frames=excluded.metadata(),
            warnings=[*remarks, *deep.remarks()],
            licence=self.LICENCE,
            source=str(source),
            lists=listing.digest,
            **deep.metadata(),
            **listing.facts,
        )

    def _refuse_differences(self, source: Path, listing: Listing) -> None:
        """Refuses a set that is not the published one, or warns of it, as the configuration says."""
        if listing.differences and self._config.strict_counts:
            raise DataSetError(
                f"{self.name}: the lists in {source} are not those of the published data set:\n"
                f"{listed.shorten(listing.differences, len(listing.differences))}\n"
                "Complete them, or build what is there with --option strict_counts=False: it gets a name of its own, "
                "since its scores compare with none that are published"
            )
        if listing.differences:
            lines = listed.shorten(listing.differences)
            _LOG.warning("this is not the published data set, its scores do not compare:\n%s", lines)
        empty = [split for split, members in listing.splits.items() if not members]
        if empty:
            raise DataSetError(f"{self.name}: the lists in {source} leave no tracklet in {', '.join(empty)}")

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[Any]]:
        recorder, listing, excluded, deep = self._work
        shards = {}
        for split, members in listing.splits.items():
            present = [tracklet for tracklet in members if recorder.keeps_frames(tracklet, excluded)]
            sizes = [len(shard) for shard in shards_of(present)]
            records = recorder.records(split, progress(present, split), excluded, deep)
            # The last shard takes what is left, so that the generator ends and its progress bar with it.
            shards[split] = [functools.partial(itertools.islice, records, size) for size in [*sizes[:-1], None]]
        return shards

    def _describe_source(self, listing: Listing) -> str:
        limit = self._config.max_frames
        thinned = f", tracklets thinned to {limit} frames" if limit else ""
        return f"{self.name}/{self._config.name} {self.VERSION} lists {listing.digest}{thinned}"


def _warn(remarks: Iterable[str]) -> None:
    for remark in remarks:
        _LOG.warning("%s", remark)


def _train_pids(listing: Listing) -> list[int]:
    return sorted({tracklet.pid for tracklet in listing.splits["train"]})
