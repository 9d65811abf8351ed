"""HAMoBE: sizes of the published network, what pairs and masks must not change, and what each switch does."""

import dataclasses
import importlib
import re
from types import SimpleNamespace

import family
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import released_files
from messages import refuses

from jaxreid.backbones import clip, flops
from jaxreid.backbones.vit import ViTConfig
from jaxreid.devices.parallel import flatten_paths
from jaxreid.layers.cross_frame import offset_sum
from jaxreid.layers.hamobe import EXPERTS, filled_up, pair_cost
from jaxreid.losses.consistency import between_clips, from_mean, within_clips
from jaxreid.losses.pairs import draw_pairs, pair_loss
from jaxreid.methods.method import find_method
from jaxreid.methods.released import hamobe as released
from jaxreid.optimizers import find_group, split_trained
from jaxreid.run.config_values import check_config

TOWER = ViTConfig(width=32, depth=3, heads=4, patch=8, image_size=(24, 24), projection=8)
FRAMES, TOKENS, WIDTH, COUNT, CLIPS = 3, 10, 16, 3, family.CLIPS
SMALL = {
    **{"backbone.name": "small_hamobe", "backbone.checkpoint": "", "frames.height": 24, "frames.width": 24},
    **{"batch.seq_len": FRAMES, "evaluation.seq_len": FRAMES, "extraction_batch_size": 8, "dataset.config": "tiny"},
    **{
        "experts.count": COUNT,
        "experts.normalize": False,
        "decoder.blocks": 2,
        "gates.heads": 8,
        "experts.gait_heads": 12,
    },
}


@pytest.fixture(autouse=True, scope="module")
def small_tower():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(clip.VISION_TOWERS, "small_hamobe", TOWER)
        yield


def make_config(preset="", **changes):
    config = importlib.import_module("configs.hamobe").get_config(preset)
    config.update_from_flattened_dict(({} if preset else SMALL) | changes)
    return config


def make_info(**changes):
    return dataclasses.replace(family.make_info(), **changes)


def make_method(info=None, **changes):
    return find_method("hamobe")(make_config(**changes), info or make_info())


def shapes_of(method):
    return jax.eval_shape(method.init, jax.random.key(0), family.make_batch())


@pytest.fixture(scope="module")
def toy(small_tower):
    """A method, variables of random numbers, and what its network says of clips that meet nobody, themselves, others
    one way and the other, compiled once."""
    method, batch = make_method(), family.make_batch()
    variables = family.filled(method.init, batch, scale=1.0)
    net = method.network
    partner = jnp.array([1, 0, 4, 5, 2, 3, 7, 6])

    def everything(variables):
        def apply(*arguments, **options):
            return net.apply(variables, *arguments, **options)

        found = {
            "alone": apply(batch, False),
            "itself": apply(batch, False, jnp.arange(CLIPS)),
            "others": apply(batch, False, partner),
            "swapped": apply(jax.tree.map(lambda x: x[partner], batch), False, partner),
        }
        f, _ = apply(batch, method="tokens")
        shares = apply(apply(f, method=lambda n, f: n.gate1(f)), f.shape[:3], method="shares")
        streams = apply(f, shares, method=lambda n, f, g: jnp.einsum("...kd,...kj->...jd", n.low_experts(f), g))
        joined = streams.reshape(*streams.shape[:3], -1)
        clips = found["alone"]["clips"]
        seen = apply(joined, partner, method=lambda n, x, p: n.weights(n.gate2(x, p), CLIPS))
        found["gate2"] = apply(seen, clips, batch.valid, False, method="embedding")
        for both in (False, True):
            kept = apply(batch, both, method="pair_features")
            across = jax.tree.map(lambda x: x[partner], kept)
            found[f"pairs {both}"] = apply(kept, across, method="pair_embeddings")
            found[f"with itself {both}"] = apply(kept, kept, method="pair_embeddings")
        return found

    found = jax.device_get(jax.jit(everything)(variables))
    return SimpleNamespace(method=method, batch=batch, variables=variables, partner=np.asarray(partner), found=found)


# Sizes ----------------------------------------------------------------------------------------------------------------

PARAMETERS = {
    "decoder": 12_149_760, "low_experts": 6_299_648, "gate1": 1_717_272, "canonical": 558_465, "appearance": 558_465,
    "gait": 4_204_288, "gate2": 2_001_869, "fc": 1_050_624, "norm": 4_096,
}  # fmt: skip


