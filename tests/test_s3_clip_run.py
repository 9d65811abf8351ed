"""A run of S3-CLIP: its pairs are counted, three forms of its features scored, and its pictures shown."""

import json
import re

import cv2
import family
import jax
import numpy as np
import pytest
from html_page import Page
from messages import refuses
from test_contract import short_stages
from test_training import run_training

from jaxreid.backbones.kinds import shapes_of
from jaxreid.backbones.saving import to_tensors
from jaxreid.backbones.swinir_layout import SWINIR
from jaxreid.errors import UserError
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.methods.s3_clip import NAME
from jaxreid.report.run_report import report_run
from jaxreid.run.model import start_run
from jaxreid.training.metric_writer import read_metrics
from jaxreid.training.start import init_variables
from jaxreid.training.steps import variables_of

CHANGES = {
    **{"dataset.config": "tiny", "mesh.devices": 1, "evaluate_start": False, "extraction_batch_size": 8},
    **{"batch.num_identities": 4, "batch.num_instances": 2, "pretrain.clips": 8, "stage1.batch_size": 8},
    **{"frames.height": 24, "frames.width": 24, "sr.height": 6, "sr.width": 6, "pretrain.crop": (6, 6)},
    **{"adapters.width": 8, "platform_prompts.blocks": 1, "cqmix.cells": (4, 4), "sr.fewest_frames": 100},
}


@pytest.fixture(autouse=True, scope="module")
def small_networks():
    with pytest.MonkeyPatch.context() as patch:
        family.small_super_resolution(patch)
        yield


def make_config(**changes):
    return family.make_config("s3_clip", **CHANGES | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir, tiny):
    """(run, what its evaluation found) behind an epoch of each stage."""
    with short_stages("s3_clip"):
        run, state, frozen = run_training(make_config(), tmp_path_factory.mktemp("s3_clip"), data_dir)
        found = Evaluator(run).final(variables_of(state, frozen), state.memory, len(run.method.stages()))
    return run, found


def test_a_run_tells_of_its_pictures(finished):
    run, found = finished
    counts = [row for row in read_metrics(run.workdir) if row["kind"] == "association"]
    # Every frame of this world has 64 rows, and the threshold is 18.
    assert [row["high_resolution_frames_count"] for row in counts] == [run.dataset.train.table.length.sum()]
    outputs = {(record["direction"], record["output"]) for record in found.results["scores"]}
    directions = {direction for direction, _ in outputs}
    assert outputs == {(direction, name) for direction in directions for name in ("feature", "sr_off", "sr_all")}
    figures = {record["name"]: record for record in found.results["examined"]}
    tracklets = sum(len(split) for split in run.dataset.test_splits)
    assert {record["tracklets"] for record in figures.values()} == {tracklets} and len(figures) == 9
    for record in figures.values():
        low, high = record["interval"]
        assert low <= record["mean"] <= high and np.isfinite((low, high)).all()
    gained = figures["PSNR restored"]["mean"] - figures["PSNR bicubic"]["mean"]
    assert figures["PSNR gained"]["mean"] == pytest.approx(gained, abs=1e-3)
    # No tracklet is from the air or small: nothing is restored in the headline's feature.
    by_output = {r["output"]: r["mAP"] for r in found.results["scores"] if r["direction"] == min(directions)}
    assert by_output["feature"] == by_output["sr_off"]


def test_the_report_shows_strips(finished):
    run, found = finished
    report_run(run, found)
    text = (run.workdir / "report" / "index.html").read_text()
    page = Page(text)
    assert "examined" in page.ids and "PSNR gained" in page.text
    captions = "low resolution", "bicubic", "restored", "high resolution"
    pictures = [image["src"] for image in page.images if image.get("alt") in captions]
    assert len(pictures) == 4 * len(found.strips) and len(found.strips) == 4  # a strip of each person
    assert all(re.match("data:image/png;base64,", source) for source in pictures)
    first = found.strips[0]
    low = first.pictures["low resolution"]
    assert low.shape == (24, 24, 3) and (low[::4, ::4] == low[3::4, 3::4]).all()
    # The sharp picture is the tracklet's first frame as the record has it.
    split = next(s for s in run.dataset.test_splits if first.name in s.labels.names)
    encoded = run.reader(split).encoded(split.labels.names.index(first.name))[0]
    stored = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    seen = cv2.resize(stored, (24, 24), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(first.pictures["high resolution"].astype(int), seen, atol=1)
    assert json.loads((run.workdir / "results.json").read_text())["examined"]


def test_too_few_sharp_pictures_end_a_run(tmp_path, data_dir, tiny):
    config = make_config(**{"sr.fewest_frames": 10_000})
    with short_stages("s3_clip"), refuses(UserError, "training frames have 18 rows or more", "sr.fewest_frames=10000"):
        run_training(config, tmp_path, data_dir)


def test_a_run_starts_from_published_weights(tmp_path, data_dir, tiny):
    """Those of the file; what no file holds is drawn, and starts as nothing."""
    safetensors = pytest.importorskip("safetensors.numpy")
    run = start_run(make_config(**{"sr.residual": False}), tmp_path / "run", data_dir)
    config = run.method.sr_config
    rng = np.random.default_rng(0)
    shapes = shapes_of(config)["params"]
    params = {}
    for path, shape in shapes.items():
        *parents, leaf = path.split("/")
        tree = params
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[leaf] = rng.normal(size=shape).astype(np.float32)
    file = tmp_path / "swinir.safetensors"
    safetensors.save_file(to_tensors(params, config, SWINIR), file)
    again = start_run(make_config(**{"sr.checkpoint": str(file), "sr.residual": False}), tmp_path / "again", data_dir)
    found = jax.device_get(init_variables(again)["params"][NAME])
    over_frames = found.pop("over_frames")
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert not over_frames["out"]["kernel"].any() and over_frames["query"]["kernel"].any()
