"""SwinIR: sizes, windows and shifts by hand, every piece against PyTorch, and its published names of tensors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import filled
from messages import refuses

from jaxreid.backbones import pretrained
from jaxreid.backbones.kinds import shapes_of
from jaxreid.backbones.saving import to_tensors
from jaxreid.backbones.swinir import (
    MEAN,
    VARIANTS,
    Block,
    SwinIR,
    SwinIRConfig,
    partition,
    pixel_shuffle,
    position_index,
    reverse,
    shift_mask,
)
from jaxreid.backbones.tensors import CheckpointError
from jaxreid.errors import UserError
from jaxreid.layers.band_attention import BandAttention
from jaxreid.layers.degradation import resize, resizing

SMALL = SwinIRConfig(width=8, groups=1, depth=2, heads=2, window=4, scale=4, size=(12, 8))


def parameters(config):
    return sum(int(np.prod(shape)) for shape in shapes_of(config)["params"].values())


@pytest.mark.parametrize(
    ("name", "scale", "count"),
    [
        ("swinir_tiny", 4, 80_416),
        ("swinir_light", 4, 929_628),
        ("swinir_light", 2, 910_152),
        ("swinir_m", 4, 11_900_199),
        ("swinir_m", 2, 11_752_487),
        ("swinir_real", 4, 11_715_559),
    ],
)
def test_published_sizes(name, scale, count):
    assert parameters(dataclasses.replace(VARIANTS[name], scale=scale)) == count


def test_windows_and_shuffled_pixels():
    index = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    np.testing.assert_array_equal(position_index(2), index)
    x = jnp.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    windows = partition(x, 4)
    assert windows.shape == (2, 6, 16, 3)
    np.testing.assert_array_equal(windows[1, 4], x[1, 4:, 4:8].reshape(16, 3))
    np.testing.assert_array_equal(reverse(windows, 8, 12, 4), x)
    masks = shift_mask(64, 32, 8, 4)
    assert masks.shape == (32, 64, 64)
    seam = masks.reshape(8, 4, -1).any(-1)
    assert seam.sum() == 11 and seam[-1].all() and seam[:, -1].all()
    assert set(np.unique(masks)) == {0.0, -100.0}
    assert not shift_mask(8, 12, 4, 0).any()
    shuffled = pixel_shuffle(jnp.arange(8.0).reshape(1, 1, 1, 8), 2)[0]
    np.testing.assert_array_equal(shuffled[..., 0], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(shuffled[..., 1], [[4, 5], [6, 7]])


def test_small_pictures_have_small_windows():
    assert VARIANTS["swinir_light"].cell == (8, 4)
    assert dataclasses.replace(VARIANTS["swinir_tiny"], size=(16, 8)).cell == (8, 0)
    assert dataclasses.replace(VARIANTS["swinir_tiny"], size=(16, 4)).cell == (4, 0)


def reference_of(config, seed=0):
    import torch
    from references.swinir_forward import SwinIR as Reference

    torch.manual_seed(seed)
    fields = ("width", "groups", "depth", "heads", "window", "head", "scale", "size")
    network = Reference(**{name: getattr(config, name) for name in fields}).eval()
    with torch.no_grad():  # nothing at a special value
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parity
@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"scale": 2}, (12, 8)),
        ({"head": "classical"}, (11, 6)),  # filled up to whole windows, and cut off again
        ({"head": "real"}, (12, 8)),
        ({"size": (8, 4)}, (8, 4)),  # no wider than a window: none is shifted
    ],
)
def test_pictures_are_pytorchs(changes, shape):
    import torch

    config = dataclasses.replace(SMALL, **changes)
    network = reference_of(config)
    tensors = {f"params.{name}": x.numpy() for name, x in network.state_dict().items()}
    variables = pretrained.to_variables(tensors, config)
    frames = np.random.default_rng(0).random((1, 2, *shape, 3), np.float32)
    with torch.no_grad():
        wanted = network(torch.tensor(frames[0]).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    found = jax.jit(SwinIR(config).apply)(variables, frames)
    assert found.shape == (1, 2, shape[0] * config.scale, shape[1] * config.scale, 3)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-5, atol=5e-5)


@pytest.mark.parity
def test_files():
    """The published names there and back; averaged weights count; another network is named."""
    config = dataclasses.replace(SMALL, head="classical")
    tensors = {name: x.numpy() for name, x in reference_of(config).state_dict().items()}
    variables = pretrained.to_variables(tensors, config)
    written = to_tensors(variables["params"], config)
    assert {f"params.{name}" for name in tensors if "index" not in name and "mask" not in name} == set(written)
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, tensors[name.removeprefix("params.")])
    both = {f"params_ema.{name}": x for name, x in tensors.items()} | {name: 0 * x for name, x in written.items()}
    jax.tree.map(np.testing.assert_array_equal, pretrained.to_variables(both, config), variables)
    with refuses(CheckpointError, "head 'light' ×4", "conv_before_upsample"):
        pretrained.to_variables(tensors, SMALL)
    with refuses(CheckpointError, "super-resolution network", "conv_first.weight"):
        pretrained.to_variables({"visual.conv1.weight": np.zeros(1)}, config)
    with refuses(UserError, "head 'tiny'"):
        SwinIRConfig(head="tiny")


def test_without_a_last_convolution_the_mean_is_left():
    variables = filled(SwinIR(SMALL).init, jnp.zeros((1, 1, 12, 8, 3)))
    variables["params"]["last"] = jax.tree.map(jnp.zeros_like, variables["params"]["last"])
    found = jax.jit(SwinIR(SMALL).apply)(variables, jnp.ones((1, 1, 12, 8, 3)))
    np.testing.assert_allclose(found, np.broadcast_to(MEAN, found.shape), atol=1e-6)


def test_what_is_added_to_the_bicubic_picture_is_nothing_at_the_start():
    """Bicubic by the matrices that bring a picture back to its size."""
    plain = dataclasses.replace(SMALL, depth=1, size=(4, 4))
    network = SwinIR(dataclasses.replace(plain, residual=True))
    frames = jax.random.uniform(jax.random.key(0), (1, 2, 4, 4, 3))
    variables = jax.jit(network.init)(jax.random.key(1), frames)
    assert parameters(network.config) == parameters(plain)
    bicubic = resize(frames, resizing(4, 16), resizing(4, 16))
    np.testing.assert_allclose(jax.jit(network.apply)(variables, frames), bicubic, atol=1e-6)
    variables = filled(network.init, frames)
    made = jax.jit(SwinIR(plain).apply)(variables, frames) - jnp.array(MEAN)
    np.testing.assert_allclose(jax.jit(network.apply)(variables, frames), bicubic + made, atol=1e-5)


def test_windows_that_are_not_shifted_move_with_the_picture():
    config = dataclasses.replace(SMALL, depth=1)
    block = Block(config, shifted=False, drop=0.0)
    x = jax.random.normal(jax.random.key(0), (1, 12, 8, 8))
    variables = filled(lambda key, x: block.init(key, x, False), x)
    apply = jax.jit(block.apply, static_argnums=2)
    rolled = apply(variables, jnp.roll(x, (4, 4), (1, 2)), False)
    np.testing.assert_allclose(rolled, jnp.roll(apply(variables, x, False), (4, 4), (1, 2)), atol=1e-5)


def test_frames_look_at_their_neighbours():
    """A new module changes nothing; a trained one sees two frames to each side, and none that does not count."""
    module = BandAttention(heads=2, reach=2)
    x = jax.random.normal(jax.random.key(1), (1, 6, 2, 2, 8))
    mask = jnp.ones((1, 6), bool)
    apply = jax.jit(module.apply)
    start = jax.jit(module.init)(jax.random.key(0), x, mask)
    assert not jnp.any(apply(start, x, mask))
    assert start["params"]["distance_bias"].shape == (5, 2)
    variables = filled(module.init, x, mask)

    def changed(frame, mask):
        """Which frames differ when one does."""
        other = x.at[:, frame].add(1.0)
        difference = np.abs(np.asarray(apply(variables, other, mask) - apply(variables, x, mask)))
        return np.flatnonzero(difference.max((0, 2, 3, 4)) > 0).tolist()

    assert changed(0, mask) == [0, 1, 2]
    assert changed(3, mask) == [1, 2, 3, 4, 5]
    assert set(changed(3, mask.at[0, 3].set(False))) <= {3}
    with_frames = SwinIR(SMALL, over_frames=lambda name: BandAttention(heads=2, reach=2, name=name))
    frames = jax.random.uniform(jax.random.key(2), (1, 3, 12, 8, 3))
    variables = jax.jit(with_frames.init)(jax.random.key(0), frames)
    plain = {"params": {name: x for name, x in variables["params"].items() if name != "over_frames"}}
    found = jax.jit(with_frames.apply)(variables, frames)
    np.testing.assert_allclose(found, jax.jit(SwinIR(SMALL).apply)(plain, frames), atol=1e-6)
