"""Extras: from sidecars, records and pictures into batches, moved by augmentation, used at training and test."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finished import SMALL
from messages import refuses, says
from test_training import make_config, run_training

from configs import language_image
from jaxreid.augment import Augmentation, augment
from jaxreid.backbones.clip import VISION_TOWERS
from jaxreid.backbones.word_table import walkers_words
from jaxreid.data.batch import Batch
from jaxreid.data.build import build
from jaxreid.data.clips import ClipPlan
from jaxreid.data.extras import Extra, ExtraReader
from jaxreid.data.loader import LoaderOptions, batches
from jaxreid.data.sidecars import MissingSidecar, Sidecar, sidecar_dir, write_sidecar
from jaxreid.data.split import FrameReader, open_split
from jaxreid.devices.parallel import register_batch
from jaxreid.embedder import Embedder
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.geometry import COCO17, HUMAN36M17, mirror
from jaxreid.run.model import start_run
from jaxreid.run.workdirs import claim_dataset
from jaxreid.training.metric_writer import read_metrics
from jaxreid.training.restore import restore_judged
from jaxreid.training.steps import variables_of

HEIGHT, WIDTH, CLIPS, FRAMES = 24, 12, 16, 3
KEYPOINTS = {"keypoints": Extra((17, 3))}


def dotted(seed, scale=2):
    """A batch with a dot of one pixel on every frame, key point 0 on it and the others nowhere; the second stream shows
    the same at a size `scale` times as large."""
    rng = np.random.default_rng(seed)
    row, column = rng.integers(0, HEIGHT, (CLIPS, FRAMES)), rng.integers(0, WIDTH, (CLIPS, FRAMES))
    frames = np.zeros((CLIPS, FRAMES, HEIGHT, WIDTH, 3), np.float32)
    large = np.zeros((CLIPS, FRAMES, scale * HEIGHT, scale * WIDTH, 3), np.float32)
    for clip, frame in np.ndindex(CLIPS, FRAMES):
        y, x = row[clip, frame], column[clip, frame]
        frames[clip, frame, y, x] = 1.0
        large[clip, frame, scale * y : scale * (y + 1), scale * x : scale * (x + 1)] = 1.0
    points = np.zeros((CLIPS, FRAMES, 17, 3), np.float32)
    points[:, :, 0] = np.stack([(column + 0.5) / WIDTH, (row + 0.5) / HEIGHT, np.ones_like(row)], axis=-1)
    joints = rng.normal(size=(CLIPS, FRAMES, 17, 3)).astype(np.float32)
    mask, number = np.ones((CLIPS, FRAMES), bool), np.zeros(CLIPS, np.int32)
    columns = dict.fromkeys((f.name for f in dataclasses.fields(Batch)), number)
    extras = {"keypoints": points, "joints3d": joints, "second_frames": large, "erased": ~mask}
    extras |= {"erased_box": np.zeros((CLIPS, FRAMES, 4), np.float32), "keypoints_mask": mask}
    register_batch()
    columns |= {"frames": frames, "frame_mask": mask, "geometry": np.zeros((CLIPS, 3)), "valid": number == 0}
    return jax.tree.map(jnp.asarray, Batch(**columns | {"extras": extras}))


def places(frames):
    """Centre of the dot of each frame in unit coordinates [B, T, 2], NaN where it is not seen."""
    light = np.asarray(frames).sum(-1)
    height, width = light.shape[2:]
    total = light.sum((2, 3))
    y = (light * (np.arange(height) + 0.5)[:, None]).sum((2, 3)) / np.where(total, total, np.nan) / height
    x = (light * (np.arange(width) + 0.5)).sum((2, 3)) / np.where(total, total, np.nan) / width
    return np.stack([x, y], axis=-1)


@pytest.mark.parametrize("per_frame", [(), ("crop", "flip")])
@pytest.mark.parametrize("seed", range(3))
def test_a_dot_and_its_key_point_move_alike(seed, per_frame):
    batch = dotted(seed)
    moved = augment(batch, jax.random.key(seed), Augmentation(crop=3, flip=0.5, per_frame=per_frame), (0.0,) * 3)
    seen, points = places(moved.frames), np.asarray(moved.extras["keypoints"])[:, :, 0]
    there = np.isfinite(seen[..., 0])
    assert 0.5 < there.mean() < 1
    np.testing.assert_allclose(points[there, :2], seen[there], atol=1e-5)
    np.testing.assert_array_equal(points[..., 2], there)  # who left the frame scores 0
    assert np.abs(seen[there] - places(batch.frames)[there]).max() > 0.1
    # The second stream, twice as large, shows the same shares of the picture.
    np.testing.assert_allclose(places(moved.extras["second_frames"])[there], seen[there], atol=1e-5)


def test_what_is_erased_is_told():
    batch = dotted(0)
    ones = batch.replace(frames=jnp.ones_like(batch.frames))
    moved = augment(ones, jax.random.key(1), Augmentation(erase=0.6, per_frame=("erase",)), (0.0,) * 3)
    gone, box = np.asarray(moved.frames)[..., 0] == 0, np.asarray(moved.extras["erased_box"])
    np.testing.assert_array_equal(gone.any((2, 3)), moved.extras["erased"])
    assert 0.3 < gone.any((2, 3)).mean() < 0.9
    for clip, frame in np.ndindex(CLIPS, FRAMES):
        top, left, bottom, right = np.round(box[clip, frame] * [HEIGHT, WIDTH, HEIGHT, WIDTH]).astype(int)
        wanted = np.zeros((HEIGHT, WIDTH), bool)
        wanted[top:bottom, left:right] = True
        np.testing.assert_array_equal(gone[clip, frame], wanted)


def test_left_and_right_change_places():
    batch = dotted(0)
    named = np.arange(17.0)[:, None] * np.ones(3)  # every joint is its number
    joints = jnp.broadcast_to(jnp.asarray(named, jnp.float32), batch.extras["joints3d"].shape)
    points = joints.at[..., :2].set(0.25)
    found = mirror(batch.replace(extras=batch.extras | {"keypoints": points, "joints3d": joints})).extras
    partner = np.arange(17)
    for left, right in COCO17:
        partner[[left, right]] = right, left
    np.testing.assert_array_equal(found["keypoints"][0, 0, :, 2], partner)
    np.testing.assert_allclose(found["keypoints"][0, 0, :, 0], 0.75)
    partner = np.arange(17)
    for left, right in HUMAN36M17:
        partner[[left, right]] = right, left
    np.testing.assert_array_equal(found["joints3d"][0, 0], partner[:, None] * np.array([-1.0, 1.0, 1.0]))
    twice = mirror(mirror(batch))
    np.testing.assert_allclose(twice.extras["keypoints"], batch.extras["keypoints"], atol=1e-6)
    np.testing.assert_array_equal(twice.extras["second_frames"], batch.extras["second_frames"])
    odd = batch.replace(extras={"joints3d": joints[:, :, :13]})
    with refuses(ValueError, 13, "config.augment.flip=0"):
        mirror(odd)
    kept = augment(odd, jax.random.key(0), Augmentation(crop=2), (0.0,) * 3).extras["joints3d"]
    np.testing.assert_array_equal(kept, odd.extras["joints3d"])
    unknown = mirror(batch.replace(extras=batch.extras | {"keypoints_mask": ~batch.frame_mask})).extras["keypoints"]
    assert not np.asarray(unknown).any()


@pytest.fixture(autouse=True)
def small_tower(monkeypatch):
    monkeypatch.setitem(VISION_TOWERS, "small", SMALL)


@pytest.fixture
def train(tiny):
    return open_split(tiny, "train")


def read(split, wanted, plan, **options):
    reader = split.reader(cache=False)
    extras = ExtraReader(split, reader, wanted)
    return next(batches(split, plan, 4, LoaderOptions(64, 32), uses_identity=False, extras=extras, **options))


def plan_of(split, count=3, frames=5):
    """Clips of the first tracklets, every other frame, the last frame only filling the clip."""
    index = np.broadcast_to(2 * np.arange(frames), (count, frames)).astype(np.int32)
    index = np.minimum(index, split.table.length[:count, None] - 1)
    mask = np.broadcast_to(np.arange(frames) < frames - 1, (count, frames))
    return ClipPlan(np.arange(count, dtype=np.int32), np.zeros(count, np.int32), index, mask)


def test_batches_hold_what_the_sidecars_say(train, tiny):
    plan = plan_of(train)
    wanted = KEYPOINTS | {"joints3d": Extra((17, 3)), "native_height": Extra(), "frame_number": Extra(dtype="int32")}
    wanted["second_frames"] = Extra((8, 4, 3), "uint8")
    batch = read(train, wanted, plan)
    reader = train.reader(cache=False)
    assert batch.extras["keypoints"].shape == (4, 5, 17, 3)
    for clip in range(3):
        name, frames = train.labels.names[clip], plan.frames[clip, :4]
        pictures = [reader.decode(clip, index) for index in frames]
        points, _ = Sidecar.open(tiny, "keypoints").read(name, frames)
        sizes = np.array([[picture.shape[1], picture.shape[0], 1] for picture in pictures])
        np.testing.assert_allclose(batch.extras["keypoints"][clip, :4], points / sizes[:, None], rtol=1e-6)
        joints, _ = Sidecar.open(tiny, "joints3d").read(name, frames)
        np.testing.assert_array_equal(batch.extras["joints3d"][clip, :4], joints)
        np.testing.assert_array_equal(batch.extras["native_height"][clip, :4], sizes[:, 1])
        np.testing.assert_array_equal(batch.extras["frame_number"][clip, :4], frames)
        small = batch.extras["second_frames"][clip, 0].astype(float)
        assert abs(small.mean() - pictures[0].mean()) < 2 and small.shape == (8, 4, 3)
    for name in wanted:  # the frame that fills the clip, and the row that fills the batch
        assert not batch.extras[name][:3, 4].any() and not batch.extras[name][3].any()
        np.testing.assert_array_equal(batch.extras[f"{name}_mask"], batch.frame_mask)


def test_the_index_of_a_thinned_set_finds_the_rows(train, tiny, monkeypatch):
    """Records that kept every third frame of the source: sidecar rows go by the source's numbers."""
    numbers = np.concatenate([3 * np.arange(n, dtype=np.int32) for n in train.table.length])
    thin = dataclasses.replace(train, frame_numbers=numbers)
    np.testing.assert_array_equal(thin.frame_index(1), 3 * np.arange(train.table.length[1]))
    with refuses(MissingSidecar, "keypoints", train.labels.names[0]):
        ExtraReader(thin, train.reader(cache=False), KEYPOINTS).read(0, range(train.table.length[0]))
    np.testing.assert_array_equal(train.frame_index(2), np.arange(train.table.length[2]))


