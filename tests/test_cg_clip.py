"""CG-CLIP's network, losses and gradients: golden numbers, computed apart from the library; its invariants and every
switch."""

import dataclasses
import importlib
from types import SimpleNamespace

import family
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from captioned import make_info, make_method, memory_for
from family import largest, make_batch, random_variables

from jaxreid.backbones.flops import count
from jaxreid.layers.prompt_decoder import PromptDecoder
from jaxreid.layers.tf_clip import TemporalMemoryDiffusion
from jaxreid.layers.token_extraction import TokenExtraction
from jaxreid.losses.identity import cross_entropy
from jaxreid.methods.cg_clip import CGClip


@pytest.fixture(scope="module", autouse=True)
def small_towers():
    with pytest.MonkeyPatch.context() as patch:
        family.small_towers(patch)
        yield


@pytest.fixture(scope="module")
def plain(small_towers):
    """The method without changes, its variables and memory, and what its losses are."""
    method = make_method()
    variables = random_variables(method)
    memory = memory_for(method, variables)
    return SimpleNamespace(method=method, variables=variables, memory=memory, found=losses(method, variables, memory))


def losses(method, variables, memory):
    """(metrics, memory) after a batch."""
    loss = family.loss_of(method.stages()[0])
    _, (metrics, _, moved) = jax.jit(loss)(variables["params"], variables["batch_stats"], memory, make_batch())
    return metrics, moved


def slopes(method, variables, memory):
    """Of the total loss, path → the largest."""
    loss = family.loss_of(method.stages()[0])
    of = jax.jit(jax.grad(lambda *x: loss(*x)[0]))
    return largest(of(variables["params"], variables["batch_stats"], memory, make_batch()))


def refined(method, variables, bank, tokens, mask):
    return jax.jit(lambda *x: method.network.apply(x[0], *x[1:], False, method="refined"))(
        variables, bank, jnp.asarray(tokens), jnp.asarray(mask)
    )


# Sizes and work -------------------------------------------------------------------------------------------------------


TOKENS, MASK = jax.ShapeDtypeStruct((1, 8, 129, 768), jnp.float32), jax.ShapeDtypeStruct((1, 8), bool)


def size_and_work(module):
    shapes = jax.eval_shape(module.init, jax.random.key(0), TOKENS, MASK)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes)), count(module.apply, shapes, TOKENS, MASK) / 2


@pytest.mark.parametrize(
    ("queries", "parameters", "work"),
    [(4, 7_100_160, 1.247e9), (8, 7_103_232, 1.277e9), (16, 7_109_376, 1.337e9), (32, 7_121_664, 1.457e9)],
)
def test_size_and_work_of_the_token_extraction(queries, parameters, work):
    found = size_and_work(TokenExtraction(12, queries=queries, frames=8))
    assert found == (parameters, pytest.approx(work, rel=1e-3))


def test_work_of_what_it_takes_the_place_of():
    assert size_and_work(TemporalMemoryDiffusion(12))[1] == pytest.approx(7.592e9, rel=1e-3)


@pytest.mark.parametrize(("tokens", "work"), [(77, 66.8e9), (4 * 77, 256.3e9), (4, 6.9e9)])
def test_work_of_the_refinement(tokens, work):
    module = PromptDecoder(alpha=0.1)
    queries, context = (jax.ShapeDtypeStruct((625, n, 512), jnp.float32) for n in (1, tokens))
    shapes = jax.eval_shape(lambda q, k: module.init(jax.random.key(0), q, k, False), queries, context)
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
def test_rows_change_by_their_own_captions_alone(plain, level):
    method, variables, memory = plain.method, plain.variables, plain.memory
    if level == "sentence":
        method = make_method(**{"captions.level": level})
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


def test_equal_rows_are_told_apart_by_captions_and_by_nothing_else(plain):
    """Without CMR the logits of two people with equal rows, and so all that the bank loss says of them, are equal."""
    method, variables, bank = plain.method, plain.variables, plain.memory.bank
    bank = bank.at[1].set(bank[0])
    tokens, mask = method.seen(plain.memory, jax.random.key(0))
    v = jax.random.normal(jax.random.key(1), (5, 8))

    def of_either(rows):
        """Slopes of the bank loss in v, where all are of the first person and where all are of the second."""
        of = [
            jax.grad(lambda v, y=y: cross_entropy(v @ rows.T, jnp.full(5, y), jnp.ones(5, bool), 0.1)) for y in (0, 1)
        ]
        return [each(v) for each in of]

    one, other = of_either(bank)
    np.testing.assert_allclose(one, other, atol=1e-6)
    one, other = of_either(refined(method, variables, bank, tokens, mask))
    assert np.abs(one - other).max() > 1e-3
    same = tokens.at[1].set(tokens[0]), mask.at[1].set(mask[0])
    rows = refined(method, variables, bank, *same)
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-6)


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


def least_with_equal_rows(people, smoothing):
    """The least smoothed cross entropy where the rows of every pair are one, whatever the features. Both of a pair then
    have one logit, so the best that can be predicted are the smoothed targets with those of the pair averaged."""
    wanted = np.full(people, smoothing / people)
    wanted[0] += 1 - smoothing
    best = wanted.copy()
    best[:2] = wanted[:2].mean()
    return -(wanted * np.log(best)).sum()


