"""LSMRL: golden numbers, computed apart from the library; its invariants, and every switch of the ablation."""

import importlib
from functools import partial

import family
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import CLIPS, FRAMES, PEOPLE, largest, make_batch, make_method, random_variables
from messages import refuses

from jaxreid.backbones.attention import attend
from jaxreid.backbones.clip import vision_config
from jaxreid.backbones.flops import count
from jaxreid.backbones.text import text_config
from jaxreid.backbones.vit import ViT
from jaxreid.backbones.word_table import walkers_words
from jaxreid.layers import stfl
from jaxreid.layers.prompts import PromptTemplate
from jaxreid.losses.modality import (
    hetero_centre_triplet,
    modality_confusion,
    modality_discrepancy,
    modality_margin,
)
from jaxreid.losses.triplet import weighted_triplet
from jaxreid.methods import lsmrl
from jaxreid.methods.class_banks import BankMemory
from jaxreid.optimizers import (
    Progress,
    Schedule,
    find_group,
    learning_rate,
    merge,
    split_trained,
    transformation,
)
from jaxreid.retrieval.protocols import resolve
from jaxreid.run.config_values import check_config

SPLIT = {"stfl_split": (0, 1, 1), "heads": 2}


@pytest.fixture(autouse=True)
def small_towers(monkeypatch):
    family.small_towers(monkeypatch)


def method_with(**changes):
    return make_method("lsmrl", **{**SPLIT, **changes})


def encoded(method, variables, batch, bank=None, **options):
    bank = jnp.asarray(np.random.default_rng(5).normal(size=(PEOPLE, 8)), jnp.float32) if bank is None else bank
    return jax.jit(lambda v, b, z: method.network.apply(v, b, z, False, method="encode", **options))(
        variables, batch, bank
    )


def losses(method, variables, batch, fraction=0.5):
    stage = method.stages()[0]
    memory = method.init_memory()
    loss = family.loss_of(stage, fraction)
    return jax.jit(lambda v, b: loss(v["params"], v["batch_stats"], memory, b))(variables, batch)


# STFL -----------------------------------------------------------------------------------------------------------------


def test_the_mosaic_of_patches():
    table = stfl.shift_table(6, (18, 9))
    assert table[0].reshape(18, 9)[:3, :3].tolist() == [[4, 5, 4], [1, 0, 3], [2, 3, 2]]
    assert np.bincount(table[0].reshape(18, 9)[:3, :3].reshape(-1), minlength=6).tolist() == [1, 1, 2, 2, 2, 1]
    assert (table[3] == 3).sum() == 18 and (stfl.shift_table(6, (16, 8))[3] == 3).sum() == 15


def test_shifting_is_nine_rolls_and_goes_back():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 1 + 162, 2, 3)).astype(np.float32)
    wanted = x.copy()
    patches = wanted[:, :, 1:].reshape(2, 6, 18, 9, 2, 3)
    offsets = [[-4, 1, 2], [-1, 0, 3], [-2, -3, 4]]
    for i in range(3):
        for j in range(3):
            patches[:, :, i::3, j::3] = np.roll(patches[:, :, i::3, j::3], offsets[i][j], axis=1)
    wanted[:, :, 1:] = patches.reshape(2, 6, 162, 2, 3)
    flat = jnp.asarray(x.reshape(12, 163, 2, 3))
    there = stfl.shift_table(6, (18, 9))
    moved = stfl.shift_patches(flat, there)
    np.testing.assert_array_equal(moved, wanted.reshape(12, 163, 2, 3))
    back = (2 * np.arange(6)[:, None] - there) % 6
    np.testing.assert_array_equal(stfl.shift_patches(moved, back), flat)


