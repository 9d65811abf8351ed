"""The toy world of HiTPro's golden numbers: unit vectors in the plane, given by their angles in degrees.

The numbers were computed apart from the library, in float64, from the equations of docs/hitpro.md (3.3, 3.4, 4 and 6).
Cameras 0 and 1 are visible, 2 and 3 infrared; persons X (slots 0, 2, 4, 6) and Y (slots 1, 3, 5); slot 7 is padding.
"""

import jax.numpy as jnp
import numpy as np

from jaxreid.memory import prototypes

PART_ANGLES = [(-4, 0, 4), (56, 64), (6, 14), (66, 74), (18, 26), (80, 90), (24, 32)]
PROTOTYPE_ANGLES = [0, 60, 10, 70, 22, 85, 28]
SLOT_CAMERA = [0, 0, 1, 1, 2, 2, 3]
CAMERA_MODALITY = [0, 0, 1, 1]


def vectors(degrees):
    radians = np.deg2rad(np.asarray(degrees, np.float64))
    return jnp.asarray(np.stack([np.cos(radians), np.sin(radians)], axis=-1), jnp.float32)


def angles(rows):
    rows = np.asarray(rows, np.float64)
    return np.rad2deg(np.arctan2(rows[..., 1], rows[..., 0]))


def memory(capacity=8, **widths):
    empty = prototypes.empty_memory(SLOT_CAMERA, CAMERA_MODALITY, dim=2, capacity=capacity, **widths)
    slot = [k for k, parts in enumerate(PART_ANGLES) for _ in parts]
    parts = [angle for group in PART_ANGLES for angle in group]
    return prototypes.rebuild(empty, vectors(parts), jnp.asarray(slot), jnp.ones(len(slot), bool))
