"""SAS-VPReID: the memory of proxies, Mamba's scans, the shape stream, what learns from what, published sizes."""

import dataclasses
import functools
import importlib

import family
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import CLIPS, make_batch, make_method
from messages import refuses

from jaxreid.augment import Augmentation, augment
from jaxreid.errors import UserError
from jaxreid.layers.gru import GRU
from jaxreid.layers.mamba import Mamba, MambaLayer, MultiGranularityMamba, in_orders, in_place, selective_scan
from jaxreid.layers.shape_stream import MEAN_SHAPE, PlaceClassifiers, ShapeAggregation, ShapeRegressor
from jaxreid.losses.image_text import proxy_contrast
from jaxreid.losses.shape_prior import shape_prior
from jaxreid.memory.class_bank import move_proxies
from jaxreid.methods.class_banks import BankMemory
from jaxreid.optimizers import find_group, split_trained
from jaxreid.run.config_values import check_config

FRAMES = 4
SIZES = {
    "mgtm.state": 2, "mgtm.expand": 1, "mgtm.mlp_ratio": 1, "mgtm.chunk": 2,
    "prsd.width": 8, "prsd.hidden": 8, "prsd.depth": 1, "prsd.heads": 2,
}  # fmt: skip
WITHOUT = importlib.import_module("configs.sas_vpreid").WITHOUT


def config(preset="", **changes):
    found = importlib.import_module("configs.sas_vpreid").get_config(preset)
    found.update_from_flattened_dict(changes)
    return found


@pytest.fixture(autouse=True, scope="module")
def small_towers():
    with pytest.MonkeyPatch.context() as patch:
        family.small_towers(patch)
        yield


def make(**changes):
    return make_method("sas_vpreid", **SIZES | changes)


def clips(frames=FRAMES):
    batch = make_batch()
    pixels = jax.random.normal(jax.random.key(2), (CLIPS, frames, *batch.frames.shape[2:]))
    return batch.replace(frames=pixels, frame_mask=jnp.ones((CLIPS, frames), bool))


def memory_of(method):
    rows = jax.random.normal(jax.random.key(3), method.init_memory().bank.shape)
    return BankMemory(rows / jnp.linalg.norm(rows, axis=1, keepdims=True))


# ------------------------------------------------------------------------------------------------ the memory, section 9

ROWS = np.array([[0.8, 0.6], [0.6, 0.8], [0, 1], [-0.6, 0.8]], np.float32)
LABEL, ALL = jnp.array([0, 0, 1, 1]), jnp.ones(4, bool)
PROXIES = jnp.concatenate([jnp.eye(2), jnp.eye(2)])


def test_the_loss_of_two_proxies():
    assert float(proxy_contrast(jnp.asarray(ROWS), PROXIES, LABEL, ALL, 0.05)) == pytest.approx(1.0090750, abs=1e-5)


@pytest.mark.parametrize(
    ("per_sample", "wanted"),
    [
        (False, [[0.757056, 0.653350], [-0.284447, 0.958692], [0.664364, 0.747409], [-0.549991, 0.835171]]),
        (True, [[0.699377, 0.714753], [-0.341821, 0.939765], [0.835171, 0.549991], [0, 1]]),
    ],
)
def test_proxies_after_a_batch(per_sample, wanted):
    """In our order, and in the released one."""
    found = move_proxies(PROXIES, jnp.asarray(ROWS), LABEL, ALL, 0.1, per_sample)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_memory_is_of_both_features_without_side_information():
    method = make(**WITHOUT)
    assert method.init_memory().bank.shape == (2 * family.PEOPLE, 16 + 8)
    variables, batch = family.filled(method.init, clips()), clips()
    find = jax.jit(lambda variables: method.of_proxies(variables, None, batch)["projected"])
    found, params = find(variables), variables["params"]
    other = find({**variables, "params": {**params, "side_table": 9 + params["side_table"]}})
    np.testing.assert_array_equal(found, other)
    # Behind the batch norms, with running statistics.
    doubled = {**params, "norms_projected": {"scale": 2 * params["norms_projected"]["scale"]}}
    np.testing.assert_allclose(find({**variables, "params": doubled})[:, 16:], 2 * found[:, 16:], rtol=1e-5)
    assert method.stages()[0].extraction.every == 1


