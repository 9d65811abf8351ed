"""Samplers: what a batch must hold, whatever the order."""

import dataclasses

import numpy as np
import pytest
from messages import refuses

from jaxreid.data.samplers import (
    CameraSampler,
    ClusterSampler,
    Columns,
    IdentitySampler,
    LabelSampler,
    PairSampler,
    PassSampler,
    RandomIdentitySampler,
    ShuffleSampler,
)
from jaxreid.data.schema import INFRARED, VISIBLE
from jaxreid.data.split import open_split

GROUND, UAV = 1, 4  # of `schema.PLATFORMS`


def columns(count, **known):
    zeros = np.zeros(count, np.int32)
    values = {"modality": zeros, "platform": zeros, "camera_index": zeros, "pair": zeros - 1} | known
    return Columns(**{name: np.asarray(value, np.int32) for name, value in values.items()})


def draw(sampler, labels, table, seed=0):
    """(tracklet, part) after what holds for every sampler: shapes, and no tracklet that is not labelled."""
    labels = np.asarray(labels, np.int32)
    tracklet, part = sampler.draw(labels, table, np.random.default_rng(seed))
    assert tracklet.shape == part.shape and tracklet.shape[1] == sampler.batch_size(table)
    assert (labels[tracklet] >= 0).all() and (part >= 0).all() and (part < sampler.parts).all()
    return tracklet, part


def in_each(row, values):
    """How often each value occurs in a row."""
    return dict(zip(*(x.tolist() for x in np.unique(values[row], return_counts=True)), strict=True))


