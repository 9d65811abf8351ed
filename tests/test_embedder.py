"""`jaxreid.load`: features of single tracklets equal those of the run's evaluation, without the data set."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finished import CONFIG
from messages import refuses
from ml_collections import ConfigDict

import jaxreid
from jaxreid import retrieval
from jaxreid.dataset_info import INFO, DatasetInfo, read_info, save_info
from jaxreid.devices.parallel import make_mesh
from jaxreid.errors import UserError
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.methods.method import find_method
from jaxreid.run.model import start_run
from jaxreid.training.restore import restore_judged
from jaxreid.training.steps import variables_of


@pytest.fixture(scope="module")
def evaluated(workdir, data_dir):
    """(the run, features of its test splits as evaluation computes them)."""
    run = start_run(ConfigDict(json.loads((workdir / "config.json").read_text())), workdir, data_dir)
    state, frozen, *_ = restore_judged(run)
    return run, Evaluator(run).features(variables_of(state, frozen), state.memory)


def test_features_are_those_of_evaluation(workdir, evaluated):
    """One by one and in another batch than evaluation's: equal but for the order of float sums, 1e-5 of unit rows."""
    run, features = evaluated
    embedder = jaxreid.load(workdir, batch_size=8)
    for split in run.dataset.test_splits:
        rows = np.arange(len(split))[::7][:5]
        reader = run.reader(split)
        tracklets = [np.stack(list(reader.decode_each(row, range(split.table.length[row])))) for row in rows]
        words = [("rgb", "ir")[split.table.modality[row]] for row in rows]
        expected = features[split.name]["feature"][rows]
        found = embedder.embed(tracklets, modality=words)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(embedder.embed(tracklets[1], modality=words[1]), expected[1], atol=1e-5)
        np.testing.assert_allclose(embedder.embed_split(split, reader, rows[::-1]), expected[::-1], atol=1e-5)
    assert embedder._extractor.step.count == 1  # lengths vary, the step is compiled once


def test_a_workdir_that_was_told_nothing_asks_the_data_set(workdir, evaluated, data_dir, tmp_path):
    run, features = evaluated
    for name in ("config.json", "checkpoints"):
        (tmp_path / name).symlink_to(workdir / name)
    query = run.dataset.query
    found = jaxreid.load(tmp_path, data_dir, batch_size=8).embed_split(query, rows=np.arange(3))
    np.testing.assert_allclose(found, features[query.name]["feature"][:3], atol=1e-5)


def test_a_list_of_frames_of_any_size(workdir):
    """Frames are resized as the loader does: a picture of twice the size, each pixel four times, gives the same."""
    import cv2

    embedder = jaxreid.load(workdir, batch_size=8)
    height, width = embedder.info.frame_size
    frames = np.random.default_rng(0).integers(0, 256, (3, 2 * height, 2 * width, 3)).astype(np.uint8)
    small = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR) for frame in frames]
    found = embedder.embed([list(frames), np.stack(small), frames[:1]])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert np.abs(found[2] - found[0]).max() > 1e-4
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


class PilPicture:
    """What is asked of a picture of PIL's, which need not be installed."""

    def __init__(self, frame):
        self.frame = frame

    def convert(self, mode):
        assert mode == "RGB"
        return self.frame


def test_pictures_in_every_form(workdir):
    embedder = jaxreid.load(workdir, batch_size=8)
    frames = np.random.default_rng(1).integers(0, 256, (3, 16, 8, 3), np.uint8)
    expected, one = embedder.embed(frames), embedder.embed(frames[:1])
    for given in (jnp.asarray(frames), list(frames), [jnp.asarray(x) for x in frames], list(map(PilPicture, frames))):
        np.testing.assert_array_equal(embedder.embed(given), expected)
    for given in (frames[0], jnp.asarray(frames[0]), PilPicture(frames[0]), [frames[0]]):
        np.testing.assert_array_equal(embedder.embed(given), one)
    found = embedder.embed([frames, PilPicture(frames[0]), list(frames)])
    np.testing.assert_allclose(found, [expected, one, expected], atol=1e-6)  # another place in the batch
    for bad, named in ((frames / 255, "float64"), (frames[..., :1], "uint8[16, 8, 1]"), (frames[0, 0], "frame")):
        with refuses(ValueError, "tracklet 0", named, "u8"):
            embedder.embed([bad])


