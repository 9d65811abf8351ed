"""16-bit pictures of a data set: records hold pictures of 8 bits, scaled by the range of their tracklet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import cv2

from jaxreid.data import pictures

Span = tuple[int, int]


@dataclasses.dataclass
class SixteenBit:
    """What was found of them. `remark` tells of the first tracklet; `low` and `high` are the extremes over all."""

    tracklets: int = 0
    frames: int = 0
    low: int = 2**16 - 1
    high: int = 0
    remark: str = ""

    def add(self, other: SixteenBit) -> None:
        """Takes account of what was found elsewhere."""
        self.tracklets, self.frames = self.tracklets + other.tracklets, self.frames + other.frames
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.remark = self.remark or other.remark

    def measure(self, frames: Mapping[str, bytes], policy: str) -> Span | None:
        """The range of a tracklet's 16-bit frames, None where it has none.

        Args:
          frames: whole pictures, by what messages call them.
          policy: one of `jaxreid.data.prepared.SIXTEEN_BIT`.

        Raises:
          UserError: it has some, and the policy is to refuse them.
        """
        found = {name: data for name, data in frames.items() if pictures.is_sixteen_bit(data)}
        if not found:
            return None
        span = pictures.value_range(pictures.load(data) for data in found.values())
        remark = pictures.sixteen_bit_remark(next(iter(found)), span, policy)
        self.add(SixteenBit(1, len(found), *span, remark))
        return span

    def remarks(self) -> list[str]:
        """For the builder's warnings: one line, or none."""
        if not self.tracklets:
            return []
        return [
            f"{self.frames} frames of {self.tracklets} tracklets, values {self.low} to {self.high}, are stored with 8 "
            f"bits, each tracklet by its own range: {self.remark}"
        ]

    def metadata(self) -> dict[str, Any]:
        """For the metadata of the set; nothing where there are none."""
        return {"sixteen_bit": dataclasses.asdict(self)} if self.tracklets else {}


def eight_bits(frames: Sequence[bytes], span: Span | None) -> list[bytes]:
    """Encoded frames as they are, but PNGs of 8 bits in place of those of 16.

    Args:
      frames: of one tracklet.
      span: what `SixteenBit.measure` found of it.
    """
    return [_converted(data, span) if span and pictures.is_sixteen_bit(data) else data for data in frames]


def _converted(data: bytes, span: Span) -> bytes:
    return cv2.imencode(".png", pictures.to_rgb(pictures.load(data), span)[..., ::-1])[1].tobytes()