def test_what_is_missing_is_an_error_or_masked(train, tiny, tmp_path, caplog):
    names = train.labels.names
    lacking = dataclasses.replace(train, directory=tmp_path)
    with refuses(MissingSidecar, "keypoints", "import-sidecar"):
        ExtraReader(lacking, train.reader(cache=False), KEYPOINTS)
    values, mask = np.ones((5, 17, 3), np.float32), np.arange(5) != 2
    write_sidecar(tmp_path, "keypoints", [(names[0], values, np.arange(5), mask)], {"model": "nobody"})
    with refuses(MissingSidecar, len(names) - 1, names[1], "import-sidecar"):
        ExtraReader(lacking, train.reader(cache=False), KEYPOINTS)
    with refuses(ValueError, [17, 3], [13, 3]):
        ExtraReader(lacking, train.reader(cache=False), {"keypoints": Extra((13, 3))})
    with refuses(ValueError, "poses", "keypoints"):
        ExtraReader(lacking, train.reader(cache=False), {"poses": Extra()})
    masking = ExtraReader(lacking, train.reader(cache=False), {"keypoints": Extra((17, 3), missing="mask")})
    says(caplog.text, tmp_path, len(names) - 1, len(names), names[1], "masked")
    found = masking.read(0, [0, 2, 4, 5])
    assert found["keypoints_mask"].tolist() == [True, False, True, False]  # not found; beyond what anybody looked at
    assert not masking.read(1, [0])["keypoints_mask"].any()
    before = masking.sidecars["keypoints"].source
    assert before.startswith("nobody, ")
    np.save(sidecar_dir(tmp_path, "keypoints") / "mask.npy", ~mask)
    assert Sidecar.open(tmp_path, "keypoints").source not in ("", before)


