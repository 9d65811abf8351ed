"""Eight pictures learned by heart: better than bicubic ones."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxreid.backbones.swinir import SwinIR, SwinIRConfig
from jaxreid.layers.band_attention import BandAttention
from jaxreid.layers.degradation import Degradation, resize, resizing
from jaxreid.losses.pictures import psnr

STEPS = 300


@pytest.mark.extended
def test_eight_frames_are_learned_by_heart():
    """300 steps of `swinir_tiny`: more than a decibel above bicubic enlargement."""
    corners = jax.random.uniform(jax.random.key(0), (2, 4, 8, 8, 3))
    high = jnp.repeat(jnp.repeat(corners, 4, axis=2), 4, axis=3)  # tiles of four pixels, whose edges a canvas blurs
    high = jnp.roll(high, (2, 2), (2, 3))
    low = Degradation(noise=0.0, blur=(0.2, 0.5), rows=(1.0, 1.0))(jax.random.key(1), high, (8, 8))
    network = SwinIR(SwinIRConfig(width=32, groups=2, depth=2, heads=4, drop_path=0.0, size=(8, 8)), BandAttention)
    variables, optimizer = network.init(jax.random.key(2), low), optax.adam(2e-3)

    def loss(variables):
        return jnp.abs(network.apply(variables, low) - high).mean()

    def step(state, _):
        variables, moments = state
        changes, moments = optimizer.update(jax.grad(loss)(variables), moments)
        return (optax.apply_updates(variables, changes), moments), None

    @jax.jit
    def learned(variables):
        return jax.lax.scan(step, (variables, optimizer.init(variables)), None, STEPS)[0][0]

    found = network.apply(learned(variables), low)
    bicubic = resize(low, resizing(8, 32), resizing(8, 32))
    assert float(psnr(found, high).mean()) > float(psnr(bicubic, high).mean()) + 1.0
