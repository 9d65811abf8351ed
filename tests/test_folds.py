"""Runs on folds as one result. Every expected number was worked out by hand."""

import pytest
from messages import refuses, says
from result_files import I2V, V2I, make_run

from jaxreid.report.comparison.runs import CompareError
from jaxreid.report.comparison.tables import compare
from jaxreid.tools.compare import main


def fold(folder, number, mAP, seed=1, **changes):
    data = {"name": f"ilids_vid/split_{number}", "tracklets": {"train": 300}, "frames": {"train": 20_000 + number}}
    settings = {"dataset.name": "ilids_vid", "dataset.config": f"split_{number}", **changes.pop("settings", {})}
    conditions = {"queries": 150 - number, "gallery": 150, **changes.pop("conditions", {})}
    workdir = folder / f"fold{number}-seed{seed}"
    return make_run(workdir, mAP, seed, settings=settings, data=data, conditions=conditions, **changes)


def test_folds_are_averaged_for_each_seed(tmp_path):
    for number, (one, two) in enumerate([(40.0, 50.0), (60.0, 70.0), (50.0, 30.0)]):
        fold(tmp_path, number, one, seed=1)
        fold(tmp_path, number, two, seed=2)
    table = compare([tmp_path], folds=True).tables[0]
    assert len(table.rows) == 1 and len(table.setups) == 2
    setup = table.setups[0]
    assert setup["dataset"] == "ilids_vid/split, mean of folds 0–2"
    assert (setup["queries"], setup["gallery"]) == ("differs between folds", 150)
    assert (setup["tracklets.train"], setup["frames.train"]) == (300, "differs between folds")
    by_direction = {setup["direction"]: table.rows[0].cell(setup, "mAP") for setup in table.setups}
    assert by_direction[V2I] == pytest.approx({1: 50.0, 2: 50.0})
    assert by_direction[I2V] == pytest.approx({1: 49.0, 2: 49.0})
    # Without the option every fold is a data set of its own.
    assert len(compare([tmp_path]).tables[0].setups) == 6


def test_means_over_other_folds_and_other_data_stand_in_columns_of_their_own(tmp_path):
    for number in (0, 1, 2, 5):
        fold(tmp_path / "a", number, 40.0)
    for number in (0, 1):
        fold(tmp_path / "b", number, 60.0, settings={"epochs": 12})
    make_run(tmp_path / "walkers", 30.0)
    comparison = compare([tmp_path], folds=True)
    assert {setup["dataset"] for table in comparison.tables for setup in table.setups} == {
        "ilids_vid/split, mean of folds 0–2, 5",
        "ilids_vid/split, mean of folds 0–1",
        "walkers/vvi",
    }


def test_variants_of_a_fold_are_told_apart(tmp_path):
    for number in (0, 1):
        for half, mAP in (("", 40.0), ("_swapped", 60.0)):
            workdir = tmp_path / f"{number}{half}"
            make_run(workdir, mAP + number, data={"name": f"ilids_vid/split_{number}{half}"})
    table = compare([tmp_path], folds=True).tables[0]
    means = {
        setup["dataset"]: table.rows[0].cell(setup, "mAP")[1] for setup in table.setups if setup["direction"] == V2I
    }
    assert means == {"ilids_vid/split, mean of folds 0–1": 40.5, "ilids_vid/split_swapped, mean of folds 0–1": 60.5}


def test_what_has_no_mean_is_refused(tmp_path):
    fold(tmp_path, 0, 40.0)
    fold(tmp_path / "again", 0, 41.0)
    with refuses(CompareError, "fold", "config", "seed"):
        compare([tmp_path], folds=True)
    fold(tmp_path / "other", 0, 40.0)
    fold(tmp_path / "other", 1, 40.0, conditions={"clip_sampling": "dense"})
    with refuses(CompareError, "scored"):
        compare([tmp_path / "other"], folds=True)


def test_the_command_line_says_what_was_averaged(tmp_path, capsys):
    for number in range(10):
        fold(tmp_path / "runs", number, 40.0 + number)
    out = str(tmp_path / "out")
    assert main([str(tmp_path / "runs"), "--folds", "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "44.5" in printed
    says(printed, "0–9")
