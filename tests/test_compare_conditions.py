"""Rows side by side by condition, and beside published results. Expected numbers were worked out by hand."""

import pytest
from html_page import Page
from messages import refuses
from result_files import make_run, score

from jaxreid.report.comparison.by_condition import condition_plots, condition_rows
from jaxreid.report.comparison.markdown import markdown
from jaxreid.report.comparison.page import write
from jaxreid.report.comparison.published import FACTS, beside_published, published
from jaxreid.report.comparison.runs import CompareError
from jaxreid.report.comparison.tables import compare
from jaxreid.retrieval.protocols import PROTOCOLS
from jaxreid.tools.compare import main

A2G, G2A = "aerial_to_ground", "ground_to_aerial"


def table(direction, side, condition, figures=(), low=0.0):
    """Two groups, at 10 and 60, of which the first has `low` points more than 20; each interval is ±3."""
    groups = [
        {"group": name, "value": value, "mAP": mAP, "mAP_interval": [mAP - 3, mAP + 3] if mAP else [None, None]}
        for name, value, mAP in (("near", 10.0, 20.0 + low), ("far", 60.0, 15.0), ("nobody", None, None))
    ]
    found = {"direction": direction, "side": side, "condition": condition, "unit": "m", "groups": groups}
    found |= {"protocol": "xfd", "rho": -0.1, "rho_interval": [-0.3, 0.1]}
    for name, (value, between) in dict(figures).items():
        found |= {name: value, f"{name}_interval": between}
    return found


def breakdown(*tables):
    return {"breakdown": {"replicates": 1000, "tables": list(tables)}}


@pytest.fixture
def runs(tmp_path):
    """Two seeds of a method and their tower before training, one of another; nothing on the ground has an altitude."""
    for seed, rho, low in ((1, -0.5, 0.0), (2, -0.3, 4.0)):
        tables = [
            table(A2G, "query", "altitude", {"rho": (rho, [rho - 0.2, rho + 0.2])}, low),
            table(A2G, "gallery", "altitude"),
            table(A2G, "query", "angle", {"nadir_gap": (6.0 + seed, [2.0, 9.0])}),
            table(G2A, "gallery", "altitude", {"lowest_to_highest": (0.25, [0.1, 0.4])}),
        ]
        data = {"name": "detreidx/cases"}
        scores = [score(A2G, 40.0 + seed, protocol="xfd"), score(A2G, 44.0 + seed, protocol="xfd_train")]
        before = [score(A2G, 5.0, protocol="xfd", features="untouched tower", breakdown=[tables[0]])]
        settings = {"dataset.name": "detreidx", "dataset.config": "cases"}
        known = {"data": data, "scores": scores, "settings": settings}
        make_run(tmp_path / f"h{seed}", 0, seed, before_training=before, **known, **breakdown(*tables))
    make_run(
        tmp_path / "b1",
        0,
        method="baseline",
        **known,
        **breakdown(table(A2G, "query", "altitude", {"rho": (None, [None, None])})),
    )
    return tmp_path


def test_figures_are_means_over_seeds_and_so_are_the_ends_of_intervals(runs):
    (found,) = compare([runs]).tables
    head, *lines = condition_rows(found)
    assert head[2:] == [
        "ρ altitude",
        "ρ distance",
        "ρ distance, slanted views",
        "ρ slant range",
        "nadir gap",
        "lowest / highest altitude",
    ]
    assert lines == [
        # ρ −0.5 (−0.7 to −0.3) and −0.3 (−0.5 to −0.1); gaps of 7 and 8 points.
        ["hitpro", "aerial to ground, by query", "−0.40 (−0.60 to −0.20)", *3 * ["–"], "7.5 (2.0 to 9.0)", "–"],
        ["hitpro", "ground to aerial, by gallery", "−0.10 (−0.30 to 0.10)", *4 * ["–"], "0.25 (0.10 to 0.40)"],
    ]  # fmt: skip
    plots = {plot.title: plot for plot in condition_plots(found)}
    assert list(plots) == [
        "aerial to ground, by query: mAP over altitude",
        "aerial to ground, by query: mAP over angle",
        "ground to aerial, by gallery: mAP over altitude",
    ]
    assert [key.label for key in next(iter(plots.values())).legend] == ["baseline", "hitpro"]


def test_the_points_of_a_line(runs):
    from jaxreid.report.comparison import by_condition

    (found,) = compare([runs]).tables
    row = next(row for row in found.rows if row.label == "hitpro")
    place = ("detreidx/cases", A2G, "query")
    assert by_condition._points(by_condition._tables(row, place, "altitude")) == [(10, 22, 19, 25), (60, 15, 12, 18)]


def test_the_tower_before_training_is_a_line_of_its_own(runs):
    (found,) = compare([runs], controls=True).tables
    lines = condition_rows(found)
    assert lines[1][0] == "before training: untouched tower" and lines[1][2] == "−0.40 (−0.60 to −0.20)"
    keys = [key.label for key in condition_plots(found)[0].legend]
    assert keys == ["before training: untouched tower", "baseline", "hitpro"]