@pytest.mark.parametrize(("preset", "frames", "total"), [("mevid", 16, 28_544_487), ("ccvid", 8, 28_511_687)])
def test_sizes_of_the_published_network(preset, frames, total):
    method = find_method("hamobe")(make_config(preset), make_info(frame_size=(224, 224), num_classes=104))
    batch = jax.tree.map(lambda x: x[:2], family.make_batch())
    batch = batch.replace(
        frames=jnp.zeros((2, frames, 224, 224, 3), jnp.bfloat16), frame_mask=jnp.ones((2, frames), bool)
    )
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)
    count = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in variables["params"].items()}
    tower = count.pop("image_tower")
    assert tower == 303_966_208
    assert (count.pop("classifier"), count.pop("pair_threshold")) == (104 * 2048, 1)
    count["gate2"] += sum(count.pop(name) for name in ("gate2_tokens", "gate2_frames_0", "gate2_frames_1"))
    expected = dict(PARAMETERS)
    shorter = 16 - frames
    expected["decoder"] -= 4 * shorter * 1024
    expected["gate2"] -= 4 * shorter
    assert count == expected and sum(count.values()) == total
    if preset == "mevid":
        return
    found = jax.eval_shape(lambda v: method.network.apply(v, batch, False), variables)
    assert found["shares"].shape == (2, 8, 257, 8, 3)
    assert found["weights"].shape == (2, 3) and found["feature"].shape == (2, 2048)
    assert found["clips"]["appearance"].shape == (2, 512) and found["frames"]["canonical"].shape == (2, 8, 512)
    # The tower's products are held in the compute type, what trains in float32.
    types = {path: leaf.dtype for path, leaf in flatten_paths(variables["params"])}
    assert types["image_tower/block_00/mlp/up/kernel"] == jnp.bfloat16
    assert {dtype for path, dtype in types.items() if "image_tower" not in path} == {jnp.dtype("float32")}


def test_tensors_of_the_release_are_all_of_the_head():
    """Each row reads what it holds at its full size; nothing of the head is left, but what the release has not."""
    method = find_method("hamobe")(make_config("ccvid"), make_info(frame_size=(224, 224), num_classes=104))
    batch = jax.tree.map(lambda x: x[:2], family.make_batch())
    batch = batch.replace(frames=jnp.zeros((2, 8, 224, 224, 3), jnp.bfloat16), frame_mask=jnp.ones((2, 8), bool))
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)
    expected = {path: leaf.shape for tree in variables.values() for path, leaf in flatten_paths(tree)}
    shapes, found, used = released_files.hamobe(frames=8), {}, set()
    for row in released.RELEASED.rows(method):
        if row.keys[0].startswith("visual."):
            continue
        used |= set(row.keys)
        values = row.read(*(np.broadcast_to(np.float32(0), shapes[key]) for key in row.keys))
        found |= {path: value.shape for path, value in zip(row.paths, values, strict=True)}
    assert used == shapes.keys()
    head = {path: shape for path, shape in expected.items() if not path.startswith("image_tower")}
    assert {path: shape for path, shape in head.items() if path not in released.RELEASED.drawn} == found


# Cheap exact forms ----------------------------------------------------------------------------------------------------


def test_windows_of_the_table_are_what_is_gathered_for_every_pair_of_cells():
    rng, (h, w), dim = np.random.default_rng(0), (3, 4), 5
    attention, table = rng.random((2, h * w, h * w)), rng.normal(size=((2 * h - 1) * (2 * w - 1), dim))
    cell = np.arange(h * w)
    down = cell[:, None] // w - cell // w + h - 1
    across = cell[:, None] % w - cell % w + w - 1
    gathered = table[down * (2 * w - 1) + across]  # [P, P, dim]
    found, slope = jax.value_and_grad(
        lambda table: (offset_sum(jnp.float32(attention), table, (h, w)) ** 2).sum(), has_aux=False
    )(jnp.float32(table))
    expected = np.einsum("npq,pqd->npd", attention, gathered)
    np.testing.assert_allclose(offset_sum(jnp.float32(attention), jnp.float32(table), (h, w)), expected, atol=1e-5)
    assert float(found) == pytest.approx((expected**2).sum(), rel=1e-5)
    by_pair = 2 * np.einsum("npq,npd->pqd", attention, expected)
    by_row = np.zeros_like(table)
    np.add.at(by_row, down * (2 * w - 1) + across, by_pair)
    np.testing.assert_allclose(slope, by_row, rtol=1e-4, atol=1e-4)


