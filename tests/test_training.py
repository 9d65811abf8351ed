"""Whole runs on `walkers/tiny`: resume, what may be seen, compiling once, devices, bad workdirs."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from finished import SMALL
from messages import refuses
from tqdm import tqdm

from jaxreid.augment import UNCHANGED
from jaxreid.backbones import clip
from jaxreid.data.samplers import Columns, ShuffleSampler
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.methods.baseline import Baseline
from jaxreid.methods.method import Stage
from jaxreid.report.run_report import report_run
from jaxreid.run.model import start_run
from jaxreid.run.workdirs import claim_workdir
from jaxreid.training import loop as train
from jaxreid.training.checkpoints import Checkpoints
from jaxreid.training.metric_writer import read_metrics
from jaxreid.training.restore import restore_judged
from jaxreid.training.start import enter_stage
from jaxreid.training.steps import AVERAGE, progress_at, variables_of


@pytest.fixture(autouse=True)
def small_tower(monkeypatch):
    monkeypatch.setitem(clip.VISION_TOWERS, "small", SMALL)


def make_config(name, **changes):
    from importlib import import_module

    config = import_module(f"configs.{name}").get_config()
    config.dataset.config = "tiny"
    config.backbone.name, config.backbone.checkpoint = "small", ""
    config.epochs, config.extraction_batch_size = 3, 16
    config.mesh.devices = 1
    config.log_every = 2
    if name == "hitpro":
        config.batch.num_prototypes, config.prototypes.pad_to_multiple_of = 8, 8
        config.levels.cross_start_epoch = 1
    else:
        config.batch.num_identities, config.batch.num_instances = 4, 4
    config.update_from_flattened_dict(changes)
    return config


def run_training(config, workdir, data_dir, stop_after=None):
    """(run, state, frozen) of a whole training; `stop_after` epochs breaks off as a killed process would."""
    workdir = Path(workdir)
    claim_workdir(workdir, config.to_dict())
    run = start_run(config, workdir, data_dir)
    evaluator = Evaluator(run)
    if stop_after is not None:
        whole = train.EpochLoop.epoch

        def broken(self, state, frozen, epoch, *rest):
            if epoch == stop_after:
                raise KeyboardInterrupt
            return whole(self, state, frozen, epoch, *rest)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(train.EpochLoop, "epoch", broken)
            train.train(run, evaluator)
        return run, None, None
    state, frozen = train.train(run, evaluator)
    return run, state, frozen


def leaves(state):
    return jax.device_get(jax.tree.leaves((state.params, state.batch_stats, state.memory, state.opt_state)))


def assert_equal(one, other):
    for a, b in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir, tiny):
    """One finished HiTPro run with its evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(clip.VISION_TOWERS, "small", SMALL)
        workdir = tmp_path_factory.mktemp("finished")
        run, state, frozen = run_training(make_config("hitpro"), workdir, data_dir)
        return run, state, frozen


def test_results_of_a_run(finished):
    run, state, frozen = finished
    evaluator = Evaluator(run)
    found = evaluator.final(variables_of(state, frozen), state.memory, 3)
    report_run(run, found)
    results = found.results
    saved = json.loads((run.workdir / "results.json").read_text())
    assert saved == json.loads(json.dumps(results))
    scores = {record["direction"]: record for record in saved["scores"]}
    assert list(scores) == ["visible_to_infrared", "infrared_to_visible"]
    for record in scores.values():
        assert record["protocol"] == "cross_modal_cam"
        assert 0 < record["mINP"] <= 100 and 0 < record["mAP"] <= 100
        assert record["rank-1"] <= record["rank-5"] <= record["rank-10"] <= record["rank-20"]
        assert [record["cmc"][k - 1] for k in (1, 5, 10, 20)] == [record[f"rank-{k}"] for k in (1, 5, 10, 20)]
    query, gallery = run.dataset.query, run.dataset.gallery
    assert scores["infrared_to_visible"]["queries"] == len(query)
    assert scores["infrared_to_visible"]["gallery"] == len(gallery)
    assert scores["visible_to_infrared"]["queries"] == len(gallery)
    assert (run.workdir / "report" / "index.html").stat().st_size > 10_000
    assert {row["kind"] for row in read_metrics(run.workdir)} == {"association", "train"}


