"""CG-CLIP's captions, from their file to the memory and what is made of it there; and what configs choose."""

import dataclasses
import importlib

import family
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from captioned import CAPTIONS, make_info, make_method, memory_for
from family import PEOPLE, make_batch, random_variables
from messages import refuses, says

from jaxreid.backbones.text import TextTower
from jaxreid.backbones.word_table import walkers_words
from jaxreid.data.sidecar_files import read_captions, refuses_to_tell
from jaxreid.layers.captions import CaptionTower
from jaxreid.methods.caption_bank import CaptionMemory, captions_of, draw, shuffled
from jaxreid.methods.cg_clip import CGClip
from jaxreid.optimizers import find_group, split_trained
from jaxreid.run.config_values import check_config


@pytest.fixture(scope="module", autouse=True)
def small_towers():
    with pytest.MonkeyPatch.context() as patch:
        family.small_towers(patch)
        yield


# On the host ----------------------------------------------------------------------------------------------------------


def test_which_captions_stand_for_a_person():
    """Cameras that have none yet, then longer tracklets, then ids; second captions of a tracklet last."""
    table = dataclasses.replace(
        family.make_info().table,
        camera=np.array([1, 1, 2, 2, 1, 3, 1, 1], np.int32),
        length=np.array([5, 9, 7, 7, 4, 1, 3, 3], np.int32),
    )
    labels = dataclasses.replace(family.make_info().labels, identity=np.array([0, 0, 0, 0, 0, 1, -1, 2], np.int32))
    texts = (
        ("a",),
        ("b", "bb"),
        ("c",),
        ("d",),
        ("e",),
        ("f", "f", "I'm sorry, I cannot see a person."),
        ("g",),
        (" ",),
    )
    info = make_info(texts, table=table, labels=labels)
    found = captions_of(info, 9)
    assert found[0] == ["b", "c", "d", "a", "e", "bb"]  # cameras 1 and 2; of 2 the other; of 1 by length
    assert found[1:] == [["f"], [], []]
    assert captions_of(info, 3)[0] == ["b", "c", "d"]


def test_coverage_is_a_hand_count():
    method = make_method()
    says(method.notes(), "5 captions", "3 of 4", "1 have none", "their own")
    assert method.assumptions()["captions"] == "yes"
    template = make_method(**{"captions.source": "template"})
    says(template.notes(), "same sentence")
    says(make_method(**{"captions.source": "shuffled"}).notes(), "another person")


def test_controls():
    method = make_method(**{"captions.source": "template"})
    assert method.bank.of_identities == [["A photo of a person."]] * PEOPLE
    captions = [["a"], ["b"], ["c", "d"], []]
    other = shuffled(captions)
    assert sorted(other) == sorted(captions) and all(a != b for a, b in zip(captions, other, strict=True))
    assert other == shuffled(captions)


def test_captions_that_are_too_long_end_with_a_sentence():
    words = walkers_words()
    text = "a red shirt. a person with short hair. white shoes and a cap"
    whole = words(text, context=40)[0]
    ends = np.flatnonzero(whole == words(".", context=3)[0, 1])
    assert len(ends) == 2
    for context, stop in ((ends[1] + 2, ends[1]), (ends[1] + 1, ends[0]), (ends[0] + 2, ends[0])):
        (row,) = words(text, context=int(context), truncate="sentences")
        assert row[: stop + 1].tolist() == whole[: stop + 1].tolist()
        assert row[stop + 1] == words.end and not row[stop + 2 :].any()
    (row,) = words(text, context=int(ends[0]) + 1, truncate="sentences")  # within the first
    assert row.tolist() == [*whole[: ends[0]].tolist(), words.end]
    with refuses(ValueError, 6):
        words(text, context=6)
    info = make_info(((text, "a cap"), *CAPTIONS[1:]))
    with pytest.warns(UserWarning, match="1 of 5 captions"):
        ids = make_method(info, **{"captions.length": int(ends[1]) + 1}).bank.ids
    assert ids.shape == (PEOPLE, 4, ends[1] + 1)
    assert ids[0, 0].argmax() == ends[0] + 1


def test_refusals_are_left_out(tmp_path):
    file = tmp_path / "captions.jsonl"
    file.write_text(
        '{"tracklet": "a", "caption": "I’m sorry, but I can\'t help."}\n{"tracklet": "a", "caption": "A man."}\n'
    )
    found = read_captions(file, "mars", [("a", 7)])
    assert found.texts == {"a": ["A man."]}
    says(found.remarks, 1, "refusals")
    assert not any(map(refuses_to_tell, ("A person in a shirt that says sorry.", "An AI logo on a shirt.", "I")))
    assert all(map(refuses_to_tell, ("As an AI model, I", "I cannot identify people", "There is no person here.")))


