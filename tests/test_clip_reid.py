"""The CLIP-ReID family: golden numbers, computed apart from the library, and what must not depend on what."""

import dataclasses
import importlib

import family
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import CLIPS, PEOPLE, filled, largest, loss_of, make_batch, make_method, random_variables
from messages import refuses

from jaxreid.augment import Augmentation, Pixels
from jaxreid.backbones.clip import vision_config
from jaxreid.backbones.frame_encoder import encoder_config
from jaxreid.backbones.text import TextTower, text_config
from jaxreid.backbones.transformer import Hooks
from jaxreid.backbones.vit import ViT
from jaxreid.backbones.word_table import walkers_words
from jaxreid.data.clips import plan_tracklets
from jaxreid.data.samplers import IdentitySampler
from jaxreid.devices import parallel
from jaxreid.evaluation.extract import Extractor
from jaxreid.layers.prompts import PromptedText, PromptTemplate
from jaxreid.layers.tf_clip import TemporalMemoryDiffusion
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.image_text import proxy_contrast, supervised_contrastive
from jaxreid.losses.triplet import batch_hard, batch_hard_triplet, pairwise_distance
from jaxreid.memory.class_bank import build_proxies, image_memory, move_proxies
from jaxreid.methods.class_banks import BankMemory
from jaxreid.optimizers import (
    Progress,
    Schedule,
    find_group,
    learning_rate,
    make_optimizer,
    split_trained,
    transformation,
)
from jaxreid.run.config_values import check_config

CONSTANT = Schedule("constant")
MEMBERS = ("clip_reid", "vsla_clip", "tf_clip")


@pytest.fixture(autouse=True)
def small_towers(monkeypatch):
    family.small_towers(monkeypatch)


def memory_of(method, seed=3):
    rng = np.random.default_rng(seed)
    empty = method.init_memory()
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), empty)


def main_stage(method):
    return method.stages()[-1]


# Prompts --------------------------------------------------------------------------------------------------------------


def test_template_of_clip_reid():
    template = PromptTemplate.of_text("A photo of a X X X X person.", walkers_words(), own=4)
    ids = walkers_words().clip_ids[list(template.ids)].tolist()
    assert ids == [49406, 320, 1125, 539, 320, 343, 343, 343, 343, 2533, 269, 49407]
    assert (template.start, template.end) == (5, 11)


def test_template_of_vsla_clip():
    config = importlib.import_module("configs.vsla_clip").get_config("mars").prompt
    template = PromptTemplate.of_text(config.template, walkers_words(), config.n_ctx, config.shared_ctx)
    assert (template.start, template.before, template.own, template.after, template.end) == (1, 8, 4, 8, 22)


def test_a_template_without_room_is_named():
    with refuses(ValueError, 4, "X"):
        PromptTemplate.of_text("A photo of a X X X person.", walkers_words(), own=4)


@pytest.mark.parametrize("shared", [(0, 0), (8, 8)])
def test_text_up_to_its_end_equals_all_77_positions(shared):
    text = "A photo of a " + "X " * (4 + sum(shared)) + "person."
    cut, whole = (PromptTemplate.of_text(text, walkers_words(), 4, shared, context=n) for n in (None, 77))
    assert (len(cut.ids), len(whole.ids)) == (12 + sum(shared), 77)
    variables = filled(PromptedText(family.TEXT, cut, PEOPLE).init, jnp.arange(PEOPLE), scale=1.0)
    one, other = (
        jax.jit(PromptedText(family.TEXT, template, PEOPLE).apply)(variables, jnp.arange(PEOPLE))
        for template in (cut, whole)
    )
    assert np.std(one, axis=0).max() > 1e-2
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_learned_words_stand_where_the_template_says():
    """Words equal to the embedding of a known token give the sentence with that token."""
    template = PromptTemplate.of_text("A photo of a X X X X person.", walkers_words(), 4)
    module = PromptedText(family.TEXT, template, PEOPLE)
    variables = filled(module.init, jnp.arange(1), scale=1.0)
    ids = walkers_words()("a photo of a red blue green black person.", context=16)
    table = variables["params"]["tower"]["token_embedding"]
    own = variables["params"]["own"].at[2].set(table[ids[0, 5:9]])
    found = jax.jit(module.apply)({"params": {**variables["params"], "own": own}}, jnp.array([2]))
    wanted = jax.jit(TextTower(family.TEXT).apply)({"params": variables["params"]["tower"]}, ids)["projected"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_bank_does_not_depend_on_how_it_is_shared():
    module = PromptedText(family.TEXT, PromptTemplate.of_text("X person", walkers_words(), 1), PEOPLE)
    variables = filled(module.init, jnp.arange(1), scale=1.0)
    one_by_one = jax.jit(module.apply)
    rows = np.concatenate([one_by_one(variables, jnp.array([c])) for c in range(PEOPLE)])
    bank = jax.jit(lambda v: module.apply(v, 3, method="bank"))(variables)  # four people in two threes
    np.testing.assert_allclose(bank, rows, atol=1e-5)


def test_devices_share_the_identities_of_the_bank():
    """Every device of eight runs the text tower on an eighth of the sentences."""
    module = PromptedText(family.TEXT, PromptTemplate.of_text("X person", walkers_words(), 1), 16)
    variables = filled(module.init, jnp.arange(1), scale=1.0)
    mesh = parallel.make_mesh()
    shared = parallel.place(variables, jax.tree.map(lambda _: parallel.replicated(mesh), variables))
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda v: module.apply(v, 8, method="bank")).lower(shared).compile()
    assert mesh.size == 8 and "f32[2,4,64]" in compiled.as_text()  # two sentences of four words inside the MLP
    whole = jax.jit(lambda v: module.apply(v, 1, method="bank"))(variables)
    np.testing.assert_allclose(compiled(shared), whole, atol=1e-5)


