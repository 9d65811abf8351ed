"""CG-CLIP: golden numbers, computed apart from the library; its invariants, every switch, and captions from their file
to the rows that they refine."""

import dataclasses
import importlib

import family
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import PEOPLE, largest, make_batch
from messages import refuses, says

from jaxreid.backbones.flops import count
from jaxreid.backbones.text import TextTower
from jaxreid.backbones.word_table import walkers_words
from jaxreid.data.sidecar_files import read_captions, refuses_to_tell
from jaxreid.layers.captions import CaptionTower
from jaxreid.layers.prompt_decoder import PromptAttention, PromptDecoder
from jaxreid.layers.tf_clip import TemporalMemoryDiffusion
from jaxreid.layers.token_extraction import TokenExtraction
from jaxreid.losses.identity import cross_entropy
from jaxreid.methods import caption_bank
from jaxreid.methods.caption_bank import CaptionMemory, captions_of, draw, shuffled
from jaxreid.methods.cg_clip import CGClip
from jaxreid.methods.method import Features
from jaxreid.optimizers import find_group, split_trained
from jaxreid.run.config_values import check_config

CAPTIONS = (  # of eight tracklets, two of each person; the last person is nobody's
    ("a person with short hair, wearing a red shirt", "a tall person"),
    ("a person with short hair and white shoes",),
    ("a slim person with long hair",),
    (),
    ("a person with tied hair",),
    ("a person with tied hair",),
    (),
    (),
)


@pytest.fixture(autouse=True)
def small_towers(monkeypatch):
    family.small_towers(monkeypatch)


def make_info(captions=CAPTIONS, **changes):
    return dataclasses.replace(family.make_info(), captions=captions, **changes)


def make_method(info=None, **changes):
    config = family.make_config("cg_clip", **{"batch.seq_len": 3, "evaluation.seq_len": 3, **changes})
    return CGClip(config, info or make_info())


def variables_for(method, scale=1.0):
    return family.filled(method.init, make_batch(), scale=scale)


def memory_for(method, variables, seed=3):
    """What the refreshing before the stage makes: rows of random image features, captions of the text tower."""
    rng = np.random.default_rng(seed)
    features = Features(
        {"projected": jnp.asarray(rng.normal(size=(8, 8)), jnp.float32)},
        jnp.arange(8),
        jnp.zeros(8, jnp.int32),
        jnp.ones(8, bool),
    )
    return jax.jit(method.bank.refresh)(variables, method.init_memory(), features, family.context())


def losses(method, variables, memory, batch=None):
    loss = family.loss_of(method.stages()[0])
    batch = make_batch() if batch is None else batch
    return jax.jit(lambda v, m, b: loss(v["params"], v["batch_stats"], m, b))(variables, memory, batch)


def refined(method, variables, bank, tokens, mask):
    return jax.jit(lambda *x: method.network.apply(x[0], *x[1:], False, method="refined"))(
        variables, bank, jnp.asarray(tokens), jnp.asarray(mask)
    )


# Sizes and work -------------------------------------------------------------------------------------------------------


def size(module, *inputs):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


TOKENS, MASK = jax.ShapeDtypeStruct((1, 8, 129, 768), jnp.float32), jax.ShapeDtypeStruct((1, 8), bool)


def extraction_work(module):
    def forward(variables, tokens, mask):
        return module.apply(variables, tokens, mask)

    shapes = jax.eval_shape(lambda x, m: module.init(jax.random.key(0), x, m), TOKENS, MASK)
    return count(forward, shapes, TOKENS, MASK) / 2


@pytest.mark.parametrize(
    ("queries", "parameters", "work"),
    [(4, 7_100_160, 1.247e9), (8, 7_103_232, 1.277e9), (16, 7_109_376, 1.337e9), (32, 7_121_664, 1.457e9)],
)
def test_size_and_work_of_the_token_extraction(queries, parameters, work):
    module = TokenExtraction(12, queries=queries, frames=8)
    assert size(module, jnp.zeros((1, 8, 129, 768)), jnp.ones((1, 8), bool)) == parameters
    assert extraction_work(module) == pytest.approx(work, rel=1e-3)


def test_work_of_what_it_takes_the_place_of():
    assert extraction_work(TemporalMemoryDiffusion(12)) == pytest.approx(7.592e9, rel=1e-3)


@pytest.mark.parametrize(("tokens", "work"), [(77, 66.8e9), (4 * 77, 256.3e9), (4, 6.9e9)])
def test_size_and_work_of_the_refinement(tokens, work):
    module = PromptDecoder(alpha=0.1)
    queries, context = (jax.ShapeDtypeStruct((625, n, 512), jnp.float32) for n in (1, tokens))
    shapes = jax.eval_shape(lambda q, k: module.init(jax.random.key(0), q, k, False), queries, context)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 7_094_272
    found = count(lambda v, q, k: module.apply(v, q, k, False), shapes, queries, context)
    assert found / 2 == pytest.approx(work, rel=2e-3)


