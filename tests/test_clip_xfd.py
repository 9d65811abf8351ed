"""CLIP for extreme far distance: what trains and what stays, weights of frames, prompts, published sizes."""

import dataclasses
import functools
import importlib

import family
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import CLIPS, make_batch, make_method, random_variables
from messages import refuses

from jaxreid import retrieval
from jaxreid.backbones.clip import vision_config
from jaxreid.backbones.vit import PatchEmbedding
from jaxreid.errors import UserError
from jaxreid.layers.adapters import TemporalAdapter
from jaxreid.layers.prompts import GeometryPrompts
from jaxreid.layers.temporal import AttentionPooling
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.image_text import supervised_contrastive
from jaxreid.losses.triplet import batch_hard_triplet
from jaxreid.methods.class_banks import BankMemory
from jaxreid.methods.method import Evaluation
from jaxreid.optimizers import Progress, Schedule, find_group, learning_rate, split_trained, transformation
from jaxreid.run.config_values import check_config
from jaxreid.training.steps import init_train_state

CAMERAS = 3


def config(preset="", **changes):
    found = importlib.import_module("configs.clip_xfd").get_config(preset)
    found.update_from_flattened_dict(changes)
    return found


@pytest.fixture(autouse=True, scope="module")
def small_towers():
    with pytest.MonkeyPatch.context() as patch:
        family.small_towers(patch)
        yield


def make(**changes):
    return make_method("clip_xfd", **{"adapters.width": 8, "platform_prompts.blocks": 1, **changes})


def memory_of(method):
    return BankMemory(jax.random.normal(jax.random.key(3), method.init_memory().bank.shape))


@functools.cache
def drawn():
    """(the method as it is, random variables, the gradient of its main loss in all parameters)."""
    method = make()
    variables = random_variables(method)
    gradient = jax.jit(jax.grad(family.loss_of(method.stages()[-1]), has_aux=True))
    found = gradient(variables["params"], variables["batch_stats"], memory_of(method), make_batch())[0]
    return method, variables, found


@functools.cache
def embedder():
    method, variables, _ = drawn()
    embed = jax.jit(lambda variables, batch: method.embed(variables, None, batch)["feature"])
    return lambda batch, changed=variables: embed(changed, batch)


def with_params(variables, **changed):
    return {**variables, "params": {**variables["params"], **changed}}


# ------------------------------------------------------------------------------------------------------- golden numbers


def pooled(x, v, **options):
    """(weights, pooled) of one clip x [T, D]."""
    module, mask = AttentionPooling(**options), jnp.ones((1, len(x)), bool)
    variables = {"params": {"score": {"kernel": jnp.asarray(v, jnp.float32)[:, None]}}}
    x = jnp.asarray(x, jnp.float32)[None]
    return module.apply(variables, x, mask, method="weights")[0], module.apply(variables, x, mask)[0]


def test_attention_over_frames():
    x = np.array([[1, 0], [0, 1], [0, 0]])
    weights, feature = pooled(x, (2, 0))
    np.testing.assert_allclose(weights, (0.786986, 0.106507, 0.106507), atol=1e-6)
    np.testing.assert_allclose(feature, (0.786986, 0.106507), atol=1e-6)
    np.testing.assert_allclose(pooled(x, (0, 0))[1], (1 / 3, 1 / 3), atol=1e-6)
    # A shift of all scores, which the released code learns, changes nothing: there is none here.
    shifted = np.concatenate([x, np.ones((3, 1))], axis=1)
    np.testing.assert_allclose(pooled(shifted, (2, 0, 7))[0], weights, atol=1e-6)
    np.testing.assert_allclose(pooled(np.ones((4, 2)), (2, 1))[0], np.full(4, 0.25), atol=1e-6)
    assert pooled(x[:1], (2, 0))[0].tolist() == [1.0]
    # Twice as warm is half the score; of a direction, length says nothing.
    np.testing.assert_allclose(pooled(x, (4, 0), temperature=2.0)[0], weights, atol=1e-6)
    np.testing.assert_allclose(pooled(3 * x, (2, 0), unit=True)[0], weights, atol=1e-6)