# ------------------------------------------------------------------------------------------------------- selective scan


def plain_scan(x, delta, a, b, c, skip):
    """One token after another."""

    def step(h, inputs):
        x, delta, b, c = inputs
        h = jnp.exp(delta[..., None] * a) * h + (delta * x)[..., None] * b[:, None]
        return h, (h * c[:, None]).sum(-1) + skip * x

    start = jnp.zeros((len(x), *a.shape))
    return jax.lax.scan(step, start, tuple(jnp.moveaxis(y, 1, 0) for y in (x, delta, b, c)))[1].swapaxes(0, 1)


@pytest.mark.parametrize("chunk", [5, 64])
def test_the_scan_in_chunks_is_the_plain_loop(chunk):
    """Values and all gradients; chunks that do not divide the sequence, and one that is longer."""
    keys, (rows, length, dim, state) = iter(jax.random.split(jax.random.key(0), 6)), (2, 13, 3, 4)
    shapes = [
        (rows, length, dim),
        (rows, length, dim),
        (dim, state),
        (rows, length, state),
        (rows, length, state),
        (dim,),
    ]
    x, delta, a, b, c, skip = (jax.random.normal(next(keys), shape) for shape in shapes)
    arguments = (x, 3 * jax.nn.softplus(delta), -jnp.exp(a), b, c, skip)

    def both(scan):
        return jax.jit(jax.value_and_grad(lambda args: (scan(*args) ** 2).sum(), argnums=0))(arguments)

    (one, slopes), (other, wanted) = both(functools.partial(selective_scan, chunk=chunk)), both(plain_scan)
    assert float(one) == pytest.approx(float(other), rel=1e-5)
    for ours, theirs in zip(slopes, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(np.abs(theirs).max()))


def test_orders_of_tokens():
    """Three frames of two tokens: backward, and with the frames of a token side by side; then as they stood."""
    x = jnp.arange(6)[None]
    ordered = in_orders(x, 3)
    assert ordered[:, 0].tolist() == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 2, 4, 1, 3, 5]]
    np.testing.assert_array_equal(in_place(ordered, 3), jnp.stack([x] * 3))


SCAN = ("conv_kernel", "conv_bias", "mixing", "step_kernel", "step_bias", "log_a", "skip")  # what each scan has


def test_forward_and_backward_are_the_same_seen_from_the_other_end():
    """Reversing the sequence swaps both; frames that do not count leave no trace, as if they were not there."""
    module, x = Mamba(state=2, expand=1, chunk=4), jax.random.normal(jax.random.key(0), (2, 8, 16))
    mask = jnp.ones((2, 8), bool)
    params = family.filled(functools.partial(module.init, pieces=1), x, mask)["params"]
    apply = jax.jit(lambda params, x, mask: module.apply({"params": params}, x, mask, 1))
    # Without the third scan, whose C and D are 0.
    two = {**params, "mixing": params["mixing"].at[2].set(0), "skip": params["skip"].at[2].set(0)}
    other = {name: leaf[jnp.array([1, 0, 2])] if name in SCAN else leaf for name, leaf in two.items()}
    found = apply(two, x, mask)
    np.testing.assert_allclose(apply(other, x[:, ::-1], mask)[:, ::-1], found, atol=1e-6)
    assert np.abs(apply(other, x, mask) - found).max() > 1e-3
    part = mask.at[:, 6:].set(False)
    wanted = apply(params, x[:, :6], mask[:, :6])
    np.testing.assert_allclose(apply(params, x.at[:, 6:].set(7.0), part)[:, :6], wanted, atol=1e-6)


def test_granularities_are_equal_at_first_and_know_their_frames():
    tokens = jnp.zeros((1, 8, 2, 16))
    seen, mask = [], jnp.ones((1, 8), bool)
    with pytest.MonkeyPatch.context() as patch:
        mamba = importlib.import_module("jaxreid.layers.mamba")
        whole = mamba.MambaLayer.__call__

        def noted(self, tokens, mask, pieces=0):
            seen.append((self.name, *tokens.shape[:2], pieces))
            return whole(self, tokens, mask, pieces)

        patch.setattr(mamba.MambaLayer, "__call__", noted)
        for pieces in (0, 4):  # as meant, and as released with clips of four frames in training
            jax.eval_shape(
                MultiGranularityMamba(functools.partial(MambaLayer, 2, 1, 2, 1), pieces).init,
                jax.random.key(0),
                tokens,
                mask,
            )
    wanted = [("quarters", 4, 2), ("halves", 2, 4), ("whole", 1, 8)]
    assert seen[:3] == [(*each, 0) for each in wanted]  # as many pieces as frames
    assert seen[3:] == [(*each, pieces) for each, pieces in zip(wanted, (1, 2, 4), strict=True)]


