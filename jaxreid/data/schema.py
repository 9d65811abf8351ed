"""The record that every data set is built into: one tracklet, the same features everywhere.

What a data set does not know is an empty sequence or a sentinel value, never a missing key, so that one reader
serves all of them. Frames stay the original JPEG or PNG bytes (but of 16-bit pictures: PNGs of 8 bits); only the frames
that are sampled are ever decoded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxreid.errors import UserError

MODALITIES = ("rgb", "ir", "fake_ir", "skeleton", "depth")
PLATFORMS = ("unknown", "ground", "cctv", "wearable", "uav")
ROLES = ("train", "train_aux", "val", "query", "gallery")
VISIBLE, INFRARED = MODALITIES.index("rgb"), MODALITIES.index("ir")
NUM_ATTRIBUTES = 24
LARGEST_NUMBER = 2**31 - 1  # that a record holds
ATTRIBUTE_NOT_PROVIDED, ATTRIBUTE_UNKNOWN = -2, -1

# Values of a feature that the data set knows nothing of; `frames`, `tracklet_id`, `pid` and `role` have none.
SENTINELS: dict[str, Any] = {
    "frame_names": [],
    "frame_index": [],
    "num_frames_source": -1,
    "label": -1,
    "camid": -1,
    "cam_name": "",
    "modality": "rgb",
    "pair_id": "",
    "recording": "",
    "clothes_id": -1,
    "outfit": "",
    "session": -1,
    "platform": "unknown",
    "altitude": float("nan"),
    "distance": float("nan"),
    "angle": float("nan"),
    "slant_range": float("nan"),
    "point_id": -1,
    "attributes": [ATTRIBUTE_NOT_PROVIDED] * NUM_ATTRIBUTES,
    "location": -1,
    "scale_class": -1,
    "is_junk": False,
    "is_distractor": False,
    "case_mask": 0,
    "joints3d": np.zeros((0, 0, 3), np.float32),
    "joints_valid": [],
    "source": "",
}
REQUIRED = ("frames", "tracklet_id", "pid", "role")
_NUMBERS = ("pid", *(name for name, value in SENTINELS.items() if type(value) is int))


def role_of(split: str) -> str:
    """The role of a split's tracklets: its name up to its case, "query" for "query_case1"."""
    return split.split("_case")[0]


def features() -> Any:
    """The TFDS `FeaturesDict` of one tracklet.

    `frames` holds encoded bytes: TFDS's own image features would decode every frame of a tracklet at each read.
    `recording` names the continuous recording that a tracklet was cut from ("" unknown); tracklets of one
    recording show one person, so only methods that say so may read it.
    """
    import tensorflow_datasets as tfds

    text, sequence = tfds.features.Text, tfds.features.Sequence
    return tfds.features.FeaturesDict(
        {
            "frames": sequence(text()),
            "frame_names": sequence(text()),
            "frame_index": sequence(np.int32),
            "num_frames_source": np.int32,
            "tracklet_id": text(),
            "pid": np.int32,
            "label": np.int32,
            "camid": np.int32,
            "cam_name": text(),
            "modality": tfds.features.ClassLabel(names=list(MODALITIES)),
            "pair_id": text(),
            "recording": text(),
            "clothes_id": np.int32,
            "outfit": text(),
            "session": np.int32,
            "platform": tfds.features.ClassLabel(names=list(PLATFORMS)),
            "altitude": np.float32,
            "distance": np.float32,
            "angle": np.float32,
            "slant_range": np.float32,
            "point_id": np.int32,
            "attributes": tfds.features.Tensor(shape=(NUM_ATTRIBUTES,), dtype=np.int32),
            "location": np.int32,
            "scale_class": np.int32,
            "role": tfds.features.ClassLabel(names=list(ROLES)),
            "is_junk": np.bool_,
            "is_distractor": np.bool_,
            "case_mask": np.int32,
            # Two unknown dimensions need an encoding.
            "joints3d": tfds.features.Tensor(shape=(None, None, 3), dtype=np.float32, encoding="zlib"),
            "joints_valid": sequence(np.bool_),
            "source": text(),
        }
    )


def record(**values: Any) -> dict[str, Any]:
    """One tracklet's record: the given features, sentinels for the rest.

    `frame_index` and `num_frames_source` default to a tracklet that was not thinned.

    Raises:
      UserError: a required feature is missing, a name is not of the schema, or a number does not fit 32 bits.
    """
    missing = [name for name in REQUIRED if name not in values]
    unknown = sorted(set(values) - set(SENTINELS) - set(REQUIRED))
    if missing or unknown:
        raise UserError(
            f"tracklet record {values.get('tracklet_id', '?')!r}: missing features {missing}, "
            f"unknown features {unknown}; the schema is jaxreid/data/schema.py"
        )
    complete = {**SENTINELS, **values}
    count = len(complete["frames"])
    if "frame_index" not in values:
        complete["frame_index"] = list(range(count))
    if "num_frames_source" not in values:
        complete["num_frames_source"] = count
    for name in _NUMBERS:
        if abs(complete[name]) > LARGEST_NUMBER:
            raise UserError(
                f"tracklet {complete['tracklet_id']}: {name} {complete[name]} is beyond {LARGEST_NUMBER}, the largest "
                "number that a record holds; number anew"
            )
    return complete