def test_losses():
    rows = jnp.eye(2)
    texts = jnp.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    # Three texts for two clips: a third clip that does not count stands in their place.
    three = jnp.concatenate([rows, jnp.zeros((1, 2))])
    found = supervised_contrastive(three, texts, jnp.array([0, 1, 0]), jnp.ones(3, bool))
    by_hand = [np.log(np.exp(2) + 1 + np.e) - 1.5, np.log(2 + np.e) - 1, np.log(3.0)]
    np.testing.assert_allclose(found, np.mean(by_hand), rtol=1e-6)
    assert np.mean(by_hand[:2]) == pytest.approx(0.7295253, abs=1e-6)
    people = jnp.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], jnp.float32)
    found = batch_hard_triplet(people, jnp.array([0, 0, 1, 1]), jnp.ones(4, bool), 0.3, "cosine")
    assert float(found) == pytest.approx(0.28, abs=1e-6)
    assert float(cross_entropy(jnp.array([[2.0, 0, -1]]), jnp.array([0]), jnp.ones(1, bool), 0.1)) == pytest.approx(
        0.3365127
    )


@pytest.mark.parametrize(
    ("constants", "wanted"),
    [
        (
            (2, 1, 0.3),
            [[0.352942, 0.577816, 0.754254, 0.947906, 0.85], [0.947906, 0.897394, 0.827927, 0.343391, 0.52523]],
        ),
        (
            (2, 2, 0.3),
            [[0.004558, 0.367876, 0.614632, 0.947906, 0.85], [0.947906, 0.897394, 0.827927, 0.004558, 0.333524]],
        ),
        ((2, 2, 1.0), [[0.015192, 0.060307, 0.180848, 0.826352, 0.5]]),
        ((28, 6, 0.28), [[0.004254, 0.016886, 0.050637, 0.303935, 0.212557]]),
    ],
)
def test_re_ranking(constants, wanted):
    def at(*degrees):
        angle = np.radians(degrees)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    # At 20° and 60° rounding would decide which of two neighbours is nearer.
    query, gallery = at(0, 90), at(10, 20.001, 35, 80, 60.001)
    k1, k2, weight = constants
    options = Evaluation("packed", 4, rerank_k1=k1, rerank_k2=k2, rerank_lambda=weight)
    found = retrieval.KReciprocal(query, gallery, **options.rerank_options)(np.arange(2), np.arange(5))
    np.testing.assert_allclose(found[: len(wanted)], wanted, atol=3e-5)
    # Of features as they are, whose lengths count: as released. Of unit ones, the distance is twice the other one.
    raw = dataclasses.replace(options, normalize=False, rerank_raw=True)
    same = retrieval.KReciprocal(query, gallery, **raw.rerank_options)(np.arange(2), np.arange(5))
    np.testing.assert_allclose(same[: len(wanted)], wanted, atol=3e-5)
    longer = retrieval.KReciprocal(query, gallery * np.arange(1.0, 6.0)[:, None], **raw.rerank_options)
    assert np.abs(longer(np.arange(2), np.arange(5)) - found).max() > 0.01


# ------------------------------------------------------------------------------------------------------- full size


