"""Workdirs: their names, whose run they hold, who works in one, and what is said of damaged files."""

import importlib
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from finished import CONFIG
from messages import refuses, says
from tensorboardX.proto.event_pb2 import Event
from test_main import SMALL, jaxreid

from jaxreid.config import EXECUTION, among
from jaxreid.data import build
from jaxreid.dataset_info import INFO, read_info
from jaxreid.errors import DataSetError, UserError, writing
from jaxreid.run.environment import read_training
from jaxreid.run.model import start_run
from jaxreid.run.workdirs import (
    alone,
    claim_dataset,
    claim_workdir,
    default_workdir,
    differences,
    read_config,
    read_results,
    require_run,
)
from jaxreid.training.checkpoints import tell_failures_once
from jaxreid.training.metric_writer import MetricWriter, read_metrics

ROOT = Path(__file__).parent.parent


def config(name="hitpro", preset="", **changes):
    found = importlib.import_module(f"configs.{name}").get_config(preset)
    found.update_from_flattened_dict(changes)
    return found


def named(name="hitpro", preset="", **changes):
    return default_workdir(config(name, preset, **changes), config(name, preset)).as_posix()


# ------------------------------------------------------------------------------------------------------------- names


def test_names_of_workdirs():
    assert named() == "runs/hitpro-walkers-seed1"
    assert named(seed=2) == "runs/hitpro-walkers-seed2"
    assert named(preset="hitsz_vcm") == "runs/hitpro-hitsz_vcm-seed1"
    assert named(**{"dataset.config": "tiny"}) == "runs/hitpro-walkers-walkers_tiny-seed1"
    assert named(**{"dataset.name": "mars", "dataset.config": ""}) == "runs/hitpro-walkers-mars-seed1"
    # Three configs of one method have a folder each.
    assert len({named(name) for name in ("clip_reid", "vsla_clip", "tf_clip")}) == 3
    changed = named(epochs=3)
    assert re.fullmatch("runs/hitpro-walkers-[0-9a-f]{8}-seed1", changed)
    assert changed != named(epochs=4) and changed == named(epochs=3)
    assert named(epochs=config().epochs) == named()  # said, but not changed
    for key, value in {"mesh.fsdp": 2, "loading.threads": 7, "backbone.remat": True, "dataset.path": "/data"}.items():
        assert named(**{key: value}) == named(), key