def test_clips_are_filled_with_their_own_frames():
    frames = jnp.arange(12.0).reshape(3, 4, 1)
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 0, 0]], bool)
    np.testing.assert_array_equal(filled_up(frames, mask)[..., 0], [[0, 1, 2, 3], [4, 5, 6, 4], [9, 9, 9, 9]])


# Gates ----------------------------------------------------------------------------------------------------------------


def test_shares_and_weights_sum_to_one(toy):
    alone = toy.found["alone"]
    assert alone["shares"].shape == (CLIPS, FRAMES, TOKENS, COUNT, 3) and alone["weights"].shape == (CLIPS, 3)
    np.testing.assert_allclose(alone["shares"].sum(axis=3), 1, atol=1e-6)
    np.testing.assert_allclose(alone["weights"].sum(axis=1), 1, atol=1e-6)
    assert alone["shares"].std(axis=3).min() > 1e-4 and alone["weights"].std() > 1e-4  # they are not all alike


def test_a_clip_that_meets_itself_sees_what_it_sees_alone(toy):
    for name in ("feature", "weights", "shares"):
        np.testing.assert_allclose(toy.found["itself"][name], toy.found["alone"][name], atol=1e-5)
        assert np.abs(toy.found["others"][name] - toy.found["alone"][name]).max() > 1e-3


def test_swapped_clips_swap_what_comes_out(toy):
    for name in ("feature", "weights", "shares"):
        swapped = toy.found["swapped"][name]
        np.testing.assert_allclose(swapped, toy.found["others"][name][toy.partner], atol=1e-6)


def test_pairs_from_what_is_kept_are_those_of_the_network(toy):
    """Row by row: both gates, or the second alone while the first and the experts saw nobody."""
    for both, expected in ((True, toy.found["others"]["feature"]), (False, toy.found["gate2"])):
        found, weights = toy.found[f"pairs {both}"]
        np.testing.assert_allclose(found[:CLIPS], expected, atol=1e-5)
        np.testing.assert_allclose(found[CLIPS:], expected[toy.partner], atol=1e-5)
        assert weights.shape == (2 * CLIPS, 3)
        found, _ = toy.found[f"with itself {both}"]
        np.testing.assert_allclose(found, np.tile(toy.found["alone"]["feature"], (2, 1)), atol=1e-5)
    np.testing.assert_allclose(toy.found["pairs True"][1][:CLIPS], toy.found["others"]["weights"], atol=1e-6)


@pytest.mark.parametrize("mode", ["pair_gate2", "pair_full"])
def test_scores_of_pairs_are_symmetric_cosines_and_cost_what_is_said(toy, mode):
    method = make_method(**{"pair.mode": mode})
    kept = jax.eval_shape(lambda v: method.pair_features(v, {}, toy.batch), toy.variables)
    assert {x.shape[0] for x in jax.tree.leaves(kept)} == {CLIPS} and isinstance(kept, dict)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), kept)
    counted = flops.count(lambda v, q, g: method.pair_score(v, {}, q, g), toy.variables, one, one)
    assert method.pair_cost == counted
    embeddings, _ = toy.found[f"pairs {mode == 'pair_full'}"]
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores = (unit[:CLIPS] * unit[CLIPS:]).sum(1)
    np.testing.assert_allclose(scores, scores[toy.partner], atol=1e-6)
    assert scores.max() < 1 - 1e-3


def test_costs_at_full_size():
    """The second gate alone: 2 clips × 8 frames × 257 × 257 products of 512 and of 3 · 8 channels, and little else."""
    method = find_method("hamobe")(make_config("ccvid"), make_info(frame_size=(224, 224)))
    attention = 2 * 2 * 8 * 257**2 * (512 + 24)
    assert attention < pair_cost(method.network_config, False) < 1.01 * attention
    assert pair_cost(method.network_config, True) > 20 * attention


