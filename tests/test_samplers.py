"""Samplers: what a batch must hold, whatever the order."""

import numpy as np
import pytest

from jaxreid.data.samplers import IdentitySampler, SlotSampler


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
