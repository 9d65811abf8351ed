"""The organisers' baseline as they train it, its presets, and what is seen from above on the drawn world."""

import importlib

import numpy as np
import pytest

from jaxreid.data.clips import plan_tracklets
from jaxreid.evaluation.breakdown import breakdown_tables
from jaxreid.evaluation.controls import of_output
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.optimizers import find_group, make_optimizer
from jaxreid.run.model import start_run
from jaxreid.training.start import enter_stage
from jaxreid.training.steps import variables_of


def config(preset):
    return importlib.import_module("configs.vreid_xfd").get_config(preset)


@pytest.mark.parametrize("preset", ["detreidx", "detreidx_anonymised", "detreidx_dev"])
def test_the_organisers_recipe(preset):
    """Values of their config, in their order: backbone, stage 1, stage 2, platform prompts, losses, test."""
    c = config(preset)
    assert (c.method, c.backbone.name, c.frames.height, c.frames.width) == ("vsla_clip", "ViT-B/16", 256, 128)
    assert (c.frames.mean, c.frames.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert c.loading.interpolation == "bicubic" and (c.adapters.width, c.adapters.temporal) == (256, True)
    first = c.stage1
    assert (first.batch_size, first.epochs, first.lr, first.weight_decay) == (16, 120, 3.5e-4, 1e-4)
    assert first.schedule.warmup_epochs == 5 and first.seq_len == 16
    batch = c.batch
    assert (batch.num_identities, batch.num_instances, batch.seq_len) == (2, 8, 16)
    assert (batch.sampler, batch.clip_sampling) == ("groups", "floor")
    assert (c.epochs, c.optimizer.name, c.optimizer.lr, c.optimizer.weight_decay) == (120, "adam", 1e-4, 2.5e-4)
    assert (c.schedule.warmup_epochs, c.schedule.warmup_factor, c.schedule.milestones) == (10, 0.1, (60, 90))
    bias = find_group("image_tower/block_00/beside_mlp/down/bias", make_optimizer(c.optimizer).groups)
    assert (bias.lr, bias.weight_decay) == (2e-4, 1e-4)
    prompts = c.platform_prompts
    assert (prompts.blocks, prompts.length, tuple(prompts.columns)) == (9, 1, ("camera_index",))
    w = c.weights
    assert (w.identity, w.triplet, w.bank, w.image_to_text, w.text_to_image) == (0.25, 1, 1, 1, 1)
    assert (c.triplet.margin, c.label_smoothing) == (0.3, 0.1)
    erased = c.augment
    assert (erased.flip, erased.crop, erased.erase, erased.erase_area) == (0.5, 0, 0.5, 0.4)
    assert (erased.erase_fill, erased.erase_constant) == ("constant", (0.4914, 0.4822, 0.4465))
    assert tuple(erased.per_frame) == ("erase_size",)
    test = c.evaluation
    assert (test.clip_sampling, test.seq_len, test.distance, test.reranking) == ("floor_first", 16, "cosine", "")
    assert c.neck_feat == "before" and tuple(c.embedding) == ("last", "projected") and not test.flip


def test_presets_are_told_apart_by_what_is_scored():
    sets = {name: (config(name).dataset.config, config(name).dataset.protocols) for name in ("walkers", "detreidx")}
    assert sets == {"walkers": ("aerial", ()), "detreidx": ("cases", ())}
    assert tuple(config("detreidx_anonymised").dataset.protocols) == ("none",)
    assert config("detreidx_dev").dataset.config == "dev" and config("").preset == "walkers"


def test_frames_of_clips_are_those_of_the_release():
    """50 frames: blocks of three, tests take their first, in training the last block has the tail; five frames: the
    last is repeated."""
    assert plan_tracklets(np.array([50]), "floor_first", 16).frames.tolist() == [list(range(0, 48, 3))]
    assert plan_tracklets(np.array([5]), "floor_first", 16).frames.tolist() == [[0, 1, 2, 3] + 12 * [4]]


@pytest.mark.extended
def test_the_untouched_tower_finds_people_worse_from_afar_and_from_above(data_dir, tmp_path):
    """On `aerial`, looking for somebody on the ground among drones' tracklets: what the intervals over persons leave no
    doubt of. Other figures (altitude, aerial to ground) are smaller than their intervals."""
    c = importlib.import_module("configs.baseline").get_config()
    c.update_from_flattened_dict({"dataset.config": "aerial", "mesh.devices": 1})
    run = start_run(c, tmp_path, data_dir)
    stage = run.method.stages()[0]
    state, frozen = enter_stage(run, stage, None, None)
    evaluator = Evaluator(run)
    features = of_output(evaluator.features(variables_of(state, frozen), state.memory), "tower")
    quality = [scores for _, scores in evaluator._score(features, "before training")]
    tables = breakdown_tables(evaluator.cases, quality)["breakdown"]["tables"]
    found = {t["condition"]: t for t in tables if (t["direction"], t["side"]) == ("ground_to_aerial", "gallery")}
    assert found["slant range"]["rho_interval"][1] < 0
    assert found["distance, slanted views"]["rho_interval"][1] < 0
    assert found["angle"]["nadir_gap_interval"][0] > 0
