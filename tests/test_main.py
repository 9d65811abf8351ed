"""The command line, as a user runs it: one short run, the same line again, and what goes wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from messages import says

ROOT = Path(__file__).parent.parent
SMALL = (
    "--config.dataset.config=tiny",
    "--config.epochs=1",
    "--config.batch.num_prototypes=4",
    "--config.prototypes.pad_to_multiple_of=8",
    "--config.extraction_batch_size=16",
)


def jaxreid(*arguments, cwd):
    command = [sys.executable, "-m", "jaxreid.main", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


def test_a_run_and_the_same_line_again(tmp_path, data_dir, tiny):
    line = ("--config=configs/hitpro.py", *SMALL, f"--workdir={tmp_path}/run", f"--data_dir={data_dir}")
    first = jaxreid(*line, cwd=ROOT)
    assert first.returncode == 0, first.stderr
    report = tmp_path / "run" / "report" / "index.html"
    assert first.stdout.splitlines()[-1] == f"report: {report}"
    assert report.exists()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    columns = {"mAP", "mINP", "rank-1", "rank-5", "rank-10", "rank-20", "protocol", "queries", "gallery"}
    assert [record["direction"] for record in results["scores"]] == ["visible_to_infrared", "infrared_to_visible"]
    assert all(columns <= set(record) for record in results["scores"])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 1

    again = jaxreid(*line, cwd=ROOT)
    assert again.returncode == 0 and "finished" in again.stdout
    assert again.stdout.splitlines()[-1] == f"report: {report}"

    assert {"jax", "devices", "python"} <= set(results["environment"])
    assert re.fullmatch("[0-9a-f]{16}", results["starting_weights"])

    nowhere = jaxreid(*line, f"--compare={tmp_path}/nowhere", cwd=ROOT)
    assert nowhere.returncode == 2
    says(nowhere.stderr, "--compare", tmp_path / "nowhere" / "results.json")
    # A finished run is scored again for a comparison, also for one that comes to nothing.
    scored = jaxreid(*line, f"--compare={tmp_path}/run", cwd=ROOT)
    assert scored.returncode == 0, scored.stderr
    assert "not compared" in scored.stdout
    repeated = json.loads((tmp_path / "run" / "results.json").read_text())
    assert repeated["scores"] == results["scores"]

    other = jaxreid(*line, "--config.seed=2", cwd=ROOT)
    assert other.returncode == 2
    says(other.stderr, "seed", "1 → 2")


def test_dry_run_needs_no_workdir(tmp_path, data_dir, tiny):
    line = ("--config=hitpro", *SMALL, f"--data_dir={data_dir}", "--mode=dry_run")
    found = jaxreid(*line, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "parameters:" in found.stdout and "per device" in found.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--config=configs/hitpro.py", "--config.epocs=3"), "epocs"),
        (("--config=configs/hitpro.py:marz",), "'marz'"),
        (("--config=configs/nothing.py",), "configs/nothing.py"),
        (("--config=configs/hitpro.py", "--config.backbone.checkpoint=/nowhere.safetensors"), "nowhere.safetensors"),
    ],
)
def test_mistakes_are_named(tmp_path, data_dir, tiny, arguments, words):
    line = (*arguments, "--config.dataset.config=tiny", f"--workdir={tmp_path}/run", f"--data_dir={data_dir}")
    found = jaxreid(*line, cwd=ROOT)
    assert found.returncode == 2
    assert words in found.stderr, found.stderr