@pytest.mark.parametrize(
    ("preset", "tower", "block", "adapters", "prompts", "width", "joint", "last"),
    [
        ("detreidx", 303_869_952, 12_596_224, 31_543_296, 110_592, 1024, 768, 4),
        ("detreidx_b16", 86_140_416, 7_087_872, 12_619_776, 82_944, 768, 512, 2),
    ],
)
def test_parameters_at_full_size(preset, tower, block, adapters, prompts, width, joint, last):
    """The tower at its frames, a block, all adapters, prompts of three cameras; and what trains."""
    made = config(preset)
    size, people = (made.frames.height, made.frames.width), 10
    info = dataclasses.replace(family.make_info(), num_classes=people, frame_size=size, cameras=np.arange(CAMERAS))
    method = family.find_method("clip_xfd")(made, info)
    batch = make_batch().replace(frames=jnp.zeros((CLIPS, 1, *size, 3)), frame_mask=jnp.ones((CLIPS, 1), bool))
    params = jax.eval_shape(method.init, jax.random.key(0), batch)["params"]
    leaves = dict(family.flatten_paths(params))
    sizes = {path: leaf.size for path, leaf in leaves.items()}

    def total(*starts, without="beside_"):
        return sum(size for path, size in sizes.items() if path.startswith(starts) and without not in path)

    assert (total("image_tower"), total("image_tower/block_00")) == (tower, block)
    assert sum(size for path, size in sizes.items() if "beside_" in path) == adapters
    assert total("platform_prompts") == prompts
    assert (total("pool/"), total("pool_joint/")) == (width, joint)  # the release has a shift beside each
    assert total("text/own", "text/before", "text/after") == joint * (4 * people + 16)
    trained, _ = split_trained(params, method.stages()[-1].updates[0].optimizer)
    heads = (people + 1) * (width + joint)  # classifiers, and the scales of their batch norms
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(trained)) == last * block + adapters + prompts + heads + width + joint
    )
    assert method.joint_width + method.image.width == {"detreidx": 1792, "detreidx_b16": 1280}[preset]
    # What is frozen and used in half precision alone is held in it; what trains, norms and positions are not.
    half = {path for path, leaf in leaves.items() if leaf.dtype == jnp.bfloat16}
    assert {"image_tower/block_00/mlp/up/kernel", "image_tower/patch_embedding/kernel"} <= half
    assert not {path for path in half if "norm" in path or "beside" in path or "position" in path or "token" in path}
    assert not half & set(family.paths(trained))


def test_all_pixels_are_seen_by_patches_of_14():
    whole, cut = (vision_config("ViT-L/14", size, width=8, heads=2) for size in ((252, 126), (256, 128)))
    assert whole.grid == cut.grid == (18, 9) and whole.tokens == 163
    frames = jax.random.normal(jax.random.key(0), (1, 256, 128, 3))
    module = PatchEmbedding(cut)
    variables = module.init(jax.random.key(1), frames)
    found = module.apply(variables, frames)
    np.testing.assert_array_equal(module.apply(variables, frames.at[:, 252:].add(9.0).at[:, :, 126:].add(9.0)), found)
    np.testing.assert_array_equal(PatchEmbedding(whole).apply(variables, frames[:, :252, :126]), found)


def test_the_recipe_of_the_first_author_s_code():
    c = config("detreidx_b16")
    first, batch, test = c.stage1, c.batch, c.evaluation
    assert (c.backbone.name, c.frames.height, c.frames.width) == ("ViT-B/16", 256, 128)
    assert (first.batch_size, first.epochs, first.lr, first.schedule.warmup_epochs, first.augment) == (
        48,
        50,
        3.5e-4,
        0,
        True,
    )
    assert (batch.num_identities, batch.num_instances, batch.seq_len, batch.clip_sampling) == (3, 8, 16, "floor")
    assert (c.epochs, c.optimizer.name, c.optimizer.lr, c.optimizer.weight_decay) == (20, "adam", 1e-4, 2.5e-4)
    assert (c.platform_prompts.blocks, c.platform_prompts.length, c.unfreeze_last) == (9, 4, 2)
    jitter = c.augment
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue, jitter.gamma) == (0.1, 0.1, 0.1, 0.05, 0)
    assert (test.flip, test.reranking, test.rerank_k1, test.rerank_k2, test.rerank_lambda) == (
        True,
        "k_reciprocal",
        28,
        6,
        0.28,
    )
    large = config("detreidx")
    assert (large.backbone.name, large.frames.height, large.frames.width) == ("ViT-L/14", 252, 126)
    assert (large.unfreeze_last, large.batch.num_identities, large.stage1.batch_size) == (4, 4, 64)


