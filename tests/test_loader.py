"""Batches hold what the plan says, in its order, however they are read."""

import cv2
import numpy as np
import pytest
from messages import refuses

from jaxreid.data.clips import plan_all_parts, plan_tracklets
from jaxreid.data.loader import LoaderOptions, batches
from jaxreid.data.split import open_split


@pytest.fixture(scope="module")
def split(tiny):
    return open_split(tiny, "train")


def read(split, plan, batch_size, processes=1, **options):
    """Arrays over all batches, with the shares of the processes put together."""
    options = LoaderOptions(64, 32, **options)
    shares = [
        list(batches(split, plan, batch_size, options, uses_identity=False, process_index=i, process_count=processes))
        for i in range(processes)
    ]
    rows = [batch for step in zip(*shares, strict=True) for batch in step]
    return {name: np.concatenate([getattr(batch, name) for batch in rows]) for name in ("frames", "tracklet", "valid")}


@pytest.mark.parametrize(
    ("batch_size", "options"),
    [
        *((size, {"threads": 2}) for size in (1, 6, 7, 16)),  # 1, 2, 1 and 8 elements a batch
        (16, {"threads": 0}),
        (6, {"workers": 1}),
    ],
)
def test_every_planned_frame_is_there_in_order(split, batch_size, options):
    plan = plan_all_parts(split.table.length, parts=2, seq_len=2)
    found, reader = read(split, plan, batch_size, **options), split.reader(cache=True)
    count, filled = len(plan), -(-len(plan) // batch_size) * batch_size
    assert len(found["frames"]) == filled
    np.testing.assert_array_equal(found["tracklet"][:count], plan.tracklet)
    np.testing.assert_array_equal(found["valid"], np.arange(filled) < count)
    assert not found["frames"][count:].any()
    for row in range(count):
        expected = [reader.decode(int(plan.tracklet[row]), int(frame)) for frame in plan.frames[row]]
        np.testing.assert_array_equal(found["frames"][row], expected)


def test_processes_share_a_batch(split):
    plan = plan_all_parts(split.table.length, parts=1, seq_len=2)
    whole, shared = read(split, plan, 6), read(split, plan, 6, processes=2)
    for name in whole:
        np.testing.assert_array_equal(whole[name], shared[name])
    with refuses(ValueError, 4, "processes"):
        read(split, plan, 6, processes=4)


@pytest.mark.parametrize("cache", [False, True])
def test_only_planned_frames_are_decoded_and_a_record_read_once_a_clip(split, monkeypatch, cache):
    plan = plan_tracklets(split.table.length, clip_sampling="packed", seq_len=3)
    reader, decoded, fetched = split.reader(cache=cache), [], []
    decode, fetch = cv2.imdecode, reader.encoded
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: decoded.append(1) or decode(*arguments))
    monkeypatch.setattr(reader, "encoded", lambda row: fetched.append(row) or fetch(row))
    options = LoaderOptions(64, 32, threads=0)
    for _ in batches(split, plan, 4, options, uses_identity=False, reader=reader):
        pass
    assert len(decoded) == plan.mask.sum() == split.table.length.sum()
    assert sorted(fetched) == sorted(plan.tracklet.tolist())