# Pairs in training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("people", "instances", "invalid"), [(12, 4, 0), (8, 2, 3), (4, 4, 1), (1, 4, 0), (6, 1, 0)])
def test_half_of_the_clips_meet_one_of_their_own_person(people, instances, invalid):
    label = np.random.default_rng(0).permutation(np.repeat(np.arange(people) * 7, instances))
    valid = np.arange(len(label)) >= invalid
    draw = jax.jit(lambda key: draw_pairs(key, jnp.asarray(label), jnp.asarray(valid)))
    met = set()
    for seed in range(20):
        partner = np.asarray(draw(jax.random.key(seed)))
        rows = np.arange(len(label))
        np.testing.assert_array_equal(partner[partner], rows)
        np.testing.assert_array_equal(partner[~valid], rows[~valid])
        alone, count = (partner == rows) & valid, valid.sum()
        same = valid & (label[partner] == label) & ~alone
        if people > 1:
            assert alone.sum() == count % 2 and not (~valid)[partner[valid]].any()
        if people > 1 and instances > 1 and not invalid:
            assert same.sum() == count // 4 * 2
        if instances == 1:
            assert not same.any()
        met |= {(int(a), int(b)) for a, b in zip(rows, partner, strict=True) if a < b}
    assert len(met) > len(label) // 2 or people == 1  # others in other steps


def test_the_loss_of_pairs_by_hand():
    cosine, same = jnp.array([1.0, 0.2, 0.9, 0.0]), jnp.array([True, True, False, False])
    found = pair_loss(cosine, same, jnp.array([True, True, True, False]), jnp.float32(5.0))
    expected = np.log1p(np.exp([-(10 - 5), -(2 - 5), 9 - 5])).mean()
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert float(pair_loss(cosine, same, jnp.zeros(4, bool), jnp.float32(5.0))) == 0


def test_consistency_losses_are_those_over_all_pairs():
    rng = np.random.default_rng(0)
    u, label = rng.normal(size=(6, 4, 5)), np.array([3, 3, 3, 1, 1, 3])
    valid = np.array([True] * 5 + [False])
    args = jnp.asarray(label), jnp.asarray(valid)
    frames = [((u[n, t] - u[n, s]) ** 2).sum() for n in range(5) for t in range(4) for s in range(4) if s != t]
    assert float(within_clips(jnp.float32(u), args[1])) == pytest.approx(np.mean(frames), rel=1e-5)
    g = u[:, 0]
    between = [((g[n] - g[m]) ** 2).sum() for n in range(5) for m in range(5) if label[n] == label[m]]
    assert float(between_clips(jnp.float32(g), *args)) == pytest.approx(np.mean(between), rel=1e-5)
    apart = [((g[n] - g[:5][label[:5] == label[n]].mean(0)) ** 2).sum() for n in range(5)]
    assert float(from_mean(jnp.float32(g), *args)) == pytest.approx(np.mean(apart), rel=1e-5)
    assert float(within_clips(jnp.float32(u[:, :1]), args[1])) == 0


# The whole method -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def step(small_tower):
    """A step in which clips meet in pairs and every loss has a weight of its own: (method, total, metrics, slopes)."""
    weights = {
        "intra_canonical": 0.2,
        "inter": 0.3,
        "intra_appearance": 0.4,
        "gait": 0.6,
        "clothes": 0.7,
        "triplet": 0.8,
    }
    changes = {f"weights.{name}": value for name, value in weights.items()}
    labels = make_info().labels
    info = make_info(labels=dataclasses.replace(labels, clothes=np.arange(len(labels.identity), dtype=np.int32)))
    method = make_method(info, **changes, **{"pair.probability": 1.0, "pair.weight": 0.9})
    batch = family.make_batch().replace(clothes=jnp.arange(CLIPS))
    variables = family.filled(method.init, batch)
    loss = jax.jit(jax.value_and_grad(family.loss_of(method.stages()[0]), has_aux=True))
    (total, (metrics, _, _)), slopes = loss(variables["params"], variables["batch_stats"], {}, batch)
    weights |= {"identity": 1.0, "pair": 0.9}
    return SimpleNamespace(method=method, total=float(total), metrics=metrics, slopes=slopes, weights=weights)


def test_every_loss_has_its_weight(step):
    values = {name.removeprefix("loss_"): float(x) for name, x in step.metrics.items() if name.startswith("loss_")}
    assert values.keys() == step.weights.keys() and min(values.values()) > 0
    assert step.total == pytest.approx(sum(step.weights[name] * value for name, value in values.items()), rel=1e-5)
    assert sum(float(step.metrics[f"weight_{name}"]) for name in EXPERTS) == pytest.approx(1, rel=1e-5)