def test_learning_rates():
    """A cosine from 1e-4 to 1e-6 over 20 epochs, of the last blocks from a tenth of it; biases learn twice as fast."""
    method = make(**{"optimizer.lr": 1e-4})
    optimizer = method.optimizer()
    found = {
        name: find_group(name, optimizer.groups)
        for name in (
            *("image_tower/block_01/mlp/up/kernel", "image_tower/block_01/mlp/up/bias"),
            *("image_tower/block_01/beside_mlp/up/kernel", "pool/score/kernel"),
        )
    }
    assert [round(group.lr, 12) for group in found.values()] == [1e-5, 2e-5, 1e-4, 1e-4]
    assert [group.weight_decay for group in found.values()] == [2.5e-4, 1e-4, 2.5e-4, 2.5e-4]
    schedule = Schedule(**config("detreidx_b16").schedule)
    for lr in (1e-4, 1e-5):
        rate = learning_rate(schedule, 20, lr)
        for epoch in (0, 10, 19):
            wanted = 1e-6 + (lr - 1e-6) * (1 + np.cos(np.pi * epoch / 20)) / 2
            at = Progress(step=jnp.int32(0), epoch=jnp.float32(epoch + 0.5), fraction=jnp.float32(0))
            assert float(rate(at)) == pytest.approx(wanted, rel=1e-5)


# ------------------------------------------------------------------------------------------------------- what trains


def expected(last=(), more=("pool", "platform_prompts", "geometry_prompts")):
    """Whether a parameter is to change in the main stage: adapters, prompts, scores, necks, and blocks `last`."""
    blocks = tuple(f"image_tower/block_{number:02d}/" for number in last)
    return lambda path: "beside_" in path or path.startswith(("necks_", *more, *blocks))


def after_a_step(method, stage, variables, gradient):
    """Paths of the parameters that one step of the optimizer changes."""
    schedule = Schedule(name="constant")
    state, _ = init_train_state(stage, variables, memory_of(method), jnp.int32(0), jax.random.PRNGKey(0))
    update = transformation(stage.updates[0].optimizer, schedule, 1)
    own, _ = split_trained(gradient, stage.updates[0].optimizer)
    changes, _ = update.update(own, update.init(state.params), state.params, progress=family.progress())
    return {path for path, value in family.largest(changes).items() if value > 0}


@pytest.mark.parametrize("last", [0, 1, 2])
def test_exactly_what_is_meant_to_train_changes(last):
    """After one step of the main stage; the loss is the same function whatever trains."""
    _, variables, gradient = drawn()
    method = make(unfreeze_last=last)
    changed = after_a_step(method, method.stages()[-1], variables, gradient)
    meant = {path for path in family.paths(variables["params"]) if expected(range(2 - last, 2))(path)}
    assert changed == meant and {"pool/score/kernel", "pool_joint/score/kernel", "platform_prompts/table"} <= meant


def test_every_gradient_reaches_what_trains_and_no_sentence():
    *_, gradient = drawn()
    found = family.largest(gradient)
    assert {path for path, value in found.items() if path.startswith("text/") and value} == set()
    silent = {path for path, value in found.items() if not value and expected((0, 1))(path)}
    assert {path for path in silent if not path.endswith("key/bias")} == set()  # a softmax does not see that one
    assert not any(path.endswith("norm/bias") and path.startswith("necks_") for path in found)
    # The camera of every clip is known, so every camera's tokens learn.
    assert (np.abs(gradient["platform_prompts"]["table"]).max((0, 2, 3)) > 0).all()


def test_words_alone_change_in_stage_1():
    method, variables, _ = drawn()
    stage = method.stages()[0]
    batch = make_batch().replace(extras={"projected": jax.random.normal(jax.random.key(5), (CLIPS, 8))})
    gradient = jax.jit(jax.grad(family.loss_of(stage), has_aux=True))(
        variables["params"], variables["batch_stats"], memory_of(method), batch
    )[0]
    assert after_a_step(method, stage, variables, gradient) == {"text/own", "text/before", "text/after"}
    assert {path.split("/")[0] for path, value in family.largest(gradient).items() if value} == {"text"}