def test_full_size():
    """Two clips of eight frames, five people; nothing is allocated."""
    config = importlib.import_module("configs.cg_clip").get_config("mars")
    labels = dataclasses.replace(family.make_info().labels, identity=np.arange(8, dtype=np.int32) % 5)
    info = make_info(None, num_classes=5, frame_size=(256, 128), labels=labels)
    method = CGClip(config, info)
    rows = {k: x[:2] for k, x in vars(make_batch()).items() if k not in ("frames", "frame_mask", "extras")}
    frames, mask = jnp.zeros((2, 8, 256, 128, 3), jnp.bfloat16), jnp.ones((2, 8), bool)
    batch = type(make_batch())(frames=frames, frame_mask=mask, **rows)
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)
    sizes = {path: leaf.size for path, leaf in family.flatten_paths(variables["params"])}

    def total(start):
        return sum(n for path, n in sizes.items() if path.startswith(start))

    assert (total("image_tower"), total("refinement"), total("extraction")) == (86_140_416, 7_094_272, 7_109_376)
    memory = jax.eval_shape(method.init_memory)
    assert (memory.captions.shape, memory.captions.dtype) == ((128, 4, 77, 512), jnp.bfloat16)

    def everything(network):
        found = network.encode(batch, train=False)
        bank = network.refined(memory_bank, jnp.zeros((128, 77, 512)), jnp.ones((128, 77), bool), train=False)
        return found, network.logits(found, batch, False), network.similar(found, bank, batch, False), bank

    memory_bank = jnp.zeros((5, 512))
    found, logits, similar, bank = jax.eval_shape(lambda v: method.network.apply(v, method=everything), variables)
    assert found["tokens"].shape == (2, 8, 129, 768)
    wanted = {"last": (2, 768), "projected": (2, 512), "temporal": (2, 768)}
    assert {name: found[name].shape for name in wanted} == wanted
    assert {name: x.shape for name, x in logits.items()} == dict.fromkeys(wanted, (2, 5))
    assert (bank.shape, similar.shape) == ((5, 512), (2, 5))
    embedded = jax.eval_shape(method.embed, variables, memory, batch)
    assert embedded["feature"].shape == (2, 2048)


# CMR ------------------------------------------------------------------------------------------------------------------


def test_attention_by_hand():
    """Two channels, one head, identity maps: q = (1, 0) looks at (1, 0) and (0, 1)."""
    eye = {"kernel": jnp.eye(2)}
    params = {"query": eye, "key": eye, "value": eye, "out": {**eye, "bias": jnp.zeros(2)}}
    module, q, k = PromptAttention(1), jnp.array([[[1.0, 0.0]]]), jnp.eye(2)[None]
    found = module.apply({"params": params}, q, k)
    np.testing.assert_allclose(found[0, 0], [0.669762, 0.330238], atol=1e-6)
    found = module.apply({"params": params}, q, k, jnp.array([True, False])[None, None, None])
    np.testing.assert_allclose(found[0, 0], [1.0, 0.0], atol=1e-6)


def test_the_bank_loss_by_hand():
    """M = (2, 0), (0, 2), αΔ = (0.5, 0), (0, −0.5), v = (1, 1) of the first."""
    bank, v = jnp.array([[2.0, 0.0], [0.0, 2.0]]), jnp.array([[1.0, 1.0]])
    moved = bank + jnp.array([[0.5, 0.0], [0.0, -0.5]])
    y, valid = jnp.array([0]), jnp.array([True])
    np.testing.assert_allclose(v @ moved.T, [[2.5, 1.5]])
    assert cross_entropy(v @ moved.T, y, valid, 0.1) == pytest.approx(0.363262, abs=1e-6)
    for smoothing in (0.0, 0.1):
        assert cross_entropy(v @ bank.T, y, valid, smoothing) == pytest.approx(0.693147, abs=1e-6)


@pytest.mark.parametrize("level", ["token", "sentence"])
def test_rows_change_by_their_own_captions_alone(level):
    method = make_method(**{"captions.level": level})
    variables = variables_for(method)
    memory = memory_for(method, variables)
    tokens, mask = method.seen(memory, jax.random.key(0))
    found = refined(method, variables, memory.bank, tokens, mask)
    change = np.abs(found - memory.bank).max(axis=1)
    assert (change[:3] > 1e-2).all() and change[3] == 0  # of the last person nobody said anything
    swapped = tokens.at[jnp.array([0, 1])].set(tokens[jnp.array([1, 0])])
    other = refined(method, variables, memory.bank, swapped, mask.at[jnp.array([0, 1])].set(mask[jnp.array([1, 0])]))
    moved = np.abs(other - found).max(axis=1)
    assert (moved[:2] > 1e-3).all() and not moved[2:].any()
    padded = jnp.pad(tokens, ((0, 0), (0, 5), (0, 0)), constant_values=7.0), jnp.pad(mask, ((0, 0), (0, 5)))
    np.testing.assert_allclose(refined(method, variables, memory.bank, *padded), found, atol=1e-5)
    if level == "sentence":
        turned = refined(method, variables, memory.bank, tokens[:, ::-1], mask[:, ::-1])
        np.testing.assert_allclose(turned, found, atol=1e-5)
    params = variables["params"]
    still = {"params": {**params, "refinement": {**params["refinement"], "alpha": jnp.zeros(8)}}}
    np.testing.assert_array_equal(refined(method, still, memory.bank, tokens, mask), memory.bank)