# Learning rates -------------------------------------------------------------------------------------------------------


def rates(schedule, base, epochs, counted_from_1):
    """Learning rate in each of the epochs, in the middle of it."""
    found = []
    for epoch in counted_from_1:
        progress = Progress(step=0, epoch=jnp.float32(epoch - 0.5), fraction=jnp.float32(0))
        found.append(float(learning_rate(Schedule(**schedule), epochs, base)(progress)))
    return found


def test_learning_rates_of_stage_1():
    first = importlib.import_module("configs.clip_reid").get_config("mars").stage1
    found = rates(first.schedule, first.lr, first.epochs, (1, 2, 4, 5, 6, 30, 60, 90, 119, 120))
    wanted = [7.8e-5, 1.46e-4, 2.82e-4, 3.48507e-4, 3.47852e-4, 2.9889e-4, 1.755e-4, 5.21099e-5, 1.0598e-6, 1e-6]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("member", "epochs", "wanted"),
    [
        ("clip_reid", (1, 2, 9, 10, 29, 30, 49, 50), (9.5e-7, 1.4e-6, 4.55e-6, 5e-6, 5e-6, 5e-7, 5e-7, 5e-8)),
        ("tf_clip", (1, 2, 10, 11, 30, 31, 51, 71), (5e-7, 9.5e-7, 4.55e-6, 5e-6, 5e-6, 5e-7, 5e-8, 5e-9)),
        ("vsla_clip", (1, 10, 60, 90), (1.9e-5, 1e-4, 1e-5, 1e-6)),
    ],
)
def test_learning_rates_of_stage_2(member, epochs, wanted):
    config = importlib.import_module(f"configs.{member}").get_config("mars")
    np.testing.assert_allclose(rates(config.schedule, config.optimizer.lr, config.epochs, epochs), wanted, rtol=1e-5)


def test_presets_are_the_released_recipes():
    """What the released codes train with on MARS."""
    for member, wanted in {
        "clip_reid": ((16, 4, 1), 60, 5e-6, "euclidean", ("penultimate", "last", "projected"), ()),
        "vsla_clip": ((8, 4, 8), 120, 1e-4, "cosine", ("penultimate", "last", "projected"), ()),
        "tf_clip": ((4, 4, 8), 80, 5e-6, "euclidean", ("last", "projected", "temporal"), ("camera_index",)),
    }.items():
        c = importlib.import_module(f"configs.{member}").get_config("mars")
        batch = (c.batch.num_identities, c.batch.num_instances, c.batch.seq_len)
        found = (
            batch,
            c.epochs,
            c.optimizer.lr,
            c.triplet.metric,
            tuple(c.triplet.features),
            tuple(c.sie.columns),
        )
        assert found == wanted
        assert (c.weights.identity, c.weights.triplet, c.weights.bank, c.label_smoothing) == (0.25, 1, 1, 0.1)
        drawn = {"clip_reid": "chunk", "vsla_clip": "floor", "tf_clip": "chunk"}
        erased = (0.2, ("erase",)) if member == "tf_clip" else (0.4, ())
        assert (c.batch.clip_sampling, (c.augment.erase_area, tuple(c.augment.per_frame))) == (drawn[member], erased)
        bias = find_group("image_tower/block_00/beside_mlp/down/bias", make_optimizer(c.optimizer).groups)
        assert (c.optimizer.name, bias.lr, bias.weight_decay) == ("adam", 2 * c.optimizer.lr, 1e-4)