def test_no_slope_reaches_the_tower_and_all_else_learns(step):
    sizes = family.largest(step.slopes)
    assert {value for path, value in sizes.items() if path.startswith("image_tower/")} == {0.0}
    still = {path for path, value in sizes.items() if not value and not path.startswith("image_tower/")}
    assert not still, still
    (update,) = step.method.stages()[0].updates
    assert find_group("image_tower/block_00/mlp/up/kernel", update.optimizer.groups).lr == 0
    trained, frozen = split_trained(step.slopes, update.optimizer)
    assert frozen.keys() == {"image_tower"} and "image_tower" not in trained


def test_frames_that_are_all_alike_give_features_that_are(toy):
    """Of frames at the ends only without the convolution, whose zeros they see beside them."""
    still = toy.batch.replace(frames=jnp.repeat(toy.batch.frames[:, :1], FRAMES, axis=1))
    params = jax.tree.map(lambda x: x, toy.variables["params"])
    for i in range(2):
        layer = {name: 0 * x if name != "conv_kernel" else x for name, x in params["decoder"][f"layer_{i}"].items()}
        params["decoder"][f"layer_{i}"] = layer
    apply = jax.jit(lambda p: toy.method.network.apply({**toy.variables, "params": p}, still, False)["frames"])
    moving = apply(params)
    for i in range(2):
        params["decoder"][f"layer_{i}"]["conv_kernel"] = 0 * params["decoder"][f"layer_{i}"]["conv_kernel"]
    found = apply(params)
    valid = jnp.ones(CLIPS, bool)
    for name in ("canonical", "appearance"):
        assert float(within_clips(found[name], valid)) < 1e-9 < 1e-4 < float(within_clips(moving[name], valid))


SWITCHES = {
    "decoder.conv": (False, ("decoder/layer_0/conv", "decoder/layer_1/conv"), ()),
    "decoder.position": (False, ("decoder/layer_0/position", "decoder/layer_1/position"), ()),
    "decoder.bias": (False, ("decoder/layer_0/(previous|next)", "decoder/layer_1/(previous|next)"), ()),
    "decoder.blocks": (1, ("decoder/layer_1/",), ("decoder/join/kernel",)),
    "experts.shared": (True, (), ("gate1/after/kernel", "gate1/after/bias", "gate2/before/kernel")),
    "experts.count": (2, (), ("low_experts/", "gate1/after/")),
    "gates.first": ("uniform", ("gate1/",), ()),
    "gates.second": ("uniform", ("gate2",), ()),
}


@pytest.mark.parametrize("key", [*SWITCHES, *EXPERTS])
def test_a_switch_takes_out_its_part_and_nothing_else(key):
    if key in EXPERTS:
        changes = {"experts.used": tuple(name for name in EXPERTS if name != key)}
        gone, other = (f"{key}/",), ("gate1/after/", "gate2/before/kernel", "gate2/after/")
    else:
        value, gone, other = SWITCHES[key]
        changes = {key: value}
    usual, found = (
        {p: x.shape for p, x in flatten_paths(shapes_of(make_method(**c))["params"])} for c in ({}, changes)
    )
    assert usual.keys() - found.keys() == {p for p in usual if any(re.match(g, p) for g in gone)}
    assert not found.keys() - usual.keys()
    reshaped = {p for p, shape in found.items() if shape != usual[p]}
    assert all(any(p.startswith(o) for o in other) for p in reshaped) and bool(reshaped) == bool(other)


def test_experts_count_by_their_direction_alone(toy):
    """A feature ten times as long changes the embedding, unless experts are normalized; parameters stay the same."""
    clips, weights = toy.found["alone"]["clips"], toy.found["alone"]["weights"]
    longer = {**clips, "gait": 10 * clips["gait"]}

    def embedded(normalize, clips):
        net = make_method(**{"experts.normalize": normalize}).network
        return net.apply(toy.variables, weights, clips, toy.batch.valid, False, method="embedding")

    np.testing.assert_allclose(embedded(True, longer), embedded(True, clips), rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(embedded(False, longer) - embedded(False, clips)).max()) > 0.1
    own = {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in clips.items()}
    np.testing.assert_allclose(embedded(True, clips), embedded(False, own), rtol=1e-5, atol=1e-6)