def lines_of_documentation():
    """(preset's config, changed config, explicit workdir) of every line of README and docs that trains."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for found in re.findall(
        r"jaxreid(?:\.main| train| dry-run| evaluate) (--config=[^\n`#]*)",
        "\n".join(page.read_text() for page in pages),
    ):
        words = found.replace("[switch]", "").replace("=N", "=2").split()
        name, _, preset = words[0].removeprefix("--config=").partition(":")
        name, workdir, changes = Path(name).stem, None, {}
        if name == "my_prototypes":  # written on the page itself; tests/test_methods_page.py runs it
            continue
        for word in words[1:]:
            key, _, value = word.partition("=")
            if key.startswith("--config."):
                changes[key.removeprefix("--config.")] = int(value) if value.isdigit() else value
            elif key == "--workdir":
                workdir = value
        yield config(name, preset), config(name, preset, **changes), workdir


def test_every_line_of_the_documentation_works_after_every_other():
    """Two lines that name the same folder are the same run, or data elsewhere, which opening looks at."""
    runs = {}
    for usual, changed, workdir in lines_of_documentation():
        runs.setdefault(workdir or str(default_workdir(changed, usual)), []).append(changed.to_dict())
    assert len(runs) >= 8
    for same in runs.values():
        for other in same[1:]:
            apart = [line.partition(":")[0] for line in differences(same[0], other)]
            assert all(among(key, EXECUTION) for key in apart), apart


# -------------------------------------------------------------------------------------------------------- whose run


def test_a_workdir_without_a_checkpoint_is_taken_over(tmp_path, capsys):
    work = tmp_path / "run"
    claim_workdir(work, config().to_dict())
    (work / "start.json").write_text("[]")
    (work / "metrics.jsonl").write_text("{}\n")
    claim_workdir(work, config(epochs=3).to_dict())
    says(capsys.readouterr().out, work, "epochs", "3")
    assert read_config(work)["epochs"] == 3
    assert [path.name for path in work.iterdir()] == ["config.json"]


@pytest.mark.parametrize("kept", ["checkpoints/epochs/2", "checkpoints/damaged/2", "results.json"])
def test_a_run_that_came_to_something_is_not(tmp_path, kept):
    claim_workdir(tmp_path, config(epochs=6).to_dict())
    (tmp_path / kept).mkdir(parents=True)
    with refuses(UserError, tmp_path, "epochs", "6 → 3", "--workdir"):
        claim_workdir(tmp_path, config(epochs=3).to_dict())
    assert read_config(tmp_path)["epochs"] == 6


def test_data_that_were_moved_are_the_same_run(tmp_path, capsys):
    before, after = (config(preset="folder", **{"dataset.path": path}) for path in ("/a/people", "~/people"))
    claim_workdir(tmp_path, before.to_dict())
    (tmp_path / "results.json").write_text("{}")
    claim_workdir(tmp_path, after.to_dict())
    says(capsys.readouterr().out, "dataset.path", "/a/people → ~/people")
    assert read_config(tmp_path)["dataset"]["path"] == "~/people"


def test_other_data_under_the_same_path_are_another_run(tmp_path, workdir, data_dir, tiny):
    copy = shutil.copytree(workdir, tmp_path / "run")
    run = start_run(config("baseline", **CONFIG | {"backbone.name": "walkers_vit_tiny"}), copy, data_dir)
    claim_dataset(run.workdir, run.dataset, run.method.info)  # the same
    changed = json.loads((copy / "dataset.json").read_text())
    changed["contents"]["train"] = "0" * 16
    (copy / "dataset.json").write_text(json.dumps(changed))
    with refuses(UserError, copy, "contents.train", "--workdir"):
        claim_dataset(run.workdir, run.dataset, run.method.info)
    shutil.rmtree(copy / "checkpoints")  # nothing was trained on them: begun anew
    claim_dataset(run.workdir, run.dataset, run.method.info)
    assert json.loads((copy / "dataset.json").read_text()) == run.dataset.fingerprint()


def test_two_runs_in_one_workdir(tmp_path):
    work = tmp_path / "run"
    with alone(work), refuses(UserError, "process", work, "--workdir"), alone(work):
        pass
    with alone(tmp_path / "run"):
        pass


def test_evaluating_what_is_no_run_makes_nothing(tmp_path, data_dir, tiny, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    line = ("--config=hitpro", *SMALL, f"--data_dir={data_dir}", "--mode=evaluate", "--workdir=~/nothing")
    found = jaxreid(*line, cwd=tmp_path)
    assert found.returncode == 2 and "Traceback" not in found.stderr
    says(found.stderr, tmp_path / "nothing", "train")
    assert not (tmp_path / "nothing").exists() and not (tmp_path / "~").exists()
    with refuses(UserError, tmp_path / "other", "checkpoint"):
        require_run(tmp_path / "other")


def test_a_dry_run_draws_what_it_needs_elsewhere(tmp_path, capsys):
    run = start_run(config(**{"dataset.config": "tiny"}), tmp_path / "run", tmp_path / "data", dry=True)
    assert len(run.dataset.train) > 0
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ damaged files


@pytest.mark.parametrize("content", ["", '{"method": '])
@pytest.mark.parametrize(
    ("name", "read"), [("config.json", read_config), ("results.json", read_results), ("training.json", read_training)]
)
def test_damaged_files_of_a_run_are_named(tmp_path, name, read, content):
    (tmp_path / name).write_text(content)
    with refuses(UserError, tmp_path / name, "delete"):
        read(tmp_path)


def test_a_damaged_description_of_the_data_is_named(tmp_path):
    (tmp_path / INFO).write_bytes(b"PK")
    with refuses(UserError, tmp_path / INFO, "delete"):
        read_info(tmp_path)


def test_a_damaged_line_of_metrics_is_named_but_for_one_that_was_cut_off(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"run_epoch": 0}\n{"run_e')
    assert read_metrics(tmp_path) == [{"run_epoch": 0}]
    (tmp_path / "metrics.jsonl").write_text('{"run_e\n{"run_epoch": 0}\n')
    with refuses(UserError, tmp_path / "metrics.jsonl", "line 1"):
        read_metrics(tmp_path)


def test_another_program_s_config_is_not_taken_for_one(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with refuses(UserError, tmp_path / "config.json"):
        read_config(tmp_path)


# ------------------------------------------------------------------------------------------------------- the machine


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Error writing local file: [OS error 28: ENOSPC] No space left on device"),
    ],
)
def test_a_full_disk_is_told_with_its_place(tmp_path, error):
    """As the system and as Orbax, which knows no type for it, tell it."""
    with refuses(UserError, tmp_path, "free"), writing(tmp_path):
        raise error
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("another fault")


def test_without_a_home_a_place_for_data_is_asked_for(monkeypatch):
    def expanduser(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JAXREID_DATA_DIR", raising=False)
    monkeypatch.setattr("pathlib.Path.expanduser", expanduser)
    with refuses(DataSetError, "--data_dir", "JAXREID_DATA_DIR"):
        build.build("walkers/tiny")


def test_ctrl_c_ends_a_run_with_one_line(tmp_path, data_dir, tiny):
    line = ("--config=hitpro", *SMALL, f"--data_dir={data_dir}", f"--workdir={tmp_path}/run")
    command = [sys.executable, "-m", "jaxreid.main", *line]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for printed in process.stdout:
        if printed.startswith("stage "):  # about to compile
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in errors
    says(errors, "interrupted", "same line")


# ------------------------------------------------------------------------------------------------------- TensorBoard


def events(folder):
    """The events of a TensorBoard folder, file by file in the order of their names."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:  # length u64, its checksum, an event, its checksum
            length = int.from_bytes(content[:8], "little")
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def shown(folder):
    """{(tag, step): value} as TensorBoard shows them: what was there before a START is forgotten."""
    found = {}
    for event in events(folder):
        if event.session_log.status == event.session_log.START:
            found = {key: value for key, value in found.items() if key[1] < event.step}
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_shows_every_window_once_after_a_resume(tmp_path):
    def write(writer, epochs):
        for epoch in epochs:
            for step in (5, 10):
                place = {"stage": "s", "epoch": epoch, "run_epoch": epoch, "step": 10 * epoch + step}
                writer.write("train", {"loss": epoch + step / 100}, **place)
        writer.close()

    write(MetricWriter(tmp_path), range(3))
    write(MetricWriter(tmp_path, resume_epoch=1), range(1, 4))  # epochs 1 and 2 again
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30, 35, 40]
    expected = {("train/loss", row["step"]): row["loss"] for row in rows}
    assert shown(tmp_path / "tensorboard") == pytest.approx(expected)


def test_a_save_that_failed_is_told_once(monkeypatch, caplog):
    """By what it raises: not by Orbax's threads and loops as well; whatever else goes wrong there is shown."""
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    tell_failures_once.__wrapped__()
    late = SimpleNamespace(exc_value=RuntimeError("Event loop is closed"))
    other = SimpleNamespace(exc_value=RuntimeError("another fault"))
    for found in (late, other):
        sys.unraisablehook(found)
    assert shown == [other]
    logging.getLogger("asyncio").error("Task exception was never retrieved")
    logging.getLogger("asyncio").error("slow callback")
    assert caplog.messages == ["slow callback"]
