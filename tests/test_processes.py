"""One run by several processes: the results of one process, and what happens when one of them dies."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from messages import refuses, says

from benchmarks.kill_resume import LINE, kill, kill_when, written
from jaxreid.devices import processes

ROOT = Path(__file__).parent.parent
# Four addends may be summed in another order than on one process: see test_mesh.py about Adam's ε.
CALM = "--config.optimizer.eps=0.01"
HEARTBEAT = 10


def free_port():
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        return opened.getsockname()[1]


def start(count, workdir, data_dir, devices):
    """`count` processes with `devices` devices each, as a user starts them; their output goes beside the workdir."""
    coordinator = ["--coordinator", f"localhost:{free_port()}", "--num_processes", str(count)] if count > 1 else []
    processes = []
    for index in range(count):
        line = [
            sys.executable,
            "-c",
            "from finished import command_line; command_line()",
            *LINE,
            CALM,
            f"--workdir={workdir}",
            f"--data_dir={data_dir}",
            *coordinator,
        ]
        line += ["--config.backbone.name=small", "--config.backbone.checkpoint="]
        line += ["--process_id", str(index), f"--heartbeat_timeout={HEARTBEAT}"] if count > 1 else []
        with (workdir.parent / f"{workdir.name}.{index}").open("w") as output:
            environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
            environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
            processes.append(
                subprocess.Popen(
                    line, cwd=ROOT, stdout=output, stderr=output, text=True, env=environment, start_new_session=True
                )
            )
    return processes


def finish(processes, workdir):
    codes = [process.wait(timeout=500) for process in processes]
    output = [(workdir.parent / f"{workdir.name}.{index}").read_text() for index in range(len(processes))]
    assert not any(codes), output
    return output


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.extended)])
def test_processes_give_the_results_of_one(count, tmp_path, data_dir, tiny):
    """One of the processes dies in the second epoch, the others end, and the same lines again finish the run."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    finish(start(1, alone, data_dir, devices=count), alone)

    first, *others, last = start(count, together, data_dir, devices=1)
    checkpoint = together / "checkpoints" / "epochs" / "1"
    assert kill_when(last, checkpoint.exists), (tmp_path / "together.0").read_text()
    died = time.monotonic()
    try:
        codes = [process.wait(timeout=6 * HEARTBEAT) for process in (first, *others)]
    finally:
        for process in (first, *others):
            kill(process)
    assert all(codes), "a process took the death of another for a good end"
    assert time.monotonic() - died < 6 * HEARTBEAT
    assert not (together / "results.json").exists()

    output = finish(start(count, together, data_dir, devices=1), together)
    says(output[0], "epoch 1")
    assert all("mAP" not in text for text in output[1:])  # process 0 speaks for all
    expected, found = written(alone), written(together)
    if count == 2:  # a + b = b + a
        for name in expected["state"]:
            np.testing.assert_array_equal(expected["state"][name], found["state"][name], err_msg=name)
        assert expected["metrics.jsonl"] == found["metrics.jsonl"]
    for name, value in expected["state"].items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, found["state"][name], atol=1e-5, err_msg=name)
    for a, b in zip(expected["results.json"]["scores"], found["results.json"]["scores"], strict=True):
        assert a["mAP"] == pytest.approx(b["mAP"], abs=1e-3) and a["direction"] == b["direction"]


@pytest.mark.parametrize(("count", "index"), [(None, None), (2, None), (2, 2), (2, -1)])
def test_processes_that_do_not_know_their_number_are_told(count, index):
    with refuses(ValueError, "--num_processes", "--process_id", count, index):
        processes.start("localhost:1", count, index, HEARTBEAT)