def test_grouped_heads_by_hand():
    """Head 0 reads the frame before, head 1 the one after, the others their own; ends read themselves."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(3, 2, 4, 5)), jnp.float32) for _ in range(3))
    found = stfl.grouped_attention(3, 1, "shift")(q, k, v)
    for frame in range(3):
        for head, source in enumerate((max(frame - 1, 0), min(frame + 1, 2), frame, frame)):
            scores = np.asarray(q[frame, :, head] @ k[source, :, head].T) / np.sqrt(5)
            weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            np.testing.assert_allclose(found[frame, :, head], weights @ np.asarray(v[source, :, head]), atol=1e-5)


def test_channels_by_hand():
    """Eight channels: two from the frame before, two from the one after, four of its own; ends read themselves."""
    x = np.random.default_rng(0).normal(size=(6, 3, 8)).astype(np.float32)  # two clips of three frames
    wanted = x.copy()
    for clip in range(2):
        for frame in range(3):
            row, before, after = (3 * clip + f for f in (frame, max(frame - 1, 0), min(frame + 1, 2)))
            wanted[row, 1:, :2], wanted[row, 1:, 2:4] = x[before, 1:, :2], x[after, 1:, 2:4]
    np.testing.assert_array_equal(stfl.channel_shift(3)(jnp.asarray(x)), wanted)


def test_work_of_grouped_heads():
    """Scores and values of a frame of 163 tokens: 2 · 163² · 64 multiply-adds per head, 2 · 163 · 6 · 64 over time."""
    x = jnp.zeros((6, 163, 12, 64))
    for mode, wanted in (("shift", 40.8e6), ("tube", 27.7e6)):
        assert count(stfl.grouped_attention(6, 2, mode), x, x, x) / 2 / 6 == pytest.approx(wanted, rel=2e-3)


def test_shifted_channels_in_the_tower():
    """On a clip of equal frames it is plain CLIP; otherwise frames know their neighbours, but no other."""
    tower = ViT(family.IMAGE)
    x = np.random.default_rng(0).normal(size=(4, 24, 24, 3)).astype(np.float32)
    variables = family.filled(tower.init, x, scale=1.0)

    def run(split):
        hooks = stfl.stfl_hooks(family.IMAGE, split, "shift", "channel", 4)
        return jax.jit(lambda x: tower.apply(variables, x, hooks=hooks, class_token_only=True)["class_token"])

    still = np.repeat(x[:1], 4, axis=0)
    shifted = run((1, 0, 1))
    np.testing.assert_allclose(shifted(still), run((2, 0, 0))(still), atol=1e-5)
    moved = np.abs(shifted(x + np.eye(4, dtype=np.float32)[0][:, None, None, None]) - shifted(x)).max(1)
    np.testing.assert_array_equal(moved > 1e-4, [True, True, False, False])


def test_static_clips_are_plain_clip_and_order_matters_only_with_stfl():
    plain, mixed, tube = method_with(stfl_split=(2, 0, 0)), method_with(), method_with(grouped_mode="tube")
    variables, batch = random_variables(plain), make_batch()
    still = batch.replace(frames=jnp.repeat(batch.frames[:, :1], FRAMES, axis=1))
    names = ("penultimate", "last", "projected")
    one, same, other = (encoded(m, variables, still) for m in (plain, mixed, tube))
    for name in names:
        np.testing.assert_allclose(same[name], one[name], atol=1e-5)
        assert np.abs(other[name] - one[name]).max() > 1e-3
    turned = batch.replace(frames=batch.frames[:, np.array([1, 2, 0])][:, ::-1])
    for method, moves in ((plain, False), (mixed, True)):
        first, second = encoded(method, variables, batch), encoded(method, variables, turned)
        for name in names:
            assert (np.abs(first[name] - second[name]).max() > 1e-4) == moves, (moves, name)


def test_only_class_token_queries_give_the_same_class_token():
    """The last block of a tower computes its class token alone; the mosaic's result there is that of all tokens."""
    attention = stfl.patch_shift_attention(3, (2, 2))
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(6, 5, 2, 4)), jnp.float32) for _ in range(3))
    for mixed in (attention, stfl.grouped_attention(3, 1, "tube")):
        np.testing.assert_allclose(mixed(q[:, :1], k, v)[:, 0], mixed(q, k, v)[:, 0], atol=1e-5)


# Sizes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "people", "context"), [("hitsz_vcm", 500, 1_024_000), ("bupt_campus", 1074, 2_199_552)]
)
def test_full_size(preset, people, context, monkeypatch):
    config = importlib.import_module("configs.lsmrl").get_config(preset)
    info = family.make_info()
    info = type(info)(**{**vars(info), "num_classes": people, "frame_size": (288, 144)})
    method = lsmrl.LSMRL(config, info)
    batch = make_batch()
    rows = {name: x[:4] for name, x in vars(batch).items() if name not in ("frames", "frame_mask", "extras")}
    batch = type(batch)(frames=jnp.zeros((4, 6, 288, 144, 3)), frame_mask=jnp.ones((4, 6), bool), **rows)
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)
    sizes = {path: leaf.size for path, leaf in family.flatten_paths(variables["params"])}

    def total(*starts):
        return sum(size for path, size in sizes.items() if path.startswith(starts))

    assert total("image_tower") == 86_166_528 and total("text/own") == context
    assert (total("diffusion"), total("interaction")) == (3_153_408, 3_152_384)
    if people == 500:
        assert total("necks_last") == 385_536 and total("necks_projected") == 257_024
    assert vision_config("ViT-B/16", (288, 144)).tokens == 163
    bank = jnp.zeros((people, 512))
    found = jax.eval_shape(
        lambda v: method.network.apply(v, batch, bank, False, pairs=True, method="encode"), variables
    )
    shapes = {name: x.shape for name, x in found.items()}
    assert shapes == {
        **dict.fromkeys(("penultimate", "last"), (4, 768)),
        **dict.fromkeys(("projected", "diffused", "solo", "pair"), (4, 512)),
    }
    embedded = jax.eval_shape(lambda v: method.embed(v, BankMemory(bank), batch), variables)
    assert embedded["feature"].shape == (4, 1280)