def test_padding_keeps_the_aspect_and_key_points_on_the_body(train, tiny):
    """Pictures of walkers are 64 × 32: on square frames a quarter on either side is black."""
    plan = plan_of(train)
    wanted = KEYPOINTS | {"native_height": Extra()}

    def read_as(resize):
        options = LoaderOptions(64, 64, resize=resize)
        extras = ExtraReader(train, train.reader(cache=False), wanted)
        return next(batches(train, plan, 4, options, uses_identity=False, extras=extras))

    stretched, square = read_as("stretch"), read_as("pad")
    shown = square.frames[:3, :4]
    assert not shown[:, :, :, :16].any() and not shown[:, :, :, 48:].any()
    stored = train.reader(cache=False).decode(0, int(plan.frames[0, 0]))
    np.testing.assert_array_equal(shown[0, 0, :, 16:48], stored)
    before, after = (batch.extras["keypoints"][:3, :4] for batch in (stretched, square))
    np.testing.assert_allclose(after[..., 0], 0.25 + before[..., 0] / 2, atol=1e-6)
    np.testing.assert_allclose(after[..., 1:], before[..., 1:], atol=1e-6)
    np.testing.assert_array_equal(square.extras["native_height"], stretched.extras["native_height"])


def test_tests_may_interpolate_in_another_way():
    options = LoaderOptions(64, 32, interpolation="bicubic", test_interpolation="bilinear")
    assert options.for_tests().interpolation == "bilinear" and options.interpolation == "bicubic"
    assert LoaderOptions(64, 32, interpolation="area").for_tests().interpolation == "area"


