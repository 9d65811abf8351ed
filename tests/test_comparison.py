"""Runs laid out as tables: what is averaged, what is never averaged, and what is said about it.

Every expected number was worked out by hand.
"""

import shutil

import pytest
from messages import refuses, says
from result_files import V2I, make_run, score

from jaxreid.report.comparison import text
from jaxreid.report.comparison.assumptions import assumption_sets
from jaxreid.report.comparison.columns import setup_names
from jaxreid.report.comparison.records import score_records
from jaxreid.report.comparison.runs import CompareError, find_workdirs
from jaxreid.report.comparison.tables import compare


def cells(table):
    """row → {column: text}, columns as Markdown names them."""
    names = setup_names(table.setups)
    columns = [f"{names[setup]} {metric}" for setup, metric in table.columns()]
    return {row[0]: dict(zip(columns, row[3:], strict=True)) for row in text.score_rows(table)}


def differences(table):
    """row → texts of the columns that the baseline has."""
    return {row[0]: row[2:] for row in text.difference_rows(table)}


# --- rows and columns ------------------------------------------------------------------------------------------------


def test_means_and_sample_deviations_over_seeds(tmp_path):
    for seed, mAP in ((1, 30.0), (2, 32.0), (3, 37.0)):
        # Threads and devices change no result.
        make_run(tmp_path / f"h{seed}", mAP, seed, settings={"loading.threads": seed, "mesh.devices": seed})
    make_run(tmp_path / "b1", 40.04, 1, method="baseline")
    (table,) = compare([tmp_path]).tables
    # 30, 32, 37: mean 33; deviations −3, −1, 4; √(26 / 2) = 3.606. rank-1 is mAP + 10.
    assert cells(table) == {
        "baseline": {
            "visible → infrared mAP": "40.0", "visible → infrared rank-1": "50.0",
            "infrared → visible mAP": "39.0", "infrared → visible rank-1": "49.0",
        },
        "hitpro": {
            "visible → infrared mAP": "33.0 ± 3.6", "visible → infrared rank-1": "43.0 ± 3.6",
            "infrared → visible mAP": "32.0 ± 3.6", "infrared → visible rank-1": "42.0 ± 3.6",
        },
    }  # fmt: skip
    assert [row[:3] for row in text.score_rows(table)] == [["baseline", "yes", "1"], ["hitpro", "no", "3"]]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"conditions": {"protocol": "cross_modal_cam"}}, ("protocol market", "protocol cross_modal_cam")),
        ({"conditions": {"seq_len": 8}}, ("6 frames per clip", "8 frames per clip")),
        ({"conditions": {"clip_sampling": "chunk_first"}}, ("packed clips", "chunk_first clips")),
        ({"conditions": {"distance": "euclidean"}}, ("cosine distance", "euclidean distance")),
        ({"conditions": {"reranking": True}}, ("no re-ranking", "re-ranked")),
        ({"conditions": {"queries": 300}}, ("348 queries", "300 queries")),
        ({"conditions": {"gallery": 336}}, ("gallery of 337", "gallery of 336")),
        ({"conditions": {"distractors": "yes"}}, ("distractors not set", "distractors yes")),
        ({"data": {"version": "2.0.0"}}, ("version 1.0.0", "version 2.0.0")),
        ({"data": {"tracklets": {"train": 900}}}, ("987 tracklets in train", "900 tracklets in train")),
    ],
)
def test_what_was_scored_otherwise_stands_in_a_column_of_its_own(tmp_path, change, words):
    make_run(tmp_path / "a1", 30.0)
    make_run(tmp_path / "a2", 50.0, 2, **change)
    (table,) = compare([tmp_path], metrics=["mAP"]).tables
    assert len(table.setups) == 4
    assert sorted(cells(table)["hitpro"].values()) == ["29.0 (n = 1)", "30.0 (n = 1)", "49.0 (n = 1)", "50.0 (n = 1)"]
    (sentence,) = text.separations(table)
    assert sentence == (
        f"visible → infrared and infrared → visible on walkers/vvi are scored with {words[0]} for {tmp_path}/a1; "
        f"with {words[1]} for {tmp_path}/a2. They stand in columns of their own and do not compare."
    )


