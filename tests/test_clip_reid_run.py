"""Whole runs of the CLIP-ReID family and of LSMRL on `walkers/tiny`: stages, resume, weights, banks."""

import importlib

import jax
import numpy as np
import pytest
from test_training import assert_equal, run_training

from jaxreid.backbones import clip, text
from jaxreid.backbones.saving import save_params
from jaxreid.backbones.text import TextConfig, TextTower
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.backbones.word_table import walkers_words
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.run.model import start_run
from jaxreid.training.metric_writer import read_metrics
from jaxreid.training.restore import restore_judged
from jaxreid.training.start import init_variables
from jaxreid.training.steps import variables_of

IMAGE = ViTConfig(width=16, depth=2, heads=2, patch=16, image_size=(64, 32), projection=8)
TEXT = TextConfig(width=16, depth=1, heads=2, projection=8, vocabulary=len(walkers_words().clip_ids))


@pytest.fixture(autouse=True)
def small_towers(monkeypatch):
    monkeypatch.setitem(clip.VISION_TOWERS, "small", IMAGE)
    monkeypatch.setitem(text.TEXT_TOWERS, "small", TEXT)


def make_config(name, **changes):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.dataset.config, config.backbone.name, config.backbone.checkpoint = "tiny", "small", ""
    config.extraction_batch_size, config.log_every, config.mesh.devices = 16, 1, 1
    config.evaluate_start = False
    config.batch.num_identities, config.batch.num_instances = 4, 2
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Both small towers as one file, as CLIP's are."""
    image = jax.jit(ViT(IMAGE).init)(jax.random.key(1), np.zeros((1, 64, 32, 3), np.float32))["params"]
    words = jax.jit(TextTower(TEXT).init)(jax.random.key(2), np.zeros((1, 4), np.int32))["params"]
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_params(path, (image, IMAGE), (words, TEXT), logit_scale=1.0)
    return path, image, words


def test_two_stages_and_a_resume_inside_the_first(tmp_path, data_dir, tiny, weights):
    path, image, words = weights
    changes = {"stage1.epochs": 2, "epochs": 1, "backbone.checkpoint": str(path)}
    config = make_config("vsla_clip", **changes)
    run, state, frozen = run_training(config, tmp_path / "whole", data_dir)
    assert {name: step.count for name, step in run.compiled.items() if step.count} == dict.fromkeys(
        ("prompts/train_step", "prompts/cache_step", "prompts/refresh_after", "main/train_step"), 1
    )
    run_training(config, tmp_path / "broken", data_dir, stop_after=1)
    again, resumed, _ = run_training(config, tmp_path / "broken", data_dir)
    assert_equal(state, resumed)
    assert read_metrics(again.workdir) == read_metrics(run.workdir)
    assert not again.compiled["prompts/cache_step"].count  # what stage 1 learns from was kept

    # Stage 1 moved the words only, and the bank is theirs; CLIP's weights are those of the file to the end.
    variables = jax.device_get(variables_of(state, frozen))
    jax.tree.map(np.testing.assert_array_equal, variables["params"]["text"]["tower"], words)
    tower = variables["params"]["image_tower"]
    assert "beside_mlp" in tower["block_00"]
    for name, leaf in jax.tree_util.tree_leaves_with_path(image):
        found = tower
        for key in name:
            found = found[key.key]
        np.testing.assert_array_equal(found, leaf)
    start = init_variables(run)["params"]
    assert (np.abs(variables["params"]["text"]["own"] - start["text"]["own"]).max((1, 2)) > 1e-3).all()
    bank = jax.jit(lambda v: run.method.network.apply(v, 1, method="text_bank"))(variables)
    np.testing.assert_allclose(state.memory.bank, bank, atol=1e-5)
    frozen_there = sorted(path.name for path in (run.workdir / "checkpoints" / "frozen").iterdir() if path.is_dir())
    assert frozen_there == ["main", "prompts", "prompts-cached"]  # once, and in no checkpoint of an epoch


def test_scores_of_every_epoch_come_from_one_step(tmp_path, data_dir, tiny):
    """Also of a run that ended in the first stage."""
    changes = {"stage1.epochs": 2, "epochs": 2, "evaluate_start": True, "evaluate_every": 1, "mesh.devices": 2}
    config = make_config("vsla_clip", **changes)
    run, _, _ = run_training(config, tmp_path / "whole", data_dir)
    assert run.compiled["embed_step"].count == 1
    scored = [(row["stage"], row["epoch"]) for row in read_metrics(run.workdir) if row["kind"] == "evaluate"]
    assert scored == [("prompts", 0), ("main", 0)]  # those of the last epoch are in the results
    early, _, _ = run_training(config, tmp_path / "early", data_dir, stop_after=1)
    state, frozen, epoch, _ = restore_judged(early)
    found = Evaluator(early).final(variables_of(state, frozen), state.memory, epoch).results
    assert found["epochs_done"] == 1 and found["scores"]


