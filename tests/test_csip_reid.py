"""CSIP-ReID: what trains and what stays, what features know of, prototypes, published sizes and numbers."""

import dataclasses
import functools
import importlib

import family
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import CLIPS, FRAMES, PEOPLE, make_batch, make_info
from messages import refuses

from jaxreid.backbones.skeleton_graph import SkeletonGraph
from jaxreid.errors import UserError
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.image_text import supervised_contrastive
from jaxreid.losses.triplet import batch_hard_triplet
from jaxreid.methods.csip_reid import Prototypes
from jaxreid.methods.method import Context, Features
from jaxreid.optimizers import Progress, Schedule, find_group, learning_rate, split_trained
from jaxreid.run.config_values import check_config

JOINTS, WIDTH, JOINT = 17, 16, 8  # joints; widths of the small tower and of its joint space
SMALL = {
    **{"skeleton.width": 8, "skeleton.depth": 1, "skeleton.heads": 2, "skeleton.hidden": 8},
    **{"pfu.heads": 2, "sgtm.heads": 4, "sgtm.drop": 0.0, "batch.seq_len": FRAMES},
}


@pytest.fixture(autouse=True, scope="module")
def small_towers():
    with pytest.MonkeyPatch.context() as patch:
        family.small_towers(patch)
        yield


def config(preset="", **changes):
    found = importlib.import_module("configs.csip_reid").get_config(preset)
    found.update_from_flattened_dict(changes)
    return found


def make(**changes):
    return family.make_method("csip_reid", **(SMALL | changes))


def batch_of(seed=0):
    """Clips with skeletons, and of every frame a feature."""
    key = jax.random.key(seed + 10)
    seen = jnp.ones((CLIPS, FRAMES), bool)
    joints = 0.3 * jax.random.normal(key, (CLIPS, FRAMES, JOINTS, 3))
    extras = {"joints3d": joints, "joints3d_mask": seen, "frame_place": jnp.zeros((CLIPS, FRAMES), jnp.int32)}
    extras["projected"] = jax.random.normal(jax.random.fold_in(key, 1), (CLIPS, FRAMES, JOINT))
    return make_batch(seed).replace(extras=extras)


def with_joints(batch, joints=None, seen=None):
    changed = {name: x for name, x in (("joints3d", joints), ("joints3d_mask", seen)) if x is not None}
    return batch.replace(extras={**batch.extras, **changed})


def memory_of(method):
    rows = jax.random.normal(jax.random.key(3), (2, *method.init_memory().images.shape))
    return Prototypes(rows[0], rows[1], jnp.full(PEOPLE, 2), jnp.full(PEOPLE, 2))


@functools.cache
def drawn():
    """(method, random variables) of the method as it is."""
    method = make()
    return method, family.filled(method.init, batch_of())


@functools.cache
def trainer():
    """(variables, batch) → features, logits and similarities of the main stage, without dropout."""
    method, _ = drawn()

    @jax.jit
    def run(variables, batch):
        def forward(network):
            skeletons = network.skeletons(batch.extras["joints3d"], batch.extras["joints3d_mask"], False)
            found = network.encode(batch, False, skeletons, all_tokens=True)
            return found, network.logits(found, batch, False), network.similar(found, memory_of(method), batch, False)

        return method.network.apply(variables, method=forward)

    return run


@functools.cache
def embedder(**changes):
    method = make(**changes)
    return jax.jit(lambda variables, batch: method.embed(variables, None, batch)["feature"])


def stage_gradient(method, stage):
    """(variables, batch) → the gradient of a stage's loss in all parameters, and its figures."""
    loss = family.loss_of(stage)
    run = jax.jit(jax.grad(loss, has_aux=True))
    return lambda variables, batch: run(variables["params"], variables["batch_stats"], memory_of(method), batch)


# ------------------------------------------------------------------------------------------------------- full size