def test_equal_rows_are_told_apart_by_captions_and_by_nothing_else():
    """Without CMR the logits of two people with equal rows, and so all that the bank loss says of them, are equal."""
    method = make_method()
    variables = variables_for(method)
    memory = memory_for(method, variables)
    bank = memory.bank.at[1].set(memory.bank[0])
    tokens, mask = method.seen(memory, jax.random.key(0))
    v = jax.random.normal(jax.random.key(1), (5, 8))

    def slopes(rows):
        """Of the bank loss with respect to v, where all are of the first person and where all are of the second."""
        of = [
            jax.grad(lambda v, y=y: cross_entropy(v @ rows.T, jnp.full(5, y), jnp.ones(5, bool), 0.1)) for y in (0, 1)
        ]
        return [each(v) for each in of]

    one, other = slopes(bank)
    np.testing.assert_allclose(one, other, atol=1e-6)
    one, other = slopes(refined(method, variables, bank, tokens, mask))
    assert np.abs(one - other).max() > 1e-3
    same = tokens.at[1].set(tokens[0]), mask.at[1].set(mask[0])
    rows = refined(method, variables, bank, *same)
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-6)


def test_look_alikes_are_learned_by_what_their_captions_say():
    """Four pairs of people, each pair with one row; in pictures of equal mean they differ in a small patch. The bank
    loss alone trains features and, where there is one, CMR."""
    rng, people, width = np.random.default_rng(0), 8, 16
    common = np.repeat(rng.normal(size=(4, width)), 2, axis=0)
    patch = np.where(np.arange(people)[:, None] % 2, 1.0, -1.0) * rng.normal(size=width)
    pictures = jnp.asarray(np.repeat(common + 0.3 * patch, 4, axis=0), jnp.float32)
    y, valid = jnp.repeat(jnp.arange(people), 4), jnp.ones(4 * people, bool)
    bank = jnp.asarray(common, jnp.float32)
    said = jnp.asarray(rng.normal(size=(2, 3, width)), jnp.float32)  # three tokens for either patch
    tokens, mask = said[jnp.arange(people) % 2], jnp.ones((people, 3), bool)
    module = PromptDecoder(depth=1, heads=2, dropout=0.0, alpha=0.1)
    start = {"w": jnp.eye(width), "cmr": module.init(jax.random.key(0), bank[:, None], tokens, False)}

    def rows(params, with_captions):
        change = module.apply(params["cmr"], bank[:, None], tokens, False, mask)[:, 0]
        return bank + change * with_captions

    def accuracy(with_captions):
        optimizer = optax.adam(1e-2)

        @jax.jit
        def step(carry, _):
            params, state = carry

            def loss(params):
                return cross_entropy(pictures @ params["w"] @ rows(params, with_captions).T, y, valid, 0.1)

            value, slope = jax.value_and_grad(loss)(params)
            changes, state = optimizer.update(slope, state)
            return (optax.apply_updates(params, changes), state), value

        (params, _), values = jax.lax.scan(step, (start, optimizer.init(start)), length=300)
        logits = pictures @ params["w"] @ rows(params, with_captions).T
        return float((logits.argmax(axis=1) == y).mean()), float(values[-1])

    right, value = accuracy(0.0)
    assert right == 0.5 and value > np.log(2)  # of a pair always the first
    assert accuracy(1.0)[0] == 1.0


