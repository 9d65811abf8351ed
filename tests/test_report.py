"""The report is one self-contained page that says what was measured."""

import dataclasses
import re
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from html_page import Page
from messages import refuses

from jaxreid.report import conditions, page, plots
from jaxreid.report.page import (
    CameraTable,
    DataTable,
    EarlierRun,
    RankedList,
    ReportContents,
    SplitCounts,
    TrackletPictures,
    write_report,
)


def jpeg(seed, infrared=False):
    """A striped figure, 96×48, as a stand-in for a pedestrian."""
    rng = np.random.default_rng(seed)
    picture = np.full((96, 48, 3), rng.integers(120, 200, 3), np.uint8)
    top, legs = (rng.integers(0, 255, 3).tolist() for _ in range(2))
    cv2.circle(picture, (24, 16), 8, (150, 180, 220), -1)
    cv2.rectangle(picture, (12, 26), (36, 56), top, -1)
    cv2.rectangle(picture, (15, 56), (33, 90), legs, -1)
    if infrared:
        picture[:] = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[..., None]
    return cv2.imencode(".jpg", picture)[1].tobytes()


def record(direction, mAP, **changes):
    return {
        "direction": direction,
        "mAP": mAP,
        "mINP": mAP - 10,
        "rank-1": mAP + 4.04,
        "rank-5": 90.0,
        "rank-10": 95.0,
        "rank-20": 100.0,
        "protocol": "cross_modal_cam",
        "queries": 120,
        "unmatched": 0,
        "gallery": 144,
        "seq_len": 6,
        "clip_sampling": "chunk_first",
        "distance": "cosine",
        "reranking": False,
        "checkpoint": "epoch 20 (last)",
    } | changes


def metrics_rows(epochs=20, steps=12):
    rng = np.random.default_rng(0)
    rows = []
    for epoch in range(epochs):
        stage = "L1" if epoch < epochs // 2 else "L1+L2+L3"
        progress = 1 - np.exp(-epoch / 6)
        for step in range(steps):
            loss = 3.2 - 2.2 * progress + 0.15 * rng.normal()
            names = {"loss": loss, "loss_intra": loss * 0.6, "loss_cross": loss * 0.4, "learning_rate": 1e-3}
            rows.append({"kind": "train", "stage": stage, "epoch": epoch, "step": epoch * steps + step, **names})
        rows.append(
            {
                "kind": "association",
                "stage": stage,
                "epoch": epoch,
                "P1_precision": 76 + 21 * progress,
                "P2_precision": 60 + 30 * progress,
                "P1_coverage": 50 + 40 * progress,
                "P2_coverage": 20 + 60 * progress,
                "tau": 0.42,
            }
        )
        if epoch % 5 == 4:
            for direction, bonus in (("infrared → visible", 0.0), ("visible → infrared", 3.0)):
                mAP = 25 + 40 * progress + bonus
                rows.append({"kind": "evaluate", "epoch": epoch, "direction": direction, "mAP": mAP, "rank-1": mAP + 4})
    return rows


def ranked_list(direction, seed, matches, kind="", facts=""):
    gallery = tuple(
        TrackletPictures(
            f"t{i}",
            (jpeg(seed if match else seed + 1 + i),),
            (f"person {seed if match else seed + 1 + i}", f"camera {i % 4}"),
            match,
            0.1 + 0.05 * i,
        )
        for i, match in enumerate(matches)
    )
    pictures = tuple(jpeg(seed + i, infrared=True) for i in range(5))
    return RankedList(direction, TrackletPictures("q", pictures, (f"person {seed}", "camera 2")), gallery, kind, facts)


def camera_scores():
    nan = float("nan")
    return CameraTable(
        query_cameras=(1, 2),
        gallery_cameras=(2, 3, 7),
        mAP=np.array([[41.25, 12.0, 80.0], [nan, 33.0, 60.5]]),
        rank_1=np.array([[44.0, 10.0, 91.75], [nan, 30.0, 70.0]]),
        queries=np.array([[11, 12, 13], [0, 14, 15]]),
        whole_mAP=np.array([38.5, 40.0]),
        whole_queries=np.array([21, 22]),
        gallery=np.array([31, 32, 33]),
    )