def test_as_released_neither_blocks_nor_prompts_nor_scores_train():
    """What the released code does, where its filters miss names: scores stay as PyTorch draws them."""
    method = make(released=True)
    params = jax.eval_shape(method.init, jax.random.key(0), make_batch())["params"]
    trained, _ = split_trained(params, method.stages()[-1].updates[0].optimizer)
    meant = {path for path in family.paths(params) if expected(more=())(path)}
    assert set(family.paths(trained)) == meant and {f"necks_{x}/norm/bias" for x in ("last", "projected")} <= meant
    pool = method.shared()["pooling"]()
    v = pool.init(jax.random.key(0), jnp.ones((1, 2, 400)), jnp.ones((1, 2), bool))["params"]["score"]["kernel"]
    assert 0.9 < np.abs(v).max() * 20 <= 1  # uniform within ±1/√inputs


# ------------------------------------------------------------------------------------------------------- what is seen


def test_it_starts_as_the_mean_of_clip_s_features():
    """New adapters and scores do nothing; stage 1 sees the plain tower whatever has become of them."""
    method = make(**{"platform_prompts.blocks": 0, "neck_feat": "before"})
    batch = make_batch()
    fresh = jax.jit(method.init)(jax.random.key(0), batch)
    embed, plain = jax.jit(lambda v: (method.embed(v, None, batch)["feature"], method.plain_features(v, None, batch)))(
        fresh
    )
    np.testing.assert_allclose(embed[:, -8:], plain["projected"], atol=1e-5)
    without = method.network.clone(adapters=type(method.network.adapters)())
    frames = jax.jit(lambda v: without.apply(v, batch, method=lambda net, b: net.tower(b, False)))(fresh)
    np.testing.assert_allclose(embed[:, -8:], frames.projected.mean(1), atol=1e-5)
    np.testing.assert_allclose(embed[:, :-8], frames.last.mean(1), atol=1e-5)
    method, variables, _ = drawn()
    found = jax.jit(lambda v: method.plain_features(v, None, batch)["projected"])(variables)
    frames = jax.jit(lambda v: without.apply(v, batch, method=lambda net, b: net.tower(b, False)))(variables)
    np.testing.assert_allclose(found, frames.projected.mean(1), atol=1e-5)


def test_frames_count_by_their_scores_whatever_their_order():
    _, variables, _ = drawn()
    batch, embed = make_batch(), embedder()
    feature = embed(batch)
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(embed(batch.replace(frames=batch.frames[:, order])), feature, atol=1e-5)
    even = {name: {"score": {"kernel": jnp.zeros((width, 1))}} for name, width in (("pool", 16), ("pool_joint", 8))}
    assert np.abs(embed(batch, with_params(variables, **even)) - feature).max() > 1e-3


def test_prompts_follow_the_camera():
    _, variables, _ = drawn()
    batch, embed = make_batch(), embedder()
    other = batch.replace(camera_index=(batch.camera_index + 1) % CAMERAS)
    assert (np.abs(embed(other) - embed(batch)).max(1) > 1e-4).all()
    none = {"platform_prompts": {"table": jnp.zeros_like(variables["params"]["platform_prompts"]["table"])}}
    same = with_params(variables, **none)
    np.testing.assert_array_equal(embed(other, same), embed(batch, same))