def test_both_protocols_of_bupt_campus_are_scored():
    config = importlib.import_module("configs.lsmrl").get_config("bupt_campus")
    assert [resolve(key).key for key in config.dataset.protocols] == ["bupt_full", "bupt_reduced64"]
    assert (config.batch.num_identities, config.batch.num_pairs, config.evaluation.clip_sampling) == (8, 2, "linspace")


def test_the_prompt():
    config = importlib.import_module("configs.lsmrl").get_config("hitsz_vcm").prompt
    template = PromptTemplate.of_text(config.template, walkers_words(), config.n_ctx)
    ids = walkers_words().clip_ids[list(template.ids)].tolist()
    assert ids[1:-1] == [320, 343, 343, 343, 343, 2533, 21267, 530, 2212, 575, 537, 930, 5892, 269]
    assert (len(ids), template.end, template.start) == (16, 15, 2)
    assert text_config("ViT-B/16").context == 77


# SD and CMI -----------------------------------------------------------------------------------------------------------


def test_attention_of_sd_and_cmi_on_two_tokens():
    tokens, bank = jnp.array([[1.0, 0], [0, 1]]), jnp.array([[1.0, 0], [0, 1], [1, 1]])

    def mix(q, context, mask=None):
        return attend(q[None, :, None], context[None, :, None], context[None, :, None], mask)[0, :, 0]

    np.testing.assert_allclose(mix(tokens, bank), [[0.802224, 0.598888], [0.598888, 0.802224]], atol=1e-6)
    columns = (jnp.eye(3)[:, :2], jnp.eye(3)[:, 1:])  # values are as wide as keys
    first, last = (attend(tokens[None, :, None], bank[None, :, None], v[None, :, None])[0, :, 0] for v in columns)
    weights = jnp.concatenate([first, last[:, 1:]], axis=1)
    np.testing.assert_allclose(weights, [[0.401112, 0.197776, 0.401112], [0.197776, 0.401112, 0.401112]], atol=1e-6)
    both = jnp.concatenate([tokens, jnp.array([[0.5, 0.5], [1, -1]])])
    pair = mix(both, both)[:2]
    np.testing.assert_allclose(pair, [[0.735808, -0.048771], [0.445904, 0.454392]], atol=1e-6)
    np.testing.assert_allclose(mix(tokens, tokens), [[0.669762, 0.330238], [0.330238, 0.669762]], atol=1e-6)
    # A pair with the blocks across modalities closed is two tracklets alone.
    closed = jnp.kron(jnp.eye(2), jnp.ones((2, 2))).astype(bool)[None, None]
    np.testing.assert_allclose(mix(both, both, closed)[:2], mix(tokens, tokens), atol=1e-6)


SD = [("attend", "cls"), ("attend", "all"), ("append", "cls"), ("append", "all")]


@pytest.mark.parametrize(("mode", "tokens"), SD)
def test_new_sd_and_cmi_change_nothing(mode, tokens):
    method = method_with(sd_mode=mode, sd_tokens=tokens)
    batch = make_batch()
    variables = jax.jit(method.init)(jax.random.key(0), batch)
    found = encoded(method, variables, batch, pairs=True)
    np.testing.assert_allclose(found["solo"], found["projected"], atol=1e-6)
    np.testing.assert_allclose(found["pair"], found["projected"], atol=1e-6)


def test_what_sd_and_cmi_look_at():
    method = method_with()
    variables, batch = random_variables(method), make_batch()
    bank = jnp.asarray(np.random.default_rng(5).normal(size=(PEOPLE, 8)), jnp.float32)
    run = jax.jit(lambda b, z: method.network.apply(variables, b, z, False, pairs=True, method="encode"))
    found = run(batch, bank)
    assert np.abs(found["solo"] - found["projected"]).max() > 1e-2
    # The bank is a set; labels are not looked at.
    for other in (run(batch, bank[::-1]), run(batch.replace(identity=batch.identity[::-1]), bank)):
        np.testing.assert_allclose(other["solo"], found["solo"], atol=1e-5)
        np.testing.assert_allclose(other["pair"], found["pair"], atol=1e-5)
    assert np.abs(run(batch, 2 * bank.at[0].set(1.0))["solo"] - found["solo"]).max() > 1e-4
    # Visible rows are the even ones: another infrared partner.
    partner = batch.replace(frames=batch.frames.at[1::2].set(make_batch(9).frames[1::2]))
    other = run(partner, bank)
    np.testing.assert_allclose(other["solo"][::2], found["solo"][::2], atol=1e-6)
    assert (np.abs(other["pair"][::2] - found["pair"][::2]).max(1) > 1e-3).all()
    # Nobody else's pair changes when one of them does.
    single = batch.replace(frames=batch.frames.at[1].set(0.0))
    np.testing.assert_allclose(run(single, bank)["pair"][2:], found["pair"][2:], atol=1e-6)


