"""Training sets of which only a part has labels, and epochs whose clusters leave nothing to draw."""

import types
import warnings

import cv2
import numpy as np
import pytest
from messages import refuses
from test_cluster_contrast import make_config
from test_hitpro import make_method
from test_training import SMALL, assert_equal, run_training

from jaxreid.backbones import clip
from jaxreid.data.build import build
from jaxreid.data.samplers import ClusterSampler, Columns, LabelSampler, NothingToDraw
from jaxreid.data.split import Labels, open_split
from jaxreid.dataset_info import dataset_info
from jaxreid.errors import UserError
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.main import print_results
from jaxreid.methods.baseline import Baseline
from jaxreid.methods.cluster_contrast import ClusterContrast
from jaxreid.methods.hitpro import HiTPro
from jaxreid.training.metric_writer import read_metrics
from jaxreid.training.steps import variables_of


@pytest.fixture(autouse=True)
def small_tower(monkeypatch):
    monkeypatch.setitem(clip.VISION_TOWERS, "small", SMALL)


def labels_of(*pids):
    zeros = np.zeros(len(pids), np.int32)
    return Labels(np.array(pids), zeros, zeros, zeros, ("",) * len(pids))


# --- what is told of associations --------------------------------------------------------------------------------


def diagnosed(*pids):
    """Two visible and two infrared clusters of two tracklets each, the first ones matched, and the second ones."""
    memory = {
        "label": np.array([0, 0, 1, 1, 4, 4, 5, 5]),
        "cluster": np.array([0, 1, -1, -1, 4, 5, -1, -1]),
        "partner": np.array([4, 5, -1, -1, 0, 1, -1, -1]),
        "valid": np.array([True, True, False, False] * 2),
        "neighbours_left_out": np.int32(0),
        "entries_left_out": np.int32(0),
    }
    method = ClusterContrast.__new__(ClusterContrast)
    method.group, method.modalities = np.repeat([0, 1], 4), (0, 1)
    return method.diagnose(type("Memory", (), memory), labels_of(*pids))


def test_clusters_are_judged_by_the_labelled_rows():
    found = diagnosed(7, -1, 8, 8, 7, 7, 9, -1)
    assert found["visible_precision"] == found["infrared_precision"] == 100, "-1 and -1 are no pair of one person"
    assert found["visible_coverage"] == 100 and found["visible_clusters"] == 2
    assert found["cross_precision"] == 50 and found["cross_coverage"] == 100


def test_clusters_of_nobody_known_are_not_judged():
    found = diagnosed(7, -1, -1, -1, 7, 7, -1, -1)
    assert found["cross_precision"] == 100, "of the pairs of clusters with a known person"
    found = diagnosed(7, 7, 8, 8, -1, -1, -1, -1)
    assert "infrared_precision" not in found and "cross_precision" not in found and found["visible_precision"] == 100
    assert not [name for name in diagnosed(*[-1] * 8) if name.endswith("_precision")]


def test_positives_are_judged_by_the_labelled_rows():
    method = make_method()
    memory = method.init_memory()
    prototypes = memory.prototypes
    index = np.full(prototypes.within_index.shape, -1)
    index[:4, 0] = [1, 2, 3, 4]  # slot and tracklet are one
    memory = memory.replace(prototypes=prototypes.replace(within_index=index))
    unknown = [-1] * (len(method.slot) - 5)
    found = method.diagnose(memory, labels_of(1, 1, -1, -1, 4, *unknown))
    assert found["within_precision"] == 100, "one pair of two known persons, one of two unknown ones"
    everything = method.diagnose(memory, labels_of(1, 1, 2, 2, 4, *unknown))
    assert everything["within_precision"] == 50 and everything["within_coverage"] == found["within_coverage"]
    assert "within_precision" not in method.diagnose(memory, labels_of(*[-1] * len(method.slot)))


# --- epochs with nothing to draw ---------------------------------------------------------------------------------


def test_samplers_say_that_labels_leave_nothing():
    columns = Columns(np.repeat([0, 1], 4), *[np.zeros(8, np.int32)] * 3)
    rng = np.random.default_rng(0)
    with pytest.raises(NothingToDraw, match="modality 1"):
        LabelSampler(2, 2, 1).draw(np.array([0, 0, 1, 1, -1, -1, -1, -1]), columns, rng)
    with pytest.raises(NothingToDraw):
        ClusterSampler(2, 2, 1).draw(np.full(8, -1), columns, rng)


@pytest.fixture
def noisy_second_epoch(monkeypatch):
    draw = LabelSampler.draw

    def noise_in_between(self, labels, columns, rng):
        # An epoch's generator is made of its number; this is that of the second.
        if rng.bit_generator.state == np.random.default_rng((1, 0, 1)).bit_generator.state:
            labels = np.where(columns.modality == 1, -1, labels)
        return draw(self, labels, columns, rng)

    monkeypatch.setattr(LabelSampler, "draw", noise_in_between)


def test_an_epoch_of_noise_is_skipped_and_the_next_one_trains(tmp_path, data_dir, tiny, noisy_second_epoch):
    with pytest.warns(UserWarning, match="epoch 2 of stage 'cluster_contrast' is skipped: modality 1"):
        run, state, _ = run_training(make_config(), tmp_path / "whole", data_dir)
    rows = read_metrics(run.workdir)
    assert int(state.step) == 6 and {row["epoch"] for row in rows if row["kind"] == "train"} == {0, 2}
    assert [row["epoch"] for row in rows if row["kind"] == "association"] == [0, 1, 2], "clusters are made anew"
    with pytest.warns(UserWarning, match="epoch 2"):
        run_training(make_config(), tmp_path / "stopped", data_dir, stop_after=2)
    _, resumed, _ = run_training(make_config(), tmp_path / "stopped", data_dir)
    assert_equal(state, resumed)
    assert read_metrics(tmp_path / "stopped") == rows


def test_a_run_of_nothing_but_noise_ends_with_scores(tmp_path, data_dir, tiny, capsys):
    with pytest.warns(UserWarning, match="is skipped") as told:
        run, state, frozen = run_training(make_config(**{"cluster.min_samples": 99}), tmp_path, data_dir)
    assert len([warning for warning in told if "is skipped" in str(warning.message)]) == 3 and int(state.step) == 0
    results = Evaluator(run).final(variables_of(state, frozen), state.memory, 3).results
    print_results(results)
    assert "rank-1" in capsys.readouterr().out


def test_identity_labels_that_leave_nothing_end_the_run(tmp_path, data_dir, tiny, monkeypatch):
    monkeypatch.setattr(ClusterContrast, "sampling_labels", lambda self, memory: None)

    def nothing(self, labels, columns, rng):
        raise NothingToDraw("no person of modality 1")

    monkeypatch.setattr(LabelSampler, "draw", nothing)
    with pytest.raises(NothingToDraw, match="modality 1"), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run_training(make_config(epochs=1), tmp_path, data_dir)


# --- a folder without identities ---------------------------------------------------------------------------------


def test_a_method_that_needs_labels_says_what_to_do_without_them(tmp_path):
    (tmp_path / "people/door/t1").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "people/door/t1/0.png"), np.zeros((8, 4, 3), np.uint8))
    split = open_split(build("folder", source=tmp_path / "people", data_dir=tmp_path / "data"), "train")
    dataset = types.SimpleNamespace(name="folder", train=split, cameras=np.array([1]))
    with refuses(UserError, "baseline", "folder", "tracklets.csv", "identity", "hitpro"):
        dataset_info(dataset, Baseline, (8, 4))
    assert dataset_info(dataset, HiTPro, (8, 4)).num_classes == 0