def test_nobody_is_described():
    with refuses(ValueError, "toy", "import-sidecar captions", "captions.source='template'", "cmr.depth=0"):
        _ = make_method(make_info(((),) * 8)).bank.ids


# In memory ------------------------------------------------------------------------------------------------------------


def test_captions_token_by_token_end_in_clips_own_feature():
    ids = walkers_words()(["a tall person", "a person with short hair"], context=12)
    module = CaptionTower(family.TEXT)
    variables = family.filled(module.init, jnp.asarray(ids), scale=1.0)
    tokens = jax.jit(module.apply)(variables, ids)
    own = jax.jit(TextTower(family.TEXT).apply)({"params": variables["params"]["tower"]}, ids)["projected"]
    np.testing.assert_allclose(tokens[np.arange(2), ids.argmax(axis=1)], own, atol=1e-6)


@pytest.mark.parametrize("level", ["token", "sentence"])
def test_the_refreshing_fills_rows_and_captions(level):
    method = make_method(**{"captions.level": level, "captions.pad_to_multiple_of": 3})
    variables = random_variables(method)
    memory = memory_for(method, variables)
    texts = captions_of(make_info(), 4)
    assert memory.captions.shape == (6, 4, 48 if level == "token" else 1, 8) and memory.length.shape == (6, 4)
    tower = jax.jit(TextTower(family.TEXT).apply)
    for person, of_person in enumerate(texts):
        assert (memory.length[person] > 0).sum() == len(of_person)
        for place, text in enumerate(of_person):
            length = len(walkers_words().encode(text)) + 2
            assert memory.length[person, place] == length
            own = tower({"params": variables["params"]["text"]["tower"]}, walkers_words()(text))["projected"][0]
            end = memory.captions[person, place, length - 1 if level == "token" else 0]
            np.testing.assert_allclose(end, own, atol=1e-5)
    assert not memory.length[PEOPLE:].any()


def test_every_step_draws_captions_and_devices_agree():
    length = jnp.asarray([[5, 4, 3, 2], [5, 0, 0, 0], [0, 0, 0, 0], [4, 4, 0, 0], [1, 1, 1, 0], [2, 2, 2, 2]] * 4)
    key = jax.random.key(7)
    one = np.stack([draw(jax.random.fold_in(key, step), length) for step in range(200)])
    assert (one[:, 1] == 0).all() and (one[:, 2] == 0).all()
    assert [set(one[:, row]) for row in (0, 3, 4)] == [{0, 1, 2, 3}, {0, 1}, {0, 1, 2}]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    many = jax.jit(draw, in_shardings=(None, split), out_shardings=split)
    for step in range(3):
        np.testing.assert_array_equal(many(jax.random.fold_in(key, step), length), one[step])


def test_rows_that_follow_the_batches():
    """m ← μ·m + (1 − μ)·mean of the person's valid clips; people who are not there keep theirs."""
    method = make_method(**{"memory.momentum": 0.75})
    rng = np.random.default_rng(0)
    memory = method.init_memory().replace(bank=jnp.asarray(rng.normal(size=(PEOPLE, 8)), jnp.float32))
    batch = make_batch()
    batch = batch.replace(valid=jnp.asarray([1, 1, 1, 0, 0, 0, 1, 1], bool))
    v = jnp.asarray(rng.normal(size=(8, 8)), jnp.float32)
    _, moved = method.bank.loss(v, v @ memory.bank.T, memory, batch)
    wanted = np.asarray(memory.bank).copy()
    for person, rows in ((0, [0, 1]), (1, [2]), (3, [6, 7])):
        wanted[person] = 0.75 * wanted[person] + 0.25 * np.asarray(v)[rows].mean(0)
    np.testing.assert_allclose(moved.bank, wanted, atol=1e-6)


def test_contrast_of_clips_and_captions_by_hand():
    """v against the mean end token of the captions of its person; who has none, does not count."""
    method = make_method(**{"weights.caption_contrast": 1.0, "captions.level": "sentence", "cmr.depth": 0})
    batch, rng = make_batch(), np.random.default_rng(0)
    captions = jnp.asarray(rng.normal(size=(8, 4, 1, 8)), jnp.float32)
    length = jnp.asarray([[3, 3, 0, 0], [4, 0, 0, 0], [3, 3, 3, 3], [0, 0, 0, 0]] + [[0] * 4] * 4)
    memory = CaptionMemory(jnp.zeros((PEOPLE, 8)), captions, length)
    v = rng.normal(size=(8, 8))
    found = method.more_losses({"projected": jnp.asarray(v, jnp.float32)}, {}, memory, batch)["caption_contrast"][1]
    ends = np.asarray(captions, np.float64)[:, :, 0]
    t = np.repeat([ends[0, :2].mean(0), ends[1, 0], ends[2].mean(0)], 2, axis=0)

    def one_way(a, b):
        logits = a @ b.T
        log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -np.mean([(log[i, i] + log[i, i ^ 1]) / 2 for i in range(6)])

    assert found == pytest.approx(one_way(v[:6], t) + one_way(t, v[:6]), abs=1e-4)