def test_parameters_at_full_size():
    made, people, cameras = config("mars"), 625, 6
    info = dataclasses.replace(make_info(), num_classes=people, frame_size=(256, 128), cameras=np.arange(cameras))
    info = dataclasses.replace(info, labels=None)
    method = family.find_method("csip_reid")(made, info)
    batch = batch_of().replace(frames=jnp.zeros((CLIPS, FRAMES, 256, 128, 3)))
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)
    sizes = {path: leaf.size for path, leaf in family.flatten_paths(variables["params"])}

    def total(*starts):
        return sum(size for path, size in sizes.items() if path.startswith(starts))

    encoder, projection = total("skeleton/") - total("skeleton/projection"), total("skeleton/projection")
    assert (total("skeleton/block_03/"), encoder, projection) == (2_102_784, 21_298_176, 262_144)
    # The released updater also declares a factor and a norm that it never uses.
    assert (total("pfu/updater") + 512 + 2 * 512, total("pfu/gate")) == (9_195_520, 525_313)
    assert total("temporal/") == 15_169_537
    of_training = ("joints", "guide_norm", "over_skeletons", "distil")
    assert total("temporal/") - total(*(f"temporal/{name}" for name in of_training)) == 10_046_209
    assert (total("image_tower/"), total("side_table")) == (86_140_416, 4_608)
    # The released heads have two more classifiers and a neck of skeletons that nothing uses, and frozen shifts.
    norms = 768 + 512 + 768 + 768
    assert total("necks_", "frame_norm") == people * (768 + 512 + 768) + norms
    assert total("necks_", "frame_norm") + people * (768 + 512) + norms + 2 * 512 == 2_086_656
    assert variables["batch_stats"]["skeleton"]["tree_code"].shape == (17, 10)
    embedded = jax.eval_shape(method.embed, variables, None, batch.replace(extras={}))
    assert embedded["feature"].shape == (CLIPS, 2048)


def at_epoch(schedule, epochs, lr, epoch):
    progress = Progress(step=jnp.int32(0), epoch=jnp.float32(epoch - 1 + 0.5), fraction=jnp.float32(0))
    return float(learning_rate(Schedule(**schedule), epochs, lr)(progress))


def test_learning_rates():
    c = config("mars")
    for epoch, wanted in {1: 7.8e-5, 4: 2.82e-4, 5: 3.48507e-4, 60: 1.755e-4, 119: 1.0598e-6, 120: 1e-6}.items():
        assert at_epoch(c.stage1.schedule, 120, c.stage1.lr, epoch) == pytest.approx(wanted, rel=1e-4)
    for epoch, wanted in {1: 9.5e-7, 5: 2.75e-6, 10: 5e-6, 30: 5e-7, 50: 5e-8, 70: 5e-9}.items():
        assert at_epoch(c.schedule, 80, c.optimizer.lr, epoch) == pytest.approx(wanted, rel=1e-4)
    method = make(**{"optimizer.lr": 5e-6, "optimizer.groups": c.optimizer.groups})
    groups = method.optimizer().groups
    for path, wanted in {
        "image_tower/block_01/mlp/up/kernel": 5e-6,
        "image_tower/block_01/mlp/up/bias": 1e-5,
        "pfu/gate_in/kernel": 5e-5,
        "temporal/up/bias": 1e-4,
        "necks_temporal/classifier/kernel": 5e-5,
        "necks_last/classifier/kernel": 5e-6,
        "skeleton/embed_in/kernel": 0,
    }.items():
        assert find_group(path, groups).lr == pytest.approx(wanted), path
    # Ten times as fast on MARS alone.
    assert not any("pfu" in row[0] for row in config("ls_vid").optimizer.groups)