def group(name, mAP, queries, identities, **changes):
    interval = [None, None] if mAP is None else [mAP - 5, mAP + 5.5]
    ranks = {f"rank-{k}": mAP for k in (1, 5, 10)}
    return {
        "group": name,
        "mAP": mAP,
        "mAP_interval": interval,
        **ranks,
        "queries": queries,
        "identities": identities,
    } | changes


def table(condition, groups, side="query", **changes):
    figures = {"macro": 40.25, "overall": 38.0, "lowest_to_highest": 0.61}
    whole = {"direction": "aerial_to_ground", "protocol": "xfd", "condition": condition, "side": side, "unit": "m"}
    for name, value in figures.items():
        whole |= {name: value, f"{name}_interval": [value - 0.5, value + 0.5]}
    return whole | {"groups": groups} | changes


TABLES = (
    table(
        "altitude",
        [group("0 to 15 m", 50.5, 30, 20, value=10.0), group("from 60 m", 30.25, 9, 7, value=90.0)],
        rho=-0.42,
        rho_interval=[-0.55, -0.21],
    ),
    table(
        "altitude",
        [group("0 to 15 m", 20.0, 4, 4, value=10.0, gallery=17), group("from 60 m", None, 0, 0, value=90.0, gallery=3)],
        "gallery",
        rho=0.1,
        rho_interval=[None, None],
    ),
    table(
        "angle × distance",
        [group(["30°", "10 m"], 44.4, 8, 5), group(["90°", "0 m"], 12.5, 6, 6)],
        columns=["0 m", "10 m"],
    ),
    table(
        "point",
        [
            group("30°, 5.8 m up, 10 m off", 40.0, 8, 5),
            group("30°, 11.5 m up, 20 m off", 30.0, 7, 5),
            group("90°, 10 m up, 0 m off", 10.0, 3, 3),
        ],
    ),
    table("clothes", [group("same clothes", 60.0, 30, 20), group("other clothes", 15.5, 30, 20)], "relation"),
    table(
        "case",
        [group("aerial_to_ground", 50.0, 3204, 89), group("ground_to_aerial", 30.0, 89, 89)],
        direction="overall",
    ),
)
OPEN_SET = (
    {
        "direction": "aerial_to_ground", "protocol": "xfd", "matched": 366, "unmatched": 44, "identities": 5,
        "removed": 15, "genuine": 1096, "impostor": 51794,
        "identification": [{"asked": 10.0, "FPIR": 9.0909, "FNIR": 77.81, "threshold": 0.28104}],
        "verification": [{"asked": 1.0, "FAR": 0.9982, "TAR": 36.93, "threshold": None}],
    },
    {"direction": "ground_to_aerial", "protocol": "xfd", "reason": "5 queries have no match"},
)  # fmt: skip


def contents(**changes):
    directions = ("infrared → visible", "visible → infrared")
    full = ReportContents(
        title="HiTPro on walkers (cross-modal)",
        config={
            "method": "hitpro",
            "model": {"backbone": "vit_tiny", "image_size": (128, 64), "drop_path": 0.0},
            "optimizer": {"name": "adamw", "learning_rate": 3e-4, "weight_decay": 0.01},
            "seed": 0,
        },
        results=[
            record(directions[0], 56.13),
            record(directions[1], 59.87, queries=138, unmatched=6, gallery=126),
        ],
        controls=[
            record(directions[0], 21.5, features="Starting features"),
            record(directions[1], 24.5, features="Starting features"),
            record(directions[0], 80.1, features="Labelled bound"),
        ],
        metrics=metrics_rows(),
        ranked=[
            ranked_list(direction, seed + 40 * d, matches, kind, facts)
            for d, direction in enumerate(directions)
            for seed, matches, kind, facts in (
                (3, [True, True, True, False, True, False, False, False, False, False], "best", "AP 95.0 %"),
                (9, [False] * 7 + [True, False, False], "worst", "AP 13.0 %, 1 match at rank 8"),
            )
        ],
        summary=("preset walkers, seed 0", "20 epochs"),
        assumptions={"identity labels": "no", "prototype unit": "tracklet"},
        cameras={directions[0]: camera_scores()},
        camera_names={1: "ground", 2: "uav2", 7: "7"},
        breakdown=TABLES,
        open_set=OPEN_SET,
        data=DataTable(
            (1, 2),
            (
                SplitCounts("train", "visible", 70, 900, 20, 12.5, (30, 40)),
                SplitCounts("query", "infrared", 9, 80, 5, 9, (0, 9)),
            ),
        ),
        notes=["The starting features have seen visible pictures of other walkers."],
        environment={"jaxreid": "0.1.0", "jax": "0.10.2", "device": "1 × cpu", "commit": "0123abc"},
        phases={"build data set": 12.3, "train": 431.0, "evaluate": 8.41, "report": 0.9},
    )
    return dataclasses.replace(full, **changes)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    path = write_report(workdir, contents())
    assert path == workdir / "report" / "index.html"
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    return path.read_text(encoding="utf-8")


