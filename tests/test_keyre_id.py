"""KeyRe-ID: golden numbers computed apart from the library, and what must not depend on what."""

import dataclasses
import importlib
import json

import family
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import released_files
from family import context, filled
from messages import refuses
from references import keyre_id_forward as reference

from jaxreid import retrieval
from jaxreid.augment import Augmentation, augment
from jaxreid.backbones import imagenet
from jaxreid.backbones.imagenet import imagenet_config
from jaxreid.backbones.transformer import Block, TransformerConfig
from jaxreid.backbones.vit import ViTConfig
from jaxreid.devices.parallel import register_batch
from jaxreid.geometry import mirror
from jaxreid.layers.keypoint_parts import PARTS, clip_tokens, heat_maps, outside, patch_weights, shuffled
from jaxreid.layers.part_attention import PartAttention
from jaxreid.losses.center import center_loss
from jaxreid.methods.keyre_id import KeyReIDNetwork, TemporalAttention
from jaxreid.methods.method import find_method
from jaxreid.optimizers import Progress, Schedule, find_group, learning_rate, make_optimizer
from jaxreid.run.config_values import check_config
from jaxreid.run.model import open_model
from jaxreid.training.importing import import_released
from jaxreid.training.restore import restore_judged
from jaxreid.training.steps import variables_of

SMALL = ViTConfig(
    width=24, depth=3, heads=4, patch=8, image_size=(32, 16), conv_bias=True, pre_norm_embeddings=False,
    activation="gelu", eps=1e-6,
)  # fmt: skip
FRAMES, CLIPS, PEOPLE, CAMERAS = 2, 8, 4, 3
PATCHES = 8


@pytest.fixture(autouse=True)
def small_tower(monkeypatch):
    monkeypatch.setitem(imagenet.TOWERS, "small", SMALL)


def make_config(preset="", **changes):
    config = importlib.import_module("configs.keyre_id").get_config(preset)
    if not preset:
        config.backbone.name, config.backbone.checkpoint = "imagenet:small", ""
        config.frames.height, config.frames.width = 32, 16
        small = {"batch.seq_len": FRAMES, "evaluation.seq_len": FRAMES, "drop_path": 0.0, "extraction_batch_size": 8}
        config.update_from_flattened_dict(small)
    config.update_from_flattened_dict(changes)
    return config


def make_method(**changes):
    info = dataclasses.replace(family.make_info(), frame_size=(32, 16))
    return find_method("keyre_id")(make_config(**changes), info)


def make_batch(seed=0, erased=True):
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.random((CLIPS, FRAMES, 17, 2)), np.ones((CLIPS, FRAMES, 17, 1))], -1)
    mask, frame = np.ones((CLIPS, FRAMES), bool), np.arange(CLIPS * FRAMES).reshape(CLIPS, FRAMES)
    extras = {
        "keypoints": points.astype(np.float32),
        "keypoints_mask": mask,
        "erased": mask & erased & (frame % 3 == 0),
        "erased_box": np.zeros((CLIPS, FRAMES, 4), np.float32),
    }
    frames = rng.normal(size=(CLIPS, FRAMES, 32, 16, 3)).astype(np.float32)
    batch = family.make_batch().replace(frames=frames, frame_mask=mask, extras=extras)
    return jax.tree.map(jnp.asarray, batch)


def variables_for(method, seed=1):
    return filled(method.init, make_batch(), seed=seed)


# Key points to weights of patches -------------------------------------------------------------------------------------


def one_point(x, y, width=128, height=256, point=0, score=1.0):
    points = np.zeros((1, 1, 17, 3), np.float32)
    points[0, 0, point] = x / width, y / height, score
    return points


