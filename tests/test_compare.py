"""Runs side by side: what is averaged, what is never averaged, and what is said about it.

Every expected number was worked out by hand.
"""

import csv
import html.parser
import json
import shutil
import subprocess
import sys

import pytest
from messages import refuses, says

from jaxreid.tools import compare as tool
from jaxreid.tools.run_tables import CompareError, assumption_sets, compare, find_workdirs

V2I, I2V = "visible_to_infrared", "infrared_to_visible"


def score(direction, mAP, **changes):
    return {
        "direction": direction, "mAP": mAP, "mINP": 5.0, "rank-1": mAP + 10, "rank-5": 80.0, "protocol": "market",
        "queries": 348, "unmatched": 0, "gallery": 337, "frames_per_clip": 6, "clip_rule": "packed",
        "distance": "cosine", "reranking": False, "checkpoint": "epoch 6 (last)", "cmc": [mAP + 10, 80.0],
        "median_rank": mAP / 2, "by_camera": [mAP],
    } | changes  # fmt: skip


def make_run(
    workdir, mAP, seed=1, method="hitpro", settings=(), data=(), conditions=(), unit="tracklet", start=(), **results
):
    """A workdir as a finished run leaves it. `mAP` is that of visible → infrared; the way back has 1 less."""
    config = {
        "method": method,
        "preset": "walkers",
        "seed": seed,
        "epochs": 6,
        "dataset": {"name": "walkers", "config": "vvi", "path": "", "protocols": []},
        "loading": {"threads": 2, "interpolation": "bilinear"},
        "mesh": {"devices": 0},
        "kappa": [0.5, -0.5],
    }
    assumptions = {"identity labels": "yes"}
    if method == "hitpro":
        config["levels"] = {"cross_weight": 1.0, "temperature": 0.07}
        assumptions = {"identity labels": "no", "prototype unit": unit}
    for key, value in dict(settings).items():
        *path, last = key.split(".")
        place = config
        for name in path:
            place = place[name]
        place[last] = value
    fingerprint = {"name": "walkers/vvi", "version": "1.0.0", "tracklets": {"train": 987}} | dict(data)
    found = {
        "method": method,
        "dataset": fingerprint["name"],
        "seed": seed,
        "scores": [score(V2I, mAP, **dict(conditions)), score(I2V, mAP - 1, **dict(conditions))],
        "before_training": [{"features": name, **score(V2I, value)} for name, value in dict(start).items()],
        "epochs_done": 6,
        "epochs": 6,
        "assumptions": assumptions,
        "notes": [],
        "seconds": {"steps": 60.0, "evaluation": 20.5},
    } | results
    workdir.mkdir(parents=True)
    for name, value in (("config", config), ("dataset", fingerprint), ("results", found)):
        (workdir / f"{name}.json").write_text(json.dumps(value))
    return workdir


def cells(table):
    """row → {column: text}, columns as Markdown names them."""
    names = tool.case_names(table.cases)
    columns = [f"{names[case]} {metric}" for case, metric in table.columns()]
    return {row[0]: dict(zip(columns, row[3:], strict=True)) for row in tool.score_rows(table)}


def differences(table):
    """row → texts of the columns that the baseline has."""
    return {row[0]: row[2:] for row in tool.difference_rows(table)}


class Page(html.parser.HTMLParser):
    """Checks that elements nest; collects ids, addresses and text."""

    VOID = ("meta", "img", "br", "link", "wbr")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("href", "src", "xlink:href") if name in found]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


# --- rows and columns ----------------------------------------------------------------------------------------------


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
    assert [row[:3] for row in tool.score_rows(table)] == [["baseline", "yes", "1"], ["hitpro", "no", "3"]]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"conditions": {"protocol": "cross_modal_cam"}}, ("protocol market", "protocol cross_modal_cam")),
        ({"conditions": {"frames_per_clip": 8}}, ("6 frames per clip", "8 frames per clip")),
        ({"conditions": {"clip_rule": "chunk_first"}}, ("packed clips", "chunk_first clips")),
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
    assert len(table.cases) == 4
    assert sorted(cells(table)["hitpro"].values()) == ["29.0 (n = 1)", "30.0 (n = 1)", "49.0 (n = 1)", "50.0 (n = 1)"]
    (sentence,) = tool.separations(table)
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
    assert tool.separations(table) == []
    make_run(tmp_path / "b", 0.0, method="baseline", scores=both[:1])
    (table,) = compare([tmp_path]).tables
    (sentence,) = tool.separations(table)
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
    assert tool.separations(table) == []


# --- tables --------------------------------------------------------------------------------------------------------


def test_runs_that_were_told_different_things_share_no_table(tmp_path):
    make_run(tmp_path / "a1", 30.0)
    make_run(tmp_path / "a2", 31.0, unit="camera_track", settings={"kappa": [0.1, 0.1]})
    make_run(tmp_path / "b", 40.0, method="baseline")
    found = compare([tmp_path])
    assert [(table.title, [row.label for row in table.rows]) for table in found.tables] == [
        ("prototype unit: tracklet", ["hitpro", "baseline"]),
        ("prototype unit: camera_track", ["hitpro", "baseline"]),
    ]
    assert [table.rows[0].cell(table.cases[0], "mAP") for table in found.tables] == [{1: 30.0}, {1: 31.0}]
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