@pytest.mark.parametrize("depth", [0, 1])
def test_eight_people_in_four_pairs_are_learned_by_heart(depth):
    """With and without CMR, from the losses of the main stage. Rows of a pair are one, so that captions alone bring the
    bank loss below the bound for equal rows: of eight people 1.042, where chance is log 8 = 2.079 and rows that
    differ could reach 0.467, the entropy of the smoothed targets."""
    people = 8
    identity = np.arange(people, dtype=np.int32)
    labels = dataclasses.replace(family.make_info().labels, identity=identity, pid=identity)
    kits = ("a red shirt", "a blue shirt", "a green shirt", "a black shirt")
    captions = tuple((f"{kits[n // 2]} and {('white', 'yellow')[n % 2]} shoes",) for n in range(people))
    info = make_info(captions, labels=labels, num_classes=people)
    method = make_method(info, **{"cmr.depth": depth, "weights.bank": 1.0, "cmr.alpha": 0.5})
    batch = patched(people)
    variables = jax.jit(method.init)(jax.random.key(0), batch)
    of_clips = jax.jit(method.plain_features)(variables, None, batch)["projected"]
    of_pairs = of_clips.reshape(people // 2, -1, of_clips.shape[1]).mean(axis=1)
    memory = memory_for(method, variables, jnp.repeat(of_pairs, 2, axis=0))
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
    variables = {"params": {**params, "text": frozen}, "batch_stats": stats}
    found = jax.jit(method.embed)(variables, memory, batch)["feature"]
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    likeness = np.asarray(unit @ unit.T) - 2 * np.eye(len(unit))
    assert (np.asarray(batch.identity)[likeness.argmax(1)] == np.asarray(batch.identity)).all()
    bound = least_with_equal_rows(people, method.config.label_smoothing)
    assert bound == pytest.approx(1.0419, abs=1e-4)
    if depth:
        assert values[-1] < bound
    else:
        assert values.min() > bound - 1e-4


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
def test_whether_its_losses_reach_the_tower(plain, stop):
    changes = {"tfe.stop_grad": stop, "weights.bank": 0.0, "weights.triplet": 1.0, "triplet.features": ("temporal",)}
    method = make_method(**changes, **{"weights.identity": 0.0, "triplet.margin": 5.0})
    of = slopes(method, plain.variables, plain.memory)
    assert max(value for path, value in of.items() if path.startswith("extraction")) > 1e-4
    tower = [value for path, value in of.items() if path.startswith(("image_tower", "side_table"))]
    assert (max(tower) == 0.0) == stop


# Gradients, features and switches -------------------------------------------------------------------------------------


def test_what_the_bank_loss_reaches(plain):
    method = make_method(**{"weights.identity": 0.0, "weights.triplet": 0.0, "weights.bank": 1.0})
    variables, memory = plain.variables, plain.memory
    loss = family.loss_of(method.stages()[0])

    def of(params, arrays):
        return loss(params, variables["batch_stats"], memory.replace(**arrays), make_batch())[0]

    arrays = {"bank": memory.bank, "captions": memory.captions}
    found, fixed = map(largest, jax.jit(jax.grad(of, (0, 1)))(variables["params"], arrays))
    reached = {path for path, value in found.items() if value}
    assert "refinement/alpha" in reached and found["refinement/alpha"] > 1e-4
    assert {path for path in found if path.startswith("refinement")} <= reached
    assert any(path.startswith("image_tower") for path in reached)
    assert not any(path.startswith(("text", "extraction", "necks")) for path in reached)
    assert not fixed["bank"] and not fixed["captions"]


def test_only_the_bank_loss_reaches_the_refinement(plain):
    found = slopes(make_method(**{"weights.bank": 0.0}), plain.variables, plain.memory)
    assert not any(value for path, value in found.items() if path.startswith(("refinement", "text")))


def test_test_features_know_no_caption(plain):
    """Bit for bit, whatever stands in memory and in the text tower."""
    variables, batch, embed = plain.variables, make_batch(), jax.jit(plain.method.embed)
    found = embed(variables, plain.memory, batch)["feature"]
    assert found.shape == (8, 16 + 8 + 16)
    noise = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), plain.memory)
    params = variables["params"]
    other = {**params, **{name: jax.tree.map(lambda x: x + 1, params[name]) for name in ("text", "refinement")}}
    np.testing.assert_array_equal(embed({**variables, "params": other}, noise, batch)["feature"], found)


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
def test_a_switch_changes_this_and_nothing_else(plain, key):
    value, wanted = CHANGED[key]
    method, (before, _) = make_method(**{key: value}), plain.found
    variables = random_variables(method)
    # What both have is the same.
    shared = {name: plain.variables["params"].get(name, tree) for name, tree in variables["params"].items()}
    variables = {**variables, "params": shared}
    memory = memory_for(method, variables) if key.startswith("captions.") else plain.memory
    after, moved = losses(method, variables, memory)
    changed = {name for name in after if name not in before or abs(after[name] - before[name]) > 1e-6}
    assert changed == wanted and {"loss_identity", "loss_triplet", "loss_bank"} <= set(before)
    assert (moved.bank == memory.bank).all() == (key != "memory.momentum")