def test_modality_and_camera_reach_the_network(workdir, monkeypatch):
    embedder, seen = jaxreid.load(workdir, batch_size=8), []
    embed = embedder._extractor.step
    monkeypatch.setattr(embedder._extractor, "step", lambda *a: seen.append(jax.device_get(a[-1])) or embed(*a))
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    embedder.embed([frames, frames, frames], modality=["rgb", "ir", "rgb"], camera=embedder.info.cameras[2])
    embedder.embed(frames, modality="ir")
    assert seen[0].modality[:3].tolist() == [0, 1, 0] and seen[0].camera_index[:3].tolist() == [2, 2, 2]
    assert seen[1].modality[0] == 1 and seen[1].camera_index[0] == -1
    assert seen[0].valid.tolist() == [True] * 3 + [False] * 5


def test_bad_input_is_named(workdir, tmp_path):
    embedder = jaxreid.load(workdir, batch_size=8)
    good = np.zeros((2, 8, 8, 3), np.uint8)
    for bad in ([good, good.astype(np.float32)], [good, good[:0]], [good, good[..., 0]]):
        with refuses(ValueError, "tracklet 1", "u8"):
            embedder.embed(bad)
    with refuses(ValueError, "'thermal'", "rgb", "ir"):
        embedder.embed(good, modality="thermal")
    with refuses(ValueError, 2, 1, "modalities"):
        embedder.embed([good, good], modality=["ir"])
    with refuses(ValueError, "tracklet"):
        embedder.embed([])
    with refuses(ValueError, 99, 1, 2):
        embedder.embed(good, camera=99)
    with refuses(ValueError, "config.json"):
        jaxreid.load(tmp_path)
    (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
    (tmp_path / INFO).write_bytes((workdir / INFO).read_bytes())
    with refuses(ValueError, "checkpoint"):
        jaxreid.load(tmp_path)


def test_a_workdir_of_a_version_that_had_other_keys_is_refused(workdir, tmp_path):
    config = json.loads((workdir / "config.json").read_text())
    key = next(iter(find_method(config["method"]).values))
    section, name = key.rsplit(".", 1) if "." in key else ("", key)
    del (config[section] if section else config)[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with refuses(UserError, tmp_path, "another version", f"config.{key} is not set", "train it again"):
        jaxreid.load(tmp_path)


def test_identity_tells_weights_apart(workdir, monkeypatch):
    one, same, other = (jaxreid.load(workdir, batch_size=8) for _ in range(3))
    assert one.identity == same.identity and one.identity["epochs"] == CONFIG["epochs"]
    variables, memory = other._state
    leaves, tree = jax.tree.flatten(variables)
    other._state = tree.unflatten([leaves[0] + 1e-3, *leaves[1:]]), memory
    assert other.identity["digest"] != one.identity["digest"]


def test_what_a_method_is_told_survives_the_file(tmp_path, evaluated):
    train = evaluated[0].dataset.train
    plain = DatasetInfo("a/b", train.table, np.array([3, 5]), (64, 32))
    for info in (
        plain,
        DatasetInfo(**vars(plain) | {"labels": train.labels, "num_classes": 9, "captions": (("näh", ""), ())}),
    ):
        save_info(tmp_path, info)
        found = read_info(tmp_path)
        assert jax.tree.structure(vars(found)["captions"]) == jax.tree.structure(info.captions)
        for name in ("name", "frame_size", "num_classes", "captions"):
            assert getattr(found, name) == getattr(info, name)
        np.testing.assert_array_equal(found.cameras, info.cameras)
        for part in ("table", "labels"):
            before, after = getattr(info, part), getattr(found, part)
            assert (before is None) == (after is None)
            for name in vars(before) if before else ():
                np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert [path.name for path in tmp_path.iterdir()] == [INFO]
    assert read_info(tmp_path / "elsewhere") is None


def test_evaluation_ranks_on_all_devices_of_the_run(evaluated, monkeypatch):
    run, features = evaluated
    features = {name: arrays["feature"] for name, arrays in features.items()}
    meshes, score = [], retrieval.score
    monkeypatch.setattr(retrieval, "score", lambda *a, mesh, **k: meshes.append(mesh) or score(*a, mesh=mesh, **k))
    one = Evaluator(run)._score(features, "")
    many = Evaluator(dataclasses.replace(run, mesh=make_mesh()))._score(features, "")
    assert [mesh and mesh.size for mesh in meshes] == [None] * len(one) + [8] * len(many)
    for (record, scores), (other, others) in zip(one, many, strict=True):
        assert record == other
        np.testing.assert_array_equal(scores.average_precision, others.average_precision)


def test_importing_the_package_is_light():
    code = "import sys, jaxreid; assert callable(jaxreid.load); print('jax' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False False\n"