def test_page_is_well_formed_and_needs_nothing_else(written):
    parsed = Page(written)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(address.startswith(("data:image/", "#")) for address in parsed.addresses)
    assert {link[1:] for link in parsed.links} <= set(parsed.ids)
    assert "@import" not in written and "<script" not in written
    assert not re.findall(r"url\((?!#)", written)
    assert set(re.findall(r"url\(#([^)]*)\)", written)) <= set(parsed.ids)
    assert all(image["alt"] for image in parsed.images)


def test_results_stand_with_protocol_queries_and_gallery(written):
    text = Page(written).text
    for words in (
        "56.1", "60.2", "59.9", "138 (+6)", "126", "120", "144", "Starting features", "21.5", "Labelled bound", "80.1",
        "cross_modal_cam: a match has the same identity, other camera", "chunk_first", "epoch 20 (last)",
        "Re-ranking no", "The starting features have seen visible pictures of other walkers.",
        "identity labels no", "prototype unit tracklet", "preset walkers, seed 0",
        "optimizer.learning_rate 0.0003", "model.image_size 128, 64", "7 min 33 s", "0123abc",
    ):  # fmt: skip
        assert words in text, words


def test_ranked_lists_mark_by_frame_and_by_sign(written):
    parsed = Page(written)
    assert len(parsed.images) == 4 * (5 + 10)
    assert written.count('<li class="match"') == 2 * (4 + 1)
    assert written.count('<li class="miss"') == 2 * (6 + 9)
    assert parsed.text.count("✓") == 10 + 1 and parsed.text.count("✗") == 30 + 1  # and once each in the key
    assert "worst AP 13.0 %, 1 match at rank 8" in parsed.text
    assert "1 ✓ 0.10 person 3 camera 0 2 ✓ 0.15 person 3 camera 1" in parsed.text
    assert sum("the same person" in image["alt"] for image in parsed.images) == 10


def test_nothing_scored_is_said_and_nothing_is_marked(tmp_path):
    lists = [ranked_list("all", 3, [None, None])]
    path = write_report(
        tmp_path,
        contents(
            results="The footage has no identities.", controls=[], ranked=lists, metrics=[], cameras={}, breakdown=()
        ),
    )
    parsed = Page(path.read_text(encoding="utf-8"))
    assert "Nothing was scored. The footage has no identities." in parsed.text
    assert "✓" not in parsed.text and "✗" not in parsed.text and "mAP" not in parsed.text
    assert "#curves" not in parsed.links


def test_a_report_with_the_least_contents(tmp_path):
    page_text = write_report(tmp_path, ReportContents("Empty", {}, [{"direction": "all", "mAP": 12.0}])).read_text(
        encoding="utf-8"
    )
    assert "12.0" in Page(page_text).text and "–" in Page(page_text).text


def test_text_is_escaped(tmp_path):
    text = '<u>&"x'
    path = write_report(
        tmp_path,
        contents(
            title=text,
            notes=[text],
            config={text: text},
            results=[record(text, 1.0)],
            ranked=[
                RankedList(
                    text,
                    TrackletPictures(text, (jpeg(0),), (text,)),
                    (TrackletPictures(text, (jpeg(1),), (text,), True),),
                    text,
                    text,
                )
            ],
            assumptions={text: text},
            earlier=EarlierRun(text, problem=text),
            metrics=[
                {"kind": "train", "step": 0, f"loss {text}": 1.0},
                {"kind": "train", "step": 1, f"loss {text}": 2.0},
            ],
        ),
    )
    written = path.read_text(encoding="utf-8")
    assert "<u>" not in written
    assert Page(written).words.count(text) >= 9