def test_a_key_point_lights_up_its_kernel():
    """docs/keyre_id.md: 23 × 23 pixels at width 128, 11 × 11 at 64; the peak is 1."""
    for width, side, corner, edge in ((128, 23, 0.025739, 0.160435), (64, 11, None, None)):
        maps = np.asarray(heat_maps(one_point(30.4, 100.9, width), (256, width)))[0, 0]
        lit, half = np.argwhere(maps[0] > 0), side // 2
        assert [lit.min(0).tolist(), lit.max(0).tolist()] == [[100 - half, 30 - half], [100 + half, 30 + half]]
        assert maps[0, 100, 30] == maps.max() == 1 and not maps[1:].any()
        if corner:
            assert maps[0].sum() == pytest.approx(189.3715, abs=1e-3)
            assert maps[0, 89, 19] == pytest.approx(corner, abs=1e-6)
            assert maps[0, 89, 30] == pytest.approx(edge, abs=1e-6)


def test_weights_of_patches():
    found = np.asarray(patch_weights(heat_maps(one_point(72, 136), (256, 128)), (16, 8)))[0, 0].reshape(16, 8)
    assert found.sum() == pytest.approx(0.739732, abs=1e-6) and (found > 0).sum() == 9
    around = [[0.0018, 0.0317, 0.0028], [0.0317, 0.565514, 0.0496], [0.0028, 0.0496, 0.0043]]
    np.testing.assert_allclose(found[7:10, 3:6], around, atol=6e-5)
    corner = np.asarray(patch_weights(heat_maps(one_point(64, 128), (256, 128)), (16, 8)))[0, 0].reshape(16, 8)
    np.testing.assert_allclose(corner[7:9, 3:5], [[0.159, 0.184], [0.184, 0.2128]], atol=6e-4)
    released = np.asarray(patch_weights(heat_maps(one_point(72, 136), (256, 128)), (16, 8), "released"))[0]
    assert released[0].max() == pytest.approx(0.131028, abs=1e-5)
    np.testing.assert_allclose(released[1:], -1, atol=1e-6)  # a part that is not there


def test_maps_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(-0.2, 1.2, (2, 2, 17, 2)), rng.random((2, 2, 17, 1)) * 0.3], -1)
    points = points.astype(np.float32)
    found = np.asarray(heat_maps(points, (32, 16)))
    pixels = points * [16, 32, 1]
    for clip, frame in np.ndindex(2, 2):
        np.testing.assert_allclose(found[clip, frame], reference.part_maps(pixels[clip, frame], 32, 16), atol=1e-6)
    released = np.asarray(patch_weights(found, (4, 2), "released"))
    np.testing.assert_allclose(released, reference.released_weights(pixels, 32, 16, 8).swapaxes(1, 2), atol=1e-5)


def test_a_point_that_scores_nothing_shows_nothing():
    for score, seen in ((0.1, False), (0.11, True), (0.0, False)):
        assert bool(heat_maps(one_point(72, 136, score=score), (256, 128)).any()) == seen
    assert not heat_maps(one_point(128, 136), (256, 128)).any()  # outside


def test_parts_hold_every_key_point_once():
    for count, parts in PARTS.items():
        assert len(parts) == count and sorted(sum(parts.values(), ())) == list(range(17))


def test_erased_pixels_weigh_nothing():
    box = np.array([[[8 / 32, 0, 24 / 32, 8 / 16]]], np.float32)
    mask = np.asarray(outside(box, (32, 16)))[0, 0, 0]
    expected = np.ones((32, 16))
    expected[8:24, :8] = 0
    np.testing.assert_array_equal(mask, expected)
    method, batch = make_method(), make_batch()
    boxed = batch.replace(extras=batch.extras | {"erased_box": jnp.broadcast_to(box, (CLIPS, FRAMES, 4))})
    weights, plain = (np.asarray(method.weights(b, jax.random.key(0))) for b in (boxed, batch))
    weights, plain = weights.reshape(CLIPS, 6, 4, 2), plain.reshape(CLIPS, 6, 4, 2)
    assert not weights[:, :, 1:3, 0].any() and plain[:, :, 1:3, 0].any()
    np.testing.assert_array_equal(weights[:, :, 1:3, 1], plain[:, :, 1:3, 1])


