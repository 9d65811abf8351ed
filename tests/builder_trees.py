"""What tests of builders share: tiny pictures, how a small tree is built and read back, and how it is spoilt."""

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxreid.data import schema
from jaxreid.data.build import build
from jaxreid.errors import DataSetError


def picture(seed, height=16, width=8, suffix=".jpg"):
    """An encoded picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return cv2.imencode(suffix, noise)[1].tobytes()


def write(root, files, **size):
    """Writes a picture per path; each is another one."""
    for seed, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(picture(seed, **size))


def prepare(name, root, tmp_path, config=None, **options):
    """Builds a set, unchecked where no configuration is named; its directory and its splits' records."""
    if config is None:
        options = {"strict_counts": False, **options}
    path = build(name, config, source=root, data_dir=tmp_path / "data", **options)
    builder = tfds.builder_from_directory(str(path))
    return path, {split: list(builder.as_data_source(split)) for split in builder.info.splits}


def leftovers(data_dir):
    """Files below a directory, but for locks and what TFDS notes of a default configuration."""
    files = [path for path in data_dir.rglob("*") if path.is_file()]
    return [path for path in files if not (path.name.endswith(".lock") or path.parent.name == ".config")]


def error(name, root, tmp_path, config=None, **options):
    """The message of a build that is refused."""
    with pytest.raises(DataSetError) as raised:
        prepare(name, root, tmp_path, config, **options)
    assert leftovers(tmp_path / "data") == [], "a refused set must leave nothing"
    return str(raised.value)


def edit(path, old, new):
    """Replaces the first occurrence of a text in a list."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def ids(records):
    return [record["tracklet_id"].decode() for record in records]


def frame_names(record):
    return [name.decode() for name in record["frame_names"]]


def ends(record):
    """First and last frame."""
    names = frame_names(record)
    return names[0], names[-1]


def check_fields(record, **expected):
    """Every field of a record: as expected, else what stands for unknown. Texts and class names as words."""
    classes = {"modality": schema.MODALITIES, "platform": schema.PLATFORMS, "role": schema.ROLES}
    assert set(record) == set(schema.SENTINELS) | set(schema.REQUIRED)
    for field, value in {**schema.SENTINELS, **expected}.items():
        found = record[field]
        if field in classes:
            found = classes[field][found]
        elif field == "frame_names":
            found = [name.decode() for name in found]
        elif isinstance(found, bytes):
            found = found.decode()
        if field == "frames":
            assert found == value
        else:
            np.testing.assert_array_equal(found, value, err_msg=field)  # unknown numbers are NaN, here equal
