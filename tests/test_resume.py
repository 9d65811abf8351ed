"""Killed runs and damaged checkpoints: the same line again gives the undisturbed run, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import family
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from messages import refuses, says

from benchmarks.kill_resume import LINE, unequal, written
from jaxreid.devices import parallel
from jaxreid.run.model import start_run
from jaxreid.training import restore as restoring
from jaxreid.training.checkpoints import Checkpoints, DamagedCheckpoint, digests
from jaxreid.training.restore import restore
from jaxreid.training.start import enter_stage

ROOT = Path(__file__).parent.parent


def rows(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


# In the order in which one run meets them: (what the process is doing, the moment in words of killed_run.py, what is
# there by then, what is not).
MOMENTS = [
    ("writing frozen weights", r"open /frozen/hitpro\.[^/]*/_METADATA", "config.json", "checkpoints/frozen/hitpro"),
    ("scoring the features of the start", "os.rename /start.json$", "checkpoints/frozen/hitpro", "start.json"),
    (
        "in the steps of epoch 1",
        "call jaxreid.training.forecast:Forecast.after 2",
        "start.json",
        "checkpoints/epochs/1",
    ),
    ("writing checkpoint 1", r"os.mkdir /epochs/1\.[^/]*/state", "start.json", "checkpoints/epochs/1"),
    ("naming checkpoint 1", "os.rename /epochs/1$", "start.json", "checkpoints/epochs/1"),
    (
        "in the refresh of epoch 2",
        "call jaxreid.methods.hitpro:HiTPro.diagnose 2 {workdir}/checkpoints/epochs/1",
        "checkpoints/epochs/1",
        "checkpoints/epochs/2",
    ),
    (
        "scoring epoch 2",
        "call jaxreid.evaluation.evaluator:Evaluator.scores 1",
        "checkpoints/epochs/1",
        "checkpoints/epochs/2",
    ),
    (
        "in the final evaluation",
        "call jaxreid.evaluation.evaluator:Evaluator.final 1",
        "checkpoints/epochs/2",
        "results.json",
    ),
    ("writing the report", "os.rename /report/index.html$", "results.json", "report/index.html"),
]
FEW = [MOMENTS[i] for i in (0, 4, 5, 8)]


def run(workdir, data_dir, moment="never"):
    """A run of two epochs that ends, or is killed at a moment."""
    tower = ("--config.backbone.name=small", "--config.backbone.checkpoint=")
    places = (f"--workdir={workdir}", f"--data_dir={data_dir}")
    line = [sys.executable, Path(__file__).with_name("killed_run.py"), moment, *LINE, *tower, *places]
    return subprocess.run(
        [*line, "--config.keep_best=True"],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, start_new_session=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir, tiny):
    """The workdir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = run(workdir, data_dir)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.parametrize("moments", [FEW, pytest.param(MOMENTS, marks=pytest.mark.extended)], ids=len)
def test_kills_change_nothing(moments, whole, tmp_path, data_dir):
    workdir = tmp_path / "run"
    for doing, moment, there, missing in moments:
        killed = run(workdir, data_dir, moment.format(workdir=workdir))
        assert killed.returncode == -signal.SIGKILL, (doing, killed.stderr)
        assert (workdir / there).exists() and not (workdir / missing).exists(), doing
    done = run(workdir, data_dir)
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
    done = run(workdir, data_dir)
    assert done.returncode == 0, done.stderr
    aside = workdir / "checkpoints" / "damaged" / "2"
    says(done.stderr, "checkpoint", epochs / "2")
    says(done.stderr, aside)
    assert aside.is_dir()
    says(done.stdout, 1)
    assert not unequal(written(whole), written(workdir))


def test_no_whole_checkpoint_is_an_error(whole, tmp_path, data_dir):
    workdir = copy(whole, tmp_path)
    damage(workdir, 1)
    damage(workdir, 2)
    failed = run(workdir, data_dir)
    assert failed.returncode == 2
    says(failed.stderr, "checkpoint", "delete")
    assert {path.name for path in (workdir / "checkpoints" / "epochs").iterdir()} == {"1", "2"}


