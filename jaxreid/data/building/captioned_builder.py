"""The part that TFDS builders of captioned tracklet folders have in common."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxreid.data.building import captioned_folders
from jaxreid.data.building.captioned_folders import CAPTIONS
from jaxreid.data.building.listed import Listing
from jaxreid.data.building.listed_builder import ListedBuilder, ListedConfig
from jaxreid.data.sidecar_files import Captions, read_captions
from jaxreid.data.sidecars import write_sidecar


class CaptionedBuilder(ListedBuilder, skip_registration=True):
    """Writes tracklet folders; captions that lie beside them become a sidecar."""

    PROTOCOLS = ("market",)
    LICENCE = "that of the footage"
    EXPECTED = captioned_folders.EXPECTED

    def _list(self, source: Path, config: ListedConfig) -> Listing:
        listing = captioned_folders.list_folders(self.name, source)
        self._captions: Captions | None = None
        if (source / CAPTIONS).is_file():
            tracklets = [
                (tracklet.tracklet_id, tracklet.pid) for split in listing.splits.values() for tracklet in split
            ]
            self._captions = read_captions(source / CAPTIONS, self.name, tracklets)
            listing.warnings.extend(self._captions.remarks)
            trained = {tracklet.tracklet_id for tracklet in listing.splits["train"]}
            without = [tracklet for tracklet in self._captions.missing if tracklet in trained]
            if without:
                listing.warnings.append(f"{len(without)} training tracklets have no caption, e.g. {without[0]}")
        return dataclasses.replace(listing, facts={**listing.facts, "captions": self._captions is not None})

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        captions = self._captions
        del self._captions  # builders are pickled
        if captions:  # the directory still has its unfinished name, so sidecar and records appear together
            command = f"jaxreid build {self.name} --source DIR, with a complete {CAPTIONS}"
            write_sidecar(self.data_path, "captions", captions.texts.items(), {**captions.meta, "command": command})