def normed(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize(("mode", "tokens"), SD)
def test_sd_by_hand(mode, tokens):
    """Token by token: which rows it attends to, and what becomes of the frame's feature."""
    rng = np.random.default_rng(0)
    module = lsmrl.SemanticDiffusion(1, mode, tokens, top=2)
    x, bank = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 5, 4), (6, 4)))
    variables = family.filled(module.init, jnp.asarray(x), jnp.asarray(bank), scale=1.0)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), jax.device_get(variables["params"]))

    def linear(y, name):
        return y @ params["attention"][name]["kernel"] + params["attention"][name]["bias"]

    def norm(y, layer):
        return normed(y) * layer["scale"] + layer["bias"]

    z = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    sentences = norm(z, params["norm_bank"])
    wanted = np.zeros((3, 4))
    for frame in range(3):
        context = sentences
        if mode == "append":
            nearest = np.argsort(-(z @ x[frame, 0]))[:2]
            context = np.concatenate([norm(x[frame], params["norm_query"]), sentences[nearest]])
        changes = []
        for token in x[frame] if tokens == "all" else x[frame, :1]:
            q = linear(norm(token, params["norm_query"]), "query")
            weights = np.exp(linear(context, "key") @ q / 2)
            h = token + linear(weights @ linear(context, "value") / weights.sum(), "out")
            hidden = linear(norm(h, params["attention"]["norm"]), "up")
            changes.append(h + linear(hidden / (1 + np.exp(-1.702 * hidden)), "down") - token)
        wanted[frame] = x[frame, 0] + np.mean(changes, axis=0)
    assert np.abs(wanted - x[:, 0]).max() > 0.1
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x, bank), wanted, atol=1e-4)


def test_test_features_may_pass_cmi_by():
    """`cmi_test="skip"` scores f and h, which CMI's weights do not reach."""
    method = method_with(cmi_test="skip", neck_feat="before")
    variables, batch = random_variables(method), make_batch()
    bank = jnp.asarray(np.random.default_rng(5).normal(size=(PEOPLE, 8)), jnp.float32)
    other = {**variables, "params": {**variables["params"]}}
    other["params"]["interaction"] = jax.tree.map(lambda x: 2 * x, variables["params"]["interaction"])

    def features(method):
        memory = BankMemory(bank)
        run = jax.jit(lambda v, b: method.embed(v, memory, b)["feature"])
        return np.asarray(run(variables, batch)), np.asarray(run(other, batch))

    skipped, again = features(method)
    np.testing.assert_array_equal(skipped, again)
    one, two = features(method_with())
    assert np.abs(one - two).max() > 1e-3
    h = encoded(method_with(use_cmi=False), variables, batch, bank)["solo"]  # without CMI, h is what is left
    np.testing.assert_allclose(skipped[:, 16:], h / np.linalg.norm(h, axis=1, keepdims=True), atol=1e-5)


# Losses ---------------------------------------------------------------------------------------------------------------


def test_weighted_triplet():
    f = jnp.array([[0.0, 0], [1, 0], [0, 2], [3, 0]])
    y, valid = jnp.array([0, 0, 1, 1]), jnp.ones(4, bool)
    np.testing.assert_allclose(weighted_triplet(f, y, valid, stable=False), 0.885194, atol=1e-6)
    np.testing.assert_allclose(weighted_triplet(f, y, valid), 0.885190, atol=1e-6)
    positive, negative = np.array([0.731058, 0.731058, 3.510168, 3.510168]), np.array([2.268929, 2.104158] * 2)
    negative[2:] = [2.104158, 2.268929]
    wanted = np.log1p(np.exp(positive - negative)).mean()
    np.testing.assert_allclose(weighted_triplet(f, y, valid), wanted, atol=1e-5)
    filled = weighted_triplet(jnp.concatenate([f, f + 7]), jnp.tile(y, 2), jnp.arange(8) < 4)
    np.testing.assert_allclose(filled, 0.885190, atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: weighted_triplet(x, y, valid))(f)).all()


def test_the_released_weighted_triplet_pulls_far_negatives_closer():
    """One row against 24 others at a distance: the slope of the loss along it."""
    direction = jnp.eye(2)[:1]
    y, valid = jnp.arange(25).at[1:].set(1), jnp.ones(25, bool)

    @partial(jax.jit, static_argnums=1)
    def slope(distance, stable):
        def loss(d):
            rows = jnp.concatenate([0 * direction, jnp.repeat(d * direction, 24, axis=0)])
            return weighted_triplet(rows, y, valid, stable)

        return jax.grad(loss)(distance)

    assert slope(8.0, False) < 0 and slope(8.0, True) < 0
    assert slope(20.0, False) > 0 and slope(20.0, True) <= 0


