"""`Batch`: what a training step or an extraction pass receives."""

from __future__ import annotations

import dataclasses
from typing import Any

Array = Any  # a NumPy array in the loader, a jax array inside a step


@dataclasses.dataclass(frozen=True)
class Batch:
    """A fixed-shape group of B clips of T frames; what varies is masked, what is unknown is −1 (NaN in geometry).

    The loader delivers frames as uint8; steps receive them augmented and normalized. `identity`, `pair` and
    `clothes` are filled only for methods that declare that they use identity labels.
    """

    frames: Array  # u8[B, T, H, W, 3]
    frame_mask: Array  # bool[B, T]
    tracklet: Array  # i32[B], row in the split
    part: Array  # i32[B], which temporal part of the tracklet the clip was drawn from
    camera: Array  # i32[B], the data set's own number
    camera_index: Array  # i32[B], row in the training camera table
    modality: Array  # i32[B], jaxreid.data.schema.MODALITIES
    platform: Array  # i32[B], jaxreid.data.schema.PLATFORMS
    session: Array  # i32[B]
    geometry: Array  # f32[B, 3]: altitude (m), distance (m), angle (degrees)
    valid: Array  # bool[B], false on rows that only fill the batch
    identity: Array  # i32[B], label 0…C−1
    pair: Array  # i32[B], which visible and infrared rows show the same moment
    clothes: Array  # i32[B]
    extras: dict[str, Array] = dataclasses.field(default_factory=dict)

    @property
    def seen(self) -> Array:
        """bool[B, T], the frames that count: those that are there, in rows that do more than fill the batch."""
        return self.frame_mask & self.valid[:, None]

    def replace(self, **changes: Any) -> Batch:
        return dataclasses.replace(self, **changes)

    def without_identity(self) -> Batch:
        """The batch as a method that uses no labels may see it."""
        unknown = self.identity * 0 - 1
        return self.replace(identity=unknown, pair=unknown, clothes=unknown)
