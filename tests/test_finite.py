"""Losses, states and features that are not finite: named, never saved, never compared."""

import json
import os
import socket
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finished import CONFIG, SMALL

import jaxreid
from jaxreid.backbones import clip
from jaxreid.backbones.pretrained import load
from jaxreid.backbones.saving import save_params
from jaxreid.devices import parallel
from jaxreid.errors import UserError
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.evaluation.pooling import TrackletPool
from jaxreid.methods.baseline import Baseline
from jaxreid.methods.method import Features
from jaxreid.run.model import start_run
from jaxreid.run.workdirs import claim_workdir
from jaxreid.tools import embed
from jaxreid.training import loop as train
from jaxreid.training.checkpoints import Checkpoints
from jaxreid.training.finite import LAG, Watch, not_finite


def make_config(**changes):
    config = import_module("configs.baseline").get_config()
    config.update_from_flattened_dict(CONFIG | changes)
    return config


def run_baseline(workdir, data_dir, monkeypatch, added, **changes):
    """Trains it with `added(params, progress)` added to its loss."""
    monkeypatch.setitem(clip.VISION_TOWERS, "small", SMALL)
    whole = Baseline.loss

    def loss(self, variables, memory, batch, context):
        out = whole(self, variables, memory, batch, context)
        return out.replace(total=out.total + added(variables["params"], context.progress))

    monkeypatch.setattr(Baseline, "loss", loss)
    config = make_config(**changes)
    claim_workdir(workdir, config.to_dict())
    run = start_run(config, workdir, data_dir)
    train.train(run, Evaluator(run))


def checkpoints(workdir):
    found = Checkpoints(workdir)
    numbers = found.numbers()
    found.close()
    return numbers


@pytest.fixture
def watch():
    config = make_config(precision="bfloat16", **{"optimizer.lr": 2e30, "backbone.checkpoint": "b16.pt"})
    return Watch(config, Baseline.stages(SimpleNamespace(config=config, loss=None))[0])  # pyright: ignore


def test_a_loss_that_is_not_finite_is_named_with_what_to_try(watch):
    """Losses of a step are looked at `LAG` steps later, without another look at the last ones."""
    good, bad = {"loss": 1.0, "loss_identity": 1.0}, {"loss": np.nan, "loss_identity": 1.0, "loss_triplet": np.inf}
    watch.after_step(1, [good] * 10 + [bad] * LAG)
    with pytest.raises(UserError) as error:
        watch.after_step(1, [good] * 10 + [bad] * (LAG + 1))
    message = str(error.value)
    for words in (
        "epoch 2",
        "step 11 ",
        "loss is nan",
        "loss_triplet is inf",
        "precision=float32",
        "checkpoint=b16.pt",
    ):
        assert words in message
    assert "config.optimizer.lr=2e+30" in message and "min_lr" not in message
    assert "loss_identity" not in message and "weight_decay" not in message
    for count in range(1, LAG + 2):
        with pytest.raises(UserError, match=f"step {count} "):
            watch.after_epoch(0, [good] * (count - 1) + [bad], {})
    watch.after_epoch(0, [good] * 2, {})


def test_the_last_good_checkpoint_stays(tmp_path, data_dir, tiny, monkeypatch):
    """NaN from the second step of the second epoch on; the same line again goes on after the first epoch."""

    def broken(params, progress):
        return jnp.where(progress.epoch > 1, jnp.nan, 0.0)

    few = {"epochs": 3, "batch.num_identities": 2, "batch.num_instances": 2}
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=r"epoch 2 .*step 2 .*loss is nan") as error:
            run_baseline(tmp_path, data_dir, patch, broken, **few)
        assert "loss_identity" not in str(error.value)
        assert checkpoints(tmp_path) == [1]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses and np.isfinite(losses).all()


def test_a_state_that_overflows_under_a_finite_loss_is_not_saved(tmp_path, data_dir, tiny, monkeypatch):
    """√0 adds nothing to the loss, and its slope is infinite."""

    def added(params, progress):
        return jnp.sqrt(0.0 * params["classifier"]["kernel"][0, 0])

    one_step = {"batch.num_identities": 6, "batch.num_instances": 8}
    with pytest.raises(UserError, match=r"epoch 1 .*params/classifier/kernel") as error:
        run_baseline(tmp_path, data_dir, monkeypatch, added, **one_step)
    assert "optimizer" in str(error.value) and not checkpoints(tmp_path)