def test_the_released_recipe():
    c = config("mars")
    first, batch, w = c.stage1, c.batch, c.weights
    assert (first.epochs, first.batch_size, first.lr, first.weight_decay) == (120, 64, 3.5e-4, 1e-4)
    assert (first.temperature, first.normalize, c.label_smoothing, c.triplet.margin) == (1.0, False, 0.1, 0.3)
    assert (w.identity, w.triplet, w.bank, w.frame_identity) == (0.25, 1.0, 1.0, 1.3)
    assert (batch.num_identities, batch.num_instances, batch.seq_len, c.epochs) == (4, 4, 8, 80)
    assert (c.augment.flip, c.augment.erase, c.augment.erase_area, c.augment.crop) == (0.5, 0.5, 0.2, 0)
    assert c.schedule.milestones == (30, 50, 70) and c.frames.mean == (0.485, 0.456, 0.406)
    assert (c.evaluation.clip_sampling, c.evaluation.seq_len, c.neck_feat) == ("chunk_first", 8, "before")
    assert config("ls_vid").batch.piece_len == 48 and c.batch.piece_len == 0
    other = config("ilids_vid")
    assert (other.epochs, other.schedule.milestones) == (60, (30, 50))


# ------------------------------------------------------------------------------------------------------- losses


def test_losses():
    v, s = jnp.array([[1.0, 0], [0, 1], [1, 1]]), jnp.array([[2.0, 0], [0, 2], [0, 1]])
    y, valid = jnp.array([0, 1, 1]), jnp.ones(3, bool)
    assert float(supervised_contrastive(v, s, y, valid)) == pytest.approx(0.836382, abs=1e-6)
    assert float(supervised_contrastive(s, v, y, valid)) == pytest.approx(0.793081, abs=1e-6)
    logits = jnp.array([[2.0, 1, 0], [0, 0, 3]])
    assert float(cross_entropy(logits, jnp.array([0, 1]), jnp.ones(2, bool), 0.1)) == pytest.approx(1.751264, abs=1e-6)


def test_the_main_loss_is_the_weighted_sum():
    """0.25 ID + triplets + bank + 1.3/T frames, each again from features and logits."""
    published = {"weights.identity": 0.25, "weights.triplet": 1.0, "weights.bank": 1.0}
    method = make(**published, **{"triplet.metric": "euclidean", "pfu.dropout": 0.0, "sgtm.dropout": 0.0})
    _, variables = drawn()
    batch = batch_of()
    loss = jax.jit(family.loss_of(method.stages()[-1]))
    total, (figures, *_) = loss(variables["params"], variables["batch_stats"], memory_of(method), batch)
    shares = {"identity": 0.25, "triplet": 1.0, "bank": 1.0, "frame_identity": 1.3 / FRAMES}
    by_hand = sum(share * float(figures[f"loss_{name}"]) for name, share in shares.items())
    assert float(total) == pytest.approx(by_hand, rel=1e-5)
    found, _, similar = trainer()(variables, batch)
    y, valid = batch.identity, batch.valid
    triplets = [float(batch_hard_triplet(found[name], y, valid, 0.3)) for name in ("last", "projected", "temporal")]
    assert float(figures["loss_triplet"]) == pytest.approx(sum(triplets), rel=1e-4)
    assert float(figures["loss_bank"]) == pytest.approx(float(cross_entropy(similar, y, valid, 0.1)), rel=1e-4)


# ------------------------------------------------------------------------------------------------------- attention


def test_skeletons_are_seen_from_the_root_and_frame_by_frame():
    method, variables = drawn()
    encode = jax.jit(lambda joints: method.network.apply(variables, joints, None, False, method="skeletons").tokens)
    joints = batch_of().extras["joints3d"]
    found = encode(joints)
    np.testing.assert_allclose(encode(joints + jnp.arange(3.0)), found, atol=1e-5)
    order = jnp.array([2, 0, 1])
    np.testing.assert_allclose(encode(joints[:, order]), found[:, order], atol=1e-6)
    changed = encode(joints.at[:, 0, 5].add(1.0))
    np.testing.assert_array_equal(changed[:, 1:], found[:, 1:])
    assert np.abs(changed[:, 0] - found[:, 0]).max() > 1e-3
    with refuses(UserError, "takes 17"):
        method.network.apply(variables, joints[:, :, :15], None, False, method="skeletons")