def test_a_flipped_left_wrist_is_a_left_arm_on_the_other_side():
    batch = make_batch()
    left_wrist = jnp.asarray(one_point(4, 20, 16, 32, point=9)).repeat(CLIPS, 0).repeat(FRAMES, 1)
    batch = batch.replace(extras=batch.extras | {"keypoints": left_wrist})
    # What a mirror shows as the left wrist is the person's right one, which has no score here.
    turned = mirror(batch)
    names = list(PARTS[6])
    before, after = (np.asarray(heat_maps(b.extras["keypoints"], (32, 16)))[0, 0] for b in (batch, turned))
    assert before[names.index("left_arm"), 20, 4] == 1
    assert after[names.index("right_arm"), 20, 12] == 1 and not after[names.index("left_arm")].any()
    again = mirror(turned)
    np.testing.assert_allclose(again.extras["keypoints"], batch.extras["keypoints"], atol=1e-6)
    np.testing.assert_array_equal(again.frames, batch.frames)


# Clip tokens, shift and shuffle ---------------------------------------------------------------------------------------


def test_shift_and_shuffle():
    order = shuffled(128)
    assert sorted(order) == list(range(128))
    assert order[:9].tolist() == [4, 68, 5, 69, 6, 70, 7, 71, 8]
    assert order[-9:].tolist() == [127, 64, 0, 65, 1, 66, 2, 67, 3]


def test_clip_tokens_of_both_layouts():
    tokens = jnp.asarray(np.arange(4.0)[:, None] * 1000 + np.arange(129))[None, ..., None]
    released = np.asarray(clip_tokens(tokens, "released"))[0]
    rows = released[1:][shuffled(128)]
    assert rows[:4].tolist() == [
        [20, 21, 22, 23], [2018, 2019, 2020, 2021], [24, 25, 26, 27], [2022, 2023, 2024, 2025]
    ]  # fmt: skip
    assert rows[[63, 64, 127]].tolist() == [
        [3013, 3014, 3015, 3016], [1019, 1020, 1021, 1022], [16, 17, 18, 19]
    ]  # fmt: skip
    assert released[0].tolist() == [0, 1, 2, 3]
    paper = np.asarray(clip_tokens(tokens))[0]
    assert paper[0].tolist() == [0, 1000, 2000, 3000]
    assert paper[1:][shuffled(128)][0].tolist() == [5, 1005, 2005, 3005]


# The local branch -----------------------------------------------------------------------------------------------------

WIDE = TransformerConfig(width=48, depth=1, heads=4, activation="gelu", eps=1e-6)


def local_branch(gate, fast=True, seed=0):
    rng = np.random.default_rng(seed)
    tokens = jnp.asarray(rng.normal(size=(3, 1 + PATCHES, 48)) + 0.3, jnp.float32)
    weights = jnp.asarray(rng.uniform(0.05, 1, (3, 6, PATCHES)) * (rng.random((3, 6, PATCHES)) < 0.6), jnp.float32)
    module = PartAttention(WIDE, gate, fast)
    return module, filled(module.init, tokens, weights, seed=seed + 1), tokens, weights


@pytest.mark.parametrize("gate", ["pre_norm", "post_norm"])
def test_the_short_form_is_the_plain_one(gate):
    """Values and gradients; what is left is the order of float sums."""
    short, variables, tokens, weights = local_branch(gate)
    plain = PartAttention(WIDE, gate, fast=False)
    target = jnp.asarray(np.random.default_rng(9).normal(size=(3, 6, 48)), jnp.float32)

    def total(module):
        def of(variables, tokens, weights):
            return jnp.sum(target * module.apply(variables, tokens, weights))

        return jax.jit(jax.grad(of, argnums=(0, 1, 2)))

    np.testing.assert_allclose(
        short.apply(variables, tokens, weights), plain.apply(variables, tokens, weights), atol=2e-5
    )
    one, other = (total(module)(variables, tokens, weights) for module in (short, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-3), one, other)


