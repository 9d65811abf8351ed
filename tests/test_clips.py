"""Frame sampling against tables computed apart from it; HiTPro's parts as in docs/hitpro.md, section 2."""

import numpy as np
import pytest

from jaxreid.data import clips


def rule(name, length, frames, stride=1):
    plan = clips.plan_tracklets(np.array([length]), clip_sampling=name, seq_len=frames, stride=stride)
    return [row[mask].tolist() for row, mask in zip(plan.frames, plan.mask, strict=True)]


@pytest.mark.parametrize(
    ("length", "frames", "chunk_first", "floor_first", "linspace"),
    [
        (10, 4, [0, 3, 6, 9], [0, 2, 4, 6], [0, 2, 5, 7]),
        (3, 4, [0, 1, 2, 2], [0, 1, 2, 2], [0, 0, 1, 2]),
        (9, 8, [0, 2, 4, 6, 8, 8, 8, 8], [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]),
        (24, 6, [0, 4, 8, 12, 16, 20], [0, 4, 8, 12, 16, 20], [0, 4, 8, 12, 16, 20]),
    ],
)
def test_one_clip_rules(length, frames, chunk_first, floor_first, linspace):
    assert rule("chunk_first", length, frames) == [chunk_first]
    assert rule("floor_first", length, frames) == [floor_first]
    assert rule("linspace", length, frames) == [linspace]


def test_dense_fills_the_last_clip_by_repeating():
    assert rule("dense", 9, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 8, 8, 8]]
    assert rule("dense", 3, 4) == [[0, 1, 2, 0]]


def test_recombine_interleaves_clips():
    assert rule("recombine", 9, 4, 2) == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 8, 8, 8]]
    assert rule("recombine", 11, 2, 2) == [[0, 2], [1, 3], [4, 6], [5, 7], [8, 9], [10, 10]]
    assert rule("recombine", 7, 4, 2) == [[0, 1, 2, 3], [4, 5, 6, 4]]


def test_recombine_shows_every_frame_in_as_few_clips_as_hold_them():
    """As CCVID is tested: ⌈n/16⌉ clips of 16 frames at stride 4."""
    lengths = np.arange(1, 200)
    plan = clips.plan_tracklets(lengths, clip_sampling="recombine", seq_len=16, stride=4)
    np.testing.assert_array_equal(np.bincount(plan.tracklet), -(-lengths // 16))
    for tracklet, length in enumerate(lengths):
        own = plan.frames[plan.tracklet == tracklet].ravel()
        assert set(own.tolist()) == set(range(length))
        whole = length // 16 * 16
        assert len(set(own[:whole].tolist())) == whole  # no frame twice before the last clip


def test_packed_shows_every_frame_once():
    lengths = np.array([1, 4, 9, 13])
    plan = clips.plan_tracklets(lengths, clip_sampling="packed", seq_len=4)
    for tracklet, length in enumerate(lengths):
        rows = plan.tracklet == tracklet
        assert plan.frames[rows][plan.mask[rows]].tolist() == list(range(length))
    assert (plan.mask.sum(1) > 0).all()


def test_parts_of_a_tracklet():
    plan = clips.plan_all_parts(np.array([24, 13]), parts=2, seq_len=6)
    assert plan.frames.tolist() == [
        [0, 2, 4, 6, 8, 10],
        [12, 14, 16, 18, 20, 22],
        [0, 1, 2, 3, 4, 5],
        [6, 8, 10, 12, 12, 12],
    ]
    assert plan.tracklet.tolist() == [0, 0, 1, 1] and plan.part.tolist() == [0, 1, 0, 1]


def test_a_tracklet_shorter_than_its_parts_has_a_frame_in_each():
    plan = clips.plan_all_parts(np.array([1, 2]), parts=3, seq_len=2)
    assert (plan.frames[:3] == 0).all()
    assert (plan.frames[3:] < 2).all() and (plan.frames >= 0).all()


def test_random_frames_stay_in_their_chunk():
    count = np.array([24, 13, 3])
    rng = np.random.default_rng(0)
    drawn = np.stack([clips.chunk(count, 6, rng) for _ in range(200)])
    for row, n in enumerate(count):
        size = -(-n // 6)
        for chunk in range(6):
            wanted = {min(chunk * size + offset, n - 1) for offset in range(size)}
            assert set(drawn[:, row, chunk].tolist()) == wanted


def test_padding_is_not_a_tracklet():
    plan = clips.plan_all_parts(np.array([4]), parts=2, seq_len=2).padded(8)
    assert len(plan) == 8 and (plan.tracklet[2:] == -1).all() and not plan.mask[2:].any()


def test_unknown_rule_is_named():
    with pytest.raises(ValueError, match="first_come"):
        rule("first_come", 4, 2)