def test_features_do_not_know_skeletons_nor_the_order_of_frames():
    method, variables = drawn()
    assert method.extras("test") == {} and method.extras("train").keys() == {"joints3d", "frame_place"}
    batch = batch_of()
    without, embed = batch.replace(extras={}), embedder()
    found = embed(variables, without)
    assert found.shape == (CLIPS, WIDTH + JOINT + WIDTH)
    np.testing.assert_array_equal(embed(variables, batch), found)
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(embed(variables, without.replace(frames=batch.frames[:, order])), found, atol=1e-5)
    timed = make(**{"sgtm.time_embedding": True})
    knowing, embed = family.filled(timed.init, batch), embedder(**{"sgtm.time_embedding": True})
    one, other = (embed(knowing, without.replace(frames=x)) for x in (batch.frames, batch.frames[:, order]))
    assert np.abs(one - other).max() > 1e-3


# ------------------------------------------------------------------------------------------------------- gradients


def test_gradients_of_the_main_stage():
    """None of what SGTM's features are judged by reaches the tower; the bank's does. Skeletons are frozen."""
    method, variables = drawn()
    batch = batch_of()
    y, valid = batch.identity, batch.valid

    @jax.jit
    def gradients(params):
        def losses(params):
            found, logits, similar = trainer()({**variables, "params": params}, batch)
            frames = cross_entropy(logits["frames"], jnp.repeat(y, FRAMES), jnp.ones(CLIPS * FRAMES, bool), 0.1)
            of_z = cross_entropy(logits["temporal"], y, valid, 0.1)
            of_z += batch_hard_triplet(found["temporal"], y, valid, 0.3) + frames
            return jnp.stack([of_z, cross_entropy(similar, y, valid, 0.1)])

        return jax.jacrev(losses)(params)

    found = gradients(variables["params"])
    of_z, of_bank = (family.largest(jax.tree.map(lambda x, i=i: x[i], found)) for i in range(2))

    def reached(grads, start):
        return {path for path, value in grads.items() if path.startswith(start) and value > 0}

    assert reached(of_z, ("image_tower", "side_table", "pfu", "skeleton")) == set()
    assert reached(of_z, "temporal/over_tokens") and reached(of_z, "temporal/distil") and reached(of_z, "frame_norm")
    for start in ("pfu/gate_in", "pfu/gate_out", "pfu/updater/self", "pfu/updater/cross", "image_tower", "side_table"):
        assert reached(of_bank, start), start
    assert reached(of_bank, "temporal") == set()
    optimizer = method.stages()[-1].updates[0].optimizer
    trained = family.paths(split_trained(variables["params"], optimizer)[0])
    assert not any(path.startswith("skeleton") for path in trained) and len(trained) > 40


def slope_of_the_encoder(method):
    """The largest gradients of the main loss in the parameters of the skeleton encoder."""
    (_, variables), batch, loss = drawn(), batch_of(), family.loss_of(method.stages()[-1])

    def of_encoder(own):
        params = {**variables["params"], "skeleton": own}
        return loss(params, variables["batch_stats"], memory_of(method), batch)[0]

    return family.largest(jax.jit(jax.grad(of_encoder))(variables["params"]["skeleton"]))