def test_what_the_gate_before_the_norm_lets_through():
    """docs/keyre_id.md: of a weight before a norm little but its sign is left; behind the norm all of it."""
    module, variables, tokens, weights = local_branch("pre_norm")

    def parts(w):
        return np.asarray(module.apply(variables, tokens, w))

    found, order = parts(weights), np.random.default_rng(3).permutation(PATCHES)
    np.testing.assert_allclose(parts(3 * weights), found, atol=1e-4)
    assert np.abs(parts(-weights) - found).max() > 0.1
    moved = jnp.concatenate([tokens[:, :1], tokens[:, 1:][:, order]], 1)
    np.testing.assert_allclose(module.apply(variables, moved, weights[:, :, order]), found, atol=1e-5)
    none = parts(0 * weights)
    np.testing.assert_allclose(none, np.broadcast_to(none[:, :1], none.shape), atol=1e-6)
    np.testing.assert_allclose(parts(0 * weights - 1), parts(0 * weights - 0.2), atol=1e-4)
    soft = PartAttention(WIDE, "post_norm")
    one, thrice = (np.asarray(soft.apply(variables, tokens, w)) for w in (weights, 3 * weights))
    assert np.abs(one - thrice).max() > 0.05


# Parameters, schedule -------------------------------------------------------------------------------------------------


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_parameters_at_full_size():
    """docs/keyre_id.md: 625 identities and 6 cameras of MARS, without the parts that the released code never calls."""
    tower = imagenet_config("ViT-B/16", (256, 128))
    network = KeyReIDNetwork(tower, 4, 625, 6, 3.0, "both", 6, "paper", "pre_norm", True, True)
    wide = {"frames": jnp.zeros((CLIPS, 4, 256, 128, 3)), "frame_mask": jnp.ones((CLIPS, 4), bool)}
    register_batch()
    batch = jax.eval_shape(lambda: make_batch().replace(**wide))
    weights = jax.ShapeDtypeStruct((CLIPS, 6, 128), jnp.float32)
    shapes = jax.eval_shape(lambda b, w: network.init(jax.random.key(0), b, w, method="train_outputs"), batch, weights)
    params = shapes["params"]
    # The published total without block 11, a classifier of 1000 classes and a norm that are never called, and without
    # the shifts of the seven necks, which stay 0: 768 + 6 · 3072.
    assert count(params) == 219_137_769 - 7_087_872 - 769_000 - 1_536 - 19_200
    assert count(params["local_branch"]) == 113_292_288 and count(params["local_branch"]["block"]) == 113_286_144
    assert count(params["temporal"]) == 197_633
    assert sum(count(neck["classifier"]) for neck in params["necks"].values()) == 12_000_000
    block = jax.eval_shape(Block(tower).init, jax.random.key(0), jnp.zeros((1, 2, 768)))
    assert count(block) == 7_087_872


def test_the_learning_rate_of_the_paper():
    config = make_config("mars")
    optimizer, schedule = make_optimizer(config.optimizer), Schedule(**config.schedule)
    expected = {1: 0.001664, 4: 0.006416, 5: 0.00796585, 60: 0.004008, 119: 1.7368e-5, 120: 1.6e-5}
    biases = {1: 0.003264, 5: 0.01593163}
    for path, values in (("image_tower/block_00/mlp/up/kernel", expected), ("temporal/score/bias", biases)):
        group = find_group(path, optimizer.groups)
        rate = learning_rate(schedule, 120, group.lr)
        for epoch, value in values.items():
            progress = Progress(step=0, epoch=np.float32(epoch - 0.5), fraction=0)  # constant within the epoch
            assert float(rate(progress)) == pytest.approx(value, rel=1e-4)


def test_the_local_block_starts_as_pytorch_draws():
    method = make_method()
    block = jax.jit(method.init)(jax.random.key(0), make_batch())["params"]["local_branch"]["block"]
    for layer, inputs in ((block["attention"]["key"], 48), (block["mlp"]["down"], 192)):
        for leaf in layer.values():
            assert np.abs(leaf).max() <= inputs**-0.5 and np.abs(leaf).max() > 0.8 * inputs**-0.5
    np.testing.assert_array_equal(block["norm_1"]["scale"], 1)


# Losses ---------------------------------------------------------------------------------------------------------------


def loss_of(method, batch, variables, memory):
    return jax.jit(method.loss)(variables, memory, batch, context())