def test_rows_are_named_where_they_divide_by_protocol_and_a_run_with_two_protocols_is_no_warning(tmp_path):
    both = [score(V2I, 30.0), score(V2I, 40.0, protocol="cross_modal_cam")]
    make_run(tmp_path / "h", 0.0, scores=both)
    (table,) = compare([tmp_path], metrics=["mAP"]).tables
    assert cells(table) == {
        "hitpro": {"market, visible → infrared mAP": "30.0", "cross_modal_cam, visible → infrared mAP": "40.0"}
    }
    assert text.separations(table) == []
    make_run(tmp_path / "b", 0.0, method="baseline", scores=both[:1])
    (table,) = compare([tmp_path]).tables
    (sentence,) = text.separations(table)
    assert sentence.startswith(
        "visible → infrared on walkers/vvi is scored with protocol market for baseline, hitpro; "
        "with protocol cross_modal_cam for hitpro."
    )


def test_data_sets_are_columns_of_one_row(tmp_path):
    make_run(tmp_path / "a", 30.0)
    dev = {"name": "walkers/vvi_dev"}
    make_run(tmp_path / "b", 40.0, settings={"dataset.config": "vvi_dev"}, data=dev)
    (table,) = compare([tmp_path], metrics=["mAP"]).tables
    assert cells(table) == {
        "hitpro": {
            "walkers/vvi, visible → infrared mAP": "30.0",
            "walkers/vvi, infrared → visible mAP": "29.0",
            "walkers/vvi_dev, visible → infrared mAP": "40.0",
            "walkers/vvi_dev, infrared → visible mAP": "39.0",
        }
    }
    assert text.separations(table) == []


# --- tables ----------------------------------------------------------------------------------------------------------


def test_runs_that_were_told_different_things_share_no_table(tmp_path):
    make_run(tmp_path / "a1", 30.0)
    make_run(tmp_path / "a2", 31.0, unit="camera_track", settings={"kappa": [0.1, 0.1]})
    make_run(tmp_path / "b", 40.0, method="baseline")
    found = compare([tmp_path])
    assert [(table.title, [row.label for row in table.rows]) for table in found.tables] == [
        ("prototype unit: tracklet", ["hitpro", "baseline"]),
        ("prototype unit: camera_track", ["hitpro", "baseline"]),
    ]
    assert [table.rows[0].cell(table.setups[0], "mAP") for table in found.tables] == [{1: 30.0}, {1: 31.0}]
    says(found.notes[0], "tracklet", "camera_track")


def test_one_method_with_and_without_labels_has_two_tables(tmp_path):
    make_run(tmp_path / "a1", 30.0)
    make_run(tmp_path / "a2", 50.0, assumptions={"identity labels": "yes", "prototype unit": "tracklet"})
    titles = [table.title for table in compare([tmp_path]).tables]
    assert titles == [f"identity labels of hitpro: {word}, prototype unit: tracklet" for word in ("no", "yes")]


def test_a_run_that_does_not_state_an_assumption_of_its_method_stands_alone(tmp_path):
    make_run(tmp_path / "a1", 30.0)
    make_run(tmp_path / "a2", 50.0, 2, assumptions={"identity labels": "no"})
    assert [t.title for t in compare([tmp_path]).tables] == ["prototype unit: tracklet", "prototype unit: not stated"]


def test_assumption_sets_are_the_largest_that_agree():
    assert assumption_sets([{}, {}]) == [{}]
    assert assumption_sets([{"unit": "a"}, {}]) == [{"unit": "a"}]
    crossed = assumption_sets([{"unit": "a"}, {"unit": "b"}, {"share": "10"}, {"share": "50"}])
    assert [tuple(one.values()) for one in crossed] == [("a", "10"), ("a", "50"), ("b", "10"), ("b", "50")]
    # Nobody was told a and 2, or b and 1.
    assert assumption_sets([{"unit": "a", "k": "1"}, {"unit": "b", "k": "2"}]) == [
        {"unit": "a", "k": "1"},
        {"unit": "b", "k": "2"},
    ]


# --- runs ------------------------------------------------------------------------------------------------------------


def test_workdirs_are_found_below_a_folder_in_natural_order(tmp_path):
    for name in ("h-10", "h-2", "deep/er/h-1"):
        make_run(tmp_path / name, 30.0)
    (tmp_path / "h-2" / "checkpoints").mkdir()
    (tmp_path / "h-2" / "checkpoints" / "results.json").write_text("{}")
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    assert [str(path.relative_to(tmp_path)) for path in find_workdirs(tmp_path)] == ["deep/er/h-1", "h-2", "h-10"]


def test_a_run_given_twice_counts_once(tmp_path):
    make_run(tmp_path / "a" / "h1", 30.0)
    make_run(tmp_path / "a" / "h2", 32.0, 2)
    shutil.copytree(tmp_path / "a" / "h1", tmp_path / "copy")
    found = compare([tmp_path / "a" / "h1", tmp_path / "a", tmp_path / "a" / "h1" / "results.json", tmp_path / "copy"])
    (row,) = found.tables[0].rows
    assert row.cell(found.tables[0].setups[0], "mAP") == {1: 30.0, 2: 32.0}
    assert len(found.notes) == 1
    says(found.notes, tmp_path / "copy", tmp_path / "a" / "h1", "once")