# 8 people with 6 tracklets: three visible from cameras 0, 1, 2 and at the same moments three infrared ones (3, 4, 5).
PEOPLE = np.repeat(np.arange(8, dtype=np.int32), 6)
WORLD = columns(
    48,
    modality=np.tile([VISIBLE] * 3 + [INFRARED] * 3, 8),
    platform=np.tile([GROUND, UAV], 24),
    camera_index=np.tile(np.arange(6), 8),
    pair=np.arange(48) // 6 * 3 + np.arange(48) % 3,
)
SAMPLERS = [
    ShuffleSampler(5, parts=3),
    LabelSampler(3, 2, parts=2),
    LabelSampler(1, 2, parts=2, balance="camera_index"),
    IdentitySampler(3, 4, parts=2),
    IdentitySampler(3, 4, balance="platform"),
    RandomIdentitySampler(3, 4, parts=2),
    PairSampler(4, 2, steps=6),
    PairSampler(4, 2, steps=6, parts=2, aligned=True),
    PairSampler(2, 2, steps=6, balance="platform", sides=(GROUND, UAV)),
    CameraSampler(4, 2, parts=2),
    ClusterSampler(3, 4, steps=5, parts=2),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_an_epoch_is_a_function_of_generator_and_labels(sampler):
    one, two, other = (np.stack(draw(sampler, PEOPLE, WORLD, seed)) for seed in ((5, 1), (5, 1), (5, 2)))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    hash(sampler)  # part of a stage, which is static in jit
    draw(sampler, np.where(np.arange(48) < 2, -1, PEOPLE), WORLD)  # some are not drawn


def test_shuffled_batches_show_a_tracklet_once():
    tracklet, _ = draw(ShuffleSampler(5), PEOPLE, WORLD)
    assert tracklet.shape == (9, 5) and len(set(tracklet.ravel().tolist())) == 45
    with refuses(ValueError, 48, 50):
        draw(ShuffleSampler(50), PEOPLE, WORLD)


def test_slots_are_balanced_over_modalities_and_all_seen():
    modality = np.array([0] * 10 + [1] * 4)
    tracklet, part = draw(
        LabelSampler(num_labels=3, num_instances=2, parts=2), np.arange(14), columns(14, modality=modality)
    )
    assert tracklet.shape == (4, 12)
    for row, parts in zip(tracklet, part, strict=True):
        assert (modality[row] == 0).sum() == 6
        # The two clips of a drawn slot stand side by side and come from its different parts.
        assert (row[::2] == row[1::2]).all() and (parts[::2] != parts[1::2]).all()
    assert set(tracklet[modality[tracklet] == 0].tolist()) == set(range(10))
    assert set(tracklet[modality[tracklet] == 1].tolist()) == set(range(10, 14))


def test_clips_of_a_slot_come_from_its_tracklets():
    tracklet, _ = draw(LabelSampler(num_labels=2, num_instances=2, parts=1), [0, 0, 1, 1, -1], columns(5))
    assert tracklet.shape == (1, 4)
    assert sorted(tracklet[0].tolist()) == [0, 1, 2, 3]
    with refuses(ValueError, "modality 1", "training"):
        draw(
            LabelSampler(num_labels=2, num_instances=2, parts=1), [0, 0, 1, 1, -1], columns(5, modality=[0, 0, 0, 0, 1])
        )


@pytest.mark.parametrize("column", ["platform", "camera_index"])
def test_slots_are_balanced_over_another_column(column):
    values = getattr(WORLD, column)
    tracklet, _ = draw(LabelSampler(2, 2, parts=2, balance=column), np.arange(48), WORLD)
    for row in tracklet:
        assert set(in_each(row, values).values()) == {4}
    assert set(tracklet.ravel().tolist()) == set(range(48))


def test_identities_by_clips_over_both_modalities():
    labels = np.repeat(np.arange(7, dtype=np.int32), 6)
    modality = np.tile([0, 0, 0, 1, 1, 1], 7)
    tracklet, _ = draw(IdentitySampler(num_identities=3, num_instances=4), labels, columns(42, modality=modality))
    assert tracklet.shape == (4, 12)  # 42 tracklets / 12 a batch, rounded
    for row in tracklet:
        assert sorted(in_each(row, labels).values()) == [4, 4, 4]
        for value in np.unique(labels[row]):
            own = row[labels[row] == value]
            assert (modality[own] == 0).sum() == 2 and len(set(own.tolist())) == 4


def test_identities_by_clips_over_both_platforms():
    tracklet, _ = draw(IdentitySampler(3, 4, balance="platform"), PEOPLE, WORLD)
    for row in tracklet:
        for value in np.unique(PEOPLE[row]):
            assert in_each(row[PEOPLE[row] == value], WORLD.platform) == {GROUND: 2, UAV: 2}


def test_too_few_identities_are_named():
    with refuses(ValueError, 2, "identities", 3):
        draw(IdentitySampler(3, 2), [0, 0, 1], columns(3))
    with refuses(ValueError, 2, "identities", 3):
        draw(RandomIdentitySampler(3, 2), [0, 0, 1], columns(3))


def test_random_identities_repeat_nothing_but_what_is_too_little():
    labels = np.array([0] * 9 + [1] * 8 + [2] * 4 + [3] * 3)
    for seed in range(20):
        tracklet, _ = draw(RandomIdentitySampler(2, 4), labels, columns(24), seed)
        for row in tracklet:
            assert sorted(in_each(row, labels).values()) == [4, 4]
        seen = in_each(tracklet.ravel(), np.arange(24))
        assert all(count == 1 for item, count in seen.items() if labels[item] < 3)
        assert all(count <= 2 for item, count in seen.items())  # person 3 has three tracklets for four clips
        # They have 2, 2, 1 and 1 groups: where 2 and 3 both meet person 0, the groups of person 1 meet nobody.
        assert len(tracklet) in (2, 3)


@pytest.mark.parametrize("aligned", [False, True])
def test_rows_of_a_pair_show_one_person_in_two_modalities(aligned):
    tracklet, part = draw(PairSampler(4, 3, steps=7, parts=2, aligned=aligned), PEOPLE, WORLD)
    assert tracklet.shape == (7, 24)
    first, second = tracklet[:, ::2], tracklet[:, 1::2]
    assert (WORLD.modality[first] == VISIBLE).all() and (WORLD.modality[second] == INFRARED).all()
    assert (PEOPLE[first] == PEOPLE[second]).all()
    for row in first:
        assert sorted(in_each(row, PEOPLE).values()) == [3] * 4
        assert len(set(row.tolist())) == 12  # each has three visible tracklets
    assert (WORLD.pair[first] == WORLD.pair[second]).all() == aligned
    assert (part[:, ::2] == part[:, 1::2]).all() == aligned


def test_pairs_of_one_moment_come_from_different_cameras():
    # Person 0: pairs 0, 1, 2 from camera 0, pair 3 from camera 1; a visible tracklet without its twin. Person 1: none.
    labels = np.array([0] * 9 + [1] * 2)
    table = columns(
        11,
        modality=[0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1],
        pair=[0, 1, 2, 3, 4, 3, 2, 1, 0, 5, 6],
        camera_index=[0, 0, 0, 1, 1, 1, 0, 0, 0, 2, 3],
    )
    sampler = PairSampler(1, 2, steps=30, aligned=True)
    tracklet, _ = draw(sampler, labels, table)
    pairs = {tuple(row) for row in tracklet.reshape(-1, 2).tolist()}
    assert pairs == {(0, 8), (1, 7), (2, 6), (3, 5)}
    assert all((row == 3).sum() == 1 for row in tracklet)
    with refuses(ValueError, 1, "identities", "modality", 2):
        draw(dataclasses.replace(sampler, num_identities=2), labels, table)
    with refuses(ValueError, 0, "batch.aligned=False"):  # pairs that may not be known
        draw(sampler, labels, table._replace(pair=np.full(11, -1)))


def test_cameras_are_balanced_without_labels():
    camera = np.repeat([0, 1, 2, 3], [20, 10, 6, 4])
    tracklet, _ = draw(
        CameraSampler(num_cameras=2, num_instances=4), np.zeros(40, int), columns(40, camera_index=camera)
    )
    assert tracklet.shape == (5, 8)  # 40 tracklets / 8
    for row in tracklet:
        assert sorted(in_each(row, camera).values()) == [4, 4]
    turns = in_each(tracklet[:4].ravel(), camera)
    assert turns == dict.fromkeys(range(4), 8)  # two rounds over all cameras
    seen = in_each(tracklet.ravel(), np.arange(40))
    for code, count in ((0, 20), (1, 10), (2, 6), (3, 4)):
        times = [seen.get(item, 0) for item in np.flatnonzero(camera == code)]
        assert len(times) == count and max(times) - min(times) <= 1
    with refuses(ValueError, 4, "cameras", 5):
        draw(CameraSampler(5, 2), np.zeros(40, int), columns(40, camera_index=camera))


def test_clusters_by_clips_from_different_cameras():
    # Cluster 0: four clips of camera 0, one of 1, one of 2. Cluster 1: two clips. Outliers.
    labels = np.array([0] * 6 + [1] * 2 + [-1] * 3)
    table = columns(11, camera_index=[0, 0, 0, 0, 1, 2, 0, 1, 0, 1, 2])
    tracklet, _ = draw(ClusterSampler(2, 4, steps=10), labels, table)
    assert tracklet.shape == (10, 8)
    for row in tracklet:
        large, small = row[labels[row] == 0], row[labels[row] == 1]
        assert {4, 5} < set(large.tolist()) and len(set(large.tolist())) == 4
        assert sorted(small.tolist()) == [6, 6, 7, 7]


@pytest.mark.parametrize("clusters", [1, 3, 40])
def test_an_epoch_of_clusters_keeps_its_size(clusters):
    labels = np.arange(120) % clusters
    tracklet, _ = draw(ClusterSampler(4, 2, steps=6), labels, columns(120))
    assert tracklet.shape == (6, 8)
    for row in tracklet:
        counts = in_each(row, labels)
        assert len(counts) == min(clusters, 4)
        assert max(counts.values()) - min(counts.values()) <= 2  # whole shares of two clips
    with refuses(ValueError, 0, "clusters"):
        draw(ClusterSampler(4, 2, steps=6), np.full(120, -1), columns(120))


def test_columns_of_a_split_hide_pairs_with_identity(tiny):
    split = open_split(tiny, "train")
    seen, hidden = Columns.of(split.table, split.labels), Columns.of(split.table, None)
    assert np.array_equal(seen.pair, split.labels.pair) and (hidden.pair == -1).all()
    tracklet, _ = draw(PairSampler(3, 2, steps=4), split.labels.identity, hidden)
    assert (split.table.modality[tracklet] == np.tile([VISIBLE, INFRARED], 6)).all()


def test_a_pass_shows_everything_once():
    labels = np.array([0, 1, -1, 2, 2], np.int32)
    sampler = PassSampler(size=3, parts=2)
    tracklet, part = sampler.draw(labels, columns(5), np.random.default_rng(0))
    assert tracklet.shape == part.shape == (3, 3)
    shown = list(zip(tracklet[tracklet >= 0].tolist(), part[tracklet >= 0].tolist(), strict=True))
    assert sorted(shown) == [(t, p) for t in (0, 1, 3, 4) for p in (0, 1)]
    assert (tracklet[:-1] >= 0).all() and (tracklet[-1] == -1).sum() == 1
