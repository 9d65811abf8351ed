"""Small pictures by products with matrices, against jax's own resizing and by hand; figures of pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refuses

from jaxreid.errors import UserError
from jaxreid.layers.degradation import Degradation, blurring, cropped, resize, resizing
from jaxreid.losses.pictures import absolute_difference, psnr, ssim, step_difference


def frames(clips=2, length=3, size=(32, 16), seed=0):
    return jax.random.uniform(jax.random.key(seed), (clips, length, *size, 3))


@pytest.mark.parametrize("size", [(8, 4), (13, 9), (64, 32)])
def test_resizing_is_bicubic_with_antialiasing(size):
    x = frames()
    found = resize(x, *(resizing(n, m) for n, m in zip((32, 16), size, strict=True)))
    wanted = jax.image.resize(x, (2, 3, *size, 3), "cubic", antialias=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_counts_may_be_drawn():
    """Of arrays of one size, as many rows as are drawn stand for a picture of that size."""
    count = jnp.array([5, 16, 3])
    down, up = jax.jit(lambda n: (resizing(16, 16, count_out=n), resizing(16, 16, count_in=n)))(count)
    for number, n in enumerate(count.tolist()):
        np.testing.assert_allclose(down[number, :n], resizing(16, n), atol=1e-6)
        np.testing.assert_allclose(up[number, :, :n], resizing(n, 16), atol=1e-6)
        assert not down[number, n:].any() and not up[number, :, n:].any()


def test_blur_by_hand():
    weights = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 0.8**2))
    found = blurring(12, jnp.array([0.8, 2.0]))
    np.testing.assert_allclose(found[0, 5, 2:9], weights / weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    assert not found[0, 5, :2].any() and not found[0, 5, 9:].any()


def test_a_pattern_of_pixels_is_lost():
    """What a canvas cannot hold is not in it, whatever is drawn: nothing behind it can bring it back."""
    degrade = jax.jit(Degradation(noise=0.0, quantize=False), static_argnums=2)
    x = 0.25 + 0.5 * frames(clips=32, length=1)
    pattern = 0.1 * (-1.0) ** (jnp.arange(32)[:, None] + jnp.arange(16))[..., None]
    plain, with_pattern = (degrade(jax.random.key(1), y, (8, 4)) for y in (x, x + pattern))
    assert float(jnp.abs(plain - with_pattern).max()) < 1e-3 and float(jnp.abs(x).std()) > 0.1


def test_clips_are_degraded_each_in_its_way_and_their_frames_alike():
    x = jnp.repeat(jnp.repeat(frames(1, 1), 6, axis=0), 2, axis=1)
    quiet = Degradation(noise=0.0)(jax.random.key(0), x, (8, 4))
    np.testing.assert_array_equal(quiet[:, 0], quiet[:, 1])
    np.testing.assert_allclose(255 * quiet, jnp.round(255 * quiet), atol=1e-4)
    assert len(np.unique(np.asarray(quiet).reshape(6, -1), axis=0)) == 6
    noisy = Degradation(noise=0.02)(jax.random.key(0), x, (8, 4))
    assert jnp.any(noisy[:, 0] != noisy[:, 1]) and float(jnp.abs(noisy - quiet).std()) < 0.02
    blurred, sharp = (Degradation((s, s), (1, 1), 0.0, False)(jax.random.key(0), x, (8, 4)) for s in (2.0, 0.2))
    assert float(blurred.std()) < float(sharp.std())
    np.testing.assert_allclose(
        sharp[0, 0], jax.image.resize(x[0, 0], (8, 4, 3), "cubic", antialias=True).clip(0, 1), atol=1e-4
    )
    with refuses(UserError, "degradation.noise=-1"):
        Degradation(noise=-1)


def test_parts_of_both_sizes_are_of_one_place():
    small = jnp.arange(6 * 4.0).reshape(1, 1, 6, 4, 1) + jnp.zeros((5, 3, 1, 1, 1))
    large = jnp.repeat(jnp.repeat(small, 4, axis=2), 4, axis=3)
    low, high = cropped(jax.random.key(3), (small, large), (1, 4), (6, 4), (3, 2))
    assert low.shape == (5, 3, 3, 2, 1) and high.shape == (5, 3, 12, 8, 1)
    np.testing.assert_array_equal(high[:, :, ::4, ::4], low)
    assert len(np.unique(np.asarray(low)[..., 0, 0, 0])) > 5  # frames draw for themselves


def test_differences_count_what_the_mask_says():
    found, wanted = frames(seed=1), frames(seed=2)
    mask = jnp.array([[True, True, False], [False, False, False]])
    by_hand = np.mean(np.abs(np.asarray(found - wanted))[0, :2])
    assert float(absolute_difference(found, wanted, mask)) == pytest.approx(by_hand, rel=1e-5)
    steps = np.abs(np.diff(np.asarray(found), axis=1) - np.diff(np.asarray(wanted), axis=1))[0, 0].mean()
    assert float(step_difference(found, wanted, mask)) == pytest.approx(steps, rel=1e-5)
    nobody = jnp.zeros_like(mask)
    assert float(absolute_difference(found, wanted, nobody)) == float(step_difference(found, wanted, nobody)) == 0
    assert float(step_difference(found[:, :1], wanted[:, :1], mask[:, :1])) == 0


def test_figures_by_hand():
    x = frames(1, 2, (14, 13))
    y = jnp.clip(x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), 0, 1)
    np.testing.assert_allclose(psnr(x * 0 + 0.5, x * 0 + 0.4), 20.0, rtol=1e-5)
    np.testing.assert_allclose(ssim(x, x), 1.0, rtol=1e-5)
    weights = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(weights, weights)[..., None] / weights.sum() ** 2
    found = []
    for top in range(4):
        for left in range(3):
            a, b = (np.float64(z[0, 1, top : top + 11, left : left + 11]) for z in (x, y))
            mean_a, mean_b = ((window * z).sum((0, 1)) for z in (a, b))
            var_a, var_b = ((window * (z - m) ** 2).sum((0, 1)) for z, m in ((a, mean_a), (b, mean_b)))
            both = (window * (a - mean_a) * (b - mean_b)).sum((0, 1))
            c1, c2 = 0.01**2, 0.03**2
            each = (2 * mean_a * mean_b + c1) * (2 * both + c2)
            found.append(each / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    assert float(ssim(x, y)[0, 1]) == pytest.approx(np.mean(found), abs=1e-4)