# Configs --------------------------------------------------------------------------------------------------------------


def test_learning_rates():
    """5e-6, of biases twice that; ten times as much for CMR, TFE and the classifier of its feature; no text tower."""
    config = importlib.import_module("configs.cg_clip").get_config("mars")
    small = family.make_config("cg_clip")
    config.backbone = small.backbone
    method = CGClip(config, make_info())
    (stage,) = method.stages()
    optimizer = stage.updates[0].optimizer
    params = jax.eval_shape(method.init, jax.random.key(0), make_batch())["params"]
    trained, frozen = split_trained(params, optimizer)
    assert set(frozen) == {"text"} and "text" not in trained
    rates = {path: find_group(path, optimizer.groups).lr for path in family.paths(trained)}
    wanted = {
        "image_tower/class_token": 5e-6,
        "image_tower/norm_post/bias": 1e-5,
        "necks_last/classifier/kernel": 5e-6,
        "necks_temporal/classifier/kernel": 5e-5,
        "necks_temporal/norm/scale": 5e-6,
        "refinement/alpha": 5e-5,
        "refinement/change/bias": 1e-4,
        "extraction/queries": 5e-5,
        "extraction/places": 5e-5,
        "extraction/layer_0/out/bias": 1e-4,
    }
    assert {path: rates.get(path) for path in wanted} == {path: pytest.approx(lr) for path, lr in wanted.items()}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tfe.layers": 0}, ("config.embedding", "config.tfe.layers=0")),
        ({"evaluation.seq_len": 9}, ("config.evaluation.seq_len=9", "config.tfe.temporal_embed=False")),
        ({"captions.length": 99}, ("config.captions.length=99", 77)),
        ({"cmr.context": "caption+video", "cmr.depth": 0}, ("config.cmr.context", "config.cmr.depth")),
    ],
)
def test_values_that_make_no_sense(changes, named):
    with refuses(ValueError, *named):
        check_config(family.make_config("cg_clip", **changes))


def test_presets_of_tracks_choose_their_protocol():
    presets = importlib.import_module("configs.cg_clip")
    for name in ("sports_vreid", "dance_vreid"):
        config = presets.get_config(name)
        assert tuple(config.dataset.protocols) == ("market",) and not config.sie.columns
        config.dataset.protocols = ("single_match",)
        check_config(config)
    assert tuple(presets.get_config("mars").sie.columns) == ("camera_index",)


def test_what_there_is_without_a_part():
    """The parameters that a switch takes out or adds."""

    def parts(**changes):
        return set(jax.eval_shape(make_method(**changes).init, jax.random.key(0), make_batch())["params"])

    own = {"image_tower", "side_table", "necks_last", "necks_projected"}
    tfe, cmr = {"extraction", "necks_temporal"}, {"refinement", "text"}
    no_tfe = {"tfe.layers": 0, "triplet.features": ("last", "projected"), "embedding": ("last", "projected")}
    assert parts() == own | tfe | cmr
    assert parts(**{"cmr.depth": 0}) == own | tfe
    assert parts(**no_tfe) == own | cmr
    assert parts(**no_tfe, **{"cmr.depth": 0}) == own
    assert parts(**{"cmr.depth": 0, "weights.caption_contrast": 1.0}) == own | tfe | {"text"}
    assert parts(**{"cmr.context": "caption+video"}) == own | tfe | cmr | {"sequence"}
    shapes = jax.eval_shape(make_method(**{"tfe.queries": 5, "tfe.layers": 2}).init, jax.random.key(0), make_batch())
    assert shapes["params"]["extraction"]["queries"].shape == (5, 16) and "layer_1" in shapes["params"]["extraction"]
    start = make_method(**{"cmr.alpha": 0.5, "cmr.depth": 1})
    found = jax.jit(start.init)(jax.random.key(0), make_batch())["params"]["refinement"]
    assert (np.asarray(found["alpha"]) == 0.5).all() and "cross_1" not in found
    assert not isinstance(make_method(**{"cmr.depth": 0}).init_memory(), CaptionMemory)
