"""Long tracklets as several training items: which frames a piece holds, and what a sampler makes of pieces."""

import dataclasses

import numpy as np
import pytest
from family import make_method, small_towers
from messages import refuses
from test_samplers import columns

from jaxreid.data.clips import plan_parts
from jaxreid.data.pieces import cut, plan_epoch
from jaxreid.data.samplers import IdentitySampler, PairSampler, PassSampler, ShuffleSampler
from jaxreid.data.schema import INFRARED, VISIBLE


def test_the_last_piece_takes_the_remainder_and_short_tracklets_stay():
    pieces = cut(np.array([100, 47, 48, 144, 1]), 48)
    assert pieces.tracklet.tolist() == [0, 0, 1, 2, 3, 3, 3, 4]
    assert pieces.number.tolist() == [0, 1, 0, 0, 0, 1, 2, 0]
    assert pieces.start.tolist() == [0, 48, 0, 0, 0, 48, 96, 0]
    assert pieces.length.tolist() == [48, 52, 47, 48, 48, 48, 48, 1]


def test_nothing_is_cut_by_default():
    pieces = cut(np.array([100, 3]), 0)
    assert [column.tolist() for column in pieces] == [[0, 1], [0, 0], [0, 0], [100, 3]]
    labels, length, table = np.arange(8) // 2, np.arange(8) * 7 + 3, columns(8)
    plan = plan_epoch(IdentitySampler(2, 2, parts=3), labels, table, length, np.random.default_rng(5), seq_len=2)
    rng = np.random.default_rng(5)
    tracklet, part = IdentitySampler(2, 2, parts=3).draw(labels, table, rng)
    other = plan_parts(length, tracklet.ravel(), part.ravel(), parts=3, seq_len=2, rng=rng)
    for one, two in zip(vars(plan).values(), vars(other).values(), strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.dtype == two.dtype


def test_every_piece_is_drawn_once_and_stays_within_its_frames():
    length = np.array([10, 3, 8, 5])  # pieces of 4: 4 + 6, 3, 4 + 4, 5
    labels = np.array([0, 0, 1, -1])  # the last is not to be drawn
    seen = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        plan = plan_epoch(
            ShuffleSampler(5), labels, columns(4), length, rng, seq_len=2, piece_len=4, clip_sampling="consecutive"
        )
        assert sorted(plan.tracklet.tolist()) == [0, 0, 1, 2, 2] and plan.mask.all()
        seen |= set(zip(plan.tracklet.tolist(), map(tuple, plan.frames.tolist()), strict=True))
    first = [(0, (i, i + 1)) for i in (0, 1, 2, 4, 5, 6, 7, 8)]  # never 3 and 4, which are of two pieces
    assert seen == {*first, *((1, (i, i + 1)) for i in (0, 1)), *((2, (i, i + 1)) for i in (0, 1, 2, 4, 5, 6))}


def test_pieces_of_one_tracklet_fill_an_identity():
    """Two people with one long tracklet each: without pieces their clips would repeat."""
    length, labels = np.array([8, 8, 2]), np.array([0, 1, -1])
    plan = plan_epoch(
        IdentitySampler(2, 4),
        labels,
        columns(3),
        length,
        np.random.default_rng(0),
        seq_len=2,
        piece_len=2,
        clip_sampling="consecutive",
    )
    clips = sorted(zip(plan.tracklet.tolist(), plan.frames[:, 0].tolist(), strict=True))
    assert clips == [(0, 0), (0, 2), (0, 4), (0, 6), (1, 0), (1, 2), (1, 4), (1, 6)]


def test_pieces_of_a_pair_show_the_same_moment():
    modality = np.array([VISIBLE, INFRARED] * 2, np.int32)
    table = columns(4, modality=modality, pair=[7, 7, 0, 0])
    labels, length = np.array([0, 0, 1, 1]), np.array([9, 9, 6, 6])
    sampler = PairSampler(num_identities=2, num_pairs=3, steps=2, aligned=True)
    plan = plan_epoch(
        sampler, labels, table, length, np.random.default_rng(0), seq_len=3, piece_len=3, clip_sampling="consecutive"
    )
    assert (plan.tracklet[0::2] + 1 == plan.tracklet[1::2]).all()
    np.testing.assert_array_equal(plan.frames[0::2], plan.frames[1::2])
    assert set(plan.frames[plan.tracklet == 0, 0].tolist()) == {0, 3, 6}


def test_rows_that_only_fill_a_batch_stay_so():
    labels, length = np.array([0, 1]), np.array([5, 2])
    plan = plan_epoch(PassSampler(4, 1), labels, columns(2), length, np.random.default_rng(0), seq_len=0, piece_len=2)
    assert sorted(plan.tracklet.tolist()) == [-1, 0, 0, 1] and plan.frames.shape == (4, 0)


@pytest.mark.parametrize("name", ["baseline", "clip_reid"])
def test_a_config_value_cuts_the_tracklets_of_training(name, monkeypatch):
    small_towers(monkeypatch)
    labels, length, rng = np.zeros(1, int), np.array([9]), np.random.default_rng(0)
    for value, number in ((0, 1), (3, 3)):
        stage = make_method(name, **{"batch.piece_len": value}).stages()[-1]
        stage = dataclasses.replace(stage, sampler=ShuffleSampler(1))
        assert len(stage.plan(labels, columns(1), length, rng)) == number


def test_pieces_have_no_parts():
    with refuses(ValueError, 4, 2):
        plan_epoch(
            ShuffleSampler(1, 2),
            np.zeros(1, int),
            columns(1),
            np.array([9]),
            np.random.default_rng(),
            seq_len=1,
            piece_len=4,
        )