def test_steps_change_parameters_and_move_prototypes(finished):
    run, state, _ = finished
    start, _ = enter_stage(run, run.method.stages()[0], None, None)
    before, after = jax.device_get((start.params, state.params))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
    assert all(jax.tree.leaves(moved)), moved
    assert int(state.step) == 3 * len(
        run.method.stages()[0].sampler.draw(
            np.asarray(state.memory.slot), run.method.info.columns, np.random.default_rng(0)
        )[0]
    )


def test_the_neck_starts_from_the_statistics_of_the_whole_split(finished):
    run, *_ = finished
    stage = run.method.stages()[0]
    start, frozen = enter_stage(run, stage, None, None)
    loop = train.EpochLoop(run, stage, 0, start)
    before = loop.extract(start, frozen, 0, tqdm(disable=True))
    calibrated, features = loop.calibrate(start, frozen, tqdm(disable=True))
    tower = np.asarray(before.arrays["tower"], np.float64)[np.asarray(before.valid)]
    statistics = calibrated.batch_stats["neck"]
    np.testing.assert_allclose(statistics["mean"], tower.mean(0), atol=1e-5)
    np.testing.assert_allclose(statistics["var"], tower.var(0, ddof=1), rtol=1e-4)
    # Extracting again, with the statistics in place, gives the features that calibration handed on.
    again = loop.extract(calibrated, frozen, 0, tqdm(disable=True))
    np.testing.assert_allclose(again.arrays["feature"], features.arrays["feature"], atol=1e-5)
    assert np.abs(np.asarray(features.arrays["feature"] - before.arrays["feature"])).max() > 0.1


def test_extractions_and_tests_see_the_average_over_the_steps(tmp_path, data_dir, tiny):
    config = make_config("baseline", **{"ema_decay": 0.7, "optimizer.lr": 1e-2, "schedule.warmup_epochs": 0.0})
    run = start_run(config, tmp_path, data_dir)
    stage = run.method.stages()[0]
    state, frozen = enter_stage(run, stage, None, None)
    loop = train.EpochLoop(run, stage, 0, state)
    state, _ = loop.calibrate(state, frozen, tqdm(disable=True))

    def newest():
        trees = {"params": state.params, "batch_stats": state.batch_stats}
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), trees)

    average = newest()
    loader, steps = loop.loader(state, 0)
    for step, batch in zip(range(3), loader, strict=False):
        state, _ = loop.train_step(state, frozen, batch, progress_at(stage, 0, step, steps), None)
        average = jax.tree.map(lambda old, new: 0.7 * old + 0.3 * new, average, newest())
    # A few roundings of single precision; the newest differ from their average by far more.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.opt_state[AVERAGE], average)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), average, newest())
    assert max(jax.tree.leaves(apart["params"])) > 1e-3 and max(jax.tree.leaves(apart["batch_stats"])) > 1e-3

    seen = loop.extract(state, frozen, 0, tqdm(disable=True)).arrays["feature"]
    alone = state.replace(**state.opt_state[AVERAGE], opt_state={})
    np.testing.assert_array_equal(seen, loop.extract(alone, frozen, 0, tqdm(disable=True)).arrays["feature"])
    given, expected = variables_of(state, frozen), variables_of(alone, frozen)
    jax.tree.map(np.testing.assert_array_equal, given, expected)


def test_resume_equals_the_uninterrupted_run(finished, tmp_path, data_dir):
    run, state, _ = finished
    run_training(make_config("hitpro"), tmp_path, data_dir, stop_after=2)
    assert Checkpoints(tmp_path).latest() == 2
    # A crash in the middle of an epoch leaves rows that the resumed run writes again.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        row = read_metrics(tmp_path)[-1]
        file.write(json.dumps({**row, "epoch": 2, "run_epoch": 2}) + '\n{"kind": "tr')
    _, resumed, _ = run_training(make_config("hitpro"), tmp_path, data_dir)
    assert_equal(state, resumed)
    assert read_metrics(tmp_path) == read_metrics(run.workdir)