def test_an_earlier_report_survives_a_failure(tmp_path):
    path = write_report(tmp_path, contents())
    before = path.read_bytes()
    broken = RankedList("all", TrackletPictures("no picture", (b"GIF8",)), ())
    with refuses(ValueError, "JPEG", "PNG", "GIF8"):
        write_report(tmp_path, contents(ranked=[broken]))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_same_contents_give_the_same_bytes():
    assert page.render(contents()) == page.render(contents())


def test_cameras_stand_in_a_table_by_name(written):
    text = Page(written).text
    for words in (
        "gallery uav2 31 tracklets gallery camera 3 32 tracklets gallery camera 7 33 tracklets all 96 tracklets",
        "query ground 41.2 rank-1 44.0 11 queries 12.0 rank-1 10.0 12 queries 80.0 rank-1 91.8 13 queries 38.5 21 quer",
        "query uav2 – 33.0 rank-1 30.0 14 queries 60.5 rank-1 70.0 15 queries 40.0 22 queries",
    ):
        assert words in text, words
    shade = camera_scores().shade
    assert shade[0, 1] == 0 and shade[0, 2] == 1 and np.isnan(shade[1, 0])
    # Cells that hardly differ look alike.
    flat = dataclasses.replace(camera_scores(), mAP=np.array([[50.0, 51.0, 52.0], [np.nan, 50.0, 50.0]]))
    assert flat.shade[0, 2] == pytest.approx(0.1)


def test_conditions_stand_in_tables_and_figures(written):
    text = Page(written).text
    for words in (
        # The cases first, with their groups; then the others.
        "All cases mAP, percent Mean of the groups All queries Lowest / highest group all cases 40.2 39.8",
        "aerial to ground 50.0 45.0 to 55.5 50.0 50.0 50.0 3204 89 ground to aerial 30.0 25.0 to 35.5",
        "aerial to ground, by query 40.2 39.8 to 40.8 38.0 37.5 to 38.5 0.61 0.11 to 1.11 −0.42 −0.55 to −0.21",
        "aerial to ground, by gallery 40.2 39.8 to 40.8 38.0 37.5 to 38.5 0.61 0.11 to 1.11 0.10 –",
        "0 to 15 m 20.0 15.0 to 25.5 20.0 20.0 20.0 4 4 17 from 60 m – – – – – 0 0 3",
        "0 m 10 m 30° – 44.4 39.4 to 49.9 8 queries 90° 12.5 7.5 to 18.0 6 queries –",
        "by query, from near to far 1 2 30° 40.0 35.0 to 45.5 5.8 m up, 10 m off 8 queries 30.0 25.0 to 35.5 11.5 m",
        "90° 10.0 5.0 to 15.5 10 m up, 0 m off 3 queries –",
        "other clothes 15.5 10.5 to 21.0",
        "numbers, with its interval. aerial to ground, by query aerial to ground, by gallery",
    ):
        assert words in text, words
    assert written.count('class="few"') == 6


def test_rows_of_open_set_rates(written):
    text = Page(written).text
    for words in (
        "44 queries without a match and 366 with one; 5 persons (15 gallery tracklets) were taken out.",
        "false positive identification rate of at most 10 % FNIR 77.8 FPIR 9.091 0.281",
        "false accept rate of at most 1 % TAR 36.9 FAR 0.9982 –",
        "ground to aerial Not given: 5 queries have no match.",
    ):
        assert words in text, words


def test_without_conditions_there_is_no_section():
    text = page.render(contents(breakdown=(), open_set=()))
    assert 'id="conditions"' not in text and 'id="open-set"' not in text


