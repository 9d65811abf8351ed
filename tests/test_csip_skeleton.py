"""Skeletons alone: the losses by hand, what is predicted from what, whole runs without a picture, weights of other
skeletons."""

import importlib
from pathlib import Path
from unittest.mock import MagicMock

import family
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refuses
from test_skeleton_builders import biwi  # noqa: F401
from test_training import run_training

from jaxreid.backbones.pretrained import load
from jaxreid.backbones.saving import save_params
from jaxreid.backbones.skeleton_graph import TREES, SkeletonConfig, SkeletonGraph
from jaxreid.backbones.vit import ViT
from jaxreid.data.split import FrameReader
from jaxreid.errors import UserError
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.methods.csip_skeleton import chosen, contrast
from jaxreid.methods.method import Features
from jaxreid.report.pictures import skeleton
from jaxreid.report.ranked import ranked_lists
from jaxreid.run.config_values import check_config
from jaxreid.run.model import abstract_batch, start_run
from jaxreid.training.dry_run import dry_run
from jaxreid.training.loop import EpochLoop
from jaxreid.training.start import enter_stage
from jaxreid.training.steps import variables_of

SMALL = {
    **{"skeleton.width": 8, "skeleton.depth": 1, "skeleton.heads": 2, "skeleton.hidden": 8, "skeleton.projection": 6},
    **{"batch.batch_size": 8, "extraction_batch_size": 16, "epochs": 1, "mesh.devices": 1, "log_every": 1},
}


def config(preset="", **changes):
    found = importlib.import_module("configs.csip_skeleton").get_config(preset)
    found.update_from_flattened_dict(SMALL | changes)
    return found


def make(**changes):
    return family.find_method("csip_skeleton")(config(**{"batch.seq_len": 3, "prediction.frames": 2, **changes}),
                                               family.make_info())  # fmt: skip


def batch_of():
    joints = 0.3 * jax.random.normal(jax.random.key(1), (8, 3, 17, 3))
    return family.make_batch().replace(extras={"joints3d": joints, "joints3d_mask": jnp.ones((8, 3), bool)})


def test_contrast_by_hand():
    """Two clips of two frames of one joint, two prototypes; the last frame has no skeleton."""
    tokens = np.array([[[[2.0, 0]], [[0, 2.0]]], [[[3.0, 4.0]], [[9.0, 9.0]]]])
    seen, rows, y = np.array([[1, 1], [1, 0]], bool), np.array([[2.0, 0], [0, 1]]), np.array([0, 1])
    options = config().contrast
    valid = jnp.ones(2, bool)
    arrays = (jnp.asarray(x, jnp.float32) for x in (tokens, seen, rows))
    tokens_, seen_, rows_ = arrays
    clips, frames = contrast(tokens_, seen_ > 0, rows_, jnp.asarray(y), valid, options)

    def loss(logits, label):
        return np.log(np.exp(logits).sum()) - logits[label]

    # Mean features (1, 1) and (3, 4): cosines with unit prototypes (1, 0) and (0, 1), over 0.1.
    by_hand = [loss(np.array([0.5, 0.5]) ** 0.5 / 0.1, 0), loss(np.array([0.6, 0.8]) / 0.1, 1)]
    assert float(clips) == pytest.approx(np.mean(by_hand), abs=1e-5)
    # Frames by dot products over 10.
    by_hand = [loss(np.array(x) / 10, label) for x, label in (((4, 0), 0), ((0, 2), 0), ((6, 4), 1))]
    assert float(frames) == pytest.approx(np.mean(by_hand), abs=1e-5)


def test_what_is_kept_is_drawn_evenly():
    found = np.asarray(chosen(jax.random.key(0), (500, 6), 4))
    assert (found.sum(-1) == 4).all()
    np.testing.assert_allclose(found.mean(0), 4 / 6, atol=0.08)


def test_the_loss_is_the_weighted_sum_and_skeletons_that_are_not_there_change_nothing():
    method, batch = make(**{"weights.contrast": 0.7, "weights.clip": 0.6, "weights.structure": 0.2}), batch_of()
    variables, memory = family.filled(method.init, batch), {"prototypes": jnp.eye(family.PEOPLE, 6)}
    loss = jax.jit(family.loss_of(method.stages()[0]))
    run = lambda batch: loss(variables["params"], variables["batch_stats"], memory, batch)  # noqa: E731
    total, (figures, *_) = run(batch)
    shares = {"clips": 0.42, "frames": 0.28, "structure": 0.06, "trajectory": 0.24}
    by_hand = sum(share * float(figures[f"loss_{name}"]) for name, share in shares.items())
    assert float(total) == pytest.approx(by_hand, rel=1e-5)
    seen = batch.extras["joints3d_mask"].at[0, 1].set(False).at[3].set(False)
    joints = [jnp.where(seen[..., None, None], batch.extras["joints3d"], noise) for noise in (0.0, 7.0)]
    one, other = (float(run(batch.replace(extras={"joints3d": x, "joints3d_mask": seen}))[0]) for x in joints)
    assert np.isfinite(one) and one == other and one != float(total)
    # Joints are predicted from tokens: both heads, and the encoder, learn from them alone.
    alone = make(**{"weights.contrast": 0.0})
    gradient = jax.jit(jax.grad(family.loss_of(alone.stages()[0]), has_aux=True))
    found = family.largest(gradient(variables["params"], variables["batch_stats"], memory, batch)[0])
    for part in ("structure", "trajectory", "skeleton/block"):
        assert any(value for path, value in found.items() if path.startswith(part)), part