def test_the_attention_loss_looks_at_erased_frames_alone():
    method = make_method()
    variables = variables_for(method)
    variables["params"]["temporal"]["score"]["bias"] += 1.0
    memory = method.init_memory()
    out = loss_of(method, make_batch(erased=False), variables, memory)
    assert float(out.metrics["loss_attention"]) == 0
    batch = make_batch()
    out = loss_of(method, batch, variables, memory)
    weights = method.weights(batch, jax.random.key(0))

    @jax.jit
    def attended(params):
        given = variables | {"params": params}
        found, _ = method.network.apply(given, batch, weights, True, mutable="batch_stats")
        return found["attention"]

    attention = np.asarray(attended(variables["params"]))
    assert attention.shape == (CLIPS, FRAMES) and attention.min() >= 0 and attention.max() > 0
    erased = np.asarray(batch.extras["erased"])
    assert float(out.metrics["loss_attention"]) == pytest.approx((attention * erased).sum(1).mean(), rel=1e-5)
    # Alone, it moves nothing but its convolutions and what is below.
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(attended(params) * erased)))(variables["params"])
    moved = {path for path, size in family.largest(gradient).items() if size > 0}
    assert {path.split("/")[0] for path in moved} == {"image_tower", "camera_table", "temporal"}
    assert "temporal/reduce/kernel" in moved


def test_frames_at_the_ends_of_a_clip_see_fewer_neighbours():
    module = TemporalAttention()
    frames = jnp.broadcast_to(jnp.linspace(0.5, 1.5, 24), (1, 4, 24))
    variables = filled(module.init, frames, scale=3.0)
    variables["params"]["score"]["kernel"] = jnp.abs(variables["params"]["score"]["kernel"])
    feature, a = module.apply(variables, frames)
    assert a[0, 1] == pytest.approx(float(a[0, 2]), rel=1e-5) and a[0, 0] < a[0, 1] > a[0, 3]
    np.testing.assert_allclose(feature[0], frames[0, 0], rtol=1e-5)  # weights add up to one


def test_losses_are_weighted_as_published():
    """0.75 of the clip's and 0.25 of the parts' mean; from each term by itself."""
    method, batch = make_method(), make_batch()
    variables, memory = variables_for(method), method.init_memory()
    out = loss_of(method, batch, variables, memory)
    metrics = {name: float(value) for name, value in out.metrics.items()}
    expected = metrics["loss_identity"] + metrics["loss_triplet"] + metrics["loss_attention"]
    assert float(out.total) == pytest.approx(expected + 5e-4 * metrics["loss_center"], rel=1e-6)
    one = {name: loss_of(make_method(branches=name), batch, variables, memory) for name in ("global", "local")}
    for loss in ("loss_identity", "loss_triplet", "loss_center"):
        shared = 0.75 * float(one["global"].metrics[loss]) + 0.25 * float(one["local"].metrics[loss])
        assert metrics[loss] == pytest.approx(shared, rel=1e-4)


def test_centres_move_by_their_gradient():
    """By hand: 0.5 times 0.75 (clip) or 0.25 / 6 (a part) of 2 (c − f) / B, summed over the identity's clips."""
    method, batch = make_method(), make_batch()
    variables, memory = variables_for(method), method.init_memory()
    assert {name: value.shape for name, value in memory.items()} == {"global": (PEOPLE, 24), "local": (PEOPLE, 48)}
    out = loss_of(method, batch, variables, memory)
    weights = method.weights(batch, jax.random.key(0))
    found, _ = method.network.apply(variables, batch, weights, True, mutable="batch_stats")
    label = np.asarray(batch.identity)
    for name, features, share in (
        ("global", np.asarray(found["global"])[:, None], 0.75),
        ("local", np.asarray(found["parts"]), 0.25 / 6),
    ):
        expected = np.asarray(memory[name], np.float64).copy()
        for person in range(PEOPLE):
            away = expected[person] - features[label == person].astype(np.float64)
            expected[person] -= 0.5 * share * 2 * away.sum((0, 1)) / CLIPS
        np.testing.assert_allclose(out.memory[name], expected, atol=1e-5)
    still = loss_of(make_method(**{"center.local": False}), batch, variables, memory)
    np.testing.assert_array_equal(still.memory["local"], memory["local"])
    assert np.abs(still.memory["global"] - memory["global"]).max() > 0