# ----------------------------------------------------------------------------------------------------- the shape stream


def test_recurrent_layers_by_hand():
    module, x = GRU(1), jnp.array([[[0.5], [9.0], [-1.0]]])
    mask = jnp.array([[True, False, True]])
    weights = {
        "layer_0_input_kernel": [[0.3, -0.2, 0.7]], "layer_0_input_bias": [0.1, 0.2, 0.3],
        "layer_0_state_kernel": [[0.5, 0.4, -0.6]], "layer_0_state_bias": [0.0, -0.1, 0.2],
    }  # fmt: skip
    params = jax.tree.map(jnp.asarray, weights, is_leaf=lambda x: isinstance(x, list))
    sigmoid, h, wanted = (lambda y: 1 / (1 + np.exp(-y))), 0.0, []
    for value in (0.5, None, -1.0):
        if value is not None:
            r = sigmoid(0.3 * value + 0.1 + 0.5 * h)
            z = sigmoid(-0.2 * value + 0.2 + 0.4 * h - 0.1)
            h = (1 - z) * np.tanh(0.7 * value + 0.3 + r * (-0.6 * h + 0.2)) + z * h
        wanted.append(h)
    np.testing.assert_allclose(module.apply({"params": params}, x, mask)[0, :, 0], wanted, atol=1e-6)


def test_the_regressor_starts_from_the_mean_and_learns_what_is_lacking():
    module, x = ShapeRegressor(4), jnp.zeros((1, 2, 3))
    params = jax.jit(module.init, static_argnums=2)(jax.random.key(0), x, False)["params"]
    still = jax.tree.map(jnp.zeros_like, {name: leaf for name, leaf in params.items() if "mean" not in name})
    betas, hidden = module.apply({"params": {**params, **still}}, x, False)
    np.testing.assert_array_equal(betas, np.broadcast_to(MEAN_SHAPE, (1, 2, 10)))
    assert not hidden.any()
    # Three steps of 0.1 each.
    still["shape"]["bias"] += 0.1
    np.testing.assert_allclose(
        module.apply({"params": {**params, **still}}, x, False)[0][0, 0], MEAN_SHAPE + 0.3, atol=1e-6
    )
    assert params["mean_pose"].reshape(24, 6)[3].tolist() == [1, 0, 0, 1, 0, 0]
    np.testing.assert_allclose(params["mean_camera"], (0.9, 0, 0), atol=1e-6)


def test_the_prior_is_of_frames_that_count():
    shapes = jnp.stack([MEAN_SHAPE + 0.2, MEAN_SHAPE + 7.0])[None]
    assert float(shape_prior(shapes, MEAN_SHAPE, jnp.array([[True, False]]))) == pytest.approx(0.04, rel=1e-5)
    assert float(shape_prior(shapes, MEAN_SHAPE, jnp.zeros((1, 2), bool))) == 0.0


def test_recurrence_over_time_and_as_released_over_the_batch():
    """A clip's shape depends on its own frames; as released, in training, on the clips before it in the batch."""
    x, mask = jax.random.normal(jax.random.key(0), (3, 4, 6)), jnp.ones((3, 4), bool)
    drawn = family.filled(lambda key, x, mask: ShapeAggregation(4, 1, 2).init(key, x, mask, False), x, mask)

    def slopes(released, train):
        module = ShapeAggregation(4, 1, 2, released)
        first = lambda x: module.apply(drawn, x, mask, train, rngs={"dropout": jax.random.key(0)})[0]  # noqa: E731
        found = jax.jit(jax.jacobian(first))(x)  # [3, 10, 3, 4, 6]
        return (np.abs(found) > 0).any((1, 3, 4))

    np.testing.assert_array_equal(slopes(False, True), np.eye(3, dtype=bool))
    np.testing.assert_array_equal(slopes(True, True), np.tri(3, dtype=bool))
    np.testing.assert_array_equal(slopes(True, False), np.eye(3, dtype=bool))


