"""Prototypes and their update: golden numbers of the toy world, brute force, invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_world
from messages import refuses

from jaxreid.arrays import unit_rows
from jaxreid.memory import prototypes
from jaxreid.memory.prototypes import build_prototypes, empty_memory, rebuild, update_prototypes


def test_toy_prototypes():
    memory = toy_world.memory()
    np.testing.assert_allclose(toy_world.angles(memory.feature[:7]), toy_world.PROTOTYPE_ANGLES, atol=1e-4)
    np.testing.assert_array_equal(memory.count, [3, 2, 2, 2, 2, 2, 2, 0])
    concentration = [0.998376, 0.997564, 0.997564, 0.997564, 0.997564, 0.996195, 0.997564, 0]
    np.testing.assert_allclose(memory.concentration, concentration, atol=1e-6)
    np.testing.assert_array_equal(memory.feature[7], 0)
    np.testing.assert_array_equal(memory.valid, [True] * 7 + [False])


def test_concentration_of_two_orthogonal_parts():
    feature, count, concentration = build_prototypes(
        toy_world.vectors([0, 90]), jnp.zeros(2, jnp.int32), jnp.ones(2, bool), 1
    )
    np.testing.assert_allclose(concentration, [0.707107], atol=1e-6)
    np.testing.assert_allclose(toy_world.angles(feature), [45], atol=1e-4)
    assert count[0] == 2


def test_build_against_brute_force():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 6)).astype(np.float32)
    slot = rng.integers(-1, 9, 50)
    valid = rng.random(50) < 0.8
    features[~valid] = np.nan  # rows that only fill the array have no influence
    feature, count, concentration = build_prototypes(jnp.asarray(features), jnp.asarray(slot), jnp.asarray(valid), 12)
    for k in range(12):
        rows = features[(slot == k) & valid]
        assert count[k] == len(rows)
        mean = rows.mean(axis=0) if len(rows) else np.zeros(6)
        length = np.linalg.norm(mean)
        np.testing.assert_allclose(concentration[k], length, rtol=1e-5)
        np.testing.assert_allclose(feature[k], mean / length if len(rows) else mean, atol=1e-6)


def test_toy_update():
    memory = toy_world.memory()
    batch = toy_world.vectors([4, 8, 12]), jnp.array([0, 0, 2]), jnp.ones(3, bool)
    updated = update_prototypes(memory, *batch, momentum=0.5)
    angles = toy_world.angles(updated.feature)
    np.testing.assert_allclose(angles[[0, 2]], [3, 11], atol=1e-4)
    untouched = [1, 3, 4, 5, 6, 7]
    np.testing.assert_array_equal(updated.feature[np.array(untouched)], memory.feature[np.array(untouched)])
    np.testing.assert_allclose(jnp.linalg.norm(updated.feature[:7], axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(updated.feature[7], 0)


def test_update_does_not_depend_on_clip_order_or_padding():
    memory = toy_world.memory()
    slot, degrees = np.array([0, 0, 2, 0]), np.array([4, 8, 12, 20])
    results = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        features = jnp.concatenate([toy_world.vectors(degrees[order]), jnp.full((3, 2), jnp.nan)])
        slots = jnp.array([*slot[order], 1, -1, 7])
        valid = jnp.array([True] * 4 + [False, True, True])  # not valid, no slot, a slot without prototype
        results.append(update_prototypes(memory, features, slots, valid, 0.5).feature)
    np.testing.assert_allclose(results[0], results[1], atol=1e-7)
    np.testing.assert_array_equal(results[0][1], memory.feature[1])
    np.testing.assert_array_equal(results[0][7], 0)


def test_update_takes_traced_momentum_and_never_differentiates():
    memory = toy_world.memory()

    def total(features, momentum):
        slot = jnp.zeros(1, jnp.int32)
        return update_prototypes(memory, features, slot, jnp.ones(1, bool), momentum).feature.sum()

    np.testing.assert_array_equal(jax.grad(total)(toy_world.vectors([5]), 0.5), 0)
    moved = jax.jit(update_prototypes)(memory, toy_world.vectors([8]), jnp.array([0]), jnp.ones(1, bool), 1.0)
    np.testing.assert_allclose(moved.feature, memory.feature, atol=1e-7)


def test_rebuild_invalidates_slots_without_clips():
    memory = rebuild(toy_world.memory(), toy_world.vectors([33]), jnp.array([3]), jnp.ones(1, bool))
    np.testing.assert_array_equal(memory.valid, np.arange(8) == 3)
    np.testing.assert_array_equal(memory.feature[jnp.array([0, 7])], 0)


def test_unit_rows_of_zero_is_zero_with_zero_gradient():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(unit_rows(x), [[0, 0], [0.6, 0.8]], atol=1e-7)
    gradient = jax.grad(lambda x: unit_rows(x).sum())(x)
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("slots", "multiple", "expected"), [(9751, 1024, 10240), (7148, 1024, 7168), (0, 8, 8)])
def test_padded_capacity(slots, multiple, expected):
    assert prototypes.padded_capacity(slots, multiple) == expected


def test_bad_slots_are_named():
    with refuses(ValueError, "slot 1", 4):
        empty_memory([0, 4], [0, 1], dim=2)
    with refuses(ValueError, 3, "capacity", 2):
        empty_memory([0, 0, 1], [0, 1], dim=2, capacity=2)
    with refuses(ValueError, "negative", "modality"):
        empty_memory([0], [-1], dim=2)