def test_center_loss_by_hand():
    features, centers = jnp.array([[1.0, 0], [0, 2], [9, 9]]), jnp.array([[0.0, 0], [0, 1]])
    found = center_loss(features, centers, jnp.array([0, 1, 1]), jnp.array([True, True, False]))
    assert float(found) == pytest.approx((1 + 1) / 2)


# Switches -------------------------------------------------------------------------------------------------------------


def parts_of(batch=None, variables=None, **changes):
    method = make_method(**changes)
    batch = make_batch() if batch is None else batch
    variables = variables_for(method) if variables is None else variables
    weights = method.weights(batch, jax.random.key(0))
    return np.asarray(method.network.apply(variables, batch, weights, train=False)["parts"])


def test_switches_change_what_they_should():
    variables = variables_for(make_method())
    usual = parts_of(variables=variables)
    for name, changes, same in (
        ("shift and shuffle is no change where weights follow", {"local.tcss": False}, True),
        ("nor is the short form", {"local.fast": False}, True),
        ("the published layout", {"local.layout": "released"}, False),
        ("a soft gate", {"local.gate": "post_norm"}, False),
        ("no key points", {"keypoints.use": False}, False),
        ("points shifted", {"keypoints.noise": 0.5}, False),
        ("points of other parts", {"keypoints.shuffle": True}, False),
        ("no point is sure enough", {"keypoints.threshold": 1.0}, False),
    ):
        difference = np.abs(parts_of(variables=variables, **changes) - usual).max()
        assert (difference < 1e-4) == same, (name, difference)
    blind = parts_of(variables=variables, **{"keypoints.use": False})
    np.testing.assert_allclose(blind, np.broadcast_to(blind[:, :1], blind.shape), atol=1e-5)


def test_points_are_moved_in_arrays_of_numpy_as_well():
    """In which a state without values is described, before a checkpoint is read."""
    method, batch = make_method(**{"keypoints.noise": 0.1, "keypoints.shuffle": True}), make_batch()
    plain = dataclasses.replace(batch, extras=jax.tree.map(np.asarray, batch.extras))
    one, other = (method.weights(b, jax.random.key(1)) for b in (batch, plain))
    np.testing.assert_array_equal(one, other)


def test_shift_and_shuffle_leave_the_published_weights_behind():
    """Row i of the shuffled ones is weighted with patch i's weight; in the paper's layout with its own."""
    weights = jnp.asarray(np.random.default_rng(2).choice([-1.0, 1.0], (CLIPS, 6, PATCHES)), jnp.float32)
    variables, found = variables_for(make_method()), {}
    for layout in ("paper", "released"):
        for tcss in (True, False):
            network = make_method(**{"local.layout": layout, "local.tcss": tcss}).network
            found[layout, tcss] = np.asarray(network.apply(variables, make_batch(), weights, train=False)["parts"])
    np.testing.assert_allclose(found["paper", True], found["paper", False], atol=1e-5)
    assert np.abs(found["released", True] - found["released", False]).max() > 0.05


@pytest.mark.parametrize("count", [3, 4])
def test_fewer_parts(count):
    assert parts_of(**{"local.parts": count}).shape == (CLIPS, count, 48)


@pytest.mark.parametrize("branches", ["global", "local"])
def test_one_branch_alone(branches):
    method, batch = make_method(branches=branches), make_batch()
    variables = variables_for(method)
    outputs = method.embed(variables, {}, batch)
    assert method.evaluation().outputs == ("feature", branches)
    np.testing.assert_array_equal(outputs["feature"], outputs[branches])
    assert ("local_branch" in variables["params"]) == (branches == "local")
    assert ("temporal" in variables["params"]) == (branches == "global")
    assert ("keypoints" in method.extras("test")) == (branches == "local")
    loss_of(method, batch, variables, method.init_memory())


