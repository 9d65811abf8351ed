"""Cluster contrast on `walkers/tiny`: runs, resume, compiling once, masks, gradients, and what each variant does."""

import dataclasses
import json
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refuses
from test_training import SMALL, run_training

from jaxreid.backbones import clip
from jaxreid.data.split import Labels
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.methods.cluster_contrast import ClusterContrast
from jaxreid.methods.method import Context, Features
from jaxreid.report.run_report import report_run
from jaxreid.run.config_values import check_config
from jaxreid.run.model import start_run
from jaxreid.training import loop as train
from jaxreid.training.metric_writer import read_metrics
from jaxreid.training.steps import variables_of


@pytest.fixture(autouse=True)
def small_tower(monkeypatch):
    monkeypatch.setitem(clip.VISION_TOWERS, "small", SMALL)


def make_config(**changes):
    config = import_module("configs.cluster_contrast").get_config()
    config.dataset.config = "tiny"
    config.backbone.name, config.backbone.checkpoint = "small", ""
    config.epochs, config.extraction_batch_size = 3, 16
    config.mesh.devices, config.log_every = 1, 2
    config.batch.num_clusters, config.batch.num_instances, config.batch.steps_per_epoch = 4, 2, 3
    config.cluster.k1, config.cluster.k2, config.cluster.min_samples = 4, 2, 2
    config.cluster.visible_eps = config.cluster.infrared_eps = 0.8
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir, tiny):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(clip.VISION_TOWERS, "small", SMALL)
        return run_training(make_config(), tmp_path_factory.mktemp("finished"), data_dir)


def association(run):
    return [row for row in read_metrics(run.workdir) if row["kind"] == "association"]


def test_labels_change_and_nothing_compiles_again(finished):
    run, state, _ = finished
    assert {name: step.count for name, step in run.compiled.items() if step.count > 0} == {
        f"cluster_contrast/{step}": 1 for step in ("train_step", "calibrate", "extract_step", "refresh")
    } | {"embed_step": 1, "margins_step": 1}
    rows = association(run)
    assert len(rows) == 3
    for row in rows:
        assert row["visible_clusters"] > 0 and row["infrared_clusters"] > 0
        assert 0 < row["visible_precision"] <= 100 and 0 < row["infrared_coverage"] <= 100
        assert row["neighbours_left_out"] == row["entries_left_out"] == 0
    assert len({json.dumps([row["visible_ari"], row["infrared_ari"]]) for row in rows}) > 1
    assert int(state.step) == 9


def test_results_with_re_ranking_stand_beside_the_plain_ones(finished, monkeypatch):
    run, state, frozen = finished
    evaluator = Evaluator(run)
    variables = variables_of(state, frozen)
    plain = evaluator.final(variables, state.memory, 3).results["scores"]
    # λ = 0: by the overlap of neighbourhoods alone, which no small set ranks as the plain distance does.
    changes = {"reranking": "k_reciprocal", "rerank_k1": 12, "rerank_k2": 3, "rerank_lambda": 0.0}
    evaluator.options = dataclasses.replace(evaluator.options, **changes)
    found = evaluator.final(variables, state.memory, 3)
    report_run(run, found)
    both = found.results["scores"]
    assert [record["reranking"] for record in both] == [False, False, True, True]
    assert both[:2] == plain
    assert [record["direction"] for record in both[:2]] == [record["direction"] for record in both[2:]]
    assert [record["mAP"] for record in both[:2]] != [record["mAP"] for record in both[2:]]
    assert "visible to infrared, re-ranked" in (run.workdir / "report" / "index.html").read_text()


def test_unknown_re_ranking_is_named(tmp_path, data_dir, tiny):
    with refuses(ValueError, "evaluation.reranking", "'magic'"):
        start_run(make_config(**{"evaluation.reranking": "magic"}), tmp_path, data_dir)


@pytest.mark.parametrize(
    "changes",
    [
        {"memory.kind": "camera", "memory.camera_start_epoch": 1},
        {"cross_modality": "adca", "cross_start_epoch": 1},
        {"cross_modality": "pgm", "cross_start_epoch": 1},
    ],
    ids=lambda changes: next(iter(changes.values())),
)
def test_variants_run(changes, finished, tmp_path, data_dir):
    _, plain, _ = finished
    run, state, _ = run_training(make_config(**changes), tmp_path, data_dir)
    assert {step.count for step in run.compiled.values()} == {1}
    rows = association(run)
    if "cross_modality" in changes:
        assert "cross_precision" not in rows[0] and rows[1]["cross_coverage"] > 0
        partner, modality = np.asarray(state.memory.partner), np.asarray(state.memory.modality)
        paired = np.flatnonzero(partner >= 0)
        assert np.all(modality[partner[paired]] == 1 - modality[paired])
    else:
        valid = np.asarray(state.memory.valid)
        label, camera = np.asarray(state.memory.label), run.method.camera
        drawn = label >= 0
        np.testing.assert_array_equal(np.asarray(state.memory.camera)[label[drawn]], camera[drawn])
        assert len(set(zip(np.asarray(state.memory.cluster)[valid], state.memory.camera[valid].tolist(), strict=True)))
        assert valid.sum() == len(set(label[drawn].tolist()))
    one, other = (jax.tree.leaves(jax.device_get(s.params)) for s in (plain, state))
    assert any(np.any(a != b) for a, b in zip(one, other, strict=True))


def loss_of(run, state, frozen, batch, epoch=2):
    (stage,) = run.method.stages()

    def loss(params):
        variables = variables_of(state.replace(params=params), frozen)
        progress = train.progress_at(stage, epoch, 0, 1)
        out = stage.loss(variables, state.memory, batch, Context(jax.random.PRNGKey(0), progress))
        return out.total, out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)