@pytest.mark.parity
def test_weight_decay_is_in_the_gradient_and_biases_have_their_own():
    """Two steps of a bias and a weight against PyTorch's Adam, whose weight decay is an L2 term."""
    import torch

    rows = (("beside_.*bias$", 2.0, 0.1), ("beside_", 1.0, None), (".*", 0.0, None))
    method = make_method("vsla_clip", **{"optimizer.weight_decay": 0.3, "optimizer.groups": rows})
    optimizer = main_stage(method).updates[0].optimizer
    paths = ("image_tower/block_00/beside_mlp/down/kernel", "image_tower/block_00/beside_mlp/down/bias")
    groups = [find_group(path, optimizer.groups) for path in paths]
    assert [g.lr for g in groups] == pytest.approx([3e-3, 6e-3]) and groups[0].weight_decay == 0.3
    values, slopes = [np.float32([0.5, -2.0]), np.float32([1.5])], [np.float32([0.2, 0.1]), np.float32([-0.4])]
    theirs = [torch.nn.Parameter(torch.tensor(v)) for v in values]
    adam = torch.optim.Adam(
        [{"params": [p], "lr": g.lr, "weight_decay": g.weight_decay} for p, g in zip(theirs, groups, strict=True)]
    )

    def tree(leaves):
        return {
            "image_tower": {"block_00": {"beside_mlp": {"down": dict(zip(("kernel", "bias"), leaves, strict=True))}}}
        }

    update, ours = transformation(optimizer, CONSTANT, 1), tree([jnp.asarray(v) for v in values])
    state = update.init(ours)
    for _ in range(2):
        for p, g in zip(theirs, slopes, strict=True):
            p.grad = torch.tensor(g)
        adam.step()
        gradients = tree([jnp.asarray(g) for g in slopes])
        changes, state = update.update(gradients, state, ours, progress=family.progress())
        ours = optax.apply_updates(ours, changes)
    found = ours["image_tower"]["block_00"]["beside_mlp"]["down"]
    np.testing.assert_allclose(found["kernel"], theirs[0].detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(found["bias"], theirs[1].detach().numpy(), rtol=1e-5)


# Losses ---------------------------------------------------------------------------------------------------------------


def test_supervised_contrastive():
    v = jnp.array([[1.0, 0], [0, 1], [1, 1], [2, 0]])
    y, valid = jnp.array([0, 1, 0, 0]), jnp.ones(4, bool)
    t = jnp.array([[1.0, 0], [0, 2]])[y]
    np.testing.assert_allclose(supervised_contrastive(v, t, y, valid), 1.11036, atol=1e-5)
    np.testing.assert_allclose(supervised_contrastive(t, v, y, valid), 1.17491, atol=1e-5)
    same = jnp.ones((4, 2))
    np.testing.assert_allclose(supervised_contrastive(same, same, y, valid), np.log(4), rtol=1e-6)
    # Rows that only fill the batch do not count.
    more = [jnp.concatenate([x, 9 * jnp.ones((2, 2))]) for x in (v, t)]
    filled = supervised_contrastive(*more, jnp.array([0, 1, 0, 0, 0, 1]), jnp.arange(6) < 4)
    np.testing.assert_allclose(filled, 1.11036, atol=1e-5)


def test_smoothed_cross_entropy_and_its_floors():
    logits, y, valid = jnp.array([[2.0, 0, -1], [0, 1, 0]]), jnp.array([0, 1]), jnp.ones(2, bool)
    np.testing.assert_allclose(cross_entropy(logits, y, valid, 0.1), 0.477312, atol=1e-6)
    np.testing.assert_allclose(cross_entropy(logits, y, valid), 0.360645, atol=1e-6)
    np.testing.assert_allclose(cross_entropy(jnp.zeros((2, 625)), y, valid, 0.1), 6.43775, atol=1e-5)
    for classes, floor in ((625, 0.967317), (150, 0.820674)):
        target = np.full(classes, 0.1 / classes)
        target[0] += 0.9
        best = jnp.log(jnp.asarray(target, jnp.float32))[None]
        np.testing.assert_allclose(cross_entropy(best, y[:1], valid[:1], 0.1), floor, atol=1e-5)
        worse = cross_entropy(best * 1.1, y[:1], valid[:1], 0.1)
        assert float(worse) > floor + 1e-5


def test_batch_hard_triplets():
    y, valid = jnp.array([0, 0, 1, 1]), jnp.ones(4, bool)
    euclid = jnp.array([[0.0, 0], [1, 0], [0, 2], [3, 0]])
    positive, negative, _ = batch_hard(pairwise_distance(euclid), y, valid)
    np.testing.assert_allclose(positive, [1, 1, 3.60555, 3.60555], atol=1e-5)
    np.testing.assert_allclose(negative, [2, 2, 2, 2], atol=1e-5)
    np.testing.assert_allclose(batch_hard_triplet(euclid, y, valid), 0.952776, atol=1e-5)
    cosine = jnp.array([[1.0, 0], [1, 1], [0, 1], [-1, 1]])
    np.testing.assert_allclose(batch_hard_triplet(cosine, y, valid, 0.3, "cosine"), 0.15, atol=1e-6)


def test_stage_1_on_augmented_frames():
    """VSLA-CLIP's release: the features that prompts learn from are those of the main stage's augmentation."""
    for member, wanted in (("clip_reid", False), ("vsla_clip", True)):
        prompts, main = make_method(member, **{"stage1.augment": wanted}).stages()
        assert prompts.cached.augment == (main.augment if wanted else Augmentation())
    # A mirrored clip's features are those of the mirrored frames; the second half of the batch is another clip.
    bytes_in = np.random.default_rng(0).integers(0, 255, (CLIPS, 2, 24, 24, 3), np.uint8)
    pixels = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), jnp.float32)
    batch = make_batch().replace(frames=jnp.asarray(bytes_in), frame_mask=jnp.ones((CLIPS, 2), bool))

    def extracted(seed=0, first=0, **options):
        mesh, options = parallel.make_mesh(), Augmentation(**options)
        extractor = Extractor(lambda v, m, b: {"x": b.frames}, pixels, mesh, CLIPS, False, options, seed)
        return np.asarray(extractor.step({}, {}, batch.replace(tracklet=batch.tracklet + first)).arrays["x"])

    np.testing.assert_array_equal(extracted(flip=1.0), extracted()[:, :, :, ::-1])
    draws = [extracted(flip=0.5), extracted(flip=0.5), extracted(flip=0.5, seed=1), extracted(flip=0.5, first=8)]
    assert [np.array_equal(draws[0], other) for other in draws[1:]] == [True, False, False]