def test_identity_labels_never_reach_training(finished, tmp_path, data_dir):
    """Everything that could carry an identity is permuted over the tracklets; the run must not notice."""
    run, state, _ = finished
    config = make_config("hitpro")
    other = start_run(config, tmp_path, data_dir)
    shuffle = np.random.default_rng(0).permutation(len(other.dataset.train))
    split = other.dataset.train
    labels = dataclasses.replace(
        split.labels,
        pid=split.labels.pid[shuffle],
        identity=split.labels.identity[shuffle],
        clothes=np.arange(len(split), dtype=np.int32),
        pair=np.arange(len(split), dtype=np.int32)[shuffle],
        names=tuple(np.array(split.labels.names)[shuffle].tolist()),
    )
    table = dataclasses.replace(split.table, recording=split.table.recording[shuffle])
    permuted = dataclasses.replace(split, labels=labels, table=table)
    other.dataset = dataclasses.replace(other.dataset, train=permuted)
    other.method.info = dataclasses.replace(other.method.info, table=table)
    claim_workdir(tmp_path, config.to_dict())
    unlike, _ = train.train(other, Evaluator(other))
    assert_equal(state, unlike)
    # The diagnostics do look at the labels: the permutation is not a no-op.
    rows, permuted_rows = read_metrics(run.workdir), read_metrics(tmp_path)
    assert [r for r in rows if r["kind"] == "train"] == [r for r in permuted_rows if r["kind"] == "train"]
    assert [r for r in rows if r["kind"] == "association"] != [r for r in permuted_rows if r["kind"] == "association"]


@pytest.mark.extended
def test_xla_compiles_each_step_once(tmp_path, data_dir, tiny, caplog):
    jax.config.update("jax_log_compiles", True)  # `jax.log_compiles` would hold for this thread only
    try:
        with caplog.at_level(logging.WARNING, logger="jax"):
            run, *_ = run_training(make_config("hitpro"), tmp_path, data_dir)
    finally:
        jax.config.update("jax_log_compiles", False)
    for name in ("train_step", "calibrate", "refresh", "extract_step"):
        lines = [r.getMessage() for r in caplog.records if f"Finished XLA compilation of jit({name})" in r.getMessage()]
        # extract_step: the training split's clips and the test split's have other shapes, one function each; a third
        # masks the margins.
        assert len(lines) == (3 if name == "extract_step" else 1), (name, lines)
    assert {step.count for step in run.compiled.values()} == {1}


def test_baseline_overfits(tmp_path, data_dir, tiny, monkeypatch):
    monkeypatch.setattr(Checkpoints, "save", lambda *_: None)  # nobody goes on from here
    config = make_config("baseline", epochs=40)
    config.optimizer.lr, config.optimizer.groups, config.triplet.weight = 1e-2, (("^encoder/", 0.1, None),), 0.1
    config.augment = {"crop": 0}
    config.label_smoothing = 0.0
    run, _, _ = run_training(config, tmp_path, data_dir)
    losses = [row["loss_identity"] for row in read_metrics(run.workdir) if row["kind"] == "train"]
    assert losses[0] > 1.5  # ln 6 = 1.79 for the six identities
    assert losses[-1] < 0.3


def test_another_config_is_refused(finished):
    run, *_ = finished
    config = make_config("hitpro", **{"levels.temperature": 0.2})
    with refuses(ValueError, "levels.temperature", "0.1 → 0.2"):
        claim_workdir(run.workdir, config.to_dict())


def test_one_modality_is_named(tmp_path, data_dir):
    config = make_config("hitpro", **{"dataset.config": "tiny"})
    run = start_run(config, tmp_path, data_dir)
    table = run.dataset.train.table
    info = dataclasses.replace(
        run.method.info, table=dataclasses.replace(table, modality=np.zeros_like(table.modality))
    )
    with refuses(ValueError, "visible"):
        type(run.method)(config, info)
    config.require_both_modalities = False
    assert any("cross-modality" in note for note in type(run.method)(config, info).notes())


def test_unwritable_workdir_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with refuses(ValueError, tmp_path / "file"):
        claim_workdir(tmp_path / "file" / "run", {})