def test_captions_are_needed_for_training_alone(tmp_path, data_dir):
    """All texts of a tracklet reach the method, none where nobody described it; tests do without."""
    own = tmp_path / "data"
    prepared = build("walkers", "tiny", data_dir=own)
    captions = Sidecar.open(prepared, "captions")
    names = open_split(prepared, "train").labels.names
    entries = [(name, [*captions.texts(name), "a person"]) for name in captions.tracklets]
    write_sidecar(prepared, "captions", entries, {"model": "two"}, overwrite=True)
    changes = {"dataset.config": "tiny", "epochs": 1, "batch.batch_size": 8, "mesh.devices": 1, "evaluate_start": False}
    config = language_image.get_config()
    config.update_from_flattened_dict(changes)
    run, state, frozen = run_training(config, tmp_path / "run", own)
    assert run.method.info.captions[0] == (captions.texts(names[0])[0], "a person")
    claim_dataset(run.workdir, run.dataset, run.method.info, run.sidecars(True))
    first = Evaluator(run).features(variables_of(state, frozen), state.memory)

    shutil.rmtree(sidecar_dir(prepared, "captions"))
    again = start_run(config, run.workdir, own, train=False)
    claim_dataset(again.workdir, again.dataset, again.method.info, again.sidecars(False), train=False)
    state, frozen, *_ = restore_judged(again)
    second = Evaluator(again).features(variables_of(state, frozen), state.memory)
    for split, arrays in first.items():
        np.testing.assert_array_equal(arrays["feature"], second[split]["feature"])

    silent = [entry for entry in entries if entry[0] != names[3]]
    write_sidecar(prepared, "captions", silent, {"model": "two"})
    with refuses(ValueError, "1 of", "caption"):
        start_run(config, tmp_path / "other", own).method.init_memory()


def test_captions_are_ids_of_all_texts_and_missing_ones_are_masked(train, tmp_path):
    lacking, names = dataclasses.replace(train, directory=tmp_path), train.labels.names
    texts = {names[0]: ["a tall person", "a person with a bag", "a person in a coat"], names[1]: ["a person"]}
    write_sidecar(tmp_path, "captions", texts.items(), {"model": "somebody"})
    words, wanted = walkers_words(), {"captions": Extra((2, 7), "int32", missing="mask")}

    def opened(wanted):
        return ExtraReader(lacking, train.reader(cache=False), wanted, words)

    options = LoaderOptions(64, 32)
    batch = next(batches(train, plan_of(train), 4, options, uses_identity=False, extras=opened(wanted)))
    assert batch.extras["captions_mask"].tolist() == [[True, True], [True, False], [False, False], [False, False]]
    np.testing.assert_array_equal(batch.extras["captions"][0], words(texts[names[0]][:2], context=7))
    np.testing.assert_array_equal(batch.extras["captions"][1, 0], words(["a person"], context=7)[0])
    assert not batch.extras["captions"][1, 1].any() and not batch.extras["captions"][2:].any()
    with refuses(MissingSidecar, "captions", len(names) - 2):
        opened({"captions": Extra((2, 7), "int32")})
    long = ["a person. a coat with a bag and a cap", "a person in a coat with a bag"]
    write_sidecar(tmp_path, "captions", [(names[0], long)], overwrite=True)
    batch = next(batches(train, plan_of(train), 4, options, uses_identity=False, extras=opened(wanted)))
    cut = ["a person.", "a person in a coat"]  # its last sentence that fits; or within the first
    np.testing.assert_array_equal(batch.extras["captions"][0], words(cut, context=7))
    with refuses(ValueError, "tokenizer"):
        ExtraReader(lacking, train.reader(cache=False), wanted)