def test_a_digest_is_what_it_says_and_changes_with_every_bit():
    """Σ (2i + 1)·bits mod 2³² in Python's integers, for each type of a state; each bit of small arrays flipped."""
    rng = np.random.default_rng(0)
    floats = rng.normal(size=(3, 2, 2)).astype(np.float32)
    whole_numbers = (np.arange(-3, 4, dtype=np.int32), floats > 0, np.uint32(7))
    for array in map(np.asarray, (floats, floats.astype(jnp.bfloat16), floats[0, 0, :0], *whole_numbers)):
        bits = np.frombuffer(array.tobytes(), f"u{array.dtype.itemsize}").tolist()
        (found,) = digests([jnp.asarray(array)]).values()
        assert found == sum((2 * i + 1) * value for i, value in enumerate(bits)) % 2**32
    data = bytearray(floats.tobytes())
    seen = set(digests([jnp.asarray(floats)]).values())
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        changed = jnp.asarray(np.frombuffer(bytes(data), np.float32).reshape(floats.shape))
        assert not seen & set(digests([changed]).values())
        data[bit // 8] ^= 1 << bit % 8


def test_a_digest_is_the_same_on_every_mesh(monkeypatch):
    monkeypatch.setattr(parallel, "SPLIT_ABOVE", 8)
    tree = {"kernel": np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32), "step": np.int32(3)}
    found = []
    for fsdp, devices in ((1, 1), (4, 8)):
        mesh = parallel.make_mesh(fsdp, devices)
        found.append(digests(parallel.place(tree, parallel.state_sharding(tree, mesh))))
    assert found[0] == found[1] and list(found[0]) == ["['kernel']", "['step']"]


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def test_no_flipped_bit_is_taken_for_what_was_saved(tmp_path):
    """In the largest file, where the arrays are, of a checkpoint and of frozen weights."""
    rng = np.random.default_rng(0)
    tree = {"kernel": jnp.asarray(rng.normal(size=(64, 64)).astype(np.float32)), "rows": jnp.arange(1000)}
    place = parallel.state_sharding(tree, parallel.make_mesh(1, 1))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree, {"epoch": 1})
    checkpoints.save_frozen("stage", tree)
    checkpoints.wait()
    for folder, again in (
        ("epochs/1/state", lambda: checkpoints.restore(1, tree, place)),
        ("frozen/stage", lambda: checkpoints.restore_frozen("stage", tree, place)),
    ):
        files = [path for path in (checkpoints.directory / folder).rglob("*") if path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size)
        refused = 0
        for bit in rng.integers(0, 8 * largest.stat().st_size, 8).tolist():
            flip(largest, bit)
            try:
                np.testing.assert_array_equal(again()["kernel"], tree["kernel"])  # a bit that holds nothing
            except DamagedCheckpoint:
                refused += 1
            flip(largest, bit)
        assert refused >= 6
        np.testing.assert_array_equal(again()["kernel"], tree["kernel"])
    checkpoints.close()


def test_damaged_frozen_weights_are_made_again(whole, tmp_path, data_dir):
    workdir = copy(whole, tmp_path)
    frozen = workdir / "checkpoints" / "frozen" / "hitpro"
    shutil.rmtree(frozen / "d", ignore_errors=True)
    for file in (path for path in frozen.rglob("*") if path.is_file()):
        os.truncate(file, file.stat().st_size // 2)
    shutil.rmtree(workdir / "checkpoints" / "epochs" / "2")
    done = run(workdir, data_dir)
    assert done.returncode == 0, done.stderr
    aside = workdir / "checkpoints" / "damaged" / "frozen-hitpro"
    assert "made again from what the stage began with" in done.stderr
    says(done.stderr, aside)
    assert aside.is_dir()
    says(done.stdout, 1)
    assert not unequal(written(whole), written(workdir))
    first, second = (tree_of(at / "checkpoints" / "frozen" / "hitpro") for at in (whole, workdir))
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def tree_of(path):
    with ocp.StandardCheckpointer() as checkpointer:
        leaves, _ = jax.tree_util.tree_flatten_with_path(checkpointer.restore(path))
    return {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves}


def test_frozen_weights_of_a_later_stage_need_the_stage_before(tmp_path, data_dir, tiny, monkeypatch):
    """CLIP-ReID's second stage does not train the words that its first one learned."""
    family.small_towers(monkeypatch)
    options = {
        "dataset.config": "tiny",
        "mesh.devices": 1,
        "extraction_batch_size": 16,
        "stage1.epochs": 2,
    }
    model = start_run(family.make_config("clip_reid", **options), tmp_path, data_dir)
    prompts, main = model.method.stages()
    checkpoints = Checkpoints(tmp_path)
    state, frozen = enter_stage(model, prompts, None, None)
    state = state.replace(params=jax.tree.map(lambda x: x + 1, state.params))  # as if trained
    checkpoints.save_frozen(prompts.name, frozen)
    checkpoints.save(2, state, {"stage": 0, "epoch": 2, "step": 8})
    state, frozen = enter_stage(model, main, state, frozen)
    checkpoints.save_frozen(main.name, frozen)
    checkpoints.save(3, state, {"stage": 1, "epoch": 1, "step": 9})
    checkpoints.wait()
    for stage in (prompts, main):
        shutil.rmtree(checkpoints.frozen_path(stage.name))
    with pytest.warns(UserWarning, match="made again"):
        _, again, _ = restore(model, checkpoints, 3)
    assert jax.tree.structure(again) == jax.tree.structure(frozen)
    jax.tree.map(np.testing.assert_array_equal, again, frozen)
    assert not checkpoints.frozen_path(main.name).exists()  # who only reads, writes nothing

    shutil.rmtree(checkpoints.path(2))
    with refuses(ValueError, "'prompts'", "checkpoint"):
        restore(model, checkpoints, 3)
    other = model.method.stages()[0]
    with refuses(ValueError, "frozen weights", other.name):
        model.config.seed = 2  # random weights of another seed: as if those of the file had changed
        restoring._frozen_again(model, checkpoints, 0, DamagedCheckpoint(f"frozen weights of {other.name}"))
    checkpoints.close()


def test_torn_frozen_weights_are_never_taken_for_whole(tmp_path):
    """A write that was broken off leaves another name; the next one writes all of it."""
    checkpoints = Checkpoints(tmp_path)
    torn = checkpoints.directory / "frozen" / "stage.orbax-checkpoint-tmp"
    torn.mkdir(parents=True)
    (torn / "half").write_text("")
    tree = {"kernel": jnp.arange(12.0).reshape(3, 4)}
    place = parallel.state_sharding(tree, parallel.make_mesh(1, 1))
    with refuses(DamagedCheckpoint, "frozen weights", "stage"):
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