def test_batch_must_divide_over_devices(tmp_path, data_dir):
    with refuses(ValueError, "8 devices"):
        start_run(make_config("hitpro", **{"mesh.devices": 8, "batch.num_prototypes": 7}), tmp_path, data_dir)


def test_scoring_an_unfinished_run_does_not_finish_it(tmp_path, data_dir, tiny):
    from jaxreid.main import _finished

    run, _, _ = run_training(make_config("hitpro"), tmp_path, data_dir, stop_after=2)
    state, frozen, epoch, done = restore_judged(run)
    assert epoch == done == 2
    results = Evaluator(run).final(variables_of(state, frozen), state.memory, done).results
    assert results["scores"][0]["checkpoint"] == "epoch 2 of 3"
    assert _finished(tmp_path) is None


def test_a_stage_of_so_many_steps(tmp_path, data_dir, tiny):
    """Seven steps in three epochs: two, two and three; resumed after the first to the same numbers."""
    config = make_config("baseline", log_every=1)
    config.method = "seven_steps"
    run, state, _ = run_training(config, tmp_path / "whole", data_dir)
    rows = [row for row in read_metrics(run.workdir) if row["kind"] == "train"]
    assert [(row["epoch"], row["step"]) for row in rows] == [(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6), (2, 7)]
    run_training(config, tmp_path / "broken", data_dir, stop_after=1)
    again, resumed, _ = run_training(config, tmp_path / "broken", data_dir)
    assert read_metrics(again.workdir) == read_metrics(run.workdir)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_steps_take_as_many_passes_as_they_need():
    """Every pass shows every tracklet once before any comes again."""
    stage = Stage("s", 2, None, ShuffleSampler(2), 1, UNCHANGED, (), steps=9)
    columns, length = Columns(*np.full((4, 6), -1)), np.full(6, 4)
    plans = [stage.plan(np.zeros(6, int), columns, length, np.random.default_rng(0), epoch) for epoch in (0, 1)]
    assert [len(plan) for plan in plans] == [2 * 4, 2 * 5]
    for plan in plans:
        assert len(set(plan.tracklet[:6].tolist())) == 6 and len(set(plan.tracklet[6:].tolist())) == len(plan) - 6
    with refuses(ValueError, "'s'", "1 steps", "2 epochs"):
        dataclasses.replace(stage, steps=1)


def test_memory_changes_its_structure_between_stages(tmp_path, data_dir, tiny):
    """Scored before, between and after with one compiled step; resumed in the second stage; judged in the first."""
    config = make_config("baseline", evaluate_every=1, log_every=1)
    config.method = "changing_memory"
    run, state, _ = run_training(config, tmp_path / "whole", data_dir)
    steps = [row["stage"] for row in read_metrics(run.workdir) if row["kind"] == "train"]
    assert float(state.memory["before"]) == steps.count("first") > 0
    assert state.memory["pair"].tolist() == [steps.count("second")] * 2
    assert run.compiled["embed_step"].count == 1
    run_training(config, tmp_path / "broken", data_dir, stop_after=1)  # one epoch of the first stage
    early = start_run(config, tmp_path / "broken", data_dir)
    assert restore_judged(early)[0].memory.keys() == {"before", "pair"}
    again, resumed, _ = run_training(config, tmp_path / "broken", data_dir)
    assert read_metrics(again.workdir) == read_metrics(run.workdir)
    assert_equal(state, resumed)


def test_a_pattern_that_freezes_nothing_is_warned_of(tmp_path, data_dir, tiny, monkeypatch):
    run = start_run(make_config("baseline", **{"optimizer.groups": (("^encodr/", 0.0, None),)}), tmp_path, data_dir)
    with pytest.warns(UserWarning, match="encodr"):
        enter_stage(run, run.method.stages()[0], None, None)


def test_a_loss_that_changes_the_structure_of_memory_is_named(tmp_path, data_dir, tiny, monkeypatch):
    whole = Baseline.loss
    monkeypatch.setattr(Baseline, "loss", lambda *args: whole(*args).replace(memory={"more": 1.0}))
    with refuses(ValueError, "'baseline'", "begin_stage"):
        run_training(make_config("baseline", evaluate_start=False), tmp_path, data_dir)
