"""Runs side by side for a reader and for programs: Markdown, the page, the numbers, and the command."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
from html_page import Page
from messages import says
from result_files import V2I, make_run, score

from jaxreid.report.comparison.figures import figures
from jaxreid.report.comparison.markdown import markdown
from jaxreid.report.comparison.page import write
from jaxreid.report.comparison.tables import compare
from jaxreid.tools.compare import main


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
    text = markdown(compare(arguments, controls=True, baseline="hitpro"))
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
    path = write(compare([f"<b>&={mixed}/runs/b|<1>", mixed / "runs"], controls=True, baseline="hitpro"), out)
    assert path == out / "index.html"
    written = path.read_text(encoding="utf-8")
    page = Page(written)
    assert len(page.ids) == len(set(page.ids))
    outside = [link for link in page.addresses if not link.startswith("#")]
    assert outside == ["../runs/h1/report/index.html"] and (out / outside[0]).exists()
    assert {link[1:] for link in page.addresses if link.startswith("#")} <= set(page.ids)
    assert "<script" not in written and "<b>" not in written and written.count("<svg") == 2
    for words in (
        "<b>&, hitpro on walkers/vvi", "7 finished runs", "hitpro levels.cross_weight=0", "31.0 ± 1.4",
        "before training: tower", "Difference to hitpro", "+1.00 ± 0.00", "1 × cpu", "1 min 20 s", "epoch 6 (last)",
        "market: a match has the same identity, other camera", "scored after epoch 4 of 6", "loading.threads",
    ):  # fmt: skip
        assert words in page.text, words


def test_figures_follow_the_theme(mixed):
    (table,) = compare([mixed / "runs"]).tables
    for plot in figures(table):
        assert "var(--series-1)" in plot.svg and "var(--series-2)" in plot.svg
        assert "hitpro levels.temperature=0.1" in plot.svg


def test_numbers_for_programs(mixed):
    out = mixed / "compare"
    write(compare([mixed / "runs"], metrics=["mAP", "rank-5"]), out)
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
        "less": "results.json has an old format or is broken: a score without protocol, clip_sampling, seq_len, "
        "distance, reranking, queries, gallery",
    }
    out = tmp_path / "page"
    assert main([str(tmp_path), "--out", str(out)]) == 0
    text = Page((out / "index.html").read_text()).text
    printed = capsys.readouterr().out
    for name, why in reasons.items():
        says(printed, tmp_path / name, why)
        assert str(tmp_path / name) in text and why in text
    assert main([str(tmp_path / "short"), str(tmp_path / "cut"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(tmp_path / "short") in error and "4 of 6" in error


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
    assert main([str(tmp_path), *line, "--out", str(tmp_path / "page")]) == 2
    written = capsys.readouterr()
    assert written.err.startswith("error: ") and not written.out
    says(written.err, *named)
    assert not (tmp_path / "page").exists()


def test_the_command_line(mixed, monkeypatch, capsys):
    monkeypatch.chdir(mixed)
    assert main(["runs", "--baseline", "hitpro", "--metrics", "mAP"]) == 0
    written = capsys.readouterr()
    says(written.out, "levels.cross_weight=0")
    says(written.out, "runs/short")
    assert written.err == "page: runs/compare/index.html\n"
    page = (mixed / "runs/compare/index.html").read_text(encoding="utf-8")
    assert 'href="../h1/report/index.html"' in page
    everything = [str(path) for path in sorted((mixed / "runs").iterdir())]  # as the shell writes runs/*
    assert str(mixed / "runs/compare") in everything and main(everything) == 0
    assert "compare: no run" not in capsys.readouterr().out


def test_its_help_names_it_as_it_is_called(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith("usage: jaxreid compare ")


def test_importing_it_loads_neither_jax_nor_matplotlib():
    code = "import sys, jaxreid.tools.compare; print('matplotlib' in sys.modules, 'jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
