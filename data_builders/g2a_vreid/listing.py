"""What G2A-VReID's tables say; no frame is looked at."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxreid.data.building import listed, mars_layout
from jaxreid.data.building.listed import Listing, Tracklet

from . import RELEASES

EXPECTED = mars_layout.EXPECTED
# Both splits together, one tracklet per person and platform; of v2's 2.54 million frames the exact number is not
# published.
COUNTS: dict[str, dict[str, Any]] = {
    "v1": {"tracklets": 5576, "frames": 185907, "identities": 2788, "cameras": 2},
    "v2": {"tracklets": 11282, "identities": 5605, "cameras": 2},
}


def list_dataset(source: Path, release: str = RELEASES[0]) -> Listing:
    """The tracklets of the tables, in their order; the queries' camera is the one on the ground.

    Raises:
      DataSetError: see `mars_layout.list_rows`.
    """
    rows = mars_layout.list_rows("g2a_vreid", source, EXPECTED)
    ground = {tracklet.camera for tracklet in rows.query}
    warnings = []
    if len(ground) != 1:
        warnings.append(f"queries are of cameras {sorted(ground)}, not of one: which of them are aerial is unknown")

    def placed(tracklets: list[Tracklet]) -> list[Tracklet]:
        return [dataclasses.replace(tracklet, features={"platform": platform(tracklet)}) for tracklet in tracklets]

    def platform(tracklet: Tracklet) -> str:
        if len(ground) != 1:
            return "unknown"
        return "ground" if tracklet.camera in ground else "uav"

    return Listing(
        splits={"train": placed(rows.train), "query": placed(rows.query), "gallery": placed(rows.others)},
        digest=rows.digest,
        differences=[
            *rows.differences,
            *listed.differences({"train and test": COUNTS[release]}, {"train and test": [*rows.train, *rows.test]}),
        ],
        warnings=warnings,
    )