def test_equal_gates_and_single_experts(toy):
    """With the parameters that are left."""
    uniform = make_method(**{"gates.first": "uniform", "gates.second": "uniform"})

    @jax.jit
    def everything(variables):
        kept = uniform.pair_features(variables, {}, toy.batch)
        scores = uniform.pair_score(variables, {}, kept, jax.tree.map(lambda x: x[toy.partner], kept))
        found = uniform.network.apply(variables, toy.batch, False, jnp.asarray(toy.partner))
        return found, kept, scores, uniform.examine(variables, {}, toy.batch).figures

    found, kept, scores, figures = everything(toy.variables)
    np.testing.assert_allclose(found["shares"], 1 / COUNT)
    np.testing.assert_allclose(found["weights"], 1 / 3)
    assert kept.keys() == set(EXPERTS)
    feature = found["feature"] / jnp.linalg.norm(found["feature"], axis=1, keepdims=True)
    np.testing.assert_allclose(scores, (feature * feature[toy.partner]).sum(1), atol=1e-5)  # nobody is looked at
    assert len(figures) == 3 + COUNT
    np.testing.assert_allclose(figures["share of low-level expert 2"], 1 / COUNT, rtol=1e-6)


def test_clips_meet_only_where_they_are_to():
    batch, key = family.make_batch(), jax.random.key(0)
    assert make_method(**{"pair.probability": 0.0}).partners(batch, key) is None
    always, half = (make_method(**{"pair.probability": p}).partners for p in (1.0, 0.5))
    assert (always(batch, key) != jnp.arange(CLIPS)).all()
    steps = [bool((half(batch, jax.random.key(seed)) != jnp.arange(CLIPS)).any()) for seed in range(24)]
    assert 4 < sum(steps) < 20


# Bad input ------------------------------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_told():
    with refuses(ValueError, "config.evaluation.seq_len=5", "config.batch.seq_len=3"):
        check_config(make_config(**{"evaluation.seq_len": 5}))
    with refuses(ValueError, "config.weights.clothes", "config.experts.used"):
        check_config(make_config(**{"weights.clothes": 1.0, "experts.used": ("canonical", "gait")}))
    with refuses(ValueError, "config.decoder.blocks=4", "'small_hamobe'", "3"):
        make_method(**{"decoder.blocks": 4})
    with refuses(ValueError, "config.backbone.name='resnet_tiny'", "ViT"):
        make_method(**{"backbone.name": "resnet_tiny"})
    with refuses(ValueError, "config.weights.clothes=1.0", "toy", "0"):
        make_method(**{"weights.clothes": 1.0})


# Learning -------------------------------------------------------------------------------------------------------------


@pytest.mark.extended
@pytest.mark.parametrize("mode", ["pair_gate2", "pair_full"])
def test_four_people_are_learned_by_heart(mode):
    """Four clips of each, which differ in a noise as large as what people differ by: after 150 steps all nearest
    neighbours are right, by features of clips alone and by pairs that see each other."""
    rng, people, clips = np.random.default_rng(0), 4, 4
    label = np.repeat(np.arange(people), clips)
    frames = rng.normal(size=(people, 1, 24, 24, 3))[label] + rng.normal(size=(16, FRAMES, 24, 24, 3))
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x]), family.make_batch())
    batch = batch.replace(frames=jnp.asarray(frames, jnp.float32), identity=jnp.asarray(label))
    method = make_method(**{"pair.mode": mode})
    optimizer = optax.adam(3e-3)

    def train(batch):
        variables = method.init(jax.random.key(0), batch)

        def step(carry, key):
            variables, moments = carry

            def loss(params):
                context = family.context().replace(rng=key)
                out = method.loss({**variables, "params": params}, {}, batch, context)
                return out.total, out.batch_stats

            slope, stats = jax.grad(loss, has_aux=True)(variables["params"])
            change, moments = optimizer.update(slope, moments)
            return ({"params": optax.apply_updates(variables["params"], change), "batch_stats": stats}, moments), None

        start = variables, optimizer.init(variables["params"])
        (variables, _), _ = jax.lax.scan(step, start, jax.random.split(jax.random.key(1), 150))
        kept = method.pair_features(variables, {}, batch)

        def score(pair):
            one, other = (jax.tree.map(lambda x, row=row: x[row][None], kept) for row in pair)
            return method.pair_score(variables, {}, one, other)[0]

        scores = jax.lax.map(score, (jnp.repeat(jnp.arange(16), 16), jnp.tile(jnp.arange(16), 16)))
        return method.embed(variables, {}, batch)["feature"], scores.reshape(16, 16)

    feature, scores = jax.device_get(jax.jit(train)(batch))
    unit = feature / np.linalg.norm(feature, axis=1, keepdims=True)
    for each in (unit @ unit.T, scores):
        assert (label[(each - 9 * np.eye(16)).argmax(1)] == label).all()
