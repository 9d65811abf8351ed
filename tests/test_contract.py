"""What every method keeps to, by its default config on the smallest world: of each config of configs/, and of one that
uses all extras. A run has one short epoch in each stage.

By default: shapes and structure, every step compiled once, padding without influence, extras that are needed or not.
Under --extended: a batch is learned by heart, eight devices compute what one does, a killed run goes on as if nothing
had been.
"""

import contextlib
import dataclasses
import functools
import importlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refuses
from test_training import assert_equal, run_training

from jaxreid.config import flatten
from jaxreid.data.sidecars import sidecar_kinds
from jaxreid.devices import parallel
from jaxreid.errors import UserError
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.methods.method import find_method
from jaxreid.run.model import abstract_batch, start_run
from jaxreid.training.checkpoints import Checkpoints
from jaxreid.training.loop import EpochLoop
from jaxreid.training.start import abstract_train_state
from jaxreid.training.steps import progress_at, total_names, variables_of

NAMES = [*sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.py")), "uses_extras"]
CONFIG = {"uses_extras": "baseline"}
# What so small a world asks for, of the keys that a config has.
SMALL = {
    "dataset.config": "tiny",
    "mesh.devices": 1,
    "extraction_batch_size": 8,
    "evaluate_start": False,
    "log_every": 1,
    "batch.num_identities": 4,
    "batch.num_instances": 2,
    "batch.num_pairs": 1,
    "batch.num_prototypes": 4,
    "batch.num_clusters": 4,
    "batch.batch_size": 8,
    "prototypes.pad_to_multiple_of": 8,
    "stage1.batch_size": 8,
    "pretrain.clips": 8,
    "sr.fewest_frames": 1,
}
# LSMRL's tower moves patches between all frames of a clip: its clips are full, which its config is checked for.
ALWAYS_FULL = {"lsmrl", "keyre_id"}
SLOW = {"dinogrl"}
each = pytest.mark.parametrize("name", NAMES)


def make_config(name, **changes):
    config = importlib.import_module(f"configs.{CONFIG.get(name, name)}").get_config()
    config.method = name if name in CONFIG else config.method
    has = dict(flatten(config.to_dict()))
    config.update_from_flattened_dict({key: value for key, value in SMALL.items() if key in has} | changes)
    return config


@contextlib.contextmanager
def short_stages(name, epochs=1):
    """Every stage of a method lasts so many epochs, and no longer for the length that its config gives in steps."""
    method = find_method(make_config(name).method)
    whole = method.stages

    def stages(self):
        return tuple(dataclasses.replace(stage, epochs=epochs, steps=0) for stage in whole(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "stages", stages)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir, tiny):
    """name → a run that was trained and scored, with the loop of its last stage; once of each."""

    @functools.cache
    def of(name):
        loops, begin = [], EpochLoop.__init__

        def remembered(self, *arguments):
            begin(self, *arguments)
            loops.append(self)

        with short_stages(name), pytest.MonkeyPatch.context() as patch:
            patch.setattr(EpochLoop, "__init__", remembered)
            patch.setattr(Checkpoints, "save", lambda *_: None)  # nobody goes on from here
            run, state, frozen = run_training(make_config(name), tmp_path_factory.mktemp(name), data_dir)
            found = Evaluator(run).final(variables_of(state, frozen), state.memory, len(run.method.stages()))
        return SimpleNamespace(run=run, state=state, frozen=frozen, loop=loops[-1], stage=loops[-1].stage, found=found)

    return of


def garbage(leaf, rows, rng):
    """An array whose `rows` hold other numbers."""
    noise = rng.integers(0, 2, leaf.shape) if leaf.dtype == bool else 200 * rng.random(leaf.shape)
    mixed = np.asarray(leaf).copy()
    mixed[rows] = noise.astype(leaf.dtype)[rows]
    return mixed


def padded(batch, filled, frames=True):
    """A batch on the host whose last two rows are padding, and with `frames` of every clip the last frame where there
    are several; `filled`: whether something stands there."""
    rng, rows = np.random.default_rng(0), slice(-2, None)
    mask, valid = batch.frame_mask.copy(), batch.valid.copy()
    if short := frames and mask.shape[1] > 1:
        mask[:, -1] = False
    valid[rows] = False
    batch = batch.replace(frame_mask=mask, valid=valid)
    if not filled:
        return batch
    pixels = garbage(batch.frames, rows, rng)
    pixels = garbage(pixels, (slice(None), -1), rng) if short else pixels
    numbers = {name: getattr(batch, name).copy() for name in ("camera", "camera_index", "modality", "identity", "pair")}
    for column in numbers.values():
        column[rows] = 1
    extras = {name: garbage(x, rows, rng) for name, x in batch.extras.items()}
    return batch.replace(frames=pixels, extras=extras, **numbers)


def same_bits(one, other):
    for (path, a), (_, b) in zip(*map(jax.tree_util.tree_leaves_with_path, jax.device_get((one, other))), strict=True):
        assert np.isfinite(a).all(), path
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@each
def test_shapes_and_steps_that_compile_once(name, trained):
    made = trained(name)
    run, state, last = made.run, made.state, made.stage
    assert {step: compiled.count for step, compiled in run.compiled.items()} == dict.fromkeys(run.compiled, 1)
    assert "embed_step" in run.compiled and f"{last.name}/train_step" in run.compiled
    begun = abstract_train_state(run, last)
    assert jax.tree.structure((state, made.frozen)) == jax.tree.structure(begun)
    for a, b in zip(jax.tree.leaves((state, made.frozen)), jax.tree.leaves(begun), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert all(np.isfinite(leaf).all() for leaf in jax.device_get(jax.tree.leaves((state.params, state.batch_stats))))
    for split in run.dataset.test_splits:
        for rows in jax.tree.leaves(made.found.features[split.name]):
            assert len(rows) == len(split) and rows.dtype == np.float32
            if run.method.evaluation().normalize:
                np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-5)
    assert made.found.results["scores"]


# What compiles for a minute and more is left to --extended.
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.extended] * (n in SLOW)) for n in NAMES])
def test_padding_never_changes_a_result(name, trained):
    """Bit for bit, by the compiled steps of the run: what stands in rows and frames that do not count."""
    made = trained(name)
    run, loop = made.run, made.loop
    batch = jax.device_get(next(iter(loop.loader(made.state, 0)[0])))
    progress = progress_at(made.stage, 0, 1, 2)

    def step(filled):
        rows = parallel.to_global(padded(batch, filled, name not in ALWAYS_FULL), run.mesh)
        return loop.train_step(jax.tree.map(jnp.copy, made.state), made.frozen, rows, progress, loop.cache)

    same_bits(step(False), step(True))

    like = abstract_batch(run, run.config.extraction_batch_size, run.method.evaluation().seq_len, "test")
    rng = np.random.default_rng(1)
    batch = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), like)
    batch = batch.replace(frames=rng.integers(0, 256, like.frames.shape, np.uint8))

    def embed(filled):
        rows = parallel.to_global(padded(batch, filled, name not in ALWAYS_FULL), run.mesh)
        variables = variables_of(made.state, made.frozen)
        found = run.compiled["embed_step"](variables, made.state.memory, rows).arrays
        return jax.tree.map(lambda x: x[:-2], found)

    same_bits(embed(False), embed(True))


