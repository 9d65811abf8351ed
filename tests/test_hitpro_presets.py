"""HiTPro's presets: their settings, and whole runs on miniatures in the data sets' layouts."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import test_bupt_campus_builder as bupt
import test_hitsz_vcm_builder as hitsz
from messages import refuses

from jaxreid.backbones import clip, frame_encoder
from jaxreid.backbones.resnet import ResNetConfig
from jaxreid.backbones.saving import save_params
from jaxreid.backbones.vit import ViT, ViTConfig
from jaxreid.devices import parallel
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.optimizers import find_group, make_optimizer
from jaxreid.run.model import example_batch, start_run
from jaxreid.run.workdirs import claim_workdir
from jaxreid.training import loop as train
from jaxreid.training.start import init_variables
from jaxreid.training.steps import variables_of

ROOT = Path(__file__).parent.parent
SMALL = ViTConfig(width=32, depth=2, heads=2, patch=16, image_size=(224, 224), projection=16)


def get_config(preset):
    return importlib.import_module("configs.hitpro").get_config(preset)


@pytest.mark.parametrize("preset", ["hitsz_vcm", "bupt_campus"])
def test_settings_of_the_data_sets_presets(preset):
    """The library's choices after the ancestors' (docs/hitpro.md, Presets)."""
    config = get_config(preset)
    assert (config.backbone.name, config.precision) == ("ViT-B/16", "bfloat16")
    assert (config.frames.height, config.frames.width) == (256, 128)
    assert config.frames.mean == (0.485, 0.456, 0.406) and config.frames.std == (0.229, 0.224, 0.225)
    assert config.batch.to_dict() == {"num_prototypes": 16, "num_instances": 2, "seq_len": 6}
    assert (config.optimizer.name, config.optimizer.weight_decay) == ("adam", 1e-4)
    groups = make_optimizer(config.optimizer).groups
    paths = ("encoder/patch_embedding/kernel", "encoder/block_00/mlp/up/kernel", "temporal/score/kernel")
    assert [find_group(path, groups).lr for path in paths] == pytest.approx([0.0, 5e-6, 3.5e-4])
    assert (config.epochs, config.schedule.warmup_epochs, config.schedule.milestones) == (50, 10.0, (20.0, 40.0))
    assert (config.levels.intra_weight, config.levels.within_weight, config.levels.cross_weight) == (1.0, 0.5, 0.5)
    assert (config.levels.within_start_epoch, config.levels.cross_start_epoch, config.levels.temperature) == (
        5,
        15,
        0.07,
    )
    assert config.kappa == (0.0, -2.0)
    mining = config.association
    assert (mining.candidates_per_camera, mining.within_positives, mining.cross_positives) == (1, 4, 6)
    assert (mining.delta, mining.weight_temperature, mining.num_look_alikes) == (0.1, 0.05, 8)
    assert (mining.look_alikes, mining.look_alike_kappa) == (True, -2.0)
    assert config.prototypes.parts == {"hitsz_vcm": 2, "bupt_campus": 4}[preset]
    assert config.prototypes.momentum == 0.5
    assert (config.augment.crop, config.augment.flip, config.augment.erase) == (10, 0.5, 0.5)
    assert config.augment.channel_exchange == 0.5 and config.augment.infrared_mix
    expected = {"hitsz_vcm": ("chunk_first", 6), "bupt_campus": ("linspace", 10)}[preset]
    assert (config.evaluation.clip_sampling, config.evaluation.seq_len) == expected


def test_the_recording_unit_is_a_preset_of_its_own():
    tracklet, recording = get_config("hitsz_vcm"), get_config("hitsz_vcm_camera_track")
    assert (tracklet.prototypes.unit, recording.prototypes.unit) == ("tracklet", "camera_track")
    assert not recording.association.look_alikes
    recording.update({"preset": "hitsz_vcm"})
    recording.prototypes.unit, recording.association.look_alikes = "tracklet", True
    assert recording.to_dict() == tracklet.to_dict()


@pytest.fixture(scope="module")
def clip_weights(tmp_path_factory):
    """A small CLIP image tower at its native size, random, as a Hugging Face file."""
    variables = jax.jit(ViT(SMALL).init)(jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_params(path, (variables["params"], SMALL))
    return path


def miniature(config, weights, source):
    config.backbone.checkpoint, config.dataset.path = str(weights), str(source)
    config.frames.height, config.frames.width = 64, 32
    config.epochs, config.extraction_batch_size = 3, 8
    config.batch.num_prototypes, config.batch.seq_len, config.prototypes.pad_to_multiple_of = 2, 3, 8
    config.levels.within_start_epoch, config.levels.cross_start_epoch = 1, 2
    config.mesh.devices, config.loading.threads = 1, 2
    return config


def run_training(config, workdir, data_dir, monkeypatch):
    monkeypatch.setitem(clip.VISION_TOWERS, "ViT-B/16", SMALL)
    claim_workdir(workdir, config.to_dict())
    run = start_run(config, workdir, data_dir)
    evaluator = Evaluator(run)
    before = init_variables(run)["params"]
    state, frozen = train.train(run, evaluator)
    return run, evaluator.final(variables_of(state, frozen), state.memory, 3).results, (before, state, frozen)


@pytest.mark.parametrize("preset", ["hitsz_vcm", "hitsz_vcm_camera_track"])
def test_a_miniature_of_hitsz_vcm_trains_from_clip_weights(tmp_path, clip_weights, monkeypatch, preset):
    source = tmp_path / "HITSZ-VCM"
    hitsz.write_lists(source / "info")
    hitsz.write_frames(source / "Train", source / "Test")
    config = miniature(get_config(preset), clip_weights, source)
    config.dataset.config = "min12_unchecked"
    run, results, (before, state, frozen) = run_training(config, tmp_path / "run", tmp_path / "data", monkeypatch)

    # 9 train rows of at least 12 frames; "camera_track" joins the two pieces of person 1 in visible camera 3, of
    # person 2 in infrared camera 3, and of person 10 in both of its cameras.
    slots = {"hitsz_vcm": 10, "hitsz_vcm_camera_track": 6}[preset]
    assert len(np.unique(run.method.slot)) == slots
    assert results["assumptions"]["prototype unit"] == config.prototypes.unit
    assert [score["protocol"] for score in results["scores"]] == ["cross_modal_cam"] * 2
    assert [score["direction"] for score in results["scores"]] == ["visible_to_infrared", "infrared_to_visible"]
    # Patch embedding and projection stay, the blocks move.
    moved = jax.tree.map(
        lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))),
        frozen["encoder"],
        {name: before["encoder"][name] for name in frozen["encoder"]},
    )
    assert set(frozen["encoder"]) == {"patch_embedding", "projection"} and not any(jax.tree.leaves(moved))
    kernel = "block_00", "mlp", "up", "kernel"
    old, new = before["encoder"], state.params["encoder"]
    for key in kernel:
        old, new = old[key], new[key]
    assert np.any(np.asarray(old) != np.asarray(new)) and new.dtype == np.float32
    # Slots of the larger modality, two in each batch.
    steps = {"hitsz_vcm": 3, "hitsz_vcm_camera_track": 2}[preset]
    assert int(state.step) == 3 * steps


def test_the_ancestors_encoder(tmp_path):
    """Parameters by hand in test_layers.py; 9,751 tracklets · 2 parts · 6 frames = 117,012 frames to extract."""
    config = get_config("hitsz_vcm_resnet50")
    assert (config.frames.height, config.frames.width, config.optimizer.weight_decay) == (288, 144, 5e-4)
    run = start_run(config, tmp_path / "run", tmp_path / "data", dry=True)
    shapes = jax.eval_shape(run.method.init, jax.random.key(0), example_batch(run))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 24_056_704
    (stage,) = run.method.stages()
    assert len(run.dataset.train) * stage.extraction.parts * stage.extraction.seq_len == 117_012
    groups = stage.updates[0].optimizer.groups
    paths = [path for path, _ in parallel.flatten_paths(shapes["params"])]
    assert {find_group(path, groups).lr for path in paths} == {3.5e-4}


def test_a_miniature_trains_with_a_stem_for_each_modality(tmp_path, monkeypatch):
    monkeypatch.setitem(frame_encoder.RESNETS, "resnet50_two_stem", ResNetConfig(depths=(1, 1), width=8, stems=2))
    source = tmp_path / "HITSZ-VCM"
    hitsz.write_lists(source / "info")
    hitsz.write_frames(source / "Train", source / "Test")
    config = miniature(get_config("hitsz_vcm_resnet50"), "", source)
    config.dataset.config = "min12_unchecked"
    _, results, (before, state, frozen) = run_training(config, tmp_path / "run", tmp_path / "data", monkeypatch)
    assert results["scores"][0]["protocol"] == "cross_modal_cam" and not jax.tree.leaves(frozen)
    for stem in ("stem", "stem_infrared"):
        kernels = (np.asarray(p["encoder"][stem]["conv"]["kernel"]) for p in (before, state.params))
        assert np.any(np.subtract(*kernels) != 0)
    means = [np.asarray(state.batch_stats["encoder"][stem]["norm"]["mean"]) for stem in ("stem", "stem_infrared")]
    assert np.any(means[0] != means[1]) and np.all(np.isfinite(means))


def test_weights_and_batch_statistics_come_from_a_torchvision_file(tmp_path, monkeypatch):
    """One stem in the file, two in the network: both start from it."""
    small = ResNetConfig(depths=(1, 1), width=8, stems=2)
    monkeypatch.setitem(frame_encoder.RESNETS, "resnet50_two_stem", small)
    rng, tensors = np.random.default_rng(0), {}

    def add(name, *shape):
        tensors[name] = rng.normal(size=shape).astype(np.float32)

    def norm(name, width):
        for part in ("weight", "bias", "running_mean", "running_var"):
            add(f"{name}.{part}", width)

    add("conv1.weight", 8, 3, 7, 7)
    norm("bn1", 8)
    for layer, inputs, width in (("layer1.0", 8, 8), ("layer2.0", 32, 16)):
        convolutions = (("conv1", width, inputs, 1), ("conv2", width, width, 3), ("conv3", 4 * width, width, 1))
        for (name, out, into, size), bn in zip(convolutions, ("bn1", "bn2", "bn3"), strict=True):
            add(f"{layer}.{name}.weight", out, into, size, size)
            norm(f"{layer}.{bn}", out)
        add(f"{layer}.downsample.0.weight", 4 * width, inputs, 1, 1)
        norm(f"{layer}.downsample.1", 4 * width)
    add("fc.weight", 10, 64)
    add("fc.bias", 10)
    safetensors.numpy.save_file(tensors, tmp_path / "resnet.safetensors")
    config = miniature(get_config("hitsz_vcm_resnet50"), tmp_path / "resnet.safetensors", "")
    run = start_run(config, tmp_path / "run", tmp_path / "data", dry=True)
    variables = init_variables(run)
    for stem in ("stem", "stem_infrared"):
        found = variables["params"]["encoder"][stem]
        np.testing.assert_array_equal(found["conv"]["kernel"], tensors["conv1.weight"].transpose(2, 3, 1, 0))
        mean = variables["batch_stats"]["encoder"][stem]["norm"]["mean"]
        np.testing.assert_array_equal(mean, tensors["bn1.running_mean"])
    np.testing.assert_array_equal(
        variables["batch_stats"]["encoder"]["layer2_0"]["norm2"]["var"], tensors["layer2.0.bn2.running_var"]
    )


def test_a_miniature_of_bupt_campus_is_scored_under_both_protocols(tmp_path, clip_weights, monkeypatch):
    """66 visible queries and 70 visible gallery tracklets: the reduced protocol looks at 64 of each, and the infrared
    query 98, 68th in the gallery, has no match there."""
    rng = np.random.default_rng(0)
    people = range(31, 101)
    infrared = (40, 50, 60, 98)
    lists = {
        **bupt.LISTS,
        "query": [bupt.Line(pid, "IR" if pid in infrared else "RGB", "LS3", 1, [1]) for pid in people],
        "gallery": [bupt.Line(pid, m, "CQ1", 1, [1, 2]) for pid in people for m in ("RGB", "IR")],
    }
    source = tmp_path / "BUPTCampus"
    bupt.write_lists(source, lists)
    for lines in lists.values():
        for line in lines:
            for modality in line.folders:
                for file in line.files(modality):
                    (source / file).parent.mkdir(parents=True, exist_ok=True)
                    (source / file).write_bytes(bupt.jpeg(int(rng.integers(1000))))
    config = miniature(get_config("bupt_campus"), clip_weights, source)
    config.dataset.config = "rgb_ir_unchecked"
    run, results, _ = run_training(config, tmp_path / "run", tmp_path / "data", monkeypatch)
    found = {(s["protocol"], s["direction"]): (s["queries"], s["gallery"]) for s in results["scores"]}
    assert found == {
        ("bupt_full", "visible_to_infrared"): (66, 70),
        ("bupt_full", "infrared_to_visible"): (4, 70),
        ("bupt_reduced64", "visible_to_infrared"): (64, 70),
        ("bupt_reduced64", "infrared_to_visible"): (3, 64),
    }
    assert (results["scores"][0]["clip_sampling"], results["scores"][0]["seq_len"]) == ("linspace", 10)
    assert run.dataset.train.table.length.max() == 4 and len(run.dataset.train) == 12


def test_a_protocol_that_leaves_nothing_is_named_before_training(tmp_path, clip_weights, monkeypatch):
    source = tmp_path / "BUPTCampus"
    bupt.write_lists(source)
    for lines in bupt.LISTS.values():
        for line in lines:
            for modality in line.folders:
                for file in line.files(modality):
                    (source / file).parent.mkdir(parents=True, exist_ok=True)
                    (source / file).write_bytes(bupt.jpeg(1))
    config = miniature(get_config("bupt_campus"), clip_weights, source)
    config.dataset.config = "rgb_ir_unchecked"
    with refuses(ValueError, "visible_to_infrared", "bupt_reduced64", 0):
        run_training(config, tmp_path / "run", tmp_path / "data", monkeypatch)


def test_a_dry_run_needs_no_data(tmp_path):
    """⌈5,460 / 16⌉ = 342 steps for the visible ones of 9,751 tracklets, each of them extracted in two parts."""
    line = [sys.executable, "-m", "jaxreid.main", "--config=configs/hitpro.py:hitsz_vcm", "--mode=dry_run"]
    small = ["--config.backbone.name=walkers_vit_tiny", "--config.frames.height=64", "--config.frames.width=32"]
    found = subprocess.run(
        [*line, *small, f"--data_dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    for words in (
        "planned on the published size",
        "train: 9751 tracklets, 224757 frames",
        "50 epochs × 342 steps",
        "batch u8[64, 6, 64, 32, 3]",
        "extraction, 50 times: 19,502 clips of 6 frames",
        "evaluation: 9,683 clips of 6 frames, clip sampling chunk_first",
    ):
        assert words in found.stdout, found.stdout
    assert json.dumps(found.stdout).count("PFLOP") == 3