def test_hetero_centre_triplet():
    n = jnp.array([[1.0, 0], [0, 1], [0.6, 0.8], [-0.8, 0.6]])
    y, modality, valid = jnp.array([0, 1, 0, 1]), jnp.array([0, 0, 1, 1]), jnp.ones(4, bool)
    np.testing.assert_allclose(hetero_centre_triplet(n, y, modality, valid), 0.280986, atol=1e-6)
    # Rows around a centre give what the centre gives, however many they are.
    offset = jnp.array([[0.1, 0.2], [0.0, 0.0]])[jnp.array([0, 1, 1, 0])]
    rows = jnp.concatenate([n + offset, n - offset, n[:1]])
    more = hetero_centre_triplet(
        rows, jnp.concatenate([y, y, y[:1]]), jnp.concatenate([modality, modality, modality[:1]]), jnp.ones(9, bool)
    )
    np.testing.assert_allclose(more, 0.280986, atol=1e-6)
    alone = hetero_centre_triplet(n, y, jnp.zeros(4, int), valid)
    assert float(alone) == 0 and np.isfinite(jax.grad(lambda x: hetero_centre_triplet(x, y, modality, valid))(n)).all()


def test_modality_margin():
    """Cosine distances of the pairs across modalities: 0.4, 0.4 of one person; 1.8, 0.2 of two: softplus(0.4 − 1)."""
    n = jnp.array([[2.0, 0], [0, 1], [0.6, 0.8], [-1.6, 1.2]])
    y, modality, valid = jnp.array([0, 1, 0, 1]), jnp.array([0, 0, 1, 1]), jnp.ones(4, bool)
    margin = jax.jit(modality_margin)
    np.testing.assert_allclose(margin(n, y, modality, valid), np.log1p(np.exp(-0.6)), rtol=1e-5)
    more = [jnp.concatenate([x, x[:1]]) for x in (n, y, modality)]
    np.testing.assert_allclose(margin(*more, jnp.arange(5) < 4), np.log1p(np.exp(-0.6)), rtol=1e-5)
    assert float(margin(n, y, jnp.zeros(4, int), valid)) == 0


def test_modality_discrepancy():
    """Pair by pair, and 0 for modalities that do not differ."""
    rng = np.random.default_rng(0)
    x, modality = rng.normal(size=(7, 3)).astype(np.float32), np.array([0, 1, 0, 1, 1, 0, 1])
    valid = np.arange(7) < 6
    square = ((x[:, None] - x[None]) ** 2).sum(-1)
    b = np.mean([square[i, j] for i in range(6) for j in range(6) if i != j])

    def kernel(i, j):
        return np.mean([np.exp(-square[i, j] / (b * scale)) for scale in (0.25, 0.5, 1, 2, 4)])

    def mean(one, other):
        return np.mean([kernel(i, j) for i in one for j in other])

    one, other = (np.flatnonzero((modality == code) & valid) for code in (0, 1))
    wanted = mean(one, one) + mean(other, other) - 2 * mean(one, other)
    discrepancy = jax.jit(modality_discrepancy)
    found = discrepancy(*map(jnp.asarray, (x, modality, valid)))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    both = np.concatenate([x[:3], x[:3], x[6:]])
    np.testing.assert_allclose(discrepancy(both, np.arange(7) // 3, valid), 0.0, atol=1e-6)
    # Two points, a modality at each: of six pairs four have a distance, so that d² is 1.5 times its mean.
    far = np.zeros((7, 3), np.float32)
    far[2:4, 0] = 50.0
    apart = discrepancy(far, np.arange(7) // 2 % 2, np.arange(7) < 4)
    wanted = 2 - 2 * np.mean([np.exp(-1.5 / scale) for scale in (0.25, 0.5, 1, 2, 4)])
    np.testing.assert_allclose(apart, wanted, rtol=1e-4)
    assert float(discrepancy(far, np.zeros(7, int), valid)) == 0
    slope = jax.jit(jax.grad(modality_discrepancy))(x, modality, valid)
    assert np.isfinite(slope).all() and not slope[6].any()


def test_modality_confusion():
    r = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    modality, valid = jnp.array([0, 1, 0, 1]), jnp.ones(4, bool)
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2)), jnp.float32)

    def parts(r, kernel):
        return modality_confusion(r, kernel, jnp.zeros(2), modality, valid)

    np.testing.assert_allclose(parts(r, jnp.zeros((3, 2)))[0], np.log(2), atol=1e-6)
    assert not np.asarray(jax.grad(lambda w: parts(r, w)[0])(kernel)).any()
    assert not np.asarray(jax.grad(lambda x: parts(x, kernel)[1])(r)).any()
    assert np.asarray(jax.grad(lambda w: parts(r, w)[1])(kernel)).any()
    assert np.asarray(jax.grad(lambda x: parts(x, kernel)[0])(r)).any()
    with refuses(ValueError, "mod_gen", "'uniform'", "'third'"):
        modality_confusion(r, kernel, jnp.zeros(2), modality, valid, "fourth")


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_features_that_hide_the_modality_hide_it_on_new_people(weight):
    """A linear map of (person, modality) features keeps the person; with the loss a fresh probe fails."""
    rng = np.random.default_rng(0)

    def people(count):
        modality = np.arange(count) % 2
        x = rng.normal(size=(count, 6))
        x[:, 5] = (2 * modality - 1) + 0.1 * rng.normal(size=count)
        return jnp.asarray(x, jnp.float32), jnp.asarray(modality)

    (x, modality), (new, of_new) = people(64), people(200)

    def loss(params):
        r = x @ params["map"]
        confusion, probe = modality_confusion(r, params["probe"], jnp.zeros(2), modality, jnp.ones(64, bool))
        return jnp.mean((r[:, :5] - x[:, :5]) ** 2) + weight * (confusion + probe)

    def step(params, _):
        return jax.tree.map(lambda p, g: p - 0.2 * g, params, jax.grad(loss)(params)), None

    params = {"map": jnp.eye(6), "probe": jnp.zeros((6, 2))}
    params, _ = jax.lax.scan(step, params, None, 3000)
    r = np.asarray(new @ params["map"])
    # The fresh probe: least squares on one half, scored on the other.
    target = 2.0 * np.asarray(of_new) - 1
    w, *_ = np.linalg.lstsq(r[:100], target[:100], rcond=1e-2)
    right = np.mean(np.sign(r[100:] @ w) == target[100:])
    assert right > 0.95 if weight == 0 else right < 0.8


