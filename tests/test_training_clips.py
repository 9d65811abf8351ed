"""Frames that training draws: every frame a rule allows comes up, and no other."""

import numpy as np
import pytest
from messages import refuses

from jaxreid.data import clips


def drawn(rule, length, frames, stride=1, times=400):
    """All clips of a tracklet that a rule gave in so many draws, [times, T]."""
    zeros = np.zeros(times, int)
    rng = np.random.default_rng(0)
    plan = clips.plan_parts(
        np.array([length]), zeros, zeros, parts=1, seq_len=frames, rng=rng, clip_sampling=rule, stride=stride
    )
    assert plan.mask.all()
    return plan.frames


def choices(found):
    return [sorted(set(column.tolist())) for column in found.T]


def test_chunks_are_padded_at_their_end():
    assert choices(drawn("chunk", 10, 4)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert choices(drawn("chunk", 3, 4)) == [[0], [1], [2], [2]]


def test_the_last_block_takes_the_tail():
    assert choices(drawn("floor", 11, 4)) == [[0, 1], [2, 3], [4, 5], [6, 7, 8, 9, 10]]
    assert choices(drawn("floor", 3, 4)) == [[0], [1], [2], [2]]
    # 50 frames in 16 blocks of three: the last one begins at 45.
    found = drawn("floor", 50, 16, times=2000)
    assert choices(found)[0] == [0, 1, 2] and choices(found)[15] == [45, 46, 47, 48, 49]


def test_segments_cover_the_tracklet():
    assert choices(drawn("segments", 10, 4)) == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
    found = drawn("segments", 3, 5)
    assert (np.diff(found, axis=1) >= 0).all() and set(found.ravel().tolist()) == {0, 1, 2}


def test_random_frames_are_different_while_there_are_enough():
    found = drawn("random", 7, 6)
    assert (np.diff(found, axis=1) > 0).all() and set(found.ravel().tolist()) == set(range(7))
    found = drawn("random", 3, 6)
    assert (np.diff(found, axis=1) >= 0).all() and set(found.ravel().tolist()) == {0, 1, 2}


def test_consecutive_frames_from_any_start():
    assert sorted(set(map(tuple, drawn("consecutive", 6, 4).tolist()))) == [(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5)]
    assert set(map(tuple, drawn("consecutive", 3, 7).tolist())) == {(0, 1, 2, 0, 1, 2, 0)}
    assert choices(drawn("consecutive", 3, 1)) == [[0, 1, 2]]


def test_strides_shrink_with_the_tracklet():
    assert sorted(set(map(tuple, drawn("strided", 8, 3, 3).tolist()))) == [(0, 3, 6), (1, 4, 7)]
    assert set(map(tuple, drawn("strided", 6, 3, 3).tolist())) == {(0, 2, 4), (1, 3, 5)}
    assert set(map(tuple, drawn("strided", 3, 3, 3).tolist())) == {(0, 1, 2)}
    assert set(map(tuple, drawn("strided", 2, 3, 3).tolist())) == {(0, 1, 0)}


@pytest.mark.parametrize("rule", clips.TRAINING_CLIPS)
def test_clips_stay_in_their_part_and_depend_on_the_generator_only(rule):
    length, tracklet, part = np.array([13, 2, 40]), np.repeat([0, 1, 2], 30), np.tile([0, 1, 2], 30)

    def plan(seed):
        rng = np.random.default_rng(seed)
        return clips.plan_parts(
            length, tracklet, part, parts=3, seq_len=4, rng=rng, clip_sampling=rule, stride=2
        ).frames

    assert np.array_equal(plan((3, 1)), plan((3, 1))) and not np.array_equal(plan((3, 1)), plan((3, 2)))
    first, count = clips.part_bounds(length[tracklet], part, 3)
    assert (plan(0) >= first[:, None]).all() and (plan(0) < (first + count)[:, None]).all()


def test_unknown_rule_is_named():
    with refuses(ValueError, "'linspace'", "chunk", "floor"):
        drawn("linspace", 4, 2)