def test_the_feature_is_both_branches_and_parts_count_less():
    method, batch = make_method(), make_batch()
    variables = variables_for(method)
    outputs = method.embed(variables, {}, batch)
    assert outputs["feature"].shape == (CLIPS, 24 + 6 * 48)
    np.testing.assert_array_equal(outputs["feature"], np.concatenate([outputs["global"], outputs["local"]], axis=1))
    found = method.network.apply(variables, batch, method.weights(batch, jax.random.key(0)), False)
    stats, scale = (
        variables[kind]["necks"]["necks_torso"]["norm"] for kind in ("batch_stats", "params")
    )  # fmt: skip
    normed = (np.asarray(found["parts"][:, 1]) - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * scale["scale"]
    np.testing.assert_allclose(outputs["local"][:, 48:96], normed / 6, atol=1e-5)


def test_a_camera_that_training_did_not_know_is_the_mean_of_those_it_knew():
    method, batch = make_method(), make_batch()
    variables = variables_for(method)
    table = variables["params"]["camera_table"]
    mean = {**variables, "params": variables["params"] | {"camera_table": jnp.broadcast_to(table.mean(0), table.shape)}}
    unknown = batch.replace(camera_index=jnp.full(CLIPS, -1))
    one, other = method.embed(variables, {}, unknown), method.embed(mean, {}, batch)
    np.testing.assert_allclose(one["feature"], other["feature"], atol=1e-5)
    assert np.abs(one["feature"] - method.embed(variables, {}, batch)["feature"]).max() > 1e-3


def test_frames_without_points_are_taken_as_they_are():
    """A distractor whose key points nobody found has parts of which nothing is weighted: finite, and equal."""
    batch = make_batch()
    nothing = {"keypoints": jnp.zeros((CLIPS, FRAMES, 17, 3)), "keypoints_mask": jnp.zeros((CLIPS, FRAMES), bool)}
    found = parts_of(batch.replace(extras=batch.extras | nothing))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, np.broadcast_to(found[:, :1], found.shape), atol=1e-5)


def test_augmentation_moves_key_points_with_what_they_weigh():
    """A bright patch with a key point on it: weights of the patch where it is after crop and flip, for each frame."""
    batch = make_batch()
    rng = np.random.default_rng(5)
    row, column = rng.integers(8, 24, (CLIPS, FRAMES)), rng.integers(4, 12, (CLIPS, FRAMES))
    frames = np.zeros((CLIPS, FRAMES, 32, 16, 3), np.float32)
    points = np.zeros((CLIPS, FRAMES, 17, 3), np.float32)
    for clip, frame in np.ndindex(CLIPS, FRAMES):
        frames[clip, frame, row[clip, frame], column[clip, frame]] = 1
        points[clip, frame, 0] = (column[clip, frame] + 0.5) / 16, (row[clip, frame] + 0.5) / 32, 1
    batch = batch.replace(frames=jnp.asarray(frames), extras=batch.extras | {"keypoints": jnp.asarray(points)})
    options = Augmentation(crop=3, flip=0.5, per_frame=("crop", "flip"))
    moved = augment(batch, jax.random.key(1), options, (0.0,) * 3)
    maps = np.asarray(heat_maps(moved.extras["keypoints"], (32, 16)))[:, :, 0]
    for clip, frame in np.ndindex(CLIPS, FRAMES):
        shown = np.asarray(moved.frames)[clip, frame, :, :, 0]
        assert shown.max() == 1
        # The peak is on the pixel that shows the dot.
        assert maps[clip, frame][np.unravel_index(shown.argmax(), shown.shape)] == 1


# Values that do not go together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"evaluation.seq_len": 6}, ("config.evaluation.seq_len=6", "config.batch.seq_len=2")),
        ({"evaluation.clip_sampling": "packed"}, ("config.evaluation.clip_sampling",)),
        ({"local.parts": 5}, ("config.local.parts=5", "3")),
        ({"local.layout": "raw"}, ("config.local.layout", "released")),
        ({"keypoints.noise": -0.1}, ("config.keypoints.noise",)),
    ],
)
def test_values_that_do_not_go_together_are_told(changes, named):
    with refuses(ValueError, *named):
        check_config(make_config(**changes))


# Cameras at test time -------------------------------------------------------------------------------------------------