def test_what_depends_on_the_modality_labels():
    method = method_with()
    variables, batch = random_variables(method), make_batch()
    (_, (plain, _, _)), (_, (swapped, _, _)) = (
        losses(method, variables, b)
        for b in (batch, batch.replace(modality=batch.modality.at[:2].set(jnp.array([1, 0]))))
    )
    changed = {name for name in plain if abs(float(plain[name] - swapped[name])) > 1e-6}
    assert changed <= {"loss_hct", "loss_mod", "loss_probe"} and "loss_probe" in changed


SWITCHES = {
    "stfl_split": ((2, 0, 0), set()),
    "use_text": (False, {"loss_text"}),
    "use_sd": (False, set()),
    "use_cmi": (False, {"loss_pair", "loss_cons"}),
    "lambda_hct": (0.0, {"loss_hct"}),
    "lambda_mod": (0.0, {"loss_mod", "loss_probe"}),
    "lambda_cons": (0.0, set()),
    "grouped_mode": ("tube", set()),
    "tps_mode": ("channel", set()),
    "sd_mode": ("append", set()),
    "sd_tokens": ("all", set()),
    "sd_top": (1, set()),
    "v2t_norm": (True, set()),
    "mod_disc": ("mma", {"loss_hct"}),
    "mod_gen": ("mmd", {"loss_mod", "loss_probe"}),
}


@pytest.fixture(scope="module")
def whole():
    with pytest.MonkeyPatch.context() as patch:
        family.small_towers(patch)
        method = method_with()
        variables = random_variables(method)
        return variables, losses(method, variables, make_batch())


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_changes_the_loss(switch, whole):
    variables, (total, (parts, _, _)) = whole
    value, gone = SWITCHES[switch]
    changes = {switch: value, "sd_mode": "append"} if switch == "sd_top" else {switch: value}
    method = method_with(**changes)
    variables = {**variables, "params": variables["params"] | {"logit_scale": jnp.float32(1.0)}}
    found, (left, _, _) = losses(method, variables, make_batch())
    assert np.isfinite(found) and float(found) != float(total)
    assert parts.keys() - left.keys() == gone
    assert left.keys() - parts.keys() == {"mod_disc": {"loss_mma"}, "mod_gen": {"loss_mmd"}}.get(switch, set())


def test_cosines_with_a_learned_scale():
    method, config = method_with(v2t_norm=True), importlib.import_module("configs.lsmrl").get_config("hitsz_vcm")
    rng = np.random.default_rng(0)
    p, z = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 8), (PEOPLE, 8)))
    cosines = (p / np.linalg.norm(p, axis=1, keepdims=True)) @ (z / np.linalg.norm(z, axis=1, keepdims=True)).T
    params = random_variables(method)["params"]

    @jax.jit
    def logits(scale):
        return method.network.apply({"params": params | {"logit_scale": scale}}, p, z, method="text_logits")

    for scale, factor in ((0.0, 1.0), (np.log(1 / 0.07), 1 / 0.07), (9.0, 100.0)):
        found = logits(jnp.float32(scale))
        np.testing.assert_allclose(found, factor * cosines, rtol=1e-4, atol=1e-4)
    assert params["logit_scale"].shape == () and "logit_scale" not in random_variables(method_with())["params"]
    config.backbone.name, config.v2t_norm = "small", True
    config.update_from_flattened_dict(SPLIT)
    optimizer = lsmrl.LSMRL(config, family.make_info()).stages()[0].updates[0].optimizer
    assert find_group("logit_scale", optimizer.groups).lr == pytest.approx(25 * 2.5e-5)