def test_altitude_distance_and_angle():
    """Each value in its bin, an upper end with those below it; what is not known has a row of its own."""
    module = GeometryPrompts(("altitude", "angle"), blocks=1, length=1, width=1)
    geometry = jnp.array([[np.nan, np.nan, np.nan], [0, 10, 30], [6.6, 10, 31], [6.7, 10, 60], [500, 10, 90]])
    shapes = jax.eval_shape(module.init, jax.random.key(0), geometry)["params"]
    assert {name: leaf.shape for name, leaf in shapes.items()} == {"altitude": (1, 19, 1, 1), "angle": (1, 4, 1, 1)}
    params = {"altitude": jnp.arange(19.0).reshape(1, 19, 1, 1), "angle": 100 * jnp.arange(4.0).reshape(1, 4, 1, 1)}
    assert module.apply({"params": params}, geometry).ravel().tolist() == [0, 101, 201, 202, 318]
    assert not any(leaf.any() for leaf in jax.tree.leaves(module.init(jax.random.key(0), geometry)))
    moved = jax.grad(lambda params: module.apply({"params": params}, geometry).sum())(params)["altitude"].ravel()
    np.testing.assert_array_equal(np.flatnonzero(moved), [0, 1, 2, 18])
    method = make(**{"platform_prompts.geometry": ("altitude", "distance", "angle")})
    params = jax.eval_shape(method.init, jax.random.key(0), make_batch())["params"]
    assert params["geometry_prompts"]["distance"].shape == (1, 19, 4, 16)
    trained, _ = split_trained(params, method.stages()[-1].updates[0].optimizer)
    assert trained["geometry_prompts"].keys() == {"altitude", "distance", "angle"}


def test_over_one_frame_an_adapter_is_affine():
    module, x = TemporalAdapter(8, zero_init=False), jax.random.normal(jax.random.key(0), (2, 1, 3, 16))
    variables = module.init(jax.random.key(1), x, jnp.ones((2, 1), bool))
    wanted = x
    for name in ("down", "value", "out", "up"):
        wanted = wanted @ variables["params"][name]["kernel"] + variables["params"][name]["bias"]
    np.testing.assert_allclose(module.apply(variables, x, jnp.ones((2, 1), bool)), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, {"beside_attention", "beside_mlp"}),
        ({"adapters.tokens": False}, {"beside_attention"}),
        ({"adapters.temporal": False}, {"beside_mlp"}),
        ({"adapters.width": 0}, set()),
    ],
)
def test_adapters_of_either_kind(changes, kept):
    params = jax.eval_shape(make(**changes).init, jax.random.key(0), make_batch())["params"]["image_tower"]
    for block in ("block_00", "block_01"):
        assert {name for name in params[block] if name.startswith("beside")} == kept


def test_frozen_weights_in_half_precision_give_the_same_numbers():
    """The towers use them in half precision anyway."""
    method = make(precision="bfloat16")
    shapes = jax.eval_shape(method.init, jax.random.key(0), make_batch())
    half = random_variables(method)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(half)} == {"float32"}
    whole, half = half, jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), half, shapes)
    changed = [path for path, leaf in family.flatten_paths(half["params"]) if leaf.dtype == jnp.bfloat16]
    assert any(path.startswith("image_tower/block_00") for path in changed)
    assert any(path.startswith("text/tower/block_00") for path in changed)
    assert not any(path.startswith("image_tower/block_01") for path in changed)  # it trains
    batch = make_batch().replace(frames=make_batch().frames.astype(jnp.bfloat16))
    loss = jax.jit(family.loss_of(method.stages()[-1]))
    one, other = (loss(v["params"], v["batch_stats"], memory_of(method), batch)[0] for v in (whole, half))
    assert float(one) == float(other)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"unfreeze_last": 5}, ("config.unfreeze_last=5", "4 blocks")),
        ({"platform_prompts.geometry": ("angle",), "platform_prompts.blocks": 0}, ("platform_prompts.geometry",)),
        ({"released": True, "pooling": "mean"}, ("config.released", "config.pooling")),
        ({"evaluation.rerank_raw": True}, ("config.evaluation.rerank_raw", "config.evaluation.normalize")),
        ({"adapters.width": 30}, ("config.adapters.width",)),
    ],
)
def test_values_that_do_not_go_together(changes, named):
    with refuses(UserError, *named):
        check_config(config(**changes))