def test_gradients_of_the_first_stage_and_of_a_trained_encoder():
    method, variables = drawn()
    first, batch = method.stages()[0], batch_of()
    assert first.name == "skeletons" and not first.pictures and first.cached.parts == 0
    no_pictures = batch.replace(frames=batch.frames[:, :, :0, :0])
    gradient, (figures, *_) = stage_gradient(method, first)(variables, no_pictures)
    moved = {path for path, value in family.largest(gradient).items() if value}
    assert moved and all(path.startswith("skeleton/") for path in moved)
    trained = family.paths(split_trained(variables["params"], first.updates[0].optimizer)[0])
    assert set(trained) == {path for path in family.paths(variables["params"]) if path.startswith("skeleton/")}
    assert figures.keys() == {"loss_image_to_skeleton", "loss_skeleton_to_image"}
    # In the main stage the encoder gets no gradient at all, and with the switch it does and is trained.
    tuned = make(**{"skeleton.finetune": True})
    assert not any(slope_of_the_encoder(method).values()) and any(slope_of_the_encoder(tuned).values())
    optimizer = tuned.stages()[-1].updates[0].optimizer
    assert any(p.startswith("skeleton") for p in family.paths(split_trained(variables["params"], optimizer)[0]))


def pretraining_loss(**changes):
    """The first stage's loss by the number of its random key, at the same weights and clips, without dropout."""
    method, (_, variables) = make(**{"skeleton.dropout": 0.0, **changes}), drawn()

    @jax.jit
    def loss(seed, batch):
        context = family.context().replace(rng=jax.random.key(seed))
        return method.stages()[0].loss(variables, method.init_memory(), batch, context).total

    return lambda seed=0, batch=None: float(loss(seed, batch_of() if batch is None else batch))


def test_switches_of_the_first_stage():
    plain = pretraining_loss()
    assert plain(0) == plain(1)
    for switch in ("skeleton.random_signs", "skeleton.shuffle"):
        changed = pretraining_loss(**{switch: True})
        assert len({round(changed(seed), 5) for seed in range(3)}) > 1
    unit, cold = pretraining_loss(**{"stage1.normalize": True}), pretraining_loss(**{"stage1.temperature": 2.0})
    assert abs(unit() - plain()) > 1e-3 and abs(cold() - plain()) > 1e-3
    # A clip without skeletons counts neither as an anchor nor among the others.
    batch = batch_of()
    seen = batch.extras["joints3d_mask"].at[2].set(False)
    gone = batch.replace(valid=batch.valid.at[2].set(False))
    assert plain(0, with_joints(batch, seen=seen)) == pytest.approx(plain(0, gone), abs=1e-6)


# ------------------------------------------------------------------------------------------------------- prototypes


def refreshed(method, skeleton=None):
    """The bank that is made of two clips of every tracklet, whose features are known."""
    tracklet = jnp.repeat(jnp.arange(2 * PEOPLE), 2)
    rng = np.random.default_rng(4)
    x, s = (jnp.asarray(rng.normal(size=(len(tracklet), JOINT)), jnp.float32) for _ in range(2))
    seen = jnp.ones(len(tracklet)) if skeleton is None else skeleton
    arrays = {"projected": x, "skeleton": s, "seen": seen}
    features = Features(arrays, tracklet, jnp.zeros_like(tracklet), jnp.ones(len(tracklet), bool))
    bank = method.bank.refresh(None, method.init_memory(), features, family.context())
    return bank, np.asarray(x).reshape(PEOPLE, 4, JOINT), np.asarray(s).reshape(PEOPLE, 4, JOINT)


def test_prototypes_are_means_of_every_identity():
    method, _ = drawn()
    assert [stage.name for stage in method.stages()] == ["skeletons", "main"]
    assert method.stages()[1].extraction.every == 0
    bank, x, s = refreshed(method)
    np.testing.assert_allclose(bank.images, x.mean(1), atol=1e-6)
    np.testing.assert_allclose(bank.skeletons, s.mean(1), atol=1e-6)
    assert bank.count.tolist() == bank.seen.tolist() == [2] * PEOPLE
    # The first tracklet of person 1 has no skeleton, nor has any of person 2.
    missing = jnp.ones(4 * PEOPLE).at[4:6].set(0).at[8:12].set(0)
    bank, x, s = refreshed(method, missing)
    np.testing.assert_allclose(bank.skeletons[1], s[1, 2:].mean(0), atol=1e-6)
    assert bank.seen.tolist() == [2, 1, 0, 2] and bank.count.tolist() == [2] * PEOPLE
    assert method.diagnose(bank, make_info().labels) == {"skeletons_coverage": 75.0}