def test_prototypes_are_means_of_what_the_encoder_finds():
    method, batch = make(), batch_of()
    variables = family.filled(method.init, batch)
    assert method.stages()[0].extraction.every == 1
    found = jax.jit(lambda batch: method.find(variables, None, batch))(batch)
    embedded = method.embed(variables, None, batch)["feature"]
    np.testing.assert_allclose(embedded, found["feature"], atol=1e-6)
    features = Features({**found, "seen": found["seen"].at[1].set(0)}, batch.tracklet, batch.part, batch.valid)
    rows = method.refresh(variables, method.init_memory(), features, family.context())["prototypes"]
    np.testing.assert_allclose(rows[0], found["feature"][0], atol=1e-6)  # the second clip has no skeleton
    np.testing.assert_allclose(rows[2], found["feature"][4:6].mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction.joints": 18}, "config.prediction.joints=18 are kept of config.skeleton.joints=17"),
        ({"prediction.frames": 7}, "config.prediction.frames=7 are kept of config.batch.seq_len=6"),
        ({"backbone.name": "ViT-B/16"}, "config.backbone.name='ViT-B/16' must be one of ''"),
    ],
)
def test_values_that_do_not_go_together(changes, words):
    with refuses(UserError, words):
        check_config(config(**changes))


# ------------------------------------------------------------------------------------------------------- whole runs


def test_a_set_of_skeletons(biwi, tmp_path):  # noqa: F811
    """From files of joints to ranked lists, in which skeletons are drawn."""
    changes = {"dataset.config": "f6_unchecked", "dataset.path": str(biwi), "skeleton.eigenvectors": 4}
    run, state, frozen = run_training(config("biwi", **changes), tmp_path / "run", tmp_path / "data")
    found = Evaluator(run).final(variables_of(state, frozen), state.memory, 1)
    (record,) = found.results["scores"]
    assert (record["protocol"], record["distance"]) == ("skeleton", "euclidean")
    assert {"mAP", "rank-1", "rank-5", "rank-10"} <= record.keys()
    lists = ranked_lists(run, found.cases, found.distance, found.features, found.quality)
    split = found.cases[0].query.split
    row = split.labels.names.index(lists[0].query.name)
    assert lists[0].query.pictures[0] == skeleton(run.reader(split).joints(row)[0][0])
    other = start_run(config("ks20", **changes, **{"dataset.name": "biwi"}), tmp_path / "other", tmp_path / "data")
    with refuses(UserError, "joints [20, 3] per frame, needed are [25, 3]"):
        other.extras(other.dataset.train, "train").read(0, [0])


def test_no_picture_of_a_set_with_pictures_is_read(tmp_path, data_dir, tiny, monkeypatch):
    def refused(*_):
        raise AssertionError("a picture was asked for")

    for name in ("decode_each", "encoded"):
        monkeypatch.setattr(FrameReader, name, refused)
    run = start_run(config(**{"dataset.config": "tiny"}), tmp_path, data_dir)
    state, frozen = enter_stage(run, run.method.stages()[0], None, None)
    loop = EpochLoop(run, run.method.stages()[0], 0, state)
    for batch in (next(iter(loop.loader(state, 0)[0])), abstract_batch(run, 16, 6, "extract")):
        assert batch.frames.shape[2:] == (0, 0, 3) and batch.extras["joints3d"].shape[2:] == (17, 3)
    assert len(loop.extract(state, frozen, 0, MagicMock()).arrays["feature"])
    found = Evaluator(run).final(variables_of(state, frozen), state.memory, 0)
    assert found.results["scores"]
    (lists, *_) = ranked_lists(run, found.cases, found.distance, found.features, found.quality)
    case = found.cases[0]
    split = case.query.split
    joints = run.extras(split, "test").read(split.labels.names.index(lists.query.name), [0])["joints3d"][0]
    assert lists.query.pictures[0] == skeleton(joints * [1, -1, 1])


@pytest.mark.parametrize("preset", ["biwi", "ias_lab", "ks20"])
def test_dry_runs_need_no_data(preset, tmp_path, capsys):
    run = start_run(config(preset), tmp_path / "run", tmp_path / "data", dry=True)
    if preset == "ks20":
        dry_run(run)
        assert "frames to read and decode per epoch: 0" in capsys.readouterr().out
    joints = {"biwi": 20, "ias_lab": 20, "ks20": 25}[preset]
    assert run.method.extras("test")["joints3d"].shape == (joints, 3)
    assert not Path(tmp_path / "data").exists()


# ------------------------------------------------------------------------------------------------------- weights


def test_an_encoder_starts_from_one_of_another_skeleton(tmp_path):
    """A file with an image tower beside it; all but the code of the tree is taken over, bit for bit."""
    c = SkeletonConfig(width=8, depth=2, heads=2, hidden=12, projection=6)
    other = SkeletonConfig(tree=TREES[20], width=8, depth=2, heads=2, hidden=12, projection=6)
    params = family.filled(SkeletonGraph(c).init, jnp.zeros((1, 17, 3)))["params"]
    image = family.filled(ViT(family.IMAGE).init, jnp.zeros((1, 24, 24, 3)))["params"]
    path = tmp_path / "encoders.safetensors"
    save_params(path, (image, family.IMAGE), (params, c))
    found = load(path, other)
    assert set(family.paths(found)) == set(family.paths(params))
    jax.tree.map(np.testing.assert_array_equal, found, params)
    jax.tree.map(np.testing.assert_array_equal, load(path, family.IMAGE), image)
    with refuses(UserError, "a skeleton encoder of 1 blocks"):
        load(path, SkeletonConfig(width=8, depth=1, heads=2, hidden=12, projection=6))
    with refuses(UserError, "heads is 2 there and 4 in the config"):
        load(path, SkeletonConfig(width=8, depth=2, heads=4, hidden=12, projection=6))