def test_points_of_a_condition_stand_at_their_numbers():
    drawn = conditions.condition_plots(TABLES)
    assert [plot.title for plot in drawn] == ["mAP over altitude"]
    assert [key.label for key in drawn[0].legend] == ["aerial to ground, by query", "aerial to ground, by gallery"]
    points = conditions._points(TABLES[1]["groups"])
    assert points == [(10.0, 20.0, 15.0, 25.5)]  # a group that nobody is asked for has no point
    assert conditions._points([group("x", 5.0, 1, 1, value=3.0, mAP_interval=[None, None])])[0][:2] == (3.0, 5.0)


def test_signs_of_numbers():
    assert [page.format_signed(value, 2) for value in (-0.004, 0.004, -0.006, 1.0)] == ["0.00", "0.00", "−0.01", "1.00"]
    assert page.format_interval([-1.25, 2.0], 2) == "−1.25 to 2.00" and page.format_interval([None, None]) == "–"


def test_data_is_counted_by_split_modality_and_camera(written):
    text = Page(written).text
    assert "train visible query infrared" in text
    assert "Persons 20 5 Tracklets 70 9 Frames 900 80 Frames in a tracklet, median 12.5 9" in text
    assert "Camera 1 ground 30 – Camera 2 uav2 40 9" in text


def earlier_run(record_, reasons=(), **changes):
    key = ("infrared → visible", "cross_modal_cam")
    return EarlierRun("old", **{"records": {key: (record_, reasons)}, "checkpoint": "epoch 20 of 20"} | changes)


def test_an_earlier_run_stands_beside_with_the_change():
    before = record("infrared → visible", 50.0, **{"rank-20": 100.0, "rank-5": 91.5})
    settings = (("optimizer.learning_rate", 1e-3, 3e-4), ("scope", None, "camera"))
    text = page.render(contents(earlier=earlier_run(before, settings=settings)))
    words = Page(text).text
    assert "Earlier: old 50.0 54.0 91.5 95.0 100.0 40.0 120 144" in words
    assert "Change, points +6.1 +6.1 −1.5 ±0.0 ±0.0 +6.1" in words
    assert "optimizer.learning_rate 0.001 0.0003" in words and "scope not set camera" in words
    # The other direction has no earlier record, and nothing is subtracted there.
    assert words.count("Change, points") == 1


def test_an_earlier_run_that_was_measured_otherwise_is_not_subtracted():
    before = record("infrared → visible", 50.0)
    reasons = ("gallery tracklets 100 → 144", "distance euclidean → cosine")
    words = Page(page.render(contents(earlier=earlier_run(before, reasons)))).text
    assert "Earlier: old 50.0" in words and "Change, points" not in words
    assert "Not subtracted gallery tracklets 100 → 144; distance euclidean → cosine" in words
    assert "earlier: old" not in words  # neither in a tile nor in a curve
    missing = Page(page.render(contents(earlier=earlier_run(None, ("the earlier run has no score",))))).text
    assert "Earlier: old the earlier run has no score" in missing


def test_an_earlier_run_that_cannot_be_read_is_named():
    words = Page(page.render(contents(earlier=EarlierRun("old", problem="old/results.json does not exist")))).text
    assert "Not compared. old/results.json does not exist" in words
    assert "56.1" in words and "Earlier: old" not in words


def test_learning_curves_show_what_was_logged():
    drawn = {plot.title: plot for plot in plots.learning_curves(metrics_rows())}
    assert list(drawn) == [
        "Training loss",
        "Retrieval during training",
        "Association precision",
        "Association coverage",
    ]
    assert [key.label for key in drawn["Training loss"].legend] == ["loss", "loss_intra", "loss_cross"]
    assert "L1+L2+L3" in drawn["Training loss"].svg and "learning_rate" not in drawn["Training loss"].svg
    # One entry for a direction; its mAP is solid and its rank-1 dashed.
    assert [key.label for key in drawn["Retrieval during training"].legend] == [
        "infrared → visible",
        "visible → infrared",
    ]
    assert "visible → infrared mAP 6" in drawn["Retrieval during training"].svg
    assert [key.label for key in drawn["Association precision"].legend] == ["P1", "P2"]
    assert "tau" not in drawn["Association precision"].svg
    for plot in drawn.values():
        # Every colour follows the theme.
        assert not re.findall(r"(?:fill|stroke): #", plot.svg)
        assert "var(--series-1)" in plot.svg
    assert plots.learning_curves([]) == []