def test_arrays_that_are_not_finite_are_named_wherever_they_lie():
    mesh = parallel.make_mesh(2)
    split = np.zeros((2 * parallel.SPLIT_ABOVE, 2), np.float32)
    split[-1, 1] = -np.inf
    tree = {
        "a": {"large": split, "small": np.ones(3, np.float32)},
        "b": np.full(2, np.nan, jnp.bfloat16),
        "n": np.ones(2),
    }
    tree = jax.device_put(tree | {"count": np.arange(3)}, parallel.state_sharding(tree | {"count": np.arange(3)}, mesh))
    assert not tree["a"]["large"].sharding.is_fully_replicated
    assert not_finite(tree) == ["a/large", "b"]


def features(rows, tracklet):
    rows, tracklet = np.asarray(rows, np.float32), np.asarray(tracklet, np.int32)
    return Features({"feature": rows}, tracklet, np.zeros_like(tracklet), tracklet >= 0)  # pyright: ignore


def pool_tracklets(found, wanted, names, pool):
    whole = TrackletPool(wanted, names, pool)
    whole.add(found)
    return whole.finish()


def test_features_of_tracklets_are_refused_by_name():
    """A clip that is not finite breaks its tracklet whatever its others say; what fills a batch does not count."""
    good = pool_tracklets(
        features([[3, 0], [0, 2], [1, 1], [np.nan, 0]], [0, 1, 1, -1]), np.arange(2), ["a", "b"], "after"
    )
    assert np.isfinite(good["feature"]).all()
    for bad, words in (([np.nan, 0], "not finite"), ([np.inf, 1], "not finite"), ([0, 0], "zero")):
        for pool in ("before", "after"):
            rows, tracklet = (
                ([[3, 0], bad, [1, 1]], [0, 1, 2]) if words == "zero" else ([[3, 0], [0, 2], bad], [0, 1, 1])
            )
            with pytest.raises(UserError, match=rf"1 of .*{words}.*: b\b"):
                pool_tracklets(
                    features(rows, tracklet), np.arange(max(tracklet) + 1), ["a", "b", "c"][: max(tracklet) + 1], pool
                )


def test_a_broken_model_fills_no_gallery(workdir, tmp_path, data_dir, tiny, monkeypatch, capsys):
    embedder = jaxreid.load(workdir, batch_size=8)
    variables, memory = embedder._state
    embedder._state = jax.tree.map(lambda x: x * jnp.nan, variables), memory
    with pytest.raises(UserError, match="not finite"):
        embedder.embed(np.zeros((2, 8, 8, 3), np.uint8))
    monkeypatch.setattr(jaxreid, "load", lambda *_: embedder)
    gallery, data = tmp_path / "a.gallery", ["walkers/tiny", "--data_dir", str(data_dir)]
    assert embed.main([*data, "--checkpoint", str(workdir), "--gallery", str(gallery)]) == 2
    name = jaxreid.data.split.open_split(tiny, "gallery").labels.names[0]
    assert name in capsys.readouterr().err and not list(gallery.glob("*.npy"))


def test_features_that_training_starts_from(watch):
    """Clustering would call them noise, and a memory of them would only show in the next loss."""
    found = jax.tree.map(jnp.asarray, features([[1, 1], [np.inf, 0], [0, 0], [np.nan, 0]], [0, 2, 1, -1]))
    with pytest.raises(UserError, match=r"epoch 3.* 1 tracklets .*: c\b.*config.optimizer"):
        watch.after_extraction(2, found, ["a", "b", "c"])
    watch.after_extraction(2, found.replace(tracklet=jnp.full(4, -1), valid=jnp.zeros(4, bool)), ["a", "b", "c"])


def test_weights_that_are_not_finite_are_not_exported(tmp_path):
    config = clip.vision_config("walkers_vit_tiny")
    tower = load("walkers_vit_tiny", config)
    tower["norm_post"]["scale"][3] = np.nan
    with pytest.raises(UserError, match=r"a\.safetensors .*not finite.*post_layernorm"):
        save_params(tmp_path / "a.safetensors", (tower, config))
    assert not list(tmp_path.iterdir())


@pytest.mark.extended
def test_processes_end_alike(tmp_path, data_dir, tiny):
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        port = opened.getsockname()[1]
    changes = {
        "dataset.config": "tiny",
        "batch.num_identities": 2,
        "optimizer.lr": 1e30,
        "evaluate_start": False,
    }
    line = [sys.executable, "-m", "jaxreid.main", "--config=baseline", f"--workdir={tmp_path}/run"]
    line += [f"--data_dir={data_dir}", *(f"--config.{key}={value}" for key, value in changes.items())]
    line += [f"--coordinator=localhost:{port}", "--num_processes=2"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen([*line, f"--process_id={i}"], stderr=subprocess.PIPE, text=True, env=environment)
        for i in (0, 1)
    ]
    messages = [process.communicate(timeout=300)[1].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [2, 2], messages
    found = [[line for line in lines if line.startswith("error: epoch 1")] for lines in messages]
    assert found[0] == found[1] and len(found[0]) == 1