def test_two_stages():
    """Words learn first, on features that the starting tower gives; then they and their sentences are constants."""
    method = method_with(two_stage=True, **{"stage1.clips_per_tracklet": 1})
    prompts, main = method.stages()
    assert prompts.name == "prompts" and prompts.refresh_after and not main.refresh_after
    variables, batch = random_variables(method), make_batch()
    rng = np.random.default_rng(0)
    memory = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), method.init_memory())
    found = jax.jit(lambda v, b: prompts.cached.extract(v, memory, b))(variables, batch)["projected"]
    np.testing.assert_allclose(found, encoded(method, variables, batch)["projected"], atol=1e-5)

    kept = jnp.asarray(rng.normal(size=(CLIPS, 8)), jnp.float32)
    no_frames = batch.replace(frames=jnp.zeros((CLIPS, 0, 24, 24, 3)), extras={"projected": kept})
    gradient, (parts, _, _) = jax.jit(jax.grad(family.loss_of(prompts), has_aux=True))(
        variables["params"], variables["batch_stats"], memory, no_frames
    )
    z = jax.jit(lambda v: method.network.apply(v, batch.identity, method="sentences"))(variables)
    scores = np.asarray(kept @ z.T, np.float64)
    y = np.asarray(batch.identity)
    log = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    wanted = -np.mean([log[i, y == y[i]].mean() for i in range(CLIPS)])
    np.testing.assert_allclose(parts["loss_image_to_text"], wanted, rtol=1e-4)
    trained, _ = split_trained(gradient, prompts.updates[0].optimizer)
    assert family.paths(trained) == ["text/own"] and np.abs(gradient["text"]["own"]).max() > 1e-6

    trained, _ = split_trained(variables["params"], main.updates[0].optimizer)
    assert not [path for path in family.paths(trained) if path.startswith("text/")]
    _, (parts, _, _) = jax.jit(family.loss_of(main))(variables["params"], variables["batch_stats"], memory, batch)
    p = encoded(method, variables, batch)["projected"]
    scores = np.asarray(p @ memory.bank.T, np.float64)
    wanted = -np.mean((scores - np.log(np.exp(scores).sum(1, keepdims=True)))[np.arange(CLIPS), y])
    np.testing.assert_allclose(parts["loss_text"], wanted, rtol=1e-4)


def test_the_total_is_section_4_s_sum(whole):
    _, (total, (parts, _, _)) = whole
    weights = {"ce": 1, "wrt": 1, "text": 0.08, "sequence": 1, "pair": 1, "cons": 1, "hct": 1, "mod": 0.1, "probe": 0.1}
    assert parts.keys() == {f"loss_{name}" for name in weights}
    np.testing.assert_allclose(total, sum(w * parts[f"loss_{name}"] for name, w in weights.items()), rtol=1e-5)


def test_the_modality_probe_starts_late():
    method = method_with()
    variables, batch = random_variables(method), make_batch()
    (early, (parts, _, _)), (late, _) = (losses(method, variables, batch, fraction) for fraction in (0.24, 0.25))
    np.testing.assert_allclose(late - early, 0.1 * (parts["loss_mod"] + parts["loss_probe"]), rtol=1e-3)


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("image_tower/block_00/mlp/up/kernel", (2.5e-7, 8.5e-6, 1.675e-5, 2.4058e-5, 1.2625e-5, 3.5587e-7)),
        ("text/own", (2.5e-7, 2.085e-4, 4.1675e-4, 6.0122e-4, 3.1262e-4, 2.9224e-6)),
        ("necks_last/norm/bias", (2.5e-7, 2.085e-4, 4.1675e-4, 6.0122e-4, 3.1262e-4, 2.9224e-6)),
    ],
)
def test_learning_rates(path, wanted):
    config = importlib.import_module("configs.lsmrl").get_config("hitsz_vcm")
    info = family.make_info()
    update = lsmrl.LSMRL(config, type(info)(**{**vars(info), "frame_size": (288, 144)})).stages()[0].updates[0]
    group = find_group(path, update.optimizer.groups)
    for epoch, rate in zip((0, 1, 2, 3, 12, 23), wanted, strict=True):
        progress = Progress(step=0, epoch=jnp.float32(epoch + 0.5), fraction=jnp.float32(0))
        np.testing.assert_allclose(learning_rate(update.schedule, config.epochs, group.lr)(progress), rate, rtol=1e-4)


def test_frozen_parts_and_new_parts():
    optimizer = method_with(**{"optimizer.lr": 2.5e-5}).stages()[0].updates[0].optimizer
    rates = {
        "text/tower/block_00/mlp/up/kernel": 0.0,
        "image_tower/patch_embedding/kernel": 0.0,
        "image_tower/projection/kernel": 2.5e-5,
        "necks_sequence/classifier/kernel": 6.25e-4,
        "diffusion/attention/out/kernel": 2.5e-4,
        "interaction/attention/out/bias": 2.5e-4,
        "modality_kernel": 2.5e-4,
    }
    for path, rate in rates.items():
        assert find_group(path, optimizer.groups).lr == pytest.approx(rate)