def test_without_pictures_only_what_an_extra_needs_is_decoded(train, monkeypatch):
    plan, decoded = plan_of(train), []
    whole = FrameReader.decode_each

    def counted(self, row, indices):
        decoded.append(row)
        return whole(self, row, indices)

    monkeypatch.setattr(FrameReader, "decode_each", counted)
    joints = {"joints3d": Extra((17, 3)), "frame_place": Extra(dtype="int32")}
    batch = read(train, joints, plan, pictures=False)
    assert batch.frames.shape == (4, 5, 0, 0, 3) and not decoded
    np.testing.assert_array_equal(batch.extras["frame_place"][:3, :4], plan.frames[:, :4])
    read(train, KEYPOINTS, plan, pictures=False)
    assert sorted(decoded) == [0, 1, 2]
    # Augmentation moves what would lie on the frames by shares of the size that they would have.
    bare = dotted(0).replace(frames=jnp.zeros((CLIPS, FRAMES, 0, 0, 3)))
    options, key = Augmentation(crop=3, flip=0.5), jax.random.key(4)
    found = augment(bare, key, options, (0.0,) * 3, size=(HEIGHT, WIDTH)).extras
    wanted = augment(dotted(0), key, options, (0.0,) * 3).extras
    for name in ("keypoints", "joints3d"):
        np.testing.assert_array_equal(found[name], wanted[name])


def config_of(**changes):
    # Frames stay where they are, so that cached key points of frames are those that the batch holds.
    still = {"augment.crop": 0, "augment.flip": 0.0, "evaluation.flip": True}
    config = make_config("baseline", evaluate_start=False, log_every=1, **{**still, **changes})
    config.method = "uses_extras"
    return config


def test_a_method_uses_all_of_it(tmp_path, data_dir, tiny):
    run, state, frozen = run_training(config_of(), tmp_path / "one", data_dir)
    rows = [row for row in read_metrics(run.workdir) if row["kind"] == "train"]
    assert rows[-1]["loss_body"] < rows[0]["loss_body"] and rows[-1]["loss_others"] < rows[0]["loss_others"]
    assert all(row["joints"] > 1 for row in rows) and any(0 < row["erased"] < 1 for row in rows)
    assert all(row["apart"] == 0 for row in rows)  # what was cached of every frame is that frame's
    claim_dataset(run.workdir, run.dataset, run.method.info, run.sidecars(True))
    results = Evaluator(run).final(variables_of(state, frozen), state.memory, 3).results
    assert {"keypoints", "joints3d"} < results["assumptions"].keys() and results["scores"]
    assert {name: step.count for name, step in run.compiled.items()} == dict.fromkeys(run.compiled, 1)

    # Killed and resumed; on eight devices.
    run_training(config_of(), tmp_path / "broken", data_dir, stop_after=1)
    again, resumed, _ = run_training(config_of(), tmp_path / "broken", data_dir)
    assert read_metrics(again.workdir) == read_metrics(run.workdir)
    assert not again.compiled["baseline/cache_step"].count  # read again, not found again
    many, _, _ = run_training(config_of(**{"mesh.devices": 8}), tmp_path / "eight", data_dir)
    for one, other in zip(rows, [row for row in read_metrics(many.workdir) if row["kind"] == "train"], strict=True):
        for name in ("loss_body", "joints", "erased", "apart"):  # sums over devices are added in another order
            np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-5)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)

    # Without the data set, key points come with the frames; without them it says so.
    embedder = Embedder(run.workdir)
    split = run.dataset.query
    reader = split.reader(cache=False)
    pictures = [reader.decode(0, index) for index in range(split.table.length[0])]
    points, _ = Sidecar.open(tiny, "keypoints").read(split.labels.names[0], split.frame_index(0))
    camera = int(split.table.camera[0])
    modality = {0: "rgb", 1: "ir"}[int(split.table.modality[0])]
    known = camera if camera in embedder.info.cameras else None
    found = embedder.embed(pictures, modality, known, extras={"keypoints": points})
    np.testing.assert_allclose(found, embedder.embed_split(split, rows=np.array([0]))[0], atol=1e-5)
    with refuses(ValueError, "keypoints", "[17, 3]"):
        embedder.embed(pictures, modality)
    with refuses(ValueError, "keypoints", "joints3d"):
        embedder.embed(pictures, modality, extras={"keypoints": points, "joints3d": points})