def test_prototypes_are_found_without_dropout_signs_or_cameras():
    method = make(**{"skeleton.random_signs": True, "skeleton.dropout": 0.5})
    _, variables = drawn()
    find, batch = jax.jit(lambda batch: method.find_prototypes(variables, None, batch)), batch_of()
    found = find(batch)
    tokens = method.network.apply(variables, batch.extras["joints3d"], None, False, method="skeletons").tokens
    np.testing.assert_allclose(found["skeleton"], tokens.mean((1, 2)), atol=1e-6)
    elsewhere = find(batch.replace(camera_index=batch.camera_index * 0 - 1))
    np.testing.assert_array_equal(elsewhere["projected"], found["projected"])


def test_an_identity_without_a_clip_is_named():
    info = dataclasses.replace(make_info(), num_classes=PEOPLE + 1)
    with refuses(UserError, "1 of 5 training identities have no clip", "label 4"):
        family.find_method("csip_reid")(family.make_config("csip_reid", **SMALL), info)


# ------------------------------------------------------------------------------------------------------- ablations


WITHOUT = {"sgtm.use": False, "triplet.features": ("last", "projected"), "embedding": ("last", "projected")}


def test_parts_can_be_left_out():
    """Without PFU and SGTM there is TF-CLIP's memory of images, no first stage, and nobody asks for skeletons."""

    def parts(**changes):
        method = make(**changes)
        shapes = jax.eval_shape(method.init, jax.random.key(0), batch_of())["params"]
        return method, {name for name in shapes if name in ("pfu", "temporal", "skeleton", "frame_norm")}

    assert parts()[1] == {"pfu", "temporal", "skeleton", "frame_norm"}
    assert parts(**{"pfu.use": False})[1] == {"temporal", "skeleton", "frame_norm"}
    assert parts(**WITHOUT)[1] == {"pfu", "skeleton"}
    bare, left = parts(**WITHOUT, **{"pfu.use": False})
    assert left == set() and [stage.name for stage in bare.stages()] == ["main"]
    assert not any(bare.extras(phase) for phase in ("train", "extract", "test"))
    bank, x, _ = refreshed(bare)
    np.testing.assert_allclose(bank.images, x.mean(1), atol=1e-6)
    variables = family.filled(bare.init, batch_of())
    found = {"projected": jnp.ones((CLIPS, JOINT))}
    similar = bare.network.apply(variables, found, bank, batch_of(), True, method="similar")
    np.testing.assert_allclose(similar, np.ones((CLIPS, JOINT)) @ x.mean(1).T, rtol=1e-4, atol=1e-5)