def patched(people, seed=0):
    """A batch of four clips of each person; of a pair of people frames have one mean, and differ in a small patch."""
    rng = np.random.default_rng(seed)
    kit = np.repeat(rng.normal(size=(people // 2, 1, 1, 3)), 2, axis=0)
    frames = np.broadcast_to(kit, (people, 24, 24, 3)).copy()
    sign = np.where(np.arange(people) % 2, 1.0, -1.0)[:, None, None, None]
    frames[:, 4:8, 10:14] += sign
    frames[:, 8:12, 10:14] -= sign
    clips = np.repeat(frames, 4, axis=0)[:, None] + 0.1 * rng.normal(size=(4 * people, 3, 24, 24, 3))
    y = jnp.asarray(np.repeat(np.arange(people), 4), jnp.int32)
    one = make_batch()
    columns = {name: jnp.zeros_like(y) for name in vars(one) if name not in ("frames", "frame_mask", "extras", "valid")}
    columns |= {"identity": y, "tracklet": y, "valid": jnp.ones(len(y), bool)}
    return type(one)(frames=jnp.asarray(clips, jnp.float32), frame_mask=jnp.ones((len(y), 3), bool), **columns)


@pytest.mark.parametrize("depth", [0, 1])
def test_eight_people_in_four_pairs_are_learned_by_heart(depth):
    """With and without CMR, from the losses of the main stage; the bank loss is the lower one with CMR, because the
    rows of a pair are nearly one."""
    people = 8
    labels = dataclasses.replace(
        family.make_info().labels, identity=np.arange(people, dtype=np.int32), pid=np.arange(people, dtype=np.int32)
    )
    kits = ("a red shirt", "a blue shirt", "a green shirt", "a black shirt")
    captions = tuple((f"{kits[n // 2]} and {('white', 'yellow')[n % 2]} shoes",) for n in range(people))
    info = make_info(captions, labels=labels, num_classes=people)
    method = make_method(info, **{"cmr.depth": depth, "weights.bank": 1.0, "cmr.alpha": 0.5})
    batch = patched(people)
    variables = jax.jit(method.init)(jax.random.key(0), batch)
    plain = jax.jit(method.plain_features)(variables, None, batch)["projected"]
    features = Features({"projected": plain}, batch.tracklet, batch.tracklet, batch.valid)
    memory = jax.jit(method.bank.refresh)(variables, method.init_memory(), features, family.context())
    loss, optimizer = family.loss_of(method.stages()[0]), optax.adam(3e-3)
    frozen = variables["params"].get("text", {})
    params = {name: tree for name, tree in variables["params"].items() if name != "text"}

    @jax.jit
    def step(carry, _):
        params, stats, state = carry

        def of(params):
            return loss({**params, "text": frozen}, stats, memory, batch)

        slopes, (metrics, stats, _) = jax.grad(of, has_aux=True)(params)
        changes, state = optimizer.update(slopes, state, params)
        return (optax.apply_updates(params, changes), stats, state), metrics["loss_bank"]

    start = params, variables["batch_stats"], optimizer.init(params)
    (params, stats, _), values = jax.lax.scan(step, start, length=80)
    found = jax.jit(method.embed)({"params": {**params, "text": frozen}, "batch_stats": stats}, memory, batch)[
        "feature"
    ]
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    likeness = np.asarray(unit @ unit.T) - 2 * np.eye(len(unit))
    assert (np.asarray(batch.identity)[likeness.argmax(1)] == np.asarray(batch.identity)).all()
    assert (float(values[-1]) < 0.9 * np.log(2) + 0.3) == bool(depth), float(values[-1])


# TFE ------------------------------------------------------------------------------------------------------------------


def extracted(places, seed=0, **settings):
    module = TokenExtraction(2, queries=3, frames=4, **settings)
    rng = np.random.default_rng(seed)
    x, mask = jnp.asarray(rng.normal(size=(2, 4, 5, 8)), jnp.float32), jnp.ones((2, 4), bool)
    variables = family.filled(module.init, x, mask, scale=1.0)
    table = variables["params"]["places"]
    variables["params"]["places"] = table if places else jnp.zeros_like(table)
    return variables, x, mask, jax.jit(module.apply)


@pytest.mark.parametrize("places", [False, True])
def test_the_order_of_frames_matters_where_they_have_places(places):
    variables, x, mask, run = extracted(places)
    found, turned = run(variables, x, mask), run(variables, x[:, np.array([2, 0, 3, 1])], mask)
    moved = np.abs(found - turned).max()
    assert moved > 1e-3 if places else moved < 1e-4


def test_masked_frames_are_not_seen():
    variables, x, mask, run = extracted(True)
    short = mask.at[1, 2:].set(False)
    found = run(variables, x, short)
    np.testing.assert_allclose(found[1], run(variables, x[:, :2], mask[:, :2])[1], atol=1e-5)
    np.testing.assert_array_equal(run(variables, x.at[1, 2:].set(9.0), short), found)
    assert np.abs(run(variables, x, mask) - found)[1].max() > 1e-3


def test_attention_without_preferences_is_the_mean():
    """Queries and keys 0: what every learned token takes up is the output map of the mean value."""
    variables, x, mask, run = extracted(False)
    layer, params = variables["params"]["layer_0"], variables["params"]
    blind = {name: jax.tree.map(jnp.zeros_like, layer[name]) for name in ("query", "key")}
    no_mlp = {"down": jax.tree.map(jnp.zeros_like, layer["down"])}
    found = run({"params": {**params, "layer_0": {**layer, **blind, **no_mlp}}}, x, mask)

    def norm(y, scale):
        y = np.asarray(y, np.float64)
        standard = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
        return standard * np.asarray(scale["scale"]) + np.asarray(scale["bias"])

    def linear(y, weights):
        return y @ np.asarray(weights["kernel"], np.float64) + np.asarray(weights["bias"])

    mean = linear(norm(x.reshape(2, 20, 8), params["norm_tokens"]), layer["value"]).mean(1)
    h = np.asarray(params["queries"]) + linear(mean, layer["out"])[:, None]
    np.testing.assert_allclose(found, norm(h, params["norm_out"]).mean(1), atol=1e-5)


@pytest.mark.parametrize("stop", [True, False])
def test_whether_its_losses_reach_the_tower(stop):
    changes = {"tfe.stop_grad": stop, "weights.bank": 0.0, "weights.triplet": 1.0, "triplet.features": ("temporal",)}
    method = make_method(**changes, **{"weights.identity": 0.0, "triplet.margin": 5.0})
    variables = variables_for(method)
    memory = memory_for(method, variables)
    loss = family.loss_of(method.stages()[0])
    slopes = jax.jit(jax.grad(lambda p: loss(p, variables["batch_stats"], memory, make_batch())[0]))(
        variables["params"]
    )
    of = largest(slopes)
    assert max(value for path, value in of.items() if path.startswith("extraction")) > 1e-4
    tower = [value for path, value in of.items() if path.startswith(("image_tower", "side_table"))]
    assert (max(tower) == 0.0) == stop


# Gradients, and what trains -------------------------------------------------------------------------------------------


def test_what_the_bank_loss_reaches():
    method = make_method(**{"weights.identity": 0.0, "weights.triplet": 0.0, "weights.bank": 1.0})
    variables = variables_for(method)
    memory = memory_for(method, variables)
    loss = family.loss_of(method.stages()[0])

    def of(params, arrays):
        return loss(params, variables["batch_stats"], memory.replace(**arrays), make_batch())[0]

    arrays = {"bank": memory.bank, "captions": memory.captions}
    slopes, fixed = jax.jit(jax.grad(of, (0, 1)))(variables["params"], arrays)
    found = largest(slopes)
    reached = {path for path, value in found.items() if value}
    assert "refinement/alpha" in reached and found["refinement/alpha"] > 1e-4
    assert {path for path in found if path.startswith("refinement")} <= reached
    assert any(path.startswith("image_tower") for path in reached)
    assert not any(path.startswith(("text", "extraction", "necks")) for path in reached)
    assert not largest(fixed)["bank"] and not largest(fixed)["captions"]


def test_only_the_bank_loss_reaches_the_refinement():
    method = make_method(**{"weights.bank": 0.0})
    variables = variables_for(method)
    memory = memory_for(method, variables)
    loss = family.loss_of(method.stages()[0])
    slopes = jax.jit(jax.grad(lambda p: loss(p, variables["batch_stats"], memory, make_batch())[0]))(
        variables["params"]
    )
    assert not any(value for path, value in largest(slopes).items() if path.startswith(("refinement", "text")))


def test_learning_rates():
    """5e-6, of biases twice that; ten times as much for CMR, TFE and the classifier of its feature; no text tower."""
    config = importlib.import_module("configs.cg_clip").get_config("mars")
    small = family.make_config("cg_clip")
    config.backbone = small.backbone
    method = CGClip(config, make_info())
    (stage,) = method.stages()
    optimizer = stage.updates[0].optimizer
    params = jax.eval_shape(method.init, jax.random.key(0), make_batch())["params"]
    trained, frozen = split_trained(params, optimizer)
    assert set(frozen) == {"text"} and "text" not in trained
    rates = {path: find_group(path, optimizer.groups).lr for path in family.paths(trained)}
    wanted = {
        "image_tower/class_token": 5e-6,
        "image_tower/norm_post/bias": 1e-5,
        "necks_last/classifier/kernel": 5e-6,
        "necks_temporal/classifier/kernel": 5e-5,
        "necks_temporal/norm/scale": 5e-6,
        "refinement/alpha": 5e-5,
        "refinement/change/bias": 1e-4,
        "extraction/queries": 5e-5,
        "extraction/places": 5e-5,
        "extraction/layer_0/out/bias": 1e-4,
    }
    assert {path: rates.get(path) for path in wanted} == {path: pytest.approx(lr) for path, lr in wanted.items()}


# Captions -------------------------------------------------------------------------------------------------------------


def test_which_captions_stand_for_a_person():
    """Cameras that have none yet, then longer tracklets, then ids; second captions of a tracklet last."""
    table = dataclasses.replace(
        family.make_info().table,
        camera=np.array([1, 1, 2, 2, 1, 3, 1, 1], np.int32),
        length=np.array([5, 9, 7, 7, 4, 1, 3, 3], np.int32),
    )
    labels = dataclasses.replace(family.make_info().labels, identity=np.array([0, 0, 0, 0, 0, 1, -1, 2], np.int32))
    texts = (
        ("a",),
        ("b", "bb"),
        ("c",),
        ("d",),
        ("e",),
        ("f", "f", "I'm sorry, I cannot see a person."),
        ("g",),
        (" ",),
    )
    info = make_info(texts, table=table, labels=labels)
    found = captions_of(info, 9)
    assert found[0] == ["b", "c", "d", "a", "e", "bb"]  # cameras 1 and 2; of 2 the other; of 1 by length
    assert found[1:] == [["f"], [], []]
    assert captions_of(info, 3)[0] == ["b", "c", "d"]


def test_coverage_is_a_hand_count():
    method = make_method()
    says(method.notes(), "5 captions", "3 of 4", "1 have none", "their own")
    assert method.assumptions()["captions"] == "yes"
    template = make_method(**{"captions.source": "template"})
    assert "captions" not in template.assumptions() and not CGClip.reads_captions(template.config)
    says(template.notes(), "same sentence")
    says(make_method(**{"captions.source": "shuffled"}).notes(), "another person")


def test_controls():
    method = make_method(**{"captions.source": "template"})
    assert method.bank.of_identities == [["A photo of a person."]] * PEOPLE
    captions = [["a"], ["b"], ["c", "d"], []]
    other = shuffled(captions)
    assert sorted(other) == sorted(captions) and all(a != b for a, b in zip(captions, other, strict=True))
    assert other == shuffled(captions)


def test_captions_that_are_too_long_end_with_a_sentence():
    words = walkers_words()
    text = "a red shirt. a person with short hair. white shoes and a cap"
    whole = words(text, context=40)[0]
    ends = np.flatnonzero(whole == words(".", context=3)[0, 1])
    assert len(ends) == 2
    for context, stop in ((ends[1] + 2, ends[1]), (ends[1] + 1, ends[0]), (ends[0] + 2, ends[0])):
        (row,) = words(text, context=int(context), truncate="sentences")
        assert row[: stop + 1].tolist() == whole[: stop + 1].tolist()
        assert row[stop + 1] == words.end and not row[stop + 2 :].any()
    (row,) = words(text, context=int(ends[0]) + 1, truncate="sentences")  # within the first
    assert row.tolist() == [*whole[: ends[0]].tolist(), words.end]
    with refuses(ValueError, 6):
        words(text, context=6)
    info = make_info(((text, "a cap"), *CAPTIONS[1:]))
    with pytest.warns(UserWarning, match="1 of 5 captions"):
        ids = make_method(info, **{"captions.length": int(ends[1]) + 1}).bank.ids
    assert ids.shape == (PEOPLE, 4, ends[1] + 1)
    assert ids[0, 0].argmax() == ends[0] + 1


def test_refusals_are_left_out(tmp_path):
    file = tmp_path / "captions.jsonl"
    file.write_text(
        '{"tracklet": "a", "caption": "I’m sorry, but I can\'t help."}\n{"tracklet": "a", "caption": "A man."}\n'
    )
    found = read_captions(file, "mars", [("a", 7)])
    assert found.texts == {"a": ["A man."]}
    says(found.remarks, 1, "refusals")
    assert not any(map(refuses_to_tell, ("A person in a shirt that says sorry.", "An AI logo on a shirt.", "I")))
    assert all(map(refuses_to_tell, ("As an AI model, I", "I cannot identify people", "There is no person here.")))


def test_nobody_is_described():
    with refuses(ValueError, "toy", "import-sidecar captions", "captions.source='template'", "cmr.depth=0"):
        _ = make_method(make_info(((),) * 8)).bank.ids


def test_captions_token_by_token_end_in_clips_own_feature():
    ids = walkers_words()(["a tall person", "a person with short hair"], context=12)
    module = CaptionTower(family.TEXT)
    variables = family.filled(module.init, jnp.asarray(ids), scale=1.0)
    tokens = jax.jit(module.apply)(variables, ids)
    own = jax.jit(TextTower(family.TEXT).apply)({"params": variables["params"]["tower"]}, ids)["projected"]
    np.testing.assert_allclose(tokens[np.arange(2), ids.argmax(axis=1)], own, atol=1e-6)


@pytest.mark.parametrize("level", ["token", "sentence"])
def test_the_refreshing_fills_rows_and_captions(level):
    method = make_method(**{"captions.level": level, "captions.pad_to_multiple_of": 3})
    variables = variables_for(method)
    memory = memory_for(method, variables)
    texts = captions_of(make_info(), 4)
    assert memory.captions.shape == (6, 4, 48 if level == "token" else 1, 8) and memory.length.shape == (6, 4)
    tower = jax.jit(TextTower(family.TEXT).apply)
    for person, of_person in enumerate(texts):
        assert (memory.length[person] > 0).sum() == len(of_person)
        for place, text in enumerate(of_person):
            length = len(walkers_words().encode(text)) + 2
            assert memory.length[person, place] == length
            own = tower({"params": variables["params"]["text"]["tower"]}, walkers_words()(text))["projected"][0]
            end = memory.captions[person, place, length - 1 if level == "token" else 0]
            np.testing.assert_allclose(end, own, atol=1e-5)
    assert not memory.length[PEOPLE:].any()


def test_every_step_draws_captions_and_devices_agree():
    length = jnp.asarray([[5, 4, 3, 2], [5, 0, 0, 0], [0, 0, 0, 0], [4, 4, 0, 0], [1, 1, 1, 0], [2, 2, 2, 2]] * 4)
    key = jax.random.key(7)
    one = np.stack([draw(jax.random.fold_in(key, step), length) for step in range(200)])
    assert (one[:, 1] == 0).all() and (one[:, 2] == 0).all()
    assert [set(one[:, row]) for row in (0, 3, 4)] == [{0, 1, 2, 3}, {0, 1}, {0, 1, 2}]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    many = jax.jit(draw, in_shardings=(None, split), out_shardings=split)
    for step in range(3):
        np.testing.assert_array_equal(many(jax.random.fold_in(key, step), length), one[step])


def test_test_features_know_no_caption():
    """Bit for bit, whatever stands in memory and in the text tower."""
    method = make_method()
    variables, batch = variables_for(method), make_batch()
    memory = memory_for(method, variables)
    embed = jax.jit(method.embed)
    found = embed(variables, memory, batch)["feature"]
    assert found.shape == (8, 16 + 8 + 16)
    noise = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), memory)
    params = variables["params"]
    other = {**params, **{name: jax.tree.map(lambda x: x + 1, params[name]) for name in ("text", "refinement")}}
    np.testing.assert_array_equal(embed({**variables, "params": other}, noise, batch)["feature"], found)
    silent = make_method(make_info(None))
    np.testing.assert_array_equal(jax.jit(silent.embed)(variables, silent.init_memory(), batch)["feature"], found)


# Switches -------------------------------------------------------------------------------------------------------------


def with_same_parameters(first, second):
    """Variables of two methods: what both have is the same."""
    one, other = variables_for(first), variables_for(second)
    shared = {name: one["params"].get(name, tree) for name, tree in other["params"].items()}
    return one, {**other, "params": shared}


LOSSES = ("loss_identity", "loss_triplet", "loss_bank")
CHANGED = {  # switch → losses that it changes, with one set of parameters
    "captions.source": ("shuffled", {"loss_bank"}),
    "captions.level": ("sentence", {"loss_bank"}),
    "captions.per_identity": (1, {"loss_bank"}),
    "captions.length": (6, {"loss_bank"}),
    "captions.pad_to_multiple_of": (4, set()),
    "cmr.depth": (0, {"loss_bank"}),
    "cmr.alpha": (0.5, set()),  # where training starts alone
    "cmr.context": ("caption+video", {"loss_bank"}),
    "tfe.temporal_embed": (False, {"loss_identity", "loss_triplet"}),
    "tfe.stop_grad": (False, set()),  # the slope alone
    "memory.momentum": (0.5, set()),  # memory alone
    "weights.caption_contrast": (1.0, {"loss_caption_contrast"}),
}


@pytest.mark.parametrize("key", CHANGED)
@pytest.mark.filterwarnings("ignore:.*captions have more than")
def test_a_switch_changes_this_and_nothing_else(key):
    value, wanted = CHANGED[key]
    plain, switched = make_method(), make_method(**{key: value})
    one, other = with_same_parameters(plain, switched)
    rows = [memory_for(method, variables) for method, variables in ((plain, one), (switched, other))]
    (_, (before, _, kept)), (_, (after, _, moved)) = (
        losses(method, variables, memory)
        for method, variables, memory in ((plain, one, rows[0]), (switched, other, rows[1]))
    )
    changed = {name for name in after if name not in before or abs(after[name] - before[name]) > 1e-6}
    assert changed == wanted and set(LOSSES) <= set(before)
    np.testing.assert_array_equal(kept.bank, rows[0].bank)
    if key != "memory.momentum":
        np.testing.assert_array_equal(moved.bank, rows[1].bank)


def test_what_there_is_without_a_part():
    """The parameters that a switch takes out or adds."""

    def parts(**changes):
        return set(jax.eval_shape(make_method(**changes).init, jax.random.key(0), make_batch())["params"])

    own = {"image_tower", "side_table", "necks_last", "necks_projected"}
    tfe, cmr = {"extraction", "necks_temporal"}, {"refinement", "text"}
    no_tfe = {"tfe.layers": 0, "triplet.features": ("last", "projected"), "embedding": ("last", "projected")}
    assert parts() == own | tfe | cmr
    assert parts(**{"cmr.depth": 0}) == own | tfe
    assert parts(**no_tfe) == own | cmr
    assert parts(**no_tfe, **{"cmr.depth": 0}) == own
    assert parts(**{"cmr.depth": 0, "weights.caption_contrast": 1.0}) == own | tfe | {"text"}
    assert parts(**{"cmr.context": "caption+video"}) == own | tfe | cmr | {"sequence"}
    shapes = jax.eval_shape(make_method(**{"tfe.queries": 5, "tfe.layers": 2}).init, jax.random.key(0), make_batch())
    assert shapes["params"]["extraction"]["queries"].shape == (5, 16) and "layer_1" in shapes["params"]["extraction"]
    start = make_method(**{"cmr.alpha": 0.5, "cmr.depth": 1})
    found = jax.jit(start.init)(jax.random.key(0), make_batch())["params"]["refinement"]
    assert (np.asarray(found["alpha"]) == 0.5).all() and "cross_1" not in found
    assert not isinstance(make_method(**{"cmr.depth": 0}).init_memory(), CaptionMemory)


def test_rows_that_follow_the_batches():
    """m ← μ·m + (1 − μ)·mean of the person's valid clips; people who are not there keep theirs."""
    method = make_method(**{"memory.momentum": 0.75})
    rng = np.random.default_rng(0)
    memory = method.init_memory().replace(bank=jnp.asarray(rng.normal(size=(PEOPLE, 8)), jnp.float32))
    batch = make_batch()
    batch = batch.replace(valid=jnp.asarray([1, 1, 1, 0, 0, 0, 1, 1], bool))
    v = jnp.asarray(rng.normal(size=(8, 8)), jnp.float32)
    _, moved = method.bank.loss(v, v @ memory.bank.T, memory, batch)
    wanted = np.asarray(memory.bank).copy()
    for person, rows in ((0, [0, 1]), (1, [2]), (3, [6, 7])):
        wanted[person] = 0.75 * wanted[person] + 0.25 * np.asarray(v)[rows].mean(0)
    np.testing.assert_allclose(moved.bank, wanted, atol=1e-6)


def test_contrast_of_clips_and_captions_by_hand():
    """v against the mean end token of the captions of its person; who has none, does not count."""
    method = make_method(**{"weights.caption_contrast": 1.0, "captions.level": "sentence", "cmr.depth": 0})
    batch, rng = make_batch(), np.random.default_rng(0)
    captions = jnp.asarray(rng.normal(size=(8, 4, 1, 8)), jnp.float32)
    length = jnp.asarray([[3, 3, 0, 0], [4, 0, 0, 0], [3, 3, 3, 3], [0, 0, 0, 0]] + [[0] * 4] * 4)
    memory = CaptionMemory(jnp.zeros((PEOPLE, 8)), captions, length)
    v = rng.normal(size=(8, 8))
    found = method.more_losses({"projected": jnp.asarray(v, jnp.float32)}, {}, memory, batch)["caption_contrast"][1]
    ends = np.asarray(captions, np.float64)[:, :, 0]
    t = np.repeat([ends[0, :2].mean(0), ends[1, 0], ends[2].mean(0)], 2, axis=0)

    def one_way(a, b):
        logits = a @ b.T
        log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -np.mean([(log[i, i] + log[i, i ^ 1]) / 2 for i in range(6)])

    assert found == pytest.approx(one_way(v[:6], t) + one_way(t, v[:6]), abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tfe.layers": 0}, ("config.embedding", "config.tfe.layers=0")),
        ({"evaluation.seq_len": 9}, ("config.evaluation.seq_len=9", "config.tfe.temporal_embed=False")),
        ({"captions.length": 99}, ("config.captions.length=99", 77)),
        ({"cmr.context": "caption+video", "cmr.depth": 0}, ("config.cmr.context", "config.cmr.depth")),
        ({"captions.source": "model"}, ("config.captions.source", "file", "template", "shuffled")),
    ],
)
def test_values_that_make_no_sense(changes, named):
    with refuses(ValueError, *named):
        check_config(family.make_config("cg_clip", **changes))


def test_presets_of_tracks_choose_their_protocol():
    presets = importlib.import_module("configs.cg_clip")
    for name in ("sports_vreid", "dance_vreid"):
        config = presets.get_config(name)
        assert tuple(config.dataset.protocols) == ("market",) and not config.sie.columns
        config.dataset.protocols = ("single_match",)
        check_config(config)
    assert tuple(presets.get_config("mars").sie.columns) == ("camera_index",)
    assert caption_bank.SOURCES == ("file", "shuffled", "template")