def test_every_place_has_its_classifier():
    module, shapes = PlaceClassifiers(2, 3), jnp.ones((1, 3, 1))
    params = {"kernel": jnp.arange(6.0).reshape(3, 1, 2), "bias": 10 * jnp.arange(6.0).reshape(3, 2)}
    assert module.apply({"params": params}, shapes)[0].tolist() == [[0, 11], [22, 33], [44, 55]]


# ------------------------------------------------------------------------------------------------ what learns from what


FEATURES = ("last", "projected", "temporal", "shape")
NO_MGTM = {"mgtm.enabled": False, **dict.fromkeys(("triplet.features", "embedding"), (*FEATURES[:2], "shape"))}


@functools.cache
def drawn(released):
    """(the method, its losses by name, and gradients: of what MGTM and PRSD minimize, of the prior, of everything); as
    released without MGTM."""
    method = make(released=True, **NO_MGTM) if released else make()
    variables, memory, batch = family.filled(method.init, clips()), memory_of(method), clips()
    own = method.network.classified

    def values(params):
        found = method.forward({**variables, "params": params}, memory, batch, family.context())[0]
        losses = method.losses_of(*found, memory, batch)[0]
        features, logits, _ = found
        modules = [(features[name] ** 3).sum() + jax.nn.log_softmax(logits[name])[:, 0].sum() for name in own]
        modules += [weight * value for weight, value in method.more_losses(features, logits, memory, batch).values()]
        total = sum(weight * value for weight, value in losses.values())
        return jnp.stack([sum(modules), losses["prior"][1], total]), losses

    slopes, losses = jax.device_get(jax.jit(jax.jacrev(values, has_aux=True))(variables["params"]))
    return method, losses, *(jax.tree.map(lambda leaf, row=row: leaf[row], slopes) for row in range(3))


def silent(gradient):
    """Paths without any gradient, exactly."""
    return {path for path, value in family.largest(gradient).items() if not value}


def test_neither_mamba_nor_shapes_reach_the_tower():
    _, losses, of_modules, of_prior, of_all = drawn(False)
    assert set(losses) == {"identity", "triplet", "bank", "frame_identity", "shape_identity", "prior"}
    apart = ("image_tower/", "side_table", "norms_", "classifier/")
    paths = set(family.paths(of_all))
    assert silent(of_modules) == {path for path in paths if path.startswith(apart)} | silent(of_all)
    # Of all losses together, everything learns; a softmax does not see the shift of all keys.
    meant = {"image_tower/block_00/attention/key/bias", "image_tower/block_01/attention/key/bias"}
    assert silent(of_all) <= meant | {"shape/aggregation/block_00/attention/key/bias"}
    assert {path for path in paths if path.startswith("shape/") and path not in silent(of_prior)} >= {
        "shape/project/kernel", "shape/encoder/layer_0_input_kernel", "shape/aggregation/of_frames/kernel",
    }  # fmt: skip


def test_as_released_the_prior_teaches_nothing():
    """β and the features behind it are constants there, so that projection, encoder and regressor never learn."""
    method, losses, _, of_prior, of_all = drawn(True)
    assert silent(of_prior) == set(family.paths(of_prior)) and losses["prior"][1] > 0
    fixed = ("shape/project/", "shape/encoder", "shape/regressor/")
    assert {path for path in family.paths(of_all) if path.startswith(fixed)} <= silent(of_all)
    trained = family.paths(split_trained(of_all, method.optimizer())[0])
    assert not [path for path in trained if path.startswith(fixed)]


# ------------------------------------------------------------------------------------------------------- switches


def params_of(**changes):
    return jax.eval_shape(make(**changes).init, jax.random.key(0), clips())["params"]


def test_modules_come_and_go_with_their_keys():
    whole, bare = params_of(), params_of(**WITHOUT)
    of_mgtm = {"temporal", "necks_temporal", "frame_norm"}
    of_prsd = {"shape", "necks_shape", "shape_classifiers"}
    assert whole.keys() - bare.keys() == of_mgtm | of_prsd
    assert whole.keys() - params_of(**NO_MGTM).keys() == of_mgtm
    for one, other in zip(jax.tree.leaves(bare), jax.tree.leaves({name: whole[name] for name in bare}), strict=True):
        assert one.shape == other.shape


