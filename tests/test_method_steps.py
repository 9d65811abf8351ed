"""What `benchmarks/train.py --method` prints: figures with what they are, work that agrees with a count by hand."""

import json
import subprocess
import sys
from pathlib import Path

import finished
import pytest

from benchmarks import method_steps
from jaxreid.backbones.flops import vit_flops

ROOT = Path(__file__).parent.parent
CHANGES = {key: value for key, value in finished.CONFIG.items() if key != "mesh.devices"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    finished.small_tower(monkeypatch)


def clock(step, wait, steps):
    """Two steps, said to take half a second each."""
    for number in range(steps):
        step(number)
    wait()
    return 0.5


def test_a_stage_in_numbers(data_dir, tiny):
    steps = 2
    (row,) = method_steps.measure("baseline", "", CHANGES, steps, data_dir, clock, lambda *_: 2.0)
    clips, frames = 16, row["frames"]
    assert (row["method"], row["stage"], row["clips"], row["dataset"]) == (
        "baseline",
        "baseline",
        clips,
        "walkers/tiny",
    )
    # Three times the tower forward, but for the gradient of its pixels; the heads are next to nothing.
    patches = 2 * finished.SMALL.patches * 16 * 16 * 3 * finished.SMALL.width
    work = clips * frames * (3 * vit_flops(finished.SMALL, class_token_only=True) - patches) / 1e12
    assert row["tflop_per_step"] == pytest.approx(work, rel=0.02)
    assert row["frames_per_second"] == clips * frames / 0.5 and row["clips_per_second"] == clips / 0.5
    assert row["mfu"] == pytest.approx(row["tflop_per_step"] / 0.5 / 2.0)
    assert row["programs"] == len(row["programs_named"]) and "baseline/train_step" in row["programs_named"]
    assert 0 < row["kept_gib"] < 1 and 0 < row["memory_gib"] < 1 and row["peak_gib"] > row["memory_gib"]
    basis = row["basis"]
    assert basis["tflop_per_step"] == basis["kept_gib"] == basis["programs"] == "calculated"
    assert basis["tflop_compiled"] == basis["memory_gib"] == "compiled for cpu"
    assert all(basis[key].startswith("measured on cpu") for key in ("seconds", "frames_per_second", "mfu", "peak_gib"))


def test_without_steps_nothing_is_called_measured(data_dir, tiny):
    (row,) = method_steps.measure("baseline", "", CHANGES, 0, data_dir, clock, lambda *_: 2.0)
    assert {key for key, what in row["basis"].items() if what.startswith("measured")} == {"compile_seconds"}
    assert "seconds" not in row and row["tflop_per_step"] > 0


@pytest.mark.extended
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
def test_every_method_has_its_lines(data_dir, tiny, name):
    line = [sys.executable, "benchmarks/train.py", "--method", name, "--set", "dataset.config=tiny", "--steps", "0"]
    found = subprocess.run([*line, "--data_dir", data_dir], cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [json.loads(row) for row in found.stdout.splitlines()]
    assert rows and all(row["method"] == name and row["tflop_per_step"] > 0 for row in rows), found.stderr


def test_values_are_typed_as_in_python():
    assert method_steps.values(["a.b=3", "c=(1, 2)", "d=tiny", "e=False"]) == {
        "a.b": 3,
        "c": (1, 2),
        "d": "tiny",
        "e": False,
    }