def test_words_learn_through_the_text_loss_alone():
    found = {}
    for weight in (0.08, 0.0):
        method = method_with(lambda_text=weight)
        variables, stage, memory = random_variables(method), method.stages()[0], method.init_memory()

        def loss(params, method=method, variables=variables, stage=stage, memory=memory):
            whole = {"params": params, "batch_stats": variables["batch_stats"]}
            return stage.loss(whole, memory, make_batch(), family.context()).total

        found[weight] = largest(jax.jit(jax.grad(loss))(variables["params"]))
    assert found[0.08]["text/own"] > 0 and found[0.0]["text/own"] == 0
    assert found[0.0]["diffusion/norm_bank/scale"] > 0  # what reads the bank does learn
    trained, _ = split_trained(variables["params"], stage.updates[0].optimizer)
    assert not [path for path in family.paths(trained) if path.startswith(("text/tower", "image_tower/patch_emb"))]


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_embedding(place):
    """f and r, behind their necks by the running statistics, each of unit length, side by side."""
    method = method_with(neck_feat=place)
    variables, batch = random_variables(method), make_batch()
    bank = jnp.asarray(np.random.default_rng(5).normal(size=(PEOPLE, 8)), jnp.float32)
    found, wanted = encoded(method, variables, batch, bank), []
    for name, neck in (("last", "necks_last"), ("solo", "necks_sequence")):
        part, stats = np.asarray(found[name]), variables["batch_stats"][neck]["norm"]
        if place == "after":
            norm = variables["params"][neck]["norm"]
            part = (part - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]
        wanted.append(part / np.linalg.norm(part, axis=1, keepdims=True))
    feature = jax.jit(lambda v, b: method.embed(v, BankMemory(bank), b))(variables, batch)["feature"]
    np.testing.assert_allclose(feature, np.concatenate(wanted, axis=1), atol=1e-4)


def test_a_few_people_are_learnt():
    """Eight clips of four people: every clip's nearest one across modalities shows the same person."""
    method = method_with(**{"batch.num_identities": 4, "batch.num_pairs": 1, "optimizer.lr": 1e-3})
    stage, batch = method.stages()[0], make_batch()
    optimizer = stage.updates[0].optimizer
    update, memory = transformation(optimizer, Schedule("constant"), 1), method.init_memory()
    variables = jax.jit(method.init)(jax.random.key(0), batch)
    trained, frozen = split_trained(variables["params"], optimizer)

    def step(carry, _):
        own, state, stats = carry

        def loss(own):
            whole = {"params": merge(own, frozen), "batch_stats": stats}
            out = stage.loss(whole, memory, batch, family.context(1.0))
            return out.total, out.batch_stats

        gradient, stats = jax.grad(loss, has_aux=True)(own)
        changes, state = update.update(gradient, state, own, progress=family.progress())
        return (optax.apply_updates(own, changes), state, stats), None

    def judged(own, stats):
        """Nearest clips of both directions; and whom CMI's features name, with the partner and alone."""
        whole = {"params": merge(own, frozen), "batch_stats": stats}
        bank = stage.refresh_after(whole, memory, family.context())
        f = method.embed(whole, bank, batch)["feature"]
        similarity = f[::2] @ f[1::2].T

        def named(network):
            r = network.encode(batch, bank.bank, train=False, pairs=True)
            return [network.heads.neck("sequence")(r[name], batch.valid, False).argmax(1) for name in ("pair", "solo")]

        return (similarity.argmax(0), similarity.argmax(1)), method.network.apply(whole, method=named)

    judged = jax.jit(judged)
    start = trained, jax.jit(update.init)(trained), variables["batch_stats"]
    (trained, _, stats), _ = jax.jit(lambda start: jax.lax.scan(step, start, None, 100))(start)
    nearest, names = judged(trained, stats)
    for found in nearest:
        assert found.tolist() == list(range(PEOPLE))
    for found in names:
        np.testing.assert_array_equal(found, batch.identity)
    assert judged(start[0], start[2])[0][0].tolist() != list(range(PEOPLE))


# What is refused ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_named():
    switches = {
        "neck_feat": ("before", "after"),
        "sd_mode": ("attend", "append"),
        "sd_tokens": ("cls", "all"),
        "cmi_test": ("solo", "skip"),
        "mod_disc": ("hct", "mma"),
        "mod_gen": ("uniform", "third", "mmd"),
        "grouped_mode": ("shift", "tube"),
        "tps_mode": ("patch", "channel"),
    }
    for name, known in switches.items():
        with refuses(ValueError, f"config.{name}='odd'", *known):
            check_config(family.make_config("lsmrl", **SPLIT, **{name: "odd"}))
    with refuses(ValueError, "stfl_split", "(1, 1, 2)", 2):
        check_config(family.make_config("lsmrl", stfl_split=(1, 1, 2)))
    info = family.make_info()
    table = type(info.table)(**{**vars(info.table), "modality": np.zeros(CLIPS, np.int32)})
    with refuses(ValueError, "visible", "infrared"):
        lsmrl.LSMRL(family.make_config("lsmrl", **SPLIT), type(info)(**{**vars(info), "table": table}))
