"""What goes wrong on one process only: all of them end with the same sentence, or go on alike."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import one_of_two
import pytest
from test_processes import free_port

from jaxreid.data.dataset import open_dataset
from jaxreid.devices import parallel
from jaxreid.errors import USER_ERROR, UserError
from jaxreid.methods.method import Cached, Features
from jaxreid.training.cached import fill, rows_of

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data_dir, tiny):
    """Where two processes have written what they came to."""
    folder, port = tmp_path_factory.mktemp("two"), free_port()
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "3", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    started = []
    for index in range(2):
        line = [sys.executable, one_of_two.__file__, str(index), str(port), str(data_dir), str(folder)]
        with (folder / f"{index}.log").open("w") as log:
            started.append(subprocess.Popen(line, stdout=log, stderr=log, env=environment))
    try:
        codes = [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(codes), "\n".join((folder / f"{index}.log").read_text()[-3000:] for index in range(2))
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return [json.loads((folder / f"{index}.json").read_text()) for index in range(2)]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("frame", ["process ", "frame 0 of tracklet", "cannot be decoded"]),
        ("every", ["process 1 of 2", "checkpoints/epochs/2", "delete"]),
        ("data set", ["process 1 of 2", "nothing.txt"]),
        ("other data", ["process 1 of 2", "data set", "tracklets/"]),
        ("weights", ["process 1 of 2", "missing.safetensors"]),
        ("other weights", ["process 1 of 2", "pretrained weights", "params/"]),
        ("workdir", ["process 1 of 2", "workdir-1", "--workdir"]),
        ("config", ["process 1 of 2", "config/seed: 1 → 2"]),
        ("numbers", ["process 1 of 2", "newest/checkpoints: [2] → [1]"]),
        ("first", ["process 0 of 2", "/somewhere"]),
    ],
)
def test_all_processes_tell_what_went_wrong_on_one(case, words, found):
    first, second = (mine[case] for mine in found)
    assert first == second and first["error"] == ("DataSetError" if case == "data set" else "UserError")
    for word in words:
        assert word in first["message"]


def test_frozen_weights_damaged_for_one_process_are_damaged_for_all(found):
    first, second = (mine["frozen"] for mine in found)
    assert first == second and first["error"] == "DamagedCheckpoint"
    assert "process 1 of 2" in first["message"] and "frozen/stage" in first["message"]


def test_all_processes_go_back_to_the_checkpoint_that_all_can_read(found, folder):
    for mine in found:
        assert mine["newest"]["value"] == [1, [1]]
        assert "process 1 of 2" in mine["newest"]["warnings"][0]
    assert [path.name for path in (folder / "newest" / "checkpoints" / "damaged").iterdir()] == ["2"]


def test_a_dry_run_is_planned_by_all_processes_or_none(found):
    assert [mine["dry run"]["value"] for mine in found] == ["mars", "mars"]


def test_a_fault_of_the_program_ends_all_and_stays_one(found):
    first, second = (mine["fault"] for mine in found)
    assert first["error"] == "KeyError" and second["error"] == "RuntimeError"
    assert "process 0 of 2: KeyError" in second["message"]


def test_what_process_0_finds_counts_for_all(found):
    assert [mine["of main"]["value"] for mine in found] == [7, 7]


def test_devices_lie_process_by_process(found):
    for mine in found:
        assert mine["mesh"] == sorted(mine["mesh"]) and [process for process, _ in mine["mesh"]] == [0] * 3 + [1] * 3
        assert mine["local"] == 3  # of 3 × 2, which is no rectangle


def test_features_stay_with_their_tracklets_whatever_the_order_of_devices(folder, data_dir, tiny):
    """Devices of two processes by turns, and those of one in a drawn order, against one device."""
    split = open_dataset(one_of_two.config().dataset, data_dir).query
    expected = one_of_two.features(parallel.make_mesh(devices=1), split)
    assert len(np.unique(expected.round(4), axis=0)) == len(split)
    for index in range(2):
        np.testing.assert_allclose(np.load(folder / f"features.{index}.npy"), expected, atol=1e-5)
    order = np.random.default_rng(0).permutation(parallel.make_mesh(devices=6).devices.flatten())
    drawn = parallel.Mesh(order.reshape(3, 2), parallel.AXES)
    np.testing.assert_allclose(one_of_two.features(drawn, split), expected, atol=1e-5)
    rows = np.array([4, 0, 4, 2])  # in any order, and more than once
    np.testing.assert_allclose(one_of_two.features(drawn, split, rows=rows), expected[rows], atol=1e-5)


def test_features_are_kept_by_tracklet_and_part():
    rows = np.random.default_rng(0).permutation(8)  # two rows that fill the batch among them
    tracklet, part, valid = np.repeat([0, 1, 2, -1], 2)[rows], np.tile([0, 1], 4)[rows], (np.arange(8) < 6)[rows]
    features = Features({"projected": jnp.asarray(rows[:, None] + 1.0)}, *map(jnp.asarray, (tracklet, part, valid)))
    cached = Cached(lambda *arguments: {}, parts=2)
    cache = fill(features, *rows_of(cached, np.array([5, 9, 7])))
    np.testing.assert_array_equal(cache.arrays["projected"][:, 0], np.arange(6) + 1)


@pytest.mark.extended
@pytest.mark.parametrize("failing", [0, 1])
def test_the_command_line_ends_on_all_processes_with_the_same_sentence(failing, tmp_path, data_dir, tiny):
    (tmp_path / "nothing.txt").touch()
    started, port = [], free_port()
    for index in range(2):
        line = ["--config=baseline", "--config.dataset.config=tiny", "--mode=dry_run", f"--workdir={tmp_path / 'run'}"]
        line += [f"--data_dir={tmp_path / 'nothing.txt' if index == failing else data_dir}"]
        line += [f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={index}"]
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "jaxreid.main", *line]
        started.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment))
    for process in started:
        _, told = process.communicate(timeout=300)
        assert process.returncode == USER_ERROR
        assert f"error: process {failing} of 2:" in told and "nothing.txt" in told and "--data_dir" in told


def devices(*processes):
    """A device for each process number, numbered backwards."""
    return [SimpleNamespace(process_index=index, id=len(processes) - number) for number, index in enumerate(processes)]


def test_devices_are_sorted_and_taken_evenly():
    found = devices(1, 0, 1, 0, 0, 1)
    places = [(device.process_index, device.id) for device in parallel.by_process(found, 2)]
    assert places == [(0, 2), (0, 3), (0, 5), (1, 1), (1, 4), (1, 6)]
    places = [(device.process_index, device.id) for device in parallel.by_process(found, 2, 4)]
    assert places == [(0, 2), (0, 3), (1, 1), (1, 4)]
    with pytest.raises(UserError, match=r"mesh\.devices=3 .* 2 processes"):
        parallel.by_process(found, 2, 3)
    with pytest.raises(UserError, match="process 0 has 2, process 1 has 1"):
        parallel.by_process(devices(0, 0, 1), 2)