def test_runs_without_conditions_have_no_such_table(tmp_path):
    make_run(tmp_path / "h", 30.0)
    comparison = compare([tmp_path])
    assert condition_rows(comparison.tables[0]) == [] and condition_plots(comparison.tables[0]) == []
    assert beside_published(comparison) == [] and "Published" not in markdown(comparison)


# --- published results ------------------------------------------------------------------------------------------------


def test_published_rows_are_whole():
    assert len(published()) == len({(row["method"], row["direction"], row["protocol"]) for row in published()})
    for row in published():
        assert row["standing"] in ("official", "paper-reported", "reproduced") and row["source"] and row["method"]
        assert row["average precision"] in ("standard", "trapezoid", "not stated")
        assert row["re-ranking"] in ("yes", "no", "not stated") and 0 < float(row["mAP"]) < 100
        if row["protocol"] in PROTOCOLS:
            assert PROTOCOLS[row["protocol"]].precision == row["average precision"]
        ranks = [float(row[f"rank-{k}"]) for k in (1, 5, 10) if row[f"rank-{k}"]]
        assert ranks == sorted(ranks)


def test_what_the_leaderboard_printed_is_weighted_by_queries():
    """Of every row that has all cases by the trapezoid, to what two decimals leave."""
    rows = {(row["method"], row["direction"]): float(row["mAP"]) for row in published() if row["protocol"] == "xfd"}
    checked = 0
    for method in dict.fromkeys(method for method, _ in rows):
        cases = [rows.get((method, direction)) for direction in (A2G, G2A, "aerial_to_aerial")]
        if None not in cases:
            mean = sum(n * mAP for n, mAP in zip((3204, 89, 2789), cases, strict=True)) / 6082
            assert mean == pytest.approx(rows[method, "overall"], abs=0.0101), method
            checked += 1
    assert checked == 8


def test_the_trapezoid_s_rows_lie_where_one_match_per_query_lets_them():
    """mAP = ½ (rank-1 + MRR), and MRR lies between what rank-1, 5 and 10 leave: r1 + (r5 − r1)/5 + (r10 − r5)/10 and
    r1 + (r5 − r1)/2 + (r10 − r5)/6 + (1 − r10)/11; with the standard definition mAP is MRR itself."""
    for row in published():
        if row["direction"] != A2G or not row["rank-1"]:
            continue
        r1, r5, r10, mAP = (float(row[key]) for key in ("rank-1", "rank-5", "rank-10", "mAP"))
        low = r1 + (r5 - r1) / 5 + (r10 - r5) / 10
        high = r1 + (r5 - r1) / 2 + (r10 - r5) / 6 + (100 - r10) / 11
        ends = {"standard": (low, high), "trapezoid": ((r1 + low) / 2, (r1 + high) / 2)}
        own = ends.pop(row["average precision"])
        assert own[0] <= mAP <= own[1], row["method"]
        ((other_low, other_high),) = ends.values()
        assert not other_low <= mAP <= other_high, row["method"]


def test_published_rows_stand_beside_one_s_own(runs):
    head, *lines = beside_published(compare([runs]))
    assert head[: len(FACTS)] == [*FACTS] and head[len(FACTS) : -1] == [
        "A → G mAP", "A → G rank-1", "G → A mAP", "G → A rank-1",
        "A → A mAP", "A → A rank-1", "overall mAP", "overall rank-1",
    ]  # fmt: skip
    by_method = {(line[1], line[4]): line for line in lines}
    winner = by_method["SAS-VPReID (DUT-IIAU)", "trapezoid"]
    assert winner[len(FACTS) : -1] == ["43.93", "37.77", "35.44", "69.66", "20.13", "25.39", "32.89", "–"]
    assert winner[len(FACTS) - 1] == "paper-reported, official"
    own = by_method["hitpro", "trapezoid"]
    assert own[len(FACTS) - 1 :] == ["own", "41.50", "51.50", *6 * ["–"], "2 seeds"]  # 41, 42; rank-1 is mAP + 10
    assert by_method["hitpro", "standard"][len(FACTS)] == "45.50"
    assert {line[0] for line in lines} == {"detreidx/cases"}


def test_the_page_and_the_command(runs, tmp_path, capsys):
    path = write(compare([runs], controls=True), tmp_path / "page")
    page = Page(path.read_text(encoding="utf-8"))
    for words in ("By condition", "ρ altitude", "−0.40", "Published results", "SAS-VPReID, DUT-IIAU", "official"):
        assert words.replace("SAS-VPReID, DUT-IIAU", "SAS-VPReID (DUT-IIAU)") in page.text
    assert {link[1:] for link in page.addresses if link.startswith("#")} <= set(page.ids)
    make_run(tmp_path / "other", 30.0)
    line = [str(tmp_path / "other"), "--out", str(tmp_path / "out"), "--published"]
    assert main([*line, "detreidx"]) == 0
    shown = capsys.readouterr().out
    assert "46.69" in shown and "| walkers/vvi " not in shown  # other directions: nothing of its own stands there
    assert main([*line, "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    with refuses(CompareError, "nowhere", "detreidx"):
        beside_published(compare([runs]).__class__([], [], [], ("nowhere",)))