def test_noise_changes_nothing_and_every_parameter_learns(finished):
    run, state, frozen = finished
    steps = train.EpochLoop(run, run.method.stages()[0], 0, state)
    batch = run.pixels(next(iter(steps.loader(state, 0)[0])))
    (value, _), gradients = loss_of(run, state, frozen, batch)
    assert float(value) > 0
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.any(np.asarray(gradient) != 0), jax.tree_util.keystr(path)
    # Clips that turned to noise count for nothing: with all of them noise nothing is left.
    nothing = state.replace(memory=state.memory.replace(label=jnp.full_like(state.memory.label, -1)))
    (value, out), gradient = loss_of(run, nothing, frozen, batch)
    assert float(value) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    np.testing.assert_array_equal(out.memory.feature, state.memory.feature)


def test_refresh_clusters_each_modality_apart(tmp_path, data_dir, tiny):
    """Features that tell the person and nothing else: clusters are the persons of each modality."""
    run = start_run(make_config(), tmp_path, data_dir)
    method, labels = run.method, run.dataset.train.labels
    count = len(labels.pid)
    rng = np.random.default_rng(0)
    width = method.init_memory().feature.shape[1]
    person = np.eye(width)[np.unique(labels.pid, return_inverse=True)[1]]
    z = np.repeat(person, 2, axis=0) + 0.01 * rng.normal(size=(2 * count, width))
    features = Features(
        arrays={"feature": jnp.asarray(z, jnp.float32)},
        tracklet=jnp.repeat(jnp.arange(count), 2),
        part=jnp.tile(jnp.arange(2), count),
        valid=jnp.ones(2 * count, bool),
    )
    (stage,) = method.stages()
    context = Context(jax.random.PRNGKey(0), train.progress_at(stage, 0, 0, 1))
    memory = method.refresh(None, method.init_memory(), features, context)
    found = method.diagnose(jax.device_get(memory), labels)
    for name in ("visible", "infrared"):
        assert found[f"{name}_precision"] == 100
        assert found[f"{name}_coverage"] > 50
    label, modality = np.asarray(memory.label), method.group
    assert not set(label[(modality == 0) & (label >= 0)]) & set(label[modality == 1])


def test_centring_takes_the_camera_out(tmp_path, data_dir, tiny):
    method = start_run(make_config(), tmp_path, data_dir).method
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(method.camera), 5)) + 9 * rng.normal(size=(method.camera.max() + 1, 5))[method.camera]
    expected = x.copy()
    for camera in np.unique(method.camera):
        expected[method.camera == camera] -= x[method.camera == camera].mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(method._centred(jnp.asarray(x, jnp.float32)), expected, atol=1e-5)


def test_diagnosis_of_known_clusters():
    memory = {
        "label": np.array([0, 0, 1, -1, 4, 4]),
        "cluster": np.array([0, 1, -1, -1, 4, -1]),
        "partner": np.array([4, -1, -1, -1, 0, -1]),
        "valid": np.array([True, True, False, False, True, False]),
        "neighbours_left_out": np.int32(3),
        "entries_left_out": np.int32(0),
    }
    method = ClusterContrast.__new__(ClusterContrast)
    method.group, method.modalities = np.array([0, 0, 0, 0, 1, 1]), (0, 1)
    zeros = np.zeros(6, np.int32)
    labels = Labels(np.array([7, 7, 7, 8, 7, 9]), zeros, zeros, zeros, ("",) * 6)
    found = method.diagnose(type("Memory", (), memory), labels)
    assert found["visible_coverage"] == 75 and found["visible_clusters"] == 2
    assert found["visible_precision"] == 100 and found["visible_recall"] == pytest.approx(100 / 3)
    assert found["infrared_precision"] == 0 and found["infrared_coverage"] == 100
    assert found["cross_precision"] == 100 and found["cross_coverage"] == pytest.approx(200 / 3)
    assert found["neighbours_left_out"] == 3


def test_impossible_variants_are_named(tmp_path, data_dir, tiny):
    run = start_run(make_config(), tmp_path, data_dir)
    for changes, named in (
        ({"memory.kind": "person"}, ("memory.kind", "'person'")),
        ({"cross_modality": "magic"}, ("cross_modality", "'magic'")),
        ({"cross_modality": "pgm", "memory.kind": "camera"}, ("memory.kind", "'cluster'")),
    ):
        with refuses(ValueError, *named):
            check_config(make_config(**changes))
    table = dataclasses.replace(run.method.info.table, modality=np.zeros_like(run.method.info.table.modality))
    info = dataclasses.replace(run.method.info, table=table)
    ClusterContrast(make_config(), info)
    with refuses(ValueError, "tracklets"):
        ClusterContrast(make_config(cross_modality="adca"), info)


@pytest.mark.parametrize(("preset", "min_samples"), [("hitsz_vcm", 4), ("bupt_campus", 2)])
def test_presets_keep_the_ancestors_settings(preset, min_samples):
    config = import_module("configs.cluster_contrast").get_config(preset)
    assert (config.cluster.visible_eps, config.cluster.infrared_eps) == (0.6, 0.6)
    assert (config.cluster.k1, config.cluster.k2, config.cluster.min_samples) == (30, 6, min_samples)
    assert (config.memory.momentum, config.memory.temperature, config.memory.kind) == (0.1, 0.05, "cluster")
    memory = config.memory
    assert (memory.camera_start_epoch, memory.camera_weight, memory.hard_negatives) == (5, 0.5, 50)
    assert config.cross_weight == 0.25