def test_an_earlier_run_is_dotted_in_the_same_figure():
    rows = [{"kind": "train", "step": i, "loss": 2.0 - 0.1 * i} for i in range(9)]
    other = [{"kind": "train", "step": i, "loss": 3.25, "loss_more": 1.0} for i in range(9)]
    (alone,), (both,) = plots.learning_curves(rows), plots.learning_curves(rows, other)
    assert "Dotted: the earlier run." in both.caption and "Dotted" not in alone.caption
    assert "loss of the earlier run 3.25" in both.svg and "loss_more" not in both.svg
    assert both.svg.count("stroke-dasharray") == alone.svg.count("stroke-dasharray") + 1


def test_cmc_curves_keep_colours_and_take_what_is_known():
    cmc = [10.0 * k for k in range(1, 11)]
    groups = {
        "a to b": {"this run": {"cmc": cmc}, "tower": {"rank-1": 4.0, "rank-5": 21.0}},
        "b to a": {"tower": {"cmc": cmc}},
        "c": {"this run": {"rank-1": 3.0}},
    }
    drawn = plots.cmc_curves(groups)
    assert [plot.title for plot in drawn] == ["a to b", "b to a"]
    assert "this run 100, tower 21" in drawn[0].svg and "tower 100" in drawn[1].svg
    assert "var(--series-2)" in drawn[1].svg and "var(--series-1)" not in drawn[1].svg


def test_histogram_bars_are_as_high_as_their_counts():
    counts = {"visible": np.array([4, 0, 2]), "infrared": np.array([1, 3, 0])}
    plot = plots.histogram("Length", "Frames.", np.array([0.5, 2.5, 4.5, 6.5]), counts, "frames", [0, 1])
    assert [(key.label, key.marker) for key in plot.legend] == [("visible", "solid"), ("infrared", "striped")]
    assert "visible 6, infrared 4" in plot.svg
    # A bar is a closed path around (left, low), (right, low), (right, high), (left, high).
    bars = re.findall(r'd="M (\S+) (\S+) \nL (\S+) \2 \nL \3 (\S+) \nL \1 \4 \nz', plot.svg)
    heights = [float(low) - float(high) for _, low, _, high in bars]
    heights = [height for height in heights if 0 < height < 100]  # no empty bar, not the background
    unit = max(heights) / 4
    assert sorted(round(height / unit, 2) for height in heights) == [1, 2, 3, 4]


def test_direction_may_be_part_of_the_name():
    rows = [{"kind": "evaluate", "epoch": epoch, "all/mAP": 10.0 * epoch} for epoch in range(3)]
    (plot,) = plots.learning_curves(rows)
    assert plot.title == "Retrieval during training"


def test_long_logs_are_averaged_and_gaps_named():
    points = [(float(i), float(i)) for i in range(1000)]
    thin = plots._thin(points)
    assert len(thin) <= plots.MAX_POINTS
    assert thin[0] == (1.5, 1.5)
    rows = [{"kind": "train", "step": i, "loss": float("nan") if i == 3 else 1.0} for i in range(5)]
    (plot,) = plots.learning_curves(rows)
    assert "1 values are not finite" in plot.caption


def test_steps_that_restart_are_numbered_through():
    assert plots._x([{"step": 0}, {"step": 1}, {"step": 0}], "step") == [0, 1, 2]
    assert plots._x([{"step": 0}, {"step": 50}], "step") == [0, 50]
    assert plots._x([{}, {"step": 1}], "step") == [0, 1]


@pytest.mark.parametrize(
    "seconds, text",
    [(0.0, "0 s"), (0.419, "0.42 s"), (12.3, "12 s"), (185, "3 min 05 s"), (59.7, "1 min 00 s"), (7620, "2 h 07 min")],
)
def test_durations(seconds, text):
    assert page.format_duration(seconds) == text


def test_importing_the_report_is_cheap_and_writing_is_quick(tmp_path):
    modules = "jaxreid.report.page, jaxreid.report.plots"
    code = f"import sys, {modules}; print('matplotlib' in sys.modules, 'jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
    write_report(tmp_path, contents())
    start = time.process_time()
    write_report(tmp_path, contents())
    assert time.process_time() - start < 3