def test_what_cameras_of_frames_in_place_of_tracklets_would_score():
    """The released evaluation lists a camera for every frame and an identity for every tracklet, so that tracklet n is
    taken for one of the camera of frame n: most matches of the query's own camera stay in the ranking. Features that
    tell cameras apart better than people then look nearly perfect."""
    rng = np.random.default_rng(0)
    identity, camera = (x.reshape(-1) for x in np.meshgrid(np.arange(60), np.arange(4), indexing="ij"))
    order = rng.permutation(3 * len(identity))
    identity, camera = np.repeat(identity, 3)[order], np.repeat(camera, 3)[order]
    people, places = rng.normal(size=(60, 32)), rng.normal(size=(60, 4, 32))
    features = people[identity] + 3.0 * places[identity, camera] + 0.5 * rng.normal(size=(len(identity), 32))
    length = rng.integers(10, 120, len(identity))
    _, query = np.unique(identity * 4 + camera, return_index=True)
    gallery = np.setdiff1d(np.arange(len(identity)), query)

    def of_frames(rows):
        return np.repeat(camera[rows], length[rows])[: len(rows)]

    def rank_1(of_query, of_gallery):
        rows = (retrieval.Rows(identity=identity[i], camera=c) for i, c in ((query, of_query), (gallery, of_gallery)))
        return retrieval.score(features[query], features[gallery], *rows, "market", "euclidean").rank[1]

    right = rank_1(camera[query], camera[gallery])
    wrong = rank_1(of_frames(query), of_frames(gallery))
    unfiltered = rank_1(np.zeros(len(query), int), np.ones(len(gallery), int))
    assert right < 60 and unfiltered > 95 and wrong > unfiltered - 10


# Released weights -----------------------------------------------------------------------------------------------------


@pytest.fixture
def released(tmp_path, data_dir, tiny):
    shapes = released_files.keyre_id(width=24, depth=3, patch=8, patches=PATCHES, frames=FRAMES, cameras=4)
    tensors = released_files.random_tensors(shapes)
    for name in [name for name in tensors if name.startswith("b2.0.")]:
        tensors[name] = tensors[f"block1.{name.removeprefix('b2.0.')}"]
    path = tmp_path / "keyre.safetensors"

    def write(**changed):
        stored = {name: value for name, value in (tensors | changed).items() if value is not None}
        released_files.safetensors.numpy.save_file(stored, path)
        return path, stored

    return write


AS_RELEASED = {"dataset.config": "tiny", "local.layout": "released"}


def test_released_weights_compute_what_the_released_code_computes(released, tmp_path, data_dir):
    path, tensors = released()
    lines = import_released(make_config(**AS_RELEASED), [path], tmp_path / "run", data_dir)
    record = json.loads((tmp_path / "run" / "imported.json").read_text())
    assert record["used"] + len(record["unused"]) == len(tensors) and not record["drawn"]
    unused = {name.split(".")[0] + "." + name.split(".")[1] for name in record["unused"]}
    assert unused == {"base.norm", "base.fc", "base.blocks"} | {
        f"bottleneck{k}.num_batches_tracked" for k in ("", *(f"_{i}" for i in range(1, 7)))
    }
    assert any("5 identities" in line for line in lines)
    model = open_model(tmp_path / "run")
    state, frozen, *_ = restore_judged(model)
    batch = make_batch().replace(camera_index=jnp.arange(CLIPS) % 4)
    found = model.method.embed(variables_of(state, frozen), state.memory, batch)["feature"]
    points = np.asarray(batch.extras["keypoints"], np.float64) * [16, 32, 1]
    expected = reference.feature(tensors, np.asarray(batch.frames), np.arange(CLIPS) % 4, points, patch=8, heads=4)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_files_that_are_not_as_released_are_refused(released, tmp_path, data_dir):
    path, tensors = released()
    with refuses(ValueError, path, "--config.local.layout=released"):
        import_released(make_config(**{"dataset.config": "tiny"}), [path], tmp_path / "run", data_dir)
    other = tensors["b2.0.attn.proj.weight"] + 1
    path, _ = released(**{"b2.0.attn.proj.weight": other})
    with refuses(ValueError, "b2.0.attn.proj.weight"):
        import_released(make_config(**AS_RELEASED), [path], tmp_path / "run", data_dir)
    assert not (tmp_path / "run").exists()
