"""What the values of a config may be: every key has a condition, every condition refuses something, and a bad value is
told by its key before anything is opened, loaded or compiled."""

import dataclasses
import importlib
import json
import math
from pathlib import Path

import preset_values
import pytest
from messages import refuses

from jaxreid import config as base
from jaxreid import values
from jaxreid.augment import Augmentation
from jaxreid.config import flatten
from jaxreid.errors import UserError
from jaxreid.methods.method import find_method
from jaxreid.optimizers import Schedule
from jaxreid.run.config_values import BASE, check_config
from jaxreid.run.model import start_run

CONFIGS = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.py"))
FREE = {
    "dataset.config",
    "dataset.path",
    "backbone.checkpoint",
    "skeleton.checkpoint",
    "sr.checkpoint",
}  # opening and loading say what there is


def presets(name):
    return tuple(importlib.import_module(f"configs.{name}").PRESETS)


def config(name="hitpro", preset="", **changes):
    found = importlib.import_module(f"configs.{name}").get_config(preset)
    found.update_from_flattened_dict(changes)
    return found


EVERY = [(name, preset) for name in CONFIGS for preset in presets(name)]


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_every_key_of_every_preset_has_a_condition_that_holds(name, preset):
    found = config(name, preset)
    check_config(found)
    assert set(dict(flatten(found.to_dict()))) <= {**BASE, **find_method(found.method).values}.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_presets_of_a_config_are_all_that_it_takes(name):
    with pytest.raises(UserError) as error:
        config(name, "no such preset")
    assert str(error.value).endswith(f"; this config has {', '.join(presets(name))}")
    assert [config(name, preset).preset for preset in ("", *presets(name))] == [presets(name)[0], *presets(name)]


class Nonsense:
    def __repr__(self):
        return "nonsense"


def test_every_condition_refuses_what_is_of_no_type_and_says_what_is_allowed():
    tables = [BASE, *(find_method(config(name).method).values for name in CONFIGS)]
    for table in tables:
        for key, condition in table.items():
            assert condition.holds(Nonsense()) == (key in FREE), key
            assert condition.allowed().strip()


@pytest.mark.parametrize(
    ("condition", "good", "bad"),
    [
        (values.whole(1), [1, 7], [0, -1, 1.0, True, "1", None]),
        (values.whole(0, 5), [0, 5], [6, -1]),
        (values.positive, [1e-9, 3], [0, -1, math.nan, math.inf, False]),
        (values.non_negative, [0, 2.5], [-1e-9, math.nan]),
        (values.fraction, [0, 0.5, 1], [1.01, -0.01, True]),
        (values.number(0, below=1), [0, 0.99], [1, -0.1]),
        (values.flag, [True, False], [0, 1, "True"]),
        (values.word, ["a"], ["", " ", 1]),
        (values.text, ["a", ""], [1, None]),
        (values.pattern, [".*", ""], ["(", None]),
        (values.one_of(["a", "b"]), ["a"], ["c", 1]),
        (values.one_of(lambda: ["a"]), ["a"], ["b"]),
        (values.some_of(("a", "b"), least=1), [("a",), ["b", "a"]], [(), ("a", "a"), ("c",), "a"]),
        (values.series(values.positive, length=2), [(1, 2)], [(1,), (1, 0), 1]),
        (values.series(values.non_negative, ascending=True), [(), (1, 2)], [(2, 1), (1, 1)]),
        (values.row(values.pattern, values.positive), [("a", 1)], [("a",), (1, "a"), ("(", 1)]),
        (values.optional(values.positive), [None, 1], [0]),
    ],
)
def test_conditions(condition, good, bad):
    assert all(map(condition.holds, good))
    assert not any(map(condition.holds, bad))