def test_one_config_and_seed_with_two_results_is_an_error_that_names_both(tmp_path):
    make_run(tmp_path / "a", 30.0)
    make_run(tmp_path / "b", 30.5, settings={"mesh.devices": 8})
    named = (tmp_path / "a", tmp_path / "b", "seed 1", "mAP", "30.0", "30.5", "mesh.devices", "NAME=WORKDIR")
    with refuses(CompareError, *named):
        compare([tmp_path])
    (table,) = compare([f"one device={tmp_path}/a", f"eight={tmp_path}/b"]).tables
    assert [row.label for row in table.rows] == ["one device", "eight"]
    (table,) = compare([tmp_path], by=["mesh"]).tables
    assert [row.label for row in table.rows] == ["hitpro mesh.devices=0", "hitpro mesh.devices=8"]


# --- names -----------------------------------------------------------------------------------------------------------


def labels(arguments, **options):
    return [row.label for table in compare(arguments, **options).tables for row in table.rows]


def test_rows_are_named_by_the_settings_that_set_them_apart(tmp_path):
    make_run(tmp_path / "a", 30.0)
    make_run(tmp_path / "b", 30.0, settings={"levels.cross_weight": 0.0})
    # Two rows: neither value is the usual one.
    assert labels([tmp_path]) == ["hitpro levels.cross_weight=1", "hitpro levels.cross_weight=0"]
    make_run(tmp_path / "c", 30.0, settings={"levels.temperature": 3e-5, "kappa": [0.3, 0]})
    make_run(tmp_path / "d", 40.0, method="baseline")
    assert labels([tmp_path]) == [
        "hitpro",
        "hitpro levels.cross_weight=0",
        "hitpro kappa=(0.3, 0) levels.temperature=3e-05",
        "baseline",
    ]
    # Against a chosen row.
    assert labels([tmp_path], baseline="hitpro levels.cross_weight=0") == [
        "hitpro levels.cross_weight=1",
        "hitpro",
        "hitpro kappa=(0.3, 0) levels.cross_weight=1 levels.temperature=3e-05",
        "baseline",
    ]
    assert labels([f"A={tmp_path}/a", f"B={tmp_path}/b", tmp_path]) == ["A", "B", "hitpro", "baseline"]
    assert labels([f"A={tmp_path}/a", f"A={tmp_path}/b"]) == ["A levels.cross_weight=1", "A levels.cross_weight=0"]
    assert labels([f"all={tmp_path}/a", f"all={tmp_path}/d"]) == ["all (hitpro)", "all (baseline)"]


def test_many_differences_do_not_make_a_long_name(tmp_path):
    changes = {"epochs": 7, "kappa": [1, 1], "loading.interpolation": "area", "levels.temperature": 1.0}
    for place, weight in enumerate((1.0, 0.5, 0.25)):
        make_run(tmp_path / f"a{place}", 30.0, settings={**changes, "levels.cross_weight": weight} if place else {})
    assert labels(
        [tmp_path], baseline="hitpro epochs=6 loading.interpolation=bilinear kappa=(0.5, -0.5) and 2 more"
    ) == [
        "hitpro",
        "hitpro epochs=7 loading.interpolation=area kappa=(1, 1) and 2 more",
        "hitpro epochs=7 loading.interpolation=area kappa=(1, 1) and 2 more [2]",
    ]


def test_rows_by_chosen_keys(tmp_path):
    make_run(tmp_path / "a", 30.0)
    data = {"name": "walkers/vvi_dev"}
    make_run(tmp_path / "b", 40.0, settings={"epochs": 20, "dataset.config": "vvi_dev"}, data=data)
    assert labels([tmp_path]) == ["hitpro epochs=6", "hitpro epochs=20"]
    (table,) = compare([tmp_path], by=["method"], metrics=["mAP"]).tables
    assert [list(row.values()) for row in cells(table).values()] == [["30.0", "29.0", "40.0", "39.0"]]
    assert text.setting_rows(table) == [("epochs", [("6", "hitpro"), ("20", "hitpro")])]
    make_run(tmp_path / "c", 50.0, 2, settings={"levels.temperature": 1.0})
    with pytest.raises(CompareError) as error:
        compare([tmp_path], by=["method"])
    assert str(error.value) == (
        f"{tmp_path}/a and {tmp_path}/c would be averaged as 'hitpro', but not only their seeds differ "
        "(levels.temperature: 0.07 → 1): add levels.temperature to --by, or give them names (NAME=WORKDIR)"
    )
    assert labels([tmp_path], by=["levels"]) == ["hitpro levels.temperature=0.07", "hitpro levels.temperature=1"]