# --- runs ----------------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_named_with_its_reason(tmp_path, capsys):
    make_run(tmp_path / "good", 30.0)
    make_run(tmp_path / "short", 30.0, 2, epochs_done=4)
    make_run(tmp_path / "footage", 30.0, 3, scores=[], reason="no test tracklet has an identity")
    make_run(tmp_path / "training", 30.0, 4)
    (tmp_path / "training" / "results.json").unlink()
    make_run(tmp_path / "cut", 30.0, 5)
    (tmp_path / "cut" / "results.json").write_text('{"method":')
    make_run(tmp_path / "old", 30.0, 6, scores={V2I: {"mAP": 30.0}})
    make_run(tmp_path / "bare", 30.0, 7)
    (tmp_path / "bare" / "dataset.json").unlink()
    make_run(tmp_path / "nan", 30.0, 8, scores=[score(V2I, float("nan"))])
    make_run(tmp_path / "moved", 30.0, 9)
    shutil.copy(tmp_path / "good" / "results.json", tmp_path / "moved" / "results.json")
    make_run(tmp_path / "less", 30.0, 10, scores=[{"direction": V2I, "mAP": 3.0}])
    found = compare([tmp_path])
    assert [row.runs[0].workdir.name for row in found.tables[0].rows] == ["good"]
    reasons = {path.name: why for path, why in found.left_out}
    says(reasons["cut"], tmp_path / "cut" / "results.json", "damaged", "again")
    assert {name: why for name, why in reasons.items() if name != "cut"} == {
        "short": "unfinished: scored after epoch 4 of 6",
        "footage": "not scored: no test tracklet has an identity",
        "training": "unfinished: there is no results.json yet",
        "old": "results.json has an old format; score the run again with --mode=evaluate, or train it again",
        "bare": "broken: there is no dataset.json",
        "nan": "broken: mAP of visible_to_infrared in results.json is nan",
        "moved": "broken: seed is 1 in results.json, 9 in config.json",
        "less": "results.json has an old format or is broken: a score without protocol, clip_rule, frames_per_clip, "
        "distance, reranking, queries, gallery",
    }
    out = tmp_path / "page"
    assert tool.main([str(tmp_path), "--out", str(out)]) == 0
    text = Page((out / "index.html").read_text()).text
    printed = capsys.readouterr().out
    for name, why in reasons.items():
        says(printed, tmp_path / name, why)
        assert str(tmp_path / name) in text and why in text
    assert tool.main([str(tmp_path / "short"), str(tmp_path / "cut"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(tmp_path / "short") in error and "4 of 6" in error


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
    assert row.cell(found.tables[0].cases[0], "mAP") == {1: 30.0, 2: 32.0}
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


# --- names ---------------------------------------------------------------------------------------------------------


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
    assert tool.setting_rows(table) == [("epochs", [("6", "hitpro"), ("20", "hitpro")])]
    make_run(tmp_path / "c", 50.0, 2, settings={"levels.temperature": 1.0})
    with pytest.raises(CompareError) as error:
        compare([tmp_path], by=["method"])
    assert str(error.value) == (
        f"{tmp_path}/a and {tmp_path}/c would be averaged as 'hitpro', but not only their seeds differ "
        "(levels.temperature: 0.07 → 1): add levels.temperature to --by, or give them names (NAME=WORKDIR)"
    )
    assert labels([tmp_path], by=["levels"]) == ["hitpro levels.temperature=0.07", "hitpro levels.temperature=1"]


# --- differences and controls --------------------------------------------------------------------------------------


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
    assert [row[1] for row in tool.difference_rows(table)] == ["3", "3", "2", "2", "1", "0"]
    record = next(r for r in tool.records(found) if r["row"] == "wide")
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
    assert tool.score_rows(table)[0][1] == "not trained"
    assert differences(table)["H"] == ["+16.00 ± 0.00"]
    assert labels(arguments) == ["H", "baseline", "hitpro"]


# --- outputs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """Three methods' worth of runs, one with a report."""
    for seed, mAP in ((1, 30.0), (2, 32.0)):
        make_run(tmp_path / f"runs/h{seed}", mAP, seed, start={"tower": 14.0})
        make_run(tmp_path / f"runs/w{seed}", mAP - 6, seed, settings={"levels.cross_weight": 0.0})
        make_run(tmp_path / f"runs/x{seed}", mAP + 1, seed, settings={"levels.temperature": 0.1})
    make_run(tmp_path / "runs/b|<1>", 40.0, method="baseline", environment={"devices": "1 × cpu"})
    (tmp_path / "runs/h1/report").mkdir()
    (tmp_path / "runs/h1/report/index.html").write_text("<p>A report.</p>")
    make_run(tmp_path / "runs/short", 30.0, 3, epochs_done=4)
    return tmp_path


def test_markdown_is_a_table_with_equal_rows(mixed):
    arguments = [f"a|b={mixed}/runs/b|<1>", mixed / "runs"]
    text = tool.markdown(compare(arguments, controls=True, baseline="hitpro"))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(table) for table in tables] == [2 + 5, 2 + 4]
    for table in tables:
        assert len({len(line) for line in table}) == 1
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1
        assert set(table[1]) == set("|-: ")
    assert "| a\\|b " in text
    assert "\nScored on walkers/vvi, version 1.0.0, protocol market, packed clips, 6 frames per clip, " in text
    assert "sample deviation (divided by n − 1)" in text
    assert f"- {mixed}/runs/short: unfinished: scored after epoch 4 of 6\n" in text


def test_the_page_is_well_formed_and_links_to_reports(mixed):
    out = mixed / "compare"
    path = tool.write(compare([f"<b>&={mixed}/runs/b|<1>", mixed / "runs"], controls=True, baseline="hitpro"), out)
    assert path == out / "index.html"
    written = path.read_text(encoding="utf-8")
    page = Page(written)
    assert len(page.ids) == len(set(page.ids))
    outside = [link for link in page.links if not link.startswith("#")]
    assert outside == ["../runs/h1/report/index.html"] and (out / outside[0]).exists()
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "<script" not in written and "<b>" not in written and written.count("<svg") == 2
    for words in (
        "<b>&, hitpro on walkers/vvi", "7 finished runs", "hitpro levels.cross_weight=0", "31.0 ± 1.4",
        "before training: tower", "Difference to hitpro", "+1.00 ± 0.00", "1 × cpu", "1 min 20 s", "epoch 6 (last)",
        "market: a match has the same identity, other camera", "scored after epoch 4 of 6", "loading.threads",
    ):  # fmt: skip
        assert words in page.text, words


def test_figures_follow_the_theme(mixed):
    (table,) = compare([mixed / "runs"]).tables
    for plot in tool.plots_of(table):
        assert "var(--series-1)" in plot.svg and "var(--series-2)" in plot.svg
        assert "hitpro levels.temperature=0.1" in plot.svg


def test_numbers_for_programs(mixed):
    out = mixed / "compare"
    tool.write(compare([mixed / "runs"], metrics=["mAP", "rank-5"]), out)
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * 2 * 2
    hitpro = next(line for line in lines if line["row"] == "hitpro" and line["metric"] == "mAP")
    assert hitpro | {
        "direction": V2I, "protocol": "market", "dataset": "walkers/vvi", "version": "1.0.0", "queries": 348,
        "mean": 31.0, "n": 2, "seeds": [1, 2], "values": [30.0, 32.0], "identity labels": "no",
        "table": "prototype unit: tracklet", "workdirs": [f"{mixed}/runs/h1", f"{mixed}/runs/h2"],
    } == hitpro  # fmt: skip
    assert hitpro["sample deviation"] == pytest.approx(2**0.5)
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(lines)
    row = next(row for row in rows if row["row"] == "hitpro" and row["metric"] == "mAP")
    assert (row["mean"], row["n"], row["seeds"], row["values"]) == ("31.0", "2", "1 2", "30.0 32.0")
    baseline = next(row for row in rows if row["row"] == "baseline")
    assert baseline["n"] == "1" and baseline["sample deviation"] == ""


@pytest.mark.parametrize(
    "line, named",
    [
        (["--metrics", "rank-2"], ("'rank-2'", "rank-1", "rank-5")),
        (
            ["--by", "levels.temprature"],
            ("'levels.temprature'", "levels.cross_weight", "levels.temp"),
        ),
        (["--baseline", "hitpr"], ("--baseline", "'hitpr'", "hitpro levels.cross_weight=1")),
        (["--baseline", "hitpro"], ("full name", "hitpro levels.cross_weight=1")),
        (["nowhere"], ("nowhere", "folder")),
        (["A=nowhere"], ("A=nowhere", "folder")),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, capsys, line, named):
    make_run(tmp_path / "a", 30.0)
    make_run(tmp_path / "b", 30.0, settings={"levels.cross_weight": 0.0})
    assert tool.main([str(tmp_path), *line, "--out", str(tmp_path / "page")]) == 2
    written = capsys.readouterr()
    assert written.err.startswith("error: ") and not written.out
    says(written.err, *named)
    assert not (tmp_path / "page").exists()


def test_the_command_line(mixed):
    line = [sys.executable, "-m", "jaxreid.tools.compare", "runs", "--baseline", "hitpro", "--metrics", "mAP"]
    found = subprocess.run(line, cwd=mixed, capture_output=True, text=True, check=True)
    says(found.stdout, "levels.cross_weight=0")
    says(found.stdout, "runs/short")
    assert found.stderr == "page: runs/compare/index.html\n"
    page = (mixed / "runs/compare/index.html").read_text(encoding="utf-8")
    assert 'href="../h1/report/index.html"' in page
    code = "import sys, jaxreid.tools.compare; print('matplotlib' in sys.modules, 'jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