@pytest.mark.parametrize(
    ("name", "key", "value", "allowed"),
    [
        ("hitpro", "epochs", 0, "1"),
        ("hitpro", "epochs", -1, "1"),
        ("hitpro", "extraction_batch_size", 0, "1"),
        ("hitpro", "batch.num_prototypes", 0, "1"),
        ("hitpro", "frames.height", 0, "1"),
        ("hitpro", "evaluate_every", -1, "0"),
        ("hitpro", "keep_checkpoints", 0, "1"),
        ("hitpro", "levels.temperature", -0.07, "above 0"),
        ("hitpro", "prototypes.momentum", 1.0, "below 1"),
        ("hitpro", "prototypes.unit", "camera", "camera_track"),
        ("hitpro", "association.threshold", "static", "dynamic"),
        ("hitpro", "loading.interpolation", "lanczos", "bilinear"),
        ("hitpro", "dataset.protocols", ("markt",), "market"),
        ("hitpro", "evaluation.reranking", "knn", "k_reciprocal"),
        ("hitpro", "evaluation.clip_sampling", "all", "packed"),
        ("hitpro", "evaluation.pool", "mean", "after"),
        ("hitpro", "evaluation.distance", "manhattan", "parts_euclidean"),
        ("hitpro", "evaluation.outputs", (), "1 or more"),
        ("hitpro", "precision", "float16", "bfloat16"),
        ("hitpro", "mesh.devices", -1, "0"),
        ("hitpro", "schedule.name", "linear", "cosine"),
        ("baseline", "batch.num_identities", 0, "1"),
        ("baseline", "triplet.metric", "manhattan", "cosine"),
        ("cluster_contrast", "cross_modality", "agw", "adca"),
        ("cluster_contrast", "cluster.k1", 0, "1"),
        ("tf_clip", "bank", "text", "image"),
        ("clip_reid", "batch.sampler", "random", "balanced"),
        ("tf_clip", "sie.columns", ("view",), "camera_index"),
        ("cg_clip", "captions.source", "model", "shuffled"),
        ("cg_clip", "memory.momentum", 1.5, "1"),
        ("vsla_clip", "adapters.width", -32, "0"),
        ("lsmrl", "mod_gen", "mean", "mmd"),
        ("dinogrl", "pyramid", (2, 1), "ascending"),
        ("lsmrl", "stfl_split", (4, 0), "3 values"),
        ("language_image", "text.keep", 1.5, "1"),
    ],
)
def test_a_value_without_sense_is_told_by_its_key(name, key, value, allowed):
    # Set without ConfigDict's own check of types, as a config file can.
    found = config(name)
    with found.ignore_type():
        found.update_from_flattened_dict({key: value})
    with refuses(UserError, f"config.{key}={value!r}", allowed):
        check_config(found)


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("hitpro", {"keep_best": True}, ("config.keep_best", "config.evaluate_every")),
        (
            "baseline",
            {"optimizer.lr": 0.0},
            ("config.optimizer.lr", "above 0"),
        ),
        ("hitpro", {"backbone.name": "dinov2:ViT-S/14"}, ("config.backbone.name", "frames.height", 64, 14)),
        (
            "cluster_contrast",
            {"cross_modality": "pgm", "memory.kind": "camera"},
            ("config.cross_modality", "config.memory.kind"),
        ),
        ("clip_reid", {"prompt.template": "A photo."}, ("config.prompt.template", 4, "X")),
        ("clip_reid", {"embedding": ("penultimate",)}, ("config.embedding", "config.neck_feat='before'")),
        ("tf_clip", {"temporal.diffusion": False}, ("config.triplet.features", "config.temporal.diffusion")),
        ("vsla_clip", {"adapters.width": 30}, ("config.adapters.width", "config.adapters.temporal")),
        ("lsmrl", {"two_stage": True, "use_text": False}, ("config.two_stage", "config.use_text")),
        ("lsmrl", {"stfl_split": (4, 4, 4)}, ("config.stfl_split", "config.backbone.name")),
        ("lsmrl", {"evaluation.clip_sampling": "packed"}, ("config.evaluation.clip_sampling",)),
        ("baseline", {"evaluation.normalize": False}, ("config.evaluation.normalize=False", "config.evaluation.pool")),
        ("baseline", {"evaluation.outputs": ("feature", "feature")}, ("config.evaluation.outputs", "twice")),
        (
            "clip_reid",
            {"evaluation.distance": "parts", "evaluation.reranking": "k_reciprocal"},
            ("config.evaluation.reranking", "config.evaluation.distance='parts'"),
        ),
    ],
)
def test_values_that_do_not_go_together_are_told(name, changes, named):
    with refuses(UserError, *named):
        check_config(config(name, **changes))


def test_all_faults_are_told_at_once():
    with refuses(UserError, "config.epochs", "config.extraction_batch_size", "config.levels.temperature"):
        check_config(config(epochs=0, extraction_batch_size=0, **{"levels.temperature": 0.0}))


def test_values_are_looked_at_before_anything_is_opened(tmp_path):
    with refuses(UserError, "config.epochs=0"):
        start_run(config(epochs=0), tmp_path / "run", tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_the_values_of_every_preset_are_those_of_the_table():
    """What an overlay or a method changes in any preset has to be meant: tests/preset_values.py writes the table."""
    stored = json.loads(preset_values.TABLE.read_text(encoding="utf-8"))
    assert preset_values.resolved() == stored


def test_the_base_holds_what_schedules_and_augmentations_are_without_a_value():
    for section, kind in (("schedule", Schedule), ("augment", Augmentation)):
        found = {
            key.removeprefix(f"{section}."): value for key, value in base.BASE.items() if key.startswith(f"{section}.")
        }
        assert found == {field.name: field.default for field in dataclasses.fields(kind)}


def test_a_key_without_a_condition_is_named():
    found = config("baseline")
    with found.unlocked():
        found.my_weight = 3.0
    with refuses(ValueError, "config.my_weight", "Baseline.values"):
        check_config(found)


def test_a_key_that_is_left_out_is_named():
    found = config("baseline")
    with found.unlocked():
        del found.ema_decay
    with refuses(UserError, "config.ema_decay is not set: it must be a finite number of at least 0, below 1"):
        check_config(found)