def test_text_free_bank_is_the_mean_of_the_starting_tower_s_features(tmp_path, data_dir, tiny):
    config = make_config("tf_clip", epochs=1, **{"memory.seq_len": 4})
    run, state, _ = run_training(config, tmp_path, data_dir)
    start = init_variables(start_run(config, tmp_path / "other", data_dir))
    split, reader = run.dataset.train, run.reader(run.dataset.train)
    tower = jax.jit(lambda x: ViT(IMAGE).apply({"params": start["params"]["image_tower"]}, x)["projected"])
    frames = [np.stack([reader.decode(row, i) for i in range(n)]) for row, n in enumerate(split.table.length)]
    pixels = (np.concatenate(frames) / 255 - 0.5) / 0.5
    of_frames = np.split(np.asarray(tower(pixels.astype(np.float32))), np.cumsum(split.table.length)[:-1])
    found: dict[int, list[np.ndarray]] = {}
    for row, features in enumerate(of_frames):
        length = len(features)
        chunks = [[i + (j % min(4, length - i)) for j in range(4)] for i in range(0, length, 4)]
        clips = [features[chunk].mean(0) for chunk in chunks]
        found.setdefault(int(split.labels.identity[row]), []).append(np.mean(clips, axis=0))
    wanted = [np.mean(found[identity], axis=0) for identity in range(len(found))]
    np.testing.assert_allclose(state.memory.bank, wanted, atol=1e-4)


@pytest.mark.extended
def test_a_bank_that_follows_training_is_resumed(tmp_path, data_dir, tiny):
    config = make_config("climb_bank", epochs=2)
    run, state, _ = run_training(config, tmp_path / "whole", data_dir)
    assert {name: step.count for name, step in run.compiled.items() if step.count} == dict.fromkeys(
        ("main/train_step", "main/extract_step", "main/refresh"), 1
    )
    run_training(config, tmp_path / "broken", data_dir, stop_after=1)
    again, resumed, _ = run_training(config, tmp_path / "broken", data_dir)
    assert_equal(state, resumed)
    assert read_metrics(again.workdir) == read_metrics(run.workdir)
    np.testing.assert_allclose(np.linalg.norm(state.memory.bank, axis=1), 1.0, atol=1e-5)
    mean, hard = np.split(np.asarray(state.memory.bank), 2)
    assert (np.abs(mean - hard).max(1) > 1e-6).mean() > 0.5  # moved apart by the last epoch's batches


@pytest.mark.extended
def test_lsmrl_in_two_stages(tmp_path, data_dir, tiny):
    changes = {"two_stage": True, "stage1.epochs": 2, "batch.steps_per_epoch": 2, "stfl_split": (0, 1, 1), "heads": 2}
    run, state, frozen = run_training(make_config("lsmrl", epochs=1, **changes), tmp_path, data_dir)
    assert {name: step.count for name, step in run.compiled.items() if step.count} == dict.fromkeys(
        ("prompts/train_step", "prompts/cache_step", "prompts/refresh_after", "lsmrl/train_step"),
        1,
    )
    variables = variables_of(state, frozen)
    bank = jax.jit(lambda v: run.method.network.apply(v, 1, method="bank"))(variables)
    np.testing.assert_allclose(state.memory.bank, bank, atol=1e-5)
    start = init_variables(run)["params"]["text"]["own"]
    assert (np.abs(variables["params"]["text"]["own"] - start).max((1, 2)) > 1e-3).all()


def test_lsmrl_keeps_the_bank_of_its_last_parameters(tmp_path, data_dir, tiny):
    config = make_config("lsmrl", epochs=2, stfl_split=(0, 1, 1), heads=2, **{"batch.steps_per_epoch": 2})
    run, state, frozen = run_training(config, tmp_path, data_dir)
    assert {step.count for step in run.compiled.values() if step.count} == {1}
    bank = jax.jit(lambda v: run.method.network.apply(v, 1, method="bank"))(variables_of(state, frozen))
    np.testing.assert_allclose(state.memory.bank, bank, atol=1e-5)