# Clips and memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "tf_clip", "vsla"),
    [
        (10, [0, 2, 4, 6, 8, 9, 9, 9], list(range(8))),
        (27, [0, 4, 8, 12, 16, 20, 24, 26], [0, 3, 6, 9, 12, 15, 18, 21]),
        (5, [0, 1, 2, 3, 4, 4, 4, 4], [0, 1, 2, 3, 4, 4, 4, 4]),
    ],
)
def test_frames_of_test_clips(length, tf_clip, vsla):
    for member, wanted in (("tf_clip", tf_clip), ("vsla_clip", vsla)):
        options = importlib.import_module(f"configs.{member}").get_config("mars").evaluation
        plan = plan_tracklets(np.array([length]), options.clip_sampling, options.seq_len)
        assert plan.frames.tolist() == [wanted]


def test_frames_of_vsla_s_training_clips():
    """Eight blocks of ⌊n / 8⌋ frames, one random frame of each; the last block takes the remainder."""
    stage = main_stage(make_method("vsla_clip", **{"batch.clip_sampling": "floor", "batch.seq_len": 8}))
    assert importlib.import_module("configs.vsla_clip").get_config("mars").batch.clip_sampling == "floor"
    info = make_method("vsla_clip").info
    length, rng, seen = np.full(CLIPS, 21), np.random.default_rng(0), [set() for _ in range(8)]
    stage = dataclasses.replace(stage, sampler=IdentitySampler(PEOPLE, 2))
    for _ in range(60):
        for clip in stage.plan(info.labels.identity, info.columns, length, rng).frames:
            for block, frame in enumerate(clip.tolist()):
                seen[block].add(frame)
    assert seen == [{2 * block, 2 * block + 1} for block in range(7)] + [set(range(14, 21))]


def test_chunks_of_the_memory_and_sliding_windows():
    dense = plan_tracklets(np.array([27]), clip_sampling="dense", seq_len=8)
    assert dense.frames[-1].tolist() == [24, 25, 26, 24, 25, 26, 24, 25] and len(dense) == 4
    windows = plan_tracklets(np.array([27, 8, 3]), clip_sampling="windows", seq_len=8)
    assert windows.tracklet.tolist() == [0, 0, 0, 0, 0, 1, 2]
    assert windows.frames[:5, 0].tolist() == [0, 4, 8, 12, 16]
    assert windows.frames[5].tolist() == list(range(8)) and windows.frames[6].tolist() == [0, 1, 2, 2, 2, 2, 2, 2]


def test_image_memory_is_a_mean_of_means():
    rng = np.random.default_rng(0)
    tracklet = np.array([0, 0, 0, 1, 2, 2, 3, 0])
    valid = np.arange(8) < 7
    identity = np.array([1, 1, 0, -1])
    features = rng.normal(size=(8, 5)).astype(np.float32)
    chunks = [features[:3].mean(0), features[3], features[4:6].mean(0)]
    wanted = [chunks[2], (chunks[0] + chunks[1]) / 2, np.zeros(5)]
    found = image_memory(*map(jnp.asarray, (features, tracklet, valid, identity)), 3)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.abs(wanted[1] - features[:4].mean(0)).max() > 0.1  # which is another thing