def test_some_clips_are_trained_as_in_tests():
    """`sgtm.drop` of them, drawn in every step, have the temporal feature that they have without a skeleton; PFU sees
    all."""
    method = make(**{"sgtm.drop": 0.5, "sgtm.dropout": 0.0, "pfu.dropout": 0.0})
    variables, batch = drawn()[1], batch_of()

    @jax.jit
    def features(key):
        at = Context(key, family.progress())

        def forward(network):
            found = method.encode(network, batch, at)
            with_all = network.skeletons(batch.extras["joints3d"], batch.extras["joints3d_mask"], False)
            others = [network.encode(batch, True, given)["temporal"] for given in (None, with_all)]
            return found["temporal"], *others, found["skeletons"].seen

        return method.network.apply(variables, method=forward, rngs={"dropout": key})

    dropped = []
    for seed in range(8):
        found, without, given, seen = map(np.asarray, features(jax.random.key(seed)))
        near = [np.isclose(found, other, rtol=1e-4, atol=1e-5).all(axis=1) for other in (without, given)]
        assert seen.all() and np.array_equal(near[0], ~near[1])
        dropped.append(near[0])
    assert 0.3 < np.mean(dropped) < 0.7 and len(np.unique(dropped, axis=0)) > 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sgtm.drop": 1.5}, "config.sgtm.drop=1.5"),
        ({"sgtm.use": False}, "config.embedding has 'temporal'"),
        ({"skeleton.eigenvectors": 17}, "17 joints have one fewer at most"),
        ({"skeleton.heads": 7}, "does not divide over config.skeleton.heads=7"),
        ({"skeleton.joints": 19}, "no tree of 19 joints is known"),
        ({"skeleton.edges": ((0, 1),)}, "are no tree of the joints 0 … 16"),
        ({"sgtm.time_embedding": True, "evaluation.seq_len": 99}, "too few for config.evaluation.seq_len=99"),
        ({"sgtm.heads": 3}, "config.sgtm.heads=3 does not divide the 128 channels"),
        ({"pfu.heads": 3}, "config.pfu.heads=3 does not divide the 64 channels"),
    ],
)
def test_values_that_do_not_go_together(changes, words):
    with refuses(UserError, words):
        check_config(config(**changes))


# ------------------------------------------------------------------------------------------------------- learning


def test_skeletons_find_the_pictures_of_their_people():
    """Eight people who differ in the length of their limbs alone, in skeletons; in images by a vector of their own."""
    people, each = 8, 4
    rng = np.random.default_rng(0)
    length = np.exp(rng.normal(size=(people, 17)) * 0.3)
    parent = np.array([0, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15])

    def walk(person):
        joints = np.zeros((FRAMES, 17, 3))
        for joint in range(1, 17):
            direction = rng.normal(size=(FRAMES, 3))
            direction /= np.linalg.norm(direction, axis=1, keepdims=True)
            joints[:, joint] = joints[:, parent[joint]] + 0.3 * length[person, joint] * direction
        return joints

    y = np.repeat(np.arange(people), each)
    batch = batch_of()
    rows = jnp.asarray(np.stack([walk(person) for person in y]), jnp.float32)
    colour = jnp.asarray(rng.normal(size=(people, JOINT)), jnp.float32)[y]
    images = jnp.broadcast_to(colour[:, None], (len(y), FRAMES, JOINT))
    whole = jnp.ones((len(y), FRAMES), bool)
    batch = batch.replace(
        identity=jnp.asarray(y), valid=jnp.ones(len(y), bool), frame_mask=whole,
        extras={"joints3d": rows, "joints3d_mask": whole, "projected": images},
    )  # fmt: skip
    method = make(**{"skeleton.width": 32, "skeleton.hidden": 32, "skeleton.dropout": 0.0})
    stage = method.stages()[0]
    made = jax.jit(SkeletonGraph(method.skeleton).init)(jax.random.key(0), rows)
    variables = {collection: {"skeleton": tree} for collection, tree in made.items()}
    loss, optimizer = family.loss_of(stage), optax.adam(5e-3)

    @jax.jit
    def learn(params):
        def step(carry, _):
            params, state = carry
            slope = jax.grad(lambda own: loss({**params, "skeleton": own}, variables["batch_stats"], None, batch)[0])
            changes, state = optimizer.update(slope(params["skeleton"]), state)
            return ({**params, "skeleton": optax.apply_updates(params["skeleton"], changes)}, state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params["skeleton"])), None, 150)
        return params

    def nearest(params):
        found = method.network.apply({**variables, "params": params}, rows, whole, False, method="skeletons").tokens
        s = np.asarray(found.mean((1, 2)))
        return float(np.mean(y[(s @ np.asarray(colour).T).argmax(1)] == y))

    assert nearest(variables["params"]) < 0.5
    assert nearest(learn(variables["params"])) > 0.8  # chance is one in eight
