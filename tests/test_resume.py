"""Killed runs and damaged checkpoints: the same line again gives the undisturbed run, bit for bit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kill_resume import LINE, kill_when, start, unequal, written
from jaxreid import parallel
from jaxreid.checkpoints import Checkpoints, DamagedCheckpoint

ROOT = Path(__file__).parent.parent


def rows(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def has_row(kind, run_epoch):
    return lambda workdir: any(row["kind"] == kind and row["run_epoch"] == run_epoch for row in rows(workdir))


def has(pattern):
    return lambda workdir: any(workdir.glob(pattern))


# In the order in which one run meets them: (what the process is doing, how that shows, what is not there yet).
MOMENTS = [
    ("writing frozen weights", has("checkpoints/frozen/*tmp*"), "checkpoints/frozen/hitpro"),
    ("scoring the features of the start", has("checkpoints/frozen/hitpro"), "start.json"),
    ("in the steps of epoch 1", has_row("association", 0), "checkpoints/epochs/1"),
    ("writing checkpoint 1", has("checkpoints/epochs/1.*tmp*"), "checkpoints/epochs/1"),
    ("in the extraction or refresh of epoch 2", has("checkpoints/epochs/1"), "checkpoints/epochs/2"),
    ("scoring epoch 2", has_row("train", 1), "checkpoints/epochs/2"),
    ("in the final evaluation", has("checkpoints/epochs/2"), "results.json"),
    ("writing the report", has("results.json"), "report/index.html"),
]


def command(data_dir):
    return [*LINE, f"--data_dir={data_dir}", "--config.keep_best=True"]


def run(arguments, workdir):
    line = [sys.executable, "-m", "jaxreid.main", *arguments, f"--workdir={workdir}"]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir, tiny):
    """The workdir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = run(command(data_dir), workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def test_kills_change_nothing(whole, tmp_path, data_dir):
    workdir = tmp_path / "run"
    for doing, shows, missing in MOMENTS:
        with (tmp_path / "errors").open("w") as errors:
            process = start(command(data_dir), workdir, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
            assert kill_when(process, lambda shows=shows: shows(workdir)), (doing, (tmp_path / "errors").read_text())
        assert not (workdir / missing).exists(), f"killed too late: {doing}"
    done = run(command(data_dir), workdir)
    assert done.returncode == 0, done.stderr
    assert not unequal(written(whole), written(workdir))


def test_the_best_epoch_is_reported_as_chosen(whole):
    results = json.loads((whole / "results.json").read_text())
    maps = [
        np.mean([value for name, value in row.items() if name.endswith("/mAP")])
        for row in rows(whole)
        if row["kind"] == "evaluate"
    ]
    best = 1 + int(np.argmax(maps))
    assert len(maps) == 2 and maps[0] != maps[1]
    assert np.mean([record["mAP"] for record in results["scores"]]) == pytest.approx(max(maps), abs=1e-9)
    assert {record["checkpoint"] for record in results["scores"]} == {
        f"epoch {best} " + ("(last)" if best == 2 else "of 2") + ", chosen by test score"
    }


def copy(whole, tmp_path):
    """A workdir as it is before the final evaluation."""
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "results.json").unlink()
    return workdir


def damage(workdir, number):
    """Cuts the largest file of a checkpoint to half."""
    files = [path for path in (workdir / "checkpoints" / "epochs" / str(number) / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def test_a_damaged_checkpoint_is_trained_again(whole, tmp_path, data_dir):
    workdir = copy(whole, tmp_path)
    damage(workdir, 2)
    epochs = workdir / "checkpoints" / "epochs"
    done = run(command(data_dir), workdir)
    assert done.returncode == 0, done.stderr
    aside = workdir / "checkpoints" / "damaged" / "2"
    assert f"checkpoint {epochs / '2'} cannot be read" in done.stderr and f"moved to {aside}" in done.stderr
    assert "after epoch 1" in done.stdout and aside.is_dir()
    assert not unequal(written(whole), written(workdir))


def test_no_whole_checkpoint_is_an_error(whole, tmp_path, data_dir):
    workdir = copy(whole, tmp_path)
    damage(workdir, 1)
    damage(workdir, 2)
    failed = run(command(data_dir), workdir)
    assert failed.returncode == 1 and "no earlier checkpoint is whole; delete" in failed.stderr
    assert {path.name for path in (workdir / "checkpoints" / "epochs").iterdir()} == {"1", "2"}


def test_torn_frozen_weights_are_never_taken_for_whole(tmp_path):
    """A write that was broken off leaves another name; the next one writes all of it."""
    checkpoints = Checkpoints(tmp_path)
    torn = checkpoints.directory / "frozen" / "stage.orbax-checkpoint-tmp"
    torn.mkdir(parents=True)
    (torn / "half").write_text("")
    tree = {"kernel": jnp.arange(12.0).reshape(3, 4)}
    place = parallel.state_sharding(tree, parallel.make_mesh(1, 1))
    with pytest.raises(DamagedCheckpoint, match=r"frozen weights .*stage cannot be read"):
        checkpoints.restore_frozen("stage", tree, place)
    checkpoints.save_frozen("stage", tree)
    written = (checkpoints.directory / "frozen" / "stage" / "_METADATA").stat()
    checkpoints.save_frozen("stage", {"kernel": jnp.zeros((3, 4))})  # once per stage: nothing is written
    assert (checkpoints.directory / "frozen" / "stage" / "_METADATA").stat() == written
    np.testing.assert_array_equal(checkpoints.restore_frozen("stage", tree, place)["kernel"], tree["kernel"])
    checkpoints.close()


def test_the_last_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_best=True)
    for number, score in enumerate((3.0, 7.0, 5.0, 7.0, 6.0, 1.0), start=1):
        checkpoints.save(number, {"x": jnp.full(3, number)}, {"epoch": number}, score)
    checkpoints.wait()
    assert checkpoints.numbers() == [6, 5, 4] and checkpoints.best() == 4 and checkpoints.latest() == 6
    checkpoints.close()
    again = Checkpoints(tmp_path, keep=2, keep_best=True)
    assert again.best() == 4
    again.close()