def rows_of_length_1(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def moved_by_hand(proxies, x, y, momentum, per_sample):
    """CLIMB-ReID's update, sample by sample and identity by identity."""

    def moved(old, new):
        row = momentum * old + (1 - momentum) * new
        return row / np.linalg.norm(row)

    mean, hard = np.split(proxies.astype(np.float64), 2)
    if per_sample:
        for sample, label in zip(x, y, strict=True):
            mean[label] = moved(mean[label], sample)
    for label in np.unique(y):
        mine = x[y == label]
        hard[label] = moved(hard[label], mine[np.argmin(mine @ mean[label])])
        mean[label] = moved(mean[label], mine.mean(0))
    return np.concatenate([mean, hard])


@pytest.mark.parametrize("per_sample", [False, True])
def test_proxies_move_to_the_mean_and_to_the_hardest_sample(per_sample):
    proxies, x = rows_of_length_1(8, 5), rows_of_length_1(7, 5, seed=1)
    y = np.array([2, 0, 2, 2, 0, 3, 1])
    valid = np.arange(7) < 6  # the last row only fills the batch, so that identity 1 is absent
    found = move_proxies(*map(jnp.asarray, (proxies, x, y, valid)), 0.2, per_sample)
    wanted = moved_by_hand(proxies, x[:6], y[:6], 0.2, per_sample)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_array_equal(found[np.array([1, 5])], proxies[np.array([1, 5])])
    other = moved_by_hand(proxies, x[:6], y[:6], 0.2, not per_sample)
    assert np.abs(other - wanted)[[0, 2, 3]].max() > 1e-2


def test_proxies_start_as_the_mean_of_unit_features():
    features = 3.0 * rows_of_length_1(5, 4)
    features[0] *= 100  # lengths do not count
    tracklet, identity = np.array([0, 1, 1, 2, 2]), np.array([1, 0, 1])
    unit = rows_of_length_1(5, 4)
    wanted = np.stack([unit[1:3].mean(0), (unit[0] + unit[3]) / 2])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    valid = np.arange(5) < 4
    found = build_proxies(*map(jnp.asarray, (features, tracklet, valid, identity)), 2)
    np.testing.assert_allclose(found, np.concatenate([wanted, wanted]), atol=1e-6)


def test_contrast_with_proxies():
    x, proxies, y = rows_of_length_1(3, 4), rows_of_length_1(4, 4, seed=2), np.array([1, 0, 1])
    logits = np.exp(x @ proxies.T / 0.05)
    mean, hard = (p[np.arange(2), y[:2]] / p.sum(1)[:2] for p in (logits[:, :2], logits[:, 2:]))
    wanted = -0.5 * (np.log(mean) + np.log(hard)).mean()
    found = proxy_contrast(*map(jnp.asarray, (x, proxies, y, np.arange(3) < 2)), 0.05)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_a_bank_that_follows_training():
    """CLIMB-ReID's memory: made of the tower as it is, contrasted as it was before the batch, moved by the batch."""
    method = make_method("climb_bank", neck_feat="before")
    (stage,) = method.stages()
    assert (stage.extraction.every, stage.extraction.clip_sampling) == (1, "dense")
    variables, batch = random_variables(method), make_batch()
    memory = BankMemory(jnp.asarray(rows_of_length_1(2 * PEOPLE, 8, seed=4)))
    assert method.init_memory().bank.shape == memory.bank.shape
    x = np.asarray(embedded(method, variables, batch)[:, -8:])  # "projected" stands last
    np.testing.assert_allclose(
        jax.jit(lambda v, b: stage.extraction.extract(v, memory, b))(variables, batch)["projected"], x, atol=1e-5
    )
    loss = jax.jit(jax.value_and_grad(loss_of(stage), argnums=2, has_aux=True))
    mesh = parallel.make_mesh()
    rows, whole = parallel.rows(mesh), parallel.replicated(mesh)
    shared = parallel.place(batch, jax.tree.map(lambda _: rows, batch))  # a clip for each of eight devices
    state = variables["params"], variables["batch_stats"], memory
    with jax.set_mesh(mesh):
        (_, (parts, _, after)), slope = loss(*parallel.place(state, jax.tree.map(lambda _: whole, state)), shared)
    assert not np.asarray(slope.bank).any()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = np.asarray(batch.identity)
    wanted = moved_by_hand(np.asarray(memory.bank), unit, y, 0.2, False)
    np.testing.assert_allclose(after.bank, wanted, atol=1e-4)
    logits = unit @ np.asarray(memory.bank).T / 0.05
    halves = [scores - np.log(np.exp(scores).sum(1, keepdims=True)) for scores in np.split(logits, 2, axis=1)]
    value = -0.5 * sum(half[np.arange(CLIPS), y].mean() for half in halves)
    np.testing.assert_allclose(parts["loss_bank"], value, rtol=1e-3)


# Sizes ----------------------------------------------------------------------------------------------------------------


def count(module, *args, **kwargs):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_parameter_counts_at_full_size():
    tower = vision_config("ViT-B/16", (256, 128))
    assert count(ViT(tower), jnp.zeros((1, 256, 128, 3))) == 86_140_416
    tokens, mask = jnp.zeros((1, 2, 129, 768)), jnp.ones((1, 2), bool)
    assert count(TemporalMemoryDiffusion(12), tokens, mask) == 10_042_368
    template = PromptTemplate.of_text("A photo of a X X X X person.", walkers_words(), 4)
    text = text_config("ViT-B/16")
    assert count(PromptedText(text, template, 625), jnp.zeros(1, int)) - count(
        TextTower(text), jnp.asarray([template.ids])
    ) == (1_280_000)


@pytest.mark.parametrize(("width", "wanted"), [(64, 2_578_944), (128, 5_532_672), (256, 12_619_776)])
def test_adapters_and_heads_of_a_whole_method(width, wanted, monkeypatch):
    config = importlib.import_module("configs.vsla_clip").get_config("mars")
    config.adapters.width, config.platform_prompts.blocks = width, 9
    info = family.make_info()
    info = type(info)(**{**vars(info), "num_classes": 625, "frame_size": (256, 128), "cameras": np.arange(2)})
    method = family.find_method("vsla_clip")(config, info)
    batch = make_batch().replace(frames=jnp.zeros((CLIPS, 1, 256, 128, 3)), frame_mask=jnp.ones((CLIPS, 1), bool))
    params = jax.eval_shape(method.init, jax.random.key(0), batch)["params"]
    sizes = {path: leaf.size for path, leaf in family.flatten_paths(params)}
    assert sum(size for path, size in sizes.items() if "beside_" in path) == wanted
    assert sum(size for path, size in sizes.items() if path.endswith("classifier/kernel")) == 800_000
    assert sum(size for path, size in sizes.items() if path.startswith("platform_prompts")) == 13_824
    # All that trains: adapters, prompts, necks.
    trained, _ = split_trained(params, main_stage(method).updates[0].optimizer)
    total = sum(leaf.size for leaf in jax.tree.leaves(trained))
    assert total == wanted + 13_824 + 800_000 + 768 + 512


def test_overlapping_patches():
    """CLIP-ReID's stride of 12: ⌊(256 − 16) / 12⌋ + 1 = 21 patches down, ⌊(128 − 16) / 12⌋ + 1 = 10 across."""
    config = importlib.import_module("configs.clip_reid").get_config("mars")
    config.backbone.stride = 12
    info = family.make_info()
    method = family.find_method("clip_reid")(config, type(info)(**{**vars(info), "frame_size": (256, 128)}))
    batch = make_batch().replace(frames=jnp.zeros((CLIPS, 1, 256, 128, 3)), frame_mask=jnp.ones((CLIPS, 1), bool))
    params = jax.eval_shape(method.init, jax.random.key(0), batch)["params"]
    assert params["image_tower"]["position_embedding"].shape == (1 + 21 * 10, 768)
    assert method.backbones()[0].config.grid == (21, 10)  # to which the position table of the weights is moved
    with refuses(ValueError, "resnet_tiny", "patches"):
        encoder_config("resnet_tiny", (64, 32), "float32", False, stride=4)


# What depends on what -------------------------------------------------------------------------------------------------


def test_stage_1_learns_the_words_of_the_identities_it_sees():
    method = make_method("vsla_clip")
    variables, memory = random_variables(method), memory_of(method)
    kept = jax.random.normal(jax.random.key(5), (CLIPS, 8))
    batch = make_batch().replace(valid=jnp.arange(CLIPS) < 4, extras={"projected": kept})
    batch = batch.replace(frames=jnp.zeros((CLIPS, 0, 24, 24, 3)))
    gradient = jax.jit(jax.grad(loss_of(method.stages()[0]), has_aux=True))(
        variables["params"], variables["batch_stats"], memory, batch
    )[0]
    own = np.abs(gradient["text"]["own"]).max((1, 2))
    assert (own[:2] > 1e-6).all() and (own[2:] == 0).all()  # rows 0…3 show people 0 and 1
    assert all(largest(gradient)[f"text/{name}"] > 1e-6 for name in ("before", "after"))
    trained, _ = split_trained(variables["params"], method.stages()[0].updates[0].optimizer)
    assert set(family.paths(trained)) == {"text/own", "text/before", "text/after"}
    # Adam's weight decay moves a row that the batch does not show.
    update = transformation(method.stages()[0].updates[0].optimizer, CONSTANT, 1)
    none = jax.tree.map(jnp.zeros_like, trained)
    changes, _ = update.update(none, update.init(trained), trained, progress=family.progress())
    assert np.abs(changes["text"]["own"]).min() > 0


@pytest.mark.parametrize("member", MEMBERS)
def test_gradients_of_stage_2(member):
    method = make_method(member, **({"ssp.depth": 1} if member == "tf_clip" else {}))
    variables, memory = random_variables(method), memory_of(method)
    loss = loss_of(main_stage(method))
    gradient = jax.jit(jax.grad(loss, has_aux=True))(
        variables["params"], variables["batch_stats"], memory, make_batch()
    )[0]
    found = largest(gradient)
    assert all(value == 0 for path, value in found.items() if path.startswith("text/"))
    trained, _ = split_trained(gradient, main_stage(method).updates[0].optimizer)
    silent = {path for path, value in largest(trained).items() if value == 0}
    assert {path for path in silent if not path.endswith("key/bias")} == set()  # a softmax does not see that one
    assert all("norm/bias" not in path for path in found)
    tower = {path for path in family.paths(trained) if path.startswith("image_tower") and "beside_" not in path}
    assert bool(tower) == (member != "vsla_clip")  # CLIP's own weights stay in VSLA-CLIP


def test_the_temporal_branch_never_reaches_the_tower():
    method = make_method("tf_clip", **{"triplet.features": ("temporal",), "weights.bank": 0.0, "ssp.depth": 0})
    variables = random_variables(method)
    batch = make_batch()

    def loss(params):
        whole = {"params": params, "batch_stats": variables["batch_stats"]}
        out = method.network.apply(whole, batch, False, method="encode")
        return jnp.sum(jnp.square(out["temporal"])) + jnp.sum(jnp.square(out["frames"]))

    found = largest(jax.jit(jax.grad(loss))(variables["params"]))
    assert all(value == 0 for path, value in found.items() if path.startswith(("image_tower", "side_table")))
    assert all(value > 0 for path, value in found.items() if path.startswith("temporal/over_frames/value"))


def test_the_bank_s_part_in_the_loss():
    method = make_method("vsla_clip")
    variables, memory = random_variables(method), memory_of(method)
    order = np.array([2, 0, 3, 1])
    place = np.argsort(order)  # where each identity's row went
    batch = make_batch()
    renamed = batch.replace(identity=jnp.asarray(place)[batch.identity])

    def values(method, *pairs):
        loss = jax.jit(loss_of(main_stage(method)))
        return [loss(variables["params"], variables["batch_stats"], BankMemory(m), b)[1][0] for m, b in pairs]

    shuffled = memory.bank[order]
    plain, both, rows_only = values(method, (memory.bank, batch), (shuffled, renamed), (shuffled, batch))
    for name in ("loss_bank", "loss_image_to_text", "loss_text_to_image"):
        np.testing.assert_allclose(both[name], plain[name], rtol=1e-5)
        assert abs(float(rows_only[name] - plain[name])) > 1e-3
    off = {f"weights.{name}": 0.0 for name in ("bank", "image_to_text", "text_to_image")}
    silent = make_method("vsla_clip", **off)
    loss = jax.jit(loss_of(main_stage(silent)))
    one, other = (
        loss(variables["params"], variables["batch_stats"], BankMemory(bank), batch)[0]
        for bank in (memory.bank, shuffled)
    )
    assert float(one) == float(other)


def test_the_total_is_the_contract_s_sum():
    weights = {"weights.identity": 0.25, "weights.triplet": 1.0, "weights.bank": 1.0}
    method = make_method("tf_clip", **{"ssp.depth": 1, **weights})
    variables, memory = random_variables(method), memory_of(method)
    total, (parts, _, _) = jax.jit(loss_of(main_stage(method)))(
        variables["params"], variables["batch_stats"], memory, make_batch()
    )
    weights = {"identity": 0.25, "triplet": 1, "bank": 1, "frame_identity": 1 / family.FRAMES}
    assert {f"loss_{name}" for name in weights} == parts.keys()
    np.testing.assert_allclose(total, sum(w * parts[f"loss_{n}"] for n, w in weights.items()), rtol=1e-6)


def embedded(method, variables, batch):
    return jax.jit(lambda v, b: method.embed(v, None, b))(variables, batch)["feature"]


def test_features_behind_the_necks_are_batch_normalized():
    """By the running statistics of each part; rows that only fill the batch don't matter."""
    method, plain = (make_method("tf_clip", neck_feat=place) for place in ("after", "before"))
    variables, batch = random_variables(method), make_batch()
    before = np.split(np.array(embedded(plain, variables, batch)), [16, 24], axis=1)  # 16 + 8 + 16 channels
    after = embedded(method, variables, batch)
    wanted = []
    for name, part in zip(("last", "projected", "temporal"), before, strict=True):
        stats = variables["batch_stats"][f"necks_{name}"]["norm"]
        scale = variables["params"][f"necks_{name}"]["norm"]["scale"]
        wanted.append((part - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * scale)
    np.testing.assert_allclose(after, np.concatenate(wanted, axis=1), atol=1e-4)
    assert np.abs(after - np.concatenate(before, axis=1)).max() > 1e-2
    fewer = embedded(method, variables, batch.replace(valid=jnp.arange(CLIPS) < 5))
    np.testing.assert_allclose(fewer[:5], after[:5], atol=1e-5)


@pytest.mark.parametrize("member", ["vsla_clip", "tf_clip"])
def test_the_order_of_frames_and_padding_change_nothing(member):
    method = make_method(member)
    variables, batch = random_variables(method), make_batch()
    feature = embedded(method, variables, batch)
    turned = embedded(method, variables, batch.replace(frames=batch.frames[:, ::-1]))
    np.testing.assert_allclose(turned, feature, atol=1e-4)
    assert np.abs(feature[0] - feature[1]).max() > 1e-2
    # A frame that only fills the clip may hold anything.
    mask = batch.frame_mask.at[:, 2].set(False)
    filled = embedded(method, variables, batch.replace(frame_mask=mask))
    other = embedded(method, variables, batch.replace(frames=batch.frames.at[:, 2].set(7.0), frame_mask=mask))
    np.testing.assert_allclose(filled, other, atol=1e-5)


def test_without_its_adapters_the_tower_is_clip():
    method = make_method("vsla_clip")
    variables, batch = random_variables(method), make_batch()
    found = jax.jit(lambda v, b: method.stages()[0].cached.extract(v, None, b))(variables, batch)["projected"]
    params = jax.tree.map(lambda x: x, variables["params"]["image_tower"])
    for name in list(params):
        if name.startswith("block_"):
            params[name] = {k: v for k, v in params[name].items() if not k.startswith("beside_")}
    frames = batch.frames.reshape(-1, 24, 24, 3)
    plain = jax.jit(ViT(family.IMAGE).apply)({"params": params}, frames)["projected"]
    np.testing.assert_allclose(found, plain.reshape(CLIPS, family.FRAMES, -1).mean(1), atol=1e-5)
    adapted = embedded(method, variables, batch)[:, -8:]
    assert np.abs(adapted - found).max() > 1e-2


def test_attention_over_time_starts_as_the_mean():
    mean, attention = (make_method("clip_reid", pooling=kind) for kind in ("mean", "attention"))
    variables, batch = random_variables(mean), make_batch()
    batch = batch.replace(frame_mask=batch.frame_mask.at[:, 2].set(False))
    zero = {name: {"score": {"kernel": jnp.zeros((width, 1))}} for name, width in (("pool", 16), ("pool_joint", 8))}
    fresh = family.paths(jax.eval_shape(attention.init, jax.random.key(0), batch)["params"])
    assert {path for path in fresh if path.startswith("pool")} == {f"{name}/score/kernel" for name in zero}
    start = {**variables, "params": variables["params"] | zero}
    feature = embedded(mean, variables, batch)
    np.testing.assert_allclose(embedded(attention, start, batch), feature, atol=1e-5)
    # With a score, frames count by it; each space has its own, and a masked frame still counts for nothing.
    scored = {**start, "params": start["params"] | {"pool_joint": {"score": {"kernel": jnp.ones((8, 1))}}}}
    found = embedded(attention, scored, batch)
    np.testing.assert_allclose(found[:, :16], feature[:, :16], atol=1e-5)
    frames = jax.jit(lambda v: attention.network.apply(v, batch, method=lambda net, b: net.tower(b, False)))(scored)
    x = np.asarray(frames.projected[:, :2], np.float64)
    weight = np.exp(x.sum(-1))
    weight /= weight.sum(1, keepdims=True)
    pooled = (weight[..., None] * x).sum(1)
    neck = variables["params"]["necks_projected"]["norm"]
    stats = variables["batch_stats"]["necks_projected"]["norm"]
    wanted = (pooled - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * neck["scale"]
    np.testing.assert_allclose(found[:, 16:], wanted, atol=1e-4)


def test_prompts_of_any_length():
    """A camera's tokens are attended to in the first blocks only, and no camera's where it is unknown."""
    changes = {"platform_prompts.blocks": 1, "platform_prompts.length": 3, "adapters.width": 0}
    method = make_method("vsla_clip", **changes)
    variables, batch = random_variables(method), make_batch()
    table = variables["params"]["platform_prompts"]["table"]
    assert table.shape == (1, family.CAMERAS, 3, family.IMAGE.width)
    other = batch.replace(camera_index=(batch.camera_index + 1) % family.CAMERAS)
    moved = np.abs(embedded(method, variables, other) - embedded(method, variables, batch))
    assert (moved.max(1) > 1e-4).all()
    # By hand: the tower itself, with the rows of the cameras as its prompts.
    rows = jnp.repeat(table[:, batch.camera_index], family.FRAMES, axis=1)
    frames = batch.frames.reshape(-1, 24, 24, 3)
    image = {"params": variables["params"]["image_tower"]}
    out = jax.jit(lambda x: ViT(family.IMAGE).apply(image, x, hooks=Hooks(prompts=rows))["projected"])
    found = jax.jit(lambda v: method.network.apply(v, batch, False, method="encode"))(variables)["projected"]
    np.testing.assert_allclose(found, out(frames).reshape(CLIPS, family.FRAMES, -1).mean(1), atol=1e-5)


def test_side_information():
    """It moves the class token before the positions, by nothing at strength 0 and for unknown cameras."""
    plain = make_method("tf_clip", **{"sie.columns": ()})
    known, off = make_method("tf_clip"), make_method("tf_clip", **{"sie.strength": 0.0})
    variables, batch = random_variables(known), make_batch()
    without = {**variables, "params": {k: v for k, v in variables["params"].items() if k != "side_table"}}
    feature = embedded(plain, without, batch)
    np.testing.assert_allclose(embedded(off, variables, batch), feature, atol=1e-6)
    unseen = batch.replace(camera_index=jnp.full(CLIPS, -1))
    np.testing.assert_allclose(embedded(known, variables, unseen), feature, atol=1e-6)
    assert np.abs(embedded(known, variables, batch) - feature).max() > 1e-3
    table = variables["params"]["side_table"]
    assert table.shape == (family.CAMERAS, family.IMAGE.width)
    tower = ViT(family.IMAGE)
    tower_variables, frames = {"params": variables["params"]["image_tower"]}, batch.frames[:3, 0]
    moved = tower.apply(tower_variables, frames, table, method="embed")
    as_it_was = tower.apply(tower_variables, frames, method="embed")
    assert np.abs(moved - as_it_was)[:, 0].max() > 1e-3 and not np.abs(moved - as_it_was)[:, 1:].any()


def test_bank_of_text_follows_the_prompts():
    method = make_method("clip_reid")
    variables, memory = random_variables(method), memory_of(method)
    stage = method.stages()[0]
    refresh = jax.jit(lambda v, m: stage.refresh_after(v, m, family.context()))
    found = refresh(variables, memory)
    texts = jax.jit(lambda v: method.network.apply(v, jnp.arange(PEOPLE), method="texts"))(variables)
    np.testing.assert_allclose(found.bank, texts, atol=1e-5)


def test_unknown_values_are_named():
    with refuses(ValueError, "bank", "'text'", "prompt", "image"):
        check_config(family.make_config("tf_clip", bank="text"))
    for changes, named in (
        ({"neck_feat": "both"}, ("neck_feat", "'both'")),
        ({"neck_feat": "after", "embedding": ("penultimate", "last")}, ("'penultimate'", "neck")),
        ({"sie.columns": ("weather",)}, ("'weather'", "camera_index")),
    ):
        with refuses(ValueError, *named):
            check_config(family.make_config("clip_reid", **changes))