@each
def test_sidecars_are_asked_for_where_they_are_needed(name, tmp_path, data_dir, tiny):
    """Every kind that a method reads is named where it is not there; what it does not read may be gone."""
    own = tmp_path / "data"
    bare = own / tiny.relative_to(data_dir)
    shutil.copytree(tiny, bare, ignore=shutil.ignore_patterns("sidecars"))
    config = make_config(name)
    method = find_method(config.method)
    run = start_run(config, tmp_path / "run", data_dir)
    needed = run.sidecars(train=True).keys()
    assert needed <= set(sidecar_kinds(tiny))
    assert ("captions" in needed) == method.uses_captions
    if not needed:
        assert not start_run(config, tmp_path / "run", own).sidecars(train=True)
    for kind in needed:
        shutil.copytree(tiny / "sidecars", bare / "sidecars", ignore=shutil.ignore_patterns(kind))
        with refuses(UserError, kind):
            start_run(config, tmp_path / "run", own).sidecars(train=True)
        shutil.rmtree(bare / "sidecars")


# ------------------------------------------------------------------------------------------------------- extended


@pytest.mark.extended
@each
def test_a_batch_is_learned_by_heart(name, trained):
    made = trained(name)
    loop, state = made.loop, jax.tree.map(jnp.copy, made.state)
    batch = next(iter(loop.loader(state, 0)[0]))
    losses, memory = [], state.memory
    for _ in range(60):
        # The same augmentation and the same memory in every step, so that the loss is one function of the parameters.
        state = state.replace(step=jnp.int32(0), memory=jax.tree.map(jnp.copy, memory))
        state, metrics = loop.train_step(state, made.frozen, batch, progress_at(made.stage, 0, 1, 2), loop.cache)
        losses.append(sum(float(metrics[total]) for total in total_names(made.stage)))
    assert min(losses[-5:]) < losses[0] - 0.1 * abs(losses[0])


@pytest.mark.extended
@each
def test_eight_devices_compute_what_one_does(name, trained, tmp_path, data_dir):
    made = trained(name)
    with short_stages(name):
        config = make_config(name, **{"mesh.devices": 8})
        _, state, _ = run_training(config, tmp_path, data_dir)
    one, many = (jax.device_get((each.batch_stats, each.memory)) for each in (made.state, state))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-2), one, many)


@pytest.mark.extended
@each
def test_a_killed_run_goes_on_as_if_nothing_had_been(name, tmp_path, data_dir, tiny):
    with short_stages(name, epochs=2):
        _, whole, _ = run_training(make_config(name), tmp_path / "whole", data_dir)
        run_training(make_config(name), tmp_path / "killed", data_dir, stop_after=1)
        _, resumed, _ = run_training(make_config(name), tmp_path / "killed", data_dir)
    assert_equal(whole, resumed)
