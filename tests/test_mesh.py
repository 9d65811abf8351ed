"""Eight devices in every arrangement: the numbers of one, parameters gathered one at a time, and nothing else."""

import functools
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from messages import refuses, says
from test_training import SMALL, make_config, run_training

from jaxreid.backbones import clip
from jaxreid.devices import parallel
from jaxreid.run.model import abstract_batch, start_run
from jaxreid.run.workdirs import claim_workdir
from jaxreid.training import loop as train
from jaxreid.training.metric_writer import read_metrics
from jaxreid.training.restore import restore_judged
from jaxreid.training.start import abstract_train_state, enter_stage

# An optimizer that rounding does not reach: sums over eight devices round otherwise than on one, and Adam turns a
# gradient that is rounding noise into full steps (of a bias in front of a batch norm, for instance). A large ε leaves
# such parameters where they are.
EVERY = {"log_every": 1, "evaluate_start": False, "optimizer.eps": 1e-2}
METHODS = {
    "hitpro": {"epochs": 7, "batch.num_prototypes": 8, **EVERY},
    "baseline": {"epochs": 10, **EVERY},
}


@pytest.fixture(scope="module", autouse=True)
def small_arrays():
    """A small tower, whose arrays are split nevertheless."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(clip.VISION_TOWERS, "small", SMALL)
        patch.setattr("jaxreid.devices.parallel.SPLIT_ABOVE", 512)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir, tiny):
    """trained(method, devices, fsdp): a whole training; what it started from, where it ended, its rows of metrics."""

    @functools.cache
    def train_once(method, devices, fsdp):
        config = make_config(method, **METHODS[method], **{"mesh.devices": devices, "mesh.fsdp": fsdp})
        run, state, _ = run_training(config, tmp_path_factory.mktemp(f"{method}-{devices}-{fsdp}"), data_dir)
        start, _ = enter_stage(run, run.method.stages()[0], None, None)
        losses = [row for row in read_metrics(run.workdir) if row["kind"] == "train"]
        return SimpleNamespace(start=jax.device_get(start.params), state=state, losses=losses, run=run)

    return train_once


def more(method, fsdp):
    """A case that only an extended run of the tests looks at."""
    return pytest.param(method, fsdp, marks=pytest.mark.extended)


@pytest.mark.parametrize(
    ("method", "fsdp"),
    [("hitpro", 4), more("baseline", 4), *(more(method, fsdp) for fsdp in (1, 8) for method in METHODS)],
)
def test_devices_do_not_change_the_result(method, fsdp, trained):
    one = trained(method, 1, 1)
    many = trained(method, 8, fsdp)
    assert len(one.losses) >= 20
    for row, other in zip(one.losses, many.losses, strict=True):
        assert row["step"] == other["step"] and row["loss"] == pytest.approx(other["loss"], rel=1e-5)
    specs = {leaf.sharding.spec for leaf in jax.tree.leaves(many.state.params)}
    assert any("fsdp" in str(spec) for spec in specs) == (fsdp > 1)
    for (path, first), a, b in zip(
        jax.tree_util.tree_leaves_with_path(one.start),
        jax.device_get(jax.tree.leaves(one.state.params)),
        jax.device_get(jax.tree.leaves(many.state.params)),
        strict=True,
    ):
        name = jax.tree_util.keystr(path)
        # A few roundings of values up to 2; a kernel of the tower moves a hundred times as far.
        np.testing.assert_allclose(a, b, atol=3e-6, err_msg=name)
        assert "block" not in name or "kernel" not in name or np.abs(a - first).max() > 3e-4
    for a, b in zip(*(jax.device_get(jax.tree.leaves(s.state.memory)) for s in (one, many)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (8, 1), (4, 2)])
def test_a_checkpoint_restores_onto_another_mesh(devices, fsdp, trained, data_dir, capsys):
    written = trained("hitpro", 8, 4)
    workdir = written.run.workdir
    config = make_config("hitpro", **METHODS["hitpro"], **{"mesh.devices": devices, "mesh.fsdp": fsdp})
    claim_workdir(workdir, config.to_dict())
    says(capsys.readouterr().out, "mesh.fsdp", f"4 → {fsdp}")
    state, _, epoch, done = restore_judged(start_run(config, workdir, data_dir))
    assert epoch == done == METHODS["hitpro"]["epochs"]
    for before, after in zip(jax.tree.leaves(written.state), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(jax.device_get(before), jax.device_get(after))
    split = [leaf for leaf in jax.tree.leaves((state.params, state.opt_state)) if not leaf.sharding.is_fully_replicated]
    assert all(leaf.sharding.num_devices == devices for leaf in jax.tree.leaves(state.params))
    assert bool(split) == (fsdp > 1)
    for leaf in split:
        assert leaf.addressable_shards[0].data.size * fsdp == leaf.size


def gathered(text):
    """(shape, name of the operation it serves) of every all-gather in a compiled program."""
    for line in text.splitlines():
        if found := re.search(r" = (.*?) all-gather(?:-start)?\(", line):
            name = re.search(r'op_name="([^"]*)"', line)
            for shape in re.findall(r"\w+\[([\d,]*)\]", found[1]):
                yield tuple(int(n) for n in shape.split(",") if n), name[1] if name else ""


@pytest.mark.parametrize(
    ("method", "fsdp"), [("hitpro", 8), more("hitpro", 4), more("baseline", 8), more("baseline", 4)]
)
def test_a_step_gathers_one_parameter_at_a_time(method, fsdp, tmp_path, data_dir, tiny):
    config = make_config(method, **{"mesh.devices": 8, "mesh.fsdp": fsdp})
    if method == "hitpro":  # a scope in which no slot is compared with every other
        config.levels.scope, config.prototypes.pad_to_multiple_of, config.batch.num_prototypes = "camera", 1024, 12
    run = start_run(config, tmp_path, data_dir)
    stage = run.method.stages()[0]
    trees = abstract_train_state(run, stage)
    state, frozen = (parallel.with_shardings(tree, parallel.state_sharding(tree, run.mesh)) for tree in trees)
    batch = abstract_batch(run, stage.sampler.batch_size(run.method.info.columns), stage.seq_len, "train")
    step = train.EpochLoop(run, stage, 0, state).train_step
    text = step.compile(state, frozen, batch, train.progress_at(stage, 0, 0, 1)).as_text()

    split = {leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.sharding.spec}
    found = list(gathered(text))
    matrices = [shape for shape, _ in found if tuple(sorted(shape)) in {tuple(sorted(s[-2:])) for s in split}]
    assert len(matrices) >= 8, found  # the four attention kernels of two blocks do travel
    largest = max(leaf.size for leaf in jax.tree.leaves(state.params))
    block = sum(leaf.size for path, leaf in parallel.flatten_paths(state.params) if "block_00" in path)
    banks = {leaf.shape for leaf in jax.tree.leaves(state.memory) if leaf.ndim > 1 and leaf.sharding.spec}
    assert banks or method != "hitpro"
    for shape, name in found:
        assert np.prod(shape) <= max(block, largest), (shape, name)
        assert sorted(shape) not in [sorted(bank) for bank in banks], (shape, name)
        assert shape[-3:] != batch.frames.shape[-3:], (shape, name)
        # Moments have the shapes of parameters: whole ones would be used by the optimizer, outside of the loss.
        assert "jvp" in name or len(shape) == 1, (shape, name)


def test_sizes_that_fit_are_named():
    with refuses(ValueError, "mesh.fsdp", 3, "[1, 2, 4, 8]"):
        parallel.make_mesh(3)
    with refuses(ValueError, "mesh.devices", 9, 8):
        parallel.make_mesh(1, 9)
    assert dict(parallel.make_mesh(4).shape) == {"data": 2, "fsdp": 4}
