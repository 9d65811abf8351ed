"""Samplers: what a batch must hold, whatever the order."""

import numpy as np
import pytest

from jaxreid.data.samplers import GroupSampler, IdentitySampler, PairSampler, PassSampler, SlotSampler


def test_slots_are_balanced_over_modalities_and_all_seen():
    modality = np.array([0] * 10 + [1] * 4)
    labels = np.arange(14, dtype=np.int32)
    sampler = SlotSampler(slots=3, clips=2, parts=2)
    tracklet, part = sampler.draw(labels, modality, np.random.default_rng(0))
    assert tracklet.shape == part.shape == (4, sampler.batch_size(modality)) == (4, 12)
    for row, parts in zip(tracklet, part, strict=True):
        assert (modality[row] == 0).sum() == 6
        # The two clips of a drawn slot stand side by side and come from its different parts.
        assert (row[::2] == row[1::2]).all() and (parts[::2] != parts[1::2]).all()
    assert set(tracklet[modality[tracklet] == 0].tolist()) == set(range(10))
    assert set(tracklet[modality[tracklet] == 1].tolist()) == set(range(10, 14))


def test_clips_of_a_slot_come_from_its_tracklets():
    labels = np.array([0, 0, 1, 1, -1], np.int32)
    tracklet, _ = SlotSampler(slots=2, clips=2, parts=1).draw(labels, np.zeros(5, int), np.random.default_rng(0))
    assert tracklet.shape == (1, 4)
    assert sorted(tracklet[0].tolist()) == [0, 1, 2, 3]


def test_order_depends_on_the_generator_only():
    labels, modality = np.arange(20, dtype=np.int32), np.arange(20) % 2
    sampler = SlotSampler(slots=4, clips=2, parts=3)
    one, two, other = (sampler.draw(labels, modality, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_identities_by_clips_over_both_modalities():
    labels = np.repeat(np.arange(7, dtype=np.int32), 6)
    modality = np.tile([0, 0, 0, 1, 1, 1], 7)
    tracklet, _ = IdentitySampler(identities=3, clips=4).draw(labels, modality, np.random.default_rng(0))
    assert tracklet.shape == (4, 12)  # 42 tracklets / 12 a batch, rounded
    for row in tracklet:
        values, counts = np.unique(labels[row], return_counts=True)
        assert len(values) == 3 and (counts == 4).all()
        for value in values:
            own = row[labels[row] == value]
            assert (modality[own] == 0).sum() == 2 and len(set(own.tolist())) == 4


def test_too_few_identities_are_named():
    with pytest.raises(ValueError, match="2 identities, a batch needs 3"):
        IdentitySampler(3, 2).draw(np.array([0, 0, 1]), np.zeros(3, int), np.random.default_rng(0))


def test_groups_of_identities_without_repeats():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(6, dtype=np.int32), [9, 8, 5, 4, 2, 11]))
    sampler = GroupSampler(identities=3, clips=4)
    tracklet, part = sampler.draw(labels, np.zeros(len(labels), int), np.random.default_rng(1))
    assert tracklet.shape == part.shape == (len(tracklet), sampler.batch_size(labels)) and len(tracklet) >= 2
    for row in tracklet:
        people, counts = np.unique(labels[row], return_counts=True)
        assert len(people) == 3 and (counts == 4).all()
    shown, counts = np.unique(tracklet, return_counts=True)
    assert set(labels[shown[counts > 1]].tolist()) <= {4}  # the one with fewer than K
    with pytest.raises(ValueError, match="has 6 identities, a batch needs 7"):
        GroupSampler(7, 4).draw(labels, labels, rng)


def test_pairs_show_one_person_in_both_modalities():
    labels = np.repeat(np.arange(5, dtype=np.int32), 4)
    modality = np.tile([0, 0, 1, 1], 5)
    modality[-4:] = 0  # the last one is never seen in infrared
    sampler = PairSampler(identities=2, clips=3, steps=7)
    tracklet, _ = sampler.draw(labels, modality, np.random.default_rng(0))
    assert tracklet.shape == (7, sampler.batch_size(modality)) == (7, 12)
    for row in tracklet:
        assert (modality[row[::2]] == 0).all() and (modality[row[1::2]] == 1).all()
        assert (labels[row[::2]] == labels[row[1::2]]).all()
        assert len(np.unique(labels[row])) == 2 and 4 not in labels[row]
    assert len(PairSampler(2, 1).draw(labels, modality, np.random.default_rng(0))[0]) == 5  # 20 tracklets, 4 a batch


def test_a_pass_shows_everything_once():
    labels = np.array([0, 1, -1, 2, 2], np.int32)
    sampler = PassSampler(size=3, parts=2)
    tracklet, part = sampler.draw(labels, labels, np.random.default_rng(0))
    assert tracklet.shape == part.shape == (3, 3)
    shown = list(zip(tracklet[tracklet >= 0].tolist(), part[tracklet >= 0].tolist(), strict=True))
    assert sorted(shown) == [(t, p) for t in (0, 1, 3, 4) for p in (0, 1)]
    assert (tracklet[:-1] >= 0).all() and (tracklet[-1] == -1).sum() == 1