# --- differences and controls ----------------------------------------------------------------------------------------


def test_differences_are_paired_over_common_seeds(tmp_path):
    rows = {
        "base": {1: 30.0, 2: 32.0, 3: 34.0, 4: 99.0},
        "up": {1: 32.0, 2: 33.0, 3: 37.0},  # +2, +1, +3: mean 2, deviation 1, error 1 / √3 = 0.577
        "wide": {1: 31.0, 2: 31.0, 3: 37.0, 7: 1.0},  # +1, −1, +3: mean 1, deviation 2, error 2 / √3 = 1.155
        "down": {1: 29.0, 2: 31.0},  # −1, −1: error 0
        "same": {1: 30.0, 2: 32.0},
        "one": {1: 34.25, 7: 50.0},
        "none": {7: 50.0},
    }
    arguments = []
    for name, values in rows.items():
        for seed, mAP in values.items():
            arguments.append(f"{name}={make_run(tmp_path / f'{name}-{seed}', mAP, seed)}")
    found = compare(arguments, metrics=["mAP"], baseline="base")
    (table,) = found.tables
    assert {name: texts[0] for name, texts in differences(table).items()} == {
        "up": "+2.00 ± 0.58",
        "wide": "+1.00 ± 1.15, not separable",
        "down": "−1.00 ± 0.00",
        "same": "+0.00 ± 0.00, equal",
        "one": "+4.25 (one seed)",
        "none": "no common seed",
    }
    assert [row[1] for row in text.difference_rows(table)] == ["3", "3", "2", "2", "1", "0"]
    record = next(r for r in score_records(found) if r["row"] == "wide")
    assert record["difference"] == 1.0 and record["standard error"] == pytest.approx(1.1547, abs=1e-4)
    assert record["common seeds"] == [1, 2, 3] and record["separable"] is False
    # The mean of a row is over all of its own seeds: (31 + 31 + 37 + 1) / 4.
    assert record["mean"] == 25.0 and record["n"] == 4


def test_a_difference_needs_the_same_column(tmp_path):
    make_run(tmp_path / "a", 30.0)
    make_run(tmp_path / "b", 40.0, method="baseline", conditions={"protocol": "cross_modal_cam"})
    (table,) = compare([tmp_path], metrics=["mAP"], baseline="hitpro").tables
    assert differences(table) == {"baseline": ["–", "–"]}


def test_a_table_without_the_baseline_says_so(tmp_path):
    make_run(tmp_path / "a1", 30.0)
    make_run(tmp_path / "a2", 31.0, unit="camera_track")
    found = compare([f"A={tmp_path}/a1", f"B={tmp_path}/a2"], baseline="B")
    assert [bool(table.baseline) for table in found.tables] == [False, True]
    says(found.notes[1], "row", "table")


def test_controls_stand_once_per_distinct_value(tmp_path):
    for seed in (1, 2):
        start = {"tower": 14.0, "calibrated": 16.0 + seed}
        make_run(tmp_path / f"h{seed}", 30.0, seed, start=start)
        make_run(tmp_path / f"w{seed}", 20.0, seed, settings={"levels.cross_weight": 0.0}, start=start)
        other = {"tower": 14.0, "calibrated": 12.0 + seed}
        make_run(tmp_path / f"b{seed}", 40.0, seed, method="baseline", start=other)
    arguments = [f"H={tmp_path}/h1", f"H={tmp_path}/h2", tmp_path]
    (table,) = compare(arguments, metrics=["mAP"], controls=True, baseline="tower").tables
    found = cells(table)
    # 17 and 18: mean 17.5, deviation √0.5 = 0.707; 13 and 14 likewise.
    assert {name: row["visible → infrared mAP"] for name, row in found.items()} == {
        "before training: tower": "14.0 ± 0.0",
        "before training: calibrated (of H and hitpro)": "17.5 ± 0.7",
        "before training: calibrated (of baseline)": "13.5 ± 0.7",
        "H": "30.0 ± 0.0",
        "hitpro": "20.0 ± 0.0",
        "baseline": "40.0 ± 0.0",
    }
    assert found["before training: tower"]["infrared → visible mAP"] == "–"
    assert text.score_rows(table)[0][1] == "not trained"
    assert differences(table)["H"] == ["+16.00 ± 0.00"]
    assert labels(arguments) == ["H", "baseline", "hitpro"]