STEM = ("patch_embedding", "class_token", "position_embedding", "norm_pre")


def test_learning_rates_of_modules():
    """Of the published recipe; and one for all."""
    paths = {
        "image_tower/block_00/mlp/up/kernel": 5e-6, "image_tower/block_00/mlp/up/bias": 1e-5,
        "image_tower/projection": 5e-6, "image_tower/norm_post/scale": 5e-6,
        "temporal/whole/mamba/mixing": 3.5e-4, "temporal/whole/mamba/step_bias": 7e-4,
        "necks_temporal/classifier/kernel": 7e-4, "classifier/kernel": 3.5e-4, "side_table": 3.5e-4,
        "shape/aggregation/of_frames/kernel": 3.5e-4,
    }  # fmt: skip
    recipe = {key: config("detreidx_b16").optimizer[key] for key in ("lr", "groups")}
    method, one = (
        make(**{"optimizer.lr": recipe["lr"], "optimizer.groups": recipe["groups"], "module_rates": rates})
        for rates in (True, False)
    )
    groups = method.optimizer().groups
    for path, lr in paths.items():
        assert find_group(path, groups).lr == pytest.approx(lr), path
        assert find_group(path, one.optimizer().groups).lr == 5e-6
    params = params_of()
    assert split_trained(params, one.optimizer())[1]["image_tower"].keys() == set(STEM)
    for kept, changes in (({"mean_pose", "mean_shape", "mean_camera"}, {}), ({"encoder"}, {"prsd.train": False})):
        fixed = split_trained(params, make(**changes).optimizer())[1]["shape"]
        assert kept <= set(fixed) | set(fixed["regressor"])
        assert "project" not in fixed and "aggregation" not in fixed


def test_hue_of_some_clips_changes_and_of_all_frames_of_them():
    batch = make_batch().replace(frames=jax.random.uniform(jax.random.key(0), (CLIPS, 3, 24, 24, 3)))
    options = config().augment
    assert (options.hue, options.jitter, tuple(options.per_frame)) == (0.3, 0.5, ("erase_size",))

    def changed(**kwargs):
        found = jax.jit(functools.partial(augment, options=Augmentation(hue=0.3, **kwargs), mean=(0, 0, 0)))(
            batch, jax.random.key(1)
        )
        return np.abs(found.frames - batch.frames).max((2, 3, 4)) > 1e-3

    found = changed(jitter=0.5)
    assert found.any() and not found.all() and (found.all(1) == found.any(1)).all()
    assert changed().all() and not changed(jitter=0.0).any()
    of_frames = changed(jitter=0.5, per_frame=("jitter",))
    assert (of_frames.any(1) & ~of_frames.all(1)).any()
    # What is erased does not depend on it.
    box = changed(jitter=0.0, erase=1.0)
    np.testing.assert_array_equal(box, changed(jitter=0.0, erase=1.0, per_frame=("erase_size",)) & box)


# ------------------------------------------------------------------------------------------------------- full size


@pytest.mark.parametrize(
    ("preset", "layer", "mixer", "tower", "joint", "embedded"),
    [
        ("detreidx", 15_815_680, 7_415_808, 303_869_952, 1792, 2826),
        ("detreidx_b16", 8_961_792, None, 86_140_416, 1280, 2058),
    ],
)
def test_parameters_at_full_size(preset, layer, mixer, tower, joint, embedded):
    made = config(preset)
    size = made.frames.height, made.frames.width
    info = dataclasses.replace(family.make_info(), frame_size=size)
    method = family.find_method("sas_vpreid")(made, info)
    assert method.image.tokens == {"detreidx": 163, "detreidx_b16": 129}[preset]
    batch = make_batch().replace(frames=jnp.zeros((CLIPS, 8, *size, 3)), frame_mask=jnp.ones((CLIPS, 8), bool))
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)
    sizes = {path: leaf.size for path, leaf in family.flatten_paths(variables["params"])}

    def total(start):
        return sum(size for path, size in sizes.items() if path.startswith(start))

    for name in ("quarters", "halves", "whole"):
        assert total(f"temporal/{name}/") == layer
    assert mixer in (None, total("temporal/whole/mamba/"))
    if mixer:  # of a scan alone
        assert sum(total(f"temporal/whole/mamba/{name}") for name in SCAN) == 3 * 374_784
    assert total("shape/encoder/") == 15_740_928
    assert total("shape/regressor/") - total("shape/regressor/mean_") == 3_469_469
    assert total("shape/aggregation/") == 59_885_588
    assert total("image_tower/") == tower
    assert method.init_memory().bank.shape == (2 * family.PEOPLE, joint)
    if mixer:
        longer = batch.replace(frames=jnp.zeros((1, 16, *size, 3)), frame_mask=jnp.ones((1, 16), bool))
        longer = jax.tree.map(lambda x: x[:1], longer)
        found = jax.eval_shape(lambda variables: method.embed(variables, None, longer)["feature"], variables)
        assert found.shape == (1, embedded)
    assert method.image.width + joint + 10 == embedded  # h is as wide as the tower


def test_the_published_recipe():
    c = config("detreidx")
    batch, test, memory = c.batch, c.evaluation, c.memory
    assert (c.backbone.name, c.frames.height, c.frames.width) == ("ViT-L/14", 252, 126)
    assert (batch.num_identities, batch.num_instances, batch.seq_len, batch.clip_sampling) == (4, 4, 8, "floor")
    assert (test.seq_len, test.clip_sampling, test.distance, test.flip, test.reranking) == (
        16,
        "floor_first",
        "cosine",
        False,
        "",
    )
    assert (c.epochs, c.optimizer.name, c.optimizer.lr, c.optimizer.weight_decay) == (40, "adam", 5e-6, 1e-4)
    assert (c.schedule.milestones, c.schedule.warmup_epochs, c.schedule.warmup_factor) == ((10, 20, 30), 10, 0.1)
    assert (memory.momentum, memory.temperature, memory.per_sample) == (0.1, 0.05, False)
    assert (c.weights.identity, c.weights.triplet, c.weights.bank, c.weights.prior) == (0.25, 1, 1, 0.5)
    assert (c.triplet.metric, c.triplet.margin, c.label_smoothing) == ("euclidean", 0.3, 0.1)
    assert (tuple(c.embedding), c.neck_feat, c.precision) == (FEATURES, "after", "float32")
    assert (c.augment.flip, c.augment.erase, c.augment.erase_area, c.augment.crop) == (0.5, 0.5, 0.4, 0)
    check_config(config("detreidx_b16"))


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch.seq_len": 3}, ("config.batch.seq_len=3", "multiple of 4", "config.mgtm.enabled=False")),
        ({"batch.seq_len": 2}, ("config.batch.seq_len=2", "multiple of 4")),
        ({"evaluation.seq_len": 10}, ("config.evaluation.seq_len=10", "multiple of 4")),
        ({"mgtm.enabled": False}, ("config.embedding", "'temporal'", "config.mgtm.enabled=True")),
        ({"prsd.enabled": False}, ("config.triplet.features", "'shape'")),
        ({"prsd.heads": 7}, ("config.prsd.hidden=64", "config.prsd.heads=7")),
        ({"released": True, "batch.seq_len": 8, "evaluation.seq_len": 12}, ("config.released", "multiple")),
        ({"mgtm.state": 0}, ("config.mgtm.state",)),
        ({"augment.jitter": 2.0}, ("config.augment.jitter",)),
    ],
)
def test_values_that_do_not_go_together(changes, named):
    with refuses(UserError, *named):
        check_config(config(**changes))


def test_clips_without_equal_quarters_are_refused():
    with refuses(UserError, "6 frames", "multiple of 4"):
        MultiGranularityMamba().init(jax.random.key(0), jnp.zeros((1, 6, 2, 16)), jnp.ones((1, 6), bool))


def test_clips_of_any_length_without_mamba():
    check_config(config(**WITHOUT, **{"batch.seq_len": 3, "evaluation.seq_len": 5}))


def test_side_information_wants_cameras():
    info = dataclasses.replace(family.make_info(), cameras=np.arange(0))
    with refuses(UserError, "config.sie.columns", "names no camera"):
        family.find_method("sas_vpreid")(family.make_config("sas_vpreid", **SIZES), info)
